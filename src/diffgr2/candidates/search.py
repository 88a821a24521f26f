"""Exact or approximate search, and what the approximate one misses.

Contract: `searched(retriever, ...)` is the retriever that lists are asked of, and facts about it
for a stage's metrics. Where the recipe or the catalogue's size wants approximate search, it looks
into as few cells as find 99 of 100 of the exact ten best on a sample of queries, and the share that
it reports is of queries that had no part in that choice. Where that takes a large part of all
cells, the search stays exact. Retrievers that count are always exact: they do not score the whole
catalogue. Not here: the cells (`cells`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from diffgr2.candidates.cells import Cells
from diffgr2.candidates.extent import approximates
from diffgr2.candidates.retrieval import Finder, Retriever, prefixes, top_k
from diffgr2.config import RetrieverConfig
from diffgr2.streams import permutation
from diffgr2.types import Histories

ASKED, DEPTH = 0.99, 10
SPARE = 0.002  # above what is asked for, so that other queries reach it, too
QUERIES = 1_000  # that choose, and as many more that judge
FEWEST = 8  # cells looked into
MOST = 4  # at most one cell in so many


def shared_share(found_LK: np.ndarray, wanted_LK: np.ndarray) -> float:
    """How many of the wanted items were found."""
    return float((found_LK[:, :, None] == wanted_LK[:, None, :]).any(1).mean())


def searched(
    retriever: Any,
    histories: Histories,
    config: RetrieverConfig,
    seed: int,
    say: Callable[[str], object] = lambda line: None,
) -> tuple[Retriever, dict[str, Any]]:
    """See the module's docstring; queries are histories without their last item."""
    exact = (retriever, {"search": "exact"})
    if isinstance(retriever, Finder) or not approximates(retriever.n_items, config):
        return exact
    users = permutation(histories.n_users, seed, "search", "sample")[: 2 * QUERIES]
    queries = prefixes(histories, users, histories.lengths_U[users] - 1)
    depth = min(DEPTH, retriever.n_items - int(queries.lengths_U.max(initial=0)))
    wanted_LK = top_k(retriever, queries, depth)[0]
    cells, probes = Cells.build(retriever, seed), FEWEST
    judging_L = np.arange(len(users)) >= len(users) // 2
    while probes * MOST <= len(cells.centre_DC):
        tried = replace(cells, probes=probes)
        found_LK = top_k(tried, queries, depth)[0]
        if shared_share(found_LK[~judging_L], wanted_LK[~judging_L]) >= ASKED + SPARE:
            recall = round(shared_share(found_LK[judging_L], wanted_LK[judging_L]), 6)
            facts = {"search": "approximate", f"search_recall@{depth}": recall}
            return tried, {**facts, "search_cells": len(cells.centre_DC), "search_probes": probes}
        probes += max(FEWEST, probes // 2)
    say(f"search: no {len(cells.centre_DC) // MOST} cells hold 99 % of the ten best: exact instead")
    return exact
