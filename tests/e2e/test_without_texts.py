"""Interactions alone, without item texts or dates, become lists with what evidence they carry."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffgr2 import cli
from diffgr2.artifacts import load_arrays, read_json

TASTES, ITEMS, USERS = 6, 90, 240


def test_a_file_of_two_columns_is_enough(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    lines = ["visitor,sku"]
    for user in range(USERS):
        taste = np.arange(user % TASTES, ITEMS, TASTES)
        lines += [f"v{user},s{item}" for item in rng.choice(taste, 8, replace=False)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    out, run = tmp_path / "r.yaml", tmp_path / "run"
    assert cli.run(["init", str(tmp_path / "log.csv"), "--yes", "--out", str(out)]) == 0
    small = "from: micro\nitems: {codes: 16, min_unique: 0.3}\n"
    out.write_text(small + out.read_text(encoding="utf-8"), encoding="utf-8")
    goal = ["run", str(out), "--goal", "vocabulary", "--runs", str(run), "--set", "threads=1"]
    assert cli.run(goal) == 0
    fields = {field["name"] for field in read_json(run / "evidence" / "index.json")["fields"]}
    assert {"rank", "copurchase"} <= fields
    assert not {"text", "brand", "category", "session"} & fields, "nobody could tell these"
    assert not load_arrays(run / "items" / "vectors.safetensors")["vectors_ID"].any()
    codes_IL = load_arrays(run / "items" / "codes.safetensors")["codes_IL"]
    assert len(np.unique(codes_IL, axis=0)) == ITEMS
    # Items of one taste stand beside each other, so they share first codes more than others do.
    ids = [int(raw[1:]) for raw in _raw_ids(run)]
    taste_I = np.array(ids) % TASTES
    same_II = codes_IL[:, None, 0] == codes_IL[None, :, 0]
    alike_II = taste_I[:, None] == taste_I[None, :]
    off_II = ~np.eye(ITEMS, dtype=bool)
    assert same_II[alike_II & off_II].mean() > 3 * same_II[~alike_II].mean()


def _raw_ids(run: Path) -> list[str]:
    import polars as pl

    return pl.read_parquet(run / "data" / "items.parquet")["raw_id"].to_list()
