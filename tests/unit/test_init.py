"""`diffgr2 init` on files of many shapes: what columns are taken for; the recipe works."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from diffgr2 import cli
from diffgr2.data.records import import_dataset
from diffgr2.recipe import load_recipe

USERS, ITEMS, EACH = 40, 30, 8
WORDS = ["soft", "red", "big", "old", "dry", "kind", "slow", "bright"]
Rows = list[dict[str, Any]]


def bought(user: str = "user_id", item: str = "item_id", **more: Callable[[int, int], Any]) -> Rows:
    """Purchases, each user's in order, with further columns by (user, n)."""
    rng = np.random.default_rng(0)
    rows = []
    for u in range(USERS):
        for n, i in enumerate(rng.choice(ITEMS, EACH, replace=False).tolist()):
            row = {user: f"u{u}", item: f"i{i}"}
            rows.append(row | {name: made(u, n) for name, made in more.items()})
    return rows


def texts(item: str = "item_id", title: str = "title", **more: Callable[[int], Any]) -> Rows:
    return [
        {item: f"i{i}", title: f"{WORDS[i % 8]} {WORDS[i // 8]} thing {i}"}
        | {name: made(i) for name, made in more.items()}
        for i in range(ITEMS)
    ]


def shown(**more: Callable[[int, int], Any]) -> Rows:
    """Lists of six candidates."""
    rng = np.random.default_rng(1)
    rows = []
    for n in range(60):
        for place, i in enumerate(rng.choice(ITEMS, 6, replace=False).tolist()):
            row = {"request_id": f"r{n}", "customer": f"u{n % USERS}", "sku": f"i{i}"}
            row |= {"rank": place, "click": int(place == n % 6), "purchase": int(place == n % 9)}
            rows.append(row | {name: made(n, place) for name, made in more.items()})
    return rows


def write(path: Path, rows: Rows) -> str:
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pl.DataFrame(rows).write_parquet(path)
        return str(path)
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if kind in ("csv", "tsv"):
            table = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def day(u: int, n: int) -> int:
    return 1_500_000_000 + 100_000 * n + u


def iso(u: int, n: int) -> str:
    return datetime.fromtimestamp(day(u, n), UTC).isoformat()


def path_of(i: int) -> str:
    return f"{WORDS[i % 2]} > {WORDS[i % 8]}"


