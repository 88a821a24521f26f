"""Lists of k_max columns whose first k are what results are about, and people who train nothing.

The stages from the candidate lists to the traces on a shop of 400 people, with the files between
them changed by hand.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2.artifacts import load_arrays
from diffgr2.candidates.fields import counted_named
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import load_lists, save_lists, selection_users
from diffgr2.candidates.scorers import KINDS, LinearScorer
from diffgr2.choices import SHOWN
from diffgr2.config import Recipe
from diffgr2.pipeline import Runner, StageContext
from diffgr2.progress import Progress
from diffgr2.prompts.english import Phrases, wording
from diffgr2.prompts.request import NONE
from diffgr2.recipe import validate
from diffgr2.stages import evidence, traces
from diffgr2.stages.corpus import KNOWN
from diffgr2.stages.plan import STAGES
from diffgr2.traces.decide import ALONE, LEAST, Scale, Traces

NAMES = SHOWN

K, LONG, SPLITS = 5, 9, (*KNOWN, "test")
SCORED = [f"scores_{kind}_test.safetensors" for kind in KINDS]
FITTED = ["index.safetensors", "linear.safetensors", *SCORED]


def recipe() -> Recipe:
    values = {
        "name": "tiny",
        "data": {"shop": {"n_items": 200, "n_users": 400}},
        "items": {"quantizer": "rkmeans", "codes": 32, "levels": 3, "vector_dim": 16},
        "retriever": {"kind": "itemknn"},
        "candidates": {"k": K, "k_max": LONG, "prefixes": 2},
        "prompt": {"text_vocab": 256},
    }
    return validate(values, "tiny")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory up to the traces; nothing in it is changed."""
    root = tmp_path_factory.mktemp("shop")
    Runner(recipe(), root, STAGES, Progress(io.StringIO())).run(["traces"])
    return root


def run(stage: Any, shop: Path, out: Path, **inputs: Path) -> dict[str, Any]:
    """A stage on its own, some of its inputs changed."""
    name = stage.__name__.rpartition(".")[2]
    read = {given: shop / given for given in STAGES[name].inputs} | inputs
    for path in (out, out.parent / "work"):
        path.mkdir(parents=True, exist_ok=True)
    context = (name, recipe(), read, out, out.parent / "work", Progress(io.StringIO()))
    return stage.run(StageContext(*context))


def test_evidence_of_every_column_is_relative_to_the_whole_list(shop: Path) -> None:
    index = EvidenceIndex.load(shop / "evidence")
    for split in SPLITS:
        lists = load_lists(shop / "candidates", split)
        buckets_LKF = load_arrays(shop / f"evidence/{split}.safetensors")["buckets_LKF"]
        assert lists.k == LONG
        assert buckets_LKF.shape == (len(lists), LONG, len(NAMES))
        rank_LK = np.broadcast_to(np.arange(LONG, dtype=np.float32), (len(lists), LONG))
        gap_LK = lists.scores_LK[:, :1] - lists.scores_LK
        for name, value_LK in (("rank", rank_LK), ("gap", gap_LK)):
            edges_B = index.edges_FB[NAMES.index(name)]
            level_LK = np.searchsorted(edges_B, value_LK, side="right")
            assert (buckets_LKF[..., NAMES.index(name)] == level_LK).all()
        assert len(np.unique(buckets_LKF[..., NAMES.index("gap")])) > 2
        for kind in KINDS:
            score_LK = load_arrays(shop / f"evidence/scores_{kind}_{split}.safetensors")["score_LK"]
            assert score_LK.shape == (len(lists), K if split == "test" else LONG)


def test_columns_behind_the_first_change_nothing_that_is_fitted(shop: Path, tmp_path: Path) -> None:
    """Lists cut to k give the same edges, scorers and scores of test lists."""
    (tmp_path / "candidates").mkdir()
    for split in SPLITS:
        save_lists(tmp_path / "candidates", load_lists(shop / "candidates", split, K))
    metrics = run(evidence, shop, tmp_path / "out", candidates=tmp_path / "candidates")
    assert metrics["validation_floor_r@1"] > 0
    for name in FITTED:
        assert (tmp_path / "out" / name).read_bytes() == (shop / "evidence" / name).read_bytes()


def test_selection_users_fit_nothing_and_get_no_traces(shop: Path, tmp_path: Path) -> None:
    """Other targets of selection users change no edge, scorer, scale or trace."""
    (tmp_path / "candidates").mkdir()
    for split in SPLITS:
        lists = load_lists(shop / "candidates", split)
        held_L = selection_users(400)[lists.user_L] & (split != "test")
        other_L = np.where(held_L, lists.items_LK[:, K - 1], lists.target_L)
        save_lists(tmp_path / "candidates", replace(lists, target_L=other_L))
    out = tmp_path / "evidence"
    run(evidence, shop, out, candidates=tmp_path / "candidates")
    for name in FITTED:
        assert (out / name).read_bytes() == (shop / "evidence" / name).read_bytes()
    run(traces, shop, tmp_path / "traces", candidates=tmp_path / "candidates", evidence=out)
    for name in ("scale", *KNOWN):
        file = f"traces/{name}.safetensors"
        assert (tmp_path / file).read_bytes() == (shop / file).read_bytes()
    for split in KNOWN:
        user_L = load_lists(shop / "candidates", split).user_L
        rows = Traces.load(shop / f"traces/{split}.safetensors").row_N
        assert sorted(set(range(len(user_L))) - set(rows.tolist())) == (
            np.flatnonzero(selection_users(400)[user_L]).tolist()
        )


@pytest.mark.parametrize("split", KNOWN)
def test_traces_say_what_the_scorecard_and_a_person_agree_on(shop: Path, split: str) -> None:
    made = Traces.load(shop / f"traces/{split}.safetensors")
    scale = Scale.load(shop / "traces/scale.safetensors")
    scorecard = LinearScorer.load(shop / "evidence/linear.safetensors")
    buckets_NKF = load_arrays(shop / f"evidence/{split}.safetensors")["buckets_LKF"][made.row_N]
    score_NK = scorecard.score(buckets_NKF)
    moved_NKF = scorecard.contributions(buckets_NKF)
    side_NKF = Phrases(wording("compact"), counted_named(NAMES), 8).sides(buckets_NKF)
    assert made.level_NK.shape == score_NK.shape == (len(made), LONG)
    inside_NK = (score_NK > scale.low) & (score_NK < scale.high)
    assert inside_NK.mean() > 0.99
    told_NK = scale.low + made.level_NK * scale.step
    np.testing.assert_allclose(told_NK[inside_NK], score_NK[inside_NK], atol=1e-3)
    cited = [(n, i, f) for n, i, f in np.argwhere(made.cites_NKC != NONE)]
    for n, i, c in cited:
        field = made.cites_NKC[n, i, c]
        moved, side = moved_NKF[n, i, field], side_NKF[n, i, field]
        least = ALONE if made.cites_NKC[n, i, 1] == NONE else LEAST
        assert moved * side >= least * (scale.high - scale.low) - 1e-6 > 0
    assert 0.5 < (made.cites_NKC[..., :3] != NONE).sum(-1).mean() < 2.5
