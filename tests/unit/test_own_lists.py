"""A shop's own lists: what a file becomes, whose history a list sees, which lists train."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from diffgr2.candidates.own_split import SPLITS, TRAIN, known_part, own_split, parts_of
from diffgr2.config import Recipe
from diffgr2.data.own_lists import import_own
from diffgr2.data.own_store import OwnLists, read_own_lists, write_own_lists
from diffgr2.data.store import Dataset
from diffgr2.errors import ConfigError, DataError
from diffgr2.recipe import load_recipe, validate
from support import shop_lists

HEAD = "list,user,moment,item,place,click,buy,price\n"
BOUGHT = "user,item,timestamp\nu,a,100000010\nu,b,100000020\nu,c,100000030\nv,a,100000040\n"


def recipe(folder: Path, lists: str, bought: str | None = BOUGHT, **more: Any) -> Recipe:
    """A recipe of files with these lines."""
    (folder / "lists.csv").write_text(lists)
    values: dict[str, Any] = {"name": "x", "lists": {"file": str(folder / "lists.csv"), **more}}
    if bought is not None:
        (folder / "bought.csv").write_text(bought)
        values["data"] = {"source": "table", "interactions": str(folder / "bought.csv")}
    return validate(values, "x")


def read(folder: Path, lists: str, bought: str | None = BOUGHT, **more: Any) -> Any:
    """(dataset, own lists) of such files, every mistake allowed."""
    more = {"gains": {"click": 1.0, "buy": 3.0}, "max_bad_share": 1.0} | more
    made = recipe(folder, lists, bought, **more)
    return import_own(made.data, made.lists, 0, folder / "quarantine.jsonl")


def named(found: tuple[Dataset, OwnLists]) -> dict[str, dict[str, Any]]:
    """The lists under raw ids."""
    dataset, own = found
    ids = dataset.catalogue.raw_ids
    result = {}
    for at, name in enumerate(own.names):
        part = slice(own.offsets_L1[at], own.offsets_L1[at + 1])
        history = dataset.histories.of(int(own.user_L[at]), int(own.end_L[at]))
        result[name] = {
            "user": dataset.raw_users[own.person_L[at]],
            "history": [ids[i] for i in history],
            "items": [ids[i] for i in own.item_N[part]],
            "gains": own.gain_N[part].tolist(),
            "target": ids[own.target_L[at]] if own.target_L[at] >= 0 else None,
            "features": own.feature_NG[part].tolist(),
        }
    return result


def test_a_list_sees_what_was_bought_strictly_before_its_moment(tmp_path: Path) -> None:
    lists = HEAD + (
        "r1,u,100000020,x,1,0,0,1\nr1,u,100000020,b,2,1,0,2\n"
        "r2,u,100000031,x,2,0,0,1\nr2,u,100000031,d,1,0,1,2\n"
        "r3,w,100000031,x,1,0,0,1\nr3,w,100000031,d,2,0,0,\n"
    )
    found = named(read(tmp_path, lists, features=["price"]))
    assert found["r1"]["history"] == ["a"]
    assert found["r2"]["history"] == ["a", "b", "c"]
    assert found["r2"]["items"] == ["d", "x"], "by place"
    assert found["r2"]["gains"] == [3.0, 0.0]
    assert found["r2"]["target"] == "d"
    assert found["r2"]["features"] == [[2.0], [1.0]]
    assert (found["r3"]["history"], found["r3"]["user"]) == ([], "w")
    assert found["r3"]["target"] is None
    assert np.isnan(found["r3"]["features"][1][0])


def test_a_position_is_a_place_in_the_history(tmp_path: Path) -> None:
    bought = "user,item,position\nu,a,0\nu,b,1\nu,c,2\n"
    lists = HEAD + "r1,u,2,x,1,0,0,1\nr1,u,2,y,2,1,0,2\nr2,u,9,x,1,0,0,1\nr2,u,9,y,2,0,0,2\n"
    dataset, own = read(tmp_path, lists, bought)
    found = named((dataset, own))
    assert found["r1"]["history"] == ["a", "b"]
    assert "r2" not in found, "nobody bought that much"
    assert dataset.report["list_lines_rejected"] == 2
    assert "position 9 lies behind" in (tmp_path / "quarantine.jsonl").read_text()


@pytest.mark.parametrize(
    "cell", ['"[""a"", ""b""]"', "a|b", "a;b", '"a,b"', "a b"], ids=["json", "|", ";", ",", "space"]
)
def test_a_history_may_come_with_the_list(tmp_path: Path, cell: str) -> None:
    head = "list,user,item,place,click,buy,history\n"
    lists = head + f"r1,u,x,1,0,0,{cell}\nr1,u,y,2,1,0,{cell}\n"
    dataset, own = read(tmp_path, lists, None)
    assert named((dataset, own))["r1"]["history"] == ["a", "b"]
    assert dataset.report["source"] == "lists"
    assert sorted(dataset.catalogue.raw_ids) == ["a", "b", "x", "y"]


def test_histories_of_one_person_share_rows_where_one_begins_the_other(tmp_path: Path) -> None:
    head = "list,user,item,place,click,buy,history\n"
    lists = head + "".join(
        f"{name},u,{item},{place},0,1,{history}\n"
        for name, history in (("r1", "a"), ("r2", "a|b"), ("r3", "b|c"), ("r4", "a|b|d"))
        for place, item in enumerate(("x", "y"), 1)
    )
    dataset, own = read(tmp_path, lists, None)
    found = named((dataset, own))
    wanted = {"r1": ["a"], "r2": ["a", "b"], "r3": ["b", "c"], "r4": ["a", "b", "d"]}
    assert {name: one["history"] for name, one in found.items()} == wanted
    assert {one["user"] for one in found.values()} == {"u"}
    assert len(dataset.raw_users) == 2, "one row more, for the history that begins otherwise"
    assert own.inline


def test_what_rows_of_a_list_say_twice(tmp_path: Path) -> None:
    lists = HEAD + (
        "r1,u,,x,1,1,0,1\nr1,u,,x,1,0,1,1\nr1,u,,y,2,0,0,2\nr1,u,,y,3,0,0,2\n"  # x: two events
        "r2,u,,x,1,0,0,1\nr2,u,,y,1,0,0,1\n"  # two at one place
        "r3,u,,x,1,0,0,1\nr3,v,,y,2,0,0,1\n"  # two users
        "r4,u,,x,1,0,0,1\n"  # a list of one
        "r5,u,,x,1,0,0,1\nr5,u,,y,2,0,0,1\nr5,u,,z,,0,1,1\n"  # bought outside the list
    )
    dataset, own = read(tmp_path, lists)
    found, report = named((dataset, own)), dataset.report
    assert list(found) == ["r1", "r5"]
    assert found["r1"]["gains"] == [3.0, 0.0], "the outcome that is worth most"
    assert (found["r5"]["target"], found["r5"]["gains"]) == ("z", [0.0, 0.0])
    assert report["rows_merged"] == 1
    assert report["single_lists"] == 1
    assert report["list_lines_rejected"] == 1 + 2 + 2
    told = (tmp_path / "quarantine.jsonl").read_text()
    for reason in ("y stands at two places", "two candidates at place 1", "two users"):
        assert reason in told
    used = report["list_candidates"] + report["rows_merged"] + report["single_lists"]
    assert report["list_lines_in"] == used + report["list_lines_rejected"] + 1


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file_says_the_same(tmp_path: Path, kind: str) -> None:
    found = []
    for suffix in ("parquet", kind):
        paths = shop_lists.write(tmp_path / suffix, suffix, lists=60)
        made = validate(shop_lists.values(paths), "x")
        found.append(import_own(made.data, made.lists, 0))
    one, two = (named(pair) for pair in found)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_equal(one[name], two[name])
    assert found[0][1].features == found[1][1].features


def test_the_order_of_the_files_rows_does_not_matter(tmp_path: Path) -> None:
    paths = shop_lists.write(tmp_path / "a", lists=60)
    made = validate(shop_lists.values(paths), "x")
    dataset, own = import_own(made.data, made.lists, 0)
    table = pl.read_parquet(paths["lists"])
    shop_lists.save(table.sample(fraction=1, shuffle=True, seed=3), paths["lists"])
    again, other = import_own(made.data, made.lists, 0)
    one, two = named((dataset, own)), named((again, other))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_equal(one[name], two[name])
    parts = [
        dict(zip(o.names, parts_of(o, made.lists).tolist(), strict=True)) for o in (own, other)
    ]
    assert parts[0] == parts[1]


def test_kinds_of_features_are_found_out(tmp_path: Path) -> None:
    head = "list,user,item,place,bought,num,mixed,flag,yes,word,odd\n"
    rows = [
        "1,7,true,yes,red,1",
        "2.5,na,false,no,blue,x",
        ",8,TRUE,no,,3",
        "1e2,9,False,yes,red,z",
    ]
    lists = head + "".join(
        f"r{n // 2},u,i{n},{n % 2},0,{row}\n" for n, row in enumerate([*rows, *rows])
    )
    made = recipe(tmp_path, lists, features=["num", "mixed", "flag", "yes", "word", "odd"])
    _, own = import_own(made.data, made.lists, 0)
    kinds = {feature["name"]: feature["kind"] for feature in own.features}
    assert kinds == {
        **{"num": "number", "mixed": "number", "flag": "flag", "yes": "flag"},
        **{"word": "category", "odd": "category"},
    }
    words = next(feature["words"] for feature in own.features if feature["name"] == "word")
    assert words == ["blue", "red"]
    np.testing.assert_array_equal(own.feature_NG[:4, 0], [1, 2.5, np.nan, 100])
    np.testing.assert_array_equal(own.feature_NG[:4, 4], [1, 0, np.nan, 1])


def test_decimals_of_parquet_are_numbers_ids_and_words(tmp_path: Path) -> None:
    columns = {
        "list": ["1", "1"],
        "item": ["7", "8"],
        "place": ["1", "2"],
        "score": ["0.25", None],
        "bought": ["1", "0"],
        "price": ["12.50", "3.00"],
        "size": ["3.00", None],
        "used": ["1", "0"],
    }
    table = pl.DataFrame(
        {name: [c and Decimal(c) for c in cells] for name, cells in columns.items()},
        schema=dict.fromkeys(columns, pl.Decimal(10, 2)),
    )
    table.write_parquet(tmp_path / "l.parquet")
    features = {"price": {}, "size": {"kind": "category"}, "used": {}}
    lists = {"file": str(tmp_path / "l.parquet"), "features": features}
    made = validate({"name": "x", "lists": lists}, "x")
    dataset, own = import_own(made.data, made.lists, 0)
    assert dataset.report["list_lines_rejected"] == 0
    assert own.names == ["1"]
    assert sorted(dataset.catalogue.raw_ids) == ["7", "8"]
    assert own.gain_N.tolist() == [1, 0]
    assert [feature["kind"] for feature in own.features] == ["number", "category", "flag"]
    assert own.features[1]["words"] == ["3"]
    np.testing.assert_array_equal(own.feature_NG, [[12.5, 0, 1], [3, np.nan, 0]])
    np.testing.assert_array_equal(own.score_N, np.array([0.25, np.nan], np.float32))


def test_saving_keeps_everything(tmp_path: Path) -> None:
    paths = shop_lists.write(tmp_path / "files", lists=40)
    made = validate(shop_lists.values(paths), "x")
    _, own = import_own(made.data, made.lists, 0)
    write_own_lists(tmp_path, own)
    again = read_own_lists(tmp_path)
    assert again is not None
    for name, value in vars(own).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert read_own_lists(tmp_path / "files") is None


# ------------------------------------------------------------------------------------- splits


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, OwnLists, Any]:
    paths = shop_lists.write(tmp_path_factory.mktemp("shop"), lists=300)
    values = shop_lists.values(paths)
    made = validate(values, "x")
    return *import_own(made.data, made.lists, 0), values


def config(values: dict[str, Any], **lists: Any) -> Any:
    return validate({**values, "lists": {**values["lists"], **lists}}, "x").lists


def test_folds_are_every_lists_test_once(shop: Any) -> None:
    _, own, values = shop
    tested = np.stack([parts_of(own, config(values, folds=5, fold=f)) == 2 for f in range(5)])
    assert (tested.sum(0) == 1).all()
    assert tested.sum(1).max() - tested.sum(1).min() <= 1


@pytest.mark.parametrize("split", ["list", "time", "user"])
def test_every_split_has_its_lists_in_the_shops_order(shop: Any, split: str) -> None:
    _, own, values = shop
    parts_L = parts_of(own, config(values, split=split))
    seen = []
    for name in SPLITS:
        lists, feature_LKG, which = own_split(own, parts_L, name, 4)
        seen += which.tolist()
        assert lists.k == 4
        assert (lists.length_L == np.minimum(np.diff(own.offsets_L1)[which], 4)).all()
        for row, at in enumerate(which.tolist()):
            n, start = int(lists.length_L[row]), int(own.offsets_L1[at])
            assert lists.items_LK[row, :n].tolist() == own.item_N[start : start + n].tolist()
            assert np.isnan(feature_LKG[row, n:]).all()
            assert (lists.scores_LK[row, n:] == 0).all()
    assert sorted(seen) == list(range(len(own)))


def test_a_missing_score_stays_missing(tmp_path: Path) -> None:
    head = "list,item,place,score,click,buy\n"
    dataset, own = read(tmp_path, head + "r1,x,1,-2,1,0\nr1,y,2,,0,0\nr2,x,1,,1,0\nr2,y,2,,0,0\n")
    lists, _, _ = own_split(own, np.zeros(2, np.int8), "train", 3)
    nan = np.nan
    np.testing.assert_array_equal(lists.scores_LK, [[-2, nan, 0], [nan, nan, 0]])
    assert dataset.report["scores_known"] == 0.25


def test_by_time_nothing_known_is_as_late_as_the_first_cut(shop: Any) -> None:
    dataset, own, values = shop
    told = config(values, split="time")
    parts_L = parts_of(own, told)
    first = own.moment_L[parts_L > TRAIN].min()
    assert own.moment_L[parts_L == TRAIN].max() < first
    assert own.moment_L[parts_L == 1].max() < own.moment_L[parts_L == 2].min()
    known = known_part(own, dataset.histories, parts_L, told)
    assert known.timestamps_N.max() < first
    assert known.n_users == dataset.histories.n_users
    moments = config(values, split="time", validation="2024-03-01", test="2024-06-01")
    parts_L = parts_of(own, moments)
    assert (own.moment_L[parts_L == 2] >= 1_717_200_000).all()


def test_by_user_the_last_list_is_a_test_list(shop: Any) -> None:
    _, own, values = shop
    parts_L = parts_of(own, config(values, split="user"))
    for person in np.unique(own.person_L):
        mine = np.flatnonzero(own.person_L == person)
        mine = mine[np.argsort(own.moment_L[mine], kind="stable")]
        wanted = {1: [0], 2: [0, 2]}.get(len(mine), [0] * (len(mine) - 2) + [1, 2])
        assert parts_L[mine].tolist() == wanted


@pytest.mark.parametrize("split", ["list", "user"])
def test_nobodys_held_back_outcome_is_known(shop: Any, split: str) -> None:
    """Of a person with lists held back, only what stands before the first of them is known."""
    dataset, own, values = shop
    told = config(values, split=split)
    parts_L = parts_of(own, told)
    known = known_part(own, dataset.histories, parts_L, told)
    for person in range(dataset.histories.n_users):
        held = np.flatnonzero((own.person_L == person) & (parts_L > TRAIN))
        whole = dataset.histories.of(person)
        end = own.end_L[held].min() if len(held) else len(whole)
        assert known.of(person).tolist() == whole[:end].tolist()


def test_a_cut_off_may_stand_without_quotes(tmp_path: Path) -> None:
    """YAML then makes a date of it, in a file and behind --set."""
    text = "lists: {split: time, validation: 2026-09-01, test: 2026-10-01 12:30:00}\n"
    (tmp_path / "own.yaml").write_text(text)
    lists = load_recipe(str(tmp_path / "own.yaml")).lists
    assert (lists.validation, lists.test) == ("2026-09-01", "2026-10-01T12:30:00")
    lists = load_recipe(str(tmp_path / "own.yaml"), ["lists.validation=2026-08-01"]).lists
    assert lists.validation == "2026-08-01"


@pytest.mark.parametrize("value", [0, 1, 1.5, 0.0, -0.1, 2026, True, None, ["2026-09-01"]])
def test_a_cut_off_that_is_none_is_one_clear_line(shop: Any, value: Any) -> None:
    _, _, values = shop
    told = f"(got {str(value)!r})"
    message = "x: lists.validation: expected a share between 0 and 1, or a moment such as"
    with pytest.raises(ConfigError, match=f"^{message} 2026-09-01 {re.escape(told)}$"):
        config(values, validation=value)


@pytest.mark.parametrize(
    ("lists", "error", "message"),
    [
        ({"split": "time", "validation": "2024-03-01"}, ConfigError, "a moment and a share"),
        ({"split": "list", "test": "2024-03-01"}, ConfigError, "cannot cut together"),
        ({"folds": 3, "split": "time"}, ConfigError, "folds: only split: list has them"),
        ({"fold": 1}, ConfigError, "fold: below lists.folds (1)"),
        ({"test": 0.95, "validation": 0.05}, ConfigError, "nothing is left to train on"),
        ({"split": "time", "validation": "x", "test": "y"}, ConfigError, "neither a number nor"),
        (
            {"split": "time", "validation": "2024-03-02", "test": "2024-03-01"},
            ConfigError,
            "lists.validation: has to lie before lists.test",
        ),
        (
            {"split": "time", "validation": "2034-03-02", "test": "2035-03-01"},
            DataError,
            "lists.split: time gives 300 train, 0 validation, 0 test lists",
        ),
    ],
)
def test_a_split_that_cannot_be_is_one_line(
    shop: Any, lists: Any, error: Any, message: str
) -> None:
    _, own, values = shop
    with pytest.raises(error) as caught:
        parts_of(own, config(values, **lists))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------ what is no feature


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"Click": {"column": "click"}}, "Click: column 'click' is an outcome"),
        (["buy"], "buy: column 'buy' is an outcome"),
        (["user"], "user: column 'user' is the lists' user (lists.columns.user)"),
        ({"at": {"column": "place"}}, "at: column 'place' is the lists' place"),
        ({"who": {"column": "item"}}, "who: column 'item' is the lists' item"),
        ({"when": {"column": "moment"}}, "when: column 'moment' is the lists' moment"),
    ],
)
def test_an_outcome_or_an_id_is_no_feature(
    tmp_path: Path, kind: str, features: Any, message: str
) -> None:
    text = HEAD + "r1,u,100000020,x,1,1,0,2\nr1,u,100000020,b,2,0,0,3\n"
    table, path = pl.read_csv(text.encode()), tmp_path / f"l.{kind}"
    shop_lists.save(table, path)
    lists = {"file": str(path), "gains": {"click": 1.0, "buy": 3.0}, "features": features}
    made = validate({"name": "x", "lists": lists}, "x")
    with pytest.raises(ConfigError, match=f"^lists.features.{re.escape(message)}") as caught:
        import_own(made.data, made.lists, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"gains": {"clikc": 1.0}}, "lists.gains.clikc: no column 'clikc' (it has: click, "),
        ({"features": ["prise"]}, "lists.features.prise: no column 'prise'"),
        ({"columns": {"user": "custmer"}}, "lists.columns.user: no column 'custmer'"),
        ({"columns": {"moment": "shownat"}}, "lists.columns.moment: no column 'shownat'"),
    ],
)
def test_json_lines_know_a_mistyped_name(tmp_path: Path, lists: Any, message: str) -> None:
    """They have no header, so that it shows only when all of them were read."""
    rows = [
        {"list": "r1", "item": "x", "place": 1, "click": 1},
        {"list": "r1", "item": "y", "place": 2, "price": 3.5, "user": None},
    ]
    path = tmp_path / "l.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    values = {"file": str(path), "gains": {"click": 1.0}}
    made = validate({"name": "x", "lists": {**values, **lists}}, "x")
    with pytest.raises(DataError, match=f"^{re.escape(f'l.jsonl: {message}')}") as caught:
        import_own(made.data, made.lists, 0)
    assert "\n" not in str(caught.value)
    made = validate({"name": "x", "lists": {**values, "features": ["price"]}}, "x")
    _, own = import_own(made.data, made.lists, 0)
    np.testing.assert_array_equal(own.feature_NG, [[np.nan], [3.5]])


def test_the_score_may_be_a_feature(tmp_path: Path) -> None:
    head = "list,item,place,score,click,buy\n"
    _, own = read(tmp_path, head + "r1,x,1,.7,1,0\nr1,y,2,.5,0,0\n", None, features=["score"])
    np.testing.assert_array_equal(own.feature_NG, np.array([[0.7], [0.5]], np.float32))
