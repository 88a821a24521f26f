"""Lines of foreign files, one at a time, with everything malformed counted and put aside.

Contract: `read_lines(path, intake)` yields (number, text) of each line that is not blank and is
valid UTF-8 of bearable length, from plain or gzip files; the rest goes to `intake`. Parsers raise
`BadLine(reason)` and the caller hands it to `intake.reject`, so that always

    intake.lines == accepted + intake.rejected

`intake.finish()` stops the import above the allowed share. Compressed data that breaks off stops
it at once: how much is missing is unknown, so no share can be computed. Not here: what a line
means (`data.fields` and the importers). Nothing is evaluated: Python-dict lines go through
`ast.literal_eval` after their length and nesting were checked.
"""

from __future__ import annotations

import ast
import csv
import gzip
import json
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from diffgr2.errors import DataError

LONGEST_LINE = 4 * 2**20  # bytes; the longest line of the Amazon sets is far below
LONGEST_DICT = 2**20  # characters given to literal_eval
DEEPEST_DICT = 20  # nesting given to literal_eval; the metadata needs 4
SHOWN = 5  # malformed lines named in messages and the report
QUOTED_CHARS = 200  # of a malformed line
JOINED_LINES = 32  # lines that one quoted CSV record may span
JOINED_CHARS = 2**18


class BadLine(Exception):  # noqa: N818 (not an error of the program: it never leaves the importers)
    """One line cannot be used; the text says why."""


class Intake:
    """Counts the lines of one file and writes its malformed ones to the quarantine file."""

    def __init__(self, name: str, quarantine: Path | None, max_bad_share: float) -> None:
        self.name, self.quarantine, self.max_bad_share = name, quarantine, max_bad_share
        self.lines = self.rejected = 0
        self.first: list[str] = []
        self._file: IO[str] | None = None

    def reject(self, number: int, reason: str, text: str | bytes) -> None:
        """Put one counted line aside."""
        self.rejected += 1
        if len(self.first) < SHOWN:
            self.first.append(f"line {number}: {reason}")
        if self.quarantine is None:
            return
        if self._file is None:
            self._file = self.quarantine.open("a", encoding="utf-8")
        if isinstance(text, bytes):
            text = text[: 4 * QUOTED_CHARS].decode("utf-8", "backslashreplace")
        entry = {"file": self.name, "line": number, "reason": reason, "text": text[:QUOTED_CHARS]}
        self._file.write(json.dumps(entry) + "\n")  # ASCII only, so any text can be written

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self) -> None:
        """Close the quarantine and stop the import if too much went there."""
        self.close()
        if self.lines == 0:
            raise DataError(f"{self.name}: holds no data lines")
        share = self.rejected / self.lines
        if share > self.max_bad_share:
            raise DataError(
                f"{self.name}: {self.rejected} of {self.lines} lines are malformed "
                f"({share:.1%}, max_bad_share is {self.max_bad_share:.1%}); first: {self.first[0]}"
            )


