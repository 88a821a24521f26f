"""Traces in a language model's own words: strengths that imply its order, and its explanation.

Contract: `from_orders` turns accepted orders into `Traces`, so that every template can use them:
levels follow the evidence scorer's as far as the order allows and fall by at least one along it,
and the cited fields are those that the scorer says moved it. The model read the first k candidates
of each list; the others are not judged. `write_explanations` and `read_explanations` keep the words
beside them, one JSON line per trace. Not here: asking (`traces.llm`) and tokenizing
(`prompts.gr2`).
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffgr2.prompts.request import NONE
from diffgr2.traces.decide import Traces


def falling(level_NK: np.ndarray, order_NK: np.ndarray) -> np.ndarray:
    """The same levels, dealt out falling by one or more along each order; needs K levels.

    >>> falling(np.array([[5, 5, 0]]), np.array([[1, 2, 0]])).tolist()
    [[0, 5, 4]]
    """
    k = order_NK.shape[1]
    best_first_NK = -np.sort(-level_NK, axis=1)
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
    level_LK: np.ndarray,
    cites_LKC: np.ndarray,
    k: int,
) -> Traces:
    """Traces of these lists with these orders of their first k candidates."""
    rows = np.array(row_N, dtype=np.int32)
    level_NK, cites_NKC = level_LK[rows].astype(np.float32), cites_LKC[rows]
    for n, order in enumerate(orders):
        length = min(len(order), k)  # of a shorter list all of it
        order_1K = np.array(order, dtype=np.int32)[None]
        level_NK[n, :length] = falling(level_NK[n, None, :length], order_1K)[0]
        level_NK[n, length:], cites_NKC[n, length:] = np.nan, NONE
    return Traces(rows, level_NK, cites_NKC)


def write_explanations(path: Path, traces: Traces, explanations: Sequence[str]) -> None:
    """One line {row, order, explanation} per trace."""
    with path.open("w", encoding="utf-8") as file:
        for n, words in enumerate(explanations):
            order = traces.at(n).order_K.tolist()
            record = {"row": int(traces.row_N[n]), "order": order, "explanation": words}
            file.write(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n")


def read_explanations(path: Path) -> list[str]:
    """The explanations that `write_explanations` wrote; none where the file is not there."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["explanation"] for line in file]
