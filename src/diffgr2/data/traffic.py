"""What a server wrote down of its traffic: the files of both logs, read line by line.

Contract: a log directory holds `impressions-00000001.jsonl`, … (a ranking that was answered, a
line) and `feedback-00000001.jsonl`, … (something that a shopper did, a line), each file whole lines
of JSON but for the end that a power cut may have torn. `files_of` lists a log's files, the oldest
first; `entries_of` reads what can be read and counts the rest; `identity` is what makes two lines
of feedback the same event. Not here: writing (`serve.ledger`), lists out of it (`from_log`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IMPRESSIONS, FEEDBACK = "impressions", "feedback"
KINDS = (IMPRESSIONS, FEEDBACK)
DIGITS = 8

EVENT = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
"""What an event may be called: it becomes a column of outcomes."""

EVENTS = ("click", "cart", "purchase")
"""Outcomes that have a column of lists even where nobody did them."""

TAKEN = ("list", "user", "moment", "item", "place", "score", "history", "shown")
"""Columns of the lists that are made of the logs: no event is called so."""


def file_of(directory: Path, kind: str, number: int) -> Path:
    """The log's file of this number."""
    return directory / f"{kind}-{number:0{DIGITS}}.jsonl"


def number_of(path: Path) -> int:
    """The number in a file's name."""
    return int(path.stem.rpartition("-")[2])


def files_of(directory: Path, kind: str) -> list[Path]:
    """All files of a log, the oldest first."""
    found = (path for path in directory.iterdir() if path.suffix == ".jsonl")
    named = re.compile(rf"{kind}-[0-9]{{{DIGITS},12}}")
    return sorted((path for path in found if named.fullmatch(path.stem)), key=number_of)


def entries_of(directory: Path, kind: str, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Every line that is a JSON object; what is none is counted as `<kind>: no JSON`."""
    for path in files_of(directory, kind):
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    skipped[f"{kind}: cut line"] += 1
                    break
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                if isinstance(value, dict):
                    yield value
                else:
                    skipped[f"{kind}: no JSON"] += 1


def identity(*parts: str) -> int:
    """64 bits that stand for these texts, in this order."""
    told = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(told.encode(), digest_size=8).digest(), "little")
