"""Counts at each list's own moment equal counts built anew from what lay strictly before it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.moments import TimedCounts, features_at
from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import prefixes
from diffgr2.config import EvidenceConfig
from diffgr2.types import CandidateLists, Catalogue, Histories

ITEMS, DAY = 12, 86_400
CONFIG = EvidenceConfig(history=4, buckets=4, fields=None, moment=True)


def catalogue() -> Catalogue:
    names = [f"thing {i}" for i in range(ITEMS)]
    brands = [f"b{i % 3}" for i in range(ITEMS)]
    kinds = [["all", f"c{i % 4}"] for i in range(ITEMS)]
    return Catalogue(names, names, brands, kinds, np.ones(ITEMS), [""] * ITEMS)


def vectors() -> np.ndarray:
    return np.random.default_rng(9).random((ITEMS, 5)).astype(np.float32)


def histories_of(rows: list[list[tuple[int, int]]]) -> Histories:
    """From (item, time) of each user."""
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    items = np.array([item for row in rows for item, _ in row], np.int32)
    times = np.array([time for row in rows for _, time in row], np.int64)
    return Histories(offsets, items, times, ITEMS)


@st.composite
def shops(draw: st.DrawFn) -> tuple[Histories, CandidateLists]:
    """A few users with coarse clocks, so that equal times abound, and lists at any moment."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    users, grain = draw(st.integers(2, 8)), draw(st.sampled_from([1, 3_600, DAY]))
    rows = []
    for _ in range(users):
        n = int(rng.integers(0, 9))
        times = np.sort(rng.integers(1, 12, n)) * grain + 10 * DAY
        rows.append(list(zip(rng.integers(0, ITEMS, n).tolist(), times.tolist(), strict=True)))
    rows[0] = rows[0] or [(0, 10 * DAY + grain)]
    histories = histories_of(rows)
    n_lists, k = draw(st.integers(1, 6)), 5
    user_L = rng.integers(0, users, n_lists).astype(np.int32)
    moment_L = rng.integers(0, 14, n_lists) * grain + 10 * DAY
    end_L = np.array(
        [
            sum(time < moment for _, time in rows[user])
            for user, moment in zip(user_L, moment_L, strict=True)
        ],
        np.int32,
    )
    items_LK = np.stack([rng.permutation(ITEMS)[:k] for _ in range(n_lists)]).astype(np.int32)
    items_LK[0, 3:] = -1
    scores_LK = rng.random((n_lists, k)).astype(np.float32)
    target_L = np.full(n_lists, -1, np.int32)
    given_ = (user_L, end_L, target_L, items_LK, scores_LK)
    return histories, CandidateLists("train", *given_, moment=moment_L.astype(np.int64))


def before(histories: Histories, moment: int) -> Histories:
    """What had been bought by then, users in their places."""
    rows = []
    for user in range(histories.n_users):
        start, end = histories.offsets_U1[user : user + 2]
        pairs = zip(histories.items_N[start:end], histories.timestamps_N[start:end], strict=True)
        rows.append([(int(item), int(time)) for item, time in pairs if time < moment])
    return histories_of(rows)


@settings(deadline=None, max_examples=60)
@given(shops())
def test_every_list_has_the_counts_of_its_moment(shop: tuple[Histories, CandidateLists]) -> None:
    histories, lists = shop
    index = EvidenceIndex.build(histories, catalogue(), vectors(), CONFIG)
    timed = TimedCounts.build(histories, CONFIG.history, index.pairs.kinds)
    found_LKF = features_at(index, timed, histories, lists)
    assert lists.moment is not None
    for row, moment in enumerate(lists.moment.tolist()):
        # The same fields, whatever the little that was known by then could tell.
        then = PairCounts.build(before(histories, moment), CONFIG.history, index.pairs.kinds)
        anew = replace(index, pairs=then)
        part = lists.take(np.array([row]))
        queries = prefixes(histories, part.user_L, part.end_L)
        given_ = (part.items_LK, part.scores_LK, part.user_L, None, part.moment)
        np.testing.assert_allclose(
            found_LKF[row], anew.features(queries, *given_)[0], atol=2e-5, rtol=2e-5
        )


@settings(deadline=None, max_examples=30)
@given(shops(), st.integers(0, 2**31))
def test_nothing_from_the_moment_on_changes_a_value(
    shop: tuple[Histories, CandidateLists], seed: int
) -> None:
    histories, lists = shop
    assert lists.moment is not None
    moment = int(lists.moment.min())
    rng = np.random.default_rng(seed)
    late_N = histories.timestamps_N >= moment
    items_N = np.where(late_N, rng.integers(0, ITEMS, len(late_N)), histories.items_N)
    other = Histories(histories.offsets_U1, items_N.astype(np.int32), histories.timestamps_N, ITEMS)
    first = lists.take(np.flatnonzero(lists.moment == moment))
    index = EvidenceIndex.build(histories, catalogue(), vectors(), CONFIG)
    values = [
        features_at(index, TimedCounts.build(one, CONFIG.history, index.pairs.kinds), one, first)
        for one in (histories, other)
    ]
    np.testing.assert_array_equal(values[0], values[1])
