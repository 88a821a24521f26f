"""Approximate search: items in cells of alike ones, of which a query looks into the nearest.

Contract: `Cells.build(retriever, seed)` parts the items of a retriever that multiplies states with
vectors; `best` is its `best`: the k best unseen items among those in the `probes` cells whose
centres score best with a query's state, with the scores of the search over all up to rounding.
Queries that look into one cell are multiplied with it together, so that it costs what arithmetic
costs; equal scores rank by item number. The same inputs give the same lists. Not here: how many
probes are enough, and when the search is exact (`search`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diffgr2.candidates.retrieval import Retriever, prefixes, top_k
from diffgr2.items.kmeans import kmeans, nearest
from diffgr2.streams import generator
from diffgr2.types import Histories

ITEMS_PER_CELL = 128
ROUNDS = 10  # of k-means


class Vectors(Retriever, Protocol):
    """A retriever whose scores are products of a state and an item's vector."""

    @property
    def vectors(self) -> np.ndarray: ...

    def embedded(self, queries: Histories) -> np.ndarray: ...


@dataclass(frozen=True)
class Cells:
    """The parted catalogue; cell c holds the items `item_I[start[c]:start[c + 1]]`."""

    retriever: Vectors
    centre_DC: np.ndarray  # f32, one a cell
    start_D1: np.ndarray  # int64
    item_I: np.ndarray  # int32, ascending in each cell
    vector_IC: np.ndarray  # f32, in the order of `item_I`
    place_I: np.ndarray  # int64, where an item stands in that order
    probes: int = 1

    @classmethod
    def build(cls, retriever: Vectors, seed: int) -> Cells:
        vector_IC = retriever.vectors
        cells = max(1, len(vector_IC) // ITEMS_PER_CELL)
        source = generator(seed, "cells")
        centre_DC = kmeans(vector_IC, cells, source, ROUNDS)
        cell_I = nearest(vector_IC, centre_DC)
        item_I = np.argsort(cell_I, kind="stable").astype(np.int32)
        start_D1 = np.concatenate([[0], np.cumsum(np.bincount(cell_I, minlength=cells))])
        place_I = np.empty(len(item_I), np.int64)
        place_I[item_I] = np.arange(len(item_I))
        return cls(retriever, centre_DC, start_D1, item_I, vector_IC[item_I], place_I)

    @property
    def n_items(self) -> int:
        return len(self.item_I)

    def score_all(self, queries: Histories) -> np.ndarray:
        """The retriever's own."""
        return self.retriever.score_all(queries)

    def best(self, queries: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best unseen items of the cells looked into; where these have fewer, of all."""
        state_LC = self.retriever.embedded(queries)
        probes = min(self.probes, len(self.centre_DC))
        near_LD = state_LC @ self.centre_DC.T
        at = near_LD.shape[1] - probes
        cell_LP = np.argpartition(near_LD, at, axis=1)[:, at:]
        found = _Found(queries.n_users, probes, k)
        # Pairs of a query and a cell, cell by cell.
        cell_N = cell_LP.ravel()
        order_N = np.argsort(cell_N, kind="stable")
        bound_D1 = np.searchsorted(cell_N[order_N], np.arange(len(self.centre_DC) + 1))
        seen = self._seen(queries, cell_N, order_N, probes)
        for cell in np.flatnonzero(np.diff(bound_D1)).tolist():
            pair_Q = order_N[bound_D1[cell] : bound_D1[cell + 1]]
            inside = slice(self.start_D1[cell], self.start_D1[cell + 1])
            score_QN = state_LC[pair_Q // probes] @ self.vector_IC[inside].T
            row_S, column_S = seen.of(bound_D1[cell], bound_D1[cell + 1])
            score_QN[row_S, column_S - inside.start] = -np.inf
            found.add(pair_Q, score_QN, self.item_I[inside])
        item_LK, score_LK = found.best()
        # A state of nothing scores all items alike.
        few = np.flatnonzero((score_LK[:, -1] == -np.inf) | ~state_LC.any(1))
        if len(few):
            part = prefixes(queries, few, queries.lengths_U[few])
            item_LK[few], score_LK[few] = top_k(self.retriever, part, k)
        return item_LK, score_LK

    def _seen(
        self, queries: Histories, cell_N: np.ndarray, order_N: np.ndarray, probes: int
    ) -> _Seen:
        """Where among the pairs an item stands that its query's history holds."""
        query_S = np.repeat(np.arange(queries.n_users), queries.lengths_U)
        place_S = self.place_I[queries.items_N]
        cell_S = np.searchsorted(self.start_D1, place_S, "right") - 1
        n = queries.n_users
        key_N = cell_N[order_N] * n + order_N // probes  # ascending: the sort is stable
        key_S = cell_S * n + query_S
        pair_S = np.minimum(np.searchsorted(key_N, key_S), len(key_N) - 1)
        looked_S = np.flatnonzero(key_N[pair_S] == key_S)
        looked_S = looked_S[np.argsort(pair_S[looked_S], kind="stable")]
        return _Seen(pair_S[looked_S], place_S[looked_S])


@dataclass(frozen=True)
class _Seen:
    pair_S: np.ndarray  # ascending
    place_S: np.ndarray

    def of(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """(pair counted from `begin`, item's place) of the pairs from `begin` to `end`."""
        inside = slice(*np.searchsorted(self.pair_S, [begin, end]))
        return self.pair_S[inside] - begin, self.place_S[inside]


class _Found:
    """The best few of every pair, and of all pairs of a query."""

    def __init__(self, queries: int, probes: int, k: int) -> None:
        self.k = k
        self.score_NK = np.full((queries * probes, k), -np.inf, np.float32)
        self.item_NK = np.zeros((queries * probes, k), np.int32)
        self.queries = queries

    def add(self, pair_Q: np.ndarray, score_QN: np.ndarray, item_N: np.ndarray) -> None:
        """The k best of a cell; of equals at the edge any."""
        if len(item_N) <= self.k:
            self.score_NK[pair_Q, : len(item_N)] = score_QN
            self.item_NK[pair_Q, : len(item_N)] = item_N
            return
        at = len(item_N) - self.k
        best_QK = np.argpartition(score_QN, at, axis=1)[:, at:]
        self.score_NK[pair_Q] = np.take_along_axis(score_QN, best_QK, 1)
        self.item_NK[pair_Q] = item_N[best_QK]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        score_LX = self.score_NK.reshape(self.queries, -1)
        item_LX = self.item_NK.reshape(self.queries, -1)
        at = score_LX.shape[1] - self.k
        best_LK = np.argpartition(score_LX, at, axis=1)[:, at:]
        item_LK = np.take_along_axis(item_LX, best_LK, 1)
        score_LK = np.take_along_axis(score_LX, best_LK, 1)
        order_LK = np.lexsort((item_LK, -score_LK), axis=1)
        return (
            np.take_along_axis(item_LK, order_LK, 1),
            np.take_along_axis(score_LK, order_LK, 1),
        )
