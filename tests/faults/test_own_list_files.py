"""Malformed files of lists, and malformed values in them: one clear line each."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from diffgr2.data.own_lists import import_own
from diffgr2.errors import ConfigError, DataError, Diffgr2Error
from diffgr2.recipe import validate

HEAD = "list,user,moment,item,place,score,bought,price,kind,stock\n"
GOOD = (
    "r1,u,100000050,a,1,.9,0,1,new,yes\n"
    "r1,u,100000050,b,2,.8,1,2.5,sale,no\n"
    "r2,v,100000060,a,1,.9,0,3,new,yes\n"
    "r2,v,100000060,c,2,.8,0,,plain,\n"
)
BOUGHT = "user,item,timestamp\nu,a,100000010\nv,b,100000020\n"
FEATURES = {"price": {"kind": "number"}, "kind": {}, "stock": {"kind": "flag"}}


def read(
    folder: Path, content: bytes | str, name: str = "l.csv", bought: str = BOUGHT, **more: Any
) -> list[str]:
    """The reasons for which lines were put aside; errors are raised."""
    path, log = folder / name, folder / "quarantine.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    values: dict[str, Any] = {
        "name": "x",
        "lists": {"file": str(path), "features": FEATURES, "max_bad_share": 1.0, **more},
    }
    if bought:
        (folder / "bought.csv").write_text(bought)
        values["data"] = {"source": "table", "interactions": str(folder / "bought.csv")}
    made = validate(values, "x")
    import_own(made.data, made.lists, 0, log)
    lines = log.read_text().splitlines() if log.exists() else []
    return [f"line {entry['line']}: {entry['reason']}" for entry in map(json.loads, lines)]


def test_the_good_file_is_good(tmp_path: Path) -> None:
    assert read(tmp_path, HEAD + GOOD) == []


def line(**cells: str) -> str:
    """A third candidate of the list r2 with these cells."""
    usual = {"list": "r2", "user": "v", "moment": "100000060", "item": "d", "place": "3"}
    usual |= {"score": ".7", "bought": "0", "price": "9", "kind": "new", "stock": "yes"}
    return ",".join((usual | cells)[name] for name in HEAD.strip().split(",")) + "\n"


LONG = "x" * 300
VALUES = [  # cells, what is said of line 6
    ({"list": ""}, "list is empty"),
    ({"list": LONG}, "list is longer than 256 characters"),
    ({"list": "a\x07b"}, "list holds unprintable characters"),
    ({"item": ""}, "item is empty"),
    ({"item": LONG}, "item is longer than 256 characters"),
    ({"user": LONG}, "user is longer than 256 characters"),
    ({"place": ""}, "place is missing"),
    ({"place": "three"}, "place is not a number ('three')"),
    ({"place": "-1"}, "place is not a whole number from 0 (-1)"),
    ({"place": "2.5"}, "place is not a whole number from 0 (2.5)"),
    ({"place": "inf"}, "place is not a finite number (inf)"),
    ({"place": "1e30"}, "place is not a whole number from 0 (1e30)"),
    ({"score": "high"}, "score is not a number ('high')"),
    ({"score": "inf"}, "score is not a finite number (inf)"),
    ({"score": "1e39"}, "score is not a finite number (1e39)"),
    ({"score": "1_000"}, "score is not a number ('1_000')"),
    ({"moment": "soon"}, "moment is neither a number nor an ISO date"),
    ({"moment": "-5"}, "moment is negative (-5)"),
    ({"moment": "inf"}, "moment is neither a number nor an ISO date"),
    ({"moment": "9e18"}, "moment is beyond the year 9999"),
    ({"moment": "2026-13-01"}, "moment is neither a number nor an ISO date"),
    ({"bought": "maybe"}, "bought is not a number ('maybe')"),
    ({"bought": "-1"}, "bought is negative (-1)"),
    ({"bought": "inf"}, "bought is not a finite number (inf)"),
    ({"price": "cheap"}, "price is not a number ('cheap'): taken as missing"),
    ({"price": "inf"}, "price is not a finite number (inf): taken as missing"),
    ({"price": "1e50"}, "price is not a finite number (1e50): taken as missing"),
    ({"price": "1,5"}, "11 fields, expected 10"),
    ({"stock": "perhaps"}, "stock is neither true nor false (perhaps): taken as missing"),
    ({"stock": "2"}, "stock is neither true nor false (2): taken as missing"),
    ({"kind": "k" * 200}, "kind is longer than 100 characters: taken as missing"),
    ({"item": "a"}, "item a stands at two places in list r2"),
]


@pytest.mark.parametrize(("cells", "reason"), VALUES, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_put_aside_with_its_reason(
    tmp_path: Path, cells: dict[str, str], reason: str
) -> None:
    assert read(tmp_path, HEAD + GOOD + line(**cells)) == [f"line 6: {reason}"]


LISTS = [  # rows of a list r3, what is said of it (in line 6)
    (line(list="r3") + line(list="r3", item="e"), "list r3: two candidates at place 3"),
    (
        line(list="r3") + line(list="r3", item="e", place="4", user="w"),
        "list r3: its rows have two users",
    ),
    (
        line(list="r3") + line(list="r3", item="e", place="4", moment="100000061"),
        "list r3: its rows have two moments",
    ),
    (line(list="r3") + '"r3,v\n', "not valid CSV (quote is not closed)"),
]


@pytest.mark.parametrize(("rows", "reason"), LISTS, ids=[reason for _, reason in LISTS])
def test_a_bad_list_is_put_aside_with_its_reason(tmp_path: Path, rows: str, reason: str) -> None:
    (found,) = read(tmp_path, HEAD + GOOD + rows)
    assert found.partition(": ")[2] == reason


INLINE = "list,user,item,place,bought,history\nr1,u,a,1,0,x|y\nr1,u,b,2,1,x|y\n"
HISTORIES = [
    ('"[1, 2"', "history is not a JSON list"),
    ("[" * 2_000, "history is not a JSON list"),
    ('"[1.5]"', "history: an item is not text"),
    ('"[""a"", null]"', "history: an item is missing"),
    ('"[""a"", """"]"', "history: an item is empty"),
    ("|".join("x" * 10_001), "history has more than 10000 items"),
    (f"a|{LONG}", "history: an item is longer than 256 characters"),
]


