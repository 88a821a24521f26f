"""On the Beauty files: semantic IDs are distinct by nature, and co-purchases share codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffgr2.artifacts import read_json
from diffgr2.items.sids import SemanticIds
from diffgr2.pipeline import Runner
from diffgr2.recipe import load_recipe
from diffgr2.stages.plan import STAGES
from support.beauty import FILES, needs_beauty

pytestmark = [pytest.mark.slow, needs_beauty]


def test_nearly_all_ids_are_distinct_before_any_repair(tmp_path: Path) -> None:
    metrics = {}
    plain = ["items.quantizer=rkmeans", "items.min_unique=0.5"]
    for name, keys in (("blend", []), ("plain", plain)):
        recipe = load_recipe("beauty", [*FILES, *keys])
        manifests = Runner(recipe, tmp_path / name, STAGES).run(["items"])
        metrics[name] = manifests["items"]["metrics"]
    blend = metrics["blend"]
    assert blend["items"] == 12_101
    assert blend["unique_natural"] >= 0.99
    assert blend["unique_assigned"] == blend["unique_after"] == 1.0
    assert blend["unique_natural"] > metrics["plain"]["unique_natural"] + 0.1
    assert blend["shared_l1"] > metrics["plain"]["shared_l1"]
    report = read_json(tmp_path / "blend" / "items" / "report.json")
    assert min(level["usage"] for level in report["levels"]) > 0.95
    assert report["shared"][0] > 5 * report["shared_by_chance"][0]
    codes_IL = SemanticIds.load(tmp_path / "blend" / "items").codes_IL
    assert len(np.unique(codes_IL, axis=0)) == 12_101
