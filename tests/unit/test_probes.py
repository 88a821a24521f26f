"""Calibration and probes on a small shop, with a weigher of evidence in place of a model."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from diffgr2.artifacts import read_json
from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.kinds import Popularity
from diffgr2.candidates.lists import held_out_lists, selection_users
from diffgr2.candidates.retrieval import prefixes
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.data.store import Dataset
from diffgr2.evaluate.probed import figures, sections
from diffgr2.items.sids import SemanticIds
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.request import MISSING, Request
from diffgr2.prompts.said import Reading
from diffgr2.recipe import validate
from diffgr2.rerank.readout import dealt
from diffgr2.stages import calibrate, probes
from diffgr2.stages.corpus import Corpus
from diffgr2.types import MISS, Catalogue, Histories
from support.accounts import BUCKETS, STRENGTHS, template

ITEMS, USERS, K, K_MAX = 60, 400, 4, 6
RECIPE = validate(
    {
        "name": "probed",
        "candidates": {"k": K, "k_max": K_MAX},
        "prompt": {"strengths": STRENGTHS, "cites": 3, "history": 4},
        "evidence": {"buckets": BUCKETS, "history": 4, "fields": [*names_of(COUNTED[:10])]},
        "evaluate": {
            "bootstrap": 50,
            "frontier_lists": 12,
            "list_lengths": [1, 2, 4, 6, 7, 25, 100],
            "views": [1, 3],
        },
    },
    "probed",
)
WORTH_F = np.array([-0.5, 0, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0])


@dataclass(frozen=True)
class Shop:
    corpus: Corpus
    ctx: StageContext


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    rng = np.random.default_rng(0)
    odds_I = 1.0 / np.arange(1, ITEMS + 1)
    rows = [rng.choice(ITEMS, 8, replace=False, p=odds_I / odds_I.sum()) for _ in range(USERS)]
    items_N, offsets = np.concatenate(rows).astype(np.int32), np.arange(USERS + 1) * 8
    histories = Histories(offsets, items_N, np.arange(USERS * 8) * 40_000, ITEMS)
    names = [f"soap {item}" for item in range(ITEMS)]
    paths = [["soap"]] * ITEMS
    catalogue = Catalogue(names, names, ["ours"] * ITEMS, paths, np.ones(ITEMS), [""] * ITEMS)
    retriever, train = Popularity.build(histories.train_part()), histories.train_part()
    index = EvidenceIndex.build(train, catalogue, rng.normal(size=(ITEMS, 4)), RECIPE.evidence)
    lists, buckets = {}, {}
    for split in ("validation", "test"):
        own = lists[split] = held_out_lists(histories, retriever, split, K_MAX)
        queries = prefixes(histories, own.user_L, own.end_L)
        features = index.features(queries, own.items_LK, own.scores_LK, own.user_L)
        if split == "validation":
            index = index.with_edges(features.reshape(-1, features.shape[-1]))
        buckets[split] = index.buckets(features)
    lists["train"], buckets["train"] = lists["validation"].take(np.arange(0)), buckets["test"][:0]
    inputs = {name: tmp_path / name for name in ("retriever", "evidence", "calibrate", "rl")}
    inputs["block_rl"] = tmp_path / "block_rl"
    for directory in inputs.values():
        directory.mkdir()
    retriever.save(inputs["retriever"])
    index.save(inputs["evidence"])
    weight_FB = WORTH_F[:, None] * np.arange(BUCKETS)
    LinearScorer(np.pad(weight_FB, ((0, 0), (0, 1)))).save(
        inputs["evidence"] / "linear.safetensors"
    )
    codes_IL = np.stack([np.arange(ITEMS) % 32, np.arange(ITEMS) // 32], -1).astype(np.int32)
    dataset = Dataset(histories, catalogue, [str(u) for u in range(USERS)], {})
    sids, compact = SemanticIds(codes_IL, 32), template()
    parts = (RECIPE, dataset, sids, compact.vocab, compact, lists, buckets, {}, {}, weight_FB)
    out = tmp_path / "out"
    out.mkdir()
    ctx = StageContext("probes", RECIPE, inputs, out, tmp_path, Progress(io.StringIO()))
    return Shop(Corpus(*parts), ctx)


def weigh(request: Request) -> Reading:
    """Strengths that add up what the evidence is worth, and the weightiest fields cited."""
    known_KF = request.buckets_KF != MISSING
    worth_KF = np.where(known_KF, WORTH_F * np.where(known_KF, request.buckets_KF, 3.5), 0.0)
    levels_K = np.clip(5.0 + worth_KF.sum(1) - WORTH_F.sum() * 3.5, 0, STRENGTHS - 1)
    graded_KF = template().phrases.sides(request.buckets_KF) != NEITHER
    cited = np.argsort(-np.abs(worth_KF), axis=1)
    cites = [
        [int(f) for f in row if graded_KF[i, f] and WORTH_F[f]][:3] for i, row in enumerate(cited)
    ]
    return Reading(levels_K, tuple(map(tuple, cites)))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> list[tuple[str, str, list[Request]]]:
    """Every call of the decoder: whose model, how, which requests."""
    calls: list[tuple[str, str, list[Request]]] = []

    def decode_requests(
        corpus: Corpus, model: str, requests: list[Request], how: str, **given: Any
    ) -> SimpleNamespace:
        assert requests
        assert max(request.k for request in requests) <= K_MAX
        assert min(request.k for request in requests) > 1
        calls.append((model, how, list(requests)))
        if on_done := given.get("on_done"):
            for n in range(len(requests)):
                on_done(n)
        return SimpleNamespace(readings=[weigh(request) for request in requests], seconds=0.001)

    for module in (calibrate, probes):
        monkeypatch.setattr(module, "decode_requests", decode_requests)
        monkeypatch.setattr(module, "open_corpus", lambda *_: shop.corpus)
        opened = SimpleNamespace(open=lambda directory: directory.name)
        monkeypatch.setattr(module, "Model", opened)
    return calls


def test_scales_are_fitted_on_selection_users_alone(shop: Shop, decoded) -> None:
    metrics = calibrate.run(shop.ctx)
    found = read_json(shop.ctx.out / "calibration.json")
    assert set(found) == {"block", "ar", "verify", "teacher_ar", "n", "ece"}
    assert found["verify"] == found["ar"]
    assert all(isinstance(found[name], float) and found[name] > 0 for name in calibrate.WAYS)
    assert [call[:2] for call in decoded] == [
        ("block_rl", "recommended"),
        ("block_rl", "ar"),
        ("rl", "ar"),
    ]
    selection = shop.corpus.selection
    held_U = selection_users(USERS)
    assert len(selection) == found["n"] == len(decoded[0][2])
    assert all(held_U[shop.corpus.lists[split].user_L[row]] for split, row in selection)
    assert metrics["n"] == len(selection)


def test_a_template_without_strengths_has_neither(shop: Shop, decoded, monkeypatch) -> None:
    gr2 = SimpleNamespace(template=SimpleNamespace(answers=("written",)))
    for module, name in ((calibrate, "calibration.json"), (probes, "probes.json")):
        monkeypatch.setattr(module, "open_corpus", lambda *_: gr2)
        assert module.run(shop.ctx) == {}
        assert read_json(shop.ctx.out / name) == {}


@pytest.fixture
def found(shop: Shop, decoded) -> dict[str, Any]:
    calibrate.run(shop.ctx)
    (shop.ctx.out / "calibration.json").rename(shop.ctx.inputs["calibrate"] / "calibration.json")
    decoded.clear()
    probes.run(shop.ctx)
    return read_json(shop.ctx.out / "probes.json")


def test_every_length_is_answered_in_windows_that_compare(found) -> None:
    lengths = found["lengths"]
    assert sorted({p["length"] for p in lengths}) == [1, 2, 4, 6, 7, 25]  # 100 are not to be had
    for point in lengths:
        assert point["answered"] == 1.0
        assert point["ndcg_ci"][0] <= point["ndcg@3"] <= point["ndcg_ci"][1]
        assert 0 < point["n"] <= 12
    of = {(p["length"], p["row"]): p for p in lengths}
    assert of[1, "cft_opd_rl"]["r@1"] == of[1, "floor"]["r@1"] == 1.0
    for n in (2, 4, 6, 7, 25):  # the reader is the scorecard, up to what the scale cuts
        ours, tutor = of[n, "cft_opd_rl"], of[n, "evidence"]
        assert ours["ndcg@3"] == pytest.approx(tutor["ndcg@3"], abs=0.15)
        assert ours["n"] == tutor["n"] == of[n, "floor"]["n"]


def test_views_of_a_reader_that_ignores_places_gain_nothing(found) -> None:
    views = found["views"]
    assert [(p["row"], p["views"]) for p in views] == [
        (row, count) for row in ("cft_opd_rl", "ar") for count in (1, 3)
    ]
    for one, three in (views[:2], views[2:]):
        assert one["r@1"] == three["r@1"]
        assert three["diff_r@1_ci"] == three["diff_ndcg@3_ci"] == [0.0, 0.0]
        assert "diff_r@1_ci" not in one
        assert three["ms_per_list"] > one["ms_per_list"] > 0


def test_cited_fields_of_a_faithful_reader_move_its_strengths(found) -> None:
    cited, control = found["faithfulness"]["cited"], found["faithfulness"]["uncited"]
    assert cited["n"] > 5
    assert cited["mean_levels"] > control["mean_levels"]
    assert 0.0 <= control["moved"] <= 1.0


def test_the_report_draws_what_was_probed(found) -> None:
    assert set(figures(found)) == {"lengths", "views", "faithfulness", "reliability"}
    assert "Faithfulness" in sections(found)
    assert [point["row"] for point in found["reliability"]] == ["cft_opd_rl", "ar"]
    for point in found["reliability"]:
        assert sum(n for _, _, n in point["bins"]) == 12 * K


def test_windows_are_dealt_like_cards() -> None:
    for n in range(1, 101):
        parts = dealt(np.arange(n), 20)
        assert sorted(np.concatenate(parts).tolist()) == list(range(n))
        sizes = {len(part) for part in parts}
        assert max(sizes) <= 20
        assert max(sizes) - min(sizes) <= 1
        assert len(parts) == -(-n // 20)


def test_lists_that_hold_their_target_early() -> None:
    hit_L = np.array([0, MISS, 3, 1, 0, 2])
    assert probes.holding(hit_L, 1, 9).tolist() == [0, 4]
    assert probes.holding(hit_L, 3, 9).tolist() == [0, 3, 4, 5]
    assert probes.holding(hit_L, 3, 2).tolist() == [0, 3]
