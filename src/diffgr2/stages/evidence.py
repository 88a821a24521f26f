"""Stage `evidence`: what speaks for each candidate, and scorers that read nothing else.

Reads data, items and candidates, with the lists' own features where there are any; writes the
index, each split's buckets (all k_max columns, relative to the whole list), the linear scorer and
every scorer's scores (all columns of training and validation lists, the first k of test lists).
What is fitted, bucket edges, words of categories and scorers, is fitted on the first k columns of
training and validation lists that hold their target there, never on lists of selection users. Every
list leaves its own user out of the counts, so the three splits look alike. The scorers are fitted
on `evidence.fit_on`; the metrics judge a second set, fitted on training lists alone, on the first k
columns; test lists are scored, not judged. With `lists.point_in_time` every list has the counts of
its own moment, and the metrics say what that changes: the share of values that fall into another
bucket, and the scorecard on counts that know more (`validation_untimed_…`). The stored index, which
serves, knows all that may be known. With `lists.propensity: position` an outcome teaches by the
inverse chance that its place was looked at; what is judged counts as it came. How strongly the
scorecard is held back is chosen on the lists that teach it (`candidates.penalty`) where the recipe
leaves it open. Run: `diffgr2 evidence RECIPE`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, mapped_arrays, save_arrays
from diffgr2.candidates import penalty, scorers
from diffgr2.candidates.fields import COUNTED, PAIRED, Field, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import first_columns, load_lists, selected_lists
from diffgr2.candidates.own_fields import Own, read_own
from diffgr2.candidates.own_fields import fitted as fitted_own
from diffgr2.candidates.propensity import fit_examination, weights
from diffgr2.choices import MOMENT
from diffgr2.config import EvidenceConfig, Recipe
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.errors import DataError
from diffgr2.pipeline import StageContext
from diffgr2.prompts.english import Phrases, wording
from diffgr2.stages.counting import (
    KNOWN,
    LISTS_AT_ONCE,
    known_columns,
    known_of,
    levels,
    raw_columns,
)
from diffgr2.stages.known import known_part
from diffgr2.streams import permutation
from diffgr2.types import MISS, CandidateLists, Histories

MOST_TAUGHT = 200_000
"""Lists that edges and scorers are fitted on: their few hundred weights learn nothing from more,
and need a kilobyte and more for each."""


@dataclass(frozen=True)
class Known:
    """What a split's lists look like to a scorer: the first k columns."""

    buckets_LKF: np.ndarray
    there_LK: np.ndarray
    gains_LK: np.ndarray  # 0 in lists that train nothing
    owner_L: np.ndarray
    weight_LK: np.ndarray | None = None  # inverse propensities, where they are wanted

    def take(self, rows: slice | np.ndarray) -> "Known":
        """These lists alone."""
        arrays: dict[str, Any] = {n: a[rows] for n, a in vars(self).items() if a is not None}
        return Known(**arrays)


def teaching(known: Known) -> slice | np.ndarray:
    """The lists that are learned from; all of them where some are shorter than others."""
    if not known.there_LK.all():
        return slice(None)
    return np.flatnonzero((known.gains_LK > 0).any(1))


@dataclass(frozen=True)
class Taught:
    """Scorers, and how the scorecard among them was held back."""

    by_kind: dict[str, scorers.Scorer]
    held_back: penalty.Penalty


