"""Every importer on small files of its own format: what is read is what was written."""

from __future__ import annotations

import gzip
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from diffgr2.artifacts import load_arrays
from diffgr2.config import DataConfig, Recipe
from diffgr2.data.lines import LONGEST_RECORD, Intake, csv_records, read_lines
from diffgr2.data.records import import_dataset, outside_paths
from diffgr2.data.store import Dataset, read_dataset, write_dataset
from diffgr2.errors import ArtifactError
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.stages import data as stage

# (user, item, seconds): two users, ties for ann on day 2, bob repeats an item.
ROWS = [
    ("ann", "c", 200),
    ("ann", "a", 100),
    ("bob", "a", 50),
    ("ann", "b", 200),
    ("bob", "b", 60),
    ("bob", "a", 70),
    ("ann", "d", 300),
]
BY_FILE = {"ann": list("acbd"), "bob": list("aba")}


def histories(dataset: Dataset) -> dict[str, list[str]]:
    names = dataset.catalogue.raw_ids
    return {
        raw: [names[i] for i in dataset.histories.of(user)]
        for user, raw in enumerate(dataset.raw_users)
    }


def load(source: str, path: Path, **more: Any) -> Dataset:
    more = {"k_core": 0, **more}
    return import_dataset(DataConfig(source=source, interactions=str(path), **more), 7)  # type: ignore[arg-type]


def write(path: Path, *lines: str) -> Path:
    content = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def text_of(dataset: Dataset, raw: str) -> tuple:
    i = dataset.catalogue.raw_ids.index(raw)
    c = dataset.catalogue
    return c.titles[i], c.brands[i], c.categories[i], c.prices[i], c.descriptions[i]


@pytest.mark.parametrize("source", ["amazon2014", "amazon2018"])
def test_amazon_reviews(tmp_path: Path, source: str) -> None:
    lines = [
        json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t, "reviewText": "é"})
        for u, i, t in ROWS
    ]
    dataset = load(source, write(tmp_path / "reviews.json.gz", *lines, "", lines[0]))
    assert histories(dataset) == BY_FILE
    assert dataset.report["lines_in"] == 8, "blank lines are no lines"
    assert dataset.report["duplicates_dropped"] == 1
    assert sorted(dataset.histories.timestamps_N.tolist()) == sorted(t for *_, t in ROWS)
    assert dataset.report["tie_groups"] == 1


def test_amazon_2014_metadata_is_python_dicts(tmp_path: Path) -> None:
    reviews = write(
        tmp_path / "r.json",
        *(json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t}) for u, i, t in ROWS),
    )
    meta = write(
        tmp_path / "meta.json.gz",
        "{'asin': 'a', 'title': 'Ben\\'s &amp; <b>\"Oil\"</b>', 'price': 3.99, 'brand': 'X',"
        " 'categories': [['Beauty'], ['Beauty', 'Hair', 'Oils']], 'salesRank': {'Beauty': 1}}",
        "{'asin': 'b', 'description': 'first\\nsecond \\d'}",
        "{'asin': 'zzz', this line is not parsed, its item is not wanted",
        "{'asin': 'a', 'title': 'a later record of the same item'}",
        '{"asin": "c", "title": "json too"}',
    )
    dataset = load("amazon2014", reviews, items=str(meta))
    assert text_of(dataset, "a") == ('Ben\'s & "Oil"', "X", ["Beauty", "Hair", "Oils"], 3.99, "")
    assert text_of(dataset, "b")[4] == "first second \\d"
    assert text_of(dataset, "c")[0] == "json too"
    assert text_of(dataset, "d")[:3] == ("", "", [])
    assert np.isnan(text_of(dataset, "d")[3])
    assert dataset.report["share_title"] == 0.5


