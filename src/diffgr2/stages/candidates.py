"""Stage `candidates`: cross-fitted training lists; validation and test lists of the full retriever.

Reads data and retriever; writes train, validation and test.safetensors with `k_max` columns, of
which results are about the first `k`. One retriever per fold is trained on the users outside the
fold and ranks for the users inside; an interrupted run continues at the epoch where it stopped.
Metrics, about the first `k`: lists, hits and the floor's R@1 on hits per split (test: counts only).
Run: `diffgr2 candidates RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.candidates import kinds
from diffgr2.candidates.lists import (
    first_columns,
    fold_of_users,
    held_out_lists,
    save_lists,
    training_lists,
    with_targets,
)
from diffgr2.data.store import read_dataset
from diffgr2.pipeline import StageContext
from diffgr2.streams import key_of
from diffgr2.types import MISS, CandidateLists


def counts(lists: CandidateLists) -> dict[str, float]:
    """How many lists, and how many hold their target where."""
    hits_L = lists.hit_L[lists.hit_L != MISS]
    result = {
        f"{lists.split}_lists": len(lists),
        f"{lists.split}_hits": len(hits_L),
        f"{lists.split}_hit_share": round(len(hits_L) / max(len(lists), 1), 6),
    }
    if lists.split != "test":
        result[f"{lists.split}_floor_r@1"] = float((hits_L == 0).mean()) if len(hits_L) else 0.0
    return result


def run(ctx: StageContext) -> dict[str, Any]:
    config, histories = ctx.recipe.candidates, read_dataset(ctx.inputs["data"]).histories
    full = kinds.load(ctx.inputs["retriever"])

    def fit(users: np.ndarray, fold: int) -> "kinds.Fitted":
        name, seed = f"fold {fold + 1} of {config.folds}", key_of(ctx.seed, "candidates", fold)
        place: dict[str, Any] = {"work": ctx.work, "name": name, "progress": ctx.progress}
        return kinds.fit(histories, users, ctx.recipe.retriever, seed, **place)[0]

    train = training_lists(
        histories,
        fold_of_users(histories.n_users, config.folds, ctx.seed),
        fit,
        k=config.k_max,
        prefixes_per_user=config.prefixes,
    )
    if config.inject_target:
        train = with_targets(train, config.k)
    held = [held_out_lists(histories, full, s, config.k_max) for s in ("validation", "test")]
    metrics: dict[str, Any] = {"inject_target": config.inject_target}
    for lists in (train, *held):
        save_lists(ctx.out, lists)
        metrics |= counts(first_columns(lists, config.k))
    return metrics
