"""The evidence teacher's three ways to decide, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.config import TracesConfig
from diffgr2.traces.decide import Traces, decide, strength_edges
from diffgr2.types import MISS

LISTS, K, F, LEVELS = 200, 5, 4, 32
RNG = np.random.default_rng(0)
CONTRIBUTION_LKF = RNG.normal(size=(LISTS, K, F))
SCORE_LK = CONTRIBUTION_LKF.sum(-1)
HIT_L = np.where(RNG.random(LISTS) < 0.3, MISS, RNG.integers(0, K, LISTS)).astype(np.int32)
EDGES_S = strength_edges(SCORE_LK, LEVELS)


def decided(mode: str, hit_L: np.ndarray = HIT_L, seed: int = 0, **changes) -> Traces:
    config = TracesConfig.model_validate({"mode": mode, "attempts": 8, "noise": 1.0, **changes})
    return decide(SCORE_LK, CONTRIBUTION_LKF, hit_L, EDGES_S, config, cites=2, seed=seed)


def test_the_order_falls_with_the_scorecard() -> None:
    traces = decided("plain")
    assert traces.row_N.tolist() == list(range(LISTS))
    for n in range(LISTS):
        level_K = traces.strength_NK[n].tolist()
        assert level_K == [sum(edge <= s for edge in EDGES_S) for s in SCORE_LK[n]]
        wanted = sorted(range(K), key=lambda i: (-level_K[i], i))
        assert traces.order_NK[n].tolist() == wanted
    nobody = np.full(LISTS, MISS, np.int32)
    assert np.array_equal(decided("plain", nobody).order_NK, traces.order_NK), "no target is read"


def test_cited_fields_are_the_strongest_on_either_side() -> None:
    traces = decided("plain")
    for n, i in np.ndindex(LISTS, K):
        fields = sorted(range(F), key=lambda f: -CONTRIBUTION_LKF[n, i, f])
        assert traces.for_NKC[n, i].tolist() == fields[:2]
        assert traces.against_NKA[n, i].tolist() == fields[:1:-1][:1]


def test_targeted_puts_every_target_first_and_leaves_the_others_in_order() -> None:
    traces, plain = decided("targeted"), decided("plain")
    assert traces.row_N.tolist() == np.flatnonzero(HIT_L != MISS).tolist()
    for n, row in enumerate(traces.row_N):
        target = int(HIT_L[row])
        level_K, own_K = traces.strength_NK[n], plain.strength_NK[row]
        assert level_K[target] == level_K.max()
        assert np.delete(level_K, target).tolist() == np.delete(own_K, target).tolist()
        if own_K.max() < LEVELS - 1:  # room for a level above the best
            assert traces.order_NK[n, 0] == target


def test_rejection_keeps_what_ranks_the_target_first_and_asks_the_scorecard_first() -> None:
    right = np.flatnonzero(SCORE_LK.argmax(1) == HIT_L)
    once = decided("rejection", attempts=1)
    assert once.row_N.tolist() == right.tolist()
    assert np.array_equal(once.strength_NK, decided("plain").strength_NK[right])
    more = decided("rejection")
    assert set(right) < set(more.row_N.tolist()) <= set(np.flatnonzero(HIT_L != MISS))
    first = np.isin(more.row_N, right)
    assert np.array_equal(more.strength_NK[first], once.strength_NK)
    own_N = more.strength_NK[np.arange(len(more)), HIT_L[more.row_N]]
    assert (own_N == more.strength_NK.max(1)).all()


@pytest.mark.parametrize("mode", ["plain", "targeted", "rejection"])
def test_a_seed_decides(mode: str) -> None:
    one, two = decided(mode, seed=4), decided(mode, seed=4)
    assert all(np.array_equal(vars(one)[name], vars(two)[name]) for name in vars(one))
