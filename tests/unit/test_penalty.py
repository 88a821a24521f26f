"""How strongly a scorecard is held back: chosen on its own lists, and worth it on others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffgr2.candidates import penalty, scorers

K, F, B = 12, 6, 8
Lists = tuple[np.ndarray, np.ndarray]


def drawn(lists: int, seed: int, strength: float = 1.0) -> Lists:
    """Buckets and gains of lists whose fields all rise from the first bucket to the last."""
    rng = np.random.default_rng(seed)
    buckets_LKF = rng.integers(0, B, (lists, K, F)).astype(np.uint8)
    score_LK = strength * (buckets_LKF / B * np.arange(F) / F).sum(-1)
    hit_L = (score_LK + rng.gumbel(size=score_LK.shape)).argmax(1)
    return buckets_LKF, (np.arange(K) == hit_L[:, None]).astype(np.float32)


def choice(buckets_LKF: np.ndarray, gains_LK: np.ndarray, owner_L: Any = None, **given: Any):
    there_LK = np.ones(gains_LK.shape, bool)
    owner_L = np.arange(len(gains_LK)) if owner_L is None else owner_L
    how: dict[str, Any] = {"there_LK": there_LK, "seed": 0, **given}
    return penalty.chosen(buckets_LKF, gains_LK, owner_L, B, **how)


def likelihood(found: penalty.Penalty, lists: Lists, others: Lists) -> float:
    how: dict[str, Any] = {"l2": found.l2, "smooth": found.smooth, "seed": 0}
    scorer = scorers.fit("linear", *lists, B, **how)
    return float(penalty.likelihood(scorer.score(others[0]), others[1]).mean())


@pytest.mark.parametrize("seed", range(3))
def test_few_lists_are_held_back_and_others_become_likelier(seed: int) -> None:
    few, others = drawn(150, seed), drawn(2_000, seed + 10)
    found = choice(*few)
    assert found.smooth > 0
    usual = penalty.Penalty(1e-3, 0.0, "")
    assert likelihood(found, few, others) > likelihood(usual, few, others) + 0.05
    best = max(likelihood(one, few, others) for one in penalty.grid(150, None, None))
    assert likelihood(found, few, others) > best - 0.06


def spread(found: penalty.Penalty, buckets_LKF: np.ndarray, gains_LK: np.ndarray) -> float:
    """How far apart a scorecard so held back puts candidates."""
    how: dict[str, Any] = {"l2": found.l2, "smooth": found.smooth, "seed": 0}
    return float(scorers.fit("linear", buckets_LKF, gains_LK, B, **how).score(buckets_LKF).std())


def test_where_nothing_is_to_be_learned_little_is() -> None:
    lists = drawn(200, 0, strength=0.0)
    assert spread(choice(*lists), *lists) < 0.5 * spread(penalty.Penalty(1e-3, 0.0, ""), *lists)


def test_copies_of_a_persons_lists_do_not_excuse_learning_them_by_heart() -> None:
    lists = buckets_LKF, gains_LK = drawn(60, 1, strength=0.0)
    copies = np.tile(buckets_LKF, (4, 1, 1)), np.tile(gains_LK, (4, 1))
    own, strangers = choice(*copies, np.tile(np.arange(60), 4)), choice(*copies)
    assert spread(own, *lists) < 0.5 * spread(strangers, *lists)


def test_the_choice_is_the_same_again_and_blind_to_lists_without_outcome() -> None:
    buckets_LKF, gains_LK = drawn(120, 2)
    found = choice(buckets_LKF, gains_LK)
    assert found == choice(buckets_LKF, gains_LK)
    rng = np.random.default_rng(0)
    more_LKF = np.concatenate([buckets_LKF, rng.integers(0, B, (300, K, F)).astype(np.uint8)])
    none_LK = np.concatenate([gains_LK, np.zeros((300, K), np.float32)])
    assert choice(more_LKF, none_LK) == found


def test_what_a_recipe_says_is_kept() -> None:
    lists = drawn(120, 3)
    both = choice(*lists, l2=0.5, smooth=0.25)
    assert (both.l2, both.smooth, both.why) == (0.5, 0.25, "by the recipe")
    assert choice(*lists, l2=0.5).l2 == 0.5
    assert choice(*lists, smooth=0.0).smooth == 0.0


def test_many_lists_take_the_usual_and_a_handful_the_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = choice(*drawn(20, 4))
    assert (few.l2, few.smooth) == (pytest.approx(8 / 20), pytest.approx(100 / 20))
    monkeypatch.setattr(penalty, "MANY", 100)
    many = choice(*drawn(100, 4))
    assert (many.l2, many.smooth) == (1e-3, 0.0)
    assert "100 lists" in many.told_as()
    assert choice(*drawn(100, 4), smooth=0.2).smooth == 0.2


def test_shorter_lists_and_weights_count_as_the_scorecard_counts_them() -> None:
    buckets_LKF, gains_LK = drawn(200, 5)
    there_LK = np.arange(K) < np.where(np.arange(200) % 2, K, K // 2)[:, None]
    gains_LK = gains_LK * there_LK
    found = choice(buckets_LKF, gains_LK, there_LK=there_LK)
    padded_LKF = np.where(there_LK[:, :, None], buckets_LKF, 255).astype(np.uint8)
    assert choice(padded_LKF, gains_LK, there_LK=there_LK) == found
    even = choice(buckets_LKF, gains_LK, there_LK=there_LK, weight_LK=np.ones(gains_LK.shape))
    assert even == found
