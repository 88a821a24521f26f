"""Evidence per candidate, from the train part only, and its buckets.

Contract: `fields` is the order of the F axis everywhere: the counted fields that the recipe chose
and the data can tell, then the shop's own. `EvidenceIndex.build` counts once; `features` gives the
fields of any lists, NaN where an own value is missing; `buckets` turns them into u8 levels, MISSING
for NaN, by edges that `with_edges` fitted and the index stores. With `exclude_user_L` a list's own
user is left out of every count exactly, as if that user had never been counted, so training lists
look like those of a new shopper. Item numbers from `n_items` on are `newcomers`: nobody bought
them, their attributes count like all others. Of items that came after training (`late_from`) counts
are NaN until somebody bought one. Behind the end of a shorter list (item -1) every field
is 0, and no field of a candidate knows of it. Not here: which evidence matters (`scorers`), wording
(`prompts.english`), what a field is (`fields`), the target or anything after a list's history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.candidates.fields import Field, as_json, carried, fields_of, names_of
from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import padded_last
from diffgr2.config import EvidenceConfig
from diffgr2.errors import ArtifactError, DataError
from diffgr2.items.vectors import unit_rows
from diffgr2.types import MISSING, Catalogue, Histories

LISTS_PER_CHUNK = 2048
FURTHEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Attributes:
    """What items are, whoever bought them."""

    brand_I: np.ndarray  # int32, -1 unknown
    category_ID: np.ndarray  # int32, number of each path prefix, -1 beyond the path's end
    vectors_IE: np.ndarray  # float32, unit rows or zero

    def of(self, items: np.ndarray) -> Attributes:
        """Those of these items, in the shape of `items`; copies."""
        return Attributes(self.brand_I[items], self.category_ID[items], self.vectors_IE[items])


@dataclass(frozen=True)
class EvidenceIndex:
    """Counts, attributes and bucket edges."""

    pairs: PairCounts
    attributes: Attributes
    n_users: int
    decay: float
    history: int
    n_buckets: int
    fields: tuple[Field, ...]
    edges_FB: np.ndarray  # float32, (F, n_buckets - 1), +inf where a field has fewer levels
    newcomers: Attributes | None = None  # of the item numbers from n_items on
    own_scores: bool = False  # `gap` was learned on a shop's scores, not on the retriever's
    late_from: int | None = None  # item numbers from here on came after the model was trained

    @property
    def names(self) -> tuple[str, ...]:
        """The fields by name."""
        return names_of(self.fields)

    @property
    def own(self) -> tuple[Field, ...]:
        """The shop's own fields, which stand behind the counted ones."""
        return tuple(field for field in self.fields if not field.counted)

    @staticmethod
    def build(
        train: Histories,
        catalogue: Catalogue,
        vectors_IE: np.ndarray,
        config: EvidenceConfig,
        own: Sequence[Field] = (),
    ) -> EvidenceIndex:
        """Count the train part; the buckets have no edges yet."""
        told = carried(train, catalogue, vectors_IE)
        wanted = [field for field in told if config.fields is None or field.name in config.fields]
        fields = (*wanted, *own)
        if not fields:
            raise DataError("evidence.fields: the data can tell none of these")
        names = sorted({brand for brand in catalogue.brands if brand})
        number = {name: i for i, name in enumerate(names)}
        return EvidenceIndex(
            PairCounts.build(train, config.history),
            Attributes(
                np.array([number.get(brand, -1) for brand in catalogue.brands], np.int32),
                category_numbers(catalogue.categories),
                unit_rows(vectors_IE),
            ),
            n_users=train.n_users,
            decay=config.decay,
            history=config.history,
            n_buckets=config.buckets,
            fields=fields,
            edges_FB=np.full((len(fields), config.buckets - 1), np.inf, np.float32),
        )

    def features(
        self,
        queries: Histories,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_user_L: np.ndarray | None = None,
        own_LKG: np.ndarray | None = None,
    ) -> np.ndarray:
        """float32 (L, K, F) in the order of `fields`; `own_LKG` as `own` has it, None: unknown."""
        nobody_L = np.full(len(items_LK), -1, np.int64)
        exclude_L = nobody_L if exclude_user_L is None else exclude_user_L.astype(np.int64)
        history_LH = padded_last(queries, self.history)
        length_L = np.minimum(queries.lengths_U, self.history)
        parts = (history_LH, length_L, items_LK, scores_LK, exclude_L)
        return self._in_chunks(own_LKG, *parts)

    def _in_chunks(self, own_LKG: np.ndarray | None, *parts: np.ndarray) -> np.ndarray:
        """`_counts` of all lists and what they bring themselves, as one array."""
        items_LK = parts[2]
        result_LKF = np.full((*items_LK.shape, len(self.fields)), np.nan, np.float32)
        counted = [field.name for field in self.fields if field.counted]
        for begin in range(0, len(items_LK), LISTS_PER_CHUNK):
            at = slice(begin, begin + LISTS_PER_CHUNK)
            values = self._counts(*(part[at] for part in parts))
            for f, name in enumerate(counted):
                result_LKF[at, :, f] = values[name]
        if own_LKG is not None:
            result_LKF[..., len(counted) :] = own_LKG
        result_LKF[items_LK < 0] = 0.0
        return result_LKF

    def _counts(
        self,
        history_LH: np.ndarray,
        length_L: np.ndarray,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_L: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Every counted field, (L, K) each; in between, values are laid out as L x H x K."""
        age_LH = length_L[:, None] - self._steps
        weight_LH1 = self._weights[np.maximum(age_LH, 0)][:, :, None]  # 0 at padding
        newest = (np.arange(len(items_LK)), np.maximum(length_L - 1, 0))

        # What other users bought together with, and after, the history's items.
        value_VLHK, buyers_LX = self.pairs.lookup(history_LH, items_LK, exclude_L)
        together, _, session = value_VLHK
        bought_LX = buyers_LX > 0
        buyers_LX = np.maximum(buyers_LX, 0.5)  # so that they can divide
        buyers_LH1, buyers_LK = buyers_LX[:, : self.history, None], buyers_LX[:, self.history :]
        expected_LK = (weight_LH1 * buyers_LH1).sum(1) * buyers_LK / self.n_users
        copurchase_LK, next_LK = (weight_LH1 * value_VLHK[:2]).sum(2)

        # What the history's items are like.
        past, items = self.attributes_of(history_LH), self.attributes_of(items_LK)
        brand_LH1 = past.brand_I[:, :, None]
        brand_LHK = (brand_LH1 >= 0) & (brand_LH1 == items.brand_I[:, None])
        total_L1 = np.maximum(weight_LH1.sum(1), 1e-9)
        # The weighted mean of the history's vectors first: one product per candidate.
        mean_LE = (weight_LH1 * past.vectors_IE).sum(1) / total_L1

        counts = {
            "copurchase": copurchase_LK,
            "lift": copurchase_LK / np.maximum(expected_LK, 1e-9),
            "last": together[newest] / np.sqrt(buyers_LH1[newest]) / np.sqrt(buyers_LK),
            "next": next_LK,
            "session": session[newest],
        }
        if self.late_from is not None:
            self._leave_open(counts, history_LH, items_LK, newest, bought_LX)
        rank_K = np.arange(items_LK.shape[1], dtype=np.float32)
        best_L1 = np.where(items_LK < 0, -np.inf, scores_LK).max(1, keepdims=True)
        return {
            "rank": np.broadcast_to(rank_K, items_LK.shape),
            "gap": best_L1 - scores_LK,
            **counts,
            "brand": (weight_LH1 * brand_LHK).sum(1) / total_L1,
            "category": (weight_LH1 * category_match(past, items)).sum(1) / total_L1,
            "text": np.einsum("le,lke->lk", mean_LE, items.vectors_IE),
        }

    def _leave_open(
        self,
        counts: dict[str, np.ndarray],
        history_LH: np.ndarray,
        items_LK: np.ndarray,
        newest: tuple[np.ndarray, np.ndarray],
        bought_LX: np.ndarray,
    ) -> None:
        """NaN in place of counts of late items that nobody bought yet: they say nothing of them."""
        items_LX = np.concatenate([history_LH, items_LK], 1)
        assert self.late_from is not None
        known_LX = bought_LX | np.less(items_LX, self.late_from)
        real_LH = history_LH >= 0
        past_LH = known_LX[:, : self.history] & real_LH
        alone_L1 = real_LH.any(1, keepdims=True) & ~past_LH.any(1, keepdims=True)
        for name, value_LK in counts.items():
            open_LK = ~known_LX[:, self.history :] | alone_L1
            if name in ("last", "session"):
                open_LK |= ~known_LX[newest][:, None]
            counts[name] = np.where(open_LK, np.float32(np.nan), value_LK)

    @cached_property
    def _steps(self) -> np.ndarray:
        return np.arange(self.history)

    @cached_property
    def _weights(self) -> np.ndarray:
        """Weight of a history item by its age, 1 for the newest; 0 stands for padding."""
        return np.append(0.0, self.decay ** np.arange(self.history)).astype(np.float32)

    def attributes_of(self, items: np.ndarray) -> Attributes:
        """Of known items and newcomers, in the shape of `items`."""
        if self.newcomers is None:
            return self.attributes.of(items)
        new = items >= self.pairs.n_items
        found = self.attributes.of(np.where(new, 0, items))
        for name, value in vars(self.newcomers.of(items[new] - self.pairs.n_items)).items():
            getattr(found, name)[new] = value
        return found

    def with_edges(self, features_XF: np.ndarray) -> EvidenceIndex:
        """The same index with bucket edges at the quantiles of these candidates' features."""
        columns = [
            bucket_edges(value_X[~np.isnan(value_X)], self.n_buckets, field)
            for value_X, field in zip(features_XF.T, self.fields, strict=True)
        ]
        return replace(self, edges_FB=np.stack(columns))

    def buckets(self, features_LKF: np.ndarray) -> np.ndarray:
        """u8 levels: how many of a field's edges the value reaches; MISSING where there is none."""
        levels_LKF = np.zeros(features_LKF.shape, np.uint8)
        for edge_F in self.edges_FB.T:
            levels_LKF += features_LKF >= edge_F
        levels_LKF[np.isnan(features_LKF)] = MISSING
        return levels_LKF

    def save(self, directory: Path) -> None:
        """Write index.safetensors and index.json."""
        pairs = self.pairs
        arrays = {**vars(self.attributes), "edges_FB": self.edges_FB}
        arrays |= {name: getattr(pairs, name) for name in PAIR_ARRAYS}
        save_arrays(directory / "index.safetensors", **arrays)
        about = {name: getattr(self, name) for name in INDEX_NUMBERS}
        about |= {"n_items": pairs.n_items, "window": pairs.window}
        if self.late_from is not None:
            about["late_from"] = self.late_from
        if self.own_scores:
            about["own_scores"] = True
        about["fields"] = [as_json(field) for field in self.fields]
        write_json(directory / "index.json", about)

    @staticmethod
    def load(directory: Path) -> EvidenceIndex:
        """Read what `save` wrote."""
        arrays = load_arrays(directory / "index.safetensors")
        about = read_json(directory / "index.json")
        fields = read_fields(directory)
        counts = (arrays.pop(name) for name in PAIR_ARRAYS)
        pairs = PairCounts(about["n_items"], about["window"], *counts)
        numbers: dict[str, Any] = {name: about[name] for name in INDEX_NUMBERS}
        numbers |= {"fields": fields, "edges_FB": arrays.pop("edges_FB")}
        numbers["late_from"] = about.get("late_from")
        numbers["own_scores"] = about.get("own_scores") is True
        return EvidenceIndex(pairs, Attributes(**arrays), **numbers)


PAIR_ARRAYS = ("pair_P", "value_PV", "key_M", "position_M", "day_M", "buyers_I")
INDEX_NUMBERS = ("n_users", "decay", "history", "n_buckets")


def read_fields(directory: Path) -> tuple[Field, ...]:
    """The fields of the index that stands there."""
    path = directory / "index.json"
    try:
        return fields_of(read_json(path)["fields"])
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: {error}") from None


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


def category_match(past: Attributes, items: Attributes) -> np.ndarray:
    """Length of the shared path over the longer path, float32 (L, H, K)."""
    one_LH1D, two_L1KD = past.category_ID[:, :, None], items.category_ID[:, None]
    shared_LHK = ((one_LH1D == two_L1KD) & (one_LH1D >= 0)).sum(-1, dtype=np.float32)
    longest_LHK = np.maximum((one_LH1D >= 0).sum(-1), (two_L1KD >= 0).sum(-1))
    return shared_LHK / np.maximum(longest_LHK, 1)


def bucket_edges(value_X: np.ndarray, n_buckets: int, field: Field) -> np.ndarray:
    """Increasing edges, padded with +inf; bucket = number of edges that are <= the value."""
    if field.kind in ("category", "flag") or field.name == "rank":
        # Such a value is the number of its bucket; the last places of a list share one.
        return np.arange(1, n_buckets, dtype=np.float32)
    if field.kind == "number":
        return number_edges(value_X, n_buckets)
    first, inside = [], value_X
    if field.zero_is_none:
        first, inside = [np.nextafter(np.float32(0), np.float32(1))], value_X[value_X > 0]
    pieces = n_buckets - len(first)
    cuts = np.quantile(inside, np.arange(1, pieces) / pieces) if len(inside) else []
    found = np.unique(np.concatenate([first, cuts]).astype(np.float32))
    edges = np.full(n_buckets - 1, np.inf, np.float32)
    edges[: len(found)] = found
    return edges


def number_edges(value_X: np.ndarray, n_buckets: int) -> np.ndarray:
    """Edges of an own number: values that occur, so that no change of scale moves a bucket.

    Fewer distinct values than buckets are spread from the first to the last bucket, so that the
    lowest and the highest are what the ends are called; where all are equal, they are the middle.
    """
    cuts = np.arange(1, n_buckets) / n_buckets
    found = np.unique(np.quantile(value_X, cuts, method="higher")) if len(value_X) else value_X
    least = value_X.min(initial=np.inf)
    above = value_X[value_X > least]
    # Where nearly all are the least, the few others are what is high.
    found = found[found > least] if (found > least).any() else np.sort(above)[:1]
    edges = np.append(-FURTHEST, found).astype(np.float32)
    levels = len(edges)
    if levels == 1:
        bucket_V = np.array([(n_buckets - 1) // 2])
    else:
        bucket_V = (np.arange(levels) * (n_buckets - 1) / (levels - 1) + 0.5).astype(int)
    level_B = np.searchsorted(bucket_V, np.arange(1, n_buckets))  # the first one in each bucket
    return np.append(edges, np.float32(np.inf))[level_B]
