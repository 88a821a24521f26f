"""Evidence in English: one phrase per field and bucket, and the way back from phrase to evidence.

Contract: `Phrases` says what a bucket of a field means in a few words; phrases of different fields
never coincide, so `find` reads them back out of a text. With up to eight buckets every bucket has
words of its own; above that, neighbours share them. Bucket 0 of `rank` and `gap` is the best one.
Not here: sentences around the phrases (`compact`, `gr2`), and what the buckets count
(`candidates.index`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffgr2.recipe import parse_yaml


def wording(name: str) -> dict[str, Any]:
    """A template's words; fields and scales that it does not word are those of `compact`."""
    path = Path(__file__).parent / f"{name}.yaml"
    words = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if name != "compact":
        shared = wording("compact")
        words |= {part: {**shared[part], **words[part]} for part in ("fields", "scales")}
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

    def __init__(
        self, words: Mapping[str, Any], scales: Mapping[str, Any], fields: Sequence[str], n: int
    ) -> None:
        self._phrase = [[_phrase(words, scales, f, b, n) for b in range(n)] for f in fields]
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

    def find(self, text: str) -> Iterator[tuple[int, frozenset[int]]]:
        """(field, buckets it may mean) of every phrase in the text, in order."""
        for match in self._pattern.finditer(text):
            yield self._meaning[match[0]]

    def all(self) -> list[str]:
        return list(self._meaning)


def _phrase(
    words: Mapping[str, Any], scales: Mapping[str, Any], field: str, bucket: int, n: int
) -> str:
    entry = words[field]
    scale = scales[entry["scale"]]
    if entry.get("places"):  # one bucket per place, the last ones share a bucket
        word = scale[min(bucket, len(scale) - 1)]
        return entry["phrase" if bucket < n - 1 else "last"].format(grade=word)
    # Rounding half up keeps the two ends of the scale at the two ends of the buckets.
    return entry["phrase"].format(grade=scale[int(bucket / (n - 1) * (len(scale) - 1) + 0.5)])
