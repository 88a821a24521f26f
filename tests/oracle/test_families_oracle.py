"""Every family and rotary embedding against transformers, by all forwards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from diffgr2.errors import CheckpointError
from diffgr2.model import packed
from diffgr2.model.backend import Backend, Span
from diffgr2.model.backends import open_backend, write_graphs
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.load import Backbone, load, save
from diffgr2.model.slow import SlowModel
from diffgr2.objectives.likelihood import logits_at
from support.tiny_qwen import ROPES, VOCAB, tiny

FAMILIES = ("Qwen3", "Llama", "Qwen2")
MASK = VOCAB - 1
CASES = [
    *product(FAMILIES, ROPES, (True,), (2,)),
    *product(FAMILIES, ("default",), (False,), (1, 4)),
]
by_case = pytest.mark.parametrize(("family", "rope", "tied", "kv_heads"), CASES)


def text(seed: int, rows: int = 2, length: int = 90) -> torch.Tensor:
    """Longer than the texts that the scaled embeddings were made for."""
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stock(directory: Path, ids_BT: torch.Tensor) -> torch.Tensor:
    """What transformers' own way of opening a directory gives."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.eval()(ids_BT).logits


def lean(model: LeanModel, ids_BT: torch.Tensor) -> torch.Tensor:
    rows, length = ids_BT.shape
    cache = KVCache.empty(model, rows, length)
    mask = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, length, length)
    position_BT = torch.arange(length).expand(rows, length)
    return model(ids_BT, position_BT, cache, 0, mask, length)


def logp(backend: Backend, ids_BT: torch.Tensor) -> np.ndarray:
    """All rows in one session, the last half behind a cache."""
    session, half = backend.session(MASK), ids_BT.shape[1] // 2
    rows = ids_BT.tolist()
    session.add([Span(row[:half], 0, list(range(1, half + 1)), 0) for row in rows], len(rows[0]))
    rest = [Span(row[half:], half, list(range(half + 1, len(row) + 1)), 0) for row in rows]
    return np.stack([v.rows(np.arange(len(v))) for v in session.forward(rest)])


