"""The stage `tutor`, what traces make of it, and who reads it: a tiny shop with boosted trees."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from diffgr2.artifacts import load_arrays, read_json, read_manifest
from diffgr2.candidates.lists import load_lists, selection_users
from diffgr2.candidates.trees import FILE, Trees
from diffgr2.config import Recipe, ShowConfig
from diffgr2.errors import MissingExtraError
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.prompts.request import MISSING, NONE
from diffgr2.recipe import validate
from diffgr2.stages import tutor
from diffgr2.stages.corpus import KNOWN, Corpus, open_corpus
from diffgr2.stages.judge import scored, strongest, teaches
from diffgr2.stages.plan import CORPUS, stages_of
from diffgr2.streams import generator
from diffgr2.traces.decide import ALONE, LEAST, Scale, Traces
from support import micro_shop


def recipe(**traces: object) -> Recipe:
    values = micro_shop.recipe().model_dump(mode="json")
    values["traces"] = {"tutor": "trees", **traces}
    values["sft"] |= {"steps": 3, "soft_weight": 1.0, "warmup": 1}
    return validate(values, "tutored")


def runner(root: Path, made: Recipe) -> Runner:
    return Runner(made, root, stages_of(made), Progress(io.StringIO()))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutor") / "run"
    runner(folder, recipe()).run(["sft", "rival"])
    return folder


def places(root: Path) -> dict[str, Path]:
    return {name: root / name for name in (*CORPUS, "tutor", "traces", "rival")}


@pytest.fixture(scope="module")
def corpus(root: Path) -> Corpus:
    return open_corpus(places(root), recipe())


def test_every_list_is_scored_and_traces_follow_the_scores(root: Path, corpus: Corpus) -> None:
    scale = Scale.load(root / "traces" / "scale.safetensors")
    trees = Trees.load(root / "tutor" / FILE)
    held_U = selection_users(corpus.dataset.histories.n_users)
    assert np.array_equal(trees.fold_U < 0, held_U)
    for split in (*KNOWN, "test"):
        lists = load_lists(root / "candidates", split)
        path = root / "tutor" / f"scores_trees_{split}.safetensors"
        score_LK = load_arrays(path)["score_LK"]
        wanted_LK = trees.score(corpus.buckets[split], lists.owner_L, lists.there_LK)
        assert np.array_equal(score_LK, wanted_LK[:, : score_LK.shape[1]])
        assert np.nanstd(score_LK) > 0.05
        if split in KNOWN:
            traces = Traces.load(root / "traces" / f"{split}.safetensors")
            level_NK = scale.levels(score_LK[traces.row_N])
            np.testing.assert_allclose(traces.level_NK, level_NK, atol=1e-4)
            assert not held_U[lists.owner_L[traces.row_N]].any()
            assert (traces.cites_NKC != NONE).any()
    metrics = read_manifest(root / "tutor")["metrics"]
    assert sum(metrics["importance"].values()) == pytest.approx(1.0, abs=0.01)
    assert metrics["train_weight"] == tutor.CROSS_FITTED


def test_cited_fields_moved_the_trees_by_at_least_the_least(root: Path, corpus: Corpus) -> None:
    scale, trees = (Scale.load(root / "traces" / "scale.safetensors"), corpus.tutor)
    assert trees is not None
    traces, lists = corpus.traces["validation"], corpus.lists["validation"]
    rows = traces.row_N[:20]
    moved_LKF = trees.contributions(corpus.buckets["validation"][rows], lists.owner_L[rows])
    for moved_KF, cites_KC in zip(moved_LKF, traces.cites_NKC, strict=False):
        for moved_F, cites_C in zip(moved_KF, cites_KC, strict=True):
            weights = [abs(moved_F[field]) for field in cites_C if field != NONE]
            assert weights == sorted(weights, reverse=True)
            least = ALONE if len(weights) == 1 else LEAST
            assert all(weight >= least * (scale.high - scale.low) - 1e-6 for weight in weights)


def test_hidden_evidence_is_taught_as_the_trees_judge_what_is_left(corpus: Corpus) -> None:
    config, trees = ShowConfig(shuffle=0.5, vary=0.7, hide=1.0), corpus.tutor
    assert trees is not None
    moved = 0
    for n in range(30):
        shown, trace = corpus.lesson("train", n, config, generator(n, "hidden"))
        row = int(corpus.traces["train"].row_N[n])
        owner = corpus.lists["train"].owner_L[[row]]
        whole_KF = corpus.buckets["train"][row][shown.places]
        assert ((shown.request.buckets_KF == whole_KF) | shown.hidden).all()
        seen_K, left_K = (
            trees.score(buckets_KF[None], owner)[0]
            for buckets_KF in (whole_KF, shown.request.buckets_KF)
        )
        level_K = corpus.trace("train", n).level_K[shown.places]
        wanted_K = np.clip(level_K - (seen_K - left_K) / corpus.step, 0, 7)
        np.testing.assert_allclose(trace.level_K, wanted_K, atol=1e-4)
        moved += int((np.abs(trace.level_K - level_K) > 0.05).sum())
        for field_C, buckets_F in zip(trace.cites_KC, shown.request.buckets_KF, strict=True):
            assert all(buckets_F[field] != MISSING for field in field_C if field != NONE)
    assert moved > 30


def test_both_is_the_mean_with_the_scorecard(root: Path, tmp_path: Path) -> None:
    for stage in ("data", "items", "retriever", "candidates", "evidence"):
        shutil.copytree(root / stage, tmp_path / stage)
    made = recipe(tutor="both")
    runner(tmp_path, made).run(["tutor"])
    assert teaches(made) == "trees"
    for split in (*KNOWN, "test"):
        path = f"scores_trees_{split}.safetensors"
        one_LK, both_LK = (
            load_arrays(place / "tutor" / path)["score_LK"] for place in (root, tmp_path)
        )
        card_LK = load_arrays(root / "evidence" / f"scores_linear_{split}.safetensors")["score_LK"]
        np.testing.assert_allclose(both_LK, (one_LK + card_LK) / 2, atol=1e-4)


def test_it_is_a_row_and_what_the_model_is_held_against(root: Path) -> None:
    made, names = recipe(), [outputs.name for outputs in scored(recipe(), places(root))]
    assert "tutor" in names
    assert names[0] == "evidence"
    assert teaches(made) == "trees"
    assert teaches(micro_shop.recipe()) == "linear"
    found = strongest(made, places(root))
    assert found["values"].keys() == {"floor", "linear", "mlp", "gbdt", "trees", "lambdamart"}
    assert found["rows"]["trees"] == "tutor"
    assert read_json(root / "rival" / "rivals.json")["values"]["trees"] > 0


def test_soft_targets_are_learned_from(root: Path) -> None:
    lines = (root / "sft" / "metrics.jsonl").read_text().splitlines()
    assert all('"ranking/kl"' in line for line in lines)


def test_without_it_nothing_changes_and_no_stage_reads_it(root: Path) -> None:
    plain = micro_shop.recipe()
    stages = stages_of(plain)
    assert "tutor" not in stages
    assert not any("tutor" in stage.inputs for stage in stages.values())
    states = runner(root, validate({**plain.model_dump(mode="json")}, "plain")).survey(["sft"])
    assert states["midtrain"] == "stands", "a tutor changes nothing before the traces"
    assert states["traces"] == "outdated"


def test_what_a_training_list_counts() -> None:
    assert tutor.train_weight(recipe()) == 0.5
    assert tutor.train_weight(recipe(train_weight=0.2)) == 0.2


def test_without_lightgbm_one_line_says_what_to_install(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match=r"pip install 'diffgr2\[lambdamart\]'") as caught:
        tutor.check()
    assert "traces.tutor=scorer" in str(caught.value)
    assert "\n" not in str(caught.value)
    again = open_corpus(places(root), recipe())  # what it left is read all the same
    assert again.tutor is not None
    buckets_LKF, owner_L = again.buckets["test"][:3], again.lists["test"].owner_L[:3]
    assert np.isfinite(again.tutor.score(buckets_LKF, owner_L)).all()
