"""A catalogue of three category levels: groups are called by the most specific one."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from diffgr2.rerank.reranker import Reranker
from support.live import ids

LEVELS = ("Department", "Shelf", "Drawer")


@pytest.fixture(scope="module")
def deep(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    """The micro shop's model over a catalogue whose categories have three levels.

    An item's drawer is named after its first code, mostly: of every eight items one lies wrong.
    """
    folder = tmp_path_factory.mktemp("deep") / "bundle"
    shutil.copytree(run_dir / "bundle", folder)
    code_I = Reranker(folder).sids.codes_IL[:, 0].tolist()
    table = pl.read_parquet(folder / "data" / "items.parquet")
    paths = [
        [
            f"Department {code % 2}",
            f"Shelf {code % 3}",
            f"Drawer {code if item % 8 else 'of lost things'}",
        ]
        for item, code in enumerate(code_I)
    ]
    categories = pl.Series("categories", paths, dtype=pl.List(pl.String))
    table.with_columns(categories).write_parquet(folder / "data" / "items.parquet")
    return Reranker(folder)


def test_a_group_is_called_by_its_most_frequent_last_level(deep: Reranker) -> None:
    code_I = deep.sids.codes_IL[:, 0].tolist()
    used = set(code_I)
    assert len(used) > 10
    for code, label in enumerate(deep.group_labels):
        inside = [deep.catalogue.categories[i][-1] for i, c in enumerate(code_I) if c == code]
        if code not in used:
            assert label == f"group {code}"
            continue
        best = max(Counter(inside).values())
        assert label == min(name for name, n in Counter(inside).items() if n == best)


def test_the_english_names_drawers_and_no_departments(deep: Reranker) -> None:
    n = len(deep.catalogue)
    texts = []
    for seed in range(12):
        history = ids(deep, *((seed * 17 + i) % n for i in range(3)))
        candidates = ids(deep, *((seed * 11 + 50 + i) % n for i in range(4)))
        decode = {"decoder": "ar"}
        result = deep.rank(history, candidates, decode=decode, return_reasoning=True)
        texts.append(result.reasoning or "")
    first_lines = [text.splitlines()[0] for text in texts]
    assert sum("Drawer" in line for line in first_lines) >= 6
    for line in first_lines:
        assert "Department" not in line
        assert "Shelf" not in line
