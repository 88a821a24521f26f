"""Whatever a file of lists holds: it is read, put aside with a reason, or refused in one line."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.lines import BadLine, Intake
from diffgr2.data.own_rows import read_own
from diffgr2.data.own_values import (
    Moment,
    flag_of,
    guessed,
    history_of,
    moment_of,
    outcome_of,
    place_of,
    real,
    resolved,
    word_of,
)
from diffgr2.errors import DataError, Diffgr2Error
from diffgr2.own import ListsConfig

CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["1", "0", "yes", "2.5", "1e400", "nan", "2026-11-01", "[1]", '["a"]', "a|b"]),
    st.lists(st.one_of(st.text(max_size=3), st.integers()), max_size=3),
)


@pytest.mark.parametrize(
    "reader", [real, place_of, outcome_of, moment_of, history_of, word_of, flag_of]
)
@given(value=CELLS)
def test_a_value_is_read_or_refused_with_a_reason_of_one_line(reader, value) -> None:
    found, said = None, ""
    try:
        found = reader(value, "column")
    except BadLine as bad:
        said = str(bad)
    assert not said or said.startswith("column")
    assert "\n" not in said
    assert len(said) < 200
    if isinstance(found, float):
        assert np.isnan(found) or abs(found) <= np.finfo(np.float32).max
    if isinstance(found, Moment):
        assert found.value >= 0


@given(st.lists(CELLS, max_size=12))
def test_a_feature_column_has_a_number_or_nothing_for_every_row(values: list) -> None:
    feature = resolved("f", values, None)
    assert feature.kind == guessed(values)
    assert feature.value_N.shape == (len(values),)
    bad = {row for row, _ in feature.bad}
    assert not np.isinf(feature.value_N).any()
    assert np.isnan(feature.value_N[sorted(bad)]).all()
    if feature.kind == "category":
        known_N = feature.value_N[~np.isnan(feature.value_N)].astype(int)
        assert ((known_N >= 0) & (known_N < len(feature.words))).all()
        assert list(feature.words) == sorted(set(feature.words))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.sampled_from([1, 100, 0.01]))
def test_the_kind_of_a_column_does_not_hang_on_its_scale(values: list[float], scale: float) -> None:
    if {*values} <= {0.0, 1.0}:
        return
    assert guessed([value * scale for value in values]) == "number"
    assert guessed([str(value * scale) for value in values]) == "number"


RECORD = st.dictionaries(
    st.sampled_from(["list", "user", "moment", "item", "place", "score", "bought", "history", "f"]),
    CELLS,
)
GOOD = [{"list": "r", "item": item, "place": place} for place, item in enumerate("abc")]


@settings(deadline=None, max_examples=150)
@given(st.lists(RECORD, max_size=8))
def test_any_records_keep_the_count_and_hide_nothing(records: list[dict]) -> None:
    config = ListsConfig.model_validate({"file": "x", "features": ["f"], "max_bad_share": 1.0})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.jsonl"
        lines = [json.dumps(record, allow_nan=True) for record in [*GOOD, *records]]
        path.write_text("\n".join(lines) + "\n")
        intake, found, said = Intake(path.name, None, 1.0), None, ""
        try:
            found = read_own(path, config, intake)
        except Diffgr2Error as error:
            said = str(error)
    assert "\n" not in said
    if found is None:
        return
    assert intake.lines == len(lines)
    assert found.lists
    held = sum(one.lines for one in found.lists) + found.single + intake.rejected
    assert held >= intake.lines - len(records), "rows are in lists, left out, or put aside"
    for one in found.lists:
        assert len(one.items) == len(set(one.items)) >= 2
        assert len(one.rows) == len(one.scores) == len(one.gains) == len(one.items)
        placed = [place for place in one.places if place is not None]
        assert placed == sorted(placed)


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=300), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz"]))
def test_any_bytes_are_one_line(content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"l.{kind}"
        path.write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_own(path, ListsConfig(file="x"), Intake(path.name, None, 1.0))
    assert "\n" not in str(caught.value)
