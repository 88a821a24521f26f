"""Stage `evidence`: what speaks for each candidate, and scorers that read nothing else.

Reads data, items and candidates; writes the index, each split's buckets (all k_max columns,
relative to the whole list), the linear scorer and every scorer's scores (all columns of training
and validation lists, the first k of test lists). What is fitted, bucket edges and scorers,
is fitted on the first k columns of training and validation lists that hold their target there,
never on lists of selection users. Every list leaves its own user out of the counts, so the three
splits look alike. The scorers are fitted on `evidence.fit_on`; the metrics judge a second set,
fitted on training lists alone, on the first k columns; test lists are scored, not judged.
Run: `diffgr2 evidence RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates import scorers
from diffgr2.candidates.index import FIELDS, EvidenceIndex
from diffgr2.candidates.lists import first_columns, load_lists, selection_users
from diffgr2.candidates.retrieval import prefixes
from diffgr2.config import EvidenceConfig
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.errors import DataError
from diffgr2.pipeline import StageContext
from diffgr2.types import MISS, CandidateLists

KNOWN = ("train", "validation")


def fitted(
    buckets: dict[str, np.ndarray],
    hits: dict[str, np.ndarray],
    splits: tuple[str, ...],
    config: EvidenceConfig,
    seed: int,
) -> dict[str, scorers.Scorer]:
    """All kinds of scorer, from the lists of these splits that hold their target."""
    hit_L = np.concatenate([hits[split] for split in splits])
    if not (hit_L != MISS).any():
        raise DataError(
            f"evidence.fit_on: none of the {len(hit_L)} {' and '.join(splits)} lists holds its "
            "target (a better retriever, more users or a larger candidates.k is needed)"
        )
    buckets_LKF = np.concatenate([buckets[split] for split in splits])
    return {
        kind: scorers.fit(kind, buckets_LKF, hit_L, config.buckets, l2=config.l2, seed=seed)
        for kind in scorers.KINDS
    }


def judged(score_LK: np.ndarray, hit_L: np.ndarray) -> dict[str, float]:
    """R@1, R@3, NDCG@3 on the lists that hold their target."""
    rows = hit_L != MISS
    if not rows.any():
        return {}
    return scorers.hit_metrics(scorers.rank_of_target(score_LK[rows], hit_L[rows]))


def counted(
    ctx: StageContext,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    taught: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The buckets of every split's candidates; the index and all features are written."""
    config, k = ctx.recipe.evidence, ctx.recipe.candidates.k
    vectors_ID = load_arrays(ctx.inputs["items"] / "vectors.safetensors")["vectors_ID"]
    train_part = dataset.histories.train_part()
    index = EvidenceIndex.build(train_part, dataset.catalogue, vectors_ID, config)
    features = {}
    for split, own in lists.items():  # their users are in the index and leave themselves out
        queries = prefixes(dataset.histories, own.user_L, own.end_L)
        features[split] = index.features(queries, own.items_LK, own.scores_LK, own.user_L)
    # Lists without their target hold weak evidence only and would coarsen the strong end.
    known = [features[split][taught[split] != MISS, :k] for split in KNOWN]
    index = index.with_edges(np.concatenate(known).reshape(-1, len(FIELDS)))
    index.save(ctx.out)
    buckets = {split: index.buckets(features[split]) for split in lists}
    for split in lists:
        save_arrays(ctx.out / f"{split}.safetensors", buckets_LKF=buckets[split])
    return buckets


def run(ctx: StageContext) -> dict[str, Any]:
    config, k = ctx.recipe.evidence, ctx.recipe.candidates.k
    dataset = read_dataset(ctx.inputs["data"])
    lists = {split: load_lists(ctx.inputs["candidates"], split) for split in (*KNOWN, "test")}
    hits = {split: first_columns(lists[split], k).hit_L for split in KNOWN}
    held_U = selection_users(dataset.histories.n_users)
    taught = {s: np.where(held_U[lists[s].user_L], MISS, hits[s]) for s in KNOWN}
    long = counted(ctx, dataset, lists, taught)
    buckets = {split: long[split][:, :k] for split in lists}

    floor_LK = np.broadcast_to(-np.arange(k), (len(lists["validation"]), k))
    metrics: dict[str, Any] = {
        f"validation_floor_{name}": v for name, v in judged(floor_LK, hits["validation"]).items()
    }
    honest = fitted(buckets, taught, ("train",), config, ctx.seed)
    for kind, scorer in honest.items():
        for split in KNOWN:
            values = judged(scorer.score(buckets[split]), hits[split])
            metrics |= {f"{split}_{kind}_{name}": v for name, v in values.items()}

    splits = KNOWN if config.fit_on == "both" else (config.fit_on,)
    final = honest if splits == ("train",) else fitted(buckets, taught, splits, config, ctx.seed)
    for kind, scorer in final.items():
        if isinstance(scorer, scorers.LinearScorer):  # the one that traces are made with
            scorer.save(ctx.out / f"{kind}.safetensors")
        for split in lists:
            shown_LKF = buckets[split] if split == "test" else long[split]
            score_LK = scorer.score(shown_LKF).astype(np.float32)
            save_arrays(ctx.out / f"scores_{kind}_{split}.safetensors", score_LK=score_LK)
    return metrics
