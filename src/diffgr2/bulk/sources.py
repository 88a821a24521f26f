"""What a batch reads: files of rows, as the rows that were asked for.

Contract: a source is a file, or a folder of files of one kind, here or behind a URI: `.parquet`,
`.jsonl` (`.ndjson`) or `.csv`, texts also as `.gz`; names that begin with `_` or `.` are passed
over. `survey` says how many rows each file has and what its bytes are, from one reading of it;
`Reader.rows(first, count)`
gives rows by their numbers, which count through all files in the order of their names, whatever
blocks a file has. A row is a request's JSON object (`rerank.query`), or the error that it is none.
In tables, columns that are no part of a request are carried along; lists may be text, and ids whole
numbers. Not here: who gets which rows (`job`), and what becomes of them (`work`).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from diffgr2 import strict_json
from diffgr2.bulk.places import Place, arrow
from diffgr2.data.lines import BadLine
from diffgr2.data.own_values import history_of, plain
from diffgr2.errors import DataError, first_line
from diffgr2.rerank.query import KEYS, USER

KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
PIECE = 1 << 20
UNREADABLE = re.compile("[\ud800-\udfff]")  # what became of bytes that are no UTF-8

Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """One file of a source; `name` is empty where the source is the file itself."""

    name: str
    rows: int
    sha256: str


def kind_of(name: str) -> str | None:
    """What a file holds, by its name."""
    path = PurePosixPath(name.lower())
    packed = path.suffix == ".gz"
    kind = KINDS.get(path.with_suffix("").suffix if packed else path.suffix)
    return None if packed and kind == "parquet" else kind


def survey(place: Place) -> tuple[str, list[File]]:
    """(kind, files) of a source."""
    what = place.kind()
    if not what:
        raise DataError(f"{place}: no such file or folder")
    names = [""] if what == "file" else [name for name in place.names() if not _hidden(name)]
    kinds = {name: kind_of(name or place.base) for name in names}
    known = {name: kind for name, kind in kinds.items() if kind is not None}
    if not known:
        raise DataError(f"{place}: expected {', '.join(KINDS)} (texts also as .gz)")
    if len(set(known.values())) > 1:
        raise DataError(f"{place}: holds files of several kinds ({', '.join(set(known.values()))})")
    kind = next(iter(known.values()))
    return kind, [_surveyed(place, name, kind) for name in known]


def _hidden(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in PurePosixPath(name).parts)


class Digested(io.RawIOBase):
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, into: Any) -> int:
        piece = self.file.read(len(into))
        into[: len(piece)] = piece
        self.digest.update(piece)
        return len(piece)


def buffered(file: Any) -> BinaryIO:
    """In pieces that suit a file far away, too."""
    return io.BufferedReader(file, PIECE)  # type: ignore[return-value]


def _surveyed(place: Place, name: str, kind: str) -> File:
    with place.open(name) as raw:
        seen = Digested(raw)
        file, rows = buffered(seen), 0
        if kind == "parquet":
            rows = _parquet(raw, place, name).metadata.num_rows
            raw.seek(0)
        else:
            rows = sum(1 for _ in (_lines if kind == "jsonl" else _csv)(place, name, file))
        while file.read(PIECE):
            pass  # what no row is made of is part of the file's bytes too
        return File(name, rows, seen.digest.hexdigest())


def _parquet(file: Any, place: Place, name: str) -> Any:
    try:
        return arrow("pyarrow.parquet").ParquetFile(file)
    except (OSError, ValueError) as error:
        told = f"{place}/{name}" if name else str(place)
        raise DataError(f"{told}: not a readable parquet file ({first_line(error)})") from None


def _lines(place: Place, name: str, file: BinaryIO | None = None) -> Iterator[bytes]:
    """A text file's lines, unpacked; of one that is open already where it is given."""
    if file is None:
        with place.open(name) as raw:
            yield from _lines(place, name, buffered(raw))
        return
    packed = (name or place.base).lower().endswith(".gz")
    try:
        with gzip.open(file) if packed else nullcontext(file) as unpacked:
            yield from unpacked
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name or place}: {first_line(error)}") from None


def _csv(place: Place, name: str, file: BinaryIO | None = None) -> Iterator[Row | DataError]:
    """A CSV file's records under their header's names."""
    told, lines = name or str(place), _lines(place, name, file)
    texts = (line.decode("utf-8-sig", errors="surrogateescape") for line in lines)
    try:
        reader = csv.reader(texts)
        header = next(reader, None)
        if header is None or len(set(header)) < len(header):
            raise DataError(f"{told}: expected a header whose names are all different")
        for record in reader:
            if len(record) != len(header):
                yield DataError(f"{len(record)} fields, {len(header)} in the header")
            else:
                yield dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise DataError(f"{told}: {error}") from None


