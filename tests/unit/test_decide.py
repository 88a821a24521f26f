"""The evidence teacher's three ways to decide, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import TracesConfig
from diffgr2.prompts.english import AGAINST, FOR, Phrases, wording
from diffgr2.prompts.request import NONE
from diffgr2.prompts.said import order_by_level
from diffgr2.traces.decide import ALONE, LEAST, Scale, Traces, counting, decide
from diffgr2.traces.words import falling, from_orders
from diffgr2.types import MISS

TEN = COUNTED[:10]
NAMES = names_of(TEN)

LISTS, K, LONG, B, F, TOP = 200, 5, 7, 8, len(NAMES), 15
RNG = np.random.default_rng(0)
BUCKETS_LKF = RNG.integers(0, B, (LISTS, LONG, F)).astype(np.uint8)
WEIGHT_FB = RNG.normal(size=(F, B))
CONTRIBUTION_LKF = WEIGHT_FB[np.arange(F), BUCKETS_LKF]
SCORE_LK = CONTRIBUTION_LKF.sum(-1)
HIT_L = np.where(RNG.random(LISTS) < 0.3, MISS, RNG.integers(0, K, LISTS)).astype(np.int32)
SIDE_LKF = Phrases(wording("compact"), TEN, B).sides(BUCKETS_LKF)
SCALE = Scale.of(SCORE_LK, TOP + 1)
CITES_LKC = counting(CONTRIBUTION_LKF, SIDE_LKF, SCALE)
ROWS = np.flatnonzero(np.arange(LISTS) % 10 != 3)  # some lists do not teach


def decided(mode: str, hit_L: np.ndarray = HIT_L, seed: int = 0, **changes) -> Traces:
    config = TracesConfig.model_validate({"mode": mode, "attempts": 8, "noise": 1.0, **changes})
    return decide(ROWS, SCORE_LK, CITES_LKC, hit_L, SCALE, config, k=K, seed=seed)


def test_the_scale_ends_at_the_bulk_of_the_scores() -> None:
    low, high = np.quantile(SCORE_LK, [0.001, 0.999])
    level_LK = SCALE.levels(SCORE_LK)
    assert SCALE.levels(np.array([low, high])).tolist() == [0, TOP]
    assert level_LK.min() == 0
    assert level_LK.max() == TOP
    assert SCALE.levels(np.array([low + SCALE.step * 2.5])) == pytest.approx(2.5)


def test_a_scale_survives_saving(tmp_path) -> None:
    SCALE.save(tmp_path / "scale.safetensors")
    assert Scale.load(tmp_path / "scale.safetensors") == SCALE


def test_levels_rise_with_the_score_and_imply_its_order() -> None:
    traces = decided("plain")
    assert traces.row_N.tolist() == ROWS.tolist()
    for n, row in enumerate(ROWS):
        score_K, trace = SCORE_LK[row], traces.at(n)
        by_score = np.argsort(score_K)
        assert (np.diff(trace.level_K[by_score]) >= 0).all()
        wanted = sorted(range(LONG), key=lambda i: (-SCALE.levels(score_K[[i]])[0], i))
        assert trace.order_K.tolist() == wanted
    nobody = np.full(LISTS, MISS, np.int32)
    assert np.array_equal(decided("plain", nobody).level_NK, traces.level_NK), "no target is read"


def test_what_counts_moved_the_score_to_the_side_of_its_grade() -> None:
    least = LEAST * (SCALE.high - SCALE.low)
    for place in np.ndindex(LISTS, LONG):
        moved_F, side_F = CONTRIBUTION_LKF[place], SIDE_LKF[place]
        counts = [
            f
            for f in range(F)
            if (side_F[f] == FOR and moved_F[f] >= least)
            or (side_F[f] == AGAINST and moved_F[f] <= -least)
        ]
        wanted = sorted(counts, key=lambda f: (-abs(moved_F[f]), f))
        cited = [f for f in CITES_LKC[place].tolist() if f != NONE]
        if wanted:
            assert cited == wanted
        else:
            assert len(cited) <= 1


@pytest.mark.parametrize(
    ("moved", "cited"),
    [
        ([LEAST, 0.9 * LEAST, 2 * LEAST], [2, 0]),
        ([0.9 * LEAST, 0.8 * LEAST, 0.0], [0]),
        ([0.8 * LEAST, 0.9 * LEAST, -5.0], [1]),
        ([0.9 * ALONE, 0.0, 0.0], []),
        ([-1.0, -1.0, 0.0], []),
    ],
)
def test_where_nothing_moves_much_the_weightiest_is_the_reason(moved, cited) -> None:
    moved_LKF = np.array([[moved]])
    counts_LKC = counting(moved_LKF, np.ones_like(moved_LKF), Scale(0.0, 1.0, 16))
    assert counts_LKC[0, 0].tolist() == cited + [NONE] * (3 - len(cited))


def test_targeted_puts_every_target_above_all_others_and_leaves_these_in_order() -> None:
    traces, plain = decided("targeted"), decided("plain")
    assert traces.row_N.tolist() == [row for row in ROWS if HIT_L[row] != MISS]
    for n, row in enumerate(traces.row_N):
        target, own_K = int(HIT_L[row]), plain.level_NK[plain.row_N == row][0]
        level_K = traces.level_NK[n]
        others_K, own_others_K = np.delete(level_K, target), np.delete(own_K, target)
        assert level_K[target] == pytest.approx(min(own_others_K.max() + 1, TOP))
        assert traces.at(n).order_K[0] == target
        assert others_K.max() <= level_K[target] - 1 + 1e-5
        if own_others_K.max() <= TOP - 1:
            assert others_K.tolist() == own_others_K.tolist()
        assert 0 <= level_K.min() <= level_K.max() <= TOP


def test_rejection_keeps_what_ranks_the_target_first_and_asks_the_scorecard_first() -> None:
    level_LK = SCALE.levels(SCORE_LK)
    right = [row for row in ROWS if level_LK[row, :K].argmax() == HIT_L[row]]
    once = decided("rejection", attempts=1)
    assert once.row_N.tolist() == right
    assert np.array_equal(once.level_NK, level_LK[right].astype(np.float32))
    more = decided("rejection")
    hits = set(ROWS.tolist()) & set(np.flatnonzero(HIT_L != MISS).tolist())
    assert set(right) < set(more.row_N.tolist()) <= hits
    assert np.array_equal(more.level_NK[np.isin(more.row_N, right)], once.level_NK)
    for n, row in enumerate(more.row_N):
        assert order_by_level(more.level_NK[n, :K])[0] == HIT_L[row]
    assert np.array_equal(more.cites_NKC, CITES_LKC[more.row_N])


@pytest.mark.parametrize("mode", ["plain", "targeted", "rejection"])
def test_a_seed_decides(mode: str) -> None:
    one, two = decided(mode, seed=4), decided(mode, seed=4)
    assert all(np.array_equal(vars(one)[name], vars(two)[name]) for name in vars(one))


def test_traces_survive_saving(tmp_path) -> None:
    traces = decided("plain")
    traces.save(tmp_path / "train.safetensors")
    again = Traces.load(tmp_path / "train.safetensors")
    for name, array in vars(traces).items():
        assert np.array_equal(vars(again)[name], array)
        assert vars(again)[name].dtype == array.dtype


def test_a_language_models_order_falls_by_a_level_and_judges_only_what_was_read() -> None:
    rows = [4, 9, 17]
    orders = [RNG.permutation(K).tolist() for _ in rows]
    traces = from_orders(rows, orders, SCALE.levels(SCORE_LK), CITES_LKC, K)
    assert traces.row_N.tolist() == rows
    assert traces.level_NK.shape == (3, LONG)
    for n, order in enumerate(orders):
        trace = traces.at(n)
        assert trace.order_K.tolist() == order
        assert (np.diff(trace.level_K[order]) <= -1).all()
        assert 0 <= trace.level_K.min() <= trace.level_K.max() <= TOP
        assert np.array_equal(trace.cites_KC, CITES_LKC[rows[n], :K])
    assert np.isnan(traces.level_NK[:, K:]).all()
    assert (traces.cites_NKC[:, K:] == NONE).all()
    assert len(from_orders([], [], SCALE.levels(SCORE_LK), CITES_LKC, K)) == 0


def test_falling_keeps_levels_that_the_order_allows() -> None:
    level_NK = np.array([[9.5, 4.25, 1.0, 7.0], [0.0, 0.5, 0.25, 0.0]])
    order_NK = np.array([[0, 3, 1, 2], [2, 1, 0, 3]])
    assert falling(level_NK, order_NK).tolist() == [[9.5, 4.25, 1.0, 7.0], [1.0, 2.0, 3.0, 0.0]]
