"""Preference optimisation: bounds without bias, draws that vary less, a loss by hand, learning."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.objectives.preference import bound_masks, bounds, preference_loss
from diffgr2.stages.preferring import PreferenceTask, pairs_of
from diffgr2.stages.rollouts import Rollout
from support import tiny_stages


def worth(masked: frozenset[int], at: int) -> float:
    """A log-probability that depends on all that is masked, as a model's does."""
    return -0.3 * (at + 1) - 0.2 * len(masked) + 0.05 * sum(masked)


def exact(size: int) -> float:
    """The bound of one block of `size` open tokens, over every mask there is."""
    total = 0.0
    for count in range(1, size + 1):
        sets = [frozenset(own) for own in combinations(range(size), count)]
        means = [sum(worth(own, at) for at in own) * size / count for own in sets]
        total += float(np.mean(means)) / size
    return total


def estimate(rng: np.random.Generator, size: int, draws: int, antithetic: bool) -> float:
    masked_CR, weight_CR = bound_masks(
        np.zeros(size, int), np.ones(size, dtype=bool), draws, rng, antithetic
    )
    return sum(
        weight_CR[c, at] * worth(frozenset(np.flatnonzero(masked_R).tolist()), at)
        for c, masked_R in enumerate(masked_CR)
        for at in np.flatnonzero(masked_R).tolist()
    )


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_bound_is_estimated_without_bias(antithetic: bool, draws: int) -> None:
    rng = np.random.default_rng(draws)
    found = [estimate(rng, 4, draws, antithetic) for _ in range(4_000)]
    error = np.std(found) / len(found) ** 0.5
    assert np.mean(found) == pytest.approx(exact(4), abs=4 * error)


def test_pairs_of_draws_vary_less_than_draws() -> None:
    rng = np.random.default_rng(0)
    spread = {
        antithetic: np.var([estimate(rng, 6, 2, antithetic) for _ in range(3_000)])
        for antithetic in (False, True)
    }
    assert spread[True] < 0.7 * spread[False]


@given(st.integers(1, 12), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))
@settings(max_examples=60)
def test_masks_hide_what_is_open_and_pairs_cover_it(
    size: int, draws: int, antithetic: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    block_R, open_R = np.arange(size) // 3, rng.random(size) < 0.7
    masked_CR, weight_CR = bound_masks(block_R, open_R, draws, rng, antithetic)
    assert not masked_CR[:, ~open_R].any()
    assert ((weight_CR > 0) == masked_CR).all()
    for block in np.unique(block_R):
        own = np.flatnonzero((block_R == block) & open_R)
        if len(own):  # a copy masks something, and its weights sum to the tokens it stands for
            np.testing.assert_allclose(weight_CR[:, own].sum(1) * draws, len(own))
            if antithetic and draws > 1:
                assert (masked_CR[0, own] | masked_CR[1, own]).all()


def test_a_loss_by_hand() -> None:
    policy_P2 = torch.tensor([[1.0, -2.0], [0.0, 0.0]], requires_grad=True)
    loss_P, margin_P = preference_loss(policy_P2, torch.tensor([[-1.0, -1.0], [0.0, 0.0]]), 0.5)
    assert margin_P.tolist() == [1.5, 0.0]
    assert loss_P.tolist() == pytest.approx([0.201413, np.log(2.0)], abs=1e-6)
    loss_P.sum().backward()
    assert policy_P2.grad is not None
    assert policy_P2.grad[1].tolist() == pytest.approx([-0.25, 0.25])  # β σ(0), either way
    text_N = torch.tensor([0, 1, 0])
    found = bounds(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([2.0, 1.0, 0.5]), text_N, 3)
    assert found.tolist() == [-3.5, -2.0, 0.0]


def task_of(noise: str, **changes: object) -> PreferenceTask:
    reference = tiny_stages.model("block").eval().requires_grad_(False)
    how = {"prompts": 4, "group": 4, "draws": 4, "noise": noise, **changes}
    return tiny_stages.preference_task(reference, **how)[0]


def rolled(task: PreferenceTask) -> list[tuple[Rollout, Rollout]]:
    rollouts, _ = task.roller.collect(1, tiny_stages.model("block"))
    return pairs_of(rollouts, task.config.group)


def test_best_and_worst_of_a_group_are_its_pair() -> None:
    task = task_of("shared")
    pairs = rolled(task)
    assert pairs
    assert all(best.reward > worst.reward for best, worst in pairs)
    rollouts, _ = task.roller.collect(1, tiny_stages.model("block"))
    groups = [rollouts[at : at + 4] for at in range(0, len(rollouts), 4)]
    assert [best.reward for best, _ in pairs] == [max(r.reward for r in g) for g in groups]


def margins(task: PreferenceTask, net: torch.nn.Module, pairs: list, count: int) -> np.ndarray:
    """(draws, pairs): the difference of both models' bounds, under fresh masks each time."""
    n, mask_id = 2 * len(pairs), task.roller.corpus.vocab.mask_id
    found = []
    with torch.no_grad():
        for number in range(count):
            micro = task.micro(pairs, (99, number))
            policy_P2 = micro.policy.bound(net, mask_id, n).view(-1, 2)
            reference_P2 = micro.reference.bound(task.reference, mask_id, n).view(-1, 2)
            gain_P2 = (policy_P2 - reference_P2).numpy()
            found.append(gain_P2[:, 0] - gain_P2[:, 1])
    return np.stack(found)


def test_shared_masks_vary_far_less_than_masks_of_their_own() -> None:
    """A policy a little away from its reference, the same forwards for each kind of noise."""
    net = tiny_stages.model("block").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.01 * parameter.std() * noise
    spread, mean, pairs = {}, {}, rolled(task_of("shared"))
    for noise in ("plain", "shared", "antithetic"):
        found = margins(task_of(noise, draws=2), net, pairs, 100)
        spread[noise], mean[noise] = float(found.var(0).mean()), float(found.mean())
    assert spread["shared"] < 0.3 * spread["plain"]
    assert spread["antithetic"] < 0.3 * spread["plain"]
    error = 4 * float(spread["plain"] / 100 / len(pairs)) ** 0.5
    assert mean["plain"] == pytest.approx(mean["shared"], abs=error)


def test_the_reference_itself_has_no_margin_under_shared_masks() -> None:
    task = task_of("antithetic")
    pairs = rolled(task)
    micro = task.micro(pairs, (1, 0))
    loss = task.loss(tiny_stages.model("block").eval(), micro)
    assert float(loss.total.detach()) == pytest.approx(len(pairs) * np.log(2.0), rel=1e-5)
    assert micro.count == len(pairs)


def test_training_prefers_what_was_rewarded() -> None:
    reference = tiny_stages.model("block").eval().requires_grad_(False)
    how = {"prompts": 4, "group": 4, "epochs": 4, "micro_rows": 8, "lr": 2e-3, "warmup": 1}
    task, config = tiny_stages.preference_task(reference, steps=16, **how)
    lines = tiny_stages.quietly(task, tiny_stages.model("block"), config)
    margin = [line["preference/margin"] for line in lines if "preference/margin" in line]
    assert len(margin) == 16
    # Every four steps learn from pairs of their own, new ones each time.
    rises = [last - first for first, last in zip(margin[::4], margin[3::4], strict=True)]
    assert np.mean(rises) > 0.1
    assert sum(rise > 0 for rise in rises) >= 3
