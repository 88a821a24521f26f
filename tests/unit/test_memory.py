"""The memory model: against torch's own count of a training, and what it must obey."""

from __future__ import annotations

import gc
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from diffgr2.config import TrainConfig
from diffgr2.model.family import Sizes, sizes_of
from diffgr2.progress import Progress
from diffgr2.stages.batches import TokenBatch, WeightedMicro
from diffgr2.stages.common import give_lora
from diffgr2.train.loop import Loss, fit
from diffgr2.train.memory import How, Memory, Shape, flops, memory, parameters
from support.peaks import held, peak

SIZES = {  # width, layers, query heads, key heads, head, feed-forward, vocabulary
    "narrow": (96, 3, 4, 2, 24, 256, 900),
    "deep": (128, 6, 4, 4, 32, 320, 500),
    "wide": (256, 2, 8, 2, 32, 768, 3000),
}
WAYS = {
    "fp32": {},
    "autocast": {"precision": "bf16"},
    "halves": {"weights": "bf16"},
    "again": {"checkpoint_activations": True},
    "muon": {"optimizer": "muon", "precision": "bf16"},
    "adapter": {"lora": {"rank": 8}},
    "adapter, halves": {"lora": {"rank": 8}, "weights": "bf16"},
}
ROWS, LENGTH, SHARE = 4, 128, 2


def config_of(name: str) -> Qwen3Config:
    d, layers, heads, kv, size, ffn, vocab = SIZES[name]
    return Qwen3Config(
        vocab_size=vocab,
        hidden_size=d,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=size,
        intermediate_size=ffn,
        tie_word_embeddings=name != "deep",
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
    )


