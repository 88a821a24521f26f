"""Policy loss, advantages, divergences and rewards against hand arithmetic and TRL's own code.

TRL's trainer is built for real on a tiny model; only what it would sample, and for the random cases
what its model would score, is given to it.
"""

from __future__ import annotations

import math
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.objectives.divergence import divergence
from diffgr2.objectives.policy import advantages, clipped_objective, overlong_penalty, reward
from support import tiny_stages

LOW, HIGH = 0.2, 0.28
CASES = 500


def case(number: int) -> dict[str, torch.Tensor]:
    """Ragged rows in double precision; ratios on both sides of both clips, some exactly 1."""
    draws = torch.Generator().manual_seed(number)
    rows, width = 1 + number % 7, 1 + number % 11
    old_BT = -3 * torch.rand(rows, width, generator=draws, dtype=torch.float64)
    gap_BT = 0.5 * torch.randn(rows, width, generator=draws, dtype=torch.float64)
    gap_BT[torch.rand(rows, width, generator=draws) < 0.2] = 0.0
    advantage_B = torch.randn(rows, generator=draws, dtype=torch.float64)
    advantage_B[torch.rand(rows, generator=draws) < 0.1] = 0.0
    length_B = torch.randint(1, width + 1, (rows,), generator=draws)
    length_B[0] = width
    mask_BT = (torch.arange(width) < length_B[:, None]).long()
    return {"old": old_BT, "new": old_BT + gap_BT, "advantage": advantage_B, "mask": mask_BT}


def ours(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, float, float]:
    """(loss over all tokens, its gradient, clipped-low share, clipped-high share)."""
    new_BT = given["new"].clone().requires_grad_()
    keep_BT = given["mask"].bool()
    advantage_BT = given["advantage"][:, None].expand_as(keep_BT)
    loss_N, low_N, high_N = clipped_objective(
        new_BT[keep_BT], given["old"][keep_BT], advantage_BT[keep_BT], LOW, HIGH
    )
    loss = loss_N.sum() / len(loss_N)  # the loop divides by the global count of tokens
    loss.backward()
    assert new_BT.grad is not None
    return loss.detach(), new_BT.grad, float(low_N.double().mean()), float(high_N.double().mean())


def test_the_clipped_objective_is_hand_arithmetic():
    clipped = 0
    for number in range(CASES):
        given = case(number)
        loss, grad_BT, low, high = ours(given)
        total, below, above, n = 0.0, 0, 0, 0
        expected = np.zeros(grad_BT.shape)
        for b, t in np.argwhere(given["mask"].numpy()):
            ratio = math.exp(float(given["new"][b, t]) - float(given["old"][b, t]))
            a = float(given["advantage"][b])
            bound = min(max(ratio, 1 - LOW), 1 + HIGH)
            total -= min(ratio * a, bound * a)
            below += ratio < 1 - LOW and a < 0
            above += ratio > 1 + HIGH and a > 0
            free = not ((ratio < 1 - LOW and a < 0) or (ratio > 1 + HIGH and a > 0))
            expected[b, t] = -ratio * a if free else 0.0
            n += 1
        assert float(loss) == pytest.approx(total / n, abs=1e-9)
        assert (low, high) == (pytest.approx(below / n), pytest.approx(above / n))
        np.testing.assert_allclose(grad_BT.numpy(), expected / n, atol=1e-9)
        clipped += below + above
    assert clipped > CASES  # the clips were at work


def test_a_ratio_beyond_every_use_is_bounded_so_that_no_update_is_infinite():
    far_N = torch.tensor([800.0, -800.0], dtype=torch.float64, requires_grad=True)
    against_N = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    loss_N, _, _ = clipped_objective(far_N, torch.zeros(2).double(), against_N, LOW, HIGH)
    loss_N.sum().backward()
    assert loss_N.isfinite().all()
    assert far_N.grad is not None
    assert far_N.grad.isfinite().all()


def test_advantages_are_hand_arithmetic_and_flat_groups_carry_none():
    draws = np.random.default_rng(0)
    for size in (2, 3, 8, 16):
        reward_PG = draws.choice([-1.0, -0.3, 0.0, 0.2, 0.9], (50, size))
        reward_PG[:5] = reward_PG[:5, :1]
        advantage_PG, kept_P = advantages(reward_PG)
        for row, found, kept in zip(reward_PG.tolist(), advantage_PG, kept_P, strict=True):
            mean = sum(row) / size
            std = math.sqrt(sum((r - mean) ** 2 for r in row) / (size - 1))
            assert kept == (len(set(row)) > 1)
            wanted = [(r - mean) / (std + 1e-4) if kept else 0.0 for r in row]
            np.testing.assert_allclose(found, wanted, atol=1e-9)