def test_amazon_2018_metadata(tmp_path: Path) -> None:
    reviews = write(
        tmp_path / "r.json",
        *(json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t}) for u, i, t in ROWS),
    )
    record = {"asin": "a", "title": "T", "brand": "B", "category": ["X", "Y"], "price": "$1,299.50"}
    meta = write(
        tmp_path / "m.json",
        json.dumps({**record, "description": ["p", "q"]}),
        json.dumps({"asin": "b", "price": "$3.00 - $9.00", "category": []}),
        json.dumps({"asin": "c", "price": ".a-section { color: red }", "title": "x" * 9_000}),
    )
    dataset = load("amazon2018", reviews, items=str(meta))
    assert text_of(dataset, "a") == ("T", "B", ["X", "Y"], 1299.5, "p q")
    assert text_of(dataset, "b")[3] == 3.0
    assert np.isnan(text_of(dataset, "c")[3])
    assert len(text_of(dataset, "c")[0]) == 500


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.csv", "r.csv.gz"])
def test_amazon_2023_keeps_the_earliest_and_orders_by_milliseconds(
    tmp_path: Path, name: str
) -> None:
    rows = [(u, i, t * 1000) for u, i, t in ROWS]
    rows += [("bob", "e", 60_001), ("bob", "f", 60_000 - 1)]  # within bob's second 60
    if ".csv" in name:
        lines = ["user_id,parent_asin,rating,timestamp,history"]
        lines += [f'"{u}",{i},5.0,{t},"x y"' for u, i, t in rows]
    else:
        lines = [
            json.dumps({"user_id": u, "asin": "variant", "parent_asin": i, "timestamp": t})
            for u, i, t in rows
        ]
    dataset = load("amazon2023", write(tmp_path / name, *lines))
    assert histories(dataset) == {"ann": list("acbd"), "bob": list("afbe")}
    assert dataset.report["duplicates_dropped"] == 1
    assert dataset.histories.timestamps_N.max() == 300
    assert dataset.report["tie_groups"] == 1, "one millisecond apart is no tie"


def test_amazon_2023_metadata(tmp_path: Path) -> None:
    lines = [
        json.dumps({"user_id": u, "parent_asin": i, "timestamp": t * 1000}) for u, i, t in ROWS
    ]
    meta = {"parent_asin": "b", "title": "T", "store": "S", "categories": ["X"], "price": None}
    items = write(tmp_path / "meta.jsonl", json.dumps({**meta, "description": []}))
    dataset = load("amazon2023", write(tmp_path / "r.jsonl", *lines), items=str(items))
    assert text_of(dataset, "b")[:3] == ("T", "S", ["X"])


def test_recbole(tmp_path: Path) -> None:
    inter = write(
        tmp_path / "x.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        *(f"{u}\t{i}\t5.0\t{t}.0" for u, i, t in ROWS),
    )
    item = write(
        tmp_path / "x.item",
        "item_id:token\ttitle:token\tprice:float\tcategories:token_seq\tbrand:token",
        "a\tSay \"hi\"\t1.5\t'Hair Care', 'Oils'\tX",
        "b\t\t\tHair Oils\t",
    )
    dataset = load("recbole", inter, items=str(item))
    assert histories(dataset) == BY_FILE
    assert text_of(dataset, "a")[:4] == ('Say "hi"', "X", ["Hair Care", "Oils"], 1.5)
    assert text_of(dataset, "b")[:3] == ("", "", ["Hair", "Oils"])


def test_recbole_without_timestamps_is_in_file_order(tmp_path: Path) -> None:
    lines = ["item_id:token\tuser_id:token", *(f"{i}\t{u}" for u, i, _ in ROWS)]
    path = write(tmp_path / "x.inter", *lines)
    dataset = load("recbole", path, repeats="keep")
    assert histories(dataset) == {"ann": list("cabd"), "bob": list("aba")}
    assert dataset.report["timed"] is False
    assert "warnings" not in dataset.report
    dataset = load("recbole", path)
    assert histories(dataset) == {"ann": list("cabd")}, "bob's third line is his first"
    assert dataset.report["warnings"][0].startswith("1 of 7 lines of x.inter stood in it before")


def test_p5_sequences_with_and_without_names(tmp_path: Path) -> None:
    path = write(tmp_path / "sequential_data.txt", "1 3 1 2", "2  1 1 3 ")
    assert histories(load("p5", path)) == {"1": list("312"), "2": list("113")}
    maps = {"item2id": {"B3": "3", "B1": "1", "B2": 2}, "user2id": {"ann": "1"}}
    (tmp_path / "datamaps.json").write_text(json.dumps(maps))
    meta = write(tmp_path / "meta.json.gz", "{'asin': 'B1', 'title': 'one'}")
    config = DataConfig(source="p5", interactions=str(path), items=str(meta), k_core=0)
    dataset = import_dataset(config, 0)
    assert histories(dataset) == {"ann": ["B3", "B1", "B2"], "2": ["B1", "B1", "B3"]}
    assert text_of(dataset, "B1")[0] == "one"
    assert [p.name for p in outside_paths(config)] == [path.name, meta.name, "datamaps.json"]


