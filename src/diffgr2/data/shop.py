"""The simulated shop: shoppers whose true next-item probabilities are known.

Contract: `simulate_dataset(config, seed)` returns a `Dataset` and the truth, a dict of arrays from
which `data.shop_truth` computes the exact probability of any candidate at any position. The motives
a purchase follows are told there; here they are drawn from, one position of all
shoppers at a time, so that a million purchases take seconds. A repeat is drawn again, which is the
same as renormalising over the items not yet bought. Not here: the catalogue
(`data.shop_catalogue`), and any statistics that a model may use as evidence.
"""

from dataclasses import dataclass

import numpy as np

from diffgr2 import streams
from diffgr2.config import ShopConfig
from diffgr2.data.shop_catalogue import Shelves, build_catalogue
from diffgr2.data.shop_truth import (
    Motive,
    Truth,
    last_items,
    motives_at,
    recent_shares,
    tastes_at,
    true_probabilities,
)
from diffgr2.data.split import statistics
from diffgr2.data.store import Dataset
from diffgr2.types import Histories

MOTIVE_WEIGHTS = np.array([0.52, 0.08, 0.12, 0.07, 0.21])  # all but noise, on average
MOTIVE_SPREAD = 6.0  # Dirichlet-like concentration: smaller = shoppers differ more
TIER_AFFINITY = np.array([1.0, 0.25, 0.05, 0.01])  # by distance from the shopper's price tier
TASTES = 6  # leaves a shopper likes: the first half fades, the second half grows
MIN_LENGTH, MAX_LENGTH = 5, 200
RECENT_SHARES = np.array([0.70, 0.20, 0.10])  # which of the last purchases a motive looks at
CURIOSITY = 0.04  # share of taste purchases from any leaf; keeps every item possible
WITHIN = 0.9  # popularity exponent inside a leaf, tier or brand
START_DAY, DAYS, DAY = 15_000, 500, 86_400  # first purchases fall into these days
# A repeat is drawn again a few times, then resolved over the whole catalogue: soon where that is
# cheap, late where it is not. Only repeats decide when to stop, so the distribution stays exact.
FEW_REDRAWS, REDRAWS = 4, 64
WHOLE_CELLS = 1 << 17


