"""Retrievers without training: popularity and item-kNN from co-purchase.

Contract: both are counts over the histories they were built from (the train part), ready at once,
and implement `retrieval.Retriever`. Item-kNN scores a candidate by its cosine with the history's
items, recent ones more; items that no neighbour speaks for follow by popularity. Not here: the
evidence shown to the model (`index`), which counts with order and distance.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

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
class Counted:
    """Saving and loading of a retriever that is named arrays."""

    kind: ClassVar[str]
    count_I: np.ndarray  # float32, how many users bought the item

    @property
    def n_items(self) -> int:
        return len(self.count_I)

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        save_arrays(directory / "model.safetensors", **arrays)
        write_json(directory / "config.json", {"kind": self.kind, "n_items": self.n_items})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_arrays(directory / "model.safetensors"))


@dataclass(frozen=True)
class Popularity(Counted):
    """Every history gets the same scores: how many users bought the item."""

    kind: ClassVar[str] = "popularity"

    @staticmethod
    def build(train: Histories) -> Popularity:
        return Popularity(np.asarray(bought(train).sum(0), np.float32).ravel())

    def score_all(self, queries: Histories) -> np.ndarray:
        return np.repeat(self.count_I[None], queries.n_users, 0)


@dataclass(frozen=True)
class ItemKnn(Counted):
    """Cosine between items' sets of buyers, summed over the recent history."""

    kind: ClassVar[str] = "itemknn"
    data: np.ndarray  # float32
    indices: np.ndarray  # int32
    indptr: np.ndarray  # int64

    @cached_property
    def cosines(self) -> sp.csr_array:
        shape = (self.n_items, self.n_items)
        return sp.csr_array((self.data, self.indices, self.indptr), shape)

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
        m = sp.csr_array(cosine_II, dtype=np.float32)
        return ItemKnn(count_I, m.data, m.indices.astype(np.int32), m.indptr.astype(np.int64))

    def score_all(self, queries: Histories) -> np.ndarray:
        last_N = np.repeat(queries.offsets_U1[1:], queries.lengths_U) - 1
        age_N = last_N - np.arange(len(queries.items_N))
        weights_LI = by_history(queries, np.where(age_N < RECENT, DECAY**age_N, 0.0))
        weights_LI.eliminate_zeros()
        scores_LI = sp.csr_array(weights_LI @ self.cosines).toarray()
        # Popularity only orders what the neighbours leave at zero.
        return scores_LI + np.float32(1e-6) * self.count_I / max(float(self.count_I.max()), 1.0)
