"""Adapters where training at size meets them: recomputed layers, weights in bf16, frozen models."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffgr2.config import BlockRlConfig, TrainConfig
from diffgr2.model.backends import backend_of
from diffgr2.model.forward import LeanModel
from diffgr2.model.gated import Adapted, attach, merge, plain_state
from diffgr2.progress import Progress
from diffgr2.recipe import load_recipe
from diffgr2.stages.sizing import Machine, base_sizes, needs
from diffgr2.train.loop import fit
from diffgr2.train.working import Working, prepare
from support import tiny_stages
from support.adapted import GATED, drawn

MASK_ID = tiny_stages.vocabulary().mask_id


def adapted(net: Any, mask_id: int | None = MASK_ID, size: float = 0.25) -> Any:
    adapter = replace(GATED, mask_id=mask_id)
    return attach(net, adapter, {n: size * a for n, a in drawn(net, adapter).items()})


def flat(net: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters() if p.requires_grad])


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("attention", ["auto", "flex"])
def test_a_layer_that_is_computed_again_is_gated_as_before(
    attention: str, packed: bool, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:  # the module's own forward over padded rows
        monkeypatch.setattr("diffgr2.model.packed.able", lambda model: False)
    found = []
    for again in (False, True):
        how = {"attention": attention, "weights": weights, "checkpoint_activations": again}
        task, config = tiny_stages.cft_task(steps=3, rows=4, micro_rows=2, warmup=0, **how)
        task.contract = tiny_stages.contract_of(adapter="masks")
        net = adapted(tiny_stages.model())
        lines = fit(task, net, config, tmp_path / str(again), 0, Progress(io.StringIO()))
        found.append(([line["loss"] for line in lines], flat(net)))
    (wanted, one), (losses, two) = found
    assert losses == pytest.approx(wanted, rel=1e-6)
    assert (one - two).norm() <= 1e-5 * one.norm()


def test_every_factor_has_a_gradient_where_nothing_is_masked() -> None:
    """Processes add their gradients up weight by weight: one that lacks some would hang all."""
    net = adapted(tiny_stages.model())
    net(torch.arange(1, 9)[None]).logits.sum().backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


@pytest.mark.parametrize("mask_id", [None, MASK_ID])
def test_what_is_added_to_weights_in_bf16_is_not_rounded_away(mask_id: int | None) -> None:
    """Far below the last bit of its matrix: rollouts and the file have it all the same."""
    net = adapted(tiny_stages.model(), mask_id, size=0.01)
    prepare(net, TrainConfig(weights="bf16"))
    parts = {n: p for n, p in net.named_modules() if isinstance(p, Adapted)}
    delta = {n: p.scale * p.lora_B.weight @ p.lora_A.weight for n, p in parts.items()}
    working = Working(net, TrainConfig(weights="bf16")).net
    ids_BT = torch.tensor([[3, MASK_ID, 5, MASK_ID, 7]])
    plain = prepared_base()
    with torch.no_grad():
        moved = (working(ids_BT).logits - plain(ids_BT).logits).float()
        lean = LeanModel(working)
        from diffgr2.model.forward import KVCache

        cache = KVCache.empty(lean, 1, 5)
        seen = torch.ones(1, 5, 5, dtype=torch.bool).tril()
        logits = lean(ids_BT, torch.arange(5)[None], cache, 0, seen, 5)
        rolled = (logits - plain(ids_BT).logits).float()
    assert moved.norm() > 0
    assert (rolled - moved).norm() < moved.norm()
    if mask_id is not None:
        return
    state = plain_state(working)
    base = {n: p.weight.detach().float() for n, p in parts.items()}
    for name, added in delta.items():
        gap = state[f"{name}.weight"].float() - base[name] - added
        assert gap.norm() <= 0.02 * added.norm(), name
    merged = merge(net)
    assert all(p.dtype == torch.float32 for p in merged.parameters())
    for name, added in delta.items():
        gap = merged.get_submodule(name).weight - base[name] - added
        assert gap.norm() <= 1e-3 * added.norm(), name


def prepared_base() -> Any:
    net = tiny_stages.model().requires_grad_(False)
    prepare(net, TrainConfig(weights="bf16"))
    return net


def test_a_frozen_model_keeps_its_places_and_its_rows() -> None:
    net = tiny_stages.model().eval().requires_grad_(False)
    before = net.model.rotary_emb.inv_freq.clone()
    prepare(net, BlockRlConfig(weights="bf16", attention="flex"))
    assert torch.equal(net.model.rotary_emb.inv_freq, before)
    assert all(p.dtype == torch.bfloat16 for p in net.parameters())
    assert net.config._attn_implementation == "diffgr2_joined"


@pytest.mark.parametrize("backend", ["onnx", "torch"])
@pytest.mark.parametrize("make", ["rl_task", "block_rl_task"])
def test_rollouts_in_halves_are_replayed_with_an_adapter(
    make: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFGR2_BACKEND", backend)
    task, config = getattr(tiny_stages, make)(weights="bf16")
    causal = make == "rl_task"
    net = adapted(tiny_stages.model("ar" if causal else "block"), None if causal else MASK_ID)
    prepare(net, config)
    working = Working(net, config).net
    assert backend_of(working).name.startswith(backend)
    assert task.micros(1, working)  # raises where the replay is further off


def test_a_run_in_halves_stores_the_adapter_in_fp32(tmp_path: Path) -> None:
    task, config = tiny_stages.cft_task(steps=2, rows=2, micro_rows=2, weights="bf16")
    task.contract = tiny_stages.contract_of(adapter="masks")
    net = adapted(tiny_stages.model())
    fit(task, net, config, tmp_path, 0, Progress(io.StringIO()))
    (path,) = (tmp_path / "checkpoints").glob("step-*2/model.safetensors")
    stored = load_file(path)
    assert {*stored} == {n for n, p in net.named_parameters() if p.requires_grad}
    assert all(t.dtype == torch.float32 for t in stored.values())


def test_a_plan_counts_state_for_the_adapter_alone() -> None:
    base = Path("qwen3-0.6b")
    changes = ["sft.lora.rank=16", "convert.adapter.rank=8"]
    full, low = load_recipe("text_gpu"), load_recipe("text_gpu", changes)
    sizes, _ = base_sizes(full, base)
    plain, few = (
        {need.stage: need for need in needs(recipe, sizes, Machine())} for recipe in (full, low)
    )
    for stage, need in few.items():
        trains = need.added or None
        assert (trains is not None) == (stage in ("sft", "cft", "opd", "block_rl", "cft_rl"))
        if trains is None:
            assert need.memory == plain[stage].memory
            continue
        assert need.memory.gradients == 4 * trains
        assert need.memory.optimizer == 8 * trains
        assert need.memory.peak < plain[stage].memory.peak
        assert need.seconds[0] < plain[stage].seconds[0]
    assert few["sft"].added == 2 * few["cft"].added