def draw_lengths(config: ShopConfig, rng: np.random.Generator) -> np.ndarray:
    """History lengths: five plus a skewed count; the cap (half the catalogue, or 200) lowers the
    mean of long histories, by a tenth or more from about 80 on."""
    extra = config.mean_length - MIN_LENGTH
    rate_U = rng.gamma(0.7, extra / 0.7, size=config.n_users) if extra else np.zeros(config.n_users)
    return np.minimum(MIN_LENGTH + rng.poisson(rate_U), min(MAX_LENGTH, config.n_items // 2))


def draw_tastes(shelves: Shelves, n_users: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two interests (department and need) per shopper, three leaves of each, and the weights."""
    key_G = [(leaf.department, leaf.need) for leaf in shelves.leaves]
    interests = sorted(set(key_G))
    leaves_of = [[g for g, key in enumerate(key_G) if key == interest] for interest in interests]
    width = max(len(row) for row in leaves_of)
    table_XW = np.array([row + [-1] * (width - len(row)) for row in leaves_of])
    weight_D = rng.lognormal(0.0, 0.4, size=1 + max(d for d, _ in interests))
    weight_X = np.array([weight_D[d] for d, _ in interests])
    interest_U2 = rng.choice(len(interests), size=(n_users, 2), p=weight_X / weight_X.sum())
    picked = []
    for side in range(2):
        row_UW = table_XW[interest_U2[:, side]]
        key_UW = np.where(row_UW >= 0, rng.random(row_UW.shape), 2.0)
        first_UM = np.argsort(key_UW, axis=1)[:, : TASTES // 2]
        picked.append(np.take_along_axis(row_UW, first_UM, 1))
    strength_UM = rng.gamma(1.5, size=(n_users, TASTES))
    main_U1, side_U1 = rng.uniform(0.65, 0.95, size=(2, n_users, 1))
    sum_U2 = strength_UM.reshape(n_users, 2, -1).sum(2)  # of each interest's leaves
    start_U2 = np.concatenate([main_U1, 1 - main_U1], 1) / sum_U2
    end_U2 = np.concatenate([1 - side_U1, side_U1], 1) / sum_U2
    return {
        "taste_UM": np.concatenate(picked, 1).astype(np.int32),
        "taste_start_UM": strength_UM * np.repeat(start_U2, TASTES // 2, axis=1),
        "taste_end_UM": strength_UM * np.repeat(end_U2, TASTES // 2, axis=1),
        "drift_U": rng.uniform(0.01, 0.12, size=n_users),
        "department_U": np.array([d for d, _ in interests])[interest_U2[:, 0]].astype(np.int32),
    }


def draw_favourites(
    shelves: Shelves, department_U: np.ndarray, tier_U: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Two favourite brands per shopper, at home in the department and near the price tier."""
    n_brands = len(shelves.home_BD)
    brand_I, tier_I = shelves.truth["brand_I"], shelves.truth["tier_I"]
    items_B = np.bincount(brand_I, minlength=n_brands).astype(float)
    mean_tier_B = np.bincount(brand_I, tier_I, n_brands) / np.maximum(items_B, 1)
    favourite_U2 = np.zeros((len(tier_U), 2), dtype=np.int32)
    for d in range(shelves.home_BD.shape[1]):
        for tier in range(4):
            rows = np.flatnonzero((department_U == d) & (tier_U == tier))
            near_B = TIER_AFFINITY[np.abs(np.rint(mean_tier_B).astype(int) - tier)]
            weight_B = (items_B * shelves.home_BD[:, d] + 1e-9 * items_B) * near_B
            p_B = weight_B / weight_B.sum()
            favourite_U2[rows] = rng.choice(n_brands, size=(len(rows), 2), p=p_B)
    return favourite_U2


def draw_shoppers(shelves: Shelves, config: ShopConfig, seed: int) -> dict[str, np.ndarray]:
    """All latent state of all shoppers."""
    rng = streams.generator(seed, "shop", "shoppers")
    n_users = config.n_users
    tastes = draw_tastes(shelves, n_users, rng)
    tier_U = rng.choice(4, size=n_users, p=[0.27, 0.40, 0.23, 0.10]).astype(np.int32)
    motive_U5 = rng.gamma(MOTIVE_SPREAD * MOTIVE_WEIGHTS * len(MOTIVE_WEIGHTS), size=(n_users, 5))
    motive_U5 *= (1.0 - config.noise) / motive_U5.sum(1, keepdims=True)
    noise_U1 = np.full((n_users, 1), config.noise)
    return {
        **tastes,
        "user_tier_U": tier_U,
        "favourite_U2": draw_favourites(shelves, tastes["department_U"], tier_U, rng),
        "favourite_share_U": rng.uniform(0.5, 0.9, size=n_users),
        "motive_U6": np.concatenate([motive_U5, noise_U1], 1),
    }


@dataclass(frozen=True)
class Groups:
    """Items in groups, each with probabilities that sum to 1; drawing is one binary search."""

    items_N: np.ndarray  # items sorted by group
    start_G1: np.ndarray
    before_N1: np.ndarray  # probability mass of all items before, over all groups

    def draw(self, group_n: np.ndarray, u_n: np.ndarray) -> np.ndarray:
        """One item of each group; u in [0, 1)."""
        start_n, end_n = self.start_G1[group_n], self.start_G1[group_n + 1]
        at_n = np.searchsorted(self.before_N1, self.before_N1[start_n] + u_n, "right") - 1
        return self.items_N[np.clip(at_n, start_n, end_n - 1)]


def grouped(group_I: np.ndarray, weight_I: np.ndarray, n_groups: int) -> tuple[np.ndarray, Groups]:
    """(probability of each item inside its group, the groups)."""
    p_I = weight_I / np.bincount(group_I, weight_I, n_groups)[group_I]
    order = np.argsort(group_I, kind="stable")
    start_G1 = np.searchsorted(group_I[order], np.arange(n_groups + 1))
    before_N1 = np.concatenate([[0.0], np.cumsum(p_I[order])])
    return p_I, Groups(order.astype(np.int32), start_G1, before_N1)


def item_truth(shelves: Shelves) -> tuple[Truth, dict[str, Groups]]:
    """What the truth needs of items, and the groups to draw from."""
    truth, n_leaves = shelves.truth, len(shelves.leaves)
    weight_I = truth["popularity_I"] ** WITHIN
    cell_I = truth["leaf_I"] * 4 + truth["tier_I"]
    in_cell_I, cells = grouped(cell_I, weight_I, n_leaves * 4)
    in_brand_I, brands = grouped(truth["brand_I"], weight_I, len(shelves.home_BD))
    _, everything = grouped(np.zeros_like(cell_I), truth["popularity_I"], 1)
    filled_G4 = np.bincount(cell_I, minlength=n_leaves * 4).reshape(-1, 1, 4) > 0
    distance_44 = np.abs(np.arange(4)[:, None] - np.arange(4)[None])
    tier_p_G44 = TIER_AFFINITY[distance_44][None] * filled_G4
    more = {
        "recent_share_R": RECENT_SHARES,
        "curiosity_1": np.array([CURIOSITY]),
        "in_cell_I": in_cell_I,
        "in_brand_I": in_brand_I,
        "leaf_p_G": np.bincount(truth["leaf_I"], truth["popularity_I"], n_leaves),
        "tier_p_G44": tier_p_G44 / tier_p_G44.sum(2, keepdims=True),  # leaf, shopper's, item's
    }
    return {**truth, **more}, {"cells": cells, "brands": brands, "everything": everything}


def pick(share_nM: np.ndarray, u_n: np.ndarray) -> np.ndarray:
    """Column index drawn from each row's shares (rows sum to 1)."""
    cumulative_nM = np.cumsum(share_nM, axis=1)
    # The last column with a share catches rounding at the top end.
    last_n = share_nM.shape[1] - 1 - (share_nM[:, ::-1] > 0).argmax(1)
    return np.minimum((cumulative_nM <= u_n[:, None]).sum(1), last_n)


def draw_items(
    truth: Truth,
    groups: dict[str, Groups],
    user_n: np.ndarray,
    step: int,
    recent_nR: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """One draw per shopper from the mixture (repeats still possible)."""
    n = len(user_n)
    end_n = np.full(n, step)
    u_n5 = rng.random((n, 5))
    motive_n = pick(motives_at(truth, user_n, end_n), u_n5[:, 0])
    recent_n = np.full(n, -1)
    if step:
        recent_n = recent_nR[np.arange(n), pick(recent_shares(truth, end_n), u_n5[:, 1])]
    item_n = groups["everything"].draw(np.zeros(n, dtype=np.int64), u_n5[:, 4])  # noise
    rows = np.flatnonzero(motive_n == Motive.COMPLEMENT)
    place = pick(truth["complement_p_IC"][recent_n[rows]], u_n5[rows, 2])
    item_n[rows] = truth["complements_IC"][recent_n[rows], place]
    # Motives that name a leaf: then the tier, then the item.
    leaf_n = truth["leaf_I"][recent_n].astype(np.int64)
    rows = np.flatnonzero(motive_n == Motive.TASTE)
    like = pick(tastes_at(truth, user_n[rows], end_n[rows]), u_n5[rows, 1])
    leaf_n[rows] = truth["taste_UM"][user_n[rows], like]
    rows = rows[u_n5[rows, 2] < truth["curiosity_1"]]
    leaf_n[rows] = np.searchsorted(np.cumsum(truth["leaf_p_G"]), u_n5[rows, 1], "right")
    leaf_n = np.minimum(leaf_n, len(truth["leaf_p_G"]) - 1)
    rows = np.flatnonzero((motive_n == Motive.TASTE) | (motive_n == Motive.SUBSTITUTE))
    tier_p = truth["tier_p_G44"][leaf_n[rows], truth["user_tier_U"][user_n[rows]]]
    cell = leaf_n[rows] * 4 + pick(tier_p, u_n5[rows, 3])
    item_n[rows] = groups["cells"].draw(cell, u_n5[rows, 4])
    # Motives that name a brand.
    second_n = (u_n5[:, 1] >= truth["favourite_share_U"][user_n]).astype(int)
    favourite_n = truth["favourite_U2"][user_n, second_n]
    brand_n = np.where(motive_n == Motive.FAVOURITE, favourite_n, truth["brand_I"][recent_n])
    rows = np.flatnonzero((motive_n == Motive.FAVOURITE) | (motive_n == Motive.SAME_BRAND))
    item_n[rows] = groups["brands"].draw(brand_n[rows].astype(np.int64), u_n5[rows, 4])
    return item_n


def draw_remaining(
    truth: Truth, histories: Histories, user_n: np.ndarray, step: int, u_n: np.ndarray
) -> np.ndarray:
    """One draw each over the whole catalogue without the bought items: always succeeds."""
    item_n = np.zeros(len(user_n), dtype=np.int32)
    rows = max(1, WHOLE_CELLS // histories.n_items)
    for at in range(0, len(user_n), rows):
        part = slice(at, at + rows)
        all_nI = np.tile(np.arange(histories.n_items), (len(user_n[part]), 1))
        end_n = np.full(len(all_nI), step)
        p_nI = true_probabilities(truth, histories, user_n[part], end_n, all_nI)
        item_n[part] = pick(p_nI / p_nI.sum(1, keepdims=True), u_n[part])
    return item_n


def draw_position(
    truth: Truth,
    groups: dict[str, Groups],
    histories: Histories,
    user_n: np.ndarray,
    step: int,
    rng: np.random.Generator,
) -> None:
    """Write the item at position `step` of these shoppers; all before it must stand."""
    items_N, start_U1 = histories.items_N, histories.offsets_U1
    for attempt in range(REDRAWS):
        if attempt >= FEW_REDRAWS and len(user_n) * histories.n_items <= WHOLE_CELLS:
            break
        end_n = np.full(len(user_n), step)
        recent_nR = last_items(histories, user_n, end_n, len(RECENT_SHARES))
        item_n = draw_items(truth, groups, user_n, step, recent_nR, rng)
        repeat_n = np.zeros(len(user_n), dtype=bool)
        for back in range(step):
            repeat_n |= items_N[start_U1[user_n] + back] == item_n
        items_N[start_U1[user_n[~repeat_n]] + step] = item_n[~repeat_n]
        user_n = user_n[repeat_n]
        if not len(user_n):
            return
    u_n = rng.random(len(user_n))
    items_N[start_U1[user_n] + step] = draw_remaining(truth, histories, user_n, step, u_n)


def draw_timestamps(lengths_U: np.ndarray, seed: int) -> np.ndarray:
    """Whole days that never go back; a fifth or more share their day with the last."""
    rng = streams.generator(seed, "shop", "days")
    pace_U = rng.gamma(2.0, 12.0, size=len(lengths_U))  # days between visits
    gap_N = rng.poisson(rng.exponential(np.repeat(pace_U, lengths_U)))
    gap_N[rng.random(len(gap_N)) < 0.2] = 0
    starts_U = np.concatenate([[0], np.cumsum(lengths_U)[:-1]])
    gap_N[starts_U] = START_DAY + rng.integers(DAYS, size=len(lengths_U))
    day_N = np.cumsum(gap_N)
    before_U = day_N[starts_U] - gap_N[starts_U]
    return (day_N - np.repeat(before_U, lengths_U)).astype(np.int64) * DAY


def simulate_dataset(config: ShopConfig, seed: int) -> tuple[Dataset, Truth]:
    """The whole shop: its dataset and the truth behind it."""
    shelves = build_catalogue(config.n_items, seed)
    truth, groups = item_truth(shelves)
    truth |= draw_shoppers(shelves, config, seed)
    lengths_U = draw_lengths(config, streams.generator(seed, "shop", "lengths"))
    histories = Histories(
        np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
        np.full(lengths_U.sum(), -1, dtype=np.int32),
        draw_timestamps(lengths_U, seed),
        config.n_items,
    )
    for step in range(int(lengths_U.max())):
        rng = streams.generator(seed, "shop", "purchases", step)
        draw_position(truth, groups, histories, np.flatnonzero(lengths_U > step), step, rng)
    numbers = streams.permutation(config.n_users, seed, "shop", "raw_users")
    raw_users = [f"S{number:07d}" for number in numbers.tolist()]
    return Dataset(histories, shelves.catalogue, raw_users, statistics(histories)), truth