SHAPES: dict[str, tuple[dict[str, Rows], dict[str, Any]]] = {
    "our own words": (
        {"a.csv": bought("user", "item", timestamp=day), "b.csv": texts("item")},
        {"source": "table"},
    ),
    "ids behind": (
        {"a.csv": bought(timestamp=day), "b.csv": texts()},
        {"columns": {"user": "user_id", "item": "item_id"}},
    ),
    "other names, no date": (
        {"orders.csv": bought("customer", "article"),
         "p.csv": texts("code", "product_name", maker=lambda i: WORDS[i % 5], department=path_of)},
        {"columns": {"user": "customer", "item": "article"},
         "item_columns": {"item": "code", "title": "product_name", "brand": "maker",
                          "categories": "department"}},
    ),
    "camel case, ISO dates": (
        {"a.csv": bought("CustomerID", "ProductID", OrderDate=iso),
         "b.csv": texts("ProductID", "Name")},
        {"columns": {"user": "CustomerID", "item": "ProductID", "timestamp": "OrderDate"},
         "item_columns": {"title": "Name"}},
    ),
    "names that say nothing": (
        {"x.csv": bought("k1", "k2", k3=day), "y.csv": texts("z1", "z2")},
        {"columns": {"user": "k1", "item": "k2", "timestamp": "k3"},
         "item_columns": {"item": "z1", "title": "z2"}},
    ),
    "one file only": (
        {"a.tsv": bought("visitor", "isbn")},
        {"columns": {"user": "visitor", "item": "isbn"}},
    ),
    "milliseconds, ratings, extras": (
        {"a.jsonl": bought("uid", "pid", ts=lambda u, n: 1000 * day(u, n),
                           rating=lambda u, n: 1 + n % 5, qty=lambda u, n: 1 + n % 3,
                           event=lambda u, n: ["view", "buy"][n % 2])},
        {"columns": {"user": "uid", "item": "pid", "timestamp": "ts"}},
    ),
    "packed": (
        {"a.csv.gz": bought(timestamp=day), "b.jsonl.gz": texts()},
        {"columns": {"user": "user_id", "item": "item_id"}},
    ),
    "whole days": (
        {"a.parquet": bought(time=lambda u, n: 86_400 * (17_000 + n // 2)), "b.parquet": texts()},
        {"tie_order": "shuffle",
         "columns": {"user": "user_id", "item": "item_id", "timestamp": "time"}},
    ),
    "integer ids": (
        {"a.parquet": [{"user_id": int(r["user_id"][1:]) + 1, "item_id": int(r["item_id"][1:]) + 1}
                       for r in bought()],
         "b.parquet": [{**r, "item_id": int(r["item_id"][1:]) + 1} for r in texts()]},
        {"columns": {"user": "user_id", "item": "item_id"}},
    ),
    "lists of categories": (
        {"a.csv": bought(), "b.jsonl": texts(cats=lambda i: path_of(i).split(" > "))},
        {"item_columns": {"categories": "cats"}},
    ),
    "a position": (
        {"a.csv": bought(seq=lambda u, n: n)},
        {"columns": {"user": "user_id", "item": "item_id", "position": "seq"}},
    ),
}  # fmt: skip


def init(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.run(["init", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_understood(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, wanted = SHAPES[name]
    paths = [write(tmp_path / file, rows) for file, rows in files.items()]
    for n, order in enumerate((paths, paths[::-1])):  # the order of the files tells nothing
        out = tmp_path / f"shop{n}.yaml"
        code, said, err = init(capsys, *order, "--yes", "--out", str(out))
        assert (code, err) == (0, "")
        text = out.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 15
        assert text in said
        assert f"next: diffgr2 run {out}   (about " in said
        recipe = load_recipe(str(out))
        dumped = recipe.data.model_dump()
        for key, value in wanted.items():
            assert dumped[key] == value, key
        dataset = import_dataset(recipe.data, 0)
        assert dataset.histories.n_users == USERS
        timed = name in ("our own words", "ids behind", "packed")
        assert dataset.report["timed"] is (timed or "timestamp" in recipe.data.columns)
        if len(paths) == 2:
            assert dataset.report["share_title"] == 1.0
            assert "warnings" not in dataset.report
        for file in files:
            assert f"{file}: " in said
        for column in (column for rows in files.values() for column in rows[0]):
            assert f"  {column}" in said, "every column is accounted for"


def test_lists_get_gains_features_and_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shown(
        shown_at=lambda n, p: iso(n, 0), price=lambda n, p: 3.5 + p, ctr=lambda n, p: p / 7,
        margin=lambda n, p: n + p, stock=lambda n, p: p % 2, shelf=lambda n, p: WORDS[p],
        device=lambda n, p: WORDS[n % 2], campaign=lambda n, p: "x",
    )  # fmt: skip
    files = [
        write(tmp_path / "log.csv", bought("customer", "sku", when=day)),
        write(tmp_path / "items.csv", texts("sku", "name")),
        write(tmp_path / "impressions.csv", rows),
    ]
    code, said, err = init(capsys, *files, "--yes", "--out", str(tmp_path / "r.yaml"))
    assert (code, err) == (0, "")
    lists = load_recipe(str(tmp_path / "r.yaml")).lists
    assert lists.columns == {"list": "request_id", "user": "customer", "item": "sku",
                             "place": "rank", "moment": "shown_at"}  # fmt: skip
    assert lists.gains == {"click": 1.0, "purchase": 3.0}
    assert {name: one.good for name, one in lists.features.items()} == {
        "price": "low", "ctr": "high", "margin": "neither", "stock": "high", "shelf": "high",
    }  # fmt: skip
    assert "device " in said
    assert "the same for a whole list" in said
    text = (tmp_path / "r.yaml").read_text()
    assert "a guess, yours to change" in text
    assert len(text.splitlines()) <= 15


def with_amounts(rows: Rows) -> Rows:
    """What was bought or looked at also as amounts, under many names."""
    for at, row in enumerate(rows):
        came = row["click"] or row["purchase"]
        row |= {"revenue": 19.99 * row["purchase"], "dwell_seconds": 31.5 * row["click"]}
        row |= {"channel": ("web", "app")[at % 2] if came else "", "refund": -2.5 * row["click"]}
        row |= {"sales": 40 * (at % 3 == 0), "ctr": at % 7 / 7}
    return rows


def test_what_is_known_only_afterwards_is_no_feature(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / "l.csv", with_amounts(shown()))]
    files.append(write(tmp_path / "a.csv", bought("customer", "sku")))
    code, said, err = init(capsys, *files, "-y", "--out", str(tmp_path / "r.yaml"))
    assert (code, err) == (0, "")
    lists = load_recipe(str(tmp_path / "r.yaml")).lists
    assert lists.gains == {"click": 1.0, "purchase": 3.0, "revenue": 3.0, "dwell_seconds": 1.0}
    assert list(lists.features) == ["ctr"]
    line = {row.split()[0]: " ".join(row.split()[1:]) for row in said.splitlines() if row.strip()}
    assert line["revenue"] == "outcome by its name; above 0 counts as one (0 to 19.99)"
    for name, outcome in (("channel", "click"), ("refund", "click")):
        assert line[name] == (
            f"- filled only where {outcome} is: known only afterwards? if it was known before: "
            f"--map lists.feature={name}"
        )
    told = "- known only afterwards? if it was known before: --map lists.feature=sales"
    assert line["sales"] == told  # an item's past sales stand beside no outcome


def test_an_amount_may_be_the_only_outcome_and_is_a_feature_where_one_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = with_amounts(shown())
    for row in rows:
        row |= {"purchase": 19.99 * row["purchase"], "returned": -row.pop("click")}
    files = [write(tmp_path / "l.csv", rows), write(tmp_path / "a.csv", bought("customer", "sku"))]
    said = ("--map", "lists.feature=sales", "-y", "--out", str(tmp_path / "r.yaml"))
    assert init(capsys, *files, *said)[0] == 0
    lists = load_recipe(str(tmp_path / "r.yaml")).lists
    assert lists.gains == {"purchase": 3.0, "revenue": 3.0}
    assert "sales" in lists.features


def test_an_outcome_below_nothing_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"purchase": -5.0 * row["purchase"] or 0} for row in shown()]
    files = [write(tmp_path / "l.csv", rows), write(tmp_path / "a.csv", bought("customer", "sku"))]
    code, said, _ = init(capsys, *files, "-y", "--out", str(tmp_path / "r.yaml"))
    assert (code, load_recipe(str(tmp_path / "r.yaml")).lists.gains) == (0, {"click": 1.0})
    assert "named like an outcome, but below 0 in places (-5 to 0): not read" in said


def test_features_named_like_evidence_get_names_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shown(**{"last": lambda n, p: n + p, "odd name!": lambda n, p: p * 2})
    write(tmp_path / "l.csv", rows)
    write(tmp_path / "a.csv", bought("customer", "sku"))
    files = [str(tmp_path / "l.csv"), str(tmp_path / "a.csv")]
    assert init(capsys, *files, "-y", "--out", str(tmp_path / "r.yaml"))[0] == 0
    features = load_recipe(str(tmp_path / "r.yaml")).lists.features
    assert {name: one.column for name, one in features.items()} == {
        "last_own": "last", "odd_name": "odd name!",
    }  # fmt: skip


def test_equals_are_asked_about_and_never_taken_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "shopper": row["user_id"] + "x"} for row in bought()]
    path, out = write(tmp_path / "a.csv", rows), str(tmp_path / "r.yaml")
    code, _, err = init(capsys, path, "--yes", "--out", out)
    assert (code, err) == (2, "error: a.csv: user_id and shopper could each be the user: "
                              "say --map interactions.user=user_id\n")  # fmt: skip
    assert init(capsys, path, "--yes", "--out", out, "--map", "user=shopper")[0] == 0
    assert load_recipe(out).data.columns == {"user": "shopper", "item": "item_id"}


def test_a_time_that_cannot_be_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.csv", bought(date=lambda u, n: f"{n + 1:02d}.05.2019 10:00"))
    code, said, _ = init(capsys, path, "-y", "--out", str(tmp_path / "r.yaml"))
    assert code == 0
    assert "a time by its name, but no number or ISO date (01.05.2019 10:00" in said
    assert "no time: the order of the lines is the history" in said


def test_a_core_is_chosen_that_keeps_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"user": f"u{n // 3}", "item": f"i{(n * 7) % 80}"} for n in range(300)]
    out = str(tmp_path / "r.yaml")
    code, said, _ = init(capsys, write(tmp_path / "a.csv", rows), "-y", "--out", out)
    assert code == 0
    assert load_recipe(out).data.k_core == 3
    assert "k_core: 3  # 100 users and 80 items with 100% of the lines are left" in said


