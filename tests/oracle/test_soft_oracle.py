"""Soft targets against a slow loop over lists, against finite differences, and at their optimum."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.objectives.soft import expected_levels, listwise_kl
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import Text
from diffgr2.stages.sft import SftTask
from support import tiny_stages

S = 5


def slow(
    logits_MS: torch.Tensor, wanted: list[float], lists: list[int], step: float
) -> list[float]:
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


# ----------------------------------------------------------------------------------------- SFT


def sft(**changes) -> SftTask:
    """The tiny stage, whose teacher's levels lie between two."""
    task, _ = tiny_stages.sft_task(
        **{"rows": 10, "direct": 0.4, "vary": 0.7, "hide": 0.3, **changes}
    )
    shop = task.corpus
    between = {
        split: type(t)(t.row_N, np.clip(t.level_NK - 0.35, 0, None), t.cites_NKC)
        for split, t in shop.traces.items()
    }
    task.corpus = replace(shop, traces=between)
    return task


@torch.no_grad()
def text_by_text(net, task: SftTask, text: Text) -> float:
    """A text's loss, token after token, and its list's ranking."""
    vocab, config = task.corpus.vocab, task.config
    total, wanted, logits = 0.0, [], []
    assert text.other is not None
    assert text.share is not None
    for at, token in enumerate(text.response):
        ids = torch.tensor([[*text.prompt, *text.response[:at]]])
        logits_V = net(ids).logits[0, -1].double()
        logits_V[vocab.mask_id] = -torch.inf
        logp_V = torch.log_softmax(logits_V, -1)
        share = text.share[at]
        nll = -(1 - share) * logp_V[token] - share * logp_V[text.other[at]]
        weight = {REASONING: config.reasoning_weight, ANSWER: config.answer_weight}[text.kind[at]]
        level = vocab.strength_of(token)
        if level is not None:
            weight *= config.level_weight
            wanted.append(level + share)
            first = vocab.strength_id(0)
            logits.append(logits_V[first : first + vocab.spec.strengths])
        total += weight * float(nll if share else -logp_V[token])
    if wanted:
        (kl,) = slow(torch.stack(logits), wanted, [0] * len(wanted), task.corpus.step)
        total += config.soft_weight * config.answer_weight * len(wanted) * kl
    return total


def test_sft_learns_whole_lists_in_the_same_forward_and_a_batch_is_its_texts() -> None:
    """Lists of several lengths, shuffled, some without evidence, some without reasoning or
    strengths."""
    task = sft(soft_weight=2.0, level_weight=0.3, answer_weight=1.5, reasoning_weight=0.25)
    net = tiny_stages.fresh(4).eval()
    texts = [task.text(n, 1, n) for n in range(10)]
    first, count = task.corpus.vocab.strength_id(0), task.corpus.vocab.spec.strengths
    ranks = [sum(first <= token < first + count for token in text.response) for text in texts]
    assert len(set(ranks)) > 2
    assert 0 in ranks, "a permutation alone states no strength"
    with torch.no_grad():
        whole = task.loss(net, task.micro(texts))
        alone = [task.loss(net, task.micro([text])) for text in texts]
    wanted = [text_by_text(net, task, text) for text in texts]
    assert [float(one.total) for one in alone] == pytest.approx(wanted, rel=1e-4)
    assert float(whole.total) == pytest.approx(sum(wanted), rel=1e-4)
    kl, lists = whole.metrics["ranking/kl"]
    assert lists == sum(rank > 0 for rank in ranks)
    assert float(kl) == pytest.approx(
        sum(float(one.metrics["ranking/kl"][0]) for one in alone if "ranking/kl" in one.metrics),
        rel=1e-4,
    )


def test_without_soft_targets_levels_weigh_what_answers_do() -> None:
    plain, soft = sft(), sft(soft_weight=1.0, level_weight=0.3)
    texts = [plain.text(n, 1, n) for n in range(10)]
    one, two = plain.micro(texts), soft.micro(texts)
    at_M = one.strengths.at_M
    np.testing.assert_allclose(two.weight_N[at_M], 0.3 * one.weight_N[at_M])
    rest_N = torch.ones(len(one.weight_N), dtype=torch.bool)
    rest_N[at_M] = False
    assert torch.equal(two.weight_N[rest_N], one.weight_N[rest_N])
    assert torch.equal(two.strengths.weight_M, one.weight_N[at_M]), "a ranking weighs them whole"
    with torch.no_grad():
        assert "ranking/kl" not in plain.loss(tiny_stages.fresh(4).eval(), one).metrics


def test_sft_with_soft_targets_learns_the_ranking_and_the_levels() -> None:
    task = sft(steps=60, lr=1e-2, rows=16, hide=0.0, soft_weight=3.0, level_weight=0.3)
    lines = tiny_stages.quietly(task, tiny_stages.fresh(), task.config)
    assert np.mean([line["ranking/kl"] for line in lines[-10:]]) < 0.4 * lines[0]["ranking/kl"]
    assert lines[-1]["answer/loss"] < 0.5 * lines[0]["answer/loss"]
