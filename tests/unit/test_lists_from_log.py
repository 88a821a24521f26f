"""Own lists out of a server's logs: a hand-made one, a generated one against a slow twin."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2 import cli
from diffgr2.data.from_log import lists_from_log
from diffgr2.data.traffic import FEEDBACK, IMPRESSIONS, file_of


def impression(name: str, items: list[str | None], order: list[int], **more: Any) -> dict[str, Any]:
    given = {"user": None, "history": [], "given": None, "features": None}
    return {"id": name, "time": 1769850764.031, "items": items, "order": order, **given, **more}


def event(name: str, item: str, what: str = "click") -> dict[str, Any]:
    return {"id": name, "item": item, "event": what, "time": 1769850800.0}


def write(directory: Path, kind: str, entries: list[Any], number: int = 1, tail: str = "") -> None:
    text = "".join(f"{e if isinstance(e, str) else json.dumps(e)}\n" for e in entries)
    file_of(directory, kind, number).write_text(text + tail)


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    features = [{"price": 9.5, "new": True}, {"price": None, "colour": "red"}, None]
    first = impression(
        "a", ["x", "y", "z"], [2, 0], user="u1", history=["h", None], given=[3, 2.5, 1]
    )
    write(
        tmp_path,
        IMPRESSIONS,
        [
            impression("b", ["x"], [0]),
            {**first, "features": features, "scores": [0.6, 0.4], "decoder": "ar"},
        ],
    )
    later = impression("b", ["y", None, "x", "y"], [3, 2, 1, 0])
    write(tmp_path, IMPRESSIONS, [later, "no JSON", {"id": "c"}], 2, tail='{"id": "torn')
    happened = [event("a", "z"), event("a", "z", "cart"), event("a", "z"), event("a", "q")]
    write(tmp_path, FEEDBACK, [*happened, event("zz", "x"), event("b", "y", "wish"), {"id": 1}])
    return tmp_path


def test_impressions_and_what_came_of_them(traffic: Path, tmp_path: Path) -> None:
    made = lists_from_log(traffic, tmp_path / "lists.parquet")
    assert (made.lists, made.rows) == (2, 5)
    assert made.events == {"click": 1, "cart": 1, "wish": 1}
    assert made.skipped == {
        "impressions: asked again later": 1,
        "impressions: malformed": 1,
        "impressions: no JSON": 1,
        "impressions: cut line": 1,
        "candidates: without an id": 1,
        "candidates: twice in a list": 1,
        "feedback: a second time": 1,
        "feedback: malformed": 1,
        "feedback: an item that was not in its list": 1,
        "feedback: no impression of its request": 1,
    }
    table = pl.read_parquet(tmp_path / "lists.parquet")
    moment = "2026-01-31T09:12:44.031+00:00"
    shared = {
        "list": "a",
        "user": "u1",
        "moment": moment,
        "history": ["h"],
        "purchase": 0,
        "wish": 0,
    }
    one, two, three, *others = table.to_dicts()
    assert one == {
        **shared,
        **{"item": "x", "place": 1, "score": 3.0, "shown": 2, "click": 0, "cart": 0},
        **{"price": 9.5, "new": 1, "colour": None},
    }
    assert two == {
        **shared,
        **{"item": "y", "place": 2, "score": 2.5, "shown": None, "click": None, "cart": None},
        **{"purchase": None, "wish": None, "price": None, "new": None, "colour": "red"},
    }
    assert (three["item"], three["click"], three["cart"], three["shown"]) == ("z", 1, 1, 1)
    assert [(row["item"], row["place"], row["shown"], row["wish"]) for row in others] == [
        ("y", 1, 4, 1),
        ("x", 3, 2, 0),
    ]


def test_all_formats_say_the_same(traffic: Path, tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, Any]]] = {}
    for suffix in ("parquet", "jsonl", "csv"):
        lists_from_log(traffic, tmp_path / f"lists.{suffix}")
    rows["parquet"] = pl.read_parquet(tmp_path / "lists.parquet").to_dicts()
    lines = (tmp_path / "lists.jsonl").read_text().splitlines()
    rows["jsonl"] = [json.loads(line) for line in lines]
    assert rows["jsonl"] == rows["parquet"]
    with (tmp_path / "lists.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["item"] for cell in cells] == [row["item"] for row in rows["jsonl"]]
    assert [json.loads(cell["history"]) for cell in cells] == [r["history"] for r in rows["jsonl"]]
    assert sorted(path.name for path in tmp_path.glob("*lists*")) == [
        "lists.csv",
        "lists.jsonl",
        "lists.parquet",
    ]


def test_features_of_several_kinds_and_of_taken_names(tmp_path: Path) -> None:
    values: list[tuple[Any, Any]] = [(1, "a"), (True, 2), (2.5, None), (float("nan"), True)]
    features = [{"mixed": one, "words": two, "click": 7} for one, two in values]
    write(tmp_path, IMPRESSIONS, [impression("a", list("wxyz"), [0, 1, 2, 3], features=features)])
    made = lists_from_log(tmp_path, tmp_path / "out.parquet", history=False)
    table = pl.read_parquet(tmp_path / "out.parquet")
    assert table["mixed"].to_list() == [1.0, 1.0, 2.5, None]
    assert table["words"].to_list() == ["a", "2", None, "true"]
    assert table["feature_click"].to_list() == [7.0] * 4
    assert table["click"].to_list() == [0] * 4
    assert made.features == {"mixed": "mixed", "words": "words", "click": "feature_click"}
    assert "history" not in table.columns


def test_an_event_that_is_called_like_a_feature_leaves_it_alone(tmp_path: Path, capsys) -> None:
    features = [{"price": 9.5, "event_price": 1.0}, {"price": 4.0, "event_price": 2.0}]
    write(tmp_path, IMPRESSIONS, [impression("a", ["x", "y"], [0, 1], features=features)])
    write(tmp_path, FEEDBACK, [event("a", "y", "price"), event("a", "x", "wish")])
    out = tmp_path / "out.jsonl"
    assert cli.run(["data", "lists-from-log", str(tmp_path), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "price                      1 (column event_event_price: price is a feature)" in told
    assert "gains: {event_event_price: 1, wish: 1}" in told
    assert "features: [price, event_price]" in told
    one, two = map(json.loads, out.read_text().splitlines())
    assert (one["price"], one["event_price"], two["price"]) == (9.5, 1.0, 4.0)
    assert (one["event_event_price"], two["event_event_price"], one["wish"]) == (0, 1, 1)


def test_the_verb_says_what_it_made_and_a_recipe(traffic: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "lists.jsonl"
    assert cli.run(["data", "lists-from-log", str(traffic), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"{out}: 2 lists, 5 candidates" in told
    assert "set aside                  1 feedback: no impression of its request" in told
    assert f"lists:\n  file: {out}\n  gains: {{click: 1, cart: 1, wish: 1}}" in told
    assert "features: [price, new, colour]" in told
    assert "  point_in_time: true" in told, "one of the lists has no user"
    assert yaml.safe_load(told[told.index("lists:\n") :])["lists"]["point_in_time"] is True


def test_where_users_are_known_they_are_left_out_by_name(tmp_path: Path, capsys) -> None:
    write(tmp_path, IMPRESSIONS, [impression("a", ["x", "y"], [0, 1], user="u")])
    write(tmp_path, FEEDBACK, [event("a", "x")])
    out = tmp_path / "lists.jsonl"
    assert cli.run(["data", "lists-from-log", str(tmp_path), "--out", str(out)]) == 0
    assert "point_in_time" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("directory", "out", "message"),
    [
        ("nowhere", "x.jsonl", "nowhere: no such directory"),
        ("", "x.txt", "x.txt: expected a name that ends in .parquet, .jsonl, .csv"),
        ("", "x.jsonl", "holds no impressions (see serve --log-dir)"),
    ],
)
def test_what_cannot_be_is_one_line(
    tmp_path: Path, capsys, directory: str, out: str, message: str
) -> None:
    code = cli.run(["data", "lists-from-log", str(tmp_path / directory), "-o", str(tmp_path / out)])
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


NAMES = st.sampled_from("abc")
ITEMS = st.lists(st.none() | st.sampled_from("wxyz"), max_size=5)


@st.composite
def impressions(draw: st.DrawFn) -> dict[str, Any]:
    items = draw(ITEMS)
    order = draw(st.permutations(range(len(items))))
    return impression(draw(NAMES), items, order[: draw(st.integers(0, len(items)))])


@settings(deadline=None, max_examples=50)
@given(
    st.lists(impressions(), min_size=1, max_size=5),
    st.lists(st.tuples(NAMES, st.sampled_from("wxyzq"), st.sampled_from(["click", "save"]))),
)
def test_every_event_is_joined_once_or_counted(
    tmp_path_factory, shown: list[dict[str, Any]], happened: list[tuple[str, str, str]]
) -> None:
    directory = tmp_path_factory.mktemp("traffic")
    write(directory, IMPRESSIONS, shown)
    write(directory, FEEDBACK, [event(*one) for one in happened])
    made = lists_from_log(directory, directory / "out.jsonl")
    rows = [json.loads(line) for line in (directory / "out.jsonl").read_text().splitlines()]
    joined = Counter(
        (row["list"], row["item"], e)
        for row in rows
        for e in row
        if row.get(e) == 1 and e in ("click", "save")
    )
    last = {one["id"]: one for one in shown}
    wanted = {one for one in happened if one[0] in last and one[1] in last[one[0]]["items"]}
    assert joined == dict.fromkeys(wanted, 1)
    lost = sum(count for reason, count in made.skipped.items() if reason.startswith("feedback"))
    assert lost + len(wanted) == len(happened)
    for row in rows:
        source = last[row["list"]]
        assert source["items"][row["place"] - 1] == row["item"]
        assert row["shown"] is None or source["order"][row["shown"] - 1] == row["place"] - 1


PLAIN = st.none() | st.integers() | st.floats() | st.text(max_size=2)
FIELDS = st.sampled_from(["id", "time", "items", "order", "given", "features", "history", "user"])
VALUES = PLAIN | st.lists(st.integers(-1, 3) | st.text(max_size=2), max_size=3)


@settings(deadline=None)
@given(st.lists(st.dictionaries(FIELDS, VALUES), max_size=4))
def test_strange_lines_are_counted_and_stop_nothing(tmp_path_factory, lines: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("traffic")
    write(directory, IMPRESSIONS, [*lines, impression("good", ["x", "y"], [0, 1])])
    write(directory, FEEDBACK, [*lines, event("good", "x")])
    made = lists_from_log(directory, directory / "out.jsonl")
    assert made.lists >= 1
    assert made.events["click"] == 1