def test_the_reward_is_hand_arithmetic_over_all_orders():
    draws = np.random.default_rng(1)
    for _ in range(CASES):
        k = int(draws.integers(2, 11))
        order = draws.permutation(k).tolist()
        target, alpha = int(draws.integers(k)), float(draws.choice([0.0, 0.2, 0.5]))
        before, after = target + 1, order.index(target) + 1
        wanted = (before - after) / k
        if after < before or (before == 1 and after == 1):
            wanted += alpha
        assert reward(order, (), target, k, alpha) == pytest.approx(wanted, abs=1e-12)
        assert reward(order, ("duplicate",), target, k, alpha) == -1.0


def test_the_reward_with_gains_is_hand_arithmetic_over_the_whole_list():
    draws = np.random.default_rng(2)
    for _ in range(CASES):
        k = int(draws.integers(2, 11))
        order = draws.permutation(k).tolist()
        gains = draws.choice([0.0, 0.0, 1.0, 3.0], k).tolist()
        gains[int(draws.integers(k))] = 3.0
        alpha, target = float(draws.choice([0.0, 0.2])), gains.index(3.0)

        def dcg(values: list[float]) -> float:
            return sum(gain / math.log2(place + 2) for place, gain in enumerate(values))

        best = dcg(sorted(gains, reverse=True))
        before, after = dcg(gains) / best, dcg([gains[at] for at in order]) / best
        wanted = after - before
        if wanted > 1e-12 or (before > 1 - 1e-12 and after > 1 - 1e-12):
            wanted += alpha
        assert reward(order, (), target, k, alpha, gains) == pytest.approx(wanted, abs=1e-9)
        assert reward(order, ("missing",), target, k, alpha, gains) == -1.0


def test_divergences_are_hand_arithmetic_where_the_mask_token_has_no_probability():
    teacher_NV = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).double().log()
    student_NV = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.5, 0.25, 0.25, 0.0]]).double().log()
    half = math.log(2)
    forward = divergence(teacher_NV, student_NV, "forward")
    assert forward.tolist() == pytest.approx([0.5 * half - 0.25 * half, half])
    reverse = divergence(teacher_NV[:1], student_NV[:1], "reverse")
    assert reverse.tolist() == pytest.approx([-0.25 * half + 0.5 * half])
    mixture = [0.375, 0.25, 0.375]
    t, s = ([0.5, 0.25, 0.25], [0.25, 0.25, 0.5])
    kl = [sum(p * math.log(p / m) for p, m in zip(x, mixture, strict=True)) for x in (t, s)]
    jsd = divergence(teacher_NV[:1], student_NV[:1], "jsd")
    assert jsd.tolist() == pytest.approx([sum(kl) / 2])


# -------------------------------------------------------------------------------------------- TRL


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip("trl", reason="the oracle TRL is not installed: pip install trl")


REWARDS: list[float] = []


def given_rewards(completions: list[Any], **_: Any) -> list[float]:
    return REWARDS[: len(completions)]


