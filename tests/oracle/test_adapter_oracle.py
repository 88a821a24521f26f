"""Adapters in every forward, and their gradients, against one position at a time."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_decode_oracles import assert_same, prompts, ruled, settings

from diffgr2.decode.batch import decode
from diffgr2.decode.reference import ar, block, verify
from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import ConfigError
from diffgr2.model import packed
from diffgr2.model.adapter import Adapter
from diffgr2.model.backend import Span
from diffgr2.model.backends import backend_of
from diffgr2.model.family import sizes_of
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.gated import adapter_in, attach, merge
from diffgr2.model.slow import SlowModel
from diffgr2.objectives.likelihood import logits_at
from support.adapted import GATED, MASK, drawn, gradients_of, reference
from support.grammars import GRAMMARS
from support.tiny_qwen import tiny

FAMILIES = ("Qwen3", "Llama", "Qwen2")
ADAPTERS = {
    "gated": GATED,
    "some targets": Adapter(2, 1.0, ("v_proj", "up_proj"), MASK),
    "everywhere": replace(GATED, mask_id=None),
}
by_adapter = pytest.mark.parametrize("which", ADAPTERS)
by_family = pytest.mark.parametrize("family", FAMILIES)


def mixed(seed: int, rows: int = 3, length: int = 12) -> torch.Tensor:
    """Texts of which a third is masked."""
    draws = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, MASK, (rows, length), generator=draws)
    return ids_BT.masked_fill(torch.rand(rows, length, generator=draws) < 0.3, MASK)


def pair(family: str, which: str):
    """(reference, adapted module, adapter)."""
    module, adapter = tiny(3, family=family), ADAPTERS[which]
    arrays = drawn(module, adapter)
    return reference(module, adapter, arrays), attach(module, adapter, arrays), adapter


@by_adapter
@by_family
def test_gradients_are_those_of_every_position_by_itself(family, which):
    twin, module, _ = pair(family, which)
    ids_BT, length_B = mixed(1), torch.tensor([12, 5, 9])
    index_N = torch.tensor([3, 11, 12 + 4, 24 + 0, 24 + 8])
    draws = torch.Generator().manual_seed(2)
    sees = torch.rand(3, 1, 12, 12, generator=draws) < 0.6
    sees |= torch.eye(12, dtype=torch.bool)
    layout = {"attends_B1TT": sees, "position_BT": torch.randint(0, 20, (3, 12), generator=draws)}
    there = torch.arange(12) < length_B[:, None]
    layout["attends_B1TT"] = sees & there[:, None, None]

    def run(model, lengths):
        model.zero_grad()
        logits_NV = logits_at(model, ids_BT, index_N, MASK, length_B=lengths, **layout)
        logits_NV.log_softmax(-1)[:, 3].sum().backward()
        return logits_NV.detach()

    wanted_NV = run(twin, None)
    wanted = gradients_of(twin)
    for lengths in (None, length_B):  # the module's own forward, and the one without padding
        assert packed.able(module)
        torch.testing.assert_close(run(module, lengths), wanted_NV, atol=2e-5, rtol=1e-5)
        grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        assert grads.keys() == wanted.keys()
        for name, grad in wanted.items():
            assert (grads[name] - grad).norm() <= 2e-5 * grad.norm() + 1e-6, name


def spans(ids_BT: torch.Tensor, start: int = 0) -> list[Span]:
    """Every token sees all before it and those behind it that stand in the same half."""
    length = ids_BT.shape[1]
    return [Span(row, start, [start + length] * length, 0) for row in ids_BT.tolist()]


@by_adapter
@by_family
@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_backends_give_the_references_distributions(family, which, name):
    twin, module, _ = pair(family, which)
    prompt_BT, ids_BT = mixed(4, length=5), mixed(5, length=7)
    whole_BT = torch.cat([prompt_BT, ids_BT], 1)
    sees = torch.zeros(12, 12, dtype=torch.bool)
    sees[:5, :5], sees[5:] = True, True
    with torch.no_grad():
        logits_BTV = twin(whole_BT, attention_mask=sees[None, None].expand(3, 1, 12, 12)).logits
    logits_BTV[..., MASK] = -torch.inf
    wanted_BTV = torch.log_softmax(logits_BTV, -1)[:, 5:].numpy()
    for rows in ([0, 1, 2], [1]):
        session = backend_of(module, name).session(MASK)
        session.add(spans(prompt_BT[rows]), 12)
        found = [
            view.rows(np.arange(len(view))) for view in session.forward(spans(ids_BT[rows], 5))
        ]
        np.testing.assert_allclose(np.stack(found), wanted_BTV[rows], atol=3e-5)


@by_family
def test_clean_positions_are_the_bases_to_the_bit(family):
    """Beside masks too: what they read of them has no weight, and their products are the base's."""
    base = tiny(6, family=family)
    module = attach(copy.deepcopy(base), GATED, drawn(base, GATED))
    ids_BT = mixed(7)
    clean_BT = torch.where(ids_BT == MASK, 1, ids_BT)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    sees = torch.cat([torch.cat([causal, torch.zeros_like(causal)], 1), torch.ones(12, 24)], 0)
    layout = {"attention_mask": sees.bool()[None, None].expand(3, 1, 24, 24)}
    both_BT = torch.cat([clean_BT, ids_BT], 1)
    with torch.no_grad():
        assert torch.equal(module(clean_BT).logits, base(clean_BT).logits)
        found, wanted = (m(both_BT, **layout).logits for m in (module, base))
        assert torch.equal(found[:, :12], wanted[:, :12])
        assert not torch.allclose(found[:, 12:], wanted[:, 12:], atol=1e-2)
    for name in ("onnx", "torch"):
        mine, theirs = (backend_of(m, name).session(MASK) for m in (module, base))
        for session in (mine, theirs):
            session.add(spans(clean_BT[:, :5]), 12)
        rest = spans(clean_BT[:, 5:], 5)
        for one, two in zip(mine.forward(rest), theirs.forward(rest), strict=True):
            assert np.array_equal(one.rows(np.arange(7)), two.rows(np.arange(7))), name


