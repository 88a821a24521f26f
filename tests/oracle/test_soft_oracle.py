"""Soft targets against a slow loop over lists, against finite differences, and at their optimum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.objectives.soft import expected_levels, listwise_kl

S = 5


def slow(logits_MS: torch.Tensor, wanted: list[float], lists: list[int], step: float) -> list[float]:
    """Plain arithmetic, list by list."""
    found = []
    for number in sorted(set(lists)):
        own = [m for m, of in enumerate(lists) if of == number]
        levels = []
        for m in own:
            weights = [math.exp(x) for x in logits_MS[m].tolist()]
            levels.append(sum(v * w for v, w in enumerate(weights)) / sum(weights))

        def chances(values: list[float]) -> list[float]:
            raised = [math.exp(step * value) for value in values]
            return [value / sum(raised) for value in raised]

        p, q = chances([wanted[m] for m in own]), chances(levels)
        found.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    return found


def case(seed: int, lists: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    logits_MS = 2 * torch.randn(len(lists), S, generator=draws, dtype=torch.float64)
    return logits_MS, (S - 1) * torch.rand(len(lists), generator=draws, dtype=torch.float64)


@given(
    st.integers(0, 10_000),
    st.lists(st.sampled_from([0, 3, 4, 11]), min_size=1, max_size=20),
    st.floats(0.05, 2.0),
)
def test_it_is_a_loop_over_lists_of_any_length_in_any_order(seed, lists, step) -> None:
    logits_MS, wanted_M = case(seed, lists)
    found_Q = listwise_kl(expected_levels(logits_MS), wanted_M, torch.tensor(lists), step)
    assert found_Q.tolist() == pytest.approx(
        slow(logits_MS, wanted_M.tolist(), lists, step), abs=1e-9
    )
    assert (found_Q >= -1e-12).all()


def test_lists_do_not_meet() -> None:
    """Several lists at once are what each is by itself."""
    lists = [0, 0, 0, 1, 1, 2, 2, 2, 2]
    logits_MS, wanted_M = case(1, lists)
    list_M = torch.tensor(lists)
    together_Q = listwise_kl(expected_levels(logits_MS), wanted_M, list_M, 0.4)
    for number in range(3):
        own_M = list_M == number
        alone_Q = listwise_kl(
            expected_levels(logits_MS[own_M]), wanted_M[own_M], list_M[own_M], 0.4
        )
        assert alone_Q.item() == pytest.approx(together_Q[number].item(), abs=1e-12)


def test_gradients_are_finite_differences() -> None:
    lists = [0, 0, 0, 1, 2, 2]
    logits_MS, wanted_M = case(2, lists)

    def total(logits_MS: torch.Tensor) -> torch.Tensor:
        return listwise_kl(expected_levels(logits_MS), wanted_M, torch.tensor(lists), 0.7).sum()

    assert torch.autograd.gradcheck(total, logits_MS.requires_grad_())
    total(logits_MS).backward()
    grad_MS = logits_MS.grad
    assert grad_MS is not None
    assert (grad_MS[3] == 0).all(), "a single candidate is first whatever is said"


def test_it_is_zero_and_flat_where_all_strengths_are_the_teachers_or_shifted_alike() -> None:
    level_M = torch.tensor([1.0, 3.0, 2.5, 0.5], dtype=torch.float64, requires_grad=True)
    for shift in (0.0, 0.75):
        found_Q = listwise_kl(level_M, level_M.detach() + shift, torch.tensor([0, 0, 0, 0]), 0.3)
        assert found_Q.item() == pytest.approx(0.0, abs=1e-12)
        (grad_M,) = torch.autograd.grad(found_Q.sum(), level_M)
        assert grad_M.abs().max() < 1e-12


def test_nothing_said_is_no_list() -> None:
    nothing_M = torch.zeros(0)
    assert listwise_kl(nothing_M, nothing_M, nothing_M.long(), 1.0).shape == (0,)


def test_levels_stay_exact_where_products_are_rounded() -> None:
    """Autocast rounds products of matrices; a level in bf16 would be a level short."""
    logits_MS = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rounded_M = expected_levels(logits_MS)
    assert torch.allclose(rounded_M, expected_levels(logits_MS), atol=1e-5)
