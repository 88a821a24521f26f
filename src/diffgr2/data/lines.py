"""Lines of foreign files, one at a time, with everything malformed counted and put aside.

Contract: `read_lines(path, intake)` yields (number, text) of each line that is not blank and is
valid UTF-8 of bearable length, from plain or gzip files; the rest goes to `intake`. Parsers raise
`BadLine(reason)`, which `each` (or whoever calls them) hands to `intake.reject`, so that always

    intake.lines == accepted + intake.rejected

`intake.finish()` stops the import above the allowed share. Compressed data that breaks off stops
it at once: how much is missing is unknown, so no share can be computed. Not here: what a line
means (`data.values` and the importers). Nothing is evaluated: Python-dict lines go through
`ast.literal_eval` after their length and signs were checked.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from diffgr2.errors import DataError

LONGEST_LINE = 4 * 2**20  # bytes; the longest line of the Amazon sets is far below
LONGEST_DICT = 2**20  # characters given to literal_eval
MOST_SIGNS = 1_000  # in such a dict; the metadata needs a few
SHOWN = 5  # malformed lines named in messages and the report
QUOTED_CHARS = 200  # of a malformed line
LONGEST_RECORD = 33  # lines of one CSV record with quoted line breaks


class BadLine(Exception):  # noqa: N818 (not an error of the program: it never leaves the importers)
    """One line cannot be used; the text says why."""


class Intake:
    """Counts the lines of one file and writes its malformed ones to the quarantine file."""

    def __init__(self, name: str, quarantine: Path | None, max_bad_share: float) -> None:
        self.name, self.quarantine, self.max_bad_share = name, quarantine, max_bad_share
        self.lines = self.rejected = 0
        self.first: list[str] = []
        self.told: list[str] = []  # our words that the file has columns for
        self.paths = ""  # what its category texts were taken for

    def reject(self, number: int, reason: object, text: str | bytes) -> None:
        """Put one counted line aside."""
        self.rejected += 1
        if len(self.first) < SHOWN:
            self.first.append(f"line {number}: {reason}")
        if self.quarantine is None:
            return
        if isinstance(text, bytes):
            text = text[: 4 * QUOTED_CHARS].decode("utf-8", "backslashreplace")
        text = text[:QUOTED_CHARS]
        entry = {"file": self.name, "line": number, "reason": str(reason), "text": text}
        with self.quarantine.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")  # ASCII only, so any text can be written

    def finish(self) -> None:
        """Stop the import if there was nothing, or too much of it malformed."""
        if self.lines == 0:
            raise DataError(f"{self.name}: holds no data lines")
        share = self.rejected / self.lines
        if share > self.max_bad_share:
            raise DataError(
                f"{self.name}: {self.rejected} of {self.lines} lines are malformed "
                f"({share:.1%}, max_bad_share is {self.max_bad_share:.1%}); first: {self.first[0]}"
            )


def read_lines(path: Path, intake: Intake) -> Iterator[tuple[int, str]]:
    """(1-based number, text without line end) of each usable line; the others are rejected."""
    number = 0
    try:
        with path.open("rb") as plain:
            # Packed or not is told by the first bytes, not by the name.
            file = gzip.GzipFile(fileobj=plain) if plain.peek(2)[:2] == b"\x1f\x8b" else plain
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                overlong = len(raw) > LONGEST_LINE and not raw.endswith(b"\n")
                rest = raw
                while overlong and rest and not rest.endswith(b"\n"):
                    rest = file.readline(LONGEST_LINE)  # thrown away piece by piece, never held
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if not raw.strip():
                    continue
                intake.lines += 1
                if overlong:
                    intake.reject(number, f"longer than {LONGEST_LINE} bytes", raw)
                    continue
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    intake.reject(number, f"not valid UTF-8 at byte {error.start + 1}", raw)
                    continue
                yield number, text.rstrip("\r\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise DataError(
            f"{intake.name}: compressed data is cut off or corrupt after line {number}"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def each(
    lines: Iterable[tuple[int, str]], intake: Intake, parse: Callable[[str], Any]
) -> Iterator[tuple[int, str, Any]]:
    """(number, text, `parse(text)`) of every line; a BadLine is rejected."""
    for number, text in lines:
        try:
            value = parse(text)
        except BadLine as bad:
            intake.reject(number, bad, text)
            continue
        yield number, text, value


# ------------------------------------------------------------------------------- JSON, Python dicts


def _constant(name: str) -> NoReturn:
    raise BadLine(f"not valid JSON ({name} is no JSON number)")


_JSON = json.JSONDecoder(parse_constant=_constant)


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = _JSON.decode(text)
    except json.JSONDecodeError as error:
        raise BadLine(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise BadLine("not valid JSON (nested too deep)") from None
    except ValueError:
        raise BadLine("not valid JSON (number too long)") from None
    if not isinstance(value, dict):
        raise BadLine("not a JSON object")
    return value


_STRING = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


def python_dict(text: str) -> dict[str, Any]:
    """A line of the 2014 metadata: JSON, or else a Python dict literal of bearable size."""
    try:
        return json_object(text)
    except BadLine:
        pass
    if len(text) > LONGEST_DICT:
        raise BadLine(f"longer than {LONGEST_DICT} characters")
    # Brackets may nest as deep as the parser lets them, but signs nest without any: `-----1` and
    # `1+1+1` build trees as deep as they are long.
    bare = _STRING.sub("", text)
    if max(bare.count(sign) for sign in "+-~") > MOST_SIGNS:
        raise BadLine("nested too deep")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise BadLine("neither JSON nor a Python dict") from None
    if not isinstance(value, dict):
        raise BadLine("not a dict")
    return value


# ---------------------------------------------------------------------------------------------- CSV


def csv_fields(lines: Iterable[str], delimiter: str) -> list[str]:
    """Fields of the record that starts with the first of these lines."""
    records = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        return next(records)
    except csv.Error as error:
        unclosed = records.line_num > 1 or "unexpected end" in str(error)
        reason = "quote is not closed" if unclosed else error
        raise BadLine(f"not valid CSV ({reason})") from None


def csv_records(
    lines: Iterator[tuple[int, str]], intake: Intake, delimiter: str
) -> Iterator[tuple[int, str, list[str]]]:
    """(number, text, fields) of each record; quoted fields may span a few lines.

    A record whose quote is never closed is rejected alone: the lines after it are read anew.
    """
    again: list[tuple[int, str]] = []  # what was read after an open quote, the last line first
    taken: list[tuple[int, str]] = []  # lines of the record at hand

    def upcoming() -> Iterator[str]:
        while len(taken) < LONGEST_RECORD:
            entry = again.pop() if again else next(lines, None)
            if entry is None:
                return
            taken.append(entry)
            yield entry[1] + "\n"

    while entry := again.pop() if again else next(lines, None):
        number, text = entry
        if '"' not in text and "\r" not in text:  # nearly all of them, and much faster so
            yield number, text, text.split(delimiter)
            continue
        again.append(entry)
        taken.clear()
        try:
            fields = csv_fields(upcoming(), delimiter)
        except BadLine as bad:
            intake.reject(number, bad, text)
            again += reversed(taken[1:])
            continue
        intake.lines -= len(taken) - 1  # they were counted as lines of their own
        yield number, "\n".join(text for _, text in taken), fields


def read_header(
    lines: Iterator[tuple[int, str]], intake: Intake, split: Callable[[str], list[str]]
) -> list[str]:
    """Names in the first line, which then does not count as data."""
    number, text = next(lines, (0, ""))
    if number == 0 and intake.lines == 0:
        raise DataError(f"{intake.name}: is empty")
    if number != 1:
        raise DataError(f"{intake.name}: line 1: not a readable header")
    intake.lines -= 1
    try:
        names = [name.strip() for name in split(text)]
    except BadLine as bad:
        raise DataError(f"{intake.name}: line 1: {bad}") from None
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise DataError(f"{intake.name}: line 1: column {min(twice)!r} stands twice")
    return names
