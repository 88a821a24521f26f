"""The exact next-purchase distribution of the simulated shop.

Contract: `true_probabilities(truth, histories, user_L, end_L, items_LK)` is the probability with
which the simulator drew the item at position `end` of a user, given the items before it. Each
purchase follows one of six motives, a mixture with per-shopper weights:

  complement  something that completes one of the last three purchases (shampoo -> conditioner)
  substitute  another item of the same leaf as one of them, in the shopper's price tier
  same brand  any item of the brand of one of them
  favourite   any item of the shopper's own two favourite brands
  taste       a leaf the shopper likes (drifting slowly), in the shopper's price tier
  noise       anything, by popularity

and an item already bought is never bought again: the mixture is renormalised over the rest. Each
motive picks from a group of items with fixed probabilities, so scoring a candidate costs the same
in any catalogue. The truth holds for the order of the histories as the shop wrote them; shuffling
same-day purchases changes what a shopper had seen. Not here: drawing (`data.shop`).
"""

from enum import IntEnum

import numpy as np

from diffgr2.types import Histories

Motive = IntEnum("Motive", "COMPLEMENT SUBSTITUTE SAME_BRAND FAVOURITE TASTE NOISE", start=0)
Truth = dict[str, np.ndarray]
CELLS = 1 << 21  # array cells per chunk of scoring


def motives_at(truth: Truth, user_L: np.ndarray, end_L: np.ndarray) -> np.ndarray:
    """Motive weights of each list; a first purchase has nothing recent to follow."""
    motive_L6 = truth["motive_U6"][user_L].copy()
    first_L = end_L == 0
    recent = [Motive.COMPLEMENT, Motive.SUBSTITUTE, Motive.SAME_BRAND]
    motive_L6[first_L, Motive.TASTE] += motive_L6[first_L][:, recent].sum(1)
    motive_L6[np.ix_(first_L, recent)] = 0.0
    return motive_L6


def recent_shares(truth: Truth, end_L: np.ndarray) -> np.ndarray:
    """Weight of each of the last R purchases, newest first; rows sum to 1 (or 0 at the start)."""
    share_R = truth["recent_share_R"]
    share_LR = share_R * (np.arange(len(share_R)) < end_L[:, None])
    return share_LR / np.maximum(share_LR.sum(1, keepdims=True), 1e-300)


def tastes_at(truth: Truth, user_L: np.ndarray, end_L: np.ndarray) -> np.ndarray:
    """Weight of each liked leaf at this position."""
    turned_L1 = 1.0 - np.exp(-truth["drift_U"][user_L] * end_L)[:, None]
    start_LM, end_LM = truth["taste_start_UM"][user_L], truth["taste_end_UM"][user_L]
    return (1 - turned_L1) * start_LM + turned_L1 * end_LM


def last_items(histories: Histories, user_L: np.ndarray, end_L: np.ndarray, n: int) -> np.ndarray:
    """The last n items before `end`, newest first, -1 where there is none."""
    back_n = np.arange(1, n + 1)
    at_Ln = histories.offsets_U1[user_L][:, None] + end_L[:, None] - back_n
    there_Ln = back_n <= end_L[:, None]
    return np.where(there_Ln, histories.items_N[np.where(there_Ln, at_Ln, 0)], -1)


