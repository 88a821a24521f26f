"""Whatever the codes: the policy makes them unique or says why not; look-ups are inverse."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.items.quantize import Quantizer
from diffgr2.items.sids import SemanticIds, parse_sid, sid_text
from diffgr2.items.uniqueness import (
    assigned,
    later_rows,
    make_unique,
    prefix_ids,
    shared_rows,
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


@st.composite
def crowded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Quantizer]:
    """(latents, natural codes, quantizer) of items that often share codes."""
    levels, n_codes = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    books = rng.standard_normal((levels, n_codes, 3)).astype(np.float32)
    fitted = Quantizer(books, unit=draw(st.booleans()))
    n_items, kinds = draw(st.integers(1, 60)), draw(st.integers(1, 6))
    latents = rng.standard_normal((kinds, 3)).astype(np.float32)[rng.integers(kinds, size=n_items)]
    latents += np.float32(draw(st.sampled_from([0.0, 0.05]))) * rng.standard_normal((n_items, 3))
    return latents, fitted.walk(latents)[0], fitted


def seen_by(level: int, latents: np.ndarray, codes_IL: np.ndarray, fitted: Quantizer) -> np.ndarray:
    """What a level is asked to quantize, worked out slowly in float64."""
    rest = latents.astype(np.float64)
    for before in range(level):
        rest = rest - fitted.codebooks_LCD[before][codes_IL[:, before]]
        if fitted.unit:
            rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-6)
    return rest


@given(crowded())
@settings(max_examples=200, deadline=None)
def test_assignment_moves_only_those_that_share_and_only_to_free_codes(
    case: tuple[np.ndarray, np.ndarray, Quantizer],
) -> None:
    latents, natural_IL, fitted = case
    near_IL = assigned(latents, natural_IL, fitted)
    alone = np.setdiff1d(np.arange(len(natural_IL)), shared_rows(natural_IL))
    np.testing.assert_array_equal(near_IL[alone], natural_IL[alone])
    np.testing.assert_array_equal(near_IL[:, :-2], natural_IL[:, :-2])
    moved = (near_IL != natural_IL).any(axis=1)
    went = [tuple(row) for row in near_IL[moved].tolist()]
    assert len(set(went)) == len(went), "whoever moves goes where no other goes"
    assert not {tuple(row) for row in natural_IL[alone].tolist()} & set(went)
    # No code that somebody wanted is left lying about, and nobody waits where one is free.
    assert {tuple(row) for row in natural_IL.tolist()} <= {tuple(row) for row in near_IL.tolist()}
    for head in np.unique(near_IL[shared_rows(near_IL), :-1], axis=0):
        under = near_IL[(near_IL[:, :-1] == head).all(axis=1), -1]
        assert len(np.unique(under)) == fitted.codebooks_LCD.shape[1]


@given(crowded())
@settings(max_examples=150, deadline=None)
def test_under_one_prefix_the_whole_distance_is_the_least_there_is(
    case: tuple[np.ndarray, np.ndarray, Quantizer],
) -> None:
    latents, natural_IL, fitted = case
    near_IL = assigned(latents, natural_IL, fitted)
    book_CE = fitted.codebooks_LCD[-1].astype(np.float64)
    rest_IE = seen_by(natural_IL.shape[1] - 1, latents, natural_IL, fitted)
    cost_IC = np.square(rest_IE[:, None] - book_CE).sum(-1)
    late = shared_rows(natural_IL)
    for head in np.unique(natural_IL[late, :-1], axis=0):
        here = (natural_IL[:, :-1] == head).all(axis=1)
        rows = np.intersect1d(late, np.flatnonzero(here))
        held = np.setdiff1d(np.flatnonzero(here), late)
        free = np.setdiff1d(np.arange(len(book_CE)), natural_IL[held, -1])
        if len(rows) > len(free) or len(rows) > 4:
            continue
        least = min(sum(cost_IC[rows, ends]) for ends in permutations(free, len(rows)))
        assert sum(cost_IC[rows, near_IL[rows, -1]]) <= least + 1e-3
        np.testing.assert_array_equal(near_IL[rows, :-1], natural_IL[rows, :-1])


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
