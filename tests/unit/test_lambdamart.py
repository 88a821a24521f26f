"""The rival on raw values: what it learns, what it makes of gaps, and that it is the same again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from diffgr2.candidates import lambdamart
from diffgr2.candidates.lambdamart import LambdaMart, Lists
from diffgr2.stages.rival import worth

LISTS, K = 160, 6


@pytest.fixture(scope="module", autouse=True)
def _short_grid() -> Iterator[None]:
    """Two settings and less patience: the tests fit some fifteen forests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lambdamart, "GRID", lambdamart.GRID[:2])
        patch.setattr(lambdamart, "PATIENCE", 15)
        patch.setattr(lambdamart, "FEWEST", 300)
        yield


def lists_of(raw_LKF: np.ndarray, gains_LK: np.ndarray, valid_LK: np.ndarray | None = None):
    """Lists of as many users."""
    valid_LK = np.ones(raw_LKF.shape[:2], bool) if valid_LK is None else valid_LK
    user_L = np.arange(len(raw_LKF), dtype=np.int32)
    return Lists(raw_LKF.astype(np.float32), valid_LK, gains_LK.astype(np.float64), user_L)


def first_of(worth_LK: np.ndarray) -> np.ndarray:
    """A gain of 1 for each list's best."""
    return (np.arange(worth_LK.shape[1]) == worth_LK.argmax(1)[:, None]).astype(np.float64)


def made(seed: int = 0) -> Lists:
    """Field 1 says which one it is, field 0 is noise."""
    raw_LKF = np.random.default_rng(seed).normal(size=(LISTS, K, 2))
    return lists_of(raw_LKF, first_of(raw_LKF[:, :, 1]))


def fitted(train: Lists, select: Lists | None = None, *, threads: int = 1, **given) -> LambdaMart:
    none = np.zeros(len(train), bool)
    select = train.take(none) if select is None else select
    return lambdamart.fit(train, select, worth, seed=0, threads=threads, **given)


def value(trees: LambdaMart, lists: Lists) -> float:
    lists = lists.taught()
    return float(worth(trees.score(lists.raw_LKF, lists.valid_LK), lists).mean())


@pytest.fixture(scope="module")
def trees() -> LambdaMart:
    return fitted(made())


def test_it_finds_the_field_that_tells(trees: LambdaMart) -> None:
    assert value(trees, made(1)) > 0.95
    assert trees.importance(["noise", "signal"])["signal"] > 0.9
    assert trees.tuned_on == LISTS


def test_a_field_that_falls_is_as_good_as_one_that_rises() -> None:
    lists, other = made(), made(1)
    turned = fitted(lists_of(-lists.raw_LKF, lists.gains_LK))
    assert value(turned, lists_of(-other.raw_LKF, other.gains_LK)) > 0.95


def test_the_same_data_gives_the_same_bits_with_any_threads(trees: LambdaMart) -> None:
    other = made(2)
    score_LK = trees.score(other.raw_LKF, other.valid_LK)
    again = fitted(made())
    more = fitted(made(), threads=2)
    assert again.score(other.raw_LKF, other.valid_LK).tobytes() == score_LK.tobytes()
    assert more.score(other.raw_LKF, other.valid_LK).tobytes() == score_LK.tobytes()


def test_scale_does_not_matter(trees: LambdaMart) -> None:
    lists, other = made(), made(1)
    large = fitted(lists_of(lists.raw_LKF * 128, lists.gains_LK))
    orders = [
        np.argsort(-model.score(raw_LKF, other.valid_LK), axis=1, kind="stable")
        for model, raw_LKF in ((trees, other.raw_LKF), (large, other.raw_LKF * 128))
    ]
    np.testing.assert_array_equal(*orders)


def test_what_is_missing_can_be_what_tells() -> None:
    """The one without a value is the one."""

    def gaps(seed: int) -> Lists:
        rng = np.random.default_rng(seed)
        raw_LKF, at_L = rng.normal(size=(LISTS, K, 1)), rng.integers(0, K, LISTS)
        raw_LKF[np.arange(LISTS), at_L, 0] = np.nan
        return lists_of(raw_LKF, (np.arange(K) == at_L[:, None]).astype(float))

    assert value(fitted(gaps(0)), gaps(1)) == 1.0


