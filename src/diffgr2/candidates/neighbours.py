"""Retrievers without training: popularity and item-kNN from co-purchase.

Contract: both are counts over the histories they were built from (the train part), ready at once,
and implement `retrieval.Retriever`. Item-kNN scores a candidate by its cosine with the history's
items, recent ones more; items that no neighbour speaks for follow by popularity. Not here: the
evidence shown to the model (`index`), which counts with order and distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from diffgr2.artifacts import load_arrays, save_arrays, write_json
from diffgr2.types import Histories

RECENT = 20
"""Items of a history that item-kNN looks at."""

DECAY = 0.8
"""Weight of a history item relative to the next newer one."""


def by_history(histories: Histories, value_N: np.ndarray) -> sp.csr_array:
    """Histories x items, the sum of the values of an item's purchases."""
    shape = (histories.n_users, histories.n_items)
    row_N = np.repeat(np.arange(histories.n_users), histories.lengths_U)
    return sp.csr_array((value_N.astype(np.float32), (row_N, histories.items_N)), shape)


def bought(histories: Histories) -> sp.csr_array:
    """Histories x items, 1.0 where a history has the item at least once."""
    matrix = by_history(histories, np.ones(len(histories.items_N)))
    matrix.data[:] = 1.0
    return matrix


@dataclass(frozen=True)
class Popularity:
    """Every history gets the same scores: how many users bought the item."""

    count_I: np.ndarray  # float32

    @staticmethod
    def build(train: Histories) -> Popularity:
        return Popularity(np.asarray(bought(train).sum(0), np.float32).ravel())

    @property
    def n_items(self) -> int:
        return len(self.count_I)

    def score_all(self, queries: Histories) -> np.ndarray:
        return np.repeat(self.count_I[None], queries.n_users, 0)

    def save(self, directory: Path) -> None:
        save_arrays(directory / "model.safetensors", count_I=self.count_I)
        write_json(directory / "config.json", {"kind": "popularity", "n_items": self.n_items})

    @staticmethod
    def load(directory: Path) -> Popularity:
        return Popularity(load_arrays(directory / "model.safetensors")["count_I"])


@dataclass(frozen=True)
class ItemKnn:
    """Cosine between items' sets of buyers, summed over the recent history."""

    cosine_II: sp.csr_array
    count_I: np.ndarray  # float32

    @staticmethod
    def build(train: Histories) -> ItemKnn:
        users_UI = bought(train)
        count_I = np.asarray(users_UI.sum(0), np.float32).ravel()
        scale = sp.diags_array(1.0 / np.sqrt(np.maximum(count_I, 1.0)))
        unit_UI = sp.csr_array(users_UI @ scale)
        cosine_II = sp.csr_array(unit_UI.T @ unit_UI)
        cosine_II.setdiag(0.0)
        cosine_II.eliminate_zeros()
        cosine_II.sort_indices()
        return ItemKnn(sp.csr_array(cosine_II, dtype=np.float32), count_I)

    @property
    def n_items(self) -> int:
        return len(self.count_I)

    def score_all(self, queries: Histories) -> np.ndarray:
        last_N = np.repeat(queries.offsets_U1[1:], queries.lengths_U) - 1
        age_N = last_N - np.arange(len(queries.items_N))
        weights_LI = by_history(queries, np.where(age_N < RECENT, DECAY**age_N, 0.0))
        weights_LI.eliminate_zeros()
        scores_LI = sp.csr_array(weights_LI @ self.cosine_II).toarray()
        # Popularity only orders what the neighbours leave at zero.
        return scores_LI + np.float32(1e-6) * self.count_I / max(float(self.count_I.max()), 1.0)

    def save(self, directory: Path) -> None:
        save_arrays(
            directory / "model.safetensors",
            indptr=self.cosine_II.indptr.astype(np.int64),
            indices=self.cosine_II.indices.astype(np.int32),
            data=self.cosine_II.data,
            count_I=self.count_I,
        )
        write_json(directory / "config.json", {"kind": "itemknn", "n_items": self.n_items})

    @staticmethod
    def load(directory: Path) -> ItemKnn:
        a = load_arrays(directory / "model.safetensors")
        n = len(a["count_I"])
        cosine_II = sp.csr_array((a["data"], a["indices"], a["indptr"]), (n, n))
        return ItemKnn(cosine_II, a["count_I"])