@pytest.mark.parametrize(
    ("files", "sources"),
    [
        ({"reviews_x.json.gz": [{"reviewerID": f"u{u}", "asin": f"i{(u + n) % 9}", "overall": 5.0,
                                 "unixReviewTime": day(u, n)} for u in range(9) for n in range(6)],
          "meta_x.json.gz": [{"asin": f"i{i}", "title": f"t {i}", "categories": [["A", "B"]]}
                             for i in range(9)]}, "amazon2014"),
        ({"x.jsonl": [{"user_id": f"u{u}", "parent_asin": f"i{(u + n) % 9}", "rating": 5.0,
                       "timestamp": 1000 * day(u, n)} for u in range(9) for n in range(6)],
          "meta_x.jsonl": [{"parent_asin": f"i{i}", "title": f"t {i}", "main_category": "A",
                            "store": "S", "categories": ["A"]} for i in range(9)]}, "amazon2023"),
    ],
)  # fmt: skip
def test_the_publishers_own_shapes(
    files: dict[str, Rows], sources: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write(tmp_path / name, rows) for name, rows in files.items()]
    out = str(tmp_path / "r.yaml")
    assert init(capsys, *paths, "-y", "--out", out)[0] == 0
    data = load_recipe(out).data
    assert (data.source, data.columns, data.item_columns) == (sources, {}, {})
    assert import_dataset(data, 0).report["share_title"] == 1.0


