"""The retrievers by name, and those without training: popularity and item-kNN from co-purchase.

Contract: `fit` builds the kind that the recipe names from some users' train parts (validation items
are used for SASRec's early stop only); `load` reads any retriever directory. SASRec and torch are
imported where one is fitted or loaded. The other two are counts over the histories they were built
from, ready at once. Item-kNN scores a candidate by its cosine with the history's items, recent ones
more; items that no neighbour speaks for follow by popularity. Not here: how SASRec works
(`sasrec`), and the evidence shown to the model (`index`), which counts with order and distance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.candidates.extent import samples
from diffgr2.candidates.ranks import ALONE, Ranks
from diffgr2.candidates.retrieval import best_columns, bought, prefixes
from diffgr2.config import RetrieverConfig
from diffgr2.types import Histories

if TYPE_CHECKING:
    from diffgr2.candidates.attention import AttentionScores
    from diffgr2.candidates.sasrec import SasRec
    from diffgr2.progress import Progress

RECENT = 20  # items of a history that item-kNN looks at
DECAY = 0.8  # weight of a history item relative to the next newer one


@dataclass(frozen=True)
class Counted:
    """Saving and loading of a retriever that is named arrays."""

    kind: ClassVar[str]
    count_I: np.ndarray  # float32, how many users bought the item

    @property
    def n_items(self) -> int:
        return len(self.count_I)

    def arrays(self) -> dict[str, np.ndarray]:
        """What it holds, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        save_arrays(directory / "model.safetensors", **self.arrays())
        write_json(directory / "config.json", {"kind": self.kind, "n_items": self.n_items})

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_arrays(directory / "model.safetensors"))


def unseen_head(falling: np.ndarray, seen_T: np.ndarray, k: int) -> np.ndarray:
    """The first k of an order of items that a history does not hold."""
    head_N = falling[: k + len(seen_T)]
    return head_N[~np.isin(head_N, seen_T)][:k]


