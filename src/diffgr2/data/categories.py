"""Category paths that a file spells as one text: `A > B`, `A; B`, `A/B`, `A,B`, `a.b`, `['A']`.

Contract: `read_paths(texts, separator)` says which separator all of them share and splits them,
from general to specific. Which one it is, is told by the whole column, never by a single cell: a
slash or a comma that stands in few of them, or in names that never repeat, is part of a name.
`told` says with an example what was understood. Not here: lists, which need no separator
(`values.category_path`).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

LONGEST_TEXT = 5_000  # characters of a path that are read
EXAMPLES = 200  # texts among which the example is looked for
WHOLE = "none"  # the recipe's word for texts that are no paths
ARROWS = re.compile(r"\s*(?:[-=]?>|[|›»→])\s*")  # today's and yesterday's signs of a path

_NAME = re.compile(r",[^,]*(?:&|\band\b|\bund\b|\bet\b)")  # "Beer, Wine & Spirits" is one name
_DOTTED = re.compile(r"[\w-]+(?:\.[\w-]+)*")


@dataclass(frozen=True)
class Separator:
    """A sign that may stand between the parts of a path."""

    sign: str
    pattern: re.Pattern[str]
    least: float  # share of the texts that must hold it
    repeats: bool  # whether first parts must repeat, because names may hold the sign, too


SEPARATORS = (  # the surest first
    Separator(">", ARROWS, 0.1, False),
    Separator(";", re.compile(r"\s*;\s*"), 0.1, False),
    Separator("/", re.compile(r"\s*/\s*"), 0.5, True),
    Separator(",", re.compile(r"\s*,\s*"), 0.5, True),
    Separator(".", re.compile(r"\."), 0.5, True),
)


@dataclass(frozen=True)
class Paths:
    """What a column of texts was taken for."""

    of: dict[str, Any]  # key -> parts, or lists of parts
    sign: str  # the separator; "" where texts are whole, "list" where they spell lists
    share: float  # of texts that hold it
    example: tuple[str, list[Any]]  # a text and its parts


def spelled_list(text: str) -> list[Any] | None:
    """What a text like `['A', 'B']` spells; None where it is no list."""
    text = text.strip()[:LONGEST_TEXT]
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)  # short, and it calls nothing
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    if not isinstance(value, list):
        return None
    rows = value if value and all(isinstance(part, list) for part in value) else [value]
    return value if all(isinstance(part, str) for row in rows for part in row) else None


def _holds(separator: Separator, text: str) -> bool:
    if separator.sign == ",":
        return "," in text and not _NAME.search(text)
    if separator.sign == ".":
        return "." in text and _DOTTED.fullmatch(text) is not None
    return separator.pattern.search(text) is not None


def parts(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The text cut at the separator, without empty parts."""
    return [part for part in pattern.split(text.strip()) if part.strip()]


def found_separator(texts: list[str]) -> tuple[Separator, float] | None:
    """The separator that these texts share, and how many of them hold it."""
    for separator in SEPARATORS:
        held = [text for text in texts if _holds(separator, text)]
        if not held or len(held) < separator.least * len(texts):
            continue
        distinct = {text: parts(text, separator.pattern) for text in held}
        firsts = {names[0] for names in distinct.values() if names}
        if not separator.repeats or len(firsts) <= max(1, len(distinct) // 2):
            return separator, len(held) / len(texts)
    few = sum(_holds(SEPARATORS[0], text) for text in texts)  # no name has an arrow
    return (SEPARATORS[0], few / len(texts)) if few else None


def read_paths(texts: Mapping[str, str], separator: str | None = None) -> Paths:
    """The texts as paths, by the recipe's separator or the one that they share."""
    cut = {key: text.strip()[:LONGEST_TEXT] for key, text in texts.items() if text.strip()}
    if separator is not None:
        pattern = None if separator == WHOLE else re.compile(rf"\s*{re.escape(separator)}\s*")
        held = sum(pattern is not None and separator in text for text in cut.values())
        return _paths(cut, {}, "" if pattern is None else separator, pattern, held)
    spelled = {key: spelled_list(text) for key, text in cut.items()}
    lists = {key: value for key, value in spelled.items() if value is not None}
    plain = {key: text for key, text in cut.items() if key not in lists}
    found = found_separator(list(plain.values()))
    pattern = found[0].pattern if found else None
    if lists or not found:
        return _paths(cut, lists, "list" if lists else "", pattern, len(lists))
    return _paths(cut, {}, found[0].sign, pattern, round(found[1] * len(plain)))


def _paths(
    cut: dict[str, str],
    lists: dict[str, list[Any]],
    sign: str,
    pattern: re.Pattern[str] | None,
    held: int,
) -> Paths:
    of: dict[str, Any] = dict(lists)
    for key, text in cut.items():
        if key not in of:
            of[key] = parts(text, pattern) if pattern else [text]
    longest = max(islice(of, EXAMPLES), key=lambda key: len(of[key]), default=None)
    example = ("", []) if longest is None else (cut[longest], of[longest])
    return Paths(of, sign, held / max(len(cut), 1), example)


def told(paths: Paths) -> str:
    """What was understood, with an example."""
    text, names = paths.example
    if not paths.sign:
        return f"taken whole, for example {text[:80]!r}"
    shown = " ".join(" > ".join(map(str, names)).split())  # on one line
    how = "spelled as lists" if paths.sign == "list" else f"split at {paths.sign!r}"
    return f"{how} in {paths.share:.0%} of the texts, {text[:80]!r} is {shown[:80]}"
