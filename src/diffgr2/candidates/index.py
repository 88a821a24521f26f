"""Evidence per candidate, from the train part only, and its buckets.

Contract: `EvidenceIndex.build` counts once; `features` gives the named fields (`fields.FIELDS`) of
any lists; `buckets` turns them into u8 levels by quantiles that `with_edges` fitted and the index
stores. With `exclude_user_L` a list's own user is left out of every count exactly, as if that user
had never been counted, so training lists look like those of a new shopper. `references` names the
history items behind a candidate's evidence. Not here: which evidence matters (`scorers`), wording
(`fields`), the target or anything after a list's history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.candidates.fields import FIELDS, NAMES, Field
from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import padded_last, slice_rows
from diffgr2.config import EvidenceConfig
from diffgr2.errors import ArtifactError
from diffgr2.types import Catalogue, Histories

LISTS_PER_CHUNK = 2048

TOGETHER, FORWARD, SESSION = 0, 1, 2
"""Columns of `PairCounts.lookup`."""


@dataclass(frozen=True)
class View:
    """One chunk of lists with what the fields need, laid out as L x H x K."""

    history_LH: np.ndarray  # int32, oldest first, -1 = padding
    items_LK: np.ndarray
    scores_LK: np.ndarray
    exclude_L: np.ndarray  # user to leave out, -1 = nobody
    weight_LH1: np.ndarray  # float32, decay ** (steps back), 0 at padding
    last_L: np.ndarray  # column of the newest item
    pair_VLHK: np.ndarray
    buyers_LH1: np.ndarray  # at least .5, so that it can divide
    buyers_LK: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Sum of the recency weights, at least a little."""
        return np.maximum(self.weight_LH1.sum(1), 1e-9)

    def of_last(self, value_LHK: np.ndarray) -> np.ndarray:
        """The newest item's row."""
        return value_LHK[np.arange(len(self.last_L)), self.last_L]


