"""Purchases at one time: which lists they touch, and what the order of ids alone would rank."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.candidates.pairs import DAY
from diffgr2.data.store import Dataset
from diffgr2.stages.ties import id_above, parts_of
from diffgr2.types import PADDING, CandidateLists, Catalogue, Histories


def dataset(ids: list[str], histories: list[list[int]], days: list[list[int]]) -> Dataset:
    n = len(ids)
    nothing = [""] * n
    catalogue = Catalogue(ids, nothing, nothing, [[]] * n, np.full(n, np.nan), nothing)
    flat = np.array([item for own in histories for item in own], np.int32)
    time_N = np.array([day * DAY + 7 for own in days for day in own], np.int64)
    offsets = np.cumsum([0, *map(len, histories)]).astype(np.int64)
    users = [f"u{number}" for number in range(len(histories))]
    return Dataset(Histories(offsets, flat, time_N, n), catalogue, users, {})


def lists(users: list[int], ends: list[int], items: list[list[int]]) -> CandidateLists:
    items_LK = np.array(items, np.int32)
    user_L, end_L = np.array(users, np.int32), np.array(ends, np.int32)
    scores_LK = np.zeros(items_LK.shape, np.float32)
    return CandidateLists("test", user_L, end_L, np.zeros_like(user_L), items_LK, scores_LK)


def test_same_day_is_the_day_of_the_item_before_the_target():
    held = dataset(["a", "b", "c"], [[0, 1, 2], [2, 1, 0]], [[3, 5, 5], [4, 4, 9]])
    found = parts_of(held, lists([0, 1, 1], [2, 2, 1], [[0, 1]] * 3))
    assert found["same_day"].tolist() == [True, False, True]
    assert found["other_days"].tolist() == [False, True, False]


def test_without_times_nothing_is_told_apart():
    held = dataset(["a", "b"], [[0, 1]], [[0, 0]])
    held.histories.timestamps_N[:] = 0
    assert parts_of(held, lists([0], [1], [[0, 1]])) == {}


def test_ids_above_the_last_items_come_first_by_hand():
    """The last item of the visible history is B2: B3 and C1 sort above it, A9 and B1 do not."""
    ids = ["B2", "C1", "A9", "B3", "B1"]
    held = dataset(ids, [[2, 0, 4]], [[1, 2, 3]])
    found = id_above(held, lists([0], [2], [[2, 1, 4, 3]]))
    assert found.order_LK.tolist() == [[1, 3, 0, 2]]


def test_a_shorter_list_stays_shorter():
    held = dataset(["a", "b", "c"], [[0, 1]], [[1, 2]])
    found = id_above(held, lists([0], [1], [[0, 2, PADDING]]))
    assert found.order_LK.tolist() == [[1, 0, -1]]


@given(st.integers(2, 8), st.integers(0, 2**31))
def test_the_order_of_ids_ranks_as_its_definition(k: int, seed: int):
    rng = np.random.default_rng(seed)
    n = 12
    ids = [f"{number:05d}" for number in rng.permutation(n)]
    held = dataset(ids, [rng.permutation(n).tolist()], [list(range(n))])
    items, end = rng.permutation(n)[:k].tolist(), int(rng.integers(1, n))
    last = ids[held.histories.of(0)[end - 1]]
    above = [place for place, item in enumerate(items) if ids[item] > last]
    rest = [place for place in range(k) if place not in above]
    assert id_above(held, lists([0], [end], [items])).order_LK[0].tolist() == above + rest
