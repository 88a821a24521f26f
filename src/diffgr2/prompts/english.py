"""Evidence in English: one phrase per field and bucket, and the way back from phrase to evidence.

Contract: `Phrases` says what a bucket of a field means in a few words, and on which side it counts:
for a candidate if a person would call the grade good, against it if bad, on neither in between.
Phrases of different fields never coincide, so `find` reads them back out of a text. With up to
eight buckets every bucket of a counted field and of a number has words of its own; above that,
neighbours share them. Bucket 0 of `rank` and `gap` is the best one. A shop's own field has its
phrase from the recipe, or a plain one around its name. Not here: sentences around the phrases
(`account`, `chat`), and what the buckets count (`candidates.index`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.candidates.fields import Field, names_of
from diffgr2.candidates.own_fields import spoken
from diffgr2.errors import ConfigError
from diffgr2.own import SLOTS
from diffgr2.prompts.request import MISSING
from diffgr2.recipe import parse_yaml

FOR, AGAINST, NEITHER = 1, -1, 0
"""Sides on which a piece of evidence counts."""

_SIDE = {"+": FOR, "-": AGAINST, ".": NEITHER}

LONGEST_LABEL = 40
"""Characters of a category's word in a sentence."""


@cache
def wording(name: str) -> dict[str, Any]:
    """A template's words, to be read only; fields and scales it lacks are those of `compact`."""
    path = Path(__file__).parent / f"{name}.yaml"
    words = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if name != "compact":
        shared = wording("compact")
        parts = ("fields", "scales", "sides_of", "own")
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

    def __init__(self, words: Mapping[str, Any], fields: Sequence[Field], n: int) -> None:
        """`words` are a template's; see `wording`."""
        names, told = names_of(fields), words["fields"]
        self._phrase = [_phrases(words, field, n) for field in fields]
        self.side_FB = np.array([_sides(words, field, n) for field in fields])
        # Of every value that a u8 bucket may have, MISSING among them.
        self._fields_F = np.arange(len(fields))
        self._side_F256 = np.full((len(fields), MISSING + 1), NEITHER)
        self._side_F256[:, :n] = self.side_FB
        # Fields that say something of a shopper without any purchases.
        self.alone_F = np.array(
            [not field.counted or bool(told[field.name].get("alone")) for field in fields]
        )
        # (field, the field in whose bucket 0 it says nothing new)
        self._but = [
            (f, names.index(told[field.name]["but"]))
            for f, field in enumerate(fields)
            if field.counted and told[field.name].get("but") in names
        ]
        self._meaning: dict[str, tuple[int, frozenset[int]]] = {}
        for f, phrases in enumerate(self._phrase):
            for phrase in phrases:
                other, _ = self._meaning.get(phrase, (f, None))
                if other != f:
                    told_of = f"lists.features: {names[f]} and {names[other]} would both say"
                    raise ConfigError(f"{told_of} {phrase!r} (give one another phrase)")
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


def _phrases(words: Mapping[str, Any], field: Field, n: int) -> list[str]:
    """What each of n buckets of a field means."""
    if field.counted:
        return [_phrase(words, field.name, b, n) for b in range(n)]
    own, name = words["own"], spoken(field.name)
    if field.kind == "category":
        labels = [label_of(word, b) for b, word in enumerate(field.words)]
        pattern = field.phrase or own["category"].replace("{name}", name)
        other = _filled(field.phrase, own["rest"]) if field.phrase else own["other"]
        said = [_filled(pattern, label) for label in labels]
        return [*said, *[other.replace("{name}", name)] * (n - len(said))]
    pattern = (field.phrase or own[field.kind]).replace("{name}", name)
    if field.kind == "flag":
        return [_filled(pattern, own["not"]), *[_filled(pattern, "")] * (n - 1)]
    scale = words["scales"][own["scales"][_slot(pattern)[1:-1]]]
    return [_filled(pattern, scale[_step(scale, b, n)]) for b in range(n)]


def _filled(pattern: str, word: str) -> str:
    """A phrase with a word for how much, single blanks between words."""
    return " ".join(pattern.replace(_slot(pattern), word).split())


def _slot(pattern: str) -> str:
    """The one place in a phrase that says how much."""
    return next(slot for slot in SLOTS if slot in pattern)


def label_of(word: str, number: int) -> str:
    """A category's word as it stands in a sentence: nothing in it can end one or look like markup.

    >>> label_of("Games > RPG (12+)", 0), label_of("???", 4)
    ('Games RPG 12+', 'number 5')
    """
    kept = "".join(c if c.isalnum() or c in " '’&%+-" else " " for c in word[:LONGEST_LABEL])
    words = [part for part in kept.split() if any(map(str.isalnum, part))]
    return " ".join(words) or f"number {number + 1}"


def _sides(words: Mapping[str, Any], field: Field, n: int) -> list[int]:
    """On which side each of n buckets of a field counts."""
    if field.counted:
        return [_side(words, field.name, b, n) for b in range(n)]
    if field.kind == "category":
        said = [FOR if w in field.liked else AGAINST * (w in field.disliked) for w in field.words]
        return [*said, *[NEITHER] * (n - len(said))]
    way = {"high": FOR, "low": AGAINST, "neither": NEITHER}[field.good]
    if field.kind == "flag":
        return [AGAINST * way, *[FOR * way] * (n - 1)]
    signs = words["sides_of"][words["own"]["scales"]["grade"]]
    return [_SIDE[signs[_step(signs, b, n)]] * way for b in range(n)]


def _step(scale: Sequence[str], bucket: int, n: int) -> int:
    """Which of a scale's words is a bucket's, the two ends at the two ends."""
    return int(bucket / (n - 1) * (len(scale) - 1) + 0.5)  # half goes up


def _grade(words: Mapping[str, Any], field: str, bucket: int, n: int) -> int:
    """Which of its scale's words grades a bucket."""
    entry = words["fields"][field]
    scale = words["scales"][entry["scale"]]
    if entry.get("places"):  # one bucket per place, the last ones share a bucket
        return min(bucket, len(scale) - 1)
    return _step(scale, bucket, n)


def _phrase(words: Mapping[str, Any], field: str, bucket: int, n: int) -> str:
    entry = words["fields"][field]
    last = entry.get("places") and bucket == n - 1
    word = words["scales"][entry["scale"]][_grade(words, field, bucket, n)]
    return entry["last" if last else "phrase"].format(grade=word)


def _side(words: Mapping[str, Any], field: str, bucket: int, n: int) -> int:
    signs = words["sides_of"][words["fields"][field]["scale"]]
    return _SIDE[signs[_grade(words, field, bucket, n)]]
