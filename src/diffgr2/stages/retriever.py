"""Stage `retriever`: the full first-stage ranker, trained on every user's train part.

Reads data; writes model.safetensors and config.json and, of SASRec, metrics.jsonl with a line per
epoch. Its metrics hold R@10 and NDCG@10 over all users (of many a random choice) for validation
(which stops the training early) and test (which decides nothing), whether the loss was over all
items or a sample, and where lists are searched for approximately, what share of the exact ten best
that finds (`search_recall@10`). Where the lists are a shop's own, it only ranks requests that come
without scores: it learns from all that their split allows to know, and where nothing was bought it
is the popularity of what came of the lists that train. Run: `diffgr2 retriever RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.candidates import kinds
from diffgr2.candidates.extent import approximates, large
from diffgr2.candidates.own_split import TRAIN
from diffgr2.candidates.ranks import Ranks
from diffgr2.candidates.retrieval import evaluate, prefixes
from diffgr2.candidates.search import searched
from diffgr2.config import RetrieverConfig
from diffgr2.data.own_store import OwnLists
from diffgr2.data.store import read_dataset
from diffgr2.pipeline import StageContext
from diffgr2.stages.known import known_part, own_parts
from diffgr2.stages.sharing import together
from diffgr2.streams import key_of, permutation
from diffgr2.train.log import METRICS

FEWEST = 3
"""Purchases that a user has to have made for SASRec, which keeps two back."""


MEASURED_USERS = 32_768
"""Whose lists the metrics are about: a random choice of more."""


def place(ctx: StageContext) -> dict[str, Any]:
    """Where a fit keeps its state, what it is called, and where it logs its epochs."""
    named = {"work": ctx.work, "name": "retriever", "log": ctx.out / METRICS}
    return named | {"progress": ctx.progress}


def beside_lists(ctx: StageContext, own: OwnLists, parts_L: np.ndarray) -> dict[str, Any]:
    """The retriever of a recipe whose lists are the shop's."""
    known = known_part(ctx.recipe, ctx.inputs["data"], read_dataset(ctx.inputs["data"]))
    config = ctx.recipe.retriever
    if not len(known.items_N):
        part_N = np.repeat(parts_L, np.diff(own.offsets_L1))
        won_N = (own.gain_N > 0) & (part_N == TRAIN)
        count_I = np.bincount(own.item_N[won_N], own.gain_N[won_N], known.n_items)
        kinds.Popularity(count_I.astype(np.float32)).save(ctx.out)
        return {"kind": "popularity", "of": "outcomes of lists"}
    held = 0 if config.kind in kinds.COUNTED else 2
    users = np.flatnonzero(known.lengths_U >= (FEWEST if held else 1))
    if held and not len(users):
        config, held = RetrieverConfig(kind="itemknn"), 0
        users = np.flatnonzero(known.lengths_U)
    seed = key_of(ctx.seed, "retriever")

    def work(ranks: Ranks) -> dict[str, Any]:
        model, facts = kinds.fit(known, users, config, seed, held=held, ranks=ranks, **place(ctx))
        model.save(ctx.out)
        return {"kind": config.kind, **facts, "users": len(users)}

    return together(large(known, config), work)


def run(ctx: StageContext) -> dict[str, Any]:
    if (found := own_parts(ctx.recipe, ctx.inputs["data"])) is not None:
        return beside_lists(ctx, *found)
    histories = read_dataset(ctx.inputs["data"]).histories
    users, config = np.arange(histories.n_users), ctx.recipe.retriever
    seed = key_of(ctx.seed, "retriever")

    def work(ranks: Ranks) -> dict[str, Any]:
        model, metrics = kinds.fit(histories, users, config, seed, ranks=ranks, **place(ctx))
        model.save(ctx.out)
        asked = users
        if len(users) > MEASURED_USERS:
            asked = np.sort(permutation(len(users), seed, "measured")[:MEASURED_USERS])
            metrics |= {"measured_users": MEASURED_USERS}
        for split, hidden in (("validation", 2), ("test", 1)):
            end_L = histories.lengths_U[asked] - hidden
            target_L = histories.items_N[histories.offsets_U1[asked] + end_L]
            queries = prefixes(histories, asked, end_L)
            scores = evaluate(model, queries, target_L, ranks=ranks)
            metrics |= {f"{split}_{name}": value for name, value in scores.items()}
        if approximates(histories.n_items, config):
            asking = key_of(ctx.seed, "candidates")  # as the lists will be
            metrics |= searched(model, histories, config, asking, ctx.progress.line)[1]
        return metrics

    return together(large(histories, config), work)
