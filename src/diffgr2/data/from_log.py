"""From a server's logs to a shop's own lists: impressions joined with what came of them.

    diffgr2 data lists-from-log traffic --out lists.parquet

Contract: `lists_from_log(directory, out)` writes one row per candidate of every impression, under
the names that a recipe's `lists` reads by itself: `list`, `user`, `moment`, `history`, `item`,
`place` (in the order in which the list came: the floor), `score` (that came with it); `shown`, the
place at which it was returned (null: it was not), from which position bias can be corrected
(`candidates.propensity`); `click`, `cart`, `purchase` and every other event as 0 or 1, null where
the item was not returned and nothing came; and the features, a column each. An event that is called
like a feature has the column `event_…`: the feature is what a model knows by that name. What cannot
be joined is counted by its reason, nothing else is dropped. Both logs are streamed, twice; memory
holds ids and events. The output appears whole or not at all. Not here: which lists train
(`own_lists`).
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffgr2.artifacts import replacing
from diffgr2.data.traffic import EVENT, EVENTS, FEEDBACK, IMPRESSIONS, TAKEN, entries_of
from diffgr2.errors import DataError

SUFFIXES = (".parquet", ".jsonl", ".csv")
WORDS = ("list", "user", "moment", "history", "item", "place", "score", "shown")

Events = dict[str, set[str]]  # item -> what came of it


@dataclass
class Joined:
    """What was made of the logs."""

    lists: int = 0
    rows: int = 0
    nobodys: int = 0  # lists without a user
    events: Counter[str] = field(default_factory=Counter)  # joined, by their names
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    features: dict[str, str] = field(default_factory=dict)  # feature -> its column
    outcomes: dict[str, str] = field(default_factory=dict)  # event -> its column


def lists_from_log(directory: Path, out: Path, *, history: bool = True) -> Joined:
    """See the module's docstring."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    if out.suffix not in SUFFIXES:
        raise DataError(f"{out}: expected a name that ends in {', '.join(SUFFIXES)}")
    made = Joined()
    came, words = _events(directory, made.skipped)
    last, kinds = _surveyed(directory, made.skipped)
    if not last:
        raise DataError(f"{directory}: holds no impressions (see serve --log-dir)")
    made.outcomes = _outcomes(words, kinds)
    outcomes = list(made.outcomes.values())
    made.features = {n: f"feature_{n}" if n in (*WORDS, *EVENTS) else n for n in kinds}
    columns = [word for word in WORDS if history or word != "history"]
    types = {**dict.fromkeys(outcomes, "flag")}
    types |= {made.features[name]: kind for name, kind in kinds.items()}
    rows = _rows(directory, last, came, kinds, made)
    _write(out, [*columns, *types], types, rows)
    left = sum(len(events) for items in came.values() for events in items.values())
    made.skipped["feedback: no impression of its request"] += left
    made.skipped = +made.skipped
    return made


def _outcomes(words: set[str], features: Collection[str]) -> dict[str, str]:
    """Each event's column; none but those that every list has takes a feature's name."""
    found = dict.fromkeys(EVENTS, "") | dict.fromkeys(sorted(words), "")
    taken = {*WORDS, *features, *found, *(f"feature_{name}" for name in features)}
    for event in found:
        column = event
        while column not in EVENTS and column in taken - ({event} - {*features}):
            column = f"event_{column}"
        found[event] = column
        taken.add(column)
    return found


def _events(directory: Path, skipped: Counter[str]) -> tuple[dict[str, Events], set[str]]:
    """What came of which request's items, each event once; and the names of events."""
    came: dict[str, Events] = {}
    words: set[str] = set()
    for entry in entries_of(directory, FEEDBACK, skipped):
        named = [entry.get(name) for name in ("id", "item", "event")]
        request, item, event = named if all(isinstance(one, str) for one in named) else [None] * 3
        if request is None or item is None or event is None or not EVENT.fullmatch(event):
            skipped["feedback: malformed"] += 1
        elif event in TAKEN:
            skipped["feedback: an event that is called like a column"] += 1
        elif event in (events := came.setdefault(request, {}).setdefault(item, set())):
            skipped["feedback: a second time"] += 1
        else:
            events.add(event)
            words.add(event)
    return came, words


def whole(entry: Mapping[str, Any]) -> bool:
    """Whether an impression can be read."""
    items, order, moment = entry.get("items"), entry.get("order"), entry.get("time")
    if not isinstance(entry.get("id"), str) or not isinstance(items, list):
        return False
    if not isinstance(order, list) or not all(type(at) is int for at in order):
        return False
    if not isinstance(moment, int | float) or not 0 <= moment < 1e11:
        return False
    places = range(len(items))
    if not all(at in places for at in order) or len({*order}) != len(order):
        return False
    beside = (entry.get(name) for name in ("given", "features"))
    lists = (isinstance(one, list) and len(one) == len(items) for one in beside if one is not None)
    return all(lists) and isinstance(entry.get("history"), list | None)


