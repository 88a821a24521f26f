"""Scorers over buckets: optimum, additivity, ties; bucket edges."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.candidates import scorers
from diffgr2.candidates.attributes import category_numbers
from diffgr2.candidates.edges import bucket_edges
from diffgr2.candidates.fields import COUNTED
from diffgr2.candidates.scorers import LinearScorer

LISTS, K, F, B = 600, 6, 4, 5


def made(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Buckets, targets drawn from a known scorecard, and the scorecard."""
    rng = np.random.default_rng(seed)
    weight_FB = rng.normal(size=(F, B))
    buckets = rng.integers(0, B, (LISTS, K, F)).astype(np.uint8)
    score = weight_FB[np.arange(F), buckets].sum(-1)
    hit = (score + rng.gumbel(size=score.shape)).argmax(1).astype(np.int32)
    return buckets, hit, weight_FB


def share(hit: np.ndarray) -> np.ndarray:
    return (np.arange(K) == hit[:, None]).astype(float)


def loss_of(weight_FB: np.ndarray, buckets: np.ndarray, hit: np.ndarray, l2: float) -> float:
    score = weight_FB[np.arange(F), buckets].sum(-1)
    p = np.exp(score) / np.exp(score).sum(1, keepdims=True)
    return float(-np.log(p[np.arange(LISTS), hit]).mean() + 0.5 * l2 * np.square(weight_FB).sum())


def test_linear_finds_the_optimum_of_its_loss() -> None:
    buckets, hit, truth = made()
    scorer = LinearScorer.fit(buckets, share(hit), B, 1e-6)
    weight_FB = scorer.weight_FV[:, :B]
    base = loss_of(weight_FB, buckets, hit, 0.0)
    rng = np.random.default_rng(1)
    assert base < loss_of(truth, buckets, hit, 0.0)
    for _ in range(50):
        nearby = weight_FB + rng.normal(size=(F, B)) * 0.05
        assert base < loss_of(nearby, buckets, hit, 0.0)
    centred = truth - truth.mean(1, keepdims=True)
    assert np.corrcoef(weight_FB.ravel(), centred.ravel())[0, 1] > 0.95


def test_neighbouring_buckets_are_pulled_together_to_the_optimum() -> None:
    buckets, hit, _ = made()
    plain = LinearScorer.fit(buckets, share(hit), B, 1e-3)
    scorer = LinearScorer.fit(buckets, share(hit), B, 1e-3, smooth=0.1)

    def loss(weight_FV: np.ndarray) -> float:
        told = loss_of(weight_FV[:, :B], buckets, hit, 1e-3)
        return told + 0.05 * float(np.square(np.diff(weight_FV[:, :B], axis=1)).sum())

    rng = np.random.default_rng(1)
    base = loss(scorer.weight_FV)
    assert base < loss(plain.weight_FV)
    for _ in range(50):
        assert base < loss(scorer.weight_FV + 0.05 * rng.normal(size=scorer.weight_FV.shape))
    steps = [np.abs(np.diff(s.weight_FV[:, :B], axis=1)).mean() for s in (scorer, plain)]
    assert steps[0] < 0.8 * steps[1]
    flat = LinearScorer.fit(buckets, share(hit), B, 1e-3, smooth=1e4)
    assert np.abs(np.diff(flat.weight_FV[:, :B], axis=1)).max() < 1e-2


def test_contributions_add_up_to_the_score_and_are_centred() -> None:
    buckets, hit, _ = made()
    scorer = LinearScorer.fit(buckets, share(hit), B, 1e-3)
    contributions = scorer.contributions(buckets)
    assert contributions.shape == buckets.shape
    np.testing.assert_allclose(contributions.sum(-1), scorer.score(buckets), rtol=1e-6)
    np.testing.assert_allclose(contributions.mean((0, 1)), 0.0, atol=1e-5)


