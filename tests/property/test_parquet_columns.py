"""A parquet table read by columns against the reader that looks at one row after the other."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.columns import Source, gathered, read_interactions
from diffgr2.data.lines import Intake
from diffgr2.errors import DataError

NAMES = {"user": "who", "item": "what", "timestamp": "when", "position": "place"}
MOMENTS = st.datetimes(datetime(1969, 12, 30), datetime(2200, 1, 1))
IDS = st.one_of(
    st.sampled_from(
        ["u1", "u2", " u1", "u2 ", "", " ", "né", "a\nb", "x" * 256, "x" * 257, "\x00"]
    ),
    st.text(max_size=4),
)
KINDS: dict[str, list[tuple[Any, Any]]] = {
    "id": [
        (pl.String, IDS),
        (pl.Categorical, st.sampled_from(["u1", " u1", "u2", ""])),
        (pl.Int64, st.integers(-(2**63), 2**63 - 1)),
        (pl.UInt8, st.integers(0, 3)),
        (pl.Float64, st.just(1.0)),
        (pl.Boolean, st.booleans()),
    ],
    "time": [
        (pl.Int64, st.one_of(st.integers(-3, 3), st.integers(0, 2**62))),
        (pl.Int64, st.integers(99_999_999_990, 100_000_000_010)),
        (pl.UInt64, st.integers(0, 2**64 - 1)),
        (pl.Int32, st.integers(-5, 2**31 - 1)),
        (pl.Float64, st.floats()),
        (pl.Float32, st.floats(width=32)),
        (pl.Float64, st.floats(0, 1e10)),
        (pl.Datetime("ms"), MOMENTS),
        (pl.Datetime("us", "UTC"), MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC))),
        (pl.Datetime("ns"), st.datetimes(datetime(1969, 12, 31), datetime(2200, 1, 1))),
        (pl.Date, st.dates(date(1960, 1, 1), date(9999, 12, 31))),
        (pl.Duration, st.just(timedelta(seconds=1))),
        (pl.Boolean, st.booleans()),
        (
            pl.String,
            st.one_of(
                st.integers(-3, 10**17).map(str),
                st.sampled_from([" 12 ", "1.5", "1e9", "2020-01-01", "2020-01-01T00:00:01Z", ""]),
                st.sampled_from(["x", "nan", "-1", "0012", "9" * 15, "9" * 16, "٣"]),
            ),
        ),
    ],
    "place": [
        (pl.Int64, st.integers(-2, 2**63 - 1)),
        (pl.UInt64, st.integers(0, 2**64 - 1)),
        (pl.String, st.sampled_from(["0", "7", " 3 ", "x", "-1", "", "٣"])),
        (pl.Float64, st.just(2.0)),
    ],
}


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    size, columns = draw(st.integers(1, 8)), {}
    wanted = {"who": "id", "what": "id"}
    wanted |= {"when": "time"} if draw(st.booleans()) else {}
    wanted |= {"place": "place"} if draw(st.booleans()) else {}
    for name, kind in wanted.items():
        usual = kind == "id" and draw(st.booleans())  # or hardly any row could be used
        dtype, values = (
            (pl.String, st.sampled_from("abc")) if usual else draw(st.sampled_from(KINDS[kind]))
        )
        cells = draw(st.lists(st.none() | values, min_size=size, max_size=size))
        columns[name] = pl.Series(name, cells, dtype=dtype)
    if draw(st.booleans()):
        columns["more"] = pl.Series(
            "more", draw(st.lists(st.booleans(), min_size=size, max_size=size))
        )
    return pl.DataFrame(columns)


def told(path: Path, source: Source, *, columns: bool) -> Any:
    """All that comes of a file: rows and their marks, counts, messages, rows put aside."""
    aside = path.with_suffix(f".{columns}")
    aside.unlink(missing_ok=True)
    intake = Intake(path.name, aside, 1.0)
    try:
        if columns:
            raw = read_interactions(path, source, intake)
        else:
            gatherer, timed = gathered(path, source, intake)
            raw = gatherer.finish(intake.name, timed=timed)
        again = None if raw.again is None else raw.again.to_list()
        found: Any = (raw.events.rows(), raw.timed, raw.placed, again)
    except DataError as error:
        found = str(error)
    lines = [json.loads(line) for line in aside.read_text().splitlines()] if aside.exists() else []
    return found, intake.lines, intake.rejected, intake.first, lines


@settings(deadline=None, max_examples=300)
@given(tables(), st.sampled_from(["auto", "s", "ms"]), st.booleans())
def test_columns_say_what_rows_say(table: pl.DataFrame, unit: str, once: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        table.write_parquet(path)
        names = {word: name for word, name in NAMES.items() if name in table.columns}
        source = Source("parquet", names, unit, once=once)
        assert told(path, source, columns=True) == told(path, source, columns=False)


def test_both_ways_are_told_from_each_other(tmp_path: Path) -> None:
    """The comparison above sees a difference in a row, in a mark and in a message."""
    path, seen = tmp_path / "t.parquet", []
    for who in ("a", "b", " ", None):
        pl.DataFrame({"who": ["a", "a", who], "what": ["x", "x", "x"]}).write_parquet(path)
        source = Source("parquet", {"user": "who", "item": "what"}, once=True)
        seen.append(told(path, source, columns=True))
    assert seen[0][0][3] == [False, True, True]
    assert seen[1][0][3] == [False, True, False]
    assert [one[3] for one in seen[2:]] == [["line 3: who is empty"], ["line 3: who is missing"]]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 90 + b"PAR1"])
def test_what_is_no_parquet_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DataError, match="not a readable parquet file") as error:
        read_interactions(
            tmp_path / "t.parquet", Source("parquet", {}), Intake("t.parquet", None, 0)
        )
    assert "\n" not in str(error.value)
