"""Evidence per candidate, from the train part only, and its buckets.

Contract: `fields` is the order of the F axis everywhere: the counted fields that the recipe chose
and the data can tell, then the shop's own. `EvidenceIndex.build` counts once, and only what those
fields read; `features` gives the fields of any lists, NaN where a value is missing; `buckets` turns
them into u8 levels, MISSING for NaN, by edges that `with_edges` fitted and the index stores. With
`exclude_user_L` a list's own user is left out of every count exactly, as if that user had never
been counted, so training lists look like those of a new shopper. Item numbers from `n_items` on are
`newcomers`: nobody bought them, their attributes count like all others. Of items that came after
training (`late_from`) counts are NaN until somebody bought one. Behind the end of a shorter list
(item -1) every field is 0, and no field of a candidate knows of it. Not here: how a field is
computed (`measures`), which evidence matters (`scorers`), wording (`prompts.english`), what a field
is (`fields`), the target or anything after a list's history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from diffgr2.artifacts import load_arrays, mapped_arrays, read_json, save_arrays, write_json
from diffgr2.candidates.attributes import Attributes
from diffgr2.candidates.edges import bucket_edges
from diffgr2.candidates.fields import (
    TITLED,
    Field,
    as_json,
    carried,
    fields_of,
    names_of,
    pair_kinds,
)
from diffgr2.candidates.measures import Measured
from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import padded_last
from diffgr2.candidates.titles import TitleWords
from diffgr2.choices import MOMENT, Counted
from diffgr2.config import EvidenceConfig
from diffgr2.errors import ArtifactError, DataError
from diffgr2.items.vectors import unit_rows
from diffgr2.types import MISSING, Catalogue, Histories

LISTS_PER_CHUNK = 2048


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
    titles: TitleWords | None = None  # where a field reads them

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
        work: Path | None = None,
    ) -> EvidenceIndex:
        """Count the train part, in files of `work` if given; the buckets have no edges yet."""
        told = carried(train, catalogue, vectors_IE)
        names = get_args(Counted) if config.fields is None else config.fields
        names = {*names, *(MOMENT if config.moment else ())}
        wanted = [field for field in told if field.name in names]
        fields = (*wanted, *own)
        if not fields:
            raise DataError("evidence.fields: the data can tell none of these")
        return EvidenceIndex(
            PairCounts.build(train, config.history, pair_kinds(fields), work),
            Attributes.build(catalogue, unit_rows(vectors_IE)),
            n_users=train.n_users,
            decay=config.decay,
            history=config.history,
            n_buckets=config.buckets,
            fields=fields,
            edges_FB=np.full((len(fields), config.buckets - 1), np.inf, np.float32),
            titles=TitleWords.of(catalogue.titles) if reads_titles(fields) else None,
        )

    def features(
        self,
        queries: Histories,
        items_LK: np.ndarray,
        scores_LK: np.ndarray,
        exclude_user_L: np.ndarray | None = None,
        own_LKG: np.ndarray | None = None,
        moment_L: np.ndarray | None = None,
    ) -> np.ndarray:
        """float32 (L, K, F) in the order of `fields`; `own_LKG` as `own` has it, None: unknown.

        The time of a history's last item is when the newest purchase was made; `moment_L` are the
        times of the requests, 0 or less where unknown.
        """
        nobody_L = np.full(len(items_LK), -1, np.int64)
        exclude_L = nobody_L if exclude_user_L is None else exclude_user_L.astype(np.int64)
        history_LH = padded_last(queries, self.history)
        length_L = np.minimum(queries.lengths_U, self.history)
        last_L = np.maximum(queries.offsets_U1[1:] - 1, 0)
        then_L = np.append(queries.timestamps_N, 0)[last_L] * (length_L > 0)
        moment_L = np.zeros(len(items_LK), np.int64) if moment_L is None else moment_L
        times_L2 = np.stack([then_L, np.maximum(moment_L, 0)], 1)
        parts = (history_LH, length_L, times_L2, items_LK, scores_LK, exclude_L)
        return self._in_chunks(own_LKG, *parts)

    def _in_chunks(self, own_LKG: np.ndarray | None, *parts: np.ndarray) -> np.ndarray:
        """Every counted field of all lists and what they bring themselves, as one array."""
        items_LK = parts[3]
        result_LKF = np.full((*items_LK.shape, len(self.fields)), np.nan, np.float32)
        counted = [field.name for field in self.fields if field.counted]
        for begin in range(0, len(items_LK), LISTS_PER_CHUNK):
            at = slice(begin, begin + LISTS_PER_CHUNK)
            lists = Measured(self, *(part[at] for part in parts))
            for f, name in enumerate(counted):
                result_LKF[at, :, f] = lists.value(name)
        if own_LKG is not None:
            result_LKF[..., len(counted) :] = own_LKG
        result_LKF[items_LK < 0] = 0.0
        return result_LKF

    def attributes_of(self, items: np.ndarray) -> Attributes:
        """Of known items and newcomers, in the shape of `items`."""
        if self.newcomers is None:
            return self.attributes.of(items)
        new = items >= self.pairs.n_items
        found = self.attributes.of(np.where(new, 0, items))
        more = self.newcomers.of(items[new] - self.pairs.n_items).arrays()
        for name, value in more.items():
            getattr(found, name)[new] = value
        return found

    def with_edges(self, features_XF: np.ndarray) -> EvidenceIndex:
        """The same index with bucket edges at the quantiles of these candidates' features."""
        return self.with_edges_of(features_XF.T)

    def with_edges_of(self, columns: Iterable[np.ndarray]) -> EvidenceIndex:
        """The same from one field's values after the other."""
        columns = [
            bucket_edges(value_X[~np.isnan(value_X)], self.n_buckets, field)
            for value_X, field in zip(columns, self.fields, strict=True)
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
        arrays = {**self.attributes.arrays(), "edges_FB": self.edges_FB}
        arrays |= {name: getattr(pairs, name) for name in PAIR_ARRAYS}
        if self.titles is not None:
            arrays |= {name: getattr(self.titles, name) for name in TITLE_ARRAYS}
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
    def load(directory: Path, *, mapped: bool = False) -> EvidenceIndex:
        """Read what `save` wrote; `mapped`: its arrays stay in the file, which processes share."""
        arrays = (mapped_arrays if mapped else load_arrays)(directory / "index.safetensors")
        about = read_json(directory / "index.json")
        fields = read_fields(directory)
        counts: dict[str, Any] = {name: arrays.pop(name) for name in PAIR_ARRAYS}
        size = (about["n_items"], about["window"])
        pairs = PairCounts(*size, **counts, kinds=pair_kinds(fields))
        numbers: dict[str, Any] = {name: about[name] for name in INDEX_NUMBERS}
        numbers |= {"fields": fields, "edges_FB": arrays.pop("edges_FB")}
        numbers["late_from"] = about.get("late_from")
        numbers["own_scores"] = about.get("own_scores") is True
        if reads_titles(fields):
            told: dict[str, Any] = {name: arrays.pop(name) for name in TITLE_ARRAYS}
            numbers["titles"] = TitleWords(**told)
        return EvidenceIndex(pairs, Attributes(**arrays), **numbers)


PAIR_ARRAYS = ("pair_P", "value_PV", "key_M", "position_M", "day_M", "buyers_I")
TITLE_ARRAYS = ("mark_W", "idf_W", "start_I1", "word_T")
INDEX_NUMBERS = ("n_users", "decay", "history", "n_buckets")


def reads_titles(fields: Sequence[Field]) -> bool:
    """Whether one of these fields looks at words of titles."""
    return any(field.counted and field.name in TITLED for field in fields)


def read_fields(directory: Path) -> tuple[Field, ...]:
    """The fields of the index that stands there."""
    path = directory / "index.json"
    try:
        return fields_of(read_json(path)["fields"])
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: {error}") from None