def test_a_field_that_nobody_has_does_no_harm() -> None:
    lists = made()
    lists.raw_LKF[:, :, 0] = np.nan
    assert value(fitted(lists), made(1)) > 0.95


def test_numbers_of_categories_are_names() -> None:
    """Good are 1, 4 and 6 of eight, which no threshold separates and one set does."""

    def named(seed: int) -> Lists:
        rng = np.random.default_rng(seed)
        raw_LKF = rng.integers(0, 8, (LISTS, K, 1)).astype(float)
        good_LK = np.isin(raw_LKF[:, :, 0], (1, 4, 6)).astype(float)
        return lists_of(raw_LKF, good_LK)

    trees = fitted(named(0), categories=[0])
    assert value(trees, named(1)) == 1.0
    assert "decision_type=1" in trees.booster.model_to_string()


def test_a_larger_gain_goes_first() -> None:
    """Two fields: one tells the click (1), the other the purchase (3)."""

    def both(seed: int) -> Lists:
        raw_LKF = np.random.default_rng(seed).normal(size=(LISTS, K, 2))
        return lists_of(
            raw_LKF, np.maximum(first_of(raw_LKF[..., 0]), 3 * first_of(raw_LKF[..., 1]))
        )

    trees, lists = fitted(both(0)), both(1)
    score_LK = trees.score(lists.raw_LKF, lists.valid_LK)
    alone_L = (lists.gains_LK > 0).sum(1) == 2
    first_L = np.take_along_axis(lists.gains_LK, score_LK.argmax(1)[:, None], 1)[:, 0]
    assert (first_L[alone_L] == 3).mean() > 0.75
    assert value(trees, lists) > 0.9


def test_padding_is_last_and_changes_nothing(trees: LambdaMart) -> None:
    lists = made(3)
    valid_LK = np.arange(K) < np.random.default_rng(0).integers(2, K + 1, LISTS)[:, None]
    raw_LKF = np.where(valid_LK[:, :, None], lists.raw_LKF, 1e6)
    score_LK = trees.score(raw_LKF, valid_LK)
    whole_LK = trees.score(lists.raw_LKF, lists.valid_LK)
    assert (score_LK[valid_LK] == whole_LK[valid_LK]).all()
    assert np.isneginf(score_LK[~valid_LK]).all()
    gains_LK = first_of(np.where(valid_LK, lists.raw_LKF[..., 1], -np.inf))
    short = [lists_of(raw, gains_LK, valid_LK) for raw in (raw_LKF, lists.raw_LKF)]
    one, two = (fitted(own).score(lists.raw_LKF, lists.valid_LK) for own in short)
    assert one.tobytes() == two.tobytes()


def test_lists_without_an_outcome_teach_and_choose_nothing(trees: LambdaMart) -> None:
    lists = made()
    blank = lists_of(np.full((50, K, 2), 9.0), np.zeros((50, K)))
    more = fitted(Lists.join([lists, blank]), blank)
    assert more.score(lists.raw_LKF, lists.valid_LK).tobytes() == (
        trees.score(lists.raw_LKF, lists.valid_LK).tobytes()
    )


def test_enough_selection_lists_choose_alone() -> None:
    one = made(4)
    many = Lists.join([one] * (lambdamart.FEWEST // LISTS + 1))
    assert fitted(made(), many).tuned_on == len(many)
    assert fitted(made(), one).tuned_on == 2 * LISTS  # held-out fifths as well


def test_an_outcome_counts_by_its_weight(trees: LambdaMart) -> None:
    lists, fresh = made(), made(1)
    heavy_LK = np.random.default_rng(2).uniform(1, 10, lists.gains_LK.shape)
    plain, same, heavy = (
        found.score(fresh.raw_LKF, fresh.valid_LK)
        for found in (
            trees,
            fitted(replace(lists, weight_LK=np.ones_like(heavy_LK))),
            fitted(replace(lists, weight_LK=heavy_LK)),
        )
    )
    np.testing.assert_allclose(plain, same, atol=1e-6)
    assert np.abs(plain - heavy).max() > 1e-3
    part = replace(lists, weight_LK=heavy_LK).take(np.arange(5))
    assert part.weight_LK is not None
    np.testing.assert_array_equal(part.weight_LK, heavy_LK[:5])
    assert Lists.join([part, lists]).weight_LK is None
