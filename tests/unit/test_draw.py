"""Choices and draws: what is refused, what is never drawn, and in which proportions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.decode import reference
from diffgr2.decode.choice import among
from diffgr2.decode.verify import speculative
from diffgr2.errors import DecodeError
from diffgr2.model.backend import NO_TOKEN, Span
from diffgr2.model.forward import LeanModel
from diffgr2.model.sampling import entropy, inverse_transform, log_normalised
from diffgr2.model.session import TorchSession, TorchView
from support.tiny_qwen import VOCAB, tiny

MASK = VOCAB - 1
BOTH = np.array([0, 1])


class Fixed:
    """A model whose forward gives these logits."""

    def __init__(self, model: LeanModel, logits_V: torch.Tensor) -> None:
        self._model, self._logits_V = model, logits_V

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def __call__(self, *args, **more) -> torch.Tensor:
        return self._logits_V.expand_as(self._model(*args, **more)).clone()


def view_of(logits_V: torch.Tensor):
    session = TorchSession(Fixed(LeanModel(tiny(1)), logits_V), MASK)  # type: ignore[arg-type]
    session.add([Span([], 0, [], 0)], 4)
    return session.forward([Span([3, 4], 0, [1, 2], 0)])[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_without_a_distribution_are_a_named_error(bad):
    logits_V = torch.zeros(VOCAB)
    logits_V[3] = bad
    with pytest.raises(DecodeError, match="NaN"):
        view_of(logits_V)


def test_a_row_whose_only_finite_logit_is_the_masks_is_an_error():
    logits_V = torch.full((VOCAB,), -torch.inf)
    logits_V[MASK] = 1.0
    with pytest.raises(DecodeError):
        view_of(logits_V)


def test_a_bad_value_at_the_mask_id_does_no_harm():
    logits_V = torch.zeros(VOCAB)
    logits_V[MASK] = float("nan")
    view = view_of(logits_V)
    rows_2V = view.rows(BOTH)
    assert np.exp(rows_2V[0]).tolist() == pytest.approx([1 / (VOCAB - 1)] * (VOCAB - 1) + [0.0])
    token_2, logp_2, raw_2 = view.best(BOTH)
    assert token_2.tolist() == [0, 0]
    assert np.exp(logp_2) == pytest.approx(1 / (VOCAB - 1))
    assert raw_2 == pytest.approx(logp_2)


def test_a_view_answers_without_what_is_banned():
    logp_TV = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0, 1.0]]), -1)
    view, row = TorchView(logp_TV), np.array([0])
    token_1, logp_1, raw_1 = view.best(row, np.array([0]))
    rest = logp_TV[0, 1:].logsumexp(0)
    assert token_1.tolist() == [1]  # the lowest id of equals
    assert logp_1 == pytest.approx([float(logp_TV[0, 1] - rest)])
    assert raw_1 == pytest.approx([float(logp_TV[0, 1])])
    drawn_1, hot_1, raw_1 = view.drawn(row, 0.5, np.array([0.999]), np.array([0]))
    wanted_V = torch.log_softmax(logp_TV[0, 1:] / 0.5, -1)
    assert drawn_1.tolist() == [3]
    assert hot_1 == pytest.approx([float(wanted_V[2])])
    assert raw_1 == pytest.approx([float(logp_TV[0, 3])])
    sets_12 = np.array([[2, NO_TOKEN]])
    assert view.among(row, sets_12).tolist() == [[pytest.approx(float(logp_TV[0, 2])), -np.inf]]
    assert logp_TV[0, 0].isfinite(), "the distribution itself stays"


@given(
    st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 3.0, -2.0]), min_size=2, max_size=6),
    st.sampled_from([0.0, 0.25, 0.5, 0.999999999, 1.0 - 2**-53]),
)
def test_a_token_of_probability_zero_is_never_drawn(values, uniform):
    if not np.isfinite(values).any():
        return
    (token,) = inverse_transform(log_normalised(np.array([values])), np.array([uniform]))
    assert np.isfinite(values[token])


def test_draws_follow_the_tempered_distribution():
    logp_A = np.array([2.0, 0.0, -np.inf, 1.0])
    tokens_A, grid = np.array([7, 3, 9, 4]), (np.arange(20_000) + 0.5) / 20_000
    shape = (len(grid), 4)
    for temperature in (0.5, 1.0, 3.0):
        found = among(
            np.broadcast_to(logp_A, shape),
            np.broadcast_to(tokens_A, shape),
            np.zeros(len(grid), dtype=bool),
            temperature,
            grid,
        )
        shares = np.bincount(found.token_N, minlength=10)[tokens_A] / len(grid)
        wanted_A = np.exp(log_normalised(logp_A[None] / temperature)[0])
        assert shares.tolist() == pytest.approx(wanted_A.tolist(), abs=1e-4)
        of_token = dict(zip(tokens_A.tolist(), wanted_A.tolist(), strict=True))
        every = [of_token[token] for token in found.token_N.tolist()]
        assert np.exp(found.logp_N) == pytest.approx(every)


def test_entropy_counts_impossible_tokens_as_nothing():
    with np.errstate(divide="ignore"):
        logp_TV = np.log([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert entropy(logp_TV).tolist() == pytest.approx([np.log(2), 0.0])


# ------------------------------------------------------------------------- among what is allowed


def test_among_impossible_tokens_all_are_equally_likely():
    raw_2A = np.array([[-np.inf, -np.inf], [-1.0, -np.inf]])
    found = among(raw_2A, np.array([[5, 4], [5, 4]]), np.array([False, False]))
    assert found.probability_NA is not None
    assert found.probability_NA.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert found.token_N.tolist() == [4, 5]  # the lowest id of equals
    assert found.sure_N.tolist() == pytest.approx([0.0, np.exp(-1.0)])


def test_a_strength_is_the_level_nearest_to_the_expected_one():
    raw_1A = np.log([[0.3, 0.01, 0.01, 0.28, 0.0001]])  # the mode is level 0
    tokens_1A = np.array([[20, 19, 18, 17, 16]])
    found = among(raw_1A, tokens_1A, np.array([True]))
    share_A = np.exp(raw_1A[0]) / np.exp(raw_1A[0]).sum()
    expected = float(share_A @ np.arange(5))
    assert found.level_N == pytest.approx([expected])
    assert round(expected) == 1
    assert found.token_N.tolist() == [19]
    assert found.sure_N == pytest.approx([0.3 + 0.01 + 0.01])  # the level and its neighbours
    sampled = among(raw_1A, tokens_1A, np.array([True]), 2.0, np.array([0.0]))
    assert sampled.token_N.tolist() == [20]
    assert sampled.level_N == pytest.approx([expected])  # whatever the temperature


@st.composite
def sets_of_tokens(draw):
    size = draw(st.integers(1, 6))
    values = st.sampled_from([-np.inf, -9.0, -2.0, -1.5, -0.5])
    raw = draw(st.lists(values, min_size=size, max_size=size))
    tokens = draw(st.permutations(range(VOCAB)))[:size]
    return raw, tokens, draw(st.booleans())


@given(st.lists(sets_of_tokens(), min_size=1, max_size=4), st.sampled_from([0.0, 0.4, 1.0]))
@settings(max_examples=200, deadline=None)
def test_among_is_the_reference_choice(cases, temperature):
    width = max(len(raw) for raw, _, _ in cases)
    raw_NA = np.full((len(cases), width), -np.inf)
    tokens_NA = np.full((len(cases), width), NO_TOKEN)
    for n, (raw, tokens, _) in enumerate(cases):
        raw_NA[n, : len(raw)], tokens_NA[n, : len(raw)] = raw, tokens
    uniform_N = np.linspace(0.1, 0.9, len(cases))
    scale_N = np.array([scale for _, _, scale in cases])
    found = among(raw_NA, tokens_NA, scale_N, temperature, uniform_N if temperature else None)
    for n, (raw, tokens, scale) in enumerate(cases):
        logp_V = torch.full((VOCAB,), -torch.inf)
        logp_V[list(tokens)] = torch.tensor(raw)
        wanted = reference.choose(logp_V, tokens, scale, temperature, float(uniform_N[n]))
        assert found.token_N[n] == wanted.token
        assert found.logp_N[n] == pytest.approx(wanted.logp, abs=1e-6)
        assert found.sure_N[n] == pytest.approx(wanted.confidence, abs=1e-6)
        assert found.level_N[n] == pytest.approx(wanted.level, abs=1e-6, nan_ok=True)


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
