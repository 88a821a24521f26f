"""Probabilities and draws: what is refused, what is never drawn, and in which proportions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffgr2.decode.draw import among, draw, entropy, prepare, tempered
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.decode.verify import speculative
from diffgr2.errors import DecodeError


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_without_a_distribution_are_a_named_error(bad):
    logits_1TV = torch.zeros(1, 2, 5)
    logits_1TV[0, 1, 3] = bad
    with pytest.raises(DecodeError, match="NaN"):
        prepare(logits_1TV, 4)


def test_a_row_whose_only_finite_logit_is_the_masks_is_an_error():
    logits_1TV = torch.full((1, 1, 5), -torch.inf)
    logits_1TV[0, 0, 4] = 1.0
    with pytest.raises(DecodeError):
        prepare(logits_1TV, 4)


def test_a_bad_value_at_the_mask_id_does_no_harm():
    logits_1TV = torch.zeros(1, 1, 5)
    logits_1TV[..., 4] = float("nan")
    logp_1TV, top_1T, top_logp_1T = prepare(logits_1TV, 4)
    assert logp_1TV[0, 0].exp().tolist() == pytest.approx([0.25] * 4 + [0.0])
    assert top_1T.tolist() == [[0]]
    assert np.exp(top_logp_1T) == pytest.approx(0.25)


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 3.0, -2.0]), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.25, 0.5, 0.999999999, 1.0 - 2**-53]),
)
def test_a_token_of_probability_zero_is_never_drawn(values, uniform):
    if not np.isfinite(values).any():
        return
    logp_TV = torch.log_softmax(torch.tensor([values]), -1)
    token = int(draw(logp_TV, np.array([uniform])))
    assert np.isfinite(values[token])


def test_draws_follow_the_tempered_distribution():
    logp_TV = torch.log_softmax(torch.tensor([[2.0, 0.0, -torch.inf, 1.0]]), -1)
    for temperature in (0.5, 1.0, 3.0):
        hot_TV = tempered(logp_TV, temperature)
        grid = (np.arange(20_000) + 0.5) / 20_000
        drawn = draw(hot_TV.expand(len(grid), -1), grid).bincount(minlength=4) / len(grid)
        assert drawn.tolist() == pytest.approx(hot_TV[0].exp().tolist(), abs=1e-4)


def test_renormalising_over_impossible_tokens_is_uniform():
    logp_A = among(torch.tensor([-torch.inf, -torch.inf]))
    assert logp_A.exp().tolist() == pytest.approx([0.5, 0.5])
    assert among(torch.tensor([-1.0, -torch.inf])).exp().tolist() == pytest.approx([1.0, 0.0])


def test_entropy_counts_impossible_tokens_as_nothing():
    logp_TV = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).log()
    assert entropy(logp_TV).tolist() == pytest.approx([np.log(2), 0.0])


shares = st.lists(st.integers(0, 6), min_size=4, max_size=4).filter(any)


@given(shares, shares)
@settings(max_examples=60, deadline=None)
def test_speculative_sampling_gives_exactly_the_target_distribution(target, proposal):
    """Sum over drafts and a fine grid of both uniforms: the outcome has distribution p."""
    p_V, q_V = (np.array(x) / sum(x) for x in (target, proposal))
    steps = 240
    grid = (np.arange(steps) + 0.5) / steps
    found_V = np.zeros(4)
    kept = 0.0
    for draft in np.flatnonzero(q_V):
        first = [speculative(p_V, q_V, int(draft), np.array([u, 0.0])) for u in grid]
        share = float(np.mean([agreed for _, agreed in first]))
        assert all(token == draft for token, agreed in first if agreed)
        found_V[draft] += q_V[draft] * share
        kept += q_V[draft] * share
        if share < 1.0:  # the last uniform is always a rejection then
            second = [speculative(p_V, q_V, int(draft), np.array([grid[-1], u])) for u in grid]
            assert not any(agreed for _, agreed in second)
            tokens = np.bincount([token for token, _ in second], minlength=4)
            found_V += q_V[draft] * (1.0 - share) * tokens / steps
    assert found_V == pytest.approx(p_V, abs=4 / steps)
    assert kept == pytest.approx(np.minimum(p_V, q_V).sum(), abs=4 / steps)
