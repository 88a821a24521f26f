"""What every scorer promises: who reads evidence without a language model.

`Fitted` holds the promises; a class per kind inherits them. The signal is planted: field 1 alone
says which candidate is the target, the other fields are noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2.candidates import scorers
from diffgr2.errors import ArtifactError
from diffgr2.types import MISS

LISTS, K, F, B = 400, 5, 3, 6


def planted(seed: int = 0, top: int = B) -> tuple[np.ndarray, np.ndarray]:
    """Buckets and targets; the target is where field 1 is highest, and levels end below `top`."""
    rng = np.random.default_rng(seed)
    buckets_LKF = rng.integers(0, top, (LISTS, K, F)).astype(np.uint8)
    buckets_LKF[:, :, 1] = rng.permuted(np.tile(np.arange(K), (LISTS, 1)), axis=1)
    return buckets_LKF, buckets_LKF[:, :, 1].argmax(1).astype(np.int32)


def fit(kind: str, buckets_LKF: np.ndarray, hit_L: np.ndarray, seed: int = 0) -> Any:
    return scorers.fit(kind, buckets_LKF, gains_of(hit_L), B, l2=1e-3, seed=seed)


def gains_of(hit_L: np.ndarray) -> np.ndarray:
    return (np.arange(K) == hit_L[:, None]).astype(np.float32)


def tangled(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """As `planted`, but it counts whether fields 0 and 2 are alike, which no sum says."""
    rng = np.random.default_rng(seed)
    buckets_LKF = rng.integers(0, B, (LISTS, K, F)).astype(np.uint8)
    alike_LK = buckets_LKF[:, :, 0] % 2 == buckets_LKF[:, :, 2] % 2
    worth_LK = 4.0 * alike_LK + buckets_LKF[:, :, 1] + rng.random((LISTS, K))
    return buckets_LKF, worth_LK.argmax(1).astype(np.int32)


def is_additive(scorer: Any) -> bool:
    """Whether a field adds the same whatever the other fields are."""
    every = np.array(list(np.ndindex(2, 2)), np.uint8)
    list_1KF = np.stack([every[:, 0], np.full(4, 3, np.uint8), every[:, 1]], 1)[None]
    low, first, second, both = scorer.score(list_1KF)[0].astype(float)
    return abs((both - second) - (first - low)) < 1e-4


def sees_the_list(scorer: Any) -> bool:
    """Whether a candidate's score depends on those beside it."""
    buckets_LKF, _ = tangled(1)
    other_LKF = buckets_LKF.copy()
    other_LKF[:, 1:] = (other_LKF[:, 1:] + 1) % B
    one, two = (scorer.score(buckets)[:, 0] for buckets in (buckets_LKF, other_LKF))
    return bool(np.abs(one - two).max() > 1e-4)


