"""Boosted trees over buckets: what they learn, out of fold, as tables, and what moved them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from diffgr2.candidates import trees
from diffgr2.candidates.lambdamart import Lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.candidates.trees import FOLDS, NO_FOLD, Forest, Trees
from diffgr2.errors import DataError
from diffgr2.types import MISSING

LISTS, K, F, B = 400, 5, 3, 4


def shop(seed: int = 0) -> Lists:
    """It counts whether fields 0 and 2 are alike, and field 1; some evidence is missing."""
    rng = np.random.default_rng(seed)
    raw_LKF = rng.integers(0, B, (LISTS, K, F)).astype(np.uint8)
    worth_LK = 4.0 * (raw_LKF[..., 0] % 2 == raw_LKF[..., 2] % 2) + 2.0 * raw_LKF[..., 1]
    hit_L = (worth_LK + rng.gumbel(size=(LISTS, K))).argmax(1)
    raw_LKF[rng.random(raw_LKF.shape) < 0.05] = MISSING
    gains_LK = (np.arange(K) == hit_L[:, None]).astype(np.float32)
    return Lists(raw_LKF, np.ones((LISTS, K), bool), gains_LK, np.arange(LISTS))


def fitted(lists: Lists, **given) -> Trees:
    return trees.fit(lists, B, LISTS, seed=0, threads=1, **given)[0]


@pytest.fixture(scope="module")
def found() -> Trees:
    return fitted(shop())


def right(score_LK: np.ndarray, lists: Lists) -> float:
    return float((np.nanargmax(score_LK, 1) == lists.gains_LK.argmax(1)).mean())


def test_they_learn_what_no_sum_over_fields_says(found: Trees) -> None:
    lists, other = shop(), shop(1)
    assert right(found.score(lists.raw_LKF, lists.user_L), lists) > 0.6
    assert right(found.score(other.raw_LKF, other.user_L), other) > 0.6
    score_LK = found.score(other.raw_LKF, other.user_L)
    assert score_LK.dtype == np.float32
    assert np.isfinite(score_LK).all()


def test_a_list_is_judged_by_trees_that_never_saw_its_user() -> None:
    """One fold's users take the worst; only trees that learned from them would say so."""
    lists, fold_U = shop(), fitted(shop()).fold_U
    assert sorted(np.bincount(fold_U)) == [LISTS // FOLDS] * FOLDS
    odd_L = fold_U == 2
    worst_LK = (np.arange(K) == lists.raw_LKF[..., 1].argmin(1)[:, None]).astype(np.float32)
    spoiled = replace(lists, gains_LK=np.where(odd_L[:, None], worst_LK, lists.gains_LK))
    score_LK = fitted(spoiled).score(lists.raw_LKF, lists.user_L)
    assert right(score_LK[odd_L], spoiled.take(odd_L)) < 0.2
    assert right(score_LK[odd_L], lists.take(odd_L)) > 0.6


def test_held_users_teach_nothing_and_have_the_mean_of_all_folds() -> None:
    lists, held_U = shop(), np.arange(LISTS) % 10 == 0
    found = fitted(lists, held_U=held_U)
    assert (found.fold_U[held_U] == NO_FOLD).all()
    noise = np.where(held_U[:, None], np.roll(lists.gains_LK, 2, 1), lists.gains_LK)
    again = fitted(replace(lists, gains_LK=noise), held_U=held_U)
    one_LK, two_LK = (made.score(lists.raw_LKF, lists.user_L) for made in (found, again))
    assert one_LK.tobytes() == two_LK.tobytes()
    held = np.flatnonzero(held_U)
    every = [
        replace(found, fold_U=np.full(LISTS, fold, np.int8)).score(lists.raw_LKF[held], held)
        for fold in range(FOLDS)
    ]
    np.testing.assert_allclose(one_LK[held], np.mean(every, 0), atol=1e-5)


def test_the_tables_are_the_trees() -> None:
    """Against LightGBM's own predictions and TreeSHAP, on every kind of candidate."""
    lists = shop()
    values_XF = trees.values_of(lists.raw_LKF).reshape(-1, F)
    label_X = lists.gains_LK.ravel()
    given = {"objective": "regression", "num_leaves": 9, "min_data_in_leaf": 5, "verbose": -1}
    for columns in ([0, 1, 2], [1]):  # with evidence that is missing, and where none ever is
        data_XF = values_XF if len(columns) > 1 else np.nan_to_num(values_XF, nan=1.0)
        data_XF = np.where(np.isin(np.arange(F), columns), data_XF, 0.0)
        data = lightgbm.Dataset(data_XF, label_X)
        booster = lightgbm.train({**given, "num_threads": 1}, data, 40)
        every_XF = np.stack(np.meshgrid(*[np.arange(B + 1)] * F), -1).reshape(-1, F)
        told_XF = np.where(every_XF == B, np.nan, every_XF)
        forest = Forest.of(booster, B + 1)
        np.testing.assert_allclose(forest.score(every_XF), booster.predict(told_XF), atol=1e-9)
        moved_XF = booster.predict(told_XF, pred_contrib=True)[:, :-1]
        np.testing.assert_allclose(forest.contributions(every_XF), moved_XF, atol=1e-5)


def test_contributions_and_the_mean_candidate_add_up_to_the_score(found: Trees) -> None:
    lists = shop(2)
    score_LK = found.score(lists.raw_LKF, lists.user_L)
    moved_LKF = found.contributions(lists.raw_LKF, lists.user_L)
    assert moved_LKF.shape == lists.raw_LKF.shape
    rest_LK = score_LK - moved_LKF.sum(-1)
    for fold in range(FOLDS):
        assert np.ptp(rest_LK[found.fold_U == fold]) < 1e-3
    best_LK = lists.raw_LKF[..., 1] == B - 1
    assert (moved_LKF[..., 1][best_LK] > 0).mean() > 0.95


def test_beside_a_scorecard_they_are_the_mean_of_both(found: Trees, tmp_path: Path) -> None:
    lists, rng = shop(4), np.random.default_rng(0)
    card = LinearScorer(rng.normal(size=(F, B + 1)))
    both, given = found.beside(card.weight_FV), (lists.raw_LKF, lists.user_L)
    mean_LK = (found.score(*given) + card.score(lists.raw_LKF)) / 2
    np.testing.assert_allclose(both.score(*given), mean_LK, atol=1e-5)
    mean_LKF = (found.contributions(*given) + card.contributions(lists.raw_LKF)) / 2
    np.testing.assert_allclose(both.contributions(*given), mean_LKF, atol=1e-5)
    both.save(tmp_path / trees.FILE)
    again = Trees.load(tmp_path / trees.FILE)
    assert again.score(*given).tobytes() == both.score(*given).tobytes()


def test_hidden_evidence_is_judged_as_what_it_then_is(found: Trees) -> None:
    """A candidate of which the telling field is hidden stands between the good and the bad."""
    list_KF = np.full((3, F), 1, np.uint8)
    list_KF[:, 1] = 0, MISSING, B - 1
    low, unknown, high = found.score(list_KF[None], np.array([0]))[0]
    assert low < unknown < high


def test_what_stands_behind_a_lists_end_does_not_matter() -> None:
    lists = shop()
    valid_LK = np.arange(K) < np.where(np.arange(LISTS) % 2, K, K - 2)[:, None]
    scores = []
    for fill in (0, B - 1):
        raw_LKF = np.where(valid_LK[..., None], lists.raw_LKF, np.uint8(fill))
        short = Lists(raw_LKF, valid_LK, lists.gains_LK * valid_LK, lists.user_L)
        scores.append(fitted(short).score(raw_LKF, short.user_L, valid_LK))
    assert scores[0].tobytes() == scores[1].tobytes()
    assert (np.isnan(scores[0]) == ~valid_LK).all()


def test_two_outcomes_and_weights_count() -> None:
    lists = shop()
    both = replace(lists, gains_LK=2 * lists.gains_LK + np.roll(lists.gains_LK, 1, 1))
    assert right(fitted(both).score(both.raw_LKF, both.user_L), lists) > 0.6
    # Half the lists say the opposite, and count for nearly nothing.
    lie_L = np.arange(LISTS) % 2 == 0
    worst_LK = (np.arange(K) == lists.raw_LKF[..., 1].argmin(1)[:, None]).astype(np.float32)
    weight_LK = np.where(lie_L[:, None], 0.01, 1.0) * np.ones((1, K))
    gains_LK = np.where(lie_L[:, None], worst_LK, lists.gains_LK)
    weighed = Lists(lists.raw_LKF, lists.valid_LK, gains_LK, lists.user_L, weight_LK)
    assert right(fitted(weighed).score(lists.raw_LKF, lists.user_L), lists) > 0.6


def test_the_same_lists_and_seed_give_the_same_bits_and_saving_keeps_them(
    found: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = shop(3)
    wanted = found.score(lists.raw_LKF, lists.user_L).tobytes()
    assert fitted(shop()).score(lists.raw_LKF, lists.user_L).tobytes() == wanted
    found.save(tmp_path / trees.FILE)
    monkeypatch.setitem(sys.modules, "lightgbm", None)  # as where it is not installed
    again = Trees.load(tmp_path / trees.FILE)
    assert again.score(lists.raw_LKF, lists.user_L).tobytes() == wanted
    moved = [made.contributions(lists.raw_LKF, lists.user_L).tobytes() for made in (found, again)]
    assert moved[0] == moved[1]


@pytest.mark.parametrize("kept", [0, 99, 100])
def test_few_lists_are_refused_in_one_line(kept: int) -> None:
    lists = shop()
    few = replace(lists, gains_LK=lists.gains_LK * (np.arange(LISTS) < kept)[:, None])
    if kept < 100:
        with pytest.raises(DataError, match=rf"of these there are {kept} \(traces\.tutor: scorer"):
            fitted(few)
        return
    found, told = trees.fit(few, B, LISTS, seed=0, threads=1)
    assert told["lists"] == kept
    assert np.isfinite(found.score(lists.raw_LKF, lists.user_L)).all()
