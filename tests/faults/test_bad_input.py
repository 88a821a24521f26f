"""Malformed files and recipes: each ends in one exact line, none in a traceback.

Three tables: lines that cannot be used (set aside, or stopping the import when the recipe allows
none), files that cannot be used at all, and recipes.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from diffgr2.config import DataConfig
from diffgr2.data.records import import_dataset
from diffgr2.errors import ConfigError, DataError, Diffgr2Error
from diffgr2.recipe import load_recipe

YEAR_9999 = 253_402_300_800


def review(item: str, **changes: Any) -> bytes:
    record = {"reviewerID": "U", "asin": item, "unixReviewTime": 1_400_000_000, **changes}
    return json.dumps({k: v for k, v in record.items() if v is not ...}).encode()


def review_2023(item: str, **changes: Any) -> bytes:
    record = {"user_id": "U", "parent_asin": item, "timestamp": 1_400_000_000_123, **changes}
    return json.dumps({k: v for k, v in record.items() if v is not ...}).encode()


GOOD: dict[str, tuple[bytes | None, list[bytes]]] = {  # file name -> header, four good lines
    "r.json": (None, [review(item) for item in "abcd"]),
    "r.jsonl": (None, [review_2023(item) for item in "abcd"]),
    "b.csv": (
        b"user_id,parent_asin,rating,timestamp",
        [f"U,{item},5.0,1400000000123".encode() for item in "abcd"],
    ),
    "x.inter": (
        b"user_id:token\titem_id:token\ttimestamp:float",
        [f"U\t{item}\t1400000000".encode() for item in "abcd"],
    ),
    "s.txt": (None, [f"{user} a b c d".encode() for user in range(1, 5)]),
    "t.csv": (
        b"user,item,timestamp,position",
        [f"U,{item},1400000000,{i}".encode() for i, item in enumerate("abcd")],
    ),
    "t.tsv": (b"user\titem", [f"U\t{item}".encode() for item in "abcd"]),
    "t.jsonl": (None, [json.dumps({"user": "U", "item": item}).encode() for item in "abcd"]),
}

SOURCE = {
    "r.json": "amazon2014",
    "r.jsonl": "amazon2023",
    "b.csv": "amazon2023",
    "x.inter": "recbole",
    "s.txt": "p5",
    "t.csv": "table",
    "t.tsv": "table",
    "t.jsonl": "table",
}

BAD_LINES: list[tuple[str, bytes, str]] = [  # file, the bad line, the reason given
    ("r.json", review("e")[:-5], "not valid JSON (Expecting ',' delimiter at column 58)"),
    ("r.json", b"{'reviewerID': 'U'}", "not valid JSON (Expecting property name enclosed in "
     "double quotes at column 2)"),
    ("r.json", b"\x00\x01\x02\x03", "not valid JSON (Expecting value at column 1)"),
    ("r.json", b"\xff\xfe{}", "not valid UTF-8 at byte 1"),
    ("r.json", b'{"asin": "\xc3\x28"}', "not valid UTF-8 at byte 11"),
    ("r.json", b"[1, 2]", "not a JSON object"),
    ("r.json", b'"text"', "not a JSON object"),
    ("r.json", b"null", "not a JSON object"),
    ("r.json", b"[" * 100_000, "not valid JSON (nested too deep)"),
    ("r.json", b'{"unixReviewTime": ' + b"9" * 5_000 + b"}", "not valid JSON (number too long)"),
    ("r.json", review("e", reviewerID=...), "reviewerID is missing"),
    ("r.json", review("e", asin=...), "asin is missing"),
    ("r.json", review("e", unixReviewTime=...), "unixReviewTime is missing"),
    ("r.json", review("e", reviewerID=None), "reviewerID is missing"),
    ("r.json", review("e", reviewerID=17), "reviewerID is not text"),
    ("r.json", review("e", reviewerID=""), "reviewerID is empty"),
    ("r.json", review("e", reviewerID="   "), "reviewerID is empty"),
    ("r.json", review("e", reviewerID="x" * 257), "reviewerID is longer than 256 characters"),
    ("r.json", review("e", reviewerID="a\nb"), "reviewerID holds unprintable characters"),
    ("r.json", review("\ud800"), "asin holds unprintable characters"),
    ("r.json", review("", asin=["B1"]), "asin is not text"),
    ("r.json", review("e", unixReviewTime=None), "unixReviewTime is missing"),
    ("r.json", review("e", unixReviewTime="1400000000"), "unixReviewTime is not a number"),
    ("r.json", review("e", unixReviewTime=True), "unixReviewTime is not a number"),
    ("r.json", review("e", unixReviewTime=float("nan")),
     "not valid JSON (NaN is no JSON number)"),
    ("r.json", b'{"reviewerID": "U", "asin": "e", "unixReviewTime": 1e999}',
     "unixReviewTime is not finite"),
    ("r.json", review("e", unixReviewTime=-1), "unixReviewTime is negative"),
    ("r.json", review("e", unixReviewTime=YEAR_9999), "unixReviewTime is beyond the year 9999"),
    ("r.json", b'{"a":"' + b"x" * 4_194_304 + b'"}', "longer than 4194304 bytes"),
    ("r.jsonl", review_2023("e", parent_asin=...), "parent_asin is missing"),
    ("r.jsonl", review_2023("e", timestamp=-5), "timestamp is negative"),
    ("r.jsonl", review_2023("e", timestamp="soon"), "timestamp is not a number"),
    ("b.csv", b"U,e,5.0", "3 fields, expected 4"),
    ("b.csv", b"U,e,5.0,1,2,3", "6 fields, expected 4"),
    ("b.csv", b"U,e,5.0,", "timestamp is missing"),
    ("b.csv", b",e,5.0,1400000000123", "user_id is empty"),
    ("b.csv", b"U,e,5.0,yesterday", "timestamp is neither a number nor an ISO date"),
    ("b.csv", b'"U,e,5.0,1400000000123', "not valid CSV (quote is not closed)"),
    ("b.csv", b'"U"x,e,5.0,1400000000123', "not valid CSV (',' expected after '\"')"),
    ("x.inter", b"U e 1400000000", "1 fields, expected 3"),
    ("x.inter", b"U\te\tnan", "timestamp is neither a number nor an ISO date"),
    ("x.inter", b"U\te\t-3.5", "timestamp is negative"),
    ("x.inter", b"\te\t1400000000", "user_id is empty"),
    ("x.inter", b"U\te\x07\t1400000000", "item_id holds unprintable characters"),
    ("s.txt", b"99", "a user without items"),
    ("s.txt", b"1 e f g", "user 1 stands twice"),
    ("s.txt", b"98 e\tf g", "id holds unprintable characters"),
    ("t.csv", b"U,e,1400000000,first", "position is not a whole number from 0"),
    ("t.csv", b"U,e,1400000000,-1", "position is not a whole number from 0"),
    ("t.csv", b"U,e,inf,1", "timestamp is neither a number nor an ISO date"),
    ("t.csv", b"U,e,1e300,1", "timestamp is beyond the year 9999"),
    ("t.csv", b"U,e,1e999,1", "timestamp is not finite"),
    ("t.csv", b"U,e,1960-01-01,1", "timestamp is negative"),
    ("t.csv", b"U,e,2014-02-30,1", "timestamp is neither a number nor an ISO date"),
    ("t.tsv", b"U,e", "1 fields, expected 2"),
    ("t.jsonl", b'{"user": "U"}', "item is missing"),
    ("t.jsonl", b'{"user": 1.5, "item": "e"}', "user is not text"),
    ("t.jsonl", b'{"user": true, "item": "e"}', "user is not text"),
    ("t.jsonl", b'{"user": {"id": 1}, "item": "e"}', "user is not text"),
]  # fmt: skip


def ids(table: list[tuple]) -> list[str]:
    return [f"{i}-{row[0]}"[:60] for i, row in enumerate(table)]


def write_lines(folder: Path, name: str, bad: bytes) -> tuple[Path, int]:
    """The good lines with the bad one after the second; returns its line number."""
    header, good = GOOD[name]
    lines = [*([header] if header else []), *good[:2], bad, *good[2:]]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")
    return folder / name, lines.index(bad) + 1


def config(path: Path, source: str, **more: Any) -> DataConfig:
    return DataConfig(source=source, interactions=str(path), k_core=0, **more)  # type: ignore[arg-type]


def test_the_tables_hold_enough_distinct_cases() -> None:
    cases = {(row[0], row[1]) for row in BAD_LINES}
    assert len(cases) == len(BAD_LINES)
    assert len(BAD_LINES) + len(BAD_FILES) + len(BAD_RECIPES) + len(BAD_SETS) >= 60
    assert len(BAD_RECIPES) + len(BAD_SETS) >= 20


@pytest.mark.parametrize(("name", "bad", "reason"), BAD_LINES, ids=ids(BAD_LINES))
def test_a_bad_line_stops_an_import_that_allows_none(
    tmp_path: Path, name: str, bad: bytes, reason: str
) -> None:
    path, number = write_lines(tmp_path, name, bad)
    with pytest.raises(DataError) as caught:
        import_dataset(config(path, SOURCE[name], max_bad_share=0.0), 0)
    assert str(caught.value) == (
        f"{name}: 1 of 5 lines are malformed (20.0%, max_bad_share is 0.0%); "
        f"first: line {number}: {reason}"
    )


@pytest.mark.parametrize(("name", "bad", "reason"), BAD_LINES, ids=ids(BAD_LINES))
def test_a_bad_line_within_the_share_is_set_aside_and_counted(
    tmp_path: Path, name: str, bad: bytes, reason: str
) -> None:
    path, number = write_lines(tmp_path, name, bad)
    quarantine = tmp_path / "quarantine.jsonl"
    dataset = import_dataset(config(path, SOURCE[name], max_bad_share=0.2), 0, quarantine)
    [entry] = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert (entry["file"], entry["line"], entry["reason"]) == (name, number, reason)
    assert len(entry["text"]) <= 200
    report = dataset.report
    assert (report["lines_in"], report["lines_used"], report["lines_rejected"]) == (5, 4, 1)
    assert report["first_rejected"] == [f"line {number}: {reason}"]
    assert report["interactions"] == (16 if name == "s.txt" else 4)


# ------------------------------------------------------------------------- files of no use at all

PACKED = gzip.compress(b"\n".join(review(f"i{n}") for n in range(2_000)))

BAD_FILES: list[tuple[str, str, bytes | None, str]] = [  # file, source, content, message
    ("gone.json", "amazon2014", None, "{path}: no such file"),
    ("gone.parquet", "table", None, "{path}: no such file"),
    ("empty.json", "amazon2014", b"", "empty.json: holds no data lines"),
    ("blank.json", "amazon2018", b"\n \n\n", "blank.json: holds no data lines"),
    ("empty.csv", "table", b"", "empty.csv: is empty"),
    ("head.csv", "table", b"user,item\n", "head.csv: holds no data lines"),
    ("blank.csv", "table", b"\nuser,item\nU,a\n", "blank.csv: line 1: not a readable header"),
    ("junk.csv", "table", b"\xff\xfe\nU,a\n", "junk.csv: line 1: not a readable header"),
    ("twice.csv", "table", b"user,item,item\nU,a,b\n",
     "twice.csv: line 1: column 'item' stands twice"),
    ("open.csv", "table", b'user,"item\nU,a\n',
     "open.csv: line 1: not valid CSV (quote is not closed)"),
    ("names.csv", "table", b"who,what\nU,a\n",
     "names.csv: columns.user: no column 'user' (it has: what, who)"),
    ("x.xlsx", "table", b"PK", "x.xlsx: unknown kind of table "
     "(expected .csv, .tsv, .jsonl, each also with .gz, or .parquet)"),
    ("x.parquet", "table", b"PAR1 but not really PAR1", "x.parquet: not a readable parquet file "
     "({any})"),
    ("cut.json.gz", "amazon2014", PACKED[:-20],
     "cut.json.gz: compressed data is cut off or corrupt after line {any}"),
    ("bits.json.gz", "amazon2014", PACKED[:900] + b"\x55" * 60 + PACKED[960:],
     "bits.json.gz: compressed data is cut off or corrupt after line {any}"),
    ("r.csv", "amazon2014", b"user_id,parent_asin\n",
     "r.csv: amazon2014 is JSON lines; a csv goes through source table"),
    ("r.csv", "amazon2023", b"user_id,asin,rating,timestamp\nU,a,5,1\n",
     "r.csv: columns.item: no column 'parent_asin' (it has: asin, rating, timestamp, user_id)"),
    ("x.inter", "recbole", b"user_id\titem_id\nU\ta\n", "x.inter: line 1: 'user_id' is not "
     "name:type (types: token, token_seq, float, float_seq)"),
    ("x.inter", "recbole", b"user_id:token\titem_id:word\nU\ta\n", "x.inter: line 1: "
     "'item_id:word' is not name:type (types: token, token_seq, float, float_seq)"),
    ("x.inter", "recbole", b"user_id:token\tuser_id:token\nU\ta\n",
     "x.inter: line 1: column 'user_id:token' stands twice"),
    ("x.inter", "recbole", b"user_id:token\titem:token\nU\ta\n",
     "x.inter: line 1: column item_id:token is missing"),
    ("x.inter", "recbole", b"user_id:token\titem_id:token\ttimestamp:token\nU\ta\t1\n",
     "x.inter: line 1: timestamp is token, expected float"),
    ("x.inter", "recbole", b"user_id:token\titem_id_list:token_seq\titem_id:token\nU\ta b\tc\n",
     "x.inter: line 1: item_id_list marks a split file; "
     "the .inter file with one interaction per line is needed"),
    ("short.txt", "p5", b"1 a b\n2 a\n", "short.txt: nothing is left of 3 interactions after the "
     "0-core and users with fewer than 3 interactions (users have 1.5 each: is `user` the right "
     "column?)"),
    ("all.json", "amazon2014", b"{}\n{}\n", "all.json: 2 of 2 lines are malformed "
     "(100.0%, max_bad_share is 50.0%); first: line 1: reviewerID is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "content", "message"), BAD_FILES, ids=ids(BAD_FILES))
def test_a_file_of_no_use_is_one_line(
    tmp_path: Path, name: str, source: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        import_dataset(config(path, source, max_bad_share=0.5), 0)
    text = str(caught.value)
    assert "\n" not in text
    head, any_, tail = message.replace("{path}", str(path)).partition("{any}")
    assert text == head if not any_ else (text.startswith(head) and text.endswith(tail))


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        import_dataset(config(tmp_path, "amazon2014"), 0)
    assert str(caught.value) == f"{tmp_path}: cannot be read (Is a directory)"


def test_a_sequence_cannot_be_shuffled_within_ties(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path, "s.txt", b"77 a b c")
    with pytest.raises(DataError) as caught:
        import_dataset(config(path, "p5", tie_order="shuffle"), 0)
    assert str(caught.value) == (
        "s.txt: tie_order shuffle needs timestamps; without them it would shuffle whole histories"
    )


def test_a_core_that_swallows_everything_is_one_line(tmp_path: Path) -> None:
    path, _ = write_lines(tmp_path, "r.json", review("e"))
    bad = DataConfig(source="amazon2014", interactions=str(path), k_core=9)
    with pytest.raises(DataError) as caught:
        import_dataset(bad, 0)
    assert str(caught.value) == (
        "r.json: nothing is left of 5 interactions after the 9-core and users with fewer than "
        "3 interactions (k_core: 1 would keep 1 users)"
    )


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"user": [None], "item": ["e"], "timestamp": [1.0]}, "user is missing"),
        ({"user": ["U"], "item": [None], "timestamp": [1.0]}, "item is missing"),
        ({"user": ["U"], "item": ["e"], "timestamp": [float("nan")]}, "timestamp is not finite"),
        ({"user": ["U"], "item": ["e"], "timestamp": [None]}, "timestamp is missing"),
        ({"user": ["U"], "item": ["e"], "timestamp": [-1.0]}, "timestamp is negative"),
        ({"user": ["\x01"], "item": ["e"], "timestamp": [1.0]},
         "user holds unprintable characters"),
    ],
)  # fmt: skip
def test_a_bad_parquet_row_is_named(tmp_path: Path, table: dict, reason: str) -> None:
    good = pl.DataFrame({"user": ["U"] * 4, "item": list("abcd"), "timestamp": [1.0] * 4})
    path = tmp_path / "t.parquet"
    pl.concat([good, pl.DataFrame(table, schema=good.schema)]).write_parquet(path)
    with pytest.raises(DataError) as caught:
        import_dataset(config(path, "table", max_bad_share=0.1), 0)
    assert str(caught.value) == (
        "t.parquet: 1 of 5 lines are malformed (20.0%, max_bad_share is 10.0%); "
        f"first: line 5: {reason}"
    )


BAD_ITEMS: list[tuple[str, str, bytes, str]] = [  # interactions, item file, content, message
    ("r.json", "m.json", b"{'asin': 'a', 'title': 3}", "line 1: title is not text"),
    ("r.json", "m.json", b"{'title': 'x'}", "line 1: asin is missing"),
    ("r.json", "m.json", b"__import__('os').getcwd()", "line 1: neither JSON nor a Python dict"),
    ("r.json", "m.json", b"{'a': " + b"[" * 250 + b"]" * 250 + b"}",
     "line 1: neither JSON nor a Python dict"),
    ("r.json", "m.json", b"{'a': " + b"(" * 500_000 + b"}",
     "line 1: neither JSON nor a Python dict"),
    ("r.json", "m.json", b"{'a': " + b"-" * 50_000 + b"1}", "line 1: nested too deep"),
    ("r.json", "m.json", b"{'a': 1" + b"+1" * 50_000 + b"}", "line 1: nested too deep"),
    ("r.json", "m.json", b"{'asin': 'a', 'x': '" + b"y" * 2**20 + b"'}",
     "line 1: longer than 1048576 characters"),
    ("r.json", "m.json", b"['asin', 'a']", "line 1: not a dict"),
    ("r.json", "m.json", b"{'asin': 'a', 'categories': 5}", "line 1: categories is not a list"),
    ("r.json", "m.json", b"{'asin': 'a', 'categories': [1]}",
     "line 1: categories is not a list of text"),
    ("r.json", "m.json", b"{'asin': 'a', 'price': True}", "line 1: price is not a number"),
    ("r.jsonl", "m.jsonl", b'{"parent_asin": 5}', "line 1: parent_asin is not text"),
    ("t.csv", "m.csv", b"item,title\n,x", "line 2: item is empty"),
    ("x.inter", "m.item", b"item_id:token\ttitle:token_seq\n\tx", "line 2: item_id is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "items", "content", "reason"), BAD_ITEMS, ids=ids(BAD_ITEMS))
def test_bad_metadata_is_one_line(
    tmp_path: Path, name: str, items: str, content: bytes, reason: str
) -> None:
    header, good = GOOD[name]
    (tmp_path / name).write_bytes(b"\n".join([*([header] if header else []), *good]))
    (tmp_path / items).write_bytes(content)
    bad = config(tmp_path / name, SOURCE[name], items=str(tmp_path / items))
    with pytest.raises(DataError) as caught:
        import_dataset(bad, 0)
    assert str(caught.value) == (
        f"{items}: 1 of 1 lines are malformed (100.0%, max_bad_share is 1.0%); first: {reason}"
    )


# ----------------------------------------------------------------------------------------- recipes

BAD_RECIPES: list[tuple[bytes, str]] = [
    (b"", "x.yaml: expected a mapping of sections"),
    (b"- a\n- b\n", "x.yaml: expected a mapping of sections"),
    (b"just text", "x.yaml: expected a mapping of sections"),
    (b"data: [1, 2\n", "x.yaml: line 2: not valid YAML (expected ',' or ']', but got "
     "'<stream end>')"),
    (b"data:\n\tk_core: 5\n", "x.yaml: line 2: not valid YAML (found character '\\t' that cannot "
     "start any token)"),
    (b"data: {k_core: 5}\ndata: {k_core: 3}\n", "x.yaml: line 2: key 'data' stands twice"),
    (b"data:\n  k_core: 5\n  k_core: 5\n", "x.yaml: line 3: key 'k_core' stands twice"),
    (b"1: 2\n", "x.yaml: line 1: key 1 is not text"),
    (b"data: !!python/object/apply:os.getcwd []\n", "x.yaml: line 1: not valid YAML (could not "
     "determine a constructor for the tag 'tag:yaml.org,2002:python/object/apply:os.getcwd')"),
    (b"data: *nowhere\n", "x.yaml: line 1: not valid YAML (found undefined alias 'nowhere')"),
    (b"data: &a [*a]\n", "x.yaml: line 1: not valid YAML (found unconstructable recursive node)"),
    (b"[" * 500, "x.yaml: not valid YAML (RecursionError)"),
    (b"a: 1\n---\nb: 2\n", "x.yaml: line 2: not valid YAML (but found another document)"),
    (b"\x00\x01", "x.yaml: not valid YAML (ReaderError)"),
    (b"\xff\xfe\x00", "x.yaml: cannot be read ('utf-8' codec can't decode byte 0xff in position "
     "0: invalid start byte)"),
    (b"dta: {}\n", "x.yaml: dta: unknown key; did you mean data?"),
    (b"data: {k_cor: 5}\n", "x.yaml: data.k_cor: unknown key; did you mean k_core?"),
    (b"data: 5\n", "x.yaml: data: Input should be a valid dictionary or instance of DataConfig "
     "(got 5)"),
    (b'data: {k_core: "5"}\n', "x.yaml: data.k_core: Input should be a valid integer (got '5')"),
    (b"data: {k_core: true}\n", "x.yaml: data.k_core: Input should be a valid integer (got True)"),
    (b"data: {k_core: 5.5}\n", "x.yaml: data.k_core: Input should be a valid integer (got 5.5)"),
    (b"data: {k_core: -1}\n", "x.yaml: data.k_core: Input should be greater than or equal to 0 "
     "(got -1)"),
    (b"data: {max_bad_share: 1.5}\n", "x.yaml: data.max_bad_share: Input should be less than or "
     "equal to 1 (got 1.5)"),
    (b"data: {max_bad_share: .nan}\n", "x.yaml: data.max_bad_share: Input should be a finite "
     "number (got nan)"),
    (b"data: {tie_order: random}\n", "x.yaml: data.tie_order: Input should be 'file' or 'shuffle' "
     "(got 'random')"),
    (b"data: {source: amazon2014}\n", "x.yaml: data: interactions: source amazon2014 needs a file"),
    (b"data: {source: p5, interactions: a, columns: {user: u}}\n", "x.yaml: data: columns: source "
     "p5 has none, only source table"),
    (b"data: {source: table, interactions: a, columns: {usr: u}}\n", "x.yaml: data: columns: "
     "unknown word usr (known: user, item, timestamp, position, title, brand, categories, price, "
     "description)"),
    (b"data: {source: table, interactions: a, columns: {title: t}}\n", "x.yaml: data: columns: "
     "title is read from the item file, which is not given"),
    (b"data: {shop: {n_items: 10}}\n", "x.yaml: data.shop.n_items: Input should be greater than or "
     "equal to 50 (got 10)"),
    (b"data: {k_core: -1, tie_seed: -1}\n", "x.yaml: data.k_core: Input should be greater than or "
     "equal to 0 (got -1) (and 1 more)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD_RECIPES, ids=ids(BAD_RECIPES))
def test_a_bad_recipe_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(tmp_path / "x.yaml"))
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


BAD_SETS: list[tuple[str, str]] = [
    ("data.k_core", "--set data.k_core: expected key.key=value"),
    ("=5", "--set =5: expected key.key=value"),
    ("data..k_core=5", "--set data..k_core=5: expected key.key=value"),
    ("data.k_core=[1", "--set data.k_core=[1: value is not valid YAML"),
    ("data.k_core={a: 1, a: 2}", "--set data.k_core={a: 1, a: 2}: value is not valid YAML"),
    ("name.x=1", "--set name.x=1: name is not a section"),
    ("data.k_core=", "--set: data.k_core: Input should be a valid integer (got None)"),
    ("data.k_core=five", "--set: data.k_core: Input should be a valid integer (got 'five')"),
    ("data.k_kore=5", "--set: data.k_kore: unknown key; did you mean k_core?"),
    ("dat.k_core=5", "--set: dat: unknown key; did you mean data?"),
]


@pytest.mark.parametrize(("override", "message"), BAD_SETS, ids=ids(BAD_SETS))
def test_a_bad_override_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "x.yaml").write_text("name: x\ndata: {k_core: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(tmp_path / "x.yaml"), [override])
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["gone.yaml", "no-such-recipe", "x" * 5_000, "", "a\0b"], ids=repr)
def test_a_recipe_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match="no such recipe") as caught:
        load_recipe(name)
    assert isinstance(caught.value, Diffgr2Error)
    assert "\n" not in str(caught.value)
