"""Stage `rival`: what ranks as well without a language model, and which of those is to be beaten.

Reads data, candidates and evidence; fits LambdaMART on the raw values of the evidence, on the lists
that taught the other scorers, tuned on those of selection users. Writes its scores of the test
lists, its trees, and `rivals.json`: what every scorer is worth on the selection lists, and the
strongest. Raw values are counted again, which takes seconds, instead of kept. Where LightGBM is not
installed the other scorers stand alone. Nothing that is trained reads this stage.
Run: `diffgr2 rival RECIPE`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays, write_json
from diffgr2.candidates import lambdamart
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import first_columns, load_lists, selected_lists
from diffgr2.candidates.own_fields import read_own
from diffgr2.candidates.retrieval import chunks
from diffgr2.candidates.scorers import KINDS
from diffgr2.config import Recipe
from diffgr2.data.store import read_dataset
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.evaluate.verdict import DECIDES as METRIC
from diffgr2.pipeline import StageContext
from diffgr2.stages.counting import LISTS_AT_ONCE, raw_values
from diffgr2.stages.judge import LAMBDAMART, TREES
from diffgr2.types import MISS

PACKAGE = "lightgbm"
KNOWN = ("train", "validation")


@dataclass(frozen=True)
class Seen:
    """Every split as trees see it: the first k columns, and what each field is."""

    lists: dict[str, lambdamart.Lists]
    held: dict[str, np.ndarray]  # lists (bool) of selection users that something came of
    names: list[str]
    categories: list[int]


def read(inputs: Mapping[str, Path], recipe: Recipe, work: Path | None = None) -> Seen:
    """The raw values of what prompts show: counted evidence, then the lists' own columns as they
    are, with every word of a category. With a directory they lie in files of it."""
    dataset, index = read_dataset(inputs["data"]), EvidenceIndex.load(inputs["evidence"])
    lists = {split: load_lists(inputs["candidates"], split) for split in (*KNOWN, "test")}
    brought = read_own(inputs["candidates"], lists)
    counted = [f for f, field in enumerate(index.fields) if field.counted]
    shown = [name for name in index.names if brought and name in brought.columns]
    names, seen, held = [index.names[f] for f in counted] + shown, {}, {}
    k = recipe.candidates.k

    def made(split: str, at: slice, raw_CKF: np.ndarray) -> np.ndarray:
        raw_CKF = raw_CKF[:, :k, counted]
        if brought:
            columns = [list(brought.columns).index(name) for name in shown]
            own_CKG = brought.raw[split][at, :k, columns]
            raw_CKF = np.concatenate([raw_CKF, own_CKG], axis=2)
        return np.where(np.isfinite(raw_CKF), raw_CKF, np.nan)

    raw = raw_values(recipe, index, dataset, lists, made, work)
    for split, own in lists.items():
        first = first_columns(own, k)
        given = (raw[split], first.there_LK, first.gains_LK, first.owner_L)
        seen[split] = lambdamart.Lists(*given, weights_of(inputs["evidence"], split, k))
        held[split] = selected_lists(own, dataset.histories.n_users) & (first.hit_L != MISS)
    kinds = {name: column.kind for name, column in brought.columns.items()} if brought else {}
    return Seen(seen, held, names, [f for f, n in enumerate(names) if kinds.get(n) == "category"])


def weights_of(evidence: Path, split: str, k: int) -> np.ndarray | None:
    """Inverse propensities, where the recipe wants them: the trees learn as the scorers do."""
    path = evidence / f"weight_{split}.safetensors"
    return load_arrays(path)["weight_LK"][:, :k] if path.exists() else None


def worth(score_LK: np.ndarray, lists: lambdamart.Lists) -> np.ndarray:
    """NDCG@10 of each list."""
    order_LK = order_from_scores(score_LK, "scores", lists.valid_LK.sum(1))
    return metrics_of(order_LK, lists.gains_LK)[:, METRICS.index(METRIC)]


def run(ctx: StageContext) -> dict[str, Any]:
    config, found = ctx.recipe.evidence, read(ctx.inputs, ctx.recipe, ctx.work)
    seen, held = found.lists, found.held
    select = lambdamart.Lists.join([seen[split].take(held[split]) for split in KNOWN])
    values = {"floor": worth(np.zeros(select.valid_LK.shape), select)}
    places = dict.fromkeys(KINDS, ctx.inputs["evidence"])
    places |= {TREES: ctx.inputs["tutor"]} if "tutor" in ctx.inputs else {}
    for kind, place in places.items():
        paths = (place / f"scores_{kind}_{split}.safetensors" for split in KNOWN)
        scores = [load_arrays(path)["score_LK"] for path in paths]
        parts = [own[held[split]] for own, split in zip(scores, KNOWN, strict=True)]
        score_LK = np.concatenate([part[:, : select.valid_LK.shape[1]] for part in parts])
        values[kind] = worth(score_LK, select)
    metrics: dict[str, Any] = {}
    if find_spec(PACKAGE):
        fit_on = KNOWN if config.fit_on == "both" else (config.fit_on,)
        # What teaches nothing need not be in memory.
        teaches = {split: ~held[split] & seen[split].teaches for split in fit_on}
        train = lambdamart.Lists.join([seen[split].take(teaches[split]) for split in fit_on])
        given: dict[str, Any] = {"seed": ctx.seed, "threads": ctx.recipe.threads}
        given["categories"] = found.categories
        trees = lambdamart.fit(train, select, worth, **given)
        values[LAMBDAMART] = worth(trees.score(select.raw_LKF, select.valid_LK), select)
        test = seen["test"]
        parts = [test.take(at) for at in chunks(max(len(test), 1), LISTS_AT_ONCE)]
        score_LK = np.concatenate([trees.score(part.raw_LKF, part.valid_LK) for part in parts])
        save_arrays(ctx.out / f"scores_{LAMBDAMART}_test.safetensors", score_LK=score_LK)
        trees.booster.save_model(ctx.out / "trees.txt", num_iteration=trees.rounds)
        metrics |= {"rounds": trees.rounds, **trees.setting, "tuned_on": trees.tuned_on}
        metrics["importance"] = trees.importance(found.names)
    else:
        ctx.progress.line(
            f"{ctx.name}: {PACKAGE} is missing, so there is no row {LAMBDAMART} "
            "(pip install 'diffgr2[lambdamart]')"
        )
    # Without selection lists nothing tells them apart, and the one that teaches is the rival.
    means = {name: round(float(own.mean()), 6) if len(own) else 0.0 for name, own in values.items()}
    strongest = max((name for name in means if name != "floor"), key=lambda name: means[name])
    said = {"metric": METRIC, "n": len(select), "values": means, "strongest": strongest}
    write_json(ctx.out / "rivals.json", said)
    told = {f"selection_{METRIC}_{name}": value for name, value in means.items()}
    return {"selection_lists": len(select), "strongest": strongest, **told, **metrics}
