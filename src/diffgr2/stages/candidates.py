"""Stage `candidates`: cross-fitted training lists; validation and test lists of the full retriever.

Reads data and retriever; writes train, validation and test.safetensors with `k_max` columns, of
which results are about the first `k`. One retriever per fold is trained on the users outside the
fold and ranks for the users inside; an interrupted run continues at the epoch where it stopped.
Where a recipe has lists of a shop's own, these are the lists, in the shop's order and split as the
recipe says, with their features (`own_<split>.safetensors`) and names beside them; no retriever is
asked. Metrics, about the first `k`: lists, hits and the floor's R@1 on hits per split (test: counts
only). Run: `diffgr2 candidates RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.artifacts import save_arrays
from diffgr2.candidates import kinds
from diffgr2.candidates.extent import large
from diffgr2.candidates.lists import (
    first_columns,
    fold_of_users,
    held_out_lists,
    save_lists,
    training_lists,
    with_targets,
)
from diffgr2.candidates.own_fields import Column, write_own
from diffgr2.candidates.own_split import SPLITS, own_split, shown_at
from diffgr2.candidates.ranks import Ranks
from diffgr2.candidates.retrieval import Retriever
from diffgr2.candidates.search import searched
from diffgr2.data.columnar import packed_texts
from diffgr2.data.own_store import OwnLists
from diffgr2.data.store import read_dataset
from diffgr2.pipeline import StageContext
from diffgr2.stages.known import own_parts
from diffgr2.stages.sharing import together
from diffgr2.streams import key_of
from diffgr2.types import MISS, CandidateLists, Histories


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


def worst(searches: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several retrievers' searches the one that finds least; an exact one finds all."""
    return min(searches, key=lambda facts: facts.get("search_recall@10", 2.0))


def own_lists(ctx: StageContext, own: OwnLists, parts_L: np.ndarray) -> dict[str, Any]:
    """The shop's own lists in the retriever's place."""
    k_max = ctx.recipe.candidates.k_max
    longer = int((np.diff(own.offsets_L1) > k_max).sum())
    metrics: dict[str, Any] = {"lists": len(own), "cut_to_k_max": longer}
    if longer:
        ctx.progress.line(
            f"{ctx.name}: {longer} of {len(own)} lists are longer than candidates.k_max ({k_max}) "
            "and are cut"
        )
    raw = {}
    for split in SPLITS:
        lists, raw[split], which = own_split(own, parts_L, split, k_max)
        save_lists(ctx.out, lists)
        names = packed_texts("name", [own.names[at] for at in which.tolist()])
        save_arrays(ctx.out / f"names_{split}.safetensors", **names)
        if own.shown_N is not None:
            shown_LK = shown_at(own, which, k_max)
            save_arrays(ctx.out / f"shown_{split}.safetensors", shown_LK=shown_LK)
        metrics |= counts(lists)
    if own.features:
        columns = {f["name"]: Column(f["kind"], tuple(f["words"])) for f in own.features}
        write_own(ctx.out, columns, raw)
    return metrics


def run(ctx: StageContext) -> dict[str, Any]:
    if (found := own_parts(ctx.recipe, ctx.inputs["data"])) is not None:
        return together(False, lambda _: own_lists(ctx, *found))
    histories = read_dataset(ctx.inputs["data"]).histories
    return together(
        large(histories, ctx.recipe.retriever), lambda ranks: ranked(ctx, histories, ranks)
    )


def ranked(ctx: StageContext, histories: Histories, ranks: Ranks) -> dict[str, Any]:
    """The retriever's lists."""
    config, asked = ctx.recipe.candidates, ctx.recipe.retriever
    searches: list[dict[str, Any]] = []

    def searching(model: "kinds.Fitted", seed: int) -> Retriever:
        found, facts = searched(model, histories, asked, seed, ctx.progress.line)
        searches.append(facts)
        return found

    def fit(users: np.ndarray, fold: int) -> Retriever:
        name, seed = f"fold {fold + 1} of {config.folds}", key_of(ctx.seed, "candidates", fold)
        place: dict[str, Any] = {"work": ctx.work, "name": name, "progress": ctx.progress}
        model = kinds.fit(histories, users, asked, seed, ranks=ranks, **place)[0]
        return searching(model, seed)

    train = training_lists(
        histories,
        fold_of_users(histories.n_users, config.folds, ctx.seed),
        fit,
        k=config.k_max,
        prefixes_per_user=config.prefixes,
        ranks=ranks,
    )
    if config.inject_target:
        train = with_targets(train, config.k)
    full = searching(kinds.load(ctx.inputs["retriever"]), key_of(ctx.seed, "candidates"))
    held = [
        held_out_lists(histories, full, split, config.k_max, ranks)
        for split in ("validation", "test")
    ]
    metrics: dict[str, Any] = {"inject_target": config.inject_target, **worst(searches)}
    for lists in (train, *held):
        if ranks.first:
            save_lists(ctx.out, lists)
        metrics |= counts(first_columns(lists, config.k))
    return metrics
