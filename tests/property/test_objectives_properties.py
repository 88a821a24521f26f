"""Noise, replay states, frontier, rewards and advantages, over arbitrary inputs."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.objectives.divergence import divergence, kl
from diffgr2.objectives.likelihood import chosen_logp, entropy_of
from diffgr2.objectives.noise import T_MIN, complement, frontier, noise_mask, replay_state
from diffgr2.objectives.policy import (
    INVALID,
    advantages,
    clipped_objective,
    overlong_penalty,
    reward,
)
from diffgr2.stages.noisy import Realised, rounds_of
from diffgr2.stages.opd import one_state_per_block
from diffgr2.types import NEVER

shares = st.floats(0, 1)
seeds = st.integers(0, 2**32)


@st.composite
def blocks(draw) -> np.ndarray:
    """Block numbers as a response has them: rising, the first block cut by the prompt."""
    size, length = draw(st.integers(1, 9)), draw(st.integers(1, 40))
    return (np.arange(length) + draw(st.integers(0, size - 1))) // size


@st.composite
def trajectories(draw) -> tuple[np.ndarray, np.ndarray]:
    """(step, block) as a block decoder leaves them: blocks in turn, the last one maybe open.

    Steps below 0 are what a grammar settled before the first forward; a whole block may be that.
    """
    block_R = draw(blocks())
    rng = np.random.default_rng(draw(seeds))
    step_R = np.full(len(block_R), NEVER)
    step_R[rng.random(len(block_R)) < draw(st.sampled_from([0.0, 0.3, 0.8]))] = -1
    now = 0
    for block in np.unique(block_R):
        members = rng.permutation(np.flatnonzero((block_R == block) & (step_R == NEVER)))
        if not len(members):
            continue
        last = block == block_R[-1]
        keep = rng.integers(1, len(members) + 1) if last else len(members)
        for group in np.array_split(members[:keep], rng.integers(1, keep + 1)):
            step_R[group] = now
            now += 1
        now += int(rng.integers(0, 2))  # an unfused commit takes a forward of its own
    return step_R, block_R


# -------------------------------------------------------------------------------------------- noise


@given(blocks(), shares, seeds)
@settings(max_examples=200, deadline=None)
def test_a_pair_of_noisy_copies_masks_every_token_exactly_once(block_R, share, seed):
    masked_R, level_R = noise_mask(block_R, share, np.random.default_rng(seed))
    other_R, other_level_R = complement(masked_R, level_R)
    assert (masked_R ^ other_R).all()
    for level in (level_R, other_level_R):
        assert ((level >= T_MIN) & (level <= 1)).all()
    for block in np.unique(block_R):
        members = block_R == block
        assert masked_R[members].any()
        assert len(np.unique(level_R[members])) == 1
        if level_R[members][0] == 1.0:
            assert masked_R[members].all()


@given(blocks(), seeds)
@settings(max_examples=50, deadline=None)
def test_noise_is_a_function_of_its_generator(block_R, seed):
    first, second = (noise_mask(block_R, 0.3, np.random.default_rng(seed)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@given(blocks(), seeds)
@settings(max_examples=50, deadline=None)
def test_a_share_of_one_masks_everything(block_R, seed):
    masked_R, level_R = noise_mask(block_R, 1.0, np.random.default_rng(seed))
    assert masked_R.all()
    assert (level_R == 1).all()
    assert not complement(masked_R, level_R)[0].any()


def test_the_share_of_fully_masked_blocks_and_of_masked_tokens_is_as_asked():
    rng = np.random.default_rng(0)
    block_R = np.arange(40_000) // 8
    for share in (0.0, 0.3, 0.7):
        masked_R, level_R = noise_mask(block_R, share, rng)
        full = (level_R[::8] == 1.0).mean()
        assert abs(full - share) < 0.03
        # Uniform levels above T_MIN mask (1 + T_MIN) / 2 of the rest.
        wanted = share + (1 - share) * (1 + T_MIN) / 2
        assert abs(masked_R.mean() - wanted) < 0.02


# ------------------------------------------------------------------------------- realised states


def state_of(step_R: np.ndarray, block_R: np.ndarray, seed: int) -> np.ndarray:
    """Masked [R] of one state per block, without free text."""
    rounds, n = rounds_of(step_R, block_R), len(step_R)
    text = Realised(np.zeros(n, dtype=np.int64), step_R, block_R, 0, rounds, -1, n, n)
    masked_R, there_R = one_state_per_block(text, np.random.default_rng(seed))
    assert there_R.all()
    return masked_R


@given(trajectories(), seeds)
@settings(max_examples=200, deadline=None)
def test_one_state_per_block_is_a_state_that_the_decoder_saw(trajectory, seed):
    step_R, block_R = trajectory
    masked_R = state_of(step_R, block_R, seed)
    assert not masked_R[step_R < 0].any()
    for block in np.unique(block_R):
        members = block_R == block
        own = step_R[members]
        seen = [(own >= step).tolist() for step in np.unique(own[(own >= 0) & (own < NEVER)])]
        # A block that was given as a whole, or never reached, has no state to draw.
        assert masked_R[members].tolist() in (seen or [[False] * int(members.sum())])


@given(trajectories())
@settings(max_examples=100, deadline=None)
def test_replaying_from_the_first_step_masks_all_decisions_and_each_step_uncovers_its_own(
    trajectory,
):
    step_R, _ = trajectory
    assert np.array_equal(replay_state(step_R, 0), step_R >= 0)
    made_R = step_R < NEVER
    for step in range(int(step_R[made_R].max(initial=-1)) + 1):
        gone_R = replay_state(step_R, step) & ~replay_state(step_R, step + 1)
        assert np.array_equal(gone_R, step_R == step)


@given(trajectories(), seeds)
@settings(max_examples=200, deadline=None)
def test_the_frontier_has_only_masked_positions_with_no_commit_behind(trajectory, seed):
    """What the grammar gave is no commit: the teacher knows it, too."""
    step_R, block_R = trajectory
    masked_R = state_of(step_R, block_R, seed)
    given_R = step_R < 0
    ahead_R = frontier(masked_R, block_R, given_R)
    plain_R = frontier(masked_R, block_R)
    for at in range(len(step_R)):
        behind = (block_R == block_R[at]) & (np.arange(len(step_R)) > at)
        assert ahead_R[at] == (masked_R[at] and (masked_R | given_R)[behind].all())
        assert plain_R[at] == (masked_R[at] and masked_R[behind].all())


# ------------------------------------------------------------------------------------ rewards


orders = st.integers(2, 12).flatmap(
    lambda k: st.tuples(st.permutations(range(k)), st.integers(0, k - 1))
)


@given(orders, st.floats(0, 2))
def test_a_valid_answer_never_earns_less_than_an_invalid_one(order_target, alpha):
    order, target = order_target
    k = len(order)
    value = reward(order, (), target, k, alpha)
    assert value > INVALID
    assert value <= 1 + alpha
    assert reward(order, ("missing",), target, k, alpha) == INVALID


@given(orders, st.floats(0.01, 2))
def test_only_a_gain_or_a_kept_first_place_earns_the_format_reward(order_target, alpha):
    order, target = order_target
    k, after = len(order), list(order).index(target)
    bonus = reward(order, (), target, k, alpha) - (target - after) / k
    earned = after < target or target == after == 0
    assert abs(bonus - alpha * earned) < 1e-9
    copied = reward(list(range(k)), (), target, k, alpha)
    assert abs(copied - alpha * (target == 0)) < 1e-9  # copying the order gains nothing


@given(orders, st.floats(0, 2))
def test_a_better_place_never_earns_less(order_target, alpha):
    order, target = order_target
    k = len(order)
    others = [x for x in order if x != target]
    values = [reward([*others[:at], target, *others[at:]], (), target, k, alpha) for at in range(k)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == k


worths = st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=2, max_size=9).filter(any)


@given(worths, st.floats(0, 2), st.data())
def test_with_gains_a_better_list_never_earns_less(gains, alpha, data):
    k, target = len(gains), gains.index(max(gains))
    order = data.draw(st.permutations(range(k)))
    value = reward(order, (), target, k, alpha, gains)
    assert INVALID < value <= 1 + alpha
    at = data.draw(st.integers(0, k - 2))
    if gains[order[at]] < gains[order[at + 1]]:  # what is worth more moves up
        better = [*order[:at], order[at + 1], order[at], *order[at + 2 :]]
        assert reward(better, (), target, k, alpha, gains) > value
    copied = reward(list(range(k)), (), target, k, alpha, gains)
    assert copied == alpha * (gains == sorted(gains, reverse=True))


@given(st.integers(1, 200), st.integers(0, 200), st.integers(0, 300))
def test_overlong_shaping_falls_from_0_to_minus_1(limit, cache, length):
    cache = min(cache, limit)
    value = overlong_penalty(length, limit, cache)
    assert -1 <= value <= 0
    assert overlong_penalty(length + 1, limit, cache) <= value
    assert (value == 0) == (length <= limit - cache)


@given(
    st.integers(2, 9).flatmap(
        lambda g: st.lists(
            st.lists(st.sampled_from([-1.0, -0.4, 0.0, 0.2, 1.1]), min_size=g, max_size=g),
            min_size=1,
            max_size=5,
        )
    )
)
def test_advantages_sum_to_0_keep_the_order_and_ignore_a_shift(rewards):
    reward_PG = np.array(rewards)
    advantage_PG, kept_P = advantages(reward_PG)
    np.testing.assert_allclose(advantage_PG.sum(1), 0, atol=1e-9)
    assert kept_P.tolist() == [len(set(row)) > 1 for row in rewards]
    assert not advantage_PG[~kept_P].any()
    for row, advantage in zip(reward_PG, advantage_PG, strict=True):
        order = np.argsort(row, kind="stable")
        assert (np.diff(advantage[order]) >= -1e-12).all()
    np.testing.assert_allclose(advantages(reward_PG + 3)[0], advantage_PG, atol=1e-9)


# ----------------------------------------------------------------------------- distributions


logits = st.lists(st.floats(-30, 30), min_size=2, max_size=8)


@given(logits, seeds)
@settings(deadline=None)
def test_divergences_are_finite_not_negative_and_0_for_equals(values, seed):
    teacher_NV = torch.tensor([[*values, -torch.inf]]).double()  # the mask token
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=len(values)))
    student_NV = teacher_NV.clone()
    student_NV[0, :-1] += noise
    t_NV, s_NV = torch.log_softmax(teacher_NV, -1), torch.log_softmax(student_NV, -1)
    for kind in ("forward", "reverse", "jsd"):
        value = float(divergence(t_NV, s_NV, kind))
        assert np.isfinite(value)
        assert value >= -1e-9
        assert abs(float(divergence(t_NV, t_NV, kind))) < 1e-9
    assert float(divergence(t_NV, s_NV, "jsd")) <= np.log(2) + 1e-9
    assert float(kl(t_NV, s_NV)) == float(divergence(t_NV, s_NV, "forward"))


@given(logits, seeds)
@settings(deadline=None)
def test_gradients_stay_finite_where_the_mask_token_has_no_probability(values, seed):
    logits_NV = torch.tensor([[*values, 5.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([len(values)])
    hidden_NV = logits_NV.index_fill(-1, mask, -torch.inf)
    target_NV = torch.log_softmax(hidden_NV.detach() * 0.5, -1)
    logp_NV = torch.log_softmax(hidden_NV, -1)
    total = sum(
        divergence(target_NV, logp_NV, kind).sum() for kind in ("forward", "reverse", "jsd")
    )
    total = total + entropy_of(hidden_NV).sum() + chosen_logp(hidden_NV, torch.tensor([0]), 0.7)
    total.sum().backward()
    assert logits_NV.grad is not None
    assert logits_NV.grad.isfinite().all()
    assert logits_NV.grad[0, -1] == 0  # and the mask token learns nothing


@given(st.floats(-50, 50), st.floats(-3, 3), st.floats(0.01, 0.9), st.floats(0.01, 0.9))
def test_the_clipped_objective_is_never_below_the_unclipped_one(gap, advantage, low, high):
    one = torch.zeros(1, dtype=torch.float64)
    loss_N, low_N, high_N = clipped_objective(one + gap, one, one + advantage, low, high)
    ratio = np.exp(np.clip(gap, -10, 10))
    assert float(loss_N) >= -ratio * advantage - 1e-6
    assert not (bool(low_N) and bool(high_N))
    assert bool(low_N) <= (advantage < 0)
    assert bool(high_N) <= (advantage > 0)