def open_binary(path: Path) -> IO[bytes]:
    """A plain or gzip file (told apart by its first bytes, not its name)."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_lines(
    path: Path, intake: Intake, longest: int = LONGEST_LINE
) -> Iterator[tuple[int, str]]:
    """(1-based number, text without line end) of each usable line; the others are rejected."""
    number = 0
    with open_binary(path) as file:
        try:
            while raw := file.readline(longest + 1):
                number += 1
                overlong = len(raw) > longest and not raw.endswith(b"\n")
                rest = raw
                while overlong and rest and not rest.endswith(b"\n"):
                    rest = file.readline(longest)  # thrown away piece by piece, never held
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                if not raw.strip():
                    continue
                intake.lines += 1
                if overlong:
                    intake.reject(number, f"longer than {longest} bytes", raw)
                    continue
                try:
                    text = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    intake.reject(number, f"not valid UTF-8 at byte {error.start + 1}", raw)
                    continue
                yield number, text.rstrip("\r\n")
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise DataError(
                f"{intake.name}: compressed data is cut off or corrupt after line {number}"
            ) from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def each(
    lines: Iterator[tuple[int, str]], intake: Intake, parse: Callable[[str], Any]
) -> Iterator[tuple[int, Any]]:
    """`parse` of every line; a BadLine is rejected."""
    for number, text in lines:
        try:
            value = parse(text)
        except BadLine as bad:
            intake.reject(number, str(bad), text)
            continue
        yield number, value


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
_BRACKETS = re.compile(r"[\[\](){}]")


def python_dict(text: str) -> dict[str, Any]:
    """A line of the 2014 metadata: JSON, or else a Python dict literal of bearable size."""
    try:
        return json_object(text)
    except BadLine:
        pass
    if len(text) > LONGEST_DICT:
        raise BadLine(f"longer than {LONGEST_DICT} characters")
    bare = _STRING.sub("", text)
    depth = deepest = 0
    for bracket in _BRACKETS.findall(bare):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    # Signs nest without brackets: `-----1` and `1+1+1` build trees as deep as they are long.
    if deepest > DEEPEST_DICT or max(bare.count(sign) for sign in "+-~") > 1_000:
        raise BadLine("nested too deep")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise BadLine("neither JSON nor a Python dict") from None
    if not isinstance(value, dict):
        raise BadLine("not a dict")
    return value


# ---------------------------------------------------------------------------------------------- CSV


def _csv_fields(text: str, delimiter: str) -> list[str] | None:
    """Fields of one record; None if a quoted field is still open at the end."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            return None
        raise BadLine(f"not valid CSV ({error})") from None
    if len(rows) != 1:
        raise BadLine("not valid CSV (line break outside quotes)")
    return rows[0]


def csv_records(
    lines: Iterator[tuple[int, str]], intake: Intake, delimiter: str
) -> Iterator[tuple[int, str, list[str]]]:
    """(number, text, fields) of each record; quoted fields may span a few lines.

    A record whose quote is never closed is rejected alone: the lines after it are read anew.
    """
    waiting: deque[tuple[int, str]] = deque()
    while True:
        entry = waiting.popleft() if waiting else next(lines, None)
        if entry is None:
            return
        number, text = entry
        if '"' not in text and "\r" not in text:
            yield number, text, text.split(delimiter)
            continue
        try:
            fields = _csv_fields(text, delimiter)
            if fields is None:
                text, fields = _joined(text, lines, waiting, intake, delimiter)
        except BadLine as bad:
            intake.reject(number, str(bad), text)
            continue
        yield number, text, fields


def _joined(
    text: str,
    lines: Iterator[tuple[int, str]],
    waiting: deque[tuple[int, str]],
    intake: Intake,
    delimiter: str,
) -> tuple[str, list[str]]:
    """Close an open quote with the lines that follow, or leave them in `waiting`."""
    whole = text
    for extra in range(JOINED_LINES):
        if extra == len(waiting):
            entry = next(lines, None)
            if entry is None:
                break
            waiting.append(entry)
        whole = f"{whole}\n{waiting[extra][1]}"
        if len(whole) > JOINED_CHARS:
            break
        if '"' not in waiting[extra][1]:
            continue
        try:
            fields = _csv_fields(whole, delimiter)
        except BadLine:
            break
        if fields is not None:
            for _ in range(extra + 1):
                waiting.popleft()
            intake.lines -= extra + 1  # they were counted as lines of their own
            return whole, fields
    raise BadLine("not valid CSV (quote is not closed)")


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
    twice = {name for name in names if names.count(name) > 1} if len(names) < 1_000 else set()
    if twice:
        raise DataError(f"{intake.name}: line 1: column {min(twice)!r} stands twice")
    return names


def csv_header(text: str, delimiter: str) -> list[str]:
    """Names in a CSV header line."""
    fields = _csv_fields(text, delimiter)
    if fields is None:
        raise BadLine("not valid CSV (quote is not closed)")
    return fields