@pytest.fixture(scope="module")
def trainer(trl: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A GRPOTrainer as its constructor makes it, with DAPO's loss and clip-higher."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    vocab = tiny_stages.vocabulary()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=vocab.tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    args = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        loss_type="dapo",
        epsilon=LOW,
        epsilon_high=HIGH,
        beta=0.0,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=1,
        temperature=1.0,
        bf16=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    made = trl.GRPOTrainer(
        model=tiny_stages.fresh(),
        reward_funcs=given_rewards,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": ["soap"] * 4}),
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1  # what `train` sets before its first step
    made.model.train()
    return made


def test_the_loss_its_gradient_and_clip_ratios_equal_trls_on_500_random_cases(trainer):
    for number in range(CASES):
        given = case(number)
        loss, grad_BT, low, high = ours(given)
        new_BT = given["new"].clone().requires_grad_()
        zeros_BT = torch.zeros_like(new_BT)
        trainer._get_per_token_logps_and_entropies = MethodType(
            lambda self, *_, new_BT=new_BT, zeros_BT=zeros_BT, **__: (new_BT, zeros_BT, None),
            trainer,
        )
        rows = len(new_BT)
        prompt_B1 = torch.ones(rows, 1, dtype=torch.long)
        inputs = {
            "prompt_ids": prompt_B1,
            "prompt_mask": prompt_B1,
            "completion_ids": torch.ones_like(given["mask"]),
            "completion_mask": given["mask"],
            "old_per_token_logps": given["old"],
            "advantages": given["advantage"],
            "num_items_in_batch": given["mask"].sum().double(),
        }
        theirs = trainer._compute_loss(trainer.model, inputs)
        theirs.backward()
        del trainer._get_per_token_logps_and_entropies
        assert float(loss) == pytest.approx(float(theirs.detach()), abs=1e-6, rel=1e-6)
        torch.testing.assert_close(grad_BT, new_BT.grad, atol=1e-6, rtol=1e-6)
        metrics = trainer._metrics["train"]
        assert low == pytest.approx(metrics["clip_ratio/low_mean"][-1], abs=1e-6)
        assert high == pytest.approx(metrics["clip_ratio/high_mean"][-1], abs=1e-6)


def test_one_rl_micro_equals_trls_loss_on_the_same_model_and_rollouts(trainer):
    """Model forward, temperature-free log-probabilities, masks, padding and loss, all of it."""
    from diffgr2.stages.rl import Ids, causal_micro

    # TRL knows of no grammar: the plain rule's probabilities are over the whole vocabulary.
    task, _ = tiny_stages.rl_task(group=4, prompts=4, refill=3, micro_rows=64, rule="raw")
    net = tiny_stages.model("ar")
    rollouts = task.roller.collect(1, net)[0]
    assert len(rollouts) >= 4
    old = {id(row): row for row in rollouts}
    assert len(old) == len(rollouts)
    net.train()
    # A step away from the rollout's weights, so that ratios are not all 1.
    with torch.no_grad():
        for index, parameter in enumerate(net.parameters()):
            draws = torch.Generator().manual_seed(index)
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draws))
    vocab = tiny_stages.vocabulary()
    micro = causal_micro(rollouts, Ids(vocab.pad_id, vocab.mask_id))
    loss = task.loss(net, micro)
    mine = loss.total / micro.count
    mine.backward()
    wanted = trl_loss(trainer, net, rollouts)
    # TRL fuses head and loss, so the hook that silences the mask token may not be asked; the token
    # then keeps its share of the probability, here below one in a thousand. Loss arithmetic itself
    # is held to 1e-6 above; this is about shifts, masks and padding, which err by far more. The
    # advantages of a group cancel, so the gradient says more than the loss.
    assert float(mine.detach()) == pytest.approx(float(wanted.detach()), rel=2e-3, abs=2e-4)
    trainer.model.zero_grad()
    wanted.backward()
    models = (net, trainer.model)
    own, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in models)
    assert (own - theirs).norm() < 1e-2 * theirs.norm()
    low = loss.metrics["clip_ratio/low_mean"]
    # A count: a ratio within rounding of the clip's edge may fall on either side of it.
    assert float(low[0]) / low[1] == pytest.approx(
        trainer._metrics["train"]["clip_ratio/low_mean"][-1], abs=2.5 / int(low[1])
    )


def trl_loss(trainer: Any, net: Any, rollouts: list[Any]) -> torch.Tensor:
    """TRL's loss of these rollouts under these weights: left-padded prompts, right-padded texts."""
    pad = tiny_stages.vocabulary().pad_id
    mask_id = tiny_stages.vocabulary().mask_id
    width = max(len(row.asked.prompt) for row in rollouts)
    length = max(len(row.trajectory.tokens_T) for row in rollouts)
    shape = (len(rollouts), length)
    prompt_BP = torch.full((len(rollouts), width), pad)
    prompt_mask_BP = torch.zeros_like(prompt_BP)
    text_BT, mask_BT = torch.full(shape, pad), torch.zeros(shape, dtype=torch.long)
    old_BT = torch.zeros(shape)
    for b, row in enumerate(rollouts):
        prompt_BP[b, width - len(row.asked.prompt) :] = torch.tensor(row.asked.prompt)
        prompt_mask_BP[b, width - len(row.asked.prompt) :] = 1
        n = len(row.trajectory.tokens_T)
        text_BT[b, :n] = torch.from_numpy(row.trajectory.tokens_T)
        old_BT[b, :n] = torch.from_numpy(row.trajectory.logprob_T)
        mask_BT[b, :n] = 1
    own = trainer.model
    state = {name: p.detach().clone() for name, p in net.named_parameters()}
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            parameter.copy_(state[name])
    # The mask token never takes part here; for TRL its row of the head is made hopeless instead.
    head = own.lm_head
    hook = head.register_forward_hook(
        lambda _, __, out: out.index_fill(-1, torch.tensor([mask_id]), -1e30)
    )
    try:
        return trainer._compute_loss(
            own,
            {
                "prompt_ids": prompt_BP,
                "prompt_mask": prompt_mask_BP,
                "completion_ids": text_BT,
                "completion_mask": mask_BT,
                "old_per_token_logps": old_BT,
                "advantages": torch.tensor([row.advantage for row in rollouts]),
                "num_items_in_batch": mask_BT.sum(),
            },
        )
    finally:
        hook.remove()