def fitted(
    known: dict[str, Known], splits: tuple[str, ...], config: EvidenceConfig, seed: int
) -> Taught:
    """All kinds of scorer, from the lists of these splits that something came of."""
    gains_LK = np.concatenate([known[split].gains_LK for split in splits])
    if not (gains_LK > 0).any():
        raise DataError(
            f"evidence.fit_on: none of the {len(gains_LK)} {' and '.join(splits)} lists holds its "
            "target (a better retriever, more users or a larger candidates.k is needed)"
        )
    rows = {split: teaching(known[split]) for split in splits}
    known = {split: known[split].take(which) for split, which in rows.items()}
    gains_LK = np.concatenate([known[split].gains_LK for split in splits])
    buckets_LKF = np.concatenate([known[split].buckets_LKF for split in splits])
    there_LK = np.concatenate([known[split].there_LK for split in splits])
    how: dict[str, Any] = {"there_LK": there_LK, "seed": seed}
    weight = [known[split].weight_LK for split in splits]
    if all(weight_LK is not None for weight_LK in weight):
        how["weight_LK"] = np.concatenate([w for w in weight if w is not None])
    owner_L = np.concatenate([known[split].owner_L for split in splits])
    held_back = penalty.chosen(
        *(buckets_LKF, gains_LK, owner_L, config.buckets), l2=config.l2, smooth=config.smooth, **how
    )
    how |= {"l2": held_back.l2, "smooth": held_back.smooth}
    kinds = {
        kind: scorers.fit(kind, buckets_LKF, gains_LK, config.buckets, **how)
        for kind in scorers.KINDS
    }
    return Taught(kinds, held_back)


