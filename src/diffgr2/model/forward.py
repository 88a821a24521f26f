"""A lean forward over a preallocated KV cache: the torch backend's, and GPUs' way.

Contract: `LeanModel(module)` reads the weights of a stock model of any family of `family` (Qwen3's
norms of queries and keys, Qwen2's biases are there or not; nothing is trained here), with the
adapter that was attached to it, and computes the same logits as the module: to 1e-5 in fp32, and
bit-identically on CPU for one causal forward of a few tokens at the default dimensions, which tests
assert. Where no mask stands, a gated adapter leaves the arithmetic as the base's. The caller gives
token ids, positions, cache slots and a mask of which slots each token sees, so one function serves
prefill, AR steps, block denoising and verification. Not here: who sees whom (`layout`, `decode`),
sampling, training.

Why not the module itself: on small models most of its time per token is Python (five times more
than this at batch 1), which would flatter every decoder that calls it less often.

Letters: B rows, T new tokens, C cache slots, V vocabulary, D hidden, H heads, G key-value heads,
E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgr2.model.backend import Session
from diffgr2.model.family import sizes_of
from diffgr2.model.gated import adapter_in, apart, factors, folded
from diffgr2.model.pools import Pools
from diffgr2.model.whole import HERE, Whole


@dataclass(frozen=True)
class _Product:
    """One matrix or several beside each other, and what an adapter adds where it is active."""

    weight: Tensor
    bias: Tensor | None
    more: tuple[Tensor, Tensor] | None
    everywhere: bool = False  # whether the adapter has no gate

    @staticmethod
    def of(*parts: Any) -> _Product:
        weight = _beside(parts)
        biased = parts[0].bias is not None
        bias = torch.cat([part.bias for part in parts]).detach() if biased else None
        pairs = [factors(part) for part in parts]
        if not any(pairs):
            return _Product(weight, bias, None)
        nothing = weight.new_empty(0, weight.shape[1])
        low = torch.cat([nothing if pair is None else pair[0] for pair in pairs])
        high = [
            weight.new_empty(part.out_features, 0) if pair is None else pair[1]
            for part, pair in zip(parts, pairs, strict=True)
        ]
        everywhere = not any(getattr(part, "gated", False) for part in parts)
        return _Product(weight, bias, (low, torch.block_diag(*high)), everywhere)

    def __call__(self, x_BTD: Tensor, gate: Tensor | None) -> Tensor:
        """`gate`: the flat places of masked tokens; on accelerators a 0 or 1 for each token."""
        made = F.linear(x_BTD, self.weight, self.bias)
        if self.more is None or (gate is None and not self.everywhere):
            return made
        low, high = self.more
        if gate is None:
            return made + F.linear(F.linear(x_BTD, low), high)
        if gate.is_floating_point():
            return made + F.linear(F.linear(x_BTD * gate, low), high)
        more = F.linear(F.linear(x_BTD.flatten(0, 1)[gate], low), high)
        made.view(-1, made.shape[-1]).index_add_(0, gate, more)
        return made

    @property
    def tensors(self) -> list[Tensor]:
        return [
            tensor for tensor in (self.weight, self.bias, *(self.more or ())) if tensor is not None
        ]


def _beside(parts: Sequence[Any]) -> Tensor:
    """The matrices of these as one, without a copy where they lie so."""
    weights = [part.weight.detach() if apart(part) else folded(part) for part in parts]
    if len(weights) == 1:
        return weights[0]
    joined = _joined(weights)
    if joined is not None:
        return joined
    pairs = zip(weights, parts, strict=True)
    if weights[0].device.type == "cpu" or any(
        w.data_ptr() != p.weight.data_ptr() for w, p in pairs
    ):
        return torch.cat(weights)
    return adjoin(parts)


def _joined(weights: Sequence[Tensor]) -> Tensor | None:
    """One matrix over these where they lie one behind the other."""
    first, end = weights[0], weights[0].data_ptr()
    for weight in weights:
        near = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (near and weight.is_contiguous() and weight.data_ptr() == end):
            return None
        end += weight.numel() * weight.element_size()
    width = first.shape[1]
    return first.as_strided((sum(map(len, weights)), width), (width, 1))


def adjoin(parts: Sequence[Any]) -> Tensor:
    """Let the parts' matrices lie one behind the other from now on, and give the whole: a model on
    an accelerator that trains on is then not held twice."""
    whole = torch.cat([part.weight.detach() for part in parts])
    rows = whole.split([len(part.weight) for part in parts])
    for part, own in zip(parts, rows, strict=True):
        part.weight.data = own
    return whole


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    qkv: _Product
    query_norm: Tensor | None
    key_norm: Tensor | None
    out: _Product
    ffn_norm: Tensor
    gate_up: _Product
    down: _Product


class KVCache:
    """Keys and values of B rows in C slots per layer; what a slot holds is up to the caller."""

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values  # by layer

    @staticmethod
    def empty(model: LeanModel, rows: int, slots: int) -> KVCache:
        shape = (rows, model.kv_heads, slots, model.head_dim)
        make = {"dtype": model.dtype, "device": model.device}
        keys = [torch.zeros(shape, **make) for _ in model.layers]
        return KVCache(keys, [torch.zeros_like(key) for key in keys])

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def slots(self) -> int:
        return self.keys[0].shape[2]

    def select(self, rows: Tensor) -> None:
        """Keep these rows only (finished rows leave the batch)."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]

    def grow(self, slots: int) -> None:
        """Make room for more slots."""
        extra = slots - self.slots
        if extra > 0:
            self.keys = [F.pad(key, (0, 0, 0, extra)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, extra)) for value in self.values]

    def append_rows(self, other: KVCache) -> None:
        """Add another cache's rows below (requests join the batch)."""
        slots = max(self.slots, other.slots)
        self.grow(slots)
        other.grow(slots)
        self.keys = [torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)]
        self.values = [torch.cat(pair) for pair in zip(self.values, other.values, strict=True)]


