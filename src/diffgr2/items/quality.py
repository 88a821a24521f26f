"""How good the semantic IDs are without training a model on them.

Contract: `id_report` returns JSON-ready figures: per level usage, entropy, perplexity and category
purity; natural, intermediate and final uniqueness (defined in `items.uniqueness`); collision groups
and how many items the policy touched. `flat_metrics` picks the ones that a manifest shows. Not
here: any judgement; thresholds are the stage's.
"""

from typing import Any

import numpy as np

from diffgr2.items.uniqueness import distinct_share, prefix_ids


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
    before_IL: np.ndarray,
    final_IL: np.ndarray,
    drawn_I: np.ndarray,
    n_codes: int,
    categories: list[list[str]],
) -> dict[str, Any]:
    """All figures about the IDs of one catalogue."""
    label_I, depth = top_categories(categories)
    stages = {"natural": natural_IL, "before": before_IL, "after": final_IL}
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
            "neighbours": int((natural_IL != before_IL).any(axis=1).sum()),
            "random": int(count.sum()),
            "random_by_levels": dict(zip(map(str, levels), count.tolist(), strict=True)),
        },
    }


def flat_metrics(report: dict[str, Any]) -> dict[str, float | int]:
    """The stage's metrics: one number per key."""
    return {
        "items": report["items"],
        **{f"unique_{name}": round(value, 6) for name, value in report["unique"].items()},
        "collision_groups": report["collisions"]["natural"]["groups"],
        "moved_neighbours": report["moved"]["neighbours"],
        "moved_random": report["moved"]["random"],
        **{
            f"{name}_l{level['level'] + 1}": round(level[name], 6)
            for level in report["levels"]
            for name in ("usage", "entropy_bits", "perplexity", "purity")
            if level[name] is not None
        },
    }