def test_recbole_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"{r['user_id']}\t{r['item_id']}\t{r['t']}" for r in bought(t=day)]
    (tmp_path / "x.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\ttitle:token_seq", *(f"{r['item_id']}\t{r['title']}" for r in texts())]
    (tmp_path / "x.item").write_text("\n".join(lines) + "\n")
    out = str(tmp_path / "r.yaml")
    files = [str(tmp_path / "x.inter"), str(tmp_path / "x.item")]
    assert init(capsys, *files, "-y", "--out", out)[0] == 0
    assert load_recipe(out).data.source == "recbole"


def test_paths_are_the_recipes_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    path = write(tmp_path / "data" / "a.csv", bought())
    for out in ("r.yaml", "recipes/r.yaml", "data/r.yaml"):
        assert init(capsys, path, "-y", "--out", str(tmp_path / out))[0] == 0
        assert Path(load_recipe(str(tmp_path / out)).data.interactions or "").samefile(path)
    assert "interactions: ../data/a.csv" in (tmp_path / "recipes/r.yaml").read_text()


def test_who_answers_is_heard(tmp_path: Path) -> None:
    rows = [{**row, "shopper": row["user_id"] + "x"} for row in bought()]
    path, out = write(tmp_path / "a.csv", rows), str(tmp_path / "r.yaml")
    silent = CliRunner().invoke(cli.app, ["init", path, "--out", out], input="")
    assert "say --map interactions.user=user_id" in str(silent.exception)
    asked = CliRunner().invoke(cli.app, ["init", path, "--out", out], input="nobody\nshopper\n")
    assert asked.exit_code == 0
    assert "user_id and shopper could each be the user; which is it?" in asked.output
    assert "a.csv has no column 'nobody'" in asked.output
    assert load_recipe(out).data.columns["user"] == "shopper"


def test_lists_alone_bring_their_histories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = shown(history=lambda n, p: f"i{n % 7} i{n % 5 + 7} i{n % 3 + 15}")
    path, out = write(tmp_path / "requests.jsonl", rows), str(tmp_path / "r.yaml")
    code, said, err = init(capsys, path, "-y", "--out", out)
    assert (code, err) == (0, "")
    recipe = load_recipe(out)
    assert (recipe.data.source, recipe.data.interactions) == ("lists", None)
    assert "60 lists of 6 to 6, 100.0% with an outcome, 0 without a history" in said