def mixture(
    truth: Truth, user_L: np.ndarray, end_L: np.ndarray, recent_LR: np.ndarray, items_LK: np.ndarray
) -> np.ndarray:
    """Probability of each item before repeats are excluded; sums to 1 over the catalogue."""
    # One column of weights per motive, in the order of `Motive`.
    complement_L1, substitute_L1, same_brand_L1, favourite_L1, taste_L1, noise_L1 = np.moveaxis(
        motives_at(truth, user_L, end_L)[..., None], 1, 0
    )
    share_LR, curiosity = recent_shares(truth, end_L), float(truth["curiosity_1"][0])
    leaf_LK, brand_LK = truth["leaf_I"][items_LK], truth["brand_I"][items_LK]
    tier_L1 = truth["user_tier_U"][user_L][:, None]
    in_tier_LK = truth["tier_p_G44"][leaf_LK, tier_L1, truth["tier_I"][items_LK]]
    # How much of the leaf's and the brand's mass each motive gives to the candidate's own.
    leaf_mass_LK = taste_L1 * curiosity * truth["leaf_p_G"][leaf_LK]
    taste_LM, weight_LM = truth["taste_UM"][user_L], tastes_at(truth, user_L, end_L)
    for m in range(taste_LM.shape[1]):
        like_L1 = taste_L1 * (1 - curiosity) * weight_LM[:, [m]]
        leaf_mass_LK += like_L1 * (leaf_LK == taste_LM[:, [m]])
    favourite_L2 = truth["favourite_U2"][user_L]
    first_L1 = truth["favourite_share_U"][user_L][:, None]
    brand_mass_LK = favourite_L1 * (
        first_L1 * (brand_LK == favourite_L2[:, [0]])
        + (1 - first_L1) * (brand_LK == favourite_L2[:, [1]])
    )
    p_LK = noise_L1 * truth["popularity_I"][items_LK]
    for r in range(share_LR.shape[1]):
        recent_L = recent_LR[:, r]  # -1 reads the last item, with share 0
        share_L1 = share_LR[:, [r]]
        same_leaf_LK = leaf_LK == truth["leaf_I"][recent_L][:, None]
        leaf_mass_LK += substitute_L1 * share_L1 * same_leaf_LK
        at_brand_LK = brand_LK == truth["brand_I"][recent_L][:, None]
        brand_mass_LK += same_brand_L1 * share_L1 * at_brand_LK
        pool_LC, pool_p_LC = truth["complements_IC"][recent_L], truth["complement_p_IC"][recent_L]
        for c in range(pool_LC.shape[1]):
            weight_L1 = complement_L1 * share_L1 * pool_p_LC[:, [c]]
            p_LK += weight_L1 * (items_LK == pool_LC[:, [c]])
    in_leaf_LK = in_tier_LK * truth["in_cell_I"][items_LK]
    return p_LK + leaf_mass_LK * in_leaf_LK + brand_mass_LK * truth["in_brand_I"][items_LK]


def true_probabilities(
    truth: Truth, histories: Histories, user_L: np.ndarray, end_L: np.ndarray, items_LK: np.ndarray
) -> np.ndarray:
    """Exact probability of each candidate as the item at position `end` of that user.

    Items already bought before `end` have probability 0. `end` may equal the history's length:
    then it is the next, unseen purchase.
    """
    user_L, end_L = np.asarray(user_L, np.int64), np.asarray(end_L, np.int64)
    items_LK = np.asarray(items_LK)
    p_LK, n_recent = np.zeros(items_LK.shape), len(truth["recent_share_R"])
    k = items_LK.shape[1]
    by_end = np.argsort(end_L, kind="stable")  # chunks of equal history length waste no padding
    at = 0
    while at < len(by_end):
        rows = by_end[at : at + max(1, CELLS // (k + int(end_L[by_end[at]]) + 64))]
        at += len(rows)
        seen_LT = last_items(
            histories, user_L[rows], end_L[rows], max(int(end_L[rows].max()), n_recent)
        )
        both = np.concatenate([items_LK[rows], seen_LT], axis=1)
        mass = mixture(truth, user_L[rows], end_L[rows], seen_LT[:, :n_recent], both)
        seen_mass_L1 = (mass[:, k:] * (seen_LT >= 0)).sum(1, keepdims=True)
        bought_LK = np.zeros((len(rows), k), dtype=bool)
        for t in range(seen_LT.shape[1]):
            bought_LK |= items_LK[rows] == seen_LT[:, [t]]
        p_LK[rows] = np.where(bought_LK, 0.0, mass[:, :k]) / (1.0 - seen_mass_L1)
    return p_LK