COLUMNS = {"user": "who", "item": "what", "timestamp": "when", "title": "label"}


def table_file(folder: Path, kind: str) -> Path:
    path = folder / f"t.{kind}"
    if kind == "parquet":
        frame = pl.DataFrame(ROWS, schema=["who", "what", "when"], orient="row")
        frame.with_columns(unused=pl.lit(1)).write_parquet(path)
    elif kind.startswith("jsonl"):
        write(path, *(json.dumps({"who": u, "what": i, "when": t}) for u, i, t in ROWS))
    else:
        sep = "," if kind.startswith("csv") else "\t"
        lines = [sep.join(("when", "who", "note", "what"))]
        lines += [sep.join((str(t), u, '"a ""b"",\t c"', i)) for u, i, t in ROWS]
        write(path, *(line + "\r" for line in lines))
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_tables_with_named_columns(tmp_path: Path, kind: str) -> None:
    items = write(
        tmp_path / "items.csv",
        "what,label,categories,brand",
        'a,"two\nlines",A > B,',
        "b,plain,A|B|C,Z",
    )
    dataset = load("table", table_file(tmp_path, kind), columns=COLUMNS, items=str(items))
    assert histories(dataset) == BY_FILE
    assert text_of(dataset, "a")[:3] == ("two lines", "", ["A", "B"])
    assert text_of(dataset, "b")[:3] == ("plain", "Z", ["A", "B", "C"])
    assert dataset.report["item_lines_in"] == 2


def test_a_table_orders_ties_by_its_position(tmp_path: Path) -> None:
    lines = ["user,item,timestamp,position", "u,a,5,2", "u,b,5,0", "u,c,5,1", "u,d,4,9"]
    dataset = load("table", write(tmp_path / "t.csv", *lines))
    assert histories(dataset) == {"u": list("dbca")}


def test_json_lines_use_a_timestamp_that_no_column_map_names(tmp_path: Path) -> None:
    rows = [{"user": "u", "item": i, "timestamp": t} for i, t in zip("abc", (3, 1, 2), strict=True)]
    dataset = load("table", write(tmp_path / "t.jsonl", *map(json.dumps, rows)))
    assert histories(dataset) == {"u": list("bca")}
    assert dataset.report["timed"] is True


@pytest.mark.parametrize(
    "times",
    [
        ["2014-01-02", "2014-01-01", "2014-01-03T00:00:00+00:00"],
        ["1388620800", "1388534400.0", "1388707200000"],
    ],
)
def test_times_in_seconds_milliseconds_and_iso_text_agree(tmp_path: Path, times: list) -> None:
    lines = [f"u,{item},{time}" for item, time in zip("abc", times, strict=True)]
    dataset = load("table", write(tmp_path / "t.csv", "user,item,timestamp", *lines))
    assert histories(dataset) == {"u": list("bac")}
    assert dataset.histories.timestamps_N.tolist() == [1388534400, 1388620800, 1388707200]


def test_parquet_dates_and_integer_ids(tmp_path: Path) -> None:
    days = [datetime(2014, 1, 2), datetime(2014, 1, 1), datetime(2014, 1, 3)]
    frame = pl.DataFrame({"user": [1, 1, 1], "item": [7, 8, 9], "timestamp": days})
    frame.write_parquet(tmp_path / "t.parquet")
    dataset = load("table", tmp_path / "t.parquet")
    assert histories(dataset) == {"1": ["8", "7", "9"]}
    assert dataset.histories.timestamps_N.tolist() == [1388534400, 1388620800, 1388707200]


def test_quoted_records_span_lines_and_an_open_quote_costs_one_record(tmp_path: Path) -> None:
    content = 'a,"x\ny"\n"open,1\nb,2\nc,"3"\n"d""\n\n\n",4\n'
    (tmp_path / "t.csv").write_text(content)
    intake = Intake("t.csv", None, 1.0)
    lines = read_lines(tmp_path / "t.csv", intake)
    found = [(number, fields) for number, _, fields in csv_records(lines, intake, ",")]
    assert found == [(1, ["a", "x\ny"]), (4, ["b", "2"]), (5, ["c", "3"]), (6, ['d"\n', "4"])]
    assert intake.first == ["line 3: not valid CSV (quote is not closed)"]
    assert (intake.lines, intake.rejected) == (5, 1)


