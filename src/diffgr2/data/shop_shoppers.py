"""The simulated shop's shoppers: what each of them likes, as arrays.

Contract: `draw_shoppers(shelves, config, seed)` gives the user arrays of the truth (tastes and
their drift, price tier, favourite brands, weights of the motives of `data.shop_truth`);
`draw_lengths` how much each one buys. Not here: what they buy (`data.shop`).
"""

import numpy as np

from diffgr2 import streams
from diffgr2.config import ShopConfig
from diffgr2.data.shop_catalogue import Shelves

MOTIVE_WEIGHTS = np.array([0.52, 0.08, 0.12, 0.07, 0.21])  # all but noise, on average
MOTIVE_SPREAD = 6.0  # Dirichlet-like concentration: smaller = shoppers differ more
TIER_AFFINITY = np.array([1.0, 0.25, 0.05, 0.01])  # by distance from the shopper's price tier
TASTES = 6  # leaves a shopper likes: the first half fades, the second half grows
MIN_LENGTH, MAX_LENGTH = 5, 200


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
