"""The split under arbitrary interactions: what must hold whatever the rows are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from diffgr2.config import DataConfig
from diffgr2.data.gather import Gatherer
from diffgr2.data.split import build, drop_repeats, k_core, ordered, tie_spans
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 7), st.integers(0, 4)), min_size=1, max_size=80
)


def gather(rows: list[tuple[int, int, int]], timed: bool = True):
    gatherer = Gatherer()
    for user, item, time in rows:
        gatherer.add(f"u{user}", f"i{item}", time * 1000 if timed else 0)
    return gatherer.finish("rows", timed=timed)


def policy(
    k_core: int = 0, tie_order: str = "file", tie_seed: int = 0, earliest: bool = False
) -> DataConfig:
    source = "amazon2023" if earliest else "table"
    return DataConfig(
        source=source,
        interactions="rows",
        k_core=k_core,
        tie_order=tie_order,  # type: ignore[arg-type]
        tie_seed=tie_seed,
    )


def numbered(rows: list[tuple[int, int, int]]) -> pl.DataFrame:
    return gather(rows).events.with_row_index("line")


def build_or_none(raw, config: DataConfig, seed: int = 0) -> Dataset | None:
    try:
        return build(raw, config, seed, {})
    except DataError as error:
        assert "nothing is left" in str(error)  # noqa: PT017
        return None


def by_raw_id(dataset: Dataset) -> dict[str, list[tuple[str, int]]]:
    """Histories in raw ids: what the numbers stand for."""
    h = dataset.histories
    result = {}
    for user, raw in enumerate(dataset.raw_users):
        start, end = h.offsets_U1[user], h.offsets_U1[user + 1]
        names = [dataset.catalogue.raw_ids[i] for i in h.items_N[start:end]]
        result[raw] = list(zip(names, h.timestamps_N[start:end].tolist(), strict=True))
    return result


def naive_core(pairs: list[tuple[int, int]], k: int, shortest: int = 0) -> list[int]:
    """Rows of the k-core by removing one user or item at a time, in no clever order."""
    rows = list(range(len(pairs)))
    while True:
        for side in (0, 1):
            values = [pairs[r][side] for r in rows]
            enough = k if side else max(k, shortest)
            poor = [value for value in values if values.count(value) < enough]
            if poor:
                rows = [r for r in rows if pairs[r][side] != poor[-1]]
                break
        else:
            return rows


@settings(deadline=None)
@given(ROWS, st.integers(0, 5), st.integers(0, 4))
def test_the_k_core_equals_removal_one_at_a_time(rows: list, k: int, shortest: int) -> None:
    expected = naive_core([(u, i) for u, i, _ in rows], k, shortest)
    assert k_core(numbered(rows), k, shortest)["line"].to_list() == expected


@st.composite
def rows_with_a_core(draw: st.DrawFn, k: int) -> list[tuple[int, int, int]]:
    """A core in which every user and item has enough, among rows that may fall away.

    User u of the core buys the `width` items after u, around a circle of as many items as users:
    everybody has `width` different items and every item `width` different buyers.
    """
    width = max(3, k)
    size = draw(st.integers(width, width + 3))
    times = draw(st.lists(st.integers(0, 4), min_size=size * width, max_size=size * width))
    pairs = [(user, (user + step) % size) for user in range(size) for step in range(width)]
    core = [(user, item, time) for (user, item), time in zip(pairs, times, strict=True)]
    # Users and items of their own, of the core, and both: repeats of the core among them.
    poor = st.tuples(st.integers(size - 2, size + 4), st.integers(0, size + 4), st.integers(0, 4))
    return draw(st.permutations(core + draw(st.lists(poor, max_size=30))))


def check_accounts(rows: list, dataset: Dataset, k: int, earliest: bool) -> None:
    """Every row is kept, dropped as a repeat or outside the core; what is kept is enough."""
    report, histories = dataset.report, dataset.histories
    assert report["interactions_in"] == len(rows)
    assert report["interactions_in"] == report["interactions_used"] + report["duplicates_dropped"]
    assert (
        report["interactions_used"] == report["interactions"] + report["interactions_outside_core"]
    )
    expected = {r[:2] for r in rows} if earliest else set(rows)
    assert report["interactions_used"] == len(expected)
    assert histories.lengths_U.min() >= max(3, k)
    counts = np.bincount(histories.items_N, minlength=histories.n_items)
    assert counts.min() >= max(k, 1), "no item number without an interaction"
    history = by_raw_id(dataset)
    times = [[time for _, time in pairs] for pairs in history.values()]
    assert all(row == sorted(row) for row in times)
    kept = {(user, item, time) for user, pairs in history.items() for item, time in pairs}
    assert kept <= {(f"u{user}", f"i{item}", time) for user, item, time in rows}


@settings(deadline=None)
@given(st.data(), st.integers(0, 4), st.booleans(), st.sampled_from(["file", "shuffle"]))
def test_rows_are_accounted_for_and_every_user_and_item_keeps_enough(
    data: st.DataObject, k: int, earliest: bool, tie_order: str
) -> None:
    rows = data.draw(rows_with_a_core(k))
    dataset = build(gather(rows), policy(k, tie_order, 1, earliest), 2, {})
    check_accounts(rows, dataset, k, earliest)


@settings(deadline=None)
@given(ROWS, st.integers(0, 4), st.booleans())
def test_nothing_is_left_exactly_where_there_is_no_core(rows: list, k: int, earliest: bool) -> None:
    dataset = build_or_none(gather(rows), policy(k, earliest=earliest))
    kept = sorted({row[:2] for row in rows} if earliest else set(rows))
    core = naive_core([row[:2] for row in kept], k, 3)
    assert (dataset is None) == (core == [])
    if dataset is not None:
        check_accounts(rows, dataset, k, earliest)


def test_made_rows_reach_every_outcome_often_enough() -> None:
    """The property above must see cores, rows outside them, repeats and ties."""
    seen: Counter[str] = Counter()

    @seed(1)
    @settings(max_examples=100, deadline=None, database=None, phases=[Phase.generate])
    @given(st.data(), st.integers(0, 4))
    def count(data: st.DataObject, k: int) -> None:
        rows = data.draw(rows_with_a_core(k))
        report = build(gather(rows), policy(k, earliest=True), 0, {}).report
        seen["core"] += report["interactions"] > 0
        seen["outside"] += report["interactions_outside_core"] > 0
        seen["repeats"] += report["duplicates_dropped"] > 0
        seen["ties"] += len({row[::2] for row in rows}) < len(rows)

    count()
    assert seen["core"] >= 100
    assert min(seen[name] for name in ("outside", "repeats", "ties")) >= 25, seen


@settings(deadline=None)
@given(ROWS)
def test_the_earliest_of_a_pair_is_kept(rows: list) -> None:
    kept = drop_repeats(gather(rows), keep_earliest=True)
    earliest = {(user, item): time for user, item, time, _ in kept.iter_rows()}
    assert len(earliest) == len(kept)
    for user, item, time in rows:
        assert earliest[f"u{user}", f"i{item}"] <= time * 1000


@settings(deadline=None)
@given(ROWS)
def test_without_a_clock_no_repeat_is_dropped(rows: list) -> None:
    raw = gather(rows, timed=False)
    assert drop_repeats(raw, keep_earliest=False).equals(raw.events)


@settings(deadline=None)
@given(ROWS, st.integers(0, 100))
def test_the_shuffle_permutes_within_ties_only(rows: list, seed: int) -> None:
    by_file = ordered(numbered(rows), policy())
    shuffled = ordered(numbered(rows), policy(0, "shuffle", seed))
    assert by_file.select("user", "time").equals(shuffled.select("user", "time"))
    one, two = by_file["line"].to_numpy(), shuffled["line"].to_numpy()
    inside = np.zeros(len(rows), dtype=bool)
    for start, end in tie_spans(by_file):
        inside[start:end] = True
        assert sorted(one[start:end]) == sorted(two[start:end])
    assert (one[~inside] == two[~inside]).all()


@settings(deadline=None)
@given(ROWS, st.integers(0, 100), st.randoms(use_true_random=False))
def test_the_shuffle_does_not_depend_on_other_users_or_on_the_file_order(
    rows: list, seed: int, random
) -> None:
    rows = list(dict.fromkeys(rows))
    shuffle = policy(0, "shuffle", seed)

    def orders(some: list) -> dict[str, list[str]]:
        events = ordered(gather(some).events, shuffle)
        return dict(events.group_by("user", maintain_order=True).agg("item").iter_rows())

    all_orders = orders(rows)
    mixed = rows.copy()
    random.shuffle(mixed)
    assert orders(mixed) == all_orders
    user = rows[0][0]
    alone = orders([row for row in rows if row[0] == user])
    # Another user's rows change which items exist, but not the order of the ids among each other.
    assert alone[f"u{user}"] == all_orders[f"u{user}"]


def test_the_shuffle_is_uniform_over_the_orders_of_a_tie() -> None:
    rows = [(user, item, 0) for user in range(3_000) for item in range(3)]
    items = ordered(gather(rows).events, policy(0, "shuffle"))["item"].cast(pl.String)
    triples = items.str.slice(1).cast(pl.Int64).to_numpy().reshape(-1, 3)
    _, counts = np.unique(triples, axis=0, return_counts=True)
    assert len(counts) == 6
    # 500 expected each, standard deviation 20; the seed is fixed, so this holds or fails for good.
    assert counts.min() > 400
    assert counts.max() < 600


@settings(deadline=None)
@given(ROWS, st.integers(0, 50), st.integers(0, 50))
def test_the_seed_changes_the_numbers_and_nothing_else(rows: list, one: int, two: int) -> None:
    raw = gather(rows)
    first, second = (build_or_none(raw, policy(), seed) for seed in (one, two))
    if first is None or second is None:
        assert first is second, "the seed decides nothing but numbers"
        return
    assert by_raw_id(first) == by_raw_id(second)
    assert first.report == second.report
    if one == two:
        assert first.raw_users == second.raw_users
        assert (first.histories.items_N == second.histories.items_N).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_numbers_do_not_follow_first_appearance(seed: int) -> None:
    rows = [(user, item, item) for user in range(40) for item in range(40)]
    dataset = build(gather(rows), policy(), seed, {})
    first_seen = [f"i{item}" for item in range(40)]
    place = [dataset.catalogue.raw_ids.index(raw) for raw in first_seen]
    # Rank correlation of a random permutation of 40: standard deviation 1 / sqrt(39) = .16.
    assert abs(np.corrcoef(place, range(40))[0, 1]) < 0.85


@settings(deadline=None)
@given(ROWS)
def test_the_split_digest_tells_splits_apart(rows: list) -> None:
    raw = gather(rows)
    first = build_or_none(raw, policy())
    second = build_or_none(raw, policy(0, "shuffle", 3))
    if first is None or second is None:
        assert first is second, "the tie order decides nothing but order"
        return
    same = by_raw_id(first) == by_raw_id(second)
    assert (first.report["split_sha256"] == second.report["split_sha256"]) == same
