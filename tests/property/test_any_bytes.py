"""Arbitrary and mutated bytes into every importer: a Dataset or a named error, nothing else."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffgr2.config import DataConfig
from diffgr2.data.records import import_dataset
from diffgr2.data.store import Dataset, read_dataset, write_dataset
from diffgr2.errors import Diffgr2Error

PAIRS = [(f"U{u}", f"I{(u * 3 + n) % 5}", 1_400_000_000 + n) for u in range(3) for n in range(4)]


def _parquet() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        rows = pl.DataFrame(PAIRS, schema=["user", "item", "timestamp"], orient="row")
        rows.write_parquet(path)
        return path.read_bytes()


def _lines(*lines: str) -> bytes:
    return "\n".join(lines).encode()


JSON = _lines(*(json.dumps({"reviewerID": u, "asin": i, "unixReviewTime": t}) for u, i, t in PAIRS))
META = _lines(
    "{'asin': 'I1', 'title': 'A \"b\"', 'price': 3.5, 'categories': [['X', 'Y']]}",
    "{'asin': 'I2', 'brand': 'It\\'s', 'related': {'also_bought': ['I1']}}",
)
VALID: dict[tuple[str, str], bytes] = {
    ("amazon2014", "r.json"): JSON,
    ("amazon2018", "r.json.gz"): gzip.compress(JSON, mtime=0),
    ("amazon2023", "r.jsonl"): _lines(
        *(json.dumps({"user_id": u, "parent_asin": i, "timestamp": t}) for u, i, t in PAIRS)
    ),
    ("amazon2023", "r.csv"): _lines(
        "user_id,parent_asin,rating,timestamp", *(f'{u},"{i}",5.0,{t}' for u, i, t in PAIRS)
    ),
    ("recbole", "x.inter"): _lines(
        "user_id:token\titem_id:token\ttimestamp:float", *(f"{u}\t{i}\t{t}" for u, i, t in PAIRS)
    ),
    ("p5", "s.txt"): _lines("1 4 5 6", "2 5 6 7", "3 4 6 7"),
    ("table", "t.csv"): _lines("user,item,timestamp", *(f"{u},{i},{t}" for u, i, t in PAIRS)),
    ("table", "t.tsv"): _lines("user\titem", *(f'"{u}"\t{i}' for u, i, t in PAIRS)),
    ("table", "t.jsonl"): _lines(*(json.dumps({"user": u, "item": i}) for u, i, _ in PAIRS)),
    ("table", "t.parquet"): _parquet(),
}
CASES = list(VALID)


def attempt(source: str, name: str, content: bytes, meta: bytes | None = None) -> Dataset | None:
    """Import; anything but a dataset or a one-line error of ours passes through and fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        items = None
        if meta is not None:
            suffix = ".item" if source == "recbole" else "".join(path.suffixes)
            items = Path(folder) / f"meta{'.json' if source == 'p5' else suffix}"
            items.write_bytes(meta)
        config = DataConfig(
            source=source,  # type: ignore[arg-type]
            interactions=str(path),
            items=str(items) if items else None,
            k_core=0,
            max_bad_share=1.0,
        )
        try:
            dataset = import_dataset(config, 0, Path(folder) / "quarantine.jsonl")
        except Diffgr2Error as error:
            assert str(error)  # noqa: PT017
            assert "\n" not in str(error)  # noqa: PT017
            return None
        report = dataset.report
        assert report["lines_in"] == report["lines_used"] + report["lines_rejected"]
        quarantine = Path(folder) / "quarantine.jsonl"
        found = quarantine.read_text().splitlines() if quarantine.exists() else []
        rejected = report["lines_rejected"] + report.get("item_lines_rejected", 0)
        assert len([json.loads(line) for line in found]) == rejected
        out = Path(folder) / "out"
        out.mkdir()
        write_dataset(out, dataset)
        assert read_dataset(out).raw_users == dataset.raw_users
        return dataset


@pytest.mark.parametrize(("source", "name"), CASES)
def test_the_seeds_of_the_mutations_are_good_files(source: str, name: str) -> None:
    dataset = attempt(source, name, VALID[source, name])
    assert dataset is not None
    assert dataset.report["lines_rejected"] == 0


@pytest.mark.parametrize(("source", "name"), CASES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(content=st.binary(max_size=300))
def test_arbitrary_bytes(source: str, name: str, content: bytes) -> None:
    attempt(source, name, content)


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[float, int, bytes]]:
    """Places (as shares of the length), how many bytes go, and what comes instead."""
    edit = st.tuples(st.floats(0, 1), st.integers(0, 12), st.binary(max_size=6))
    return draw(st.lists(edit, min_size=1, max_size=4))


def edited(content: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    for place, gone, come in changes:
        at = int(place * len(content))
        content = content[:at] + come + content[at + gone :]
    return content


@pytest.mark.parametrize(("source", "name"), CASES)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=edits())
def test_good_files_with_holes_and_junk(source: str, name: str, changes: list) -> None:
    attempt(source, name, edited(VALID[source, name], changes))


@pytest.mark.parametrize("source", ["amazon2014", "amazon2018", "p5"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=edits())
def test_metadata_with_holes_and_junk(source: str, changes: list) -> None:
    name = "s.txt" if source == "p5" else "r.json"
    attempt(source, name, VALID.get((source, name), JSON), edited(META, changes))


@pytest.mark.parametrize(("source", "name"), CASES)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(meta=st.binary(max_size=200))
def test_arbitrary_metadata(source: str, name: str, meta: bytes) -> None:
    attempt(source, name, VALID[source, name], meta)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="[](){}'\"\\:,-+1aN \u00e9", max_size=60))
def test_python_dict_lines_of_every_shape(text: str) -> None:
    meta = (text + "\n{'asin': " + text + "}").encode("utf-8")
    attempt("amazon2014", "r.json", JSON, meta)


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=100) | st.text(max_size=40).map(lambda t: t.encode()))
def test_arbitrary_id_maps(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.txt"
        path.write_bytes(VALID["p5", "s.txt"])
        (Path(folder) / "datamaps.json").write_bytes(content)
        config = DataConfig(source="p5", interactions=str(path), k_core=0)
        try:
            import_dataset(config, 0)
        except Diffgr2Error as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.slow
@pytest.mark.parametrize(("source", "name"), CASES)
@settings(max_examples=1_500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(changes=edits(), more=edits())
def test_many_files_with_holes_and_junk(source: str, name: str, changes: list, more: list) -> None:
    meta = META if source in ("amazon2014", "p5") else JSON
    attempt(source, name, edited(VALID[source, name], changes), edited(meta, more))
