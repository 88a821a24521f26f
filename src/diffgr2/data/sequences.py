"""RecBole's atomic files and the sequence files of S3-Rec, P5 and TIGER.

    RecBole  NAME.inter `user_id:token<TAB>item_id:token[<TAB>timestamp:float ...]`, NAME.item
    P5       sequential_data.txt `user item item ...`, one user per line, oldest first; beside it
             may lie datamaps.json (`item2id`, `user2id`), and metadata as in the Amazon set of 2014

Contract: as in `data.amazon`. A sequence file has no clock: its order is the history. Not here:
RecBole's pre-split benchmark files, whose rows are prefixes and not interactions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from diffgr2.data.gather import RowGatherer
from diffgr2.data.lines import BadLine, Intake, each, json_object, read_header, read_lines
from diffgr2.data.split import ItemText, RawData
from diffgr2.data.values import identifier, item_text, milliseconds_of_text
from diffgr2.errors import DataError

FIELD_TYPES = ("token", "token_seq", "float", "float_seq")

ITEM_FIELDS = {
    "title": ("title", "item_title", "item_name", "movie_title", "name"),
    "brand": ("brand", "store"),
    "categories": ("categories", "category", "genre", "class"),
    "price": ("price",),
    "description": ("description",),
}

DATAMAPS = "datamaps.json"


def _atomic(path: Path, intake: Intake) -> tuple[dict[str, int], dict[str, str], Iterator]:
    """Column places, column types and the rows of an atomic file."""
    lines = read_lines(path, intake)
    header = read_header(lines, intake, lambda text: text.split("\t"))
    places: dict[str, int] = {}
    types: dict[str, str] = {}
    for place, field in enumerate(header):
        name, colon, kind = field.partition(":")
        if not colon or not name or kind not in FIELD_TYPES:
            raise DataError(
                f"{intake.name}: line 1: {field[:80]!r} is not name:type "
                f"(types: {', '.join(FIELD_TYPES)})"
            )
        if name in places:
            raise DataError(f"{intake.name}: line 1: column {name!r} stands twice")
        places[name], types[name] = place, kind

    def parse(text: str) -> list[str]:
        fields = text.split("\t")
        if len(fields) != len(header):
            raise BadLine(f"{len(fields)} fields, expected {len(header)}")
        return fields

    return places, types, each(lines, intake, lambda text: (text, parse(text)))


def read_recbole(path: Path, intake: Intake) -> RawData:
    """Interactions of an .inter file."""
    places, types, records = _atomic(path, intake)
    if "item_id_list" in places:
        raise DataError(
            f"{intake.name}: line 1: item_id_list marks a split file; "
            "the .inter file with one interaction per line is needed"
        )
    for name, kind in (("user_id", "token"), ("item_id", "token"), ("timestamp", "float")):
        if name not in places and name != "timestamp":
            raise DataError(f"{intake.name}: line 1: column {name}:{kind} is missing")
        if types.get(name, kind) != kind:
            raise DataError(f"{intake.name}: line 1: {name} is {types[name]}, expected {kind}")
    user_at, item_at, time_at = places["user_id"], places["item_id"], places.get("timestamp")
    rows = RowGatherer()
    for number, (text, fields) in records:
        try:
            time_ms = 0
            if time_at is not None:
                time_ms = milliseconds_of_text(fields[time_at], "timestamp")
            rows.add(
                identifier(fields[user_at], "user_id"),
                identifier(fields[item_at], "item_id"),
                time_ms,
            )
        except BadLine as bad:
            intake.reject(number, str(bad), text)
    intake.finish()
    return rows.finish(intake.name, timed=time_at is not None)


def read_recbole_texts(path: Path, intake: Intake, wanted: Collection[str]) -> dict[str, ItemText]:
    """Metadata of an .item file."""
    places, types, records = _atomic(path, intake)
    if "item_id" not in places:
        raise DataError(f"{intake.name}: line 1: column item_id:token is missing")
    names = {
        word: next(field for field in fields if field in places)
        for word, fields in ITEM_FIELDS.items()
        if any(field in places for field in fields)
    }
    texts: dict[str, ItemText] = {}
    for number, (text, fields) in records:
        record: dict[str, object] = {name: fields[place] for name, place in places.items()}
        kind = names.get("categories", "")
        if types.get(kind) == "token_seq":
            record[kind] = _sequence(fields[places[kind]])
        try:
            item = identifier(record["item_id"], "item_id")
            if item in wanted:
                texts.setdefault(item, item_text(record, names))
        except BadLine as bad:
            intake.reject(number, str(bad), text)
    intake.finish()
    return texts


def _sequence(cell: str) -> list[str]:
    """Parts of a token_seq: quoted and comma-separated, or separated by spaces."""
    if "'" in cell and "," in cell:
        return [part.strip().strip("'\"") for part in cell.split(",")]
    return [part.strip("'\"") for part in cell.split()]


def read_p5(path: Path, intake: Intake) -> RawData:
    """Interactions of a sequence file."""
    rows = RowGatherer()

    def parse(text: str) -> tuple[str, list[str]]:
        user, *items = (identifier(word, "id") for word in text.split(" ") if word)
        if not items:
            raise BadLine("a user without items")
        if user in rows.users:
            raise BadLine(f"user {user[:80]} stands twice")
        return user, items

    for _, (user, items) in each(read_lines(path, intake), intake, parse):
        for item in items:
            rows.add(user, item)
    intake.finish()
    return rows.finish(intake.name, timed=False)


def datamaps_beside(interactions: Path) -> Path | None:
    """datamaps.json in the folder of a sequence file, if there is one."""
    path = interactions.parent / DATAMAPS
    return path if path.is_file() else None


def read_datamaps(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(number -> raw user id, number -> raw item id)."""
    try:
        value = json_object(path.read_text(encoding="utf-8"))
    except BadLine as bad:
        raise DataError(f"{path.name}: {bad}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path.name}: not valid UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    maps = []
    for key in ("user2id", "item2id"):
        entries = value.get(key, {})
        if not isinstance(entries, dict):
            raise DataError(f"{path.name}: {key} is not a map")
        inverse: dict[str, str] = {}
        for raw, number in entries.items():
            try:
                name = identifier(raw, f"{key} name")
                inverse[identifier(number, f"{key} number", numbers=True)] = name
            except BadLine as bad:
                raise DataError(f"{path.name}: {key}: {bad}") from None
        maps.append(inverse)
    return maps[0], maps[1]
