"""Stage `tutor`: the strongest ranking of what prompts show, for a language model to imitate.

Reads candidates and evidence; fits boosted trees on the shown buckets of all stored columns
(`candidates.trees`), of training and validation lists as `evidence.fit_on` says, a training list
counting `traces.train_weight` times a validation list. With `traces.tutor: both` the tutor is the
mean of trees and scorecard: of few lists each learns something else wrong. Writes
`trees.safetensors` and the scores of every split: lists of known splits out of fold, those of
selection users and test lists by the mean of the folds. It is the row `tutor`; how much of
`lambdamart`, which reads raw values, it lacks is what the buckets cost. Recipes whose traces follow
`evidence.scorer` have no such stage. Needs LightGBM, once: what it leaves is read without. Run:
`diffgr2 tutor RECIPE`.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates import trees
from diffgr2.candidates.index import read_fields
from diffgr2.candidates.lambdamart import Lists
from diffgr2.candidates.lists import first_columns, load_lists, selection_users
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.config import Recipe
from diffgr2.data.store import read_dataset
from diffgr2.errors import MissingExtraError
from diffgr2.pipeline import StageContext
from diffgr2.stages.evidence import judged
from diffgr2.types import CandidateLists

PACKAGE = "lightgbm"
KNOWN = ("train", "validation")
CROSS_FITTED = 0.5
"""What a training list counts where its retriever knew half of the users: it is less like test
lists than a validation list is. A shop's own lists are all alike."""


def check() -> None:
    """Refuse to begin without LightGBM."""
    if not find_spec(PACKAGE):
        raise MissingExtraError(
            f"traces.tutor: trees needs {PACKAGE}: pip install 'diffgr2[lambdamart]' "
            "(or --set traces.tutor=scorer: the scorecard teaches)"
        )


def train_weight(recipe: Recipe) -> float:
    """What a training list counts."""
    if recipe.traces.train_weight is not None:
        return recipe.traces.train_weight
    return 1.0 if recipe.lists.file else CROSS_FITTED


def learned(
    split: str, lists: CandidateLists, buckets_LKF: np.ndarray, evidence: Path, weight: float
) -> Lists:
    """A split's lists as trees learn from them."""
    weight_LK = np.full(lists.gains_LK.shape, weight)
    path = evidence / f"weight_{split}.safetensors"
    if path.exists():  # inverse propensities
        weight_LK *= load_arrays(path)["weight_LK"]
    given = (buckets_LKF, lists.there_LK, lists.gains_LK, lists.owner_L)
    return Lists(*given, weight_LK)


def run(ctx: StageContext) -> dict[str, Any]:
    check()
    recipe, k, evidence = ctx.recipe, ctx.recipe.candidates.k, ctx.inputs["evidence"]
    n_users = read_dataset(ctx.inputs["data"]).histories.n_users
    lists = {split: load_lists(ctx.inputs["candidates"], split) for split in (*KNOWN, "test")}
    buckets = {
        split: load_arrays(evidence / f"{split}.safetensors")["buckets_LKF"] for split in lists
    }
    weights = {"train": train_weight(recipe), "validation": 1.0}
    splits = KNOWN if recipe.evidence.fit_on == "both" else (recipe.evidence.fit_on,)
    known = [learned(s, lists[s], buckets[s], evidence, weights[s]) for s in splits]
    held_U = selection_users(n_users)
    given: dict[str, Any] = {"seed": ctx.seed, "threads": recipe.threads, "held_U": held_U}
    found, told = trees.fit(Lists.join(known), recipe.evidence.buckets, n_users, **given)
    if recipe.traces.tutor == "both":
        found = found.beside(LinearScorer.load(evidence / "linear.safetensors").weight_FV)
    found.save(ctx.out / trees.FILE)
    metrics: dict[str, Any] = {}
    for split, own in lists.items():
        width = k if split == "test" else own.k
        score_LK = found.score(buckets[split][:, :width], own.owner_L, own.there_LK[:, :width])
        save_arrays(ctx.out / f"scores_trees_{split}.safetensors", score_LK=score_LK)
        if split in KNOWN:
            first, outside_L = first_columns(own, k), ~held_U[own.owner_L]
            values = judged(score_LK[outside_L, :k], first.hit_L[outside_L])
            metrics |= {f"{split}_out_of_fold_{name}": v for name, v in values.items()}
    names = [field.name for field in read_fields(evidence)]
    share_F = told["gain_F"] / max(float(told["gain_F"].sum()), 1e-12)
    pairs = zip(names, share_F, strict=True)
    metrics["importance"] = {name: round(float(share), 4) for name, share in pairs}
    metrics |= {"train_weight": weights["train"], "rounds": told["rounds"], "lists": told["lists"]}
    return metrics | {"out_of_fold_loss": round(told["loss"], 6)}