@by_case
def test_every_forward_is_that_of_transformers(family, rope, tied, kv_heads, tmp_path):
    module = tiny(5, family=family, rope=rope, tied=tied, kv_heads=kv_heads)
    save(module, tmp_path)
    ids_BT = text(3)
    wanted_BTV = stock(tmp_path, ids_BT)
    opened = load(tmp_path)
    torch.testing.assert_close(lean(LeanModel(opened), ids_BT), wanted_BTV, atol=1e-5, rtol=0)
    wanted_BTV[..., MASK] = -torch.inf
    wanted = torch.log_softmax(wanted_BTV, -1)
    half = ids_BT.shape[1] // 2
    write_graphs(tmp_path)
    for name in ("onnx", "torch"):
        found = logp(open_backend(tmp_path, name), ids_BT)
        np.testing.assert_allclose(found, wanted[:, half:].numpy(), atol=3e-5)
    slow = SlowModel(opened, MASK).logp(ids_BT[0].tolist(), list(range(1, ids_BT.shape[1] + 1)))
    torch.testing.assert_close(slow, wanted[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_stay_close_for_every_family(family, tmp_path):
    save(tiny(6, family=family), tmp_path)
    write_graphs(tmp_path)
    exact, near = (
        np.exp(logp(open_backend(tmp_path, name), text(4, length=20)))
        for name in ("onnx", "onnx-int8")
    )
    assert not np.array_equal(exact, near)
    np.testing.assert_allclose(near, exact, atol=0.03)


@by_case
def test_training_without_padding_has_the_stock_gradients(family, rope, tied, kv_heads):
    module = tiny(7, family=family, rope=rope, tied=tied, kv_heads=kv_heads).train()
    assert packed.able(module)
    ids_BT, length_B = text(8, rows=3, length=12), torch.tensor([12, 5, 9])
    index_N = torch.tensor([3, 11, 12 + 4, 24 + 0, 24 + 8])
    found = {}
    for name, lengths in (("packed", length_B), ("stock", None)):
        module.zero_grad()
        logits_NV = logits_at(module, ids_BT, index_N, MASK, length_B=lengths)
        logits_NV.log_softmax(-1)[:, 3].sum().backward()
        grads = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        found[name] = (logits_NV.detach(), grads)
    (mine_NV, mine), (their_NV, theirs) = found["packed"], found["stock"]
    torch.testing.assert_close(mine_NV, their_NV, atol=1e-5, rtol=1e-5)
    assert mine.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert (mine[name] - grad).norm() <= 2e-5 * grad.norm() + 1e-6, name


# ------------------------------------------------------------------------- config.json's spellings


def rewritten(directory: Path, **changes: Any) -> None:
    """config.json with other values; None takes a key away."""
    path = directory / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


@pytest.mark.parametrize("rope", ROPES)
def test_an_older_config_says_the_same(rope, tmp_path):
    """As transformers 4 writes it: rope_scaling beside rope_theta, no head_dim."""
    module = tiny(9, family="Llama", rope=rope)
    save(module, tmp_path)
    old = {k: v for k, v in ROPES[rope].items() if k != "rope_type"}
    scaling = {"type": rope, **old} if rope != "default" else None
    changes = {"rope_parameters": None, "rope_theta": 10_000.0, "head_dim": None}
    rewritten(tmp_path, **changes, rope_scaling=scaling)
    ids_BT = text(10)
    with torch.no_grad():
        wanted_BTV = module(ids_BT).logits
    torch.testing.assert_close(
        lean(LeanModel(load(tmp_path)), ids_BT), wanted_BTV, atol=1e-5, rtol=0
    )
    found = logp(open_backend(tmp_path, "onnx"), ids_BT)
    wanted_BTV[..., MASK] = -torch.inf
    wanted = torch.log_softmax(wanted_BTV, -1)[:, ids_BT.shape[1] // 2 :]
    np.testing.assert_allclose(found, wanted.numpy(), atol=3e-5)


REFUSED: dict[str, dict[str, Any]] = {
    "model_type 'mistral' is not of the Qwen3 or Llama family": {"model_type": "mistral"},
    "model_type None": {"model_type": None},
    "attention_bias True is not supported": {"attention_bias": True},
    "mlp_bias True is not supported": {"mlp_bias": True},
    "hidden_act 'gelu' is not supported: the activation must be silu": {"hidden_act": "gelu"},
    "sliding_window 64 is not supported": {"sliding_window": 64},
    "layer_types .* is not supported": {"layer_types": ["sliding_attention", "full_attention"]},
    "quantization_config is not supported": {"quantization_config": {"quant_method": "gptq"}},
    "num_local_experts 4 is not supported: the model must be dense": {"num_local_experts": 4},
    "rope_type 'dynamic' is not supported: its angles": {
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}
    },
    "rope_type 'longrope' is not supported: its angles": {
        "rope_parameters": None,
        "rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]},
    },
    "rope_type 'proportional' is not supported": {"rope_parameters": {"rope_type": "proportional"}},
    "rope_type 'mrope' is not supported": {"rope_parameters": {"mrope_section": [2, 1, 1]}},
    "rope_type 'linear' needs a factor": {"rope_parameters": {"rope_type": "linear"}},
    "partial_rotary_factor 0.5 is not supported": {"partial_rotary_factor": 0.5},
    "hidden_size: expected a whole number above 0": {"hidden_size": "32"},
    "num_hidden_layers: expected a whole number": {"num_hidden_layers": None},
    "num_key_value_heads does not divide": {"num_key_value_heads": 3},
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_would_be_computed_wrongly_is_refused_by_name(words, tmp_path):
    save(tiny(11, family="Llama"), tmp_path)
    rewritten(tmp_path, **REFUSED[words])
    for opening in (load, lambda where: open_backend(where, "onnx")):
        with pytest.raises(CheckpointError, match=words) as caught:
            opening(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith(str(tmp_path))


def test_weights_of_another_family_are_refused_by_the_tensors_name(tmp_path):
    for family, other, name in (
        ("Qwen3", "llama", "k_norm.weight is unknown to a llama model"),
        ("Qwen2", "llama", "k_proj.bias is unknown to a llama model"),
        ("Llama", "qwen3", "k_norm.weight is missing"),
        ("Llama", "qwen2", "k_proj.bias is missing"),
    ):
        save(tiny(12, family=family), tmp_path)
        rewritten(tmp_path, model_type=other)
        with pytest.raises(CheckpointError, match=name) as caught:
            load(tmp_path)
        assert "\n" not in str(caught.value)


def test_a_half_directory_is_refused(tmp_path):
    model: Backbone = tiny(13, family="Llama", tied=False)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    load(tmp_path)
    next(iter(sorted(tmp_path.glob("*.safetensors")))).unlink()
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@dataclass
class _Config:
    """A config that names a family and an activation."""

    model_type: str
    hidden_act: str = "silu"


def test_only_plain_models_train_without_padding():
    assert not packed.able(torch.nn.Linear(2, 2))
    other = torch.nn.Linear(2, 2)
    other.config = _Config("mistral")  # type: ignore[assignment]
    assert not packed.able(other)