def test_advantages_equal_trls_group_normalisation_on_500_groups(trainer):
    """TRL samples, asks its reward function, normalises; the rewards are ours."""
    draws = np.random.default_rng(2)
    groups, size = 500, trainer.num_generations
    reward_PG = draws.choice([-1.0, -0.375, -0.125, 0.0, 0.25, 0.625, 1.125], (groups, size))
    reward_PG[:50] = reward_PG[:50, :1]
    REWARDS[:] = reward_PG.ravel().tolist()
    made = trainer._generate_and_score_completions([{"prompt": "soap"}] * (groups * size))
    advantage_PG, kept_P = advantages(reward_PG)
    theirs_PG = made["advantages"].reshape(groups, size).numpy()
    np.testing.assert_allclose(advantage_PG, theirs_PG, atol=1e-6, rtol=1e-6)
    flat = trainer._metrics["train"]["frac_reward_zero_std"][-1]
    assert 1 - kept_P.mean() == pytest.approx(flat, abs=1e-6)


def test_overlong_shaping_equals_trls(trl):
    from trl.rewards import get_soft_overlong_punishment

    for limit, cache in ((100, 20), (64, 64), (10, 1), (30, 0)):
        lengths = range(limit + 20)
        theirs = get_soft_overlong_punishment(limit, cache)([[1] * n for n in lengths])
        mine = [overlong_penalty(n, limit, cache) for n in lengths]
        assert mine == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.5)])
def test_divergences_equal_trls_generalised_jsd_on_500_random_cases(trl, kind, beta):
    gkd = pytest.importorskip(
        "trl.experimental.gkd.gkd_trainer", reason="this TRL has no GKD trainer"
    )
    for number in range(CASES):
        draws = torch.Generator().manual_seed(number)
        shape = (1 + number % 5, 2 + number % 17)
        teacher_NV, student_NV = (
            4 * torch.randn(shape, generator=draws, dtype=torch.float64) for _ in range(2)
        )
        student_NV.requires_grad_()
        theirs = gkd.GKDTrainer.generalized_jsd_loss(
            student_NV[None], teacher_NV[None], beta=beta, reduction="sum"
        )
        (wanted,) = torch.autograd.grad(theirs, student_NV)
        mine_N = divergence(
            torch.log_softmax(teacher_NV, -1), torch.log_softmax(student_NV, -1), kind
        )
        (found,) = torch.autograd.grad(mine_N.sum(), student_NV)
        assert float(mine_N.sum()) == pytest.approx(float(theirs.detach()), abs=1e-6, rel=1e-6)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.3, 0.9])
def test_the_jsd_weight_means_what_trls_does(trl, beta):
    gkd = pytest.importorskip(
        "trl.experimental.gkd.gkd_trainer", reason="this TRL has no GKD trainer"
    )
    draws = torch.Generator().manual_seed(9)
    teacher_NV, student_NV = (
        3 * torch.randn(40, 12, generator=draws, dtype=torch.float64) for _ in range(2)
    )
    theirs = gkd.GKDTrainer.generalized_jsd_loss(
        student_NV[None], teacher_NV[None], beta=beta, reduction="sum"
    )
    mine_N = divergence(
        torch.log_softmax(teacher_NV, -1), torch.log_softmax(student_NV, -1), "jsd", beta
    )
    assert float(mine_N.sum()) == pytest.approx(float(theirs.detach()), abs=1e-6)
