"""Examination by place: found where it is known, told apart from quality, never invented."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates.propensity import (
    NOT_TOLD,
    STEEPEST,
    Examination,
    fit_examination,
    weights,
)


def traffic(
    eta: float, seed: int, lists: int = 4000, k: int = 10, order: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists of items of known quality, better ones higher up (`order`: how strictly)."""
    rng = np.random.default_rng(seed)
    quality_I = rng.uniform(0.02, 0.6, 60)
    items, shown, came = [], [], []
    for _ in range(lists):
        chosen = rng.choice(len(quality_I), k, replace=False)
        place = np.argsort(np.argsort(-order * quality_I[chosen] - rng.normal(0, 0.2, k))) + 1
        items.append(chosen)
        shown.append(place)
        came.append(rng.random(k) < quality_I[chosen] * place**-eta)
    return np.concatenate(items), np.concatenate(shown), np.concatenate(came).astype(np.float64)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.2])
def test_the_fall_is_found_although_good_items_stand_higher(eta: float) -> None:
    inside = 0
    for seed in range(5):
        found = fit_examination(*traffic(eta, seed))
        assert abs(found.eta - eta) < 0.12
        assert found.low <= found.eta <= found.high
        inside += found.low - 1e-9 <= eta <= found.high
    assert inside >= 4


def test_the_ratio_of_click_rates_would_not_have_found_it() -> None:
    item_N, shown_N, came_N = traffic(0.3, 1)
    places = np.arange(1, 11)
    rate_K = np.array([came_N[shown_N == place].mean() for place in places])
    ratio = -np.polyfit(np.log(places), np.log(rate_K), 1)[0]
    assert ratio > 0.6  # quality taken for looking
    assert abs(fit_examination(item_N, shown_N, came_N).eta - 0.3) < 0.1


def test_what_never_moved_says_nothing() -> None:
    item_N = np.tile(np.arange(5), 100)
    came_N = np.random.default_rng(0).random(500) < 0.5
    assert fit_examination(item_N, item_N + 1, came_N) == NOT_TOLD
    assert fit_examination(item_N, np.zeros(500, int), came_N) == NOT_TOLD
    assert fit_examination(item_N, item_N[::-1] + 1, np.zeros(500)) == NOT_TOLD
    assert fit_examination(*(np.array([], int) for _ in range(3))) == NOT_TOLD
    assert (weights(NOT_TOLD, np.arange(20)) == 1.0).all()


def likelihood(eta: float, item_N: np.ndarray, shown_N: np.ndarray, came_N: np.ndarray) -> float:
    """By the formula, in plain loops."""
    total = 0.0
    for item in set(item_N.tolist()):
        mine = [at for at in range(len(item_N)) if item_N[at] == item and shown_N[at] >= 1]
        mass = sum(shown_N[at] ** -eta for at in mine)
        total += sum(np.log(shown_N[at] ** -eta / mass) for at in mine if came_N[at] > 0)
    return total


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6), st.booleans()), max_size=40))
def test_no_other_fall_is_likelier(rows: list[tuple[int, int, bool]]) -> None:
    item_N, shown_N = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    came_N = np.array([row[2] for row in rows], np.float64)
    found = fit_examination(item_N, shown_N, came_N)
    assert 0.0 <= found.low <= found.eta <= found.high <= STEEPEST
    best = likelihood(found.eta, item_N, shown_N, came_N)
    for eta in np.linspace(0, STEEPEST, 17):
        assert likelihood(float(eta), item_N, shown_N, came_N) <= best + 1e-6


@given(st.floats(0, STEEPEST), st.lists(st.integers(-1, 1000), min_size=1), st.floats(1, 50))
def test_weights_rise_with_the_place_and_are_bounded(eta, shown: list[int], most: float) -> None:
    shown_X = np.sort(np.array(shown))
    weight_X = weights(Examination(eta, 0, STEEPEST, 1), shown_X, most)
    assert ((weight_X >= 1.0) & (weight_X <= most)).all()
    assert (np.diff(weight_X[shown_X >= 1]) >= 0).all()
    assert (weight_X[shown_X < 1] == 1.0).all()
