"""Files of records with named fields: csv, tsv, parquet, JSON lines, RecBole's atomic files.

    columns: {user: user_id, item: item_id, timestamp: ts}
    item_columns: {item: sku, title: name}     # where the item file has names of its own

Contract: a `Source` maps our words to a file's names for them; a word that is not mapped is looked
up under its own name. `user` and `item` must be found in the interactions and `item` in the item
file; `timestamp` (seconds, milliseconds, ISO text or a parquet date) and `position` (whole numbers)
order the interactions and may be absent. The readers stream, reject malformed lines into the
intake and hold nothing but ids, integers and the text of wanted items; lines about other items
are not checked. RecBole's atomic files (NAME.inter, NAME.item) are tab-separated and unquoted under
a header of name:type; their names for our words are known. Not here: joins or expressions (prepare
such a file beforehand), RecBole's pre-split benchmark files, whose lines are prefixes and not
interactions, and repeats, filters and order (`data.split`).
"""

import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from diffgr2.config import TEXT_WORDS
from diffgr2.data.categories import read_paths, told
from diffgr2.data.gather import Gatherer, ItemText, RawData
from diffgr2.data.lines import (
    BadLine,
    Intake,
    csv_fields,
    csv_records,
    each,
    json_object,
    python_dict,
    read_header,
    read_lines,
)
from diffgr2.data.values import (
    category_path,
    identifier,
    item_text,
    milliseconds,
    whole_number,
)
from diffgr2.errors import ConfigError, DataError, first_line

ATOMIC_TYPES = ("token", "token_seq", "float", "float_seq")
ATOMIC = {  # our word -> what an atomic file may call it, and the type it must have
    "user": (("user_id",), "token"),
    "item": (("item_id",), "token"),
    "timestamp": (("timestamp",), "float"),
    "title": (("title", "item_title", "item_name", "movie_title", "name"), None),
    "brand": (("brand", "store"), None),
    "categories": (("categories", "category", "genre", "class"), None),
    "price": (("price",), None),
    "description": (("description",), None),
}

INTERACTION = ("user", "item", "timestamp", "position")
Names = dict[str, str]  # our word -> the file's name for it
Records = Iterator[tuple[int, str, Mapping[str, Any]]]  # number, text, values by the file's names


@dataclass(frozen=True)
class Source:
    """How a file is to be read."""

    kind: str  # csv, tsv, parquet, jsonl, dicts (Amazon metadata) or atomic (RecBole)
    columns: Mapping[str, str]  # our word -> the file's name for it
    unit: str = "auto"  # of times that are numbers: s, ms, or auto
    typed: bool = False  # ids must be text and times numbers, as in the publisher's own JSON
    own: Collection[str] = ()  # words that the recipe says of the item file alone
    separator: str | None = None  # between the parts of a category path; None = by what is there
    items: bool = False  # a table of items, which may have names of its own
    once: bool = False  # without a clock, a line that stood before says nothing new


def read_interactions(path: Path, source: Source, intake: Intake) -> RawData:
    """Interactions of a file."""
    if source.kind == "parquet":
        from diffgr2.data import bulk  # late: it needs polars, text files do not

        def one(names: Names, record: Mapping[str, Any]) -> tuple[str, str, int, int | None]:
            return interaction_of(names, record, source)

        find = finder(source, INTERACTION, intake)
        return bulk.interactions(path, find, source.unit, source.once, one, intake)
    gatherer, timed = gathered(path, source, intake)
    return gatherer.finish(intake.name, timed=timed)


def gathered(path: Path, source: Source, intake: Intake) -> tuple[Gatherer, bool]:
    """The same before any table is made of them, and whether they have times."""
    names, records = _open(path, source, INTERACTION, intake)
    gatherer, timed = Gatherer(), "timestamp" in names
    once, lines = source.once and not timed, set[int]()
    for number, text, record in records:
        before = len(lines)
        if once:
            lines.add(hash(text or repr(record)))
        try:
            again = once and len(lines) == before
            gatherer.add(*interaction_of(names, record, source), again)
        except BadLine as bad:
            intake.reject(number, bad, text or repr(record))
    intake.finish()
    return gatherer, timed


