"""Log-probabilities of chosen positions against loops over single tokens, gradients by differences.

Sets of allowed tokens, free text with banned ones, strengths between two levels.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from diffgr2.objectives.likelihood import allowed_logp, between_logp
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import Text, imitation
from support import tiny_stages

V, MASK = 11, 10


def logits_of(number: int, rows: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(number)
    logits_NV = 3 * torch.randn(rows, V, generator=draws, dtype=torch.float64)
    logits_NV[:, MASK] = -torch.inf
    return logits_NV


def case(number: int) -> tuple[list[int], list[list[int]], list[list[int]]]:
    """(targets, allowed tokens or none for free text, banned tokens) of some positions."""
    rng = np.random.default_rng(number)
    targets, sets, bans = [], [], []
    for _ in range(int(rng.integers(1, 9))):
        target, *others = rng.permutation(MASK).tolist()
        free = rng.random() < 0.4
        targets.append(target)
        sets.append([] if free else rng.permutation([target, *others[: rng.integers(5)]]).tolist())
        bans.append(others[: rng.integers(4)] if free else [])
    return targets, sets, bans


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)


def by_hand(row_V: list[float], target: int, own: list[int], banned: list[int], heat: float):
    among = own or [token for token in range(V) if token != MASK and token not in banned]
    total = sum(math.exp(row_V[token] / heat) for token in among)
    return row_V[target] / heat - math.log(total)


@pytest.mark.parametrize("heat", [1.0, 0.5, 1.7])
def test_allowed_log_probabilities_are_those_of_a_loop_over_the_allowed(heat):
    for number in range(200):
        targets, sets, bans = case(number)
        logits_NV = logits_of(number, len(targets)).requires_grad_()
        given = (torch.tensor(targets), padded(sets, -1), padded(bans, MASK))
        found_N = allowed_logp(logits_NV, *given, heat)
        rows = logits_NV.tolist()
        wanted = [by_hand(*parts, heat) for parts in zip(rows, targets, sets, bans, strict=True)]
        assert found_N.tolist() == pytest.approx(wanted, abs=1e-9)
        found_N.sum().backward()
        grad_NV = logits_NV.grad
        assert grad_NV is not None
        assert grad_NV.isfinite().all()
        for row, target, own, banned, slope in zip(
            rows, targets, sets, bans, grad_NV.tolist(), strict=True
        ):
            for token in range(V):
                out = token not in own if own else token in (*banned, MASK)
                if out:
                    assert slope[token] == 0  # what may not stand there learns nothing
                    continue
                chance = math.exp(by_hand(row, token, own, banned, heat))
                assert slope[token] == pytest.approx(((token == target) - chance) / heat, abs=1e-9)


def test_temperature_0_scores_as_1_and_a_forced_token_is_certain():
    logits_NV, target_N = logits_of(1, 3), torch.tensor([4, 2, 7])
    sets_NA, bans_NB = padded([[4], [2, 3], []], -1), torch.empty(3, 0, dtype=torch.long)
    zero_N = allowed_logp(logits_NV, target_N, sets_NA, bans_NB, 0.0)
    assert torch.equal(zero_N, allowed_logp(logits_NV, target_N, sets_NA, bans_NB, 1.0))
    assert float(zero_N[0]) == 0.0
    assert float(zero_N[2]) == pytest.approx(by_hand(logits_NV[2].tolist(), 7, [], [], 1.0))


def test_a_target_between_two_tokens_is_both_to_its_share():
    for number in range(100):
        rng, rows = np.random.default_rng(number), 1 + number % 6
        logits_NV = logits_of(number, rows).requires_grad_()
        target_N = torch.from_numpy(rng.integers(0, MASK, rows))
        other_N = torch.from_numpy(rng.integers(0, MASK, rows))
        share_N = torch.from_numpy(rng.choice([0.0, 0.25, 0.9, 1.0], rows))
        other_N[share_N == 0] = MASK  # never looked at: −inf there must not reach the loss
        found_N = between_logp(logits_NV, target_N, other_N, share_N)
        (-found_N.sum()).backward()
        assert logits_NV.grad is not None
        for row_V, t, o, w, found, slope_V in zip(
            logits_NV.tolist(),
            *(part.tolist() for part in (target_N, other_N, share_N, found_N)),
            logits_NV.grad.tolist(),
            strict=True,
        ):
            total = math.log(sum(math.exp(x) for x in row_V))
            wanted = (1 - w) * (row_V[t] - total) + (w * (row_V[o] - total) if w else 0)
            assert found == pytest.approx(wanted, abs=1e-9)
            for token, slope in enumerate(slope_V):
                hot = (1 - w) * (token == t) + w * (token == o)
                assert slope == pytest.approx(math.exp(row_V[token] - total) - hot, abs=1e-9)


def test_the_loss_is_least_where_the_distribution_has_the_taught_mean():
    """Two-hot targets average to the level: at the minimum the model says it exactly."""
    level, logits_1V = 2.3, torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    given = (torch.tensor([2]), torch.tensor([3]), torch.tensor([level - 2]).double())
    optimizer = torch.optim.Adam([logits_1V], lr=0.3)
    for _ in range(400):
        optimizer.zero_grad()
        (-between_logp(logits_1V, *given).sum()).backward()
        optimizer.step()
    mean = float((torch.softmax(logits_1V.detach(), -1) * torch.arange(4)).sum())
    assert mean == pytest.approx(level, abs=1e-2)


# ----------------------------------------------------------------------------------------- SFT


def test_sft_loss_is_a_loop_over_tokens_with_strengths_between_their_levels():
    task, config = tiny_stages.sft_task(rows=8, direct=0.4, reasoning_weight=0.25)
    shop, net = task.corpus, tiny_stages.fresh(4).eval()
    soft = {
        split: type(t)(t.row_N, np.clip(t.level_NK - 0.35, 0, None), t.cites_NKC)
        for split, t in shop.traces.items()
    }
    task.corpus = type(shop)(**{**vars(shop), "traces": soft})
    texts = [task.text(n, 1, n) for n in range(8)]
    micro = imitation(texts, (0.25, 1.0), shop.vocab.pad_id)
    with torch.no_grad():
        loss = task.loss(net, micro)
    total, between = 0.0, 0
    for text in texts:
        total_of_text, found = one_by_one(net, text, (config.reasoning_weight, 1.0))
        total, between = total + total_of_text, between + found
    assert between > 8
    assert float(loss.total) == pytest.approx(total, rel=1e-5)
    assert micro.count == pytest.approx(
        sum(0.25 if kind == REASONING else 1.0 for text in texts for kind in text.kind)
    )


@torch.no_grad()
def one_by_one(net, text: Text, weights: tuple[float, float]) -> tuple[float, int]:
    """(weighted loss, targets between two levels) of one text, token after token."""
    vocab, total, between = tiny_stages.vocabulary(), 0.0, 0
    assert text.other is not None
    assert text.share is not None
    for at, token in enumerate(text.response):
        ids = [*text.prompt, *text.response[:at]]
        logits_V = net(torch.tensor([ids])).logits[0, -1].double()
        logits_V[vocab.mask_id] = -torch.inf
        logp_V = torch.log_softmax(logits_V, -1)
        share, other = text.share[at], text.other[at]
        mean = (1 - share) * float(logp_V[token]) + share * float(logp_V[other])
        level = vocab.strength_of(token)
        assert (level is not None) or share == 0
        assert (text.kind[at] == ANSWER) or level is None
        between += 0 < share < 1
        total -= weights[text.kind[at]] * mean
    return total, between
