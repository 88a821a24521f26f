"""Traces in a language model's own words: order, strengths that imply it, explanation.

Contract: `from_orders` turns accepted orders into `Traces`, so that every template can use them:
strengths follow the evidence scorer's as far as the order allows and fall strictly along it, and
the cited fields are those that the scorer says moved it. `write_explanations` and
`read_explanations` keep the words beside them, one JSON line per trace. Not here: asking
(`traces.llm`) and tokenizing (`prompts.gr2`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffgr2.traces.decide import Traces, cited, strengths


def falling(strength_NK: np.ndarray, order_NK: np.ndarray) -> np.ndarray:
    """The same levels, dealt out strictly falling along each order; needs at least K levels.

    >>> falling(np.array([[5, 5, 0]]), np.array([[1, 2, 0]])).tolist()
    [[0, 5, 4]]
    """
    k = order_NK.shape[1]
    best_first_NK = -np.sort(-strength_NK, axis=1)
    # Room below for those that follow; and never more than one less than the one before.
    best_first_NK = np.maximum(best_first_NK, np.arange(k - 1, -1, -1))
    for j in range(1, k):
        best_first_NK[:, j] = np.minimum(best_first_NK[:, j], best_first_NK[:, j - 1] - 1)
    result_NK = np.empty_like(best_first_NK)
    np.put_along_axis(result_NK, order_NK.astype(np.int64), best_first_NK, axis=1)
    return result_NK


def from_orders(
    row_N: Sequence[int],
    orders: Sequence[Sequence[int]],
    score_LK: np.ndarray,
    contribution_LKF: np.ndarray,
    edges_S: np.ndarray,
    cites: int,
) -> Traces:
    """Traces of these lists with these orders."""
    rows = np.array(row_N, dtype=np.int32)
    order_NK = np.array(orders, dtype=np.int32).reshape(len(rows), score_LK.shape[1])
    strength_NK = strengths(score_LK[rows].astype(np.float64), edges_S)
    for_NKC, against_NKA = cited(contribution_LKF[rows], cites)
    strength_NK = falling(strength_NK, order_NK).astype(np.int32)
    return Traces(rows, order_NK, strength_NK, for_NKC, against_NKA)


def write_explanations(path: Path, traces: Traces, explanations: Sequence[str]) -> None:
    """One line {row, order, explanation} per trace."""
    with path.open("w", encoding="utf-8") as file:
        for row, order_K, words in zip(traces.row_N, traces.order_NK, explanations, strict=True):
            record = {"row": int(row), "order": order_K.tolist(), "explanation": words}
            file.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")


def read_explanations(path: Path) -> list[str]:
    """The explanations that `write_explanations` wrote; none where the file is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["explanation"] for line in file]
