"""The stage `rival` on lists with features of their own, with LightGBM and without."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest

from diffgr2.artifacts import load_arrays, read_json, read_manifest
from diffgr2.candidates.lists import load_lists
from diffgr2.errors import missing_extra
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.stages.judge import LAMBDAMART, scored, strongest
from diffgr2.stages.report import rival_told
from diffgr2.stages.rival import read, worth
from support.featured_shop import COLUMNS, recipe, stages

SCORES = f"scores_{LAMBDAMART}_test.safetensors"


def runner(root: Path) -> tuple[Runner, io.StringIO]:
    said = io.StringIO()
    return Runner(recipe(), root, stages(), Progress(said)), said


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rival") / "run"
    runner(folder)[0].run(["rival"])
    return folder


def test_it_reads_the_raw_values_of_what_prompts_show(root: Path) -> None:
    seen = read({name: root / name for name in ("data", "candidates", "evidence")}, recipe())
    index = [field["name"] for field in read_json(root / "evidence" / "index.json")["fields"]]
    assert seen.names == index
    assert [seen.names[at] for at in seen.categories] == ["badge"]
    own_LKG = load_arrays(root / "candidates" / "own_test.safetensors")["own_LKG"]
    k = recipe().candidates.k
    for name, own_LK in zip(COLUMNS, np.moveaxis(own_LKG, -1, 0), strict=True):
        raw_LK = seen.lists["test"].raw_LKF[..., seen.names.index(name)]
        np.testing.assert_array_equal(raw_LK, own_LK[:, :k])
    assert np.isnan(seen.lists["test"].raw_LKF).any()


def test_its_scores_beat_the_floor_on_lists_that_taught_nothing(root: Path) -> None:
    lists = load_lists(root / "candidates", "test", recipe().candidates.k)
    score_LK = load_arrays(root / "rival" / SCORES)["score_LK"]
    values_LM = metrics_of(order_from_scores(score_LK, "x", lists.length_L), lists.gains_LK)
    floor_LM = metrics_of(order_from_scores(0 * score_LK, "x", lists.length_L), lists.gains_LK)
    at = METRICS.index("ndcg@10")
    assert values_LM[:, at].mean() > floor_LM[:, at].mean()
    metrics = read_manifest(root / "rival")["metrics"]
    assert sum(metrics["importance"].values()) == pytest.approx(1.0, abs=0.01)
    assert metrics["importance"]["ctr"] > 0.05  # which knows the target now and then


def test_the_strongest_is_chosen_on_selection_lists(root: Path) -> None:
    places = {name: root / name for name in ("data", "candidates", "evidence", "rival")}
    found, seen = strongest(recipe(), places), read(places, recipe())
    assert set(found["values"]) == {"floor", "linear", "mlp", "gbdt", LAMBDAMART}
    held = {split: seen.held[split] for split in ("train", "validation")}
    assert found["n"] == sum(held_L.sum() for held_L in held.values()) > 0
    floor = [worth(np.zeros(own.valid_LK.shape), own) for own in _taken(seen, held)]
    assert found["values"]["floor"] == pytest.approx(np.concatenate(floor).mean(), abs=1e-6)
    assert found["row"] in [outputs.name for outputs in scored(recipe(), places)]


def _taken(seen, held):
    return [seen.lists[split].take(held_L) for split, held_L in held.items()]


def test_without_lightgbm_the_row_is_left_out_and_a_line_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lightgbm", None)  # as where it is not installed
        one, said = runner(root)
        assert one.survey(["rival"])["rival"] == "outdated"
        one.run(["rival"])
        assert "pip install 'diffgr2[lambdamart]'" in said.getvalue()
        assert not (root / "rival" / SCORES).exists()
        places = {name: root / name for name in ("candidates", "evidence", "rival")}
        rows = [outputs.name for outputs in scored(recipe(), places)]
        assert rows == ["evidence", "evidence_gbdt", "evidence_mlp"]
        found = strongest(recipe(), places)
        assert found["row"] in rows
        assert "diffgr2[lambdamart]" in rival_told(found)
        with pytest.raises(ModuleNotFoundError) as caught:
            import lightgbm  # noqa: F401
        assert "diffgr2[lambdamart]" in str(missing_extra(caught.value))
    again, said = runner(root)  # it is there again
    again.run(["rival"])
    assert "rival: runs" in said.getvalue()
    assert (root / "rival" / SCORES).exists()