def interaction_of(
    names: Names, record: Mapping[str, Any], source: Source
) -> tuple[str, str, int, int | None]:
    """(user, item, milliseconds, position) of a record; a BadLine says what is wrong with it."""
    user, item = names["user"], names["item"]
    time, place, numbers = names.get("timestamp"), names.get("position"), not source.typed
    return (
        identifier(record.get(user), user, numbers=numbers),
        identifier(record.get(item), item, numbers=numbers),
        milliseconds(record.get(time), time, source.unit, text=numbers) if time else 0,
        whole_number(record.get(place), place) if place else None,
    )


def read_texts(
    path: Path, source: Source, intake: Intake, wanted: Collection[str]
) -> dict[str, ItemText]:
    """Metadata of the wanted items; the first record of an item counts."""
    names, records = _open(path, source, ("item", *TEXT_WORDS), intake, wanted)
    intake.told = [word for word in TEXT_WORDS if word in names]
    texts: dict[str, ItemText] = {}
    spelled: dict[str, str] = {}  # categories that are one text each
    column = names.pop("categories", "")
    for number, text, record in records:
        try:
            item = identifier(record.get(names["item"]), names["item"], numbers=not source.typed)
            if item in wanted and item not in texts:
                whole = record.get(column) if column else None
                parts = () if isinstance(whole, str) else category_path(whole, column)
                texts[item] = item_text(record, names, parts)
                if isinstance(whole, str):
                    spelled[item] = whole
        except BadLine as bad:
            intake.reject(number, bad, text or repr(record))
    intake.finish()
    if any(spelled.values()):
        paths = read_paths(spelled, source.separator)
        intake.paths = told(paths)
        for item, names_of in paths.of.items():
            texts[item] = replace(texts[item], categories=category_path(names_of, column))
    return texts


def _open(
    path: Path, source: Source, words: Collection[str], intake: Intake, wanted: Collection[str] = ()
) -> tuple[Names, Records]:
    """The file's names for those of our words that it has, and its records."""
    if source.kind == "dicts":
        lines = read_lines(path, intake)
        return {**source.columns}, _dicts(lines, source.columns["item"], wanted, intake)
    if source.kind == "atomic":
        return _atomic(read_lines(path, intake), words, intake)
    assumed = {"user", "item", *source.columns.values()}
    find = finder(source, words, intake)
    return open_table(path, source.kind, find, intake, assumed, whole=source.once)


def finder(
    source: Source, words: Collection[str], intake: Intake
) -> Callable[[Collection[str]], Names]:
    """Looks up a table's names for our words among its columns."""

    def find(known: Collection[str]) -> Names:
        names: Names = {}
        for word in words:
            name = source.columns.get(word, word)
            if name in known:
                names[word] = name
            elif word in source.columns or word in ("user", "item"):
                shown = ", ".join(sorted(known)[:20])
                key = "item_columns" if word in source.own else "columns"
                more = "; item_columns say its own names" if source.items else ""
                raise DataError(
                    f"{intake.name}: {key}.{word}: no column {name!r} (it has: {shown}{more})"
                )
        return names

    return find


def kind_of_table(path: Path) -> str:
    """csv, tsv, jsonl or parquet, by the file's name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in (".csv", ".tsv", ".parquet", ".jsonl"):
        raise DataError(
            f"{path.name}: unknown kind of table "
            "(expected .csv, .tsv, .jsonl, each also with .gz, or .parquet)"
        )
    return suffix[1:]


def open_table(
    path: Path,
    kind: str,
    find: Callable[[Collection[str]], Names],
    intake: Intake,
    assumed: Collection[str] = (),
    *,
    whole: bool = False,
) -> tuple[Names, Records]:
    """The names that `find` makes of a table's columns, and its records.

    JSON lines have no header: the first usable one says which columns there are, besides `assumed`.
    `whole`: without a clock, lines are compared with all their columns.
    """
    if kind == "parquet":
        return _parquet(path, find, intake, whole=whole)
    lines = read_lines(path, intake)
    if kind == "jsonl":
        parsed = each(lines, intake, json_object)
        first = next(parsed, None)
        if first is None:
            intake.finish()
            raise DataError(f"{intake.name}: no line can be used; first: {intake.first[0]}")
        return find({*assumed, *first[2]}), chain([first], parsed)
    header, records = separated(lines, kind, intake)
    return find(header), records


def separated(
    lines: Iterator[tuple[int, str]], kind: str, intake: Intake
) -> tuple[list[str], Records]:
    """The header of a csv or tsv file's lines, and its records."""
    delimiter = "," if kind == "csv" else "\t"
    header = read_header(lines, intake, lambda text: csv_fields([text], delimiter))
    others = [sign for sign in ";|\t," if sign != delimiter and sign in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{intake.name}: line 1: one column only, with {others[0]!r} in its name; "
            f".{kind} is separated by {'commas' if kind == 'csv' else 'tabs'}"
        )
    return header, cells(csv_records(lines, intake, delimiter), header, intake)


