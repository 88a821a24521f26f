"""Scores and numbers of a shop's lists times a hundred: the same evidence, from file to bucket."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from diffgr2.artifacts import load_arrays, read_json
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.plan import stages_of
from support import shop_lists


def buckets(root: Path, scale: float) -> dict[str, np.ndarray]:
    paths = shop_lists.write(root / "files")
    table = pl.read_parquet(paths["lists"])
    columns = [pl.col(name) * scale for name in ("score", "ctr", "price")]
    table.with_columns(columns).write_parquet(paths["lists"])
    recipe = validate(shop_lists.values(paths), "x")
    Runner(recipe, root / "run", stages_of(recipe), Progress(io.StringIO())).run(["evidence"])
    evidence = root / "run" / "evidence"
    about = read_json(evidence / "index.json")
    assert about["own_scores"] is True
    assert [field["name"] for field in about["fields"]][-4:] == shop_lists.FEATURES
    splits = ("train", "validation", "test")
    return {s: load_arrays(evidence / f"{s}.safetensors")["buckets_LKF"] for s in splits}


def test_no_scale_moves_any_evidence(tmp_path: Path) -> None:
    one, hundred = buckets(tmp_path / "one", 1.0), buckets(tmp_path / "hundred", 100.0)
    for split, found_LKF in one.items():
        np.testing.assert_array_equal(found_LKF, hundred[split])
        assert len(np.unique(found_LKF[..., -3])) > 3, "ctr must have several levels"
