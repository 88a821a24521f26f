"""Faithfulness: directions, shares and intervals by hand, and what is chosen to be removed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.evaluate.faithfulness import Removal, choose, faithfulness, moved
from diffgr2.prompts.english import AGAINST, FOR, NEITHER
from diffgr2.prompts.request import MISSING
from support.accounts import K_MAX, drawn, template


def removal(number: int, side: int, before: float, after: float, *, cited: bool = True) -> Removal:
    return Removal(number, 0, 0, side, cited, before, after)


def test_directions_by_hand():
    assert removal(0, FOR, 9.0, 7.5).movement == 1.5
    assert removal(0, FOR, 7.5, 9.0).movement == -1.5
    assert removal(0, AGAINST, 3.0, 5.0).movement == 2.0
    assert removal(0, AGAINST, 5.0, 3.0).movement == -2.0


def test_shares_by_hand():
    removals = [
        removal(0, FOR, 9.0, 7.0),  # as it should: +2
        removal(0, AGAINST, 3.0, 2.0),  # the other way: -1
        removal(1, FOR, 4.0, 4.00001),  # still
        removal(2, AGAINST, 3.0, 6.0),  # +3
        removal(3, FOR, 1.0, np.nan),  # not judged again: unknown
    ]
    found = moved(removals, 1000, 0)
    assert (found["n"], found["lists"], found["moved"], found["against"]) == (4, 3, 0.5, 0.25)
    assert found["mean_levels"] == pytest.approx(1.0, abs=1e-5)
    low, high = found["ci"]
    assert low == 0.0
    assert high == 1.0
    assert moved([], 10, 0) == {"n": 0}


def test_the_interval_is_over_lists():
    # Twenty removals of one list are one observation.
    one = [removal(0, FOR, 9.0, 7.0)] * 20
    assert moved(one, 100, 0)["ci"] == [1.0, 1.0]
    many = [removal(i, FOR, 9.0, 7.0 if i % 2 else 10.0) for i in range(400)]
    clustered = [replace(r, list=r.list % 20 // 10) for r in many]
    low, high = moved(many, 2000, 0)["ci"]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, abs=0.02)
    assert moved(many, 2000, 0) == moved(many, 2000, 0)
    assert moved(clustered, 2000, 0)["moved"] == moved(many, 2000, 0)["moved"]


def test_cited_and_control_are_apart():
    cited = [removal(i, FOR, 9.0, 7.0) for i in range(5)]
    other = [removal(i, FOR, 9.0, 9.0, cited=False) for i in range(5)]
    found = faithfulness([*cited, *other], 100, 0)
    assert (found["cited"]["moved"], found["uncited"]["moved"]) == (1.0, 0.0)
    assert found["uncited"]["mean_levels"] == 0.0


@given(st.integers(0, 2**32), st.integers(1, K_MAX), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_what_is_removed_was_there_and_graded(seed, k, most):
    rng = np.random.default_rng(seed)
    case = drawn(rng, k)
    buckets_KF = case.request.buckets_KF
    side_KF = template().phrases.sides(buckets_KF)
    chosen = choose(7, case.reading, side_KF, most, rng)
    assert len({(r.candidate, r.field) for r in chosen}) == len(chosen)
    for cited in (True, False):
        assert sum(r.cited == cited for r in chosen) <= most
    for r in chosen:
        assert r.list == 7
        assert r.side == side_KF[r.candidate, r.field] != NEITHER
        assert r.before == case.reading.levels_K[r.candidate]
        assert r.cited == (r.field in case.reading.cites[r.candidate])
        left_KF = r.without(buckets_KF)
        assert buckets_KF[r.candidate, r.field] != MISSING == left_KF[r.candidate, r.field]
        assert (left_KF != buckets_KF).sum() == 1
