"""Evidence in English: one phrase per field and bucket, and the way back from phrase to evidence.

Contract: `Phrases` says what a bucket of a field means in a few words, and on which side it counts:
for a candidate if a person would call the grade good, against it if bad, on neither in between.
Phrases of different fields never coincide, so `find` reads them back out of a text. With up to
eight buckets every bucket has words of its own; above that, neighbours share them. Bucket 0 of
`rank` and `gap` is the best one. Not here: sentences around the phrases (`account`, `chat`), and
what the buckets count (`candidates.index`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.prompts.request import MISSING
from diffgr2.recipe import parse_yaml

FOR, AGAINST, NEITHER = 1, -1, 0
"""Sides on which a piece of evidence counts."""

_SIDE = {"+": FOR, "-": AGAINST, ".": NEITHER}


@cache
def wording(name: str) -> dict[str, Any]:
    """A template's words, to be read only; fields and scales it lacks are those of `compact`."""
    path = Path(__file__).parent / f"{name}.yaml"
    words = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if name != "compact":
        shared = wording("compact")
        parts = ("fields", "scales", "sides_of")
        words |= {part: {**shared[part], **words.get(part, {})} for part in parts}
    return words


def listed(words: Sequence[str]) -> str:
    """Words as an English list.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


class Phrases:
    """Phrases of all fields for one number of buckets."""

    def __init__(self, words: Mapping[str, Any], fields: Sequence[str], n: int) -> None:
        """`words` are a template's; see `wording`."""
        self._phrase = [[_phrase(words, f, b, n) for b in range(n)] for f in fields]
        self.side_FB = np.array([[_side(words, f, b, n) for b in range(n)] for f in fields])
        # Of every value that a u8 bucket may have, MISSING among them.
        self._fields_F = np.arange(len(fields))
        self._side_F256 = np.full((len(fields), MISSING + 1), NEITHER)
        self._side_F256[:, :n] = self.side_FB
        # Fields that say something of a shopper without any purchases.
        self.alone_F = np.array([bool(words["fields"][f].get("alone")) for f in fields])
        # (field, the field in whose bucket 0 it says nothing new)
        self._but = [
            (f, fields.index(words["fields"][name]["but"]))
            for f, name in enumerate(fields)
            if words["fields"][name].get("but") in fields
        ]
        self._meaning: dict[str, tuple[int, frozenset[int]]] = {}
        for f, phrases in enumerate(self._phrase):
            for phrase in phrases:
                buckets = frozenset(b for b in range(n) if phrases[b] == phrase)
                self._meaning[phrase] = (f, buckets)
        # Longest first; between separators only, so that "often bought" is not found in
        # "very often bought".
        choice = "|".join(re.escape(p) for p in sorted(self._meaning, key=len, reverse=True))
        self._pattern = re.compile(
            rf"(?:(?<=[:;,] )|(?<=\()|(?<= and ))(?:{choice})(?=[;,.)]| and )"
        )

    def say(self, field: int, bucket: int) -> str:
        """What this bucket of this field means."""
        return self._phrase[field][bucket]

    def sides(self, buckets_XF: np.ndarray) -> np.ndarray:
        """On which side each field counts, NEITHER where it is missing or says nothing new."""
        side_XF = self._side_F256[self._fields_F, buckets_XF]
        for field, other in self._but:
            other_X = buckets_XF[..., other]
            side_XF[..., field][(other_X == 0) | (other_X == MISSING)] = NEITHER
        return side_XF

    def find(self, text: str) -> Iterator[tuple[int, frozenset[int]]]:
        """(field, buckets it may mean) of every phrase in the text, in order."""
        for match in self._pattern.finditer(text):
            yield self._meaning[match[0]]

    def all(self) -> list[str]:
        return list(self._meaning)


def _grade(words: Mapping[str, Any], field: str, bucket: int, n: int) -> int:
    """Which of its scale's words grades a bucket."""
    entry = words["fields"][field]
    scale = words["scales"][entry["scale"]]
    if entry.get("places"):  # one bucket per place, the last ones share a bucket
        return min(bucket, len(scale) - 1)
    # Rounding half up keeps the two ends of the scale at the two ends of the buckets.
    return int(bucket / (n - 1) * (len(scale) - 1) + 0.5)


def _phrase(words: Mapping[str, Any], field: str, bucket: int, n: int) -> str:
    entry = words["fields"][field]
    last = entry.get("places") and bucket == n - 1
    word = words["scales"][entry["scale"]][_grade(words, field, bucket, n)]
    return entry["last" if last else "phrase"].format(grade=word)


def _side(words: Mapping[str, Any], field: str, bucket: int, n: int) -> int:
    signs = words["sides_of"][words["fields"][field]["scale"]]
    return _SIDE[signs[_grade(words, field, bucket, n)]]
