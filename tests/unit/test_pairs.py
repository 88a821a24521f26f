"""Pair counts of histories that hold no pair at all."""

from __future__ import annotations

import numpy as np
import pytest

from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import ragged

ITEMS = 5


def buyers(pairs: PairCounts, without: int) -> list[float]:
    """How many users but this one have each item, asked for as candidates of an empty history."""
    every_1I, nothing = np.arange(ITEMS, dtype=np.int32)[None], np.empty((1, 0), np.int32)
    return pairs.lookup(nothing, every_1I, np.array([without]))[1][0].tolist()


@pytest.mark.parametrize(
    "rows",
    [[[3], [1], [3]], [[2], []], [[4, 4, 4], [0]]],
    ids=["one item each", "an empty history", "repeats of one item"],
)
@pytest.mark.parametrize("window", [1, 4])
def test_without_a_pair_every_count_is_zero_and_buyers_are_right(rows, window: int) -> None:
    train = ragged([np.array(row, np.int32) for row in rows], ITEMS)
    pairs = PairCounts.build(train, window)
    assert len(pairs.pair_P) == len(pairs.value_PV) == 0
    every_1I = np.arange(ITEMS, dtype=np.int32)[None]
    for user in (-1, 0):
        value_V1II, _ = pairs.lookup(every_1I, every_1I, np.array([user]))
        assert value_V1II.shape[1:] == (1, ITEMS, ITEMS)
        assert not value_V1II.any()
    wanted = [sum(item in row for row in rows) for item in range(ITEMS)]
    assert buyers(pairs, -1) == wanted
    without_first = [sum(item in row for row in rows[1:]) for item in range(ITEMS)]
    assert buyers(pairs, 0) == without_first
