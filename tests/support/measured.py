"""Lists and orders of a few candidates, and the report rows that tests look at."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffgr2.types import CandidateLists

META = {"recipe": "r", "data": "d", "tie_order": "file", "commit": "c", "command": "x"}
K = 4


def lists_with_hits(hits: list[int]) -> CandidateLists:
    """One list per entry: the target stands at that position, or is absent (-1)."""
    n = len(hits)
    items_LK = np.tile(np.arange(K, dtype=np.int32), (n, 1))
    target_L = np.array([hit if hit >= 0 else 99 for hit in hits], dtype=np.int32)
    user_L = np.arange(n, dtype=np.int32)
    scores_LK = np.tile(np.linspace(1, 0, K, dtype=np.float32), (n, 1))
    return CandidateLists("test", user_L, user_L, target_L, items_LK, scores_LK)


def first(positions: list[int]) -> np.ndarray:
    """Orders that put one position first and keep the rest."""
    return np.array([[p, *(q for q in range(K) if q != p)] for p in positions])


def row(report: dict[str, Any], name: str, population: str = "hit") -> dict[str, Any]:
    (found,) = (r for r in report["rows"] if (r["name"], r["population"]) == (name, population))
    return found
