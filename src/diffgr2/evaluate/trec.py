"""TREC run and qrels files, so that anyone can re-score the orders with trec_eval or ranx.

Contract: one query per list, strictly decreasing scores (K, K−1, …), so no tool's tie rule matters;
qrels name the target even where it is not among the candidates, so that a scorer which counts
missing documents reaches the same mean over all users. Ids must hold no white space.
Not here: metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffgr2.errors import DataError
from diffgr2.types import CandidateLists


def _name(names: Sequence[str] | None, number: int, kind: str) -> str:
    text = str(number) if names is None else names[number]
    if not text or any(c.isspace() for c in text):
        raise DataError(f"{kind} {number}: id {text!r} cannot stand in a TREC file")
    return text


def write_run(
    path: Path,
    lists: CandidateLists,
    order_LK: np.ndarray,
    tag: str,
    *,
    rows_L: np.ndarray | None = None,
    users: Sequence[str] | None = None,
    items: Sequence[str] | None = None,
) -> None:
    """`user Q0 item rank score tag` per candidate; `rows_L` are the lists `order_LK` is about."""
    rows = np.arange(len(lists)) if rows_L is None else rows_L
    if len(rows) != len(order_LK):
        raise DataError(f"run {tag}: {len(order_LK)} orders for {len(rows)} lists")
    _name([tag], 0, "run tag")
    with path.open("w") as file:
        for row, order_K in zip(rows, order_LK, strict=True):
            user = _name(users, int(lists.user_L[row]), "user")
            for place, position in enumerate(order_K):
                item = _name(items, int(lists.items_LK[row, position]), "item")
                file.write(f"{user} Q0 {item} {place + 1} {lists.k - place} {tag}\n")


def write_qrels(
    path: Path,
    lists: CandidateLists,
    *,
    rows_L: np.ndarray | None = None,
    users: Sequence[str] | None = None,
    items: Sequence[str] | None = None,
) -> None:
    """`user 0 target 1` per list."""
    rows = np.arange(len(lists)) if rows_L is None else rows_L
    with path.open("w") as file:
        for row in rows:
            user = _name(users, int(lists.user_L[row]), "user")
            target = _name(items, int(lists.target_L[row]), "item")
            file.write(f"{user} 0 {target} 1\n")