def test_an_accelerators_dense_gate_gives_the_same():
    module = tiny(3)
    lean = LeanModel(attach(module, GATED, drawn(module, GATED)))
    ids_BT, found = mixed(8), []
    for lean.folded in (False, True):
        position_BT = torch.arange(12).expand(3, 12)
        mask = torch.ones(3, 12, 12, dtype=torch.bool)
        found.append(lean(ids_BT, position_BT, KVCache.empty(lean, 3, 12), 0, mask, 12))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [None, next(iter(GRAMMARS))])
@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("clean_kv", ["causal", "block_causal"])
def test_decoders_equal_the_slow_reference(name, alignment, clean_kv):
    """The slow decoders ask the reference, whose adapter works position by position."""
    twin, module, _ = pair("Qwen3", "gated")
    slow, grammar, given = SlowModel(twin, MASK), GRAMMARS.get(name), prompts(3, (1, 7))
    made = ruled if grammar else settings
    ways = {
        "block": lambda text, how: block(slow, text, how, grammar, None),
        "verify": lambda text, how: verify(slow, text, how, grammar),
        "ar": lambda text, how: ar(slow, text, how, grammar, None),
    }
    for decoder, meant in ways.items():
        how = {"alignment": alignment, "clean_kv": clean_kv} if decoder == "block" else {}
        chosen = replace(made(decoder=decoder, threshold=0.4), **how)
        requests = [DecodeRequest(p, grammar, ("oracle", i)) for i, p in enumerate(given)]
        for backend in ("torch", "onnx"):
            for i, fast in enumerate(decode(backend_of(module, backend), requests, chosen)):
                assert_same(fast, meant(given[i], chosen))


def test_ar_and_verify_write_the_bases_text():
    base = tiny(9, marker=1.5)
    module = attach(copy.deepcopy(base), GATED, drawn(base, GATED))
    requests = [DecodeRequest(p) for p in prompts(9)]
    for name in ("torch", "onnx"):
        wanted = decode(backend_of(base, name), requests, settings())
        for decoder in ("ar", "verify"):
            found = decode(backend_of(module, name), requests, settings(decoder=decoder))
            for one, two in zip(found, wanted, strict=True):
                assert one.tokens_T.tolist() == two.tokens_T.tolist()
        blocks = decode(backend_of(module, name), requests, settings(decoder="block"))
        plain = decode(backend_of(base, name), requests, settings(decoder="block"))
        pairs = zip(blocks, plain, strict=True)
        assert any(one.tokens_T.tolist() != two.tokens_T.tolist() for one, two in pairs)


def test_an_adapter_of_zeros_is_the_base_everywhere():
    base = tiny(4)
    arrays = GATED.initial(sizes_of(base.config.to_dict()), seed=1)
    assert all(bool(array.any()) == n.endswith("A.weight") for n, array in arrays.items())
    module, ids_BT = attach(copy.deepcopy(base), GATED, arrays), mixed(2)
    with torch.no_grad():
        assert torch.equal(module(ids_BT).logits, base(ids_BT).logits)


def test_what_is_active_everywhere_merges_and_what_is_gated_does_not():
    base, everywhere = tiny(5, family="Qwen2"), ADAPTERS["everywhere"]
    arrays, ids_BT = drawn(base, everywhere), mixed(3)
    module = attach(copy.deepcopy(base), everywhere, arrays)
    with torch.no_grad():
        wanted = module(ids_BT).logits
        merged = merge(module)
        torch.testing.assert_close(merged(ids_BT).logits, wanted, atol=2e-5, rtol=0)
    assert adapter_in(merged) is None
    assert {*merged.state_dict()} == {*base.state_dict()}
    assert all(weight.requires_grad for weight in merged.parameters())
    gated = attach(copy.deepcopy(base), GATED, arrays)
    before = {name: tensor.clone() for name, tensor in gated.state_dict().items()}
    with pytest.raises(ConfigError, match="cannot be merged: one matrix would serve clean"):
        merge(gated)
    assert all(torch.equal(gated.state_dict()[name], tensor) for name, tensor in before.items())
