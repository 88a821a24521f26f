"""The recipe text_small, start to end: a language model that reads and writes words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffgr2 import Reranker
from diffgr2.evaluate.tables import rows_of

SHORT = [
    *("data.shop.n_users=150", "data.shop.n_items=300", "items.min_unique=0.5", "threads=1"),
    *("retriever.epochs=2", "midtrain.steps=2", "sft.steps=8", "distill.lists=24", "cft.steps=4"),
    *("rl.steps=1", "direct_rl.steps=1", "opd.steps=1", "block_rl.steps=1", "cft_rl.steps=1"),
    *("rl.prompts=2", "block_rl.prompts=2", "cft_rl.prompts=2", "evaluate.max_users=6"),
    *("evaluate.lengths=[16]", "evaluate.thresholds=[0.5]", "evaluate.frontier_lists=4"),
    *("evaluate.bootstrap=50", "evaluate.list_lengths=[1, 8]", "evaluate.views=[1]"),
]


def run(root: Path, *changes: str) -> dict[str, Any]:
    """The report of a run of the recipe."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    given = [part for text in changes for part in ("--set", text)]
    done = subprocess.run(
        [sys.executable, "-m", "diffgr2.cli", "run", "text_small", "--runs", str(root), *given],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((root / "report" / "report.json").read_text(encoding="utf-8"))


def judged(report: dict[str, Any]) -> dict[str, Any]:
    """What every run promises, however well it has learned; its rows."""
    rows = {row["name"]: row for row in rows_of(report, "hit")}
    pairs = [name for name in rows if f"{name}_written" in rows]
    assert {"ar", "cft", "cft_opd", "cft_opd_rl", "verify"} <= set(pairs)
    assert {"ar_raw", "cft_opd_rl_raw"} <= rows.keys()
    for name, row in rows.items():
        if "raw_valid" in row and not name.endswith("_raw"):  # under the grammar
            assert row["raw_valid"] == 1.0, name
        if "coherent" in row and not name.endswith("_raw"):
            assert row["coherent"] == row["evidence_true"] == 1.0, name
    assert rows["cft_opd_rl"]["tokens"]["mean"] <= 48
    return rows


@pytest.mark.slow
def test_a_shortened_run_has_every_row_and_is_served(tmp_path: Path) -> None:
    judged(run(tmp_path, *SHORT))
    reranker = Reranker.from_pretrained(tmp_path / "bundle")
    asked = reranker.catalogue.raw_ids[:5]
    result = reranker.rank(history=asked[:1], candidates=asked[1:], return_reasoning=True)
    assert sorted(result.items) == sorted(asked[1:])
    assert result.valid
    assert "First choice: " in (result.reasoning or "")


@pytest.mark.slow
def test_the_recipe_learns_to_rank(tmp_path: Path) -> None:
    rows = judged(run(tmp_path))
    for name in ("ar", "cft_opd_rl", "verify"):
        assert rows[name]["metrics"]["ndcg@3"] > rows["floor"]["metrics"]["ndcg@3"], name
    assert rows["cft_opd_rl"]["tpf"] > rows["ar"]["tpf"]