@pytest.mark.parametrize(("lines", "rejected"), [(LONGEST_RECORD, 0), (LONGEST_RECORD + 1, 1)])
def test_a_quoted_record_spans_so_many_lines(tmp_path: Path, lines: int, rejected: int) -> None:
    text = '"' + "\n".join("x" * lines) + '",1'
    (tmp_path / "t.csv").write_text(f"{text}\nb,2\n")
    intake = Intake("t.csv", None, 1.0)
    found = list(csv_records(read_lines(tmp_path / "t.csv", intake), intake, ","))
    assert found[-1] == (lines + 1, "b,2", ["b", "2"])
    assert intake.lines == len(found) + intake.rejected
    # Where it is too long, its first line is set aside and the others are read anew.
    assert (intake.rejected, len(found)) == (rejected, 2 if not rejected else lines)


def test_an_overlong_line_is_skipped_without_losing_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffgr2.data.lines.LONGEST_LINE", 16)
    (tmp_path / "t").write_bytes(b"one\n" + b"x" * 1_000 + b"\nthree\n" + b"y" * 16 + b"\nend")
    intake = Intake("t", None, 1.0)
    lines = list(read_lines(tmp_path / "t", intake))
    assert lines == [(1, "one"), (3, "three"), (4, "y" * 16), (5, "end")]
    assert intake.first == ["line 2: longer than 16 bytes"]


# ------------------------------------------------------------------------------ store and stage


def context(folder: Path, config: DataConfig) -> tuple[StageContext, io.StringIO]:
    stream = io.StringIO()
    out = folder / "out"
    out.mkdir()
    recipe = Recipe(name="x", data=config)
    return StageContext("data", recipe, {}, out, folder, Progress(stream)), stream


def test_the_stage_writes_what_it_reports(tmp_path: Path) -> None:
    path = table_file(tmp_path, "csv")
    path.write_bytes(path.read_bytes() + b"\nonly,three,fields\r\n")
    config = DataConfig(
        source="table",
        interactions=str(path),
        columns={k: v for k, v in COLUMNS.items() if k != "title"},
        k_core=0,
        max_bad_share=0.2,
    )
    ctx, stream = context(tmp_path, config)
    metrics = stage.run(ctx)
    dataset = read_dataset(ctx.out)
    assert histories(dataset) == BY_FILE
    assert metrics["interactions"] == 7
    assert all(isinstance(value, str | int | float) for value in metrics.values())
    assert json.loads((ctx.out / "quarantine.jsonl").read_text())["line"] == 9
    assert "data: 1 of 8 lines set aside:\ndata:   line 9: 3 fields" in stream.getvalue()
    assert stage.outside_files(ctx.recipe) == [path]


def test_the_stage_simulates_the_shop_with_its_truth(tmp_path: Path) -> None:
    config = DataConfig.model_validate({"shop": {"n_items": 60, "n_users": 40}})
    ctx, _ = context(tmp_path, config)
    metrics = stage.run(ctx)
    dataset = read_dataset(ctx.out)
    assert metrics["items"] == len(dataset.catalogue) == 60
    assert dataset.histories.n_users == 40
    assert load_arrays(ctx.out / "truth.safetensors")
    assert stage.outside_files(ctx.recipe) == []


@pytest.fixture
def written(tmp_path: Path) -> Path:
    items = write(tmp_path / "i.csv", "what,x,price", "a,t,2.5")
    columns = {**COLUMNS, "title": "x"}
    dataset = load("table", table_file(tmp_path, "parquet"), columns=columns, items=str(items))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_dataset(tmp_path / name, dataset)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    again = read_dataset(tmp_path / "one")
    assert histories(again) == histories(dataset)
    assert again.report == dataset.report
    assert text_of(again, "a")[:4] == ("t", "", [], 2.5)
    assert again.histories.offsets_U1.dtype == np.int64
    return tmp_path / "one"


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("histories.safetensors", None, "file is missing"),
        ("items.parquet", None, "file is missing"),
        ("users.parquet", None, "file is missing"),
        ("report.json", None, "file is missing"),
        ("histories.safetensors", b"", "not a readable safetensors file"),
        ("items.parquet", b"PAR1", "not a readable parquet file"),
        ("report.json", b"{", "not valid JSON"),
    ],
)
def test_a_damaged_dataset_is_named(
    written: Path, name: str, damage: bytes | None, message: str
) -> None:
    (written / name).unlink()
    if damage is not None:
        (written / name).write_bytes(damage)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_dataset(written)
    assert str(caught.value).startswith(str(written / name))
