"""Scales and chances against values by hand, and what must hold for any strengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from diffgr2.evaluate.calibration import (
    FEWEST,
    FLATTEST,
    STEEPEST,
    calibration_error,
    chances,
    fit_scale,
)
from diffgr2.prompts.said import order_by_level
from diffgr2.types import MISS


def test_two_candidates_by_hand():
    # The stronger of two, one level apart, is the one in 15 of 20 lists: log(15 / 5) = 1.0986.
    levels_LK = np.tile([3.0, 2.0], (20, 1))
    hit_L = np.array([0] * 15 + [1] * 5)
    assert fit_scale(levels_LK, hit_L, 0.3) == pytest.approx(np.log(3.0), abs=1e-6)
    assert fit_scale(2 * levels_LK, hit_L, 0.3) == pytest.approx(np.log(3.0) / 2, abs=1e-6)
    assert fit_scale(levels_LK + 5.0, hit_L, 0.3) == pytest.approx(np.log(3.0), abs=1e-6)


def test_the_scale_that_drew_the_targets_is_found_again():
    rng = np.random.default_rng(0)
    levels_LK = rng.random((4000, 8)) * 15
    levels_LK[np.arange(8) >= rng.integers(2, 9, 4000)[:, None]] = np.nan
    chance_LK = softmax(np.where(np.isnan(levels_LK), -np.inf, 0.4 * levels_LK), axis=1)
    hit_L = (chance_LK.cumsum(1) > rng.random((4000, 1))).argmax(1)
    scale = fit_scale(levels_LK, hit_L, 9.0)
    assert scale == pytest.approx(0.4, abs=0.03)
    assert fit_scale(levels_LK, hit_L, 9.0) == scale
    best = np.where(np.isnan(chance_LK), np.nan, chance_LK)
    assert calibration_error(best, hit_L).error < 0.02


def test_few_or_mute_lists_leave_the_default():
    levels_LK = np.tile([3.0, 2.0], (FEWEST - 1, 1))
    hit_L = np.zeros(FEWEST - 1, int)
    assert fit_scale(levels_LK, hit_L, 0.3) == 0.3
    more_LK, misses_L = np.tile(levels_LK, (3, 1)), np.full(3 * (FEWEST - 1), MISS)
    assert fit_scale(more_LK, misses_L, 0.3) == 0.3
    assert fit_scale(np.ones((50, 3)), np.zeros(50, int), 0.3) == 0.3
    assert fit_scale(np.full((50, 3), np.nan), np.zeros(50, int), 0.3) == 0.3
    assert fit_scale(np.empty((0, 3)), np.zeros(0, int), 0.3) == 0.3


def test_strengths_that_never_err_or_always_do_have_an_end():
    levels_LK = np.tile([3.0, 2.0], (30, 1))
    assert fit_scale(levels_LK, np.zeros(30, int), 0.3) == STEEPEST
    assert fit_scale(levels_LK, np.ones(30, int), 0.3) == FLATTEST


def test_chances_by_hand():
    assert chances(np.array([0.0, np.log(3.0)]), 1.0).tolist() == pytest.approx([0.25, 0.75])
    unjudged = chances(np.array([1.0, np.nan, 0.0]), np.log(2.0))
    assert unjudged.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert unjudged[2] > unjudged[1]  # what was not judged comes last
    assert chances(np.array([np.nan]), 1.0).tolist() == [1.0]
    floor = order_by_level(np.ones(3), np.array([2, 0, 1]))
    assert np.argsort(-chances(np.ones(3), 1.0, floor)).tolist() == [1, 2, 0]


LEVELS = st.lists(
    st.floats(0, 63) | st.sampled_from([0.0, 7.0, 15.0, np.nan]), min_size=1, max_size=100
)


@given(LEVELS, st.floats(0.0, STEEPEST))
@settings(max_examples=300, deadline=None)
def test_chances_fall_strictly_along_the_said_order(levels, scale):
    levels_K = np.array(levels)
    chance_K = chances(levels_K, scale)
    assert (np.diff(chance_K[order_by_level(levels_K)]) < 0).all()
    assert 0.0 < chance_K.min() <= chance_K.max() <= 1.0
    # Levels that are rounded to a tie may stand up to half a rounding step out of order.
    assert chance_K.sum() == pytest.approx(1.0, abs=1e-3 * max(scale, 1e-3))


@given(LEVELS, st.floats(0.01, 2.0), st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_one_more_level_is_worth_the_same_in_every_list(levels, scale, extra):
    levels_K = np.append(np.nan_to_num(np.array(levels)), [float(extra), extra + 1.0])
    chance_K = chances(levels_K, scale)
    if chance_K.min() > 1e-12:
        assert np.log(chance_K[-1] / chance_K[-2]) == pytest.approx(scale, abs=1e-3)


def test_the_error_by_hand():
    chance_LK = np.array([[0.8, 0.2], [0.8, 0.2]])
    found = calibration_error(chance_LK, np.array([0, MISS]), bins=2)
    assert found.error == pytest.approx(0.25)
    assert found.bins == ((pytest.approx(0.2), 0.0, 2), (pytest.approx(0.8), 0.5, 2))
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])).error == 0.0
    padded = calibration_error(np.array([[1.0, np.nan]]), np.array([0]))
    assert padded.bins == ((1.0, 1.0, 1),)
    assert calibration_error(np.empty((0, 2)), np.array([], int)).bins == ()
