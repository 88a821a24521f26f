"""How good the semantic IDs are without training a model on them.

Contract: `id_report` returns JSON-ready figures: per level usage, entropy, perplexity and category
purity; natural, assigned and final uniqueness (defined in `items.uniqueness`); collision groups and
how many items the policy touched. `shared_share` says how often items of a pair share their first
codes, `next_pairs` are the pairs to ask it about: what people bought next, beside what they had.
`flat_metrics` picks the figures that a manifest shows. Not here: any judgement; thresholds are the
stage's.
"""

from typing import Any

import numpy as np

from diffgr2.items.uniqueness import distinct_share, prefix_ids
from diffgr2.types import Histories

SHARED = 3  # first codes that a pair is asked about


def next_pairs(histories: Histories, known: Histories) -> np.ndarray:
    """(next purchase, known purchase) of each user, int32 (pairs, 2), without equal items.

    Next is what follows the known part of a history, the validation item where that is all but two:
    co-purchases that no vector has seen. Users whose known part begins no history of theirs have
    none (a shop's own lists may know a person by another row).
    """
    known_U = known.lengths_U
    user_N = np.repeat(np.arange(known.n_users), known_U)
    shift_U = histories.offsets_U1[:-1] - known.offsets_U1[:-1]
    place_N = np.minimum(np.arange(len(user_N)) + shift_U[user_N], len(histories.items_N) - 1)
    fits_U = histories.lengths_U > known_U
    fits_U[user_N[histories.items_N[place_N] != known.items_N]] = False
    kept_N = fits_U[user_N]
    next_N = histories.items_N[(histories.offsets_U1[:-1] + known_U)[user_N[kept_N]]]
    pairs_P2 = np.stack([next_N, known.items_N[kept_N]], axis=1)
    return pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]]


def shared_share(codes_IL: np.ndarray, pairs_P2: np.ndarray) -> list[float]:
    """Share of pairs with equal codes on the first 1, 2, … `SHARED` levels; none without pairs."""
    if not len(pairs_P2):
        return []
    equal_PL = codes_IL[pairs_P2[:, 0], :SHARED] == codes_IL[pairs_P2[:, 1], :SHARED]
    return equal_PL.cumprod(axis=1).mean(axis=0).tolist()


def top_categories(categories: list[list[str]]) -> tuple[np.ndarray, int]:
    """A number per item for its category at the first depth where the catalogue differs.

    Many catalogues hang under one root ("Beauty"), which would make every code pure. Items
    without a category at that depth get -1. Returns the depth too (0 = first; -1 = none).
    """
    deepest = max((len(path) for path in categories), default=0)
    for depth in range(deepest):
        names = [path[depth] if len(path) > depth else "" for path in categories]
        known = sorted(set(names) - {""})
        if len(known) > 1 or (known and depth == deepest - 1):
            number = {name: place for place, name in enumerate(known)}
            return np.array([number.get(name, -1) for name in names]), depth
    return np.full(len(categories), -1), -1


