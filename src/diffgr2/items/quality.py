"""How good the semantic IDs are without training a model on them.

Contract: `id_report` returns JSON-ready figures: per level usage, entropy, perplexity and category
purity; natural, intermediate and final uniqueness (defined in `items.uniqueness`); collision groups
and how many items the policy touched. `flat_metrics` picks the ones that a manifest shows. Not
here: any judgement; thresholds are the stage's.
"""

from __future__ import annotations

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
    _, group_N = np.unique(group_I[known_I], return_inverse=True)
    label_N = label_I[known_I]
    pairs, count = np.unique(group_N * (int(label_N.max()) + 1) + label_N, return_counts=True)
    best_G = np.zeros(int(group_N.max()) + 1, dtype=np.int64)
    np.maximum.at(best_G, pairs // (int(label_N.max()) + 1), count)
    return float(best_G.sum() / len(group_N))


def level_report(codes_IL: np.ndarray, n_codes: int, label_I: np.ndarray) -> list[dict[str, Any]]:
    """Per level: how evenly codes are used, and how pure codes and prefixes are."""
    rows = []
    for level in range(codes_IL.shape[1]):
        count_C = np.bincount(codes_IL[:, level], minlength=n_codes)
        share = count_C[count_C > 0] / len(codes_IL)
        entropy = float(-(share * np.log2(share)).sum()) + 0.0
        prefix_I = prefix_ids(codes_IL[:, : level + 1])
        rows.append(
            {
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
        )
    return rows


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
    n_items = len(final_IL)
    n_labels = len(set(label_I[label_I >= 0].tolist()))
    return {
        "items": n_items,
        "codes": n_codes,
        "levels": level_report(final_IL, n_codes, label_I),
        "category_depth": depth,
        "categories": n_labels,
        "purity_by_chance": purity(np.zeros(n_items, dtype=np.int64), label_I),
        "unique": {
            "natural": distinct_share(natural_IL),
            "before": distinct_share(before_IL),
            "after": distinct_share(final_IL),
        },
        "collisions": {
            "natural": collision_report(natural_IL),
            "before": collision_report(before_IL),
            "after": collision_report(final_IL),
        },
        "moved": {
            "neighbours": int((natural_IL != before_IL).any(axis=1).sum()),
            "random": int((drawn_I > 0).sum()),
            "random_by_levels": {
                str(levels): int((drawn_I == levels).sum())
                for levels in sorted(set(drawn_I[drawn_I > 0].tolist()))
            },
        },
    }


def flat_metrics(report: dict[str, Any]) -> dict[str, float | int]:
    """The stage's metrics: one number per key."""
    metrics: dict[str, float | int] = {"items": report["items"]}
    for name, value in report["unique"].items():
        metrics[f"unique_{name}"] = round(value, 6)
    metrics["collision_groups"] = report["collisions"]["natural"]["groups"]
    metrics["moved_neighbours"] = report["moved"]["neighbours"]
    metrics["moved_random"] = report["moved"]["random"]
    for row in report["levels"]:
        for name in ("usage", "entropy_bits", "perplexity", "purity"):
            if row[name] is not None:
                metrics[f"{name}_l{row['level'] + 1}"] = round(row[name], 6)
    return metrics
