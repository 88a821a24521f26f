"""Files and options that `diffgr2 init` cannot use: one line each, and no recipe is written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffgr2 import cli
from diffgr2.data.guess import guess
from diffgr2.data.peek import peek
from diffgr2.errors import DataError

LOG = "user,item\n" + "".join(f"u{n % 9},i{(n * 4) % 7}\n" for n in range(63))
ITEMS = "item,title\n" + "".join(f"i{n},thing {n} red\n" for n in range(7))
LISTS = "request_id,item,rank,click\n" + "".join(f"r{n // 7},i{n % 7},{n % 7},{n % 2}\n"
                                                 for n in range(63))  # fmt: skip

THERE: dict[str, bytes | str] = {
    "a.csv": LOG,
    "b.csv": LOG.replace("user,", "what,"),
    "l.csv": LISTS,
}

FILES: list[tuple[dict[str, bytes | str], str]] = [
    ({"a.csv": ""}, "a.csv: is empty"),
    ({"a.csv": "user,item\n"}, "a.csv: holds no lines\n"),
    ({"a.csv": "user,user\n1,2\n"}, "a.csv: line 1: column 'user' stands twice\n"),
    ({"a.csv": 'user,"item\n1,2\n'}, "a.csv: line 1: not valid CSV (quote is not closed)\n"),
    ({"a.csv": b"\xff\xfeuser,item\n1,2\n"}, "a.csv: line 1: not a readable header\n"),
    (
        {"a.csv": "user;item\n1;2\n"},
        "a.csv: line 1: one column only, with ';' in its name; .csv is separated by commas\n",
    ),
    (
        {"a.tsv": "user,item\n1,2\n"},
        "a.tsv: line 1: one column only, with ',' in its name; .tsv is separated by tabs\n",
    ),
    (
        {"a.csv": "user,item\n1\n2\n3,4\n"},
        "a.csv: 2 of 3 lines cannot be read; first: line 2: 1 fields, expected 2\n",
    ),
    (
        {"a.jsonl": "nothing\nof it\n"},
        "a.jsonl: holds no lines but 2 that cannot be read: line 1: not valid JSON (Expecting ",
    ),
    (
        {"a.jsonl": "[1, 2]\n"},
        "a.jsonl: holds no lines but 1 that cannot be read: line 1: not a JSON object\n",
    ),
    (
        {"a.csv.gz": gzip.compress(LOG.encode())[:-9]},
        "a.csv.gz: compressed data is cut off or corrupt after line ",
    ),
    ({"a.parquet": "user,item\n1,2\n"}, "a.parquet: not a readable parquet file ("),
    ({"a.xlsx": "PK"}, "{folder}/a.xlsx: its name tells no format (known: .csv, .tsv, .jsonl "),
    (
        {"a.csv": ITEMS},
        "{folder}/a.csv: looks like items (each item stands once, with texts), and no file holds "
        "interactions; if it does, say --interactions {folder}/a.csv\n",
    ),
    (
        {"a.csv": "x,y\n1.5,2.5\n2.5,1.5\n"},
        "{folder}/a.csv: neither interactions nor items nor lists by its columns (x, y); say "
        "--interactions, --items or --lists before it\n",
    ),
    (
        {"a.csv": LOG, "b.csv": LOG},
        "{folder}/a.csv and {folder}/b.csv both look like interactions: say which with ",
    ),
    (
        {"a.csv": LOG, "b.csv": ITEMS.replace("\ni", "\nk")},
        "b.csv: none of its 7 lines is about one of the 7 items of a.csv (there: i0, i1, i2); ",
    ),
    (
        {"a.csv": "user,item\n" + "".join(f"u{n // 2},i{n % 3}\n" for n in range(18))},
        "a.csv: nothing is left of 18 interactions after the ",
    ),
    (
        {"a.csv": LOG.replace("u1,", ",", 7)},
        "a.csv: 7 of 63 lines are malformed (11.1%, max_bad_share is 1.0%); first: line 3: user ",
    ),
]


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.run(["init", *arguments])
    return code, capsys.readouterr().err


def put(folder: Path, files: dict[str, bytes | str]) -> list[str]:
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in files]


@pytest.mark.parametrize(("files", "message"), FILES, ids=[message[:50] for _, message in FILES])
def test_a_file_of_no_use_is_one_line(
    files: dict[str, bytes | str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.yaml"
    code, err = say(capsys, *put(tmp_path, files), "--yes", "--out", str(out))
    assert code == 2
    assert err.startswith("error: " + message.format(folder=tmp_path)), err
    assert err.count("\n") == 1, err
    assert not out.exists()


OPTIONS: list[tuple[list[str], str]] = [
    ([], "init: name the files, for example: diffgr2 init orders.csv products.csv"),
    (["gone.csv"], "gone.csv: no such file"),
    (["."], ".: no such file"),
    (["a.csv", "--out", "r.json"], "--out r.json: a recipe's name ends in .yaml"),
    (["a.csv", "--out", "there.yaml"], "there.yaml: stands already (--out another, or remove it)"),
    (
        ["a.csv", "--map", "user"],
        "--map user: expected word=column, or interactions.word=column",
    ),
    (
        ["a.csv", "--map", "items.item=x"],
        "--map items.item=x: expected word=column, or interactions.word=column",
    ),
    (
        ["a.csv", "--map", "buyer=user"],
        "--map buyer=user: unknown word buyer (known: item, user, timestamp, position)",
    ),
    (
        ["a.csv", "--map", "user=who"],
        "--map user=who: no column 'who' in a.csv (it has: user, item)",
    ),
    (
        ["l.csv", "--lists", "a.csv"],
        "l.csv and a.csv both look like lists: say which with --interactions, --items, --lists",
    ),
    (
        ["--lists", "b.csv"],
        "b.csv: no column is surely the list (it has: what, item): say --map lists.list=COLUMN",
    ),
    (
        ["--lists", "b.csv", "--map", "list=what"],
        "b.csv: no column says what came of a candidate (0 or 1, named click, cart, purchase, …): "
        "say --map lists.outcome=COLUMN",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), OPTIONS, ids=[m[:50] for _, m in OPTIONS])
def test_an_option_of_no_use_is_one_exact_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, {**THERE, "there.yaml": "seed: 1\n"})
    assert say(capsys, *arguments, "--yes") == (2, f"error: {message}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [*THERE, "there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "seed: 1\n"


CELLS = st.sampled_from(["", "0", "1", "u1", "i2", "1.5", "2020-01-02", "x y z", "nan", "é", "[1]"])
HEADERS = st.lists(
    st.sampled_from(["user", "item", "time", "list_id", "click", "rank", "title", "x", "Y 1", ""]),
    min_size=1, max_size=5, unique=True,
)  # fmt: skip


@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_small_table_is_understood_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    header = data.draw(HEADERS)
    row = st.lists(CELLS, min_size=len(header), max_size=len(header))
    path = tmp_path / "x.csv"
    lines = [header, *data.draw(st.lists(row, max_size=12))]
    path.write_text("\n".join(",".join(line) for line in lines) + "\n")
    try:
        uses = guess([peek(path)], {}, {})
    except DataError as refused:
        message = str(refused)
        uses = {}
    else:
        message = ""
    assert "\n" not in message
    assert bool(uses) != bool(message)
    for use in uses.values():
        columns = [one.column for one in use.guesses]
        assert len(columns) == len(set(columns))
        open_ = {name for names in use.open.values() for name in names}
        assert {*columns} | open_ == {*use.peek.columns}, "every column is accounted for"
        words = [one.word for one in use.guesses if one.word not in ("", "outcome", "feature")]
        assert len(words) == len(set(words)), "no word is two columns"