def _surveyed(directory: Path, skipped: Counter[str]) -> tuple[dict[str, int], dict[str, str]]:
    """Of each request the number of its last impression; and what each feature's values are."""
    last: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for number, entry in enumerate(entries_of(directory, IMPRESSIONS, skipped)):
        if not whole(entry):
            skipped["impressions: malformed"] += 1
            continue
        if entry["id"] in last:  # asked again under the same id: the last answer was seen
            skipped["impressions: asked again later"] += 1
        last[entry["id"]] = number
        for values in entry.get("features") or ():
            for name, value in values.items() if isinstance(values, dict) else ():
                kind = kind_of(value)
                if kind and kinds.setdefault(name, kind) != kind:
                    both = {kinds[name], kind}
                    kinds[name] = "number" if both == {"number", "flag"} else "text"
    return last, kinds


def kind_of(value: Any) -> str:
    """What a feature's value is; "" where it is missing."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number" if math.isfinite(value) else ""
    return "text" if isinstance(value, str) else ""


def _rows(
    directory: Path,
    last: Mapping[str, int],
    came: dict[str, Events],
    kinds: Mapping[str, str],
    made: Joined,
) -> Iterator[dict[str, Any]]:
    """A row per candidate; what was joined leaves `came`."""
    for number, entry in enumerate(entries_of(directory, IMPRESSIONS, Counter())):
        if not whole(entry) or last[entry["id"]] != number:
            continue
        events, found = came.pop(entry["id"], {}), 0
        shown = {at: place for place, at in enumerate(entry["order"], 1)}
        seen, nothing = set[str](), [None] * len(entry["items"])
        for at, item in enumerate(entry["items"]):
            if not isinstance(item, str) or item in seen:
                twice = isinstance(item, str)
                made.skipped[f"candidates: {'twice in a list' if twice else 'without an id'}"] += 1
                continue
            seen.add(item)
            happened = events.pop(item, set())
            made.events.update(happened)
            features = (entry.get("features") or nothing)[at]
            features = features if isinstance(features, dict) else {}
            yield {
                "list": entry["id"],
                "user": entry["user"] if isinstance(entry.get("user"), str) else None,
                "moment": clock(entry["time"]),
                "history": [one for one in entry.get("history") or () if isinstance(one, str)],
                "item": item,
                "place": at + 1,
                "score": _as((entry.get("given") or nothing)[at], "number"),
                "shown": shown.get(at),
                **{
                    column: int(event in happened) if at in shown or happened else None
                    for event, column in made.outcomes.items()
                },
                **{made.features[name]: _as(features.get(name), kinds[name]) for name in kinds},
            }
            found += 1
        made.lists += found > 0
        made.nobodys += found > 0 and not isinstance(entry.get("user"), str)
        made.rows += found
        lost = sum(len(one) for one in events.values())
        made.skipped["feedback: an item that was not in its list"] += lost


def _as(value: Any, kind: str) -> Any:
    """A feature's value as its column holds it."""
    if not kind_of(value) or (kind == "number" and isinstance(value, str)):
        return None
    if kind == "text" and not isinstance(value, str):
        return json.dumps(value)
    return float(value) if kind == "number" else value


def clock(seconds: float) -> str:
    """A moment as ISO text, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


# ------------------------------------------------------------------------------------- writing


def _write(
    out: Path, columns: list[str], types: Mapping[str, str], rows: Iterator[dict[str, Any]]
) -> None:
    """One file, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        if out.suffix == ".csv":
            _write_csv(temporary, columns, rows)
        elif out.suffix == ".jsonl":
            _write_lines(temporary, columns, rows)
        else:
            _write_parquet(temporary, columns, types, rows)


def _write_lines(path: Path, columns: list[str], rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({name: row[name] for name in columns}) + "\n")


def _write_csv(path: Path, columns: list[str], rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            cells = [row[name] for name in columns]
            writer.writerow([json.dumps(c) if isinstance(c, list) else c for c in cells])


def _write_parquet(
    path: Path, columns: list[str], types: Mapping[str, str], rows: Iterator[dict[str, Any]]
) -> None:
    """By way of JSON lines, which polars streams."""
    import polars as pl

    text, number = pl.String, pl.Float64
    known: dict[str, Any] = dict.fromkeys(("list", "user", "moment", "item"), text)
    known |= {"history": pl.List(text), "place": pl.Int64, "shown": pl.Int64, "score": number}
    made = {"flag": pl.Int64, "number": number, "text": text}
    schema = {name: known.get(name) or made[types[name]] for name in columns}
    lines = path.with_name(f"{path.name}.lines")
    try:
        flags = [name for name, kind in types.items() if kind == "flag"]
        _write_lines(lines, columns, ({**row, **_numbers(row, flags)} for row in rows))
        small = pl.col(flags).cast(pl.Int8)
        pl.scan_ndjson(lines, schema=schema).with_columns(small).sink_parquet(path)
    finally:
        lines.unlink(missing_ok=True)


def _numbers(row: Mapping[str, Any], flags: list[str]) -> dict[str, int | None]:
    return {name: None if row[name] is None else int(row[name]) for name in flags}