def inverse_propensities(
    ctx: StageContext, lists: dict[str, CandidateLists]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of the known splits by where each candidate was shown; estimated on training lists.

    They are written too (`weight_<split>`), for whoever else learns from outcomes.
    """
    if ctx.recipe.lists.propensity == "none":
        return {}, {}
    shown = {}
    for split in KNOWN:
        path = ctx.inputs["candidates"] / f"shown_{split}.safetensors"
        if ctx.recipe.lists.file is None or not path.exists():
            raise DataError("lists.propensity: only a shop's own lists say where items were shown")
        shown[split] = load_arrays(path)["shown_LK"]
    train = lists["train"]
    there_LK = train.there_LK
    given = (train.items_LK[there_LK], shown["train"][there_LK], train.gains_LK[there_LK])
    found = fit_examination(*given)
    ctx.progress.line(f"{ctx.name}: {found.told_as()}")
    weight = {split: weights(found, shown[split]) for split in KNOWN}
    for split in KNOWN:
        save_arrays(ctx.out / f"weight_{split}.safetensors", weight_LK=weight[split])
    about = {"eta": found.eta, "eta_low": found.low, "eta_high": found.high, "outcomes": found.told}
    return weight, {f"propensity_{name}": round(value, 6) for name, value in about.items()}


def judged(score_LK: np.ndarray, hit_L: np.ndarray) -> dict[str, float]:
    """R@1, R@3, NDCG@3 on the lists that hold their target."""
    rows = hit_L != MISS
    if not rows.any():
        return {}
    return scorers.hit_metrics(scorers.rank_of_target(score_LK[rows], hit_L[rows]))


def own_of(
    ctx: StageContext, brought: Own | None, learned: dict[str, np.ndarray]
) -> tuple[tuple[Field, ...], dict[str, np.ndarray]]:
    """The fields of the lists' own features, and each split's values of them."""
    if brought is None:
        return (), {}
    known_XG, n_buckets = known_of(brought.raw, learned), ctx.recipe.evidence.buckets
    fields = fitted_own(brought, known_XG, ctx.recipe.lists.features, n_buckets)
    for name in brought.columns.keys() - {field.name for field in fields}:
        ctx.progress.line(f"{ctx.name}: lists.features.{name}: no value to learn from, left out")
    return fields, {split: brought.values(split, fields) for split in brought.raw}


@dataclass(frozen=True)
class Counted:
    """The buckets of every split's candidates, as they are used and as they are without moments.

    The index itself is not held: it is written, and its counts are the largest thing there is."""

    fields: tuple[Field, ...]
    buckets: dict[str, np.ndarray]
    untimed: dict[str, np.ndarray]  # {} where they are the same


def featured(
    ctx: StageContext,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    teaches: dict[str, np.ndarray],
) -> Counted:
    """All features in buckets; the index and the buckets are written."""
    recipe, config, k = ctx.recipe, ctx.recipe.evidence, ctx.recipe.candidates.k
    vectors_ID = load_arrays(ctx.inputs["items"] / "vectors.safetensors")["vectors_ID"]
    known, brought = (
        known_part(recipe, ctx.inputs["data"], dataset),
        read_own(ctx.inputs["candidates"], lists),
    )
    # Lists without their target hold weak evidence only and would coarsen the strong end.
    learned = {s: lists[s].there_LK[:, :k] & teaches[s][:, None] for s in KNOWN}
    fields, values = own_of(ctx, brought, learned)
    config = config.model_copy(update={"fields": tellable(config, recipe, known, lists)})
    built = (known, dataset.catalogue, vectors_ID, config, fields)
    index = EvidenceIndex.build(*built, work=ctx.work)
    index = replace(index, own_scores=recipe.lists.file is not None)
    Phrases(wording(recipe.prompt.template), index.fields, config.buckets)  # can be told apart
    index, buckets, untimed = bucketed(ctx, index, dataset, lists, values, learned)
    index.save(ctx.out)
    found = {}
    for split in lists:
        save_arrays(ctx.out / f"{split}.safetensors", buckets_LKF=buckets[split])
        found[split] = mapped_arrays(ctx.out / f"{split}.safetensors")["buckets_LKF"]
    return Counted(tuple(index.fields), found, untimed)


def bucketed(
    ctx: StageContext,
    index: EvidenceIndex,
    dataset: Dataset,
    lists: dict[str, CandidateLists],
    values: dict[str, np.ndarray],
    learned: dict[str, np.ndarray],
) -> tuple[EvidenceIndex, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The index with edges, every split's buckets, and those without moments where they differ.

    Evidence goes through files, some lists at a time and then field by field.
    """
    asked = (ctx.recipe, index, dataset, lists, values, ctx.work)
    untimed = {}
    if ctx.recipe.lists.point_in_time:
        later = raw_columns(*asked, timed=False)
        untimed = levels(index.with_edges_of(known_columns(later, learned)), later)
    features = raw_columns(*asked, timed=True)
    index = index.with_edges_of(known_columns(features, learned))
    return index, levels(index, features), untimed


def sample(
    teaches: dict[str, np.ndarray], seed: int
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """At most MOST_TAUGHT of the lists that teach, and how many they are where that cuts."""
    flags = np.concatenate([teaches[split] for split in KNOWN])
    at = np.flatnonzero(flags)
    if len(at) <= MOST_TAUGHT:
        return teaches, {}
    flags[at[permutation(len(at), seed, "evidence", "taught")[MOST_TAUGHT:]]] = False
    parts = np.split(flags, [len(teaches[KNOWN[0]])])
    return dict(zip(KNOWN, parts, strict=True)), {"lists_that_teach": MOST_TAUGHT}


def tellable(
    config: EvidenceConfig, recipe: Recipe, known: Histories, lists: dict[str, CandidateLists]
) -> list[Any] | None:
    """The counted fields that these lists can tell, of those that the recipe wants; None: all."""
    mute = set()
    if not any(np.nan_to_num(own.scores_LK).any() for own in lists.values()):
        mute.add("gap")
    if not (known.lengths_U > 1).any():  # nobody bought two things: nothing goes together
        mute |= {*PAIRED}
    if recipe.lists.file is None or not mute:
        return config.fields
    wanted = names_of(COUNTED) if config.fields is None else config.fields
    return [name for name in wanted if name not in mute]


def scored(scorer: scorers.Scorer, buckets_LKF: np.ndarray, there_LK: np.ndarray) -> np.ndarray:
    """Scores of all lists, some at a time."""
    starts = range(0, max(len(there_LK), 1), LISTS_AT_ONCE)
    parts = [slice(begin, begin + LISTS_AT_ONCE) for begin in starts]
    return np.concatenate([scorer.score(buckets_LKF[at], there_LK[at]) for at in parts])


def told_of(fields: Sequence[Field], config: EvidenceConfig) -> dict[str, Any]:
    """Which fields there are, and which of those that were wanted the data cannot tell."""
    names, wanted = names_of(fields), config.fields or names_of(COUNTED)
    silent = [n for n in names_of(COUNTED) if n in wanted and n not in (*names, *MOMENT)]
    return {"fields": " ".join(names), **({"without": " ".join(silent)} if silent else {})}


def difference(
    found: Counted,
    untimed: dict[str, Known],
    first: dict[str, CandidateLists],
    config: EvidenceConfig,
    seed: int,
) -> dict[str, float]:
    """What counts of the moment change, against counts that know what came later."""
    there_LK = first["validation"].there_LK
    pair = (found.buckets["validation"], found.untimed["validation"])
    now_XF, later_XF = (buckets[:, : there_LK.shape[1]][there_LK] for buckets in pair)
    part = untimed["validation"]
    scorer = fitted(untimed, ("train",), config, seed).by_kind["linear"]
    values = judged(scorer.score(part.buckets_LKF, part.there_LK), first["validation"].hit_L)
    moved = float((now_XF != later_XF).mean())
    return {"validation_buckets_moved": round(moved, 6)} | {
        f"validation_untimed_linear_{name}": value for name, value in values.items()
    }


def run(ctx: StageContext) -> dict[str, Any]:
    config, k = ctx.recipe.evidence, ctx.recipe.candidates.k
    dataset = read_dataset(ctx.inputs["data"])
    lists = {split: load_lists(ctx.inputs["candidates"], split) for split in (*KNOWN, "test")}
    first = {split: first_columns(own, k) for split, own in lists.items()}
    n_users = dataset.histories.n_users
    teaches = {s: ~selected_lists(lists[s], n_users) & (first[s].hit_L != MISS) for s in KNOWN}
    teaches, sampled = sample(teaches, ctx.seed)
    found = featured(ctx, dataset, lists, teaches)
    long = found.buckets

    weight, about = inverse_propensities(ctx, lists)

    def seen(buckets: dict[str, np.ndarray]) -> dict[str, Known]:
        return {
            s: Known(
                buckets[s][:, :k],
                first[s].there_LK,
                first[s].gains_LK * teaches[s][:, None],
                lists[s].owner_L,
                weight[s][:, :k] if weight else None,
            )
            for s in KNOWN
        }

    known = seen(long)

    validation = first["validation"]
    floor_LK = np.broadcast_to(-np.arange(k), (len(validation), k))
    metrics: dict[str, Any] = {
        f"validation_floor_{name}": v for name, v in judged(floor_LK, validation.hit_L).items()
    }
    honest = fitted(known, ("train",), config, ctx.seed)
    for kind, scorer in honest.by_kind.items():
        for split in KNOWN:
            score_LK = scored(scorer, known[split].buckets_LKF, known[split].there_LK)
            values = judged(score_LK, first[split].hit_L)
            metrics |= {f"{split}_{kind}_{name}": v for name, v in values.items()}

    if found.untimed:
        change = difference(found, seen(found.untimed), first, config, ctx.seed)
        moved = change["validation_buckets_moved"]
        told = f"{moved:.1%} of the values stand in another bucket by lists.point_in_time"
        ctx.progress.line(f"{ctx.name}: {told}")
        metrics |= change
    metrics |= sampled | about | told_of(found.fields, config)
    splits = KNOWN if config.fit_on == "both" else (config.fit_on,)
    final = honest if splits == ("train",) else fitted(known, splits, config, ctx.seed)
    ctx.progress.line(f"{ctx.name}: {final.held_back.told_as()}")
    metrics |= {"l2": final.held_back.l2, "smooth": final.held_back.smooth}
    for kind, scorer in final.by_kind.items():
        if isinstance(scorer, scorers.LinearScorer):  # the one that traces are made with
            scorer.save(ctx.out / f"{kind}.safetensors")
        for split in lists:
            width = k if split == "test" else lists[split].k
            score_LK = scored(scorer, long[split][:, :width], lists[split].there_LK[:, :width])
            save_arrays(
                ctx.out / f"scores_{kind}_{split}.safetensors", score_LK=score_LK.astype(np.float32)
            )
    return metrics
