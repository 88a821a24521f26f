"""A shop's own features as evidence: their files beside the lists, and one request's values.

Contract: `write_own` puts the raw columns of every split's lists beside them, `read_own` reads them
back (nothing, where there are none): numbers as they are, flags as 0 and 1, categories as numbers
of words, NaN where a value is missing. `fitted` makes fields of them on what may be learned from: a
category keeps the words that have a side, then the most frequent, the others share a bucket.
`Own.values` gives raw columns, and `given` the values of a request, as `EvidenceIndex.features`
reads them: a word as the number of its bucket, NaN for what is missing or was never met. Not here:
what a single value means (`data.own_values`), buckets of numbers (`index`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.candidates.fields import Field, Good
from diffgr2.data.lines import BadLine
from diffgr2.data.own_values import (
    LONGEST_WORD,
    flag_of,
    missing,
    plain,
    real,
    word_in,
    word_of,
)
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.own import OwnFeature

NOTE = "own.json"
SHOWN = 8  # names in a message
MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Column:
    """What one raw column holds."""

    kind: Literal["number", "category", "flag"]
    words: tuple[str, ...] = ()  # category: in the order of their numbers


@dataclass(frozen=True)
class Own:
    """The raw columns of all splits, by the name of the feature."""

    columns: dict[str, Column]
    raw: dict[str, np.ndarray]  # split -> own_LKG

    def values(self, split: str, fields: Sequence[Field]) -> np.ndarray:
        """One split's columns as these fields read them, float32 (L, K, G)."""
        raw_LKG, names = self.raw[split], list(self.columns)
        result_LKG = np.full((*raw_LKG.shape[:2], len(fields)), np.nan, np.float32)
        for g, field in enumerate(fields):
            value_LK = raw_LKG[..., names.index(field.name)]
            if field.kind == "category":
                bucket_W = np.array([*(bucket_of(field, w) for w in self._words(field)), np.nan])
                value_LK = bucket_W[np.nan_to_num(value_LK, nan=-1).astype(np.int64)]
            result_LKG[..., g] = np.where(np.isfinite(value_LK), value_LK, np.nan)
        return result_LKG

    def _words(self, field: Field) -> tuple[str, ...]:
        return self.columns[field.name].words


# ------------------------------------------------------------------------------------------ files


def write_own(
    directory: Path, columns: Mapping[str, Column], raw: Mapping[str, np.ndarray]
) -> None:
    """Write `own_<split>.safetensors` and what their columns hold."""
    for split, own_LKG in raw.items():
        save_arrays(directory / f"own_{split}.safetensors", own_LKG=own_LKG.astype(np.float32))
    about = [
        {"name": name, "kind": column.kind, "words": list(column.words)}
        for name, column in columns.items()
    ]
    write_json(directory / NOTE, {"features": about})


def read_own(directory: Path, splits: Iterable[str]) -> Own | None:
    """What `write_own` wrote; None where these lists have no features of their own."""
    path = directory / NOTE
    if not path.exists():
        return None
    about = read_json(path)["features"]
    columns = {one["name"]: Column(one["kind"], tuple(one["words"])) for one in about}
    raw = {s: load_arrays(directory / f"own_{s}.safetensors")["own_LKG"] for s in splits}
    for split, own_LKG in raw.items():
        if own_LKG.ndim != 3 or own_LKG.shape[2] != len(columns):
            raise ArtifactError(f"{directory / f'own_{split}.safetensors'}: not as {NOTE} says")
    return Own(columns, raw) if columns else None


# -------------------------------------------------------------------------------------- fitting


def fitted(
    own: Own, known_XG: np.ndarray, config: Mapping[str, OwnFeature], n_buckets: int
) -> tuple[Field, ...]:
    """Fields of these columns; `known_XG` are raw values to learn from, and a column without any
    makes none."""
    fields = []
    for (name, column), value_X in zip(own.columns.items(), known_XG.T, strict=True):
        value_X = value_X[np.isfinite(value_X)]
        if len(value_X):
            wanted = config.get(name, OwnFeature())
            fields.append(_field(name, column, value_X, wanted, n_buckets))
    return tuple(fields)


def _field(
    name: str, column: Column, value_X: np.ndarray, wanted: OwnFeature, n_buckets: int
) -> Field:
    """One column's field."""
    told = partial(
        Field, name, f"{spoken(name)}, of the lists", False, column.kind, phrase=wanted.phrase
    )
    liked, disliked = _words(wanted.good), _words(wanted.bad)
    if column.kind != "category":
        if liked or disliked:
            which = f"lists.features.{name}.{'good' if liked else 'bad'}"
            raise ConfigError(f"{which}: words are for a category, this is a {column.kind}")
        # Where all are equal, none is high or low.
        flat = column.kind == "number" and value_X.min() == value_X.max()
        good: Good = "neither" if flat or isinstance(wanted.good, list) else wanted.good
        return told(good=good)
    number_N, count_N = np.unique(value_X.astype(np.int64), return_counts=True)
    ranked = sorted(zip((-count_N).tolist(), number_N.tolist(), strict=True))
    words = [column.words[number] for _, number in ranked]
    words.sort(key=lambda word: word not in (*liked, *disliked))  # those first: they are graded
    for word in (*liked, *disliked):
        if word not in column.words:
            known = ", ".join(words[:SHOWN])
            which = f"lists.features.{name}.{'good' if word in liked else 'bad'}"
            raise ConfigError(f"{which}: {word[:80]!r} does not occur (most frequent: {known})")
    rest = len(words) > n_buckets
    kept = words[: n_buckets - 1] if rest else words
    return told(words=tuple(kept), rest=rest, liked=tuple(liked), disliked=tuple(disliked))


def _words(said: str | list[str]) -> list[str]:
    """The words that a recipe names, as its files' column has them."""
    return [word_in(word) for word in said] if isinstance(said, list) else []


def spoken(name: str) -> str:
    """A feature's name as words.

    >>> spoken("click-rate_7d")
    'click rate 7d'
    """
    return " ".join(name.replace("_", " ").replace("-", " ").split())


# --------------------------------------------------------------------------------------- values


def bucket_of(field: Field, word: str) -> float:
    """The bucket of a category's word, NaN for one that nothing was learned about."""
    if word in field.words:
        return float(field.words.index(word))
    return float(len(field.words)) if field.rest else math.nan


def given(field: Field, value: Any) -> float:
    """One value of a request as `EvidenceIndex.features` reads it, the same as a file would hold
    it; ValueError says what it is not.

    None, a float that is no number, and text that says nothing are a missing value.
    """
    value = plain(value.item() if isinstance(value, np.generic) else value)
    if missing(value):
        return math.nan
    try:
        if field.kind == "category":
            word = word_of(value, field.name)
            return bucket_of(field, word) if word else math.nan
        if field.kind == "flag":
            return flag_of(value, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            return float(max(-MOST, min(MOST, value)))
        return real(value, field.name)
    except BadLine:
        raise ValueError(_wanted(field, value)) from None


def _wanted(field: Field, value: Any) -> str:
    """What a value should have been."""
    if field.kind == "category":
        long = isinstance(value, str) and len(value) > LONGEST_WORD
        most = f" of at most {LONGEST_WORD} characters" if long else ""
        return f"expected text, the name of a category{most}"
    if field.kind == "flag":
        return "expected true or false"
    infinite = isinstance(value, float) and math.isinf(value)
    return f"expected a {'finite ' if infinite else ''}number"
