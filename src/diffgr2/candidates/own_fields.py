"""A shop's own features as evidence: their files beside the lists, and one request's values.

Contract: `write_own` puts the raw columns of every split's lists beside them, `read_own` reads them
back (nothing, where there are none): numbers as they are, flags as 0 and 1, categories as numbers
of words, NaN where a value is missing. `fitted` makes fields of them on what may be learned from: a
category keeps the words that have a side, then the most frequent, the others share a bucket.
`Own.values` gives raw columns, and `given` the values of a request, as `EvidenceIndex.features`
reads them: a word as the number of its bucket, NaN for what is missing or was never met. Not here:
buckets of numbers (`index`), which column of a file is which (`data`).
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
    liked = wanted.good if isinstance(wanted.good, list) else []
    if column.kind != "category":
        if liked or wanted.bad:
            which = f"lists.features.{name}.{'good' if liked else 'bad'}"
            raise ConfigError(f"{which}: words are for a category, this is a {column.kind}")
        # Where all are equal, none is high or low.
        flat = column.kind == "number" and value_X.min() == value_X.max()
        good: Good = "neither" if flat or isinstance(wanted.good, list) else wanted.good
        return told(good=good)
    number_N, count_N = np.unique(value_X.astype(np.int64), return_counts=True)
    ranked = sorted(zip((-count_N).tolist(), number_N.tolist(), strict=True))
    words = [column.words[number] for _, number in ranked]
    words.sort(key=lambda word: word not in (*liked, *wanted.bad))  # those first: they are graded
    for word in (*liked, *wanted.bad):
        if word not in column.words:
            known = ", ".join(words[:SHOWN])
            which = f"lists.features.{name}.{'good' if word in liked else 'bad'}"
            raise ConfigError(f"{which}: {word[:80]!r} does not occur (most frequent: {known})")
    rest = len(words) > n_buckets
    kept = words[: n_buckets - 1] if rest else words
    return told(words=tuple(kept), rest=rest, liked=tuple(liked), disliked=tuple(wanted.bad))


def spoken(name: str) -> str:
    """A feature's name as words.

    >>> spoken("click-rate_7d")
    'click rate 7d'
    """
    return " ".join(name.replace("_", " ").replace("-", " ").split())


# --------------------------------------------------------------------------------------- values


def word_of(value: str | float | bool) -> str:
    """A category's value as the word that it goes by: 3, 3.0 and "3" are one.

    >>> word_of(3.0), word_of(" red "), word_of(True)
    ('3', 'red', 'true')
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return " ".join(str(value).split())


def bucket_of(field: Field, word: str) -> float:
    """The bucket of a category's word, NaN for one that nothing was learned about."""
    if word in field.words:
        return float(field.words.index(word))
    return float(len(field.words)) if field.rest else math.nan


def given(field: Field, value: Any) -> float:
    """One value of a request as `EvidenceIndex.features` reads it; ValueError says what it is not.

    None, and a float that is no number, are a missing value.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    if field.kind == "category":
        if not isinstance(value, str | int | float):
            raise ValueError("expected text, the name of a category")
        return bucket_of(field, word_of(value)) if word_of(value) else math.nan
    if field.kind == "flag":
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError("expected true or false")
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    if isinstance(value, float) and math.isinf(value):
        raise ValueError("expected a finite number")
    return float(max(-MOST, min(MOST, value)))