def cells(
    rows: Iterator[tuple[int, str, list[str]]], header: Collection[str], intake: Intake
) -> Records:
    """Rows of cells as records."""
    for number, text, row in rows:
        if len(row) == len(header):
            yield number, text, dict(zip(header, row, strict=True))
        else:
            intake.reject(number, f"{len(row)} fields, expected {len(header)}", text)


def _atomic(
    lines: Iterator[tuple[int, str]], words: Collection[str], intake: Intake
) -> tuple[Names, Records]:
    types: dict[str, str] = {}
    file = f"{intake.name}: line 1"
    for field in read_header(lines, intake, lambda text: text.split("\t")):
        name, _, kind = field.partition(":")
        if not name or kind not in ATOMIC_TYPES:
            known = ", ".join(ATOMIC_TYPES)
            raise DataError(f"{file}: {field[:80]!r} is not name:type (types: {known})")
        if name in types:
            raise DataError(f"{file}: column {name!r} stands twice")
        types[name] = kind
    if "user" in words and "item_id_list" in types:
        raise DataError(
            f"{file}: item_id_list marks a split file; "
            "the .inter file with one interaction per line is needed"
        )
    names: Names = {}
    for word in words:
        fields, kind = ATOMIC.get(word, ((), None))
        name = next((field for field in fields if field in types), None)
        if name is None and word in ("user", "item"):
            raise DataError(f"{file}: column {fields[0]}:{kind} is missing")
        if name is not None:
            if kind and types[name] != kind:
                raise DataError(f"{file}: {name} is {types[name]}, expected {kind}")
            names[word] = name
    records = cells(((n, text, text.split("\t")) for n, text in lines), types, intake)
    path = names.get("categories")
    if path and types[path] == "token_seq":
        records = ((n, text, {**row, path: _parts(row[path])}) for n, text, row in records)
    return names, records


def _parts(cell: str) -> list[str]:
    """Of a token_seq: quoted and comma-separated, or separated by spaces."""
    if "'" in cell and "," in cell:
        return [part.strip().strip("'\"") for part in cell.split(",")]
    return [part.strip("'\"") for part in cell.split()]


_FIRST_VALUE = re.compile(r"""\{\s*['"](\w+)['"]\s*:\s*['"]([^'"\\]{1,64})['"]""")


def _dicts(
    lines: Iterator[tuple[int, str]], key: str, wanted: Collection[str], intake: Intake
) -> Records:
    """The Amazon sets' metadata: JSON or Python-dict lines.

    It holds many times more items than the reviews; most lines name theirs first and need not be
    parsed (and so are not checked either).
    """

    def needed(text: str) -> bool:
        start = _FIRST_VALUE.match(text)
        return not start or start[1] != key or start[2] in wanted

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd escapes in Python-dict lines are harmless
        yield from each((line for line in lines if needed(line[1])), intake, python_dict)


def guarded(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives of a parquet file; whatever it fails of is one line about the file."""
    import polars as pl

    try:
        return read()
    except (ConfigError, DataError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        # The reader of a foreign binary file can fail in any way; all of them mean the same here.
        reason = first_line(error)
        raise DataError(f"{path.name}: not a readable parquet file ({reason})") from None


def _parquet(
    path: Path, find: Callable[[Collection[str]], Names], intake: Intake, *, whole: bool
) -> tuple[Names, Records]:
    """A table's rows, which count as lines from 1; with all columns where lines are compared."""
    import polars as pl  # late: text files are read without

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    names = find(guarded(path, lambda: list(pl.read_parquet_schema(path))))
    needed = None if whole and "timestamp" not in names else list(dict.fromkeys(names.values()))
    table = guarded(path, lambda: pl.read_parquet(path, columns=needed))
    intake.lines = len(table)
    return names, ((n, "", row) for n, row in enumerate(table.iter_rows(named=True), 1))
