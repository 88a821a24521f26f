"""Items are called by the widest category level that tells them apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import pytest

from diffgr2.prompts.account import kinds_of, telling_level
from diffgr2.rerank.reranker import Reranker
from support.live import ids


def path_of(item: int) -> list[str]:
    """Three of four items share a department; shelves are even; every item has its own drawer."""
    return [f"Department {int(item % 4 == 0)}", f"Shelf {item % 5}", f"Drawer {item}"]


@pytest.fixture(scope="module")
def deep(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """The micro shop's model over a catalogue whose categories have three levels."""
    folder = tmp_path_factory.mktemp("deep") / "bundle"
    shutil.copytree(run_dir / "bundle", folder)
    table = pl.read_parquet(folder / "data" / "items.parquet")
    paths = [path_of(item) for item in range(len(table))]
    categories = pl.Series("categories", paths, dtype=pl.List(pl.String))
    table.with_columns(categories).write_parquet(folder / "data" / "items.parquet")
    return Reranker(folder)


def test_a_level_that_most_items_share_tells_nothing() -> None:
    paths = [path_of(item) for item in range(40)]
    assert telling_level(paths) == 1
    assert kinds_of(paths) == [f"Shelf {item % 5}" for item in range(40)]
    assert kinds_of([path[::2] for path in paths]) == [f"Drawer {item}" for item in range(40)]


def test_items_of_fewer_levels_are_called_by_their_last_one() -> None:
    paths = [*(path_of(item) for item in range(40)), ["Department 0"], []]
    assert kinds_of(paths)[-2:] == ["Department 0", ""]
    assert kinds_of([[], []]) == ["", ""]
    assert kinds_of([["Beauty"]] * 3) == ["Beauty"] * 3, "there is no better name"


def test_the_english_names_shelves_and_neither_departments_nor_drawers(deep: Reranker) -> None:
    n = len(deep.catalogue)
    for seed in range(6):
        history = [(seed * 17 + i) % n for i in range(3)]
        candidates = [(seed * 11 + 50 + i) % n for i in range(4)]
        decode = {"decoder": "ar"}
        result = deep.rank(
            ids(deep, *history), ids(deep, *candidates), decode=decode, return_reasoning=True
        )
        first_line = (result.reasoning or "").splitlines()[0]
        assert any(f"Shelf {item % 5}" in first_line for item in history)
        assert "Department" not in first_line
        assert "Drawer" not in first_line