class Fitted:
    """The promises; a subclass names its kind and what it is known by."""

    kind: str
    additive: bool
    contextual: bool
    fewest = 0  # lists that it can score

    @pytest.fixture(scope="class")
    def scorer(self) -> scorers.Scorer:
        return fit(self.kind, *planted())

    def test_a_kind_that_is_asked_for_is_the_kind_that_is_fitted(self) -> None:
        scorer = fit(self.kind, *tangled())
        assert is_additive(scorer) == self.additive
        assert sees_the_list(scorer) == self.contextual

    def test_every_candidate_gets_one_finite_score(self, scorer) -> None:
        for lists in (self.fewest, 1, 7):
            score_LK = scorer.score(planted(1)[0][:lists])
            assert score_LK.shape == (lists, K)
            assert score_LK.dtype == np.float32
            assert np.isfinite(score_LK).all()

    def test_higher_is_better(self, scorer) -> None:
        buckets_LKF, hit_L = planted(1)
        score_LK = scorer.score(buckets_LKF)
        assert (scorers.rank_of_target(score_LK, hit_L) == 0).mean() > 0.95
        flat_LKF = np.full((1, K, F), 2, np.uint8)
        flat_LKF[0, :, 1] = np.arange(K)
        own_K = scorer.score(flat_LKF)[0]
        assert own_K.argmax() == K - 1
        assert own_K[-1] > own_K[0]

    def test_the_same_data_and_seed_give_the_same_bits(self, scorer) -> None:
        again = fit(self.kind, *planted())
        buckets_LKF, _ = planted(2)
        assert again.score(buckets_LKF).tobytes() == scorer.score(buckets_LKF).tobytes()

    def test_lists_without_their_target_teach_nothing(self, scorer) -> None:
        buckets_LKF, hit_L = planted()
        more_LKF = np.concatenate([np.zeros((3, K, F), np.uint8), buckets_LKF])
        more = fit(self.kind, more_LKF, np.append([MISS] * 3, hit_L).astype(np.int32))
        assert more.score(buckets_LKF).tobytes() == scorer.score(buckets_LKF).tobytes()

    @pytest.mark.parametrize("top", [B - 1, 2])
    def test_levels_that_never_occur_do_not_matter(self, top: int) -> None:
        """The highest level of the last field is in no list: still a scorer for all levels."""
        buckets_LKF, hit_L = planted(3, top)
        assert buckets_LKF[:, :, -1].max() < B - 1
        scorer = fit(self.kind, buckets_LKF, hit_L)
        assert (scorers.rank_of_target(scorer.score(buckets_LKF), hit_L) == 0).mean() > 0.95
        unknown_LKF = buckets_LKF.copy()
        unknown_LKF[:, :, -1] = B - 1
        assert np.isfinite(scorer.score(unknown_LKF)).all()

    def test_what_stands_behind_a_lists_end_does_not_matter(self) -> None:
        """Padding changes no score, whatever its buckets, and has none itself."""
        buckets_LKF, hit_L = planted(5)
        there_LK = np.arange(K + 2) < np.where(np.arange(LISTS) % 2, K, K - 2)[:, None]
        kept_L = there_LK[np.arange(LISTS), hit_L]
        scores = []
        for fill in (0, B - 1):
            wide_LKF = np.full((LISTS, K + 2, F), fill, np.uint8)
            wide_LKF[:, :K] = buckets_LKF
            wide_LKF[~there_LK] = fill
            gains_LK = np.zeros((LISTS, K + 2), np.float32)
            gains_LK[kept_L, hit_L[kept_L]] = 1.0
            given: Any = {"l2": 1e-3, "seed": 0, "there_LK": there_LK}
            scorer = scorers.fit(self.kind, wide_LKF, gains_LK, B, **given)
            scores.append(scorer.score(wide_LKF, there_LK))
        assert scores[0].tobytes() == scores[1].tobytes()
        assert (np.isnan(scores[0]) == ~there_LK).all()
        right_L = np.nanargmax(scores[0], 1) == hit_L
        assert right_L[kept_L].mean() > 0.95

    def test_a_list_with_two_outcomes_puts_both_first(self) -> None:
        buckets_LKF, hit_L = planted(6)
        second_L = (buckets_LKF[:, :, 1] == K - 2).argmax(1)
        gains_LK = 3 * gains_of(hit_L) + gains_of(second_L)
        scorer = scorers.fit(self.kind, buckets_LKF, gains_LK, B, l2=1e-3, seed=0)
        order_LK = np.argsort(-scorer.score(buckets_LKF), 1)
        both_L2 = np.sort(np.stack([hit_L, second_L], 1), 1)
        assert (np.sort(order_LK[:, :2], 1) == both_L2).all(1).mean() > 0.6


class TestLinear(Fitted):
    """The one with a file of its own."""

    kind, additive, contextual = "linear", True, False

    @pytest.fixture
    def path(self, scorer, tmp_path: Path) -> Path:
        scorer.save(tmp_path / "scorer.safetensors")
        return tmp_path / "scorer.safetensors"

    def test_saving_keeps_every_bit(self, scorer, path: Path) -> None:
        buckets_LKF, _ = planted(4)
        again = scorers.LinearScorer.load(path)
        assert again.score(buckets_LKF).tobytes() == scorer.score(buckets_LKF).tobytes()

    @pytest.mark.parametrize("damage", ["cut", "text", "gone"])
    def test_a_broken_file_is_a_named_error(self, path: Path, damage: str) -> None:
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-5])
        elif damage == "text":
            path.write_text("a scorer, once")
        else:
            path.unlink()
        with pytest.raises(ArtifactError, match=r"scorer\.safetensors"):
            scorers.LinearScorer.load(path)


class TestMlp(Fitted):
    kind, additive, contextual = "mlp", False, True


class TestGbdt(Fitted):
    kind, additive, contextual = "gbdt", False, False
    fewest = 1  # trees refuse an empty matrix


def test_an_unknown_kind_is_an_error_and_not_the_last_one() -> None:
    with pytest.raises((ValueError, KeyError)):
        fit("forest", *planted())


def test_every_kind_is_under_contract() -> None:
    assert {case.kind for case in (TestLinear, TestMlp, TestGbdt)} == set(scorers.KINDS)


def test_metrics_count_the_third_place_and_not_the_fourth() -> None:
    found = scorers.hit_metrics(np.array([0, 2, 3, 1]))
    assert found["r@1"] == 1 / 4
    assert found["r@3"] == 3 / 4
    assert found["ndcg@3"] == pytest.approx((1 + 1 / 2 + 0 + 1 / np.log2(3)) / 4)