def test_ties_keep_the_incoming_order() -> None:
    score = np.array([[1.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert scorers.rank_of_target(score, np.array([1, 2])).tolist() == [2, 2]


@pytest.mark.parametrize("buckets", [2, 8, 16])
def test_bucket_edges_give_even_buckets_and_zero_its_own(buckets: int) -> None:
    rng = np.random.default_rng(0)
    value = np.where(rng.random(20_000) < 0.4, 0.0, rng.gamma(2.0, size=20_000)).astype(np.float32)
    none = next(f for f in COUNTED if f.zero_is_none)
    edges = bucket_edges(value, buckets, none)
    level = np.searchsorted(edges, value, side="right")
    assert np.array_equal(level == 0, value == 0)
    share = np.bincount(level[value > 0], minlength=buckets)[1:] / (value > 0).sum()
    np.testing.assert_allclose(share, 1 / (buckets - 1), atol=0.02)


def test_constant_and_absent_evidence_stays_in_one_bucket() -> None:
    none = next(f for f in COUNTED if f.zero_is_none)
    zeros = np.zeros(100, np.float32)
    assert (np.searchsorted(bucket_edges(zeros, 8, none), zeros, side="right") == 0).all()
    ones = np.ones(100, np.float32)
    assert len(np.unique(np.searchsorted(bucket_edges(ones, 8, none), ones, side="right"))) == 1


def test_ranks_keep_a_bucket_each_until_they_run_out() -> None:
    rank = np.arange(10, dtype=np.float32)
    field = next(f for f in COUNTED if f.name == "rank")
    level = np.searchsorted(bucket_edges(rank, 8, field), rank, side="right")
    assert level.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7, 7]


def test_category_numbers_mean_equal_paths() -> None:
    paths = [["a", "b"], ["a", "b", "c"], ["x", "b"], [], ["a"]]
    number = category_numbers(paths)
    assert number[0, 0] == number[1, 0] == number[4, 0] != number[2, 0]
    assert number[0, 1] == number[1, 1] != number[2, 1]
    assert (number[3] == -1).all()


def test_an_outcome_of_weight_two_counts_like_two_lists() -> None:
    buckets, hit, _ = made()
    twice = np.arange(LISTS) % 3 == 0
    weight_LK = np.where(twice, 2.0, 1.0)[:, None] * np.ones(K)
    how = {"l2": 1e-3, "seed": 0}
    weighted = scorers.fit("linear", buckets, share(hit), B, **how, weight_LK=weight_LK)
    again = np.concatenate([np.arange(LISTS), np.flatnonzero(twice)])
    doubled = scorers.fit("linear", buckets[again], share(hit[again]), B, **how)
    plain = scorers.fit("linear", buckets, share(hit), B, **how)
    # Within a list only differences matter.
    one, two, three = (
        scorer.score(buckets) - scorer.score(buckets).mean(1, keepdims=True)
        for scorer in (weighted, doubled, plain)
    )
    np.testing.assert_allclose(one, two, atol=2e-3)
    assert np.abs(three - one).max() > 0.02


@pytest.mark.parametrize("kind", scorers.KINDS)
def test_equal_weights_change_nothing(kind: str) -> None:
    buckets, hit, _ = made()
    how = {"l2": 1e-3, "seed": 0}
    plain = scorers.fit(kind, buckets, share(hit), B, **how).score(buckets)
    ones = np.ones((LISTS, K))
    same = scorers.fit(kind, buckets, share(hit), B, **how, weight_LK=ones).score(buckets)
    np.testing.assert_allclose(plain, same, atol=1e-4)


def test_weights_take_the_place_out_of_what_is_learned() -> None:
    """Clicks come because an item stands high; field 0 put it there, and is believed too much."""
    rng = np.random.default_rng(4)
    lists, weight_FB = (
        20_000,
        np.linspace(0.0, 1.0, B)[None] * np.array([0.5, 1.0, -1.0, 0.2])[:, None],
    )
    buckets = rng.integers(0, B, (lists, K, F)).astype(np.uint8)
    score_LK = weight_FB[np.arange(F), buckets].sum(-1)
    hit = (score_LK + rng.gumbel(size=score_LK.shape)).argmax(1)
    place_LK = np.argsort(np.argsort(-(buckets[:, :, 0] + rng.normal(0, 0.5, (lists, K))))) + 1
    seen = rng.random(lists) < 1.0 / place_LK[np.arange(lists), hit]
    how = {"l2": 1e-6, "seed": 0}

    def learned(**more: np.ndarray) -> float:
        """How much the best level of field 0 is believed to be worth beside the worst."""
        scorer = scorers.fit("linear", buckets[seen], share(hit[seen]), B, **how, **more)
        assert isinstance(scorer, LinearScorer)
        return float(scorer.weight_FV[0, B - 1] - scorer.weight_FV[0, 0])

    plain, fair = learned(), learned(weight_LK=place_LK[seen].astype(float))
    assert plain > 1.0
    assert fair == pytest.approx(0.5, abs=0.15)
