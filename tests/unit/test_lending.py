"""How weights reach rollouts: part by part, and held once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from diffgr2.decode.batch import decode
from diffgr2.model.backends import backend_of
from diffgr2.model.forward import KVCache, LeanModel, adjoin
from diffgr2.model.load import save
from diffgr2.model.whole import parts_of
from diffgr2.train import dist
from diffgr2.train.lending import Gathered
from diffgr2.train.memory import How, Shape, layer_weights, memory, parameters
from support import tiny_stages
from support.shared_texts import plain, requests
from support.tiny_corpus import corpus


def hollow(net: nn.Module, dtype: torch.dtype | None = None) -> tuple[Any, Gathered]:
    """A model without weights, and whence they come; one process's shards are whole."""
    twin, tensors = dist.hollow(net, dtype), dist.unique_tensors(net)
    shards = {id(p): tensors[name].detach() for name, p in twin.named_parameters()}
    return twin.eval(), Gathered(shards)


def logits(lean: LeanModel) -> torch.Tensor:
    ids_BT = torch.arange(1, 8)[None]
    cache, seen = KVCache.empty(lean, 1, 7), torch.ones(1, 7, 7, dtype=torch.bool).tril()
    return lean(ids_BT, torch.arange(7)[None], cache, 0, seen, 7)


def held(lean: LeanModel) -> int:
    """Numbers in all memory that its weights are in."""
    products = [p for y in lean.layers for p in (y.qkv, y.out, y.gate_up, y.down)]
    norms = [
        n
        for y in lean.layers
        for n in (y.attention_norm, y.ffn_norm, y.query_norm, y.key_norm)
        if n is not None
    ]
    tensors = [lean.embedding, lean.head, lean.norm, *norms]
    tensors += [tensor for product in products for tensor in product.tensors]
    blocks = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(blocks.values()) // lean.embedding.element_size()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_hollow_model_is_read_part_by_part_and_held_once(
    tied: bool, dtype: torch.dtype | None
) -> None:
    net = tiny_stages.fresh(5, tied=tied)
    twin, whole = hollow(net, dtype)
    most = max(sum(p.numel() for p in part.parameters()) for _, part in parts_of(net))
    opened: list[int] = []

    @contextmanager
    def watched(part: nn.Module, /) -> Iterator[None]:
        with whole(part):
            opened.append(sum(p.numel() for p in twin.parameters()))
            yield

    lean = LeanModel(twin, watched)
    assert 0 < max(opened) <= most, "one part at a time"
    assert len(opened) == len(list(parts_of(net))) - tied
    assert not any(p.numel() for p in twin.parameters())
    assert held(lean) == sum(p.numel() for p in net.parameters())
    for parameter in net.parameters():  # tables of positions stay as they are
        parameter.data = parameter.data.to(dtype or parameter.dtype)
    assert torch.equal(logits(lean), logits(LeanModel(net.eval())))


@pytest.mark.parametrize("name", ["torch", "onnx"])
def test_a_lent_model_writes_what_the_model_writes(name: str) -> None:
    net = tiny_stages.model("fresh").eval()
    twin, whole = hollow(net)
    settings = corpus().settings(None, "ar", temperature=1.0, max_tokens=30)
    asked = requests(6)
    one, other = (
        [plain(text) for text in decode(backend, asked, settings)]
        for backend in (backend_of(net, name), backend_of(twin, name, whole))
    )
    assert one == other
    assert all(text["tokens"] for text in one)


def test_matrices_that_lie_side_by_side_are_not_copied(tmp_path: Path) -> None:
    net, plain_net = tiny_stages.fresh(5).eval(), tiny_stages.fresh(5).eval()
    before = net(torch.arange(1, 8)[None]).logits
    for layer in net.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        adjoin([attention.q_proj, attention.k_proj, attention.v_proj])
        adjoin([mlp.gate_proj, mlp.up_proj])
    assert torch.equal(net(torch.arange(1, 8)[None]).logits, before)
    lean, copied = LeanModel(net), LeanModel(plain_net)
    first = net.model.layers[0]
    assert lean.layers[0].qkv.weight.data_ptr() == first.self_attn.q_proj.weight.data_ptr()
    assert lean.layers[0].gate_up.weight.data_ptr() == first.mlp.gate_proj.weight.data_ptr()
    assert torch.equal(logits(lean), logits(copied))
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert {p.weight.untyped_storage().data_ptr() for p in (lean.layers[1].qkv,)} <= weights
    with torch.no_grad():  # what trains on is what is read
        for module in (net, plain_net):
            module.model.layers[0].self_attn.k_proj.weight.mul_(1.5)
            module.model.layers[1].mlp.up_proj.weight.add_(0.1)
    assert torch.equal(logits(LeanModel(net)), logits(LeanModel(plain_net)))
    save(net, tmp_path / "model")  # views of one memory are written as what they are
    save_file(dict(net.state_dict()) | {"lm_head.weight": torch.ones(1)}, tmp_path / "checkpoint")
    wanted = dict(plain_net.named_parameters())
    for path in (tmp_path / "model" / "model.safetensors", tmp_path / "checkpoint"):
        found = load_file(path)
        assert wanted.keys() <= found.keys()
        assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


def test_the_plan_counts_weights_that_rollouts_hold() -> None:
    from diffgr2.model.family import sizes_of

    sizes = sizes_of(tiny_stages.fresh(5).config.to_dict())
    matrices, layer = layer_weights(sizes)
    shape = Shape(100, 100, cached=1000)
    cache = 4 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * 1000

    def taken(**changes: Any) -> int:
        return memory(sizes, How(**changes), shape).rollouts - cache

    assert taken() == 0, "one process reads the weights that stand"
    assert taken(gpus=2) == taken(gpus=8) == 4 * (parameters(sizes) + layer)
    assert taken(trained=0, added=10, ranks=1, everywhere=True) == 4 * sizes.layers * matrices
    assert memory(sizes, How(gpus=2), replace(shape, cached=0)).rollouts == 0