@dataclass
class Texts:
    """Random texts, every second place of which is scored; stock modules over padded rows."""

    config: TrainConfig
    vocab: int

    name = "texts"
    round_steps = 1

    def micros(self, step: int, model: nn.Module) -> list[WeightedMicro]:
        draws = torch.Generator().manual_seed(step)
        return [self._micro(draws) for _ in range(self.config.rows // self.config.micro_rows)]

    def _micro(self, draws: torch.Generator) -> WeightedMicro:
        rows = self.config.micro_rows
        ids_BT = torch.randint(1, self.vocab, (rows, LENGTH), generator=draws)
        index_N = torch.arange(0, rows * LENGTH, SHARE)
        target_N = ids_BT.flatten()[index_N]
        weight_N, nothing_N = torch.ones(len(index_N)), torch.zeros(len(index_N))
        rest = (weight_N, nothing_N.long(), target_N, nothing_N)
        return WeightedMicro(TokenBatch(ids_BT), index_N, target_N, *rest)

    def loss(self, model: nn.Module, micro: WeightedMicro) -> Loss:
        logits_NV = micro.logits(model, 0)
        right_N = micro.right(logits_NV.detach())
        total = (micro.nll(logits_NV) * micro.weight_N).sum()
        return Loss(total, {"accuracy": (right_N.sum(), len(right_N))})


def both(name: str, way: str, work: Path) -> tuple[int, Memory]:
    """(measured peak of three steps, what the model says) in bytes."""
    values = {"steps": 3, "rows": 2 * ROWS, "micro_rows": ROWS, "lr": 1e-3, "warmup": 0}
    config = TrainConfig.model_validate({**values, **WAYS[way]})
    model, before = Qwen3ForCausalLM(config_of(name)), torch.get_num_threads()
    torch.set_num_threads(1)  # one lane
    try:
        if config.lora is not None:
            give_lora(model, config.lora, "texts", 0)
        task, told = Texts(config, SIZES[name][-1]), Progress(io.StringIO())
        start = held(model.parameters())
        most = start + peak(lambda: fit(task, model, config, work, 0, told))
    finally:
        torch.set_num_threads(before)
    how = How(config.precision, config.weights, config.checkpoint_activations, config.optimizer)
    tokens = ROWS * LENGTH
    sizes = sizes_of(model.config.to_dict())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    if config.lora is not None:
        ranks = config.lora.rank * len(config.lora.targets)
        how = replace(how, trained=0, added=trained, ranks=ranks)
        whole -= trained
    assert parameters(sizes) == whole
    return most, memory(sizes, how, Shape(tokens, tokens // SHARE, micros=2))


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_the_peak_of_a_training_is_within_15_percent(name: str, way: str, tmp_path: Path) -> None:
    measured, told = both(name, way, tmp_path)
    print(f"{name} {way}: measured {measured / 1e6:.2f} MB, said {told.peak / 1e6:.2f} MB")
    assert told.peak == pytest.approx(measured, rel=0.15)


def test_what_earlier_work_left_behind_is_no_part_of_a_peak() -> None:
    def leave() -> None:
        left: list[object] = [torch.ones(10**6)]
        left.append(left)  # only the garbage collector can let it go

    def work() -> None:
        gc.collect()
        torch.ones(1000).add(1)

    alone = peak(work)
    peak(leave)
    assert peak(work) == alone


@pytest.mark.parametrize("way", ["fp32", "autocast", "halves"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("masked", [False, True])
def test_what_a_forward_leaves_is_what_the_table_says(way: str, family: str, masked: bool) -> None:
    """Within 1 %: every tensor that autograd keeps, each storage once."""
    config: Any = config_of("narrow")
    if family == "llama":
        config = LlamaConfig(**{k: v for k, v in config.to_dict().items() if k in LLAMA})
        config._attn_implementation = "sdpa"
    net: Any = Qwen3ForCausalLM(config) if family == "qwen3" else LlamaForCausalLM(config)
    sizes = sizes_of(net.config.to_dict())
    how = How("bf16" if way == "autocast" else "fp32", "bf16" if way == "halves" else "fp32")
    how = replace(how, dense=masked)
    net = net.bfloat16() if way == "halves" else net
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in own:
            kept.setdefault(address, tensor)
        return tensor

    ids_BT = torch.randint(0, 900, (2, 64))
    mask = torch.ones(2, 1, 64, 64, dtype=torch.bool).tril() if masked else None
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"),
    ):
        out = net.model(input_ids=ids_BT, attention_mask=mask, use_cache=False).last_hidden_state
    told = memory(sizes, how, Shape(128, 0, pairs=2 * 64 * 64))
    casts = told.gathered - 2 * sizes.vocab * sizes.hidden if told.gathered else 0  # no head here
    assert out.shape == (2, 64, 96)
    assert told.activations + casts == pytest.approx(held(kept.values()), rel=0.01)


LLAMA = {
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id"),
}


def sizes(name: str) -> Sizes:
    return sizes_of(config_of(name).to_dict())


HOWS = st.builds(
    How,
    precision=st.sampled_from(["fp32", "bf16"]),
    weights=st.sampled_from(["fp32", "bf16"]),
    recompute=st.booleans(),
    dense=st.booleans(),
    gpus=st.sampled_from([1, 2, 8]),
)
SHAPES = st.builds(
    Shape,
    tokens=st.integers(1, 10**6),
    scored=st.integers(0, 10**5),
    micros=st.integers(1, 4),
    pairs=st.integers(0, 10**9),
    teacher=st.booleans(),
    cached=st.integers(0, 10**6),
)


@given(HOWS, SHAPES, st.sampled_from([*SIZES]), st.data())
def test_what_must_cost_less_costs_less(how: How, shape: Shape, name: str, data) -> None:
    one = sizes(name)
    said = memory(one, how, shape)
    assert min(vars(said).values()) >= 0
    few = data.draw(st.integers(0, parameters(one)), label="trained")
    some = memory(one, replace(how, trained=few), shape)
    assert some.optimizer <= said.optimizer
    assert some.gradients <= said.gradients
    assert some.peak <= said.peak
    assert memory(one, replace(how, recompute=True), shape).peak <= said.peak
    assert memory(one, how, replace(shape, tokens=shape.tokens + 1)).peak >= said.peak
    if how.gpus > 1:
        more = memory(one, replace(how, gpus=2 * how.gpus), shape)
        assert more.peak <= said.peak
        assert abs(2 * more.optimizer - said.optimizer) <= 2


def test_nothing_trained_has_no_state_and_full_training_costs_three_forwards() -> None:
    one, how, shape = sizes("wide"), How(), Shape(100, 100)
    none = memory(one, replace(how, trained=0), shape)
    assert (none.gradients, none.optimizer) == (0, 0)
    assert none.weights == 4 * parameters(one)
    assert memory(one, replace(how, trained=0, weights="bf16"), shape).weights == none.weights // 2
    full, fixed = flops(one, how, shape, 10.0), flops(one, replace(how, trained=0), shape, 10.0)
    assert full == pytest.approx(1.5 * fixed)
    again = flops(one, replace(how, recompute=True), Shape(100, 0), 10.0)
    assert again == pytest.approx(4 / 3 * flops(one, how, Shape(100, 0), 10.0))