@dataclass(frozen=True)
class EvidenceIndex:
    """Counts, attributes, text vectors and bucket edges."""

    pairs: PairCounts
    brand_I: np.ndarray  # int32, -1 unknown
    category_ID: np.ndarray  # int32, number of each path prefix, -1 beyond the path's end
    vectors_IE: np.ndarray  # float32, unit rows or zero
    n_users: int
    decay: float
    history: int
    n_buckets: int
    edges_FB: np.ndarray  # float32, (F, n_buckets - 1), +inf where a field has fewer levels

    @staticmethod
    def build(
        train: Histories, catalogue: Catalogue, vectors_IE: np.ndarray, config: EvidenceConfig
    ) -> EvidenceIndex:
        """Count the train part; the buckets have no edges yet."""
        pairs = PairCounts.build(train, config.history)
        names = sorted({brand for brand in catalogue.brands if brand})
        number = {name: i for i, name in enumerate(names)}
        norm_I1 = np.linalg.norm(vectors_IE, axis=1, keepdims=True)
        return EvidenceIndex(
            pairs=pairs,
            brand_I=np.array([number.get(brand, -1) for brand in catalogue.brands], np.int32),
            category_ID=category_numbers(catalogue.categories),
            vectors_IE=(vectors_IE / np.maximum(norm_I1, 1e-9)).astype(np.float32),
            n_users=train.n_users,
            decay=config.decay,
            history=config.history,
            n_buckets=config.buckets,
            edges_FB=np.full((len(FIELDS), config.buckets - 1), np.inf, np.float32),
        )

    def features(
        self,
        queries: Histories,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_user_L: np.ndarray | None = None,
    ) -> np.ndarray:
        """float32 (L, K, F) in the order of `fields.NAMES`."""
        result_LKF = np.empty((*items_LK.shape, len(FIELDS)), np.float32)
        nobody_L = np.full(len(items_LK), -1, np.int64)
        exclude_L = nobody_L if exclude_user_L is None else exclude_user_L.astype(np.int64)
        for begin in range(0, len(items_LK), LISTS_PER_CHUNK):
            rows = slice(begin, min(begin + LISTS_PER_CHUNK, len(items_LK)))
            view = self._view(
                slice_rows(queries, rows.start, rows.stop),
                items_LK[rows],
                scores_LK[rows],
                exclude_L[rows],
            )
            columns = {
                **retriever_fields(view),
                **pair_fields(view, self.n_users),
                **self._attribute_fields(view),
            }
            result_LKF[rows] = np.stack([columns[name] for name in NAMES], -1)
        return result_LKF

    def _view(
        self,
        queries: Histories,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_L: np.ndarray,
    ) -> View:
        history_LH = padded_last(queries, self.history)
        length_L1 = np.minimum(queries.lengths_U, self.history)[:, None]
        age_LH = length_L1 - 1 - np.arange(self.history)
        weight_LH = np.where(age_LH >= 0, self.decay ** np.maximum(age_LH, 0), 0.0)
        buyers_LH = self.pairs.buyers(history_LH, exclude_L)
        return View(
            history_LH,
            items_LK,
            scores_LK,
            exclude_L,
            weight_LH.astype(np.float32)[:, :, None],
            np.maximum(length_L1[:, 0] - 1, 0),
            self.pairs.lookup(history_LH, items_LK, exclude_L),
            np.maximum(buyers_LH, 0.5)[:, :, None],
            self.pairs.buyers(items_LK, exclude_L),
        )

    def same_brand(self, history_LH: np.ndarray, items_LK: np.ndarray) -> np.ndarray:
        """bool (L, H, K); unknown brands match nothing."""
        brand_LH, brand_LK = self.brand_I[history_LH], self.brand_I[items_LK]
        known_LH1 = ((history_LH >= 0) & (brand_LH >= 0))[:, :, None]
        return known_LH1 & (brand_LH[:, :, None] == brand_LK[:, None, :])

    def category_match(self, history_LH: np.ndarray, items_LK: np.ndarray) -> np.ndarray:
        """Length of the shared path over the longer path, float32 (L, H, K)."""
        path_LHD, path_LKD = self.category_ID[history_LH], self.category_ID[items_LK]
        shared = np.zeros((*history_LH.shape, items_LK.shape[1]), np.float32)
        for depth in range(self.category_ID.shape[1]):
            one, two = path_LHD[:, :, None, depth], path_LKD[:, None, :, depth]
            shared += (one == two) & (one >= 0)
        longest = np.maximum(
            (path_LHD >= 0).sum(-1)[:, :, None], (path_LKD >= 0).sum(-1)[:, None, :]
        )
        return shared / np.maximum(longest, 1)

    def _attribute_fields(self, view: View) -> dict[str, np.ndarray]:
        brand = self.same_brand(view.history_LH, view.items_LK)
        category = self.category_match(view.history_LH, view.items_LK)
        # The weighted mean of the history's vectors first: one product per candidate.
        mean_LE = (view.weight_LH1 * self.vectors_IE[view.history_LH]).sum(1) / view.total
        return {
            "brand": (view.weight_LH1 * brand).sum(1) / view.total,
            "category": (view.weight_LH1 * category).sum(1) / view.total,
            "text": np.einsum("le,lke->lk", mean_LE, self.vectors_IE[view.items_LK]),
        }

    def with_edges(self, features_XF: np.ndarray) -> EvidenceIndex:
        """The same index with bucket edges at the quantiles of these candidates' features."""
        columns = [
            bucket_edges(features_XF[:, f], self.n_buckets, field) for f, field in enumerate(FIELDS)
        ]
        return replace(self, edges_FB=np.stack(columns))

    def buckets(self, features_LKF: np.ndarray) -> np.ndarray:
        """u8 levels: how many of a field's edges the value reaches."""
        levels = [
            np.searchsorted(self.edges_FB[f], features_LKF[..., f], side="right")
            for f in range(features_LKF.shape[-1])
        ]
        return np.stack(levels, -1).astype(np.uint8)

    def references(self, history: np.ndarray, item: int) -> dict[str, int]:
        """Per field that refers to a history item: the item that speaks most for the candidate.

        Fields without any such evidence are absent.
        """
        recent = history[-self.history :].astype(np.int32)
        if len(recent) == 0:
            return {}
        items_11, nobody_1 = np.array([[item]], np.int32), np.array([-1])
        weight_H = self.decay ** np.arange(len(recent) - 1, -1, -1)
        pair_VH = self.pairs.lookup(recent[None], items_11, nobody_1)[:, 0, :, 0]
        buyers_H = np.maximum(self.pairs.buyers(recent[None], nobody_1)[0], 0.5)
        newest_H = np.arange(len(recent)) == len(recent) - 1
        strength = {
            "copurchase": weight_H * pair_VH[TOGETHER],
            "lift": weight_H * pair_VH[TOGETHER] / buyers_H,
            "last": pair_VH[TOGETHER] * newest_H,
            "next": weight_H * pair_VH[FORWARD],
            "session": pair_VH[SESSION] * newest_H,
            "brand": weight_H * self.same_brand(recent[None], items_11)[0, :, 0],
            "category": weight_H * self.category_match(recent[None], items_11)[0, :, 0],
            "text": weight_H * np.maximum(self.vectors_IE[recent] @ self.vectors_IE[item], 0.0),
        }
        return {k: int(recent[v.argmax()]) for k, v in strength.items() if v.max() > 0}

    def save(self, directory: Path) -> None:
        """Write index.safetensors and index.json."""
        pairs = self.pairs
        save_arrays(
            directory / "index.safetensors",
            **{name: getattr(pairs, name) for name in PAIR_ARRAYS},
            **{name: getattr(self, name) for name in INDEX_ARRAYS},
        )
        numbers = {name: getattr(self, name) for name in INDEX_NUMBERS}
        about = {**numbers, "n_items": pairs.n_items, "window": pairs.window}
        fields = [vars(field) for field in FIELDS]
        write_json(directory / "index.json", {**about, "fields": fields})

    @staticmethod
    def load(directory: Path) -> EvidenceIndex:
        """Read what `save` wrote."""
        arrays = load_arrays(directory / "index.safetensors")
        about = read_json(directory / "index.json")
        try:
            if tuple(field["name"] for field in about["fields"]) != NAMES:
                raise ArtifactError(f"{directory / 'index.json'}: made with other evidence fields")
            pairs = PairCounts(
                about["n_items"], about["window"], *(arrays[name] for name in PAIR_ARRAYS)
            )
            values: dict[str, Any] = {name: about[name] for name in INDEX_NUMBERS}
            values |= {name: arrays[name] for name in INDEX_ARRAYS}
            return EvidenceIndex(pairs=pairs, **values)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{directory}: not an evidence index ({error})") from None


