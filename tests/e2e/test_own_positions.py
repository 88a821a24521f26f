"""Lists out of a log train again, and what came far down counts more where a recipe wants it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from diffgr2.artifacts import load_arrays, read_manifest
from diffgr2.candidates.lists import load_lists
from diffgr2.data.from_log import lists_from_log
from diffgr2.data.traffic import FEEDBACK, IMPRESSIONS, file_of
from diffgr2.errors import ConfigError
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.plan import stages_of
from support import shop_lists as own_shop

ETA = 1.0


def logged(folder: Path, lists: int = 600, k: int = 6) -> Path:
    """What a server would have written: good items higher, looked at as place^-ETA."""
    rng = np.random.default_rng(3)
    quality_I = rng.uniform(0.1, 0.9, 40)
    shown, came = [], []
    for number in range(lists):
        items = rng.permutation(40)[:k]
        order = np.argsort(-quality_I[items] - rng.normal(0, 0.3, k))
        seen = rng.random(k) < np.arange(1, k + 1) ** -ETA
        clicked = seen & (rng.random(k) < quality_I[items[order]])
        name, names = f"r{number}", [f"i{item}" for item in items]
        ctr = np.round(quality_I[items] + rng.normal(0, 0.05, k), 4).tolist()
        line = {
            "id": name,
            "time": own_shop.START + 400 * own_shop.DAY + number,
            "user": f"u{number % 80}",
            "history": [f"i{number % 7}"],
            "items": names,
            "given": np.linspace(1, 0, k).tolist(),
            "order": order.tolist(),
            "features": [
                {"ctr": value, "new": bool(item % 2)}
                for value, item in zip(ctr, items, strict=True)
            ],
        }
        shown.append(json.dumps(line))
        for at in np.flatnonzero(clicked):
            event = {"id": name, "item": names[order[at]], "event": "click", "time": line["time"]}
            came.append(json.dumps(event))
    folder.mkdir()
    file_of(folder, IMPRESSIONS, 1).write_text("\n".join(shown) + "\n")
    file_of(folder, FEEDBACK, 1).write_text("\n".join(came) + "\n")
    return folder


def run(root: Path, paths: dict[str, Path], goal: str = "evidence", **lists: Any) -> Runner:
    torch.set_num_threads(1)
    values = own_shop.values(paths)
    values["lists"] = {"file": str(paths["lists"]), "gains": {"click": 1.0}, **lists}
    recipe = validate(values, "x")
    runner = Runner(recipe, root, stages_of(recipe), Progress(io.StringIO()))
    runner.run([goal])
    return runner


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("positions")
    found = own_shop.write(folder / "files")
    made = lists_from_log(logged(folder / "traffic"), folder / "lists.parquet")
    assert made.lists == 600
    assert made.features == {"ctr": "ctr", "new": "new"}
    return {**found, "lists": folder / "lists.parquet"}


def test_a_log_trains_and_its_places_are_weighed(paths: dict[str, Path], tmp_path: Path) -> None:
    more: dict[str, Any] = {"features": ["ctr", "new"]}
    plain = run(tmp_path / "plain", paths, **more)
    fair = run(tmp_path / "fair", paths, goal="rival", **more, propensity="position")
    assert (fair.root / "rival" / "rivals.json").is_file()
    told = read_manifest(fair.root / "evidence")["metrics"]
    assert told["propensity_eta_low"] <= ETA <= told["propensity_eta_high"]
    assert abs(told["propensity_eta"] - ETA) < 0.4
    assert told["propensity_outcomes"] > 100
    assert "propensity_eta" not in read_manifest(plain.root / "evidence")["metrics"]
    lists = load_lists(fair.root / "candidates", "train")
    shown_LK = load_arrays(fair.root / "candidates" / "shown_train.safetensors")["shown_LK"]
    assert (np.sort(shown_LK, axis=1) == np.arange(1, 7)).all()
    weight_LK = load_arrays(fair.root / "evidence" / "weight_train.safetensors")["weight_LK"]
    wanted_LK = np.minimum(shown_LK ** told["propensity_eta"], 10.0)
    np.testing.assert_allclose(weight_LK, wanted_LK, rtol=1e-5)
    assert len(lists) == len(weight_LK)
    one, two = (
        load_arrays(found.root / "evidence" / "linear.safetensors")["weight_FV"]
        for found in (plain, fair)
    )
    assert one.shape == two.shape
    assert np.abs(one - two).max() > 1e-3
    # Only what learns from outcomes is different; what is judged counts as it came.
    test = [load_lists(found.root / "candidates", "test") for found in (plain, fair)]
    np.testing.assert_array_equal(test[0].gains_LK, test[1].gains_LK)
    assert fair.stages["candidates"].sections == plain.stages["candidates"].sections


def test_lists_without_shown_were_shown_in_their_order(paths, tmp_path: Path) -> None:
    bare = tmp_path / "bare.parquet"
    pl.read_parquet(paths["lists"]).drop("shown").write_parquet(bare)
    found = run(tmp_path / "run", {**paths, "lists": bare}, goal="candidates")
    lists = load_lists(found.root / "candidates", "train")
    shown_LK = load_arrays(found.root / "candidates" / "shown_train.safetensors")["shown_LK"]
    assert (shown_LK == np.where(lists.there_LK, np.arange(1, 7), 0)).all()


def test_positions_need_lists_of_ones_own() -> None:
    with pytest.raises(ConfigError, match=r"lists.*propensity: only lists of your own"):
        validate({"name": "x", "lists": {"propensity": "position"}}, "x")