@pytest.mark.parametrize(("cell", "reason"), HISTORIES, ids=[r for _, r in HISTORIES])
def test_a_bad_history_is_put_aside_with_its_reason(tmp_path: Path, cell: str, reason: str) -> None:
    content = INLINE + f"r1,u,c,3,0,{cell}\n"
    assert read(tmp_path, content, bought="", features=[]) == [f"line 4: {reason}"]


def test_two_histories_in_one_list_are_a_bad_list(tmp_path: Path) -> None:
    content = INLINE + "r2,u,c,3,0,a|b\nr2,u,d,4,0,a|c\n"
    (found,) = read(tmp_path, content, bought="", features=[])
    assert found == "line 4: list r2: its rows have two histories"


WIDE = "".join(f"r{n // 2},u,1e8,i{n % 2},{n},0,0,1,w{n},1\n" for n in range(10_001))
FILES: list[tuple[str, bytes | str, dict[str, Any], type[Diffgr2Error], str]] = [
    ("l.csv", "", {}, DataError, "l.csv: is empty"),
    ("l.csv", HEAD, {}, DataError, "l.csv: holds no data lines"),
    ("l.csv", "\n\n", {}, DataError, "l.csv: is empty"),
    ("l.csv", b"\xff\xfe" + HEAD.encode("utf-16-le"), {}, DataError, "not a readable header"),
    ("l.csv", HEAD.replace("score", "place") + GOOD, {}, DataError, "column 'place' stands twice"),
    ("l.csv", HEAD.replace("item", "sku") + GOOD, {}, DataError, "columns.item: no column 'item'"),
    ("l.csv", HEAD.replace("list", "id") + GOOD, {}, DataError, "columns.list: no column 'list'"),
    (
        "l.csv",
        HEAD + GOOD,
        {"columns": {"user": "who"}},
        DataError,
        "columns.user: no column 'who'",
    ),
    ("l.csv", HEAD + GOOD, {"gains": {"cart": 1.0}}, DataError, "gains.cart: no column 'cart'"),
    ("l.csv", HEAD + GOOD, {"features": ["ctr"]}, DataError, "features.ctr: no column 'ctr'"),
    ("l.csv", HEAD + GOOD, {"columns": {"place2": "p"}}, ConfigError, "unknown word place2"),
    ("l.csv", HEAD + GOOD, {"gains": {"bought": 0.0}}, ConfigError, "greater than 0"),
    ("l.csv", HEAD + GOOD, {"gains": {"bought": "1"}}, ConfigError, "should be a valid number"),
    ("l.csv", HEAD + GOOD, {"features": {"price": {"kind": "text"}}}, ConfigError, "'number'"),
    ("l.csv", HEAD + GOOD + "r3,u\n", {"max_bad_share": 0.1}, DataError, "1 of 5 lines are malf"),
    ("l.csv", HEAD + "r1,u,1e8,a,1,1,0,1,x,1\n", {}, DataError, "no list of two candidates"),
    ("l.csv", HEAD + GOOD.replace("100000060", "4"), {}, DataError, "some are positions"),
    ("l.csv", HEAD + WIDE, {}, ConfigError, "10001 different words are ids and no categories"),
    ("l.txt", HEAD + GOOD, {}, DataError, "l.txt: unknown kind of table"),
    ("l.csv.gz", gzip.compress((HEAD + GOOD).encode())[:-9], {}, DataError, "cut off or corrupt"),
    ("l.parquet", HEAD + GOOD, {}, DataError, "not a readable parquet file"),
    ("l.parquet", b"", {}, DataError, "not a readable parquet file"),
    ("l.jsonl", HEAD + GOOD, {}, DataError, "no line can be used; first: line 1: not va"),
    ("l.jsonl", "[1, 2]\n", {"max_bad_share": 0.5}, DataError, "first: line 1: not a JSON object"),
    (
        "l.tsv",
        HEAD + GOOD,
        {},
        DataError,
        "one column only, with ',' in its name; .tsv is separated by tabs",
    ),
]


@pytest.mark.parametrize(
    ("name", "content", "more", "error", "message"), FILES, ids=[f"{f[0]}: {f[4]}" for f in FILES]
)
def test_a_file_that_cannot_be_used_is_one_line(
    tmp_path: Path,
    name: str,
    content: bytes | str,
    more: dict[str, Any],
    error: type[Diffgr2Error],
    message: str,
) -> None:
    with pytest.raises(error) as caught:
        read(tmp_path, content, name, **more)
    told = str(caught.value)
    assert message in told
    assert "\n" not in told
    assert len(told) < 400
    assert told.startswith(("l.", "x: lists", "lists."))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    values = {"name": "x", "lists": {"file": str(tmp_path / "none.csv")}}
    made = validate(values, "x")
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        import_own(made.data, made.lists, 0)


def test_times_without_a_clock_in_the_interactions_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"moments are times, but bought\.csv has none") as caught:
        read(tmp_path, HEAD + GOOD, bought="user,item\nu,a\nv,b\n")
    assert "\n" not in str(caught.value)


def test_the_battery_is_large_enough() -> None:
    assert len(VALUES) + len(LISTS) + len(HISTORIES) + len(FILES) >= 60
