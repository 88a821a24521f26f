"""The simulated shop: believable shelves, honest histories, and a truth that is exact."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from diffgr2 import streams
from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.config import ShopConfig
from diffgr2.data.shop import (
    Groups,
    draw_position,
    draw_remaining,
    item_truth,
    simulate_dataset,
)
from diffgr2.data.shop_catalogue import WORDS, build_catalogue
from diffgr2.data.shop_truth import true_probabilities
from diffgr2.data.store import Dataset
from diffgr2.types import Histories

SMALL = ShopConfig(n_items=300, n_users=400, mean_length=9.0)
Truth = dict[str, np.ndarray]
USER_KEYS = ("taste", "drift", "user_tier", "favourite", "motive", "department")


@pytest.fixture(scope="module")
def small() -> tuple[Dataset, Truth]:
    return simulate_dataset(SMALL, seed=3)


@pytest.fixture(scope="module")
def default() -> tuple[Dataset, Truth]:
    return simulate_dataset(ShopConfig(), seed=0)


def clones(
    data: Dataset, truth: Truth, user: int, end: int, n: int
) -> tuple[Truth, dict[str, Groups], Histories]:
    """n copies of one shopper, each with the same first `end` items and one free place."""
    copied = {
        key: np.repeat(value[[user]], n, axis=0) if key.startswith(USER_KEYS) else value
        for key, value in truth.items()
    }
    row = np.concatenate([data.histories.of(user, end), [-1]]).astype(np.int32)
    items_N = np.tile(row, n)
    histories = Histories(
        np.arange(n + 1) * (end + 1), items_N, np.zeros(len(items_N), np.int64), SMALL.n_items
    )
    return copied, item_truth(build_catalogue(SMALL.n_items, 3))[1], histories


def whole_distribution(data: Dataset, truth: Truth, user: int, end: int) -> np.ndarray:
    everything = np.arange(data.histories.n_items)[None]
    return true_probabilities(truth, data.histories, np.array([user]), np.array([end]), everything)[
        0
    ]


def chi_square_p(drawn_n: np.ndarray, p_I: np.ndarray) -> float:
    """P-value of the draws under p; items expected fewer than 8 times are pooled."""
    seen_I = np.bincount(drawn_n, minlength=len(p_I)).astype(float)
    if seen_I[p_I == 0].any():
        return 0.0
    expected_I = p_I * len(drawn_n)
    common_I = expected_I >= 8
    seen, expected = seen_I[common_I], expected_I[common_I]
    if expected_I[~common_I].sum() > 0:
        seen = np.append(seen, seen_I[~common_I].sum())
        expected = np.append(expected, expected_I[~common_I].sum())
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("end", [0, 1, 2, 3, 6, 12])
def test_purchases_follow_the_truth_exactly(small: tuple[Dataset, Truth], end: int) -> None:
    data, truth = small
    user = int(np.flatnonzero(data.histories.lengths_U > 12)[end])
    n = 60_000
    copied, groups, histories = clones(data, truth, user, end, n)
    draw_position(
        copied, groups, histories, np.arange(n), end, streams.generator(1, "test_shop", end)
    )
    drawn_n = histories.items_N.reshape(n, end + 1)[:, end]
    p_I = whole_distribution(data, truth, user, end)
    assert p_I.sum() == pytest.approx(1.0, abs=1e-12)
    assert chi_square_p(drawn_n, p_I) > 1e-3
    # The test has teeth: the same shopper one purchase earlier, or a tenth more noise, is refused.
    if end:
        assert chi_square_p(drawn_n, whole_distribution(data, truth, user, end - 1)) < 1e-9
    noisier_I = 0.9 * p_I + 0.1 * truth["popularity_I"] * (p_I > 0)
    assert chi_square_p(drawn_n, noisier_I / noisier_I.sum()) < 1e-6


def test_the_last_resort_draw_has_the_same_distribution(small: tuple[Dataset, Truth]) -> None:
    data, truth = small
    u_n = (np.arange(4_000) + 0.5) / 4_000
    drawn_n = draw_remaining(truth, data.histories, np.full(4_000, 5), 4, u_n)
    share_I = np.bincount(drawn_n, minlength=SMALL.n_items) / len(u_n)
    assert np.abs(share_I - whole_distribution(data, truth, 5, 4)).max() <= 1 / len(u_n) + 1e-9


def test_a_whole_dataset_is_as_surprising_as_the_truth_says(
    default: tuple[Dataset, Truth],
) -> None:
    data, truth = default
    h = data.histories
    users = np.arange(600)
    ends = h.lengths_U[users] - 1
    everything = np.tile(np.arange(h.n_items), (len(users), 1))
    p_LI = true_probabilities(truth, h, users, ends, everything)
    log_LI = np.log(np.where(p_LI > 0, p_LI, 1.0))
    target_L = h.items_N[h.offsets_U1[users + 1] - 1]
    mean_L = (p_LI * log_LI).sum(1)
    variance_L = (p_LI * log_LI**2).sum(1) - mean_L**2
    z = (log_LI[users, target_L] - mean_L).sum() / np.sqrt(variance_L.sum())
    assert abs(z) < 4


def test_any_batch_of_candidates_gives_the_single_answer(small: tuple[Dataset, Truth]) -> None:
    data, truth = small
    rng = np.random.default_rng(0)
    users = rng.integers(SMALL.n_users, size=300)
    ends = rng.integers(data.histories.lengths_U[users] + 1)  # up to the next, unseen purchase
    items_LK = rng.integers(SMALL.n_items, size=(300, 10))
    p_LK = true_probabilities(truth, data.histories, users, ends, items_LK)
    for row in range(0, 300, 17):
        alone = whole_distribution(data, truth, int(users[row]), int(ends[row]))[items_LK[row]]
        np.testing.assert_allclose(p_LK[row], alone, rtol=1e-12, atol=0)


def test_truth_survives_its_file(small: tuple[Dataset, Truth], tmp_path: Path) -> None:
    data, truth = small
    save_arrays(tmp_path / "truth.safetensors", **truth)
    again = load_arrays(tmp_path / "truth.safetensors")
    assert np.array_equal(
        whole_distribution(data, truth, 7, 5), whole_distribution(data, again, 7, 5)
    )


def test_same_seed_same_shop_other_seed_other_shop(small: tuple[Dataset, Truth]) -> None:
    data, truth = small
    again, truth_again = simulate_dataset(SMALL, seed=3)
    other, _ = simulate_dataset(SMALL, seed=4)
    assert np.array_equal(data.histories.items_N, again.histories.items_N)
    assert np.array_equal(data.histories.timestamps_N, again.histories.timestamps_N)
    assert data.catalogue.titles == again.catalogue.titles
    assert data.raw_users == again.raw_users
    assert data.report == again.report
    assert all(np.array_equal(truth[key], truth_again[key]) for key in truth)
    assert data.catalogue.titles != other.catalogue.titles


def test_default_shop_has_the_configured_shape(default: tuple[Dataset, Truth]) -> None:
    data, _ = default
    h, config = data.histories, ShopConfig()
    assert (h.n_users, h.n_items) == (config.n_users, config.n_items)
    assert len(data.raw_users) == len(set(data.raw_users)) == config.n_users
    assert h.lengths_U.min() == 5
    assert abs(h.lengths_U.mean() - config.mean_length) < 0.3
    assert data.report["interactions"] == len(h.items_N)
    assert data.report["unseen_test_targets"] < 0.02 * config.n_users


def test_days_never_go_back_and_some_tie(default: tuple[Dataset, Truth]) -> None:
    h = default[0].histories
    gap_N = np.diff(h.timestamps_N)
    inside_N = np.ones(len(gap_N), dtype=bool)
    inside_N[h.offsets_U1[1:-1] - 1] = False
    assert (h.timestamps_N % 86_400 == 0).all()
    assert (gap_N[inside_N] >= 0).all()
    assert 0.1 < (gap_N[inside_N] == 0).mean() < 0.5


def test_item_numbers_tell_nothing(default: tuple[Dataset, Truth]) -> None:
    data, truth = default
    h, n = data.histories, data.histories.n_items
    raw_I = np.array([int(raw[1:]) for raw in data.catalogue.raw_ids])
    first_I = np.full(n, len(h.items_N))
    np.minimum.at(first_I, h.items_N, np.arange(len(h.items_N)))
    for known_I in (np.bincount(h.items_N, minlength=n), first_I, truth["leaf_I"], raw_I):
        assert abs(stats.spearmanr(np.arange(n), known_I).statistic) < 4 / np.sqrt(n)
    for known_I in (np.bincount(h.items_N, minlength=n), truth["leaf_I"], truth["brand_I"]):
        assert abs(stats.spearmanr(raw_I, known_I).statistic) < 4 / np.sqrt(n)


def test_popularity_is_skewed(default: tuple[Dataset, Truth]) -> None:
    h = default[0].histories
    count_I = np.sort(np.bincount(h.items_N, minlength=h.n_items))[::-1]
    assert count_I[: h.n_items // 10].sum() > 0.25 * count_I.sum()


@pytest.mark.parametrize("n_items", [50, 59, 120, 500, 8_000])
def test_shelves_of_any_size_are_well_formed(n_items: int) -> None:
    shelves = build_catalogue(n_items, seed=1)
    catalogue = shelves.catalogue
    assert len(catalogue) == len(set(catalogue.titles)) == len(set(catalogue.raw_ids)) == n_items
    products = {p.name: p for d in WORDS.departments for p in d.products}
    prices = []
    for item in range(n_items):
        title, brand, path = (
            catalogue.titles[item],
            catalogue.brands[item],
            catalogue.categories[item],
        )
        assert len(path) == 3
        assert title.startswith(brand + " ")
        assert products[path[1]].noun in title
        prices.append(catalogue.prices[item] / products[path[1]].price)
        pool = shelves.truth["complements_IC"][item]
        assert len(set(pool[pool >= 0])) == (pool >= 0).sum() > 0
        for other in pool[pool >= 0].tolist():
            assert catalogue.categories[other][1] in products[path[1]].goes_with
    assert ((shelves.truth["complements_IC"] >= 0) == (shelves.truth["complement_p_IC"] > 0)).all()
    np.testing.assert_allclose(shelves.truth["complement_p_IC"].sum(1), 1.0)
    means = [np.mean(np.array(prices)[shelves.truth["tier_I"] == tier]) for tier in range(3)]
    assert means[0] < means[1] < means[2]


def test_every_product_has_a_complement_in_its_own_department() -> None:
    names = [p.name for d in WORDS.departments for p in d.products]
    nouns = [p.noun for d in WORDS.departments for p in d.products]
    assert len(set(names)) == len(names)
    assert len(set(nouns)) == len(nouns)
    for department in WORDS.departments:
        own = {p.name for p in department.products}
        for product in department.products:
            assert set(product.goes_with) <= set(names) - {product.name}
            assert set(product.goes_with) & own


def test_shampoo_calls_for_conditioner(default: tuple[Dataset, Truth]) -> None:
    data, _ = default
    h = data.histories
    kind_N = np.array([path[1] for path in data.catalogue.categories])[h.items_N]
    same_user_N = np.ones(len(kind_N) - 1, dtype=bool)
    same_user_N[h.offsets_U1[1:-1] - 1] = False
    for first, then in (("Shampoo", "Conditioner"), ("Razors", "Razor Blades")):
        after_N = same_user_N & (kind_N[:-1] == first)
        assert (kind_N[1:][after_N] == then).mean() > 4 * (kind_N == then).mean()


def test_shoppers_keep_to_their_brands_and_price_tier(default: tuple[Dataset, Truth]) -> None:
    data, truth = default
    h = data.histories
    user_N = np.repeat(np.arange(h.n_users), h.lengths_U)
    brand_N = truth["brand_I"][h.items_N]
    favourite_N = (brand_N[:, None] == truth["favourite_U2"][user_N]).any(1).mean()
    strangers_N = (brand_N[:, None] == truth["favourite_U2"][user_N[::-1]]).any(1).mean()
    assert favourite_N > 2 * strangers_N
    tier_N = truth["tier_I"][h.items_N]
    assert np.corrcoef(tier_N, truth["user_tier_U"][user_N])[0, 1] > 0.3


def test_noise_alone_is_popularity_alone() -> None:
    config = ShopConfig(n_items=200, n_users=60, mean_length=6.0, noise=1.0)
    data, truth = simulate_dataset(config, seed=0)
    p_I = whole_distribution(data, truth, 0, 5)
    left_I = truth["popularity_I"].copy()
    left_I[data.histories.of(0, 5)] = 0.0
    np.testing.assert_allclose(p_I, left_I / left_I.sum(), rtol=1e-9)


def test_histories_longer_than_a_quarter_of_the_shelves_are_refused() -> None:
    with pytest.raises(ValueError, match="mean_length: at most a quarter of n_items"):
        ShopConfig(n_items=60, mean_length=30.0)


def test_truth_reads_only_what_came_before(small: tuple[Dataset, Truth]) -> None:
    data, truth = small
    h, user = data.histories, 11
    changed_N = h.items_N.copy()
    start = h.offsets_U1[user]
    changed_N[start + 4 : h.offsets_U1[user + 1]] = 0
    other = replace(data, histories=replace(h, items_N=changed_N))
    assert np.array_equal(
        whole_distribution(data, truth, user, 4), whole_distribution(other, truth, user, 4)
    )


BIG = """
import resource
resource.setrlimit(resource.RLIMIT_DATA, (4 << 30, 4 << 30))
import numpy as np
from diffgr2.config import ShopConfig
from diffgr2.data.shop import simulate_dataset
from diffgr2.data.shop_truth import true_probabilities
data, truth = simulate_dataset(ShopConfig(n_items=100_000, n_users=112_000), 0)
h = data.histories
assert data.report["interactions"] >= 1_000_000, data.report
assert len(set(data.catalogue.titles)) == 100_000
user_N = np.repeat(np.arange(h.n_users), h.lengths_U)
assert len(np.unique(user_N * h.n_items + h.items_N)) == len(h.items_N)
users = np.arange(20)
all_LI = np.tile(np.arange(h.n_items), (20, 1))
p_LI = true_probabilities(truth, h, users, h.lengths_U[users] - 1, all_LI)
assert np.abs(p_LI.sum(1) - 1).max() < 1e-9
print("right")
"""


@pytest.mark.slow
def test_a_million_purchases_of_100000_items_fit_4_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BIG], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.stdout.strip() == "right", done.stderr[-2000:]