class Reader:
    """See the module's docstring; who reads on from where it stopped does not begin anew."""

    def __init__(self, place: Place, kind: str, files: Sequence[File]) -> None:
        self.place, self.kind, self.files = place, kind, files
        self._at: tuple[str, int] = ("", -1)  # what `_rest` gives next
        self._rest: Iterator[Any] = iter(())  # lines or records, unread: most are others' rows
        self._group: tuple[tuple[str, int], Any] = (("", -1), None)  # the row group that is held

    def rows(self, first: int, count: int) -> Iterator[Row | DataError]:
        """The rows from `first` on, in order."""
        start = 0
        for file in self.files:
            begin, end = max(first, start), min(first + count, start + file.rows)
            if begin < end:
                yield from self._of(file, begin - start, end - begin)
            start += file.rows

    def types(self) -> dict[str, Any]:
        """Arrow's types of a parquet source's columns, by the first file."""
        if self.kind != "parquet":
            return {}
        with self.place.open(self.files[0].name) as raw:
            schema = _parquet(raw, self.place, self.files[0].name).schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))

    def _of(self, file: File, first: int, count: int) -> Iterator[Row | DataError]:
        if self.kind == "parquet":
            yield from map(table_row, self._slices(file, first, count))
            return
        if self._at[0] != file.name or not 0 <= self._at[1] <= first:
            read = _lines if self.kind == "jsonl" else _csv
            self._rest, self._at = read(self.place, file.name), (file.name, 0)
        skip = first - self._at[1]
        got = list(islice(self._rest, skip, skip + count))
        self._at = (file.name, first + len(got))
        if len(got) < count:
            raise DataError(f"{file.name or self.place}: has fewer rows than it had")
        yield from map(_object if self.kind == "jsonl" else _record, got)

    def _slices(self, file: File, first: int, count: int) -> Iterator[Row]:
        """Rows of a parquet file; the group that they stand in is read once."""
        with self.place.open(file.name) as raw:
            opened, start = _parquet(raw, self.place, file.name), 0
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                begin, end = max(first, start), min(first + count, start + rows)
                if begin < end:
                    if self._group[0] != (file.name, number):
                        self._group = ((file.name, number), opened.read_row_group(number))
                    yield from self._group[1].slice(begin - start, end - begin).to_pylist()
                start += rows


def _object(line: bytes) -> Row | DataError:
    try:
        value = strict_json.loads(line)
    except DataError as error:
        return error
    return value if isinstance(value, dict) else DataError("expected a JSON object")


def _record(cells: Row | DataError) -> Row | DataError:
    """CSV: an empty cell is nothing, and what is no text is JSON."""
    return cells if isinstance(cells, DataError) else table_row(_typed(cells))


def _typed(cells: Row) -> Row | DataError:
    """CSV cells with the types that a request's fields have."""
    row: Row = {}
    for name, text in cells.items():
        if not text.strip():
            continue
        if not text.isascii() and UNREADABLE.search(text):
            return DataError(f"{name}: not UTF-8")
        known = name in KEYS and name not in ("history", "candidates", *USER)
        row[name] = text
        if known:
            try:
                row[name] = strict_json.loads(text.encode())
            except (DataError, UnicodeEncodeError):
                return DataError(f"{name}: expected JSON, not {text[:40]!r}")
    return row


def table_row(row: Row | DataError) -> Row | DataError:
    """A table's row as JSON has it: nothing is left out, ids are text, lists are lists."""
    if isinstance(row, DataError):
        return row
    found = {name: _bare(value) for name, value in row.items() if value is not None}
    for name in ("history", "candidates"):
        value = found.get(name)
        if isinstance(value, list):
            found[name] = [str(one) if type(one) is int else one for one in value]
        elif isinstance(value, str):
            try:
                found[name] = list(history_of(value, name) or ())
            except BadLine as error:
                return DataError(str(error))
    for name in USER:
        if isinstance(found.get(name), int):
            found[name] = str(found[name])
    return found


def _bare(value: Any) -> Any:
    """Without what a struct's column says of other rows only."""
    if isinstance(value, dict):
        return {name: _bare(part) for name, part in value.items() if part is not None}
    return [_bare(part) for part in value] if isinstance(value, list) else plain(value)


def carried(place: Place, kind: str, files: Sequence[File]) -> list[str]:
    """The columns of a table that are no part of a request, by the first file."""
    if kind == "jsonl":
        return []  # an object is a request as a whole
    name = files[0].name
    if kind == "parquet":
        with place.open(name) as raw:
            columns = _parquet(raw, place, name).schema_arrow.names
    else:
        columns = next(csv.reader([next(_lines(place, name), b"").decode("utf-8-sig")]), [])
    if "candidates" not in columns:
        raise DataError(f"{name or place}: the column candidates is missing")
    return [column for column in columns if column not in KEYS]