def mixed(pairs_P2: np.ndarray) -> np.ndarray:
    """The same items in pairs that nobody bought: each side keeps its popularity."""
    if not len(pairs_P2):
        return pairs_P2
    other_P = np.roll(pairs_P2[:, 1], len(pairs_P2) // 2)
    others_P2 = np.stack([pairs_P2[:, 0], other_P], axis=1)
    return others_P2[others_P2[:, 0] != others_P2[:, 1]]


def purity(group_I: np.ndarray, label_I: np.ndarray) -> float | None:
    """Share of labelled items that carry the most frequent label of their group."""
    known_I = label_I >= 0
    if not known_I.any():
        return None
    pairs_P2 = np.stack([group_I[known_I], label_I[known_I]], axis=1)
    (group_P, _), count_P = (a.T for a in np.unique(pairs_P2, axis=0, return_counts=True))
    # Pairs come sorted by group, so a group's pairs stand side by side.
    best_G = np.maximum.reduceat(count_P, np.flatnonzero(np.diff(group_P, prepend=-1)))
    return float(best_G.sum() / known_I.sum())


def level_report(
    codes_IL: np.ndarray, level: int, n_codes: int, label_I: np.ndarray
) -> dict[str, Any]:
    """How evenly a level's codes are used, and how pure its codes and prefixes are."""
    count_C = np.bincount(codes_IL[:, level], minlength=n_codes)
    share = count_C[count_C > 0] / len(codes_IL)
    entropy = float(-(share * np.log2(share)).sum()) + 0.0
    prefix_I = prefix_ids(codes_IL[:, : level + 1])
    return {
        "level": level,
        "used": int((count_C > 0).sum()),
        "usage": float((count_C > 0).mean()),
        "entropy_bits": round(entropy, 6),
        "entropy_share": round(entropy / float(np.log2(n_codes)), 6),
        "perplexity": round(float(2.0**entropy), 3),
        "largest": int(count_C.max()),
        "prefixes": int(prefix_I.max()) + 1,
        "purity": purity(codes_IL[:, level], label_I),
        "prefix_purity": purity(prefix_I, label_I),
    }


def collision_report(codes_IL: np.ndarray) -> dict[str, Any]:
    """Groups of items with equal codes."""
    size_G = np.bincount(prefix_ids(codes_IL))
    shared_G = size_G[size_G > 1]
    return {
        "groups": len(shared_G),
        "items": int(shared_G.sum()),
        "largest": int(shared_G.max(initial=0)),
    }


def id_report(
    natural_IL: np.ndarray,
    assigned_IL: np.ndarray,
    final_IL: np.ndarray,
    drawn_I: np.ndarray,
    n_codes: int,
    categories: list[list[str]],
    pairs_P2: np.ndarray,
) -> dict[str, Any]:
    """All figures about the IDs of one catalogue; of `pairs_P2` see `next_pairs`."""
    label_I, depth = top_categories(categories)
    stages = {"natural": natural_IL, "assigned": assigned_IL, "after": final_IL}
    levels, count = np.unique(drawn_I[drawn_I > 0], return_counts=True)
    return {
        "items": len(final_IL),
        "codes": n_codes,
        "levels": [
            level_report(final_IL, level, n_codes, label_I) for level in range(final_IL.shape[1])
        ],
        "category_depth": depth,
        "categories": len(np.unique(label_I[label_I >= 0])),
        "purity_by_chance": purity(np.zeros(len(final_IL), dtype=np.int64), label_I),
        "unique": {name: distinct_share(codes_IL) for name, codes_IL in stages.items()},
        "collisions": {name: collision_report(codes_IL) for name, codes_IL in stages.items()},
        "moved": {
            "assigned": int((natural_IL != assigned_IL).any(axis=1).sum()),
            "random": int(count.sum()),
            "random_by_levels": dict(zip(map(str, levels), count.tolist(), strict=True)),
        },
        "pairs": len(pairs_P2),
        "shared": shared_share(final_IL, pairs_P2),
        "shared_by_chance": shared_share(final_IL, mixed(pairs_P2)),
    }


def flat_metrics(report: dict[str, Any]) -> dict[str, float | int]:
    """The stage's metrics: one number per key."""
    return {
        "items": report["items"],
        **{f"unique_{name}": round(value, 6) for name, value in report["unique"].items()},
        "collision_groups": report["collisions"]["natural"]["groups"],
        "moved_assigned": report["moved"]["assigned"],
        "moved_random": report["moved"]["random"],
        **{f"shared_l{n + 1}": round(share, 6) for n, share in enumerate(report["shared"])},
        **{
            f"{name}_l{level['level'] + 1}": round(level[name], 6)
            for level in report["levels"]
            for name in ("usage", "entropy_bits", "perplexity", "purity")
            if level[name] is not None
        },
    }
