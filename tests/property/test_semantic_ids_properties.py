"""Whatever the codes: the policy makes them unique or says why not, the trie is the set."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.errors import ConfigError
from diffgr2.items.quantize import residual_codes
from diffgr2.items.sids import SemanticIds, Trie, parse_sid, sid_text
from diffgr2.items.uniqueness import (
    distinct_share,
    later_rows,
    make_unique,
    prefix_ids,
    take_neighbours,
)


@st.composite
def code_tables(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    levels = draw(st.integers(1, 4))
    n_codes = draw(st.integers(2, 6))
    n_items = draw(st.integers(1, 60))
    # A small share of the alphabet makes collisions and full prefixes frequent.
    top = draw(st.integers(0, n_codes - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, top + 1, size=(n_items, levels)).astype(np.int32), n_codes


@given(code_tables(), st.integers(0, 4), st.integers(0, 99))
@settings(max_examples=300, deadline=None)
def test_the_policy_gives_unique_codes_or_an_error(
    table: tuple[np.ndarray, int], random_last: int, seed: int
) -> None:
    codes_IL, n_codes = table
    n_items, levels = codes_IL.shape
    fits = n_codes**levels >= n_items
    duplicates = len(later_rows(codes_IL)) > 0
    try:
        unique_IL, drawn_I = make_unique(codes_IL, n_codes, random_last, seed)
    except ConfigError:
        assert not fits or (random_last == 0 and duplicates)
        return
    assert fits
    assert len({tuple(row) for row in unique_IL.tolist()}) == n_items
    assert unique_IL.min() >= 0
    assert unique_IL.max() < n_codes
    assert unique_IL.dtype == np.int32
    # The first item of every group keeps its natural codes, and so does every unique one.
    first = np.setdiff1d(np.arange(n_items), later_rows(codes_IL))
    np.testing.assert_array_equal(unique_IL[first], codes_IL[first])
    assert (drawn_I[first] == 0).all()
    # Only as many last codes as recorded were touched, at least `random_last` of them.
    for row in range(n_items):
        kept = levels - drawn_I[row]
        np.testing.assert_array_equal(unique_IL[row, :kept], codes_IL[row, :kept])
        assert drawn_I[row] == 0 or drawn_I[row] >= min(random_last, levels)
    again_IL, _ = make_unique(codes_IL, n_codes, random_last, seed)
    np.testing.assert_array_equal(unique_IL, again_IL)


@given(code_tables(), st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_neighbours_only_change_duplicates_and_only_to_free_codes(
    table: tuple[np.ndarray, int], seed: int
) -> None:
    codes_IL, n_codes = table
    n_items, levels = codes_IL.shape
    rng = np.random.default_rng(seed)
    books = rng.standard_normal((levels, n_codes, 3)).astype(np.float32)
    latents = rng.standard_normal((4, 3)).astype(np.float32)[rng.integers(4, size=n_items)]
    natural_IL = residual_codes(latents, books)
    spread_IL = take_neighbours(latents, natural_IL, books)
    late = later_rows(natural_IL)
    first = np.setdiff1d(np.arange(n_items), late)
    np.testing.assert_array_equal(spread_IL[first], natural_IL[first])
    if levels > 2:
        np.testing.assert_array_equal(spread_IL[:, :-2], natural_IL[:, :-2])
    moved = (spread_IL != natural_IL).any(axis=1)
    rows, counts = np.unique(spread_IL, axis=0, return_counts=True)
    shared = {tuple(row) for row, count in zip(rows, counts, strict=True) if count > 1}
    assert all(tuple(row) not in shared for row in spread_IL[moved])
    assert distinct_share(spread_IL) >= distinct_share(natural_IL)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_the_second_item_of_a_group_gets_the_nearest_free_pair(seed: int) -> None:
    rng = np.random.default_rng(seed)
    books = rng.standard_normal((2, 4, 3)).astype(np.float32)
    latents = np.repeat(rng.standard_normal((1, 3)).astype(np.float32), 2, axis=0)
    natural_IL = residual_codes(latents, books)
    spread_IL = take_neighbours(latents, natural_IL, books)
    error = {
        (a, b): float(np.square(latents[0] - books[0, a] - books[1, b]).sum())
        for a in range(4)
        for b in range(4)
        if (a, b) != tuple(natural_IL[0])
    }
    assert abs(error[tuple(spread_IL[1].tolist())] - min(error.values())) < 1e-4


@given(code_tables())
@settings(max_examples=150, deadline=None)
def test_the_trie_equals_brute_force(table: tuple[np.ndarray, int]) -> None:
    codes_IL, n_codes = table
    trie = Trie.build(codes_IL, n_codes)
    rows = {tuple(row) for row in codes_IL.tolist()}
    levels = codes_IL.shape[1]
    prefixes = {row[:depth] for row in rows for depth in range(levels + 1)}
    strangers = {(*p[:-1], (p[-1] + 1) % n_codes) for p in prefixes if p}
    for prefix in prefixes | strangers:
        wanted = sorted(
            {row[len(prefix)] for row in rows if row[: len(prefix)] == prefix}
            if len(prefix) < levels
            else set()
        )
        assert trie.children(prefix).tolist() == wanted
        mask_C = trie.allowed(np.array([prefix], dtype=np.int64).reshape(1, -1))[0]
        assert np.flatnonzero(mask_C).tolist() == wanted
    full = np.array(sorted(rows | {p for p in strangers if len(p) == levels}))
    found = trie.nodes(full) >= 0
    assert [tuple(row) in rows for row in full.tolist()] == found.tolist()


@given(code_tables(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_both_lookups_are_inverse(table: tuple[np.ndarray, int], seed: int) -> None:
    codes_IL, n_codes = table
    codes_IL = np.unique(codes_IL, axis=0)
    codes_IL = codes_IL[np.random.default_rng(seed).permutation(len(codes_IL))]
    ids = SemanticIds(codes_IL, n_codes)
    np.testing.assert_array_equal(ids.items(ids.codes_IL), np.arange(len(ids)))
    for item in range(len(ids)):
        assert ids.item(ids.codes(item)) == item
        assert parse_sid(ids.text(item)) == ids.codes(item)
    every = np.stack(np.meshgrid(*[np.arange(-1, n_codes + 1)] * ids.levels), -1)
    every = every.reshape(-1, ids.levels)
    known = {tuple(row): item for item, row in enumerate(codes_IL.tolist())}
    assert ids.items(every).tolist() == [known.get(tuple(row), -1) for row in every.tolist()]
    some = list(range(0, len(ids), 2))
    firsts = sorted({ids.codes(item)[0] for item in some})
    assert ids.trie_of(some).children().tolist() == firsts


@given(code_tables())
@settings(max_examples=100, deadline=None)
def test_prefix_ids_name_distinct_rows_in_order(table: tuple[np.ndarray, int]) -> None:
    codes_IL, _ = table
    _, wanted = np.unique(codes_IL, axis=0, return_inverse=True)
    np.testing.assert_array_equal(prefix_ids(codes_IL), wanted.reshape(-1))


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=8))
def test_sid_text_round_trip(codes: list[int]) -> None:
    assert parse_sid(sid_text(codes)) == tuple(codes)
