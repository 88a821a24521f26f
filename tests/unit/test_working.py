"""Weights in bf16 beside an fp32 master, recomputed layers, and what both leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffgr2.config import TrainConfig
from diffgr2.progress import Progress
from diffgr2.stages.rl import HALF_TOLERANCE, REPLAY_TOLERANCE
from diffgr2.train.lending import lent
from diffgr2.train.loop import fit
from diffgr2.train.working import Working, prepare
from support import tiny_stages, toy


def trained(work: Path, net: Any = None, **changes: Any) -> tuple[list[dict], Any]:
    task, config = tiny_stages.cft_task(**{"steps": 4, "rows": 6, "warmup": 0, **changes})
    net = tiny_stages.model() if net is None else net
    return fit(task, net, config, work, 0, Progress()), net


def flat(net: Any) -> torch.Tensor:
    return torch.cat([p.detach().float().flatten() for p in net.parameters()])


@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_recomputed_layers_change_nothing(tmp_path: Path, attention: str) -> None:
    how = {"attention": attention}
    plain, one = trained(tmp_path / "plain", **how)
    again, two = trained(tmp_path / "again", checkpoint_activations=True, **how)
    for line, wanted in zip(again, plain, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
    assert (flat(one) - flat(two)).norm() <= 1e-6 * flat(one).norm()


def test_joined_rows_train_as_padded_ones_do(tmp_path: Path) -> None:
    plain, one = trained(tmp_path / "plain", attention="dense")
    packed, two = trained(tmp_path / "joined", attention="flex")
    for line, wanted in zip(packed, plain, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert (flat(one) - flat(two)).norm() <= 1e-4 * flat(one).norm()


def test_the_master_keeps_what_bf16_cannot(tmp_path: Path) -> None:
    """Steps below a weight's last bit in bf16 add up; the file holds them."""
    changes = {"weights": "bf16", "lr": 2e-6, "steps": 6, "checkpoint_every": 6}
    before = flat(tiny_stages.model())
    lines, net = trained(tmp_path, **changes)
    moved = flat(net) - before
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert moved.abs().max() > 0
    assert (flat(net).bfloat16() == before.bfloat16()).float().mean() > 0.9, "too small for bf16"
    assert (moved != 0).float().mean() > 0.5
    (path,) = (tmp_path / "checkpoints").glob("step-*/model.safetensors")
    stored = load_file(path)
    assert all(torch.equal(stored[n], p) for n, p in net.named_parameters() if n in stored)
    exact, _ = trained(tmp_path / "fp32", **{**changes, "weights": "fp32"})
    for line, wanted in zip(lines, exact, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=2e-2)
        assert line["loss"] != wanted["loss"]


def test_what_is_computed_with_is_the_masters_rounding_and_its_gradient_is_handed_over() -> None:
    config, net = TrainConfig(weights="bf16"), tiny_stages.model()
    frozen = net.model.embed_tokens.weight
    frozen.requires_grad_(False)
    prepare(net, config)
    working = Working(net, config)
    computing: Any = working.net
    pairs = list(zip(computing.parameters(), net.parameters(), strict=True))
    assert all(mine.dtype == torch.bfloat16 for mine, _ in pairs)
    shared = [mine for mine, master in pairs if mine is master]
    assert len(shared) == 1
    assert shared[0] is frozen
    assert computing.lm_head.weight is frozen, "ties are kept"
    for _ in range(2):
        hidden = computing.model(input_ids=torch.arange(1, 9)[None]).last_hidden_state
        hidden.float().sum().backward()
        assert all(mine.grad is None for mine, _ in pairs)
    assert frozen.grad is None
    given = [m.grad for _, m in pairs if m.requires_grad and m.grad is not None]
    assert given
    assert all(g.dtype == torch.float32 for g in given)
    with torch.no_grad():
        net.model.norm.weight.add_(0.1)
    working.refresh()
    assert torch.equal(computing.model.norm.weight, net.model.norm.weight.bfloat16())
    with lent(working.net) as (policy, _):
        assert policy is working.net, "rollouts are in the precision of what computes"


def test_fp32_weights_need_no_copy() -> None:
    net = toy.ToyModel()
    assert Working(net, toy.config_of()).net is net


def test_a_run_in_halves_resumes_bit_for_bit(tmp_path: Path) -> None:
    how = {"weights": "bf16", "steps": 6, "checkpoint_every": 3, "keep": 9}
    lines, whole = trained(tmp_path, **how)
    last = tmp_path / "checkpoints" / "step-00000006"
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    again, net = trained(tmp_path, **how)
    assert torch.equal(flat(net), flat(whole))
    assert [line["loss"] for line in again] == [line["loss"] for line in lines]


@pytest.mark.parametrize("make", ["rl_task", "block_rl_task"])
def test_replay_in_halves_is_within_its_tolerance_and_not_within_fp32s(make: str) -> None:
    """The check of every run's first batch passes in bf16; the distance is one of roundings."""
    task, config = getattr(tiny_stages, make)(weights="bf16")
    net = tiny_stages.model("ar" if make == "rl_task" else "block")
    working = Working(net, config).net
    micros = task.micros(1, working)  # raises where the replay is further off
    logits_NV, logp_N = task._scored(working, micros[0])
    worst = float((logp_N.detach() - micros[0].old_logp_N).abs().max())
    largest = float(logits_NV.detach().masked_fill(logits_NV.isinf(), 0.0).abs().max())
    print(f"{make}: off by {worst:.4f}, largest logit {largest:.1f}")
    assert REPLAY_TOLERANCE < worst <= HALF_TOLERANCE * max(largest, 1.0)
