"""Whatever the codes: the policy makes them unique or says why not; look-ups are inverse."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.items.quantize import residual_codes
from diffgr2.items.sids import SemanticIds, parse_sid, sid_text
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


@given(code_tables(), st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_both_lookups_are_inverse(table: tuple[np.ndarray, int], seed: int) -> None:
    codes_IL, n_codes = table
    codes_IL = np.unique(codes_IL, axis=0)
    codes_IL = codes_IL[np.random.default_rng(seed).permutation(len(codes_IL))]
    ids = SemanticIds(codes_IL, n_codes)
    for item in range(len(ids)):
        assert ids.item(ids.codes(item)) == item
        assert parse_sid(ids.text(item)) == ids.codes(item)
    known = {tuple(row): item for item, row in enumerate(codes_IL.tolist())}
    for every in product(range(-1, n_codes + 1), repeat=ids.levels):
        assert ids.item(every) == known.get(every)


@given(code_tables())
@settings(max_examples=100, deadline=None)
def test_a_table_with_two_equal_rows_is_refused(table: tuple[np.ndarray, int]) -> None:
    codes_IL, n_codes = table
    if len({tuple(row) for row in codes_IL.tolist()}) == len(codes_IL):
        assert len(SemanticIds(codes_IL, n_codes)) == len(codes_IL)
    else:
        with pytest.raises(ArtifactError, match="share the same codes"):
            SemanticIds(codes_IL, n_codes)


@given(code_tables())
@settings(max_examples=100, deadline=None)
def test_prefix_ids_name_distinct_rows_in_order(table: tuple[np.ndarray, int]) -> None:
    codes_IL, _ = table
    _, wanted = np.unique(codes_IL, axis=0, return_inverse=True)
    np.testing.assert_array_equal(prefix_ids(codes_IL), wanted.reshape(-1))


@given(st.lists(st.integers(0, 65_535), min_size=1, max_size=8))
def test_sid_text_round_trip(codes: list[int]) -> None:
    assert parse_sid(sid_text(codes)) == tuple(codes)


@given(st.text(alphabet="<s_abi019>", max_size=30))
@example("<s_a_" + "9" * 5_000 + ">")
@example("<s_a_1>" * 9)
def test_text_that_is_no_id_is_none(text: str) -> None:
    codes = parse_sid(text)
    assert codes is None or sid_text(codes) == text