@dataclass(frozen=True)
class Popularity(Counted):
    """Every history gets the same scores: how many users bought the item."""

    kind: ClassVar[str] = "popularity"

    @staticmethod
    def build(train: Histories) -> Popularity:
        return Popularity(np.asarray(bought(train).sum(0), np.float32).ravel())

    def score_all(self, queries: Histories) -> np.ndarray:
        return np.repeat(self.count_I[None], queries.n_users, 0)

    def score_some(self, history_T: np.ndarray, items_K: np.ndarray) -> np.ndarray:
        return self.count_I[items_K]

    @cached_property
    def falling(self) -> np.ndarray:
        """The items by their score, best first, equals by number."""
        return np.lexsort((np.arange(self.n_items), -self.count_I))

    def best(self, queries: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The head of that order, without what a history holds."""
        items_LK = np.empty((queries.n_users, k), np.int32)
        for row in range(queries.n_users):
            items_LK[row] = unseen_head(self.falling, queries.of(row), k)
        return items_LK, self.count_I[items_LK]


@dataclass(frozen=True)
class ItemKnn(Counted):
    """Cosine between items' sets of buyers, summed over the recent history."""

    kind: ClassVar[str] = "itemknn"
    data: np.ndarray  # float32
    indices: np.ndarray  # int32
    indptr: np.ndarray  # int64

    @staticmethod
    def build(train: Histories) -> ItemKnn:
        import scipy.sparse as sp

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
        scores_LI = np.empty((queries.n_users, self.n_items), np.float32)
        for row in range(queries.n_users):
            scores_LI[row] = self._scores(queries.of(row))
        return scores_LI

    def score_some(self, history_T: np.ndarray, items_K: np.ndarray) -> np.ndarray:
        return self._scores(history_T)[items_K].astype(np.float32)

    @cached_property
    def far(self) -> np.ndarray:
        """What an item scores that no neighbour speaks for, float64."""
        return 1e-6 * self.count_I.astype(np.float64) / max(float(self.count_I.max()), 1.0)

    @cached_property
    def falling(self) -> np.ndarray:
        """The items by that score as it is told (float32), best first, equals by number."""
        return np.lexsort((np.arange(self.n_items), -self.far.astype(np.float32)))

    def best(self, queries: Histories, k: int) -> tuple[np.ndarray, np.ndarray]:
        """From the neighbours and the head of the popular: nobody else can be among the best."""
        items_LK = np.empty((queries.n_users, k), np.int32)
        scores_LK = np.empty((queries.n_users, k), np.float32)
        near_I = self.far.copy()
        for row in range(queries.n_users):
            seen_T = queries.of(row)
            near_N = self._add_near(near_I, seen_T)
            item_N = np.union1d(near_N, unseen_head(self.falling, seen_T, k))
            item_N = item_N[~np.isin(item_N, seen_T)]
            score_1N = near_I[item_N].astype(np.float32)[None]
            column_1K, scores_LK[[row]] = best_columns(score_1N, k)
            items_LK[row] = item_N[column_1K[0]]
            near_I[near_N] = self.far[near_N]
        return items_LK, scores_LK

    def _scores(self, history_T: np.ndarray) -> np.ndarray:
        """Of every item for one history, float64."""
        near_I = self.far.copy()
        self._add_near(near_I, history_T)
        return near_I

    def _add_near(self, near_I: np.ndarray, history_T: np.ndarray) -> np.ndarray:
        """Add what the neighbours of a history score; returns them, each once or more."""
        touched = [np.empty(0, np.int32)]
        for age, item in enumerate(history_T[: -RECENT - 1 : -1].tolist()):
            row = slice(self.indptr[item], self.indptr[item + 1])
            near_I[self.indices[row]] += DECAY**age * self.data[row]  # each neighbour stands once
            touched.append(self.indices[row])
        return np.concatenate(touched)


Fitted: TypeAlias = "SasRec | ItemKnn | Popularity"

COUNTED = {"itemknn": ItemKnn, "popularity": Popularity}


def fit(
    histories: Histories,
    users: np.ndarray,
    config: RetrieverConfig,
    seed: int,
    *,
    work: Path,
    name: str,
    progress: Progress,
    held: int = 2,
    ranks: Ranks = ALONE,
    log: Path | None = None,
) -> tuple[Fitted, dict[str, Any]]:
    """A retriever that knows these users' train parts, and metrics of its training.

    The last `held` items of a history are not counted; SASRec always keeps two back. `log` is where
    a line per epoch goes, as stages that train in steps write them.
    """
    if config.kind in COUNTED:
        train = prefixes(histories, users, histories.lengths_U[users] - held)
        return COUNTED[config.kind].build(train), {}
    from diffgr2.candidates import fitting

    model, curve = fitting.train(
        histories, users, config, seed, work=work, name=name, progress=progress, ranks=ranks
    )
    if log is not None and ranks.first:
        lines = [
            {"step": at, **{k if k == "loss" else f"validation_{k}": v for k, v in one.items()}}
            for at, one in enumerate(curve, 1)
        ]
        log.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    best = max(curve, key=lambda entry: entry["ndcg@10"])
    facts = {"epochs": len(curve), "best_epoch": curve.index(best) + 1, "loss": best["loss"]}
    return model, facts | {"softmax": "sampled" if samples(histories, config) else "full"}


def load(directory: Path) -> Fitted:
    """The retriever in a directory, whatever its kind, as it was fitted."""
    kind = read_json(directory / "config.json")["kind"]
    if kind in COUNTED:
        return COUNTED[kind].load(directory)
    from diffgr2.candidates.sasrec import SasRec

    return SasRec.load(directory)


def load_scores(directory: Path) -> AttentionScores | ItemKnn | Popularity:
    """The same for whoever only scores: in NumPy, equal up to rounding."""
    kind = read_json(directory / "config.json")["kind"]
    if kind in COUNTED:
        return COUNTED[kind].load(directory)
    from diffgr2.candidates.attention import AttentionScores

    return AttentionScores.load(directory)