PAIR_ARRAYS = ("pair_P", "value_PV", "key_M", "position_M", "day_M", "buyers_I")
INDEX_ARRAYS = ("brand_I", "category_ID", "vectors_IE", "edges_FB")
INDEX_NUMBERS = ("n_users", "decay", "history", "n_buckets")


def category_numbers(categories: list[list[str]]) -> np.ndarray:
    """Each path prefix gets a number, so equal numbers at a depth mean equal paths up to it."""
    depth = max([1, *(len(path) for path in categories)])
    numbers: dict[tuple[str, ...], int] = {}
    result_ID = np.full((len(categories), depth), -1, np.int32)
    for item, path in enumerate(categories):
        for level in range(len(path)):
            key = tuple(path[: level + 1])
            result_ID[item, level] = numbers.setdefault(key, len(numbers))
    return result_ID


def retriever_fields(view: View) -> dict[str, np.ndarray]:
    """Where the retriever put the candidate and how far below its best."""
    rank_K = np.arange(view.items_LK.shape[1], dtype=np.float32)
    return {
        "rank": np.broadcast_to(rank_K, view.items_LK.shape),
        "gap": view.scores_LK[:, :1] - view.scores_LK,
    }


def pair_fields(view: View, n_users: int) -> dict[str, np.ndarray]:
    """What other users bought together with, and after, the history's items."""
    together, forward = view.pair_VLHK[TOGETHER], view.pair_VLHK[FORWARD]
    buyers_LK = np.maximum(view.buyers_LK, 0.5)
    expected_LK = (view.weight_LH1 * view.buyers_LH1).sum(1) * buyers_LK / n_users
    copurchase_LK = (view.weight_LH1 * together).sum(1)
    last_LK = view.of_last(together / np.sqrt(view.buyers_LH1)) / np.sqrt(buyers_LK)
    return {
        "copurchase": copurchase_LK,
        "lift": copurchase_LK / np.maximum(expected_LK, 1e-9),
        "last": last_LK,
        "next": (view.weight_LH1 * forward).sum(1),
        "session": view.of_last(view.pair_VLHK[SESSION]),
    }


def bucket_edges(value_X: np.ndarray, n_buckets: int, field: Field) -> np.ndarray:
    """Increasing edges, padded with +inf; bucket = number of edges that are <= the value."""
    if field.name == "rank":
        # One bucket per place; the last places share one.
        return np.arange(1, n_buckets, dtype=np.float32)
    first, inside = [], value_X
    if field.zero_is_none:
        first, inside = [np.nextafter(np.float32(0), np.float32(1))], value_X[value_X > 0]
    pieces = n_buckets - len(first)
    cuts = np.quantile(inside, np.arange(1, pieces) / pieces) if len(inside) else []
    found = np.unique(np.concatenate([first, cuts]).astype(np.float32))
    edges = np.full(n_buckets - 1, np.inf, np.float32)
    edges[: len(found)] = found
    return edges
