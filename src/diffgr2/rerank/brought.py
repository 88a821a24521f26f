"""What a request brings about its candidates: values of the shop's own fields, and scores.

Contract: `brought(fields, named, features, strict)` reads one mapping per candidate, name -> value,
out of `features` or of the candidates themselves (`{"id": …, "features": {…}}`), into the columns
that `EvidenceIndex.features` reads. A name that is left out, or null, is a missing value; a name
that is no evidence of this model is a warning, and so is a value that its field cannot hold, which
is taken as missing (where the request is strict, both are errors). What is no mapping of names and
values is one ListProblem that names the candidates. `off_scale` says why
given scores cannot be of the kind that the model learned about. Not here: what a value means
(`candidates.own_fields`), buckets (`candidates.index`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.candidates.fields import Field, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.own_fields import given
from diffgr2.data.lines import BadLine
from diffgr2.data.own_values import word_of
from diffgr2.errors import DataError, nearest
from diffgr2.rerank.names import ListProblem

KEY = "features"
MOST = 64  # features of a candidate
LONGEST = 2_048  # characters of a value
TOLD = 8  # names in a message
FACTOR = 10.0  # by which scores may lie further apart, or nearer, than in training
FEWEST = 5  # candidates whose scores may not all be nearly equal


@dataclass(frozen=True)
class Brought:
    """Own values of a list's candidates."""

    values_KG: np.ndarray  # float32, NaN missing
    warnings: tuple[str, ...] = ()
    given: tuple[Mapping[str, Any] | None, ...] = ()  # the same as it came

    @property
    def backed(self) -> frozenset[int]:
        """Candidates of which something is known by these values."""
        return frozenset(np.flatnonzero(~np.isnan(self.values_KG).all(1)).tolist())

    def said(self, at: int, name: str) -> str | None:
        """A candidate's value as a word, for groups; None where it has none."""
        try:
            return word_of((self.given[at] or {}).get(name), name) or None
        except BadLine:
            return None


def off_scale(index: EvidenceIndex, scores_N: np.ndarray) -> str | None:
    """Why the gaps between these scores mean nothing here; None where they may be of one scale.

    Scores that all stand further apart, or nearer together, than in training by a factor of ten
    were made by something else: what `gap` learned is not about them.
    """
    gap_N = scores_N.max() - scores_N
    if "gap" not in index.names or not gap_N.any():
        return None
    edges_B = index.edges_FB[index.names.index("gap")]
    known_B = edges_B[np.isfinite(edges_B) & (edges_B > 0)]
    if not len(known_B):
        return None
    furthest, far, near = float(gap_N.max()), FACTOR * known_B[-1], known_B[0] / FACTOR
    if furthest <= far and (furthest >= near or len(scores_N) < FEWEST):
        return None
    usual = f"{known_B[0]:.3g} to {known_B[-1]:.3g}"
    return f"scores: up to {furthest:.3g} apart, where training had {usual}: another scale, ignored"


def brought(
    fields: Sequence[Field], named: Sequence[Any], features: Any, *, strict: bool
) -> Brought:
    """See the module's docstring; `fields` are the model's own ones."""
    values_KG = np.full((len(named), len(fields)), np.nan, np.float32)
    place, strange = {field.name: g for g, field in enumerate(fields)}, Counter[str]()
    bad, problems = list[tuple[str, str]](), dict[int, str]()
    each = _each(named, features)
    for k, values in enumerate(each):
        try:
            unknown, wrong = _read(values, fields, place, values_KG[k])
        except ValueError as error:
            problems[k] = f"{KEY}{error}"
            continue
        strange.update(unknown)
        bad += wrong
        if strict and wrong:
            problems[k] = wrong[0][1]
    if problems:
        raise ListProblem("candidates", problems)
    told = [_told(name, n, len(named), fields) for name, n in strange.most_common(TOLD)]
    if len(strange) > TOLD:
        told.append(f"{KEY}: {len(strange) - TOLD} more unknown names, ignored")
    if strict and told:
        raise DataError(told[0].removesuffix(", ignored"))
    return Brought(values_KG, tuple(told + _missed(bad, len(named))), tuple(each))


def _missed(bad: list[tuple[str, str]], k: int) -> list[str]:
    """A line per feature with values that it cannot hold: the first of them, and how many."""
    first, count = {}, Counter(name for name, _ in bad)
    for name, why in bad:
        first.setdefault(name, why)
    more = [f"{KEY}: values of {len(first) - TOLD} more names, taken as missing"]
    told = [f"{why}, in {count[name]} of {k}, taken as missing" for name, why in first.items()]
    return told[:TOLD] + (more if len(first) > TOLD else [])


def _each(named: Sequence[Any], features: Any) -> list[Any]:
    """What came with each candidate: beside the list, or in the candidates themselves."""
    within = [entry.get(KEY) if isinstance(entry, Mapping) else None for entry in named]
    if features is None:
        return within
    if isinstance(features, str | bytes | Mapping) or not isinstance(features, Sequence):
        raise DataError(f"{KEY}: expected a list, one object of names and values per candidate")
    if len(features) != len(named):
        raise DataError(f"{KEY}: {len(features)} for {len(named)} candidates")
    for k, (one, other) in enumerate(zip(features, within, strict=True)):
        if one is not None and other is not None:
            raise DataError(f"candidates[{k}].{KEY}: given beside the list, too")
    return [other if one is None else one for one, other in zip(features, within, strict=True)]


def _read(
    values: Any, fields: Sequence[Field], place: Mapping[str, int], row_G: np.ndarray
) -> tuple[list[str], list[tuple[str, str]]]:
    """One candidate's values into its row; the names that no field has, and the names whose field
    cannot hold the value, with what is wrong."""
    strange, wrong = list[str](), list[tuple[str, str]]()
    if values is None:
        return strange, wrong
    if not isinstance(values, Mapping):
        raise ValueError(": expected an object of names and values")
    if len(values) > MOST:
        raise ValueError(f": {len(values)} given, at most {MOST}")
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f": expected names, got {_shown(name)}")
        if name not in place:
            strange.append(name)
            continue
        if isinstance(value, str) and len(value) > LONGEST:
            raise ValueError(f".{name}: text of more than {LONGEST} characters")
        try:
            row_G[place[name]] = given(fields[place[name]], value)
        except ValueError as error:
            wrong.append((name, f"{KEY}.{name}: {error} (got {_shown(value)})"))
    return strange, wrong


def _told(name: str, count: int, k: int, fields: Sequence[Field]) -> str:
    known = ", ".join(names_of(fields[:TOLD]))
    which = f"known: {known}" if fields else "this model has none of its own"
    which += nearest(name, names_of(fields))
    return f"{KEY}.{_shown(name, 80)}: no evidence here, in {count} of {k} ({which}), ignored"


def _shown(value: Any, most: int = 40) -> str:
    """A value for a message, short and on one line."""
    text = value if isinstance(value, str) and most > 40 else repr(value)
    text = "".join(c if c.isprintable() else " " for c in text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"