class LeanModel:
    """See the module's docstring."""

    name = "torch"
    lanes = 1  # its kernels share all threads already

    def __init__(self, module: Any, whole: Whole = HERE) -> None:  # a stock model of a family
        sizes = sizes_of(module.config.to_dict())
        self.heads, self.kv_heads, self.head_dim = sizes.heads, sizes.kv_heads, sizes.head_dim
        self.eps, self.vocab_size, self.max_positions = sizes.eps, sizes.vocab, sizes.positions
        inner = module.model
        with whole(inner.embed_tokens):
            self.embedding = inner.embed_tokens.weight.detach()
        self.layers = [self._layer(layer, whole) for layer in inner.layers]
        with whole(inner.norm):
            self.norm = inner.norm.weight.detach()
        self.head = self.embedding
        if module.lm_head.weight is not inner.embed_tokens.weight:
            with whole(module.lm_head):
                self.head = module.lm_head.weight.detach()
        self.dtype, self.device = self.embedding.dtype, self.embedding.device
        self.folded = self.device.type == "cuda"  # see _attend
        adapter = adapter_in(module)
        self.gate_id = None if adapter is None else adapter.mask_id  # where an adapter is active
        self._cos, self._sin = self._rotary(inner, self.max_positions)
        self.positions = torch.arange(self.max_positions, device=self.device)
        self.spare: list[Any] = []  # caches of its sessions on accelerators that none uses now
        self.pools = Pools()  # where their graphs keep what they compute

    @staticmethod
    def _layer(layer: Any, whole: Whole) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp
        normed = hasattr(attention, "q_norm")
        with whole(layer):
            return _Layer(
                attention_norm=layer.input_layernorm.weight.detach(),
                qkv=_Product.of(attention.q_proj, attention.k_proj, attention.v_proj),
                query_norm=attention.q_norm.weight.detach() if normed else None,
                key_norm=attention.k_norm.weight.detach() if normed else None,
                out=_Product.of(attention.o_proj),
                ffn_norm=layer.post_attention_layernorm.weight.detach(),
                gate_up=_Product.of(mlp.gate_proj, mlp.up_proj),
                down=_Product.of(mlp.down_proj),
            )

    def _rotary(self, inner: Any, length: int) -> tuple[Tensor, Tensor]:
        """Tables [length, E]; the sine carries the sign of the half-rotation."""
        position = torch.arange(length, device=self.device)[None]
        cos, sin = inner.rotary_emb(self.embedding[:1, None], position)
        half = self.head_dim // 2
        sign = torch.ones(self.head_dim, device=self.device, dtype=sin.dtype)
        sign[:half] = -1
        return cos[0], sin[0] * sign

    def session(self, mask_id: int) -> Session:
        """This model as a backend (`backend.Backend`)."""
        from diffgr2.model.session import TorchSession
        from diffgr2.model.static import StaticSession

        return (TorchSession if self.device.type == "cpu" else StaticSession)(self, mask_id)

    @property
    def finite(self) -> bool:
        """Whether all weights, and the tables of positions, are numbers."""
        products = [p for y in self.layers for p in (y.qkv, y.out, y.gate_up, y.down)]
        matrices = [tensor for product in products for tensor in product.tensors]
        norms = [n for y in self.layers for n in (y.attention_norm, y.ffn_norm)]
        some = [n for y in self.layers for n in (y.query_norm, y.key_norm)]
        every = [self.embedding, self.norm, self.head, *matrices, *norms, self._cos, self._sin]
        every += [tensor for tensor in some if tensor is not None]
        return all(bool(torch.isfinite(tensor).all()) for tensor in every)

    @torch.inference_mode()
    def __call__(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        cache: KVCache,
        slot: int | Tensor,
        mask_BTC: Tensor | None,
        seen: int,
        *,
        logits_from: int = 0,
        masked: bool | None = None,
    ) -> Tensor:
        """Logits [B, T - logits_from, V] of new tokens; their keys and values enter the cache.

        `slot`: first slot of the new tokens if all rows agree (contiguous), else [B, T] slots.
        `seen`: slots 0 … seen-1 take part in attention; `mask_BTC` says which of them each token
        sees (None = all of them). `masked`: whether the mask token is among them (None = look).
        """
        gate = self._gate(ids_BT, masked)
        hidden_BTD = self._hidden(ids_BT, position_BT, cache, slot, mask_BTC, seen, gate)
        return F.linear(hidden_BTD[:, logits_from:], self.head)

    @torch.inference_mode()
    def fill(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        cache: KVCache,
        slot: int | Tensor,
        mask_BTC: Tensor | None,
        seen: int,
    ) -> None:
        """The same without logits: prompts enter the cache."""
        gate = self._gate(ids_BT, None)
        self._hidden(ids_BT, position_BT, cache, slot, mask_BTC, seen, gate)

    def _gate(self, ids_BT: Tensor, masked: bool | None) -> Tensor | None:
        """Where an adapter is active, as a product takes it; None: nowhere."""
        if self.gate_id is None or masked is False:
            return None
        masked_BT = ids_BT == self.gate_id
        if masked is None and not bool(masked_BT.any()):
            return None
        if self.folded:  # of one shape whatever is masked
            return masked_BT[..., None].to(self.dtype)
        return torch.nonzero(masked_BT.flatten())[:, 0]

    def _hidden(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        cache: KVCache,
        slot: int | Tensor,
        mask_BTC: Tensor | None,
        seen: int,
        gate: Tensor | None,
    ) -> Tensor:
        rows, length = ids_BT.shape
        heads, groups, size = self.heads, self.kv_heads, self.head_dim
        cos_BTE = F.embedding(position_BT, self._cos)[:, None]
        sin_BTE = F.embedding(position_BT, self._sin)[:, None]
        mask = None if mask_BTC is None else self._bias(mask_BTC[:, None])
        row = None
        if isinstance(slot, Tensor):
            row = torch.arange(rows, device=self.device)[:, None]
        x_BTD = F.embedding(ids_BT, self.embedding)
        width = (x_BTD.shape[-1],)
        for number, layer in enumerate(self.layers):
            h_BTD = F.rms_norm(x_BTD, width, layer.attention_norm, self.eps)
            qkv = layer.qkv(h_BTD, gate)
            qkv = qkv.view(rows, length, heads + 2 * groups, size).transpose(1, 2)
            q, k = qkv[:, :heads], qkv[:, heads : heads + groups]
            if layer.query_norm is not None and layer.key_norm is not None:
                q = F.rms_norm(q, (size,), layer.query_norm, self.eps)
                k = F.rms_norm(k, (size,), layer.key_norm, self.eps)
            q = q * cos_BTE + q.roll(size // 2, -1) * sin_BTE
            k = k * cos_BTE + k.roll(size // 2, -1) * sin_BTE
            keys, values = cache.keys[number], cache.values[number]
            if row is None:
                keys[:, :, slot : slot + length] = k
                values[:, :, slot : slot + length] = qkv[:, heads + groups :]
            else:
                keys[row, :, slot] = k.transpose(1, 2)
                values[row, :, slot] = qkv[:, heads + groups :].transpose(1, 2)
            mixed = self._attend(q, keys[:, :, :seen], values[:, :, :seen], mask)
            mixed_BTD = mixed.transpose(1, 2).reshape(rows, length, heads * size)
            x_BTD = x_BTD + layer.out(mixed_BTD, gate)
            h_BTD = F.rms_norm(x_BTD, width, layer.ffn_norm, self.eps)
            act, up = layer.gate_up(h_BTD, gate).chunk(2, -1)
            x_BTD = x_BTD + layer.down(F.silu(act) * up, gate)
        return F.rms_norm(x_BTD, width, self.norm, self.eps)

    def _bias(self, mask: Tensor) -> Tensor:
        """The mask as attention takes it; as numbers, so that not every layer converts it."""
        if self.folded:
            return mask.repeat(1, 1, self.heads // self.kv_heads, 1)
        return torch.zeros(mask.shape, dtype=self.dtype).masked_fill_(~mask, -torch.inf)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Grouped-query attention [B, H, T, E]; `mask` comes once per query row.

        With a mask, CUDA's fused kernels take no grouped heads, and the plain one copies keys and
        values per head in fp32. Folded, the queries that share a key head are rows of one head.
        """
        if not self.folded:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        folded = q.reshape(q.shape[0], self.kv_heads, -1, self.head_dim)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask).reshape(q.shape)
