"""Block layout: masks against a pair-by-pair definition, positions, bounds, padding."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.model import layout, masks

sizes = st.integers(1, 9)


def sees(query, key, prompt, response, size, shift, clean_causal) -> bool:
    """One pair of a row's tokens, in words: (position, copy), copy 0 = clean."""
    (q_at, q_copy), (k_at, k_copy) = query, key
    q_block, k_block = (q_at + shift) // size, (k_at + shift) // size
    if q_copy == 0:
        if k_copy != 0:
            return False  # nothing clean ever sees noise
        same_side = (q_at >= prompt) == (k_at >= prompt)
        return k_at <= q_at or (not clean_causal and same_side and q_block == k_block)
    if k_copy == q_copy:
        return q_block == k_block  # its own block, both ways
    return k_copy == 0 and (k_at < prompt or k_block < q_block)


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 2), sizes, st.data(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_row_mask_is_its_definition_pair_by_pair(prompt, response, copies, size, data, causal):
    shift = data.draw(st.integers(0, size - 1))
    tokens = [(t, 0) for t in range(prompt + response)]
    tokens += [(prompt + t, c + 1) for c in range(copies) for t in range(response)]
    expected = [[sees(q, k, prompt, response, size, shift, causal) for k in tokens] for q in tokens]
    mask = masks.row_mask(prompt, response, copies, size, shift, clean_causal=causal)
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected
    positions = masks.row_positions(prompt, response, copies)
    assert positions.tolist() == [at for at, _ in tokens]


@given(st.integers(0, 200), sizes, st.data())
def test_block_bounds_hold_their_position_and_agree_with_block_of(position, size, data):
    shift = data.draw(st.integers(0, size - 1))
    start, end = layout.block_bounds(position, size, shift)
    assert start <= position < end
    inside = layout.block_of(np.arange(max(start - 1, 0), end + 1), size, shift)
    block = layout.block_of(position, size, shift)
    assert (inside == block).sum() == end - start
    assert end - start == size or start == 0


@given(st.integers(1, 200), sizes)
def test_response_origin_starts_a_block_where_the_response_starts(prompt, size):
    shift = layout.response_shift(prompt, size, "response")
    assert 0 <= shift < size
    assert layout.block_bounds(prompt, size, shift) == (prompt, prompt + size)
    assert layout.response_shift(prompt, size, "document") == 0


def test_stacked_masks_keep_each_row_and_leave_no_query_without_a_key():
    made = [
        torch.ones(3, 3, dtype=torch.bool).tril(),
        masks.row_mask(2, 3, 1, 2, 1, clean_causal=False),
    ]
    stacked = masks.stack_masks(made, 10)
    assert stacked.shape == (2, 1, 10, 10)
    for row, mask in enumerate(made):
        t = len(mask)
        assert torch.equal(stacked[row, 0, :t, :t], mask)
        assert not stacked[row, 0, :t, t:].any()
        assert torch.equal(stacked[row, 0, t:, t:], torch.eye(10 - t, dtype=torch.bool))
        assert not stacked[row, 0, t:, :t].any()
    assert stacked.any(-1).all()
