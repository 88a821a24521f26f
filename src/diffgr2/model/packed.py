"""A stock model's hidden states without padding: how training runs on CPUs.

Contract: `hidden_at` computes what the module's own trunk computes, to rounding, with the module's
own parameters and gradients, adapters included; `able` says for which modules. Rows are joined end
to end, so padding costs nothing; only attention works row by row, in fp32 under autocast too, which
is faster here. The last layer works at the chosen places alone: nobody reads the others. In bf16,
where a product is compiled for its shape, tokens are filled up to few numbers of them. Not here:
caches (`forward`), sharded modules and accelerators, where one padded batch is the faster way.

Letters: B rows, T tokens of a padded row, N tokens of all rows, M chosen places, D hidden, H heads,
G key-value heads, E head size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from diffgr2.model.family import FAMILIES
from diffgr2.model.gated import adapter_in, product


def able(model: Any) -> bool:
    """Whether this is a plain model of a family, whose weights lie whole on a CPU."""
    config: Any = getattr(model, "config", None)
    plain = getattr(config, "model_type", None) in FAMILIES and not (
        getattr(config, "attention_bias", False)
        or getattr(config, "mlp_bias", False)
        or getattr(config, "use_sliding_window", False)
        or config.hidden_act != "silu"
    )
    # All of them: while a sharded model is at work, the weights of its root alone are whole.
    return plain and all(
        weight.device.type == "cpu" and not isinstance(weight, DTensor)
        for weight in model.parameters()
    )


@dataclass(frozen=True)
class _Rows:
    """Which tokens belong together and who sees whom."""

    lengths: list[int]  # tokens per row
    counts: list[int]  # chosen places per row
    chosen_M: Tensor  # among the N tokens, by row, filled up
    masks: list[Tensor | None]  # [t, t] to add to the scores; None = causal
    chosen_masks: list[Tensor]  # of the chosen places alone
    gated: tuple[Tensor | None, Tensor | None]  # where a gated adapter is active: tokens, places


def hidden_at(
    model: Any,  # a stock model of a family
    ids_BT: Tensor,
    index_M: Tensor,
    length_B: Tensor,
    *,
    attends_B1TT: Tensor | None = None,
    position_BT: Tensor | None = None,
) -> Tensor:
    """Hidden states [M, D] at flat places (row * T + t); causal if no mask is given."""
    there_BT = torch.arange(ids_BT.shape[1]) < length_B[:, None]
    if position_BT is None:
        position_BT = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    order_M = torch.argsort(index_M // ids_BT.shape[1], stable=True)
    rows = _rows(index_M[order_M], length_B.tolist(), ids_BT.shape, attends_B1TT)
    inner, adapter = model.model, adapter_in(model)
    ids_N, position_N = filled(ids_BT[there_BT]), filled(position_BT[there_BT])
    if adapter is not None and adapter.mask_id is not None:
        both = (ids_N, ids_N[rows.chosen_M])
        rows = replace(rows, gated=tuple(_masked(ids, adapter.mask_id) for ids in both))
    x_ND = F.embedding(ids_N, inner.embed_tokens.weight)
    rotary = _rotary(inner, x_ND, position_N)
    for layer in inner.layers[:-1]:
        if model.training and layer.gradient_checkpointing:  # computed again on the way back
            how: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
            x_ND = checkpoint(_layer, layer, x_ND, rotary, rows, last=False, **how)
        else:
            x_ND = _layer(layer, x_ND, rotary, rows, last=False)
    x_MD = _norm(_layer(inner.layers[-1], x_ND, rotary, rows, last=True), inner.norm)
    x_MD = x_MD[: len(order_M)]
    return torch.empty_like(x_MD).index_copy(0, order_M, x_MD)


def head(model: Any, hidden_MD: Tensor) -> Tensor:
    """Logits [M, V] of hidden states."""
    return model.lm_head(filled(hidden_MD))[: len(hidden_MD)]


def filled(x: Tensor) -> Tensor:
    """With rows of zeros behind its own, which belong to nobody."""
    return F.pad(x, (*(0, 0) * (x.dim() - 1), 0, filling(len(x))))


def filling(n: int) -> int:
    """How many rows more a product computes than n: a sixteenth at most, and in bf16 alone."""
    if not torch.is_autocast_enabled("cpu"):
        return 0
    step = 1 << max(n.bit_length() - 5, 0)
    return -n % step


def _rows(
    index_M: Tensor, lengths: list[int], shape: Sequence[int], attends_B1TT: Tensor | None
) -> _Rows:
    """The rows of one forward; places come by row."""
    row_M, place_M = index_M // shape[1], index_M % shape[1]
    counts = torch.bincount(row_M, minlength=shape[0]).tolist()
    start_B = torch.tensor([0, *accumulate(lengths)][:-1])
    masks: list[Tensor | None] = [None] * len(lengths)
    chosen_masks = []
    for b, (places, n) in enumerate(zip(place_M.split(counts), lengths, strict=True)):
        if attends_B1TT is None:
            chosen_masks.append(_bias(torch.arange(n) <= places[:, None]))
        else:
            masks[b] = whole = _bias(attends_B1TT[b, 0, :n, :n])
            chosen_masks.append(whole[places])
    chosen_M = filled(start_B[row_M] + place_M)
    return _Rows(lengths, counts, chosen_M, masks, chosen_masks, (None, None))


def _masked(ids: Tensor, mask_id: int) -> Tensor | None:
    """Where the mask token stands, None if nowhere."""
    at = torch.nonzero(ids == mask_id)[:, 0]
    return at if len(at) else None


def _bias(attends: Tensor) -> Tensor:
    """A mask as numbers, so that not every layer converts it."""
    return torch.zeros(attends.shape).masked_fill_(~attends, -torch.inf)


def _rotary(inner: Any, x_ND: Tensor, position_N: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, 1, E]; the sine carries the sign of the half-rotation."""
    cos, sin = inner.rotary_emb(x_ND[None], position_N[None])
    sign = torch.ones(sin.shape[-1])
    sign[: len(sign) // 2] = -1
    return cos[0, :, None], (sin[0] * sign)[:, None]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def _norm(x: Tensor, module: Any) -> Tensor:
    """RMS norm in fp32, as the stock module computes it, in the weights' precision."""
    weight = module.weight
    made = F.rms_norm(x.float(), x.shape[-1:], weight.float(), module.variance_epsilon)
    return made.to(weight.dtype)


def _heads(h_ND: Tensor, attention: Any, which: str, gated: Tensor | None) -> Tensor:
    """Queries, keys or values by head, with the bias and the norm that the family has."""
    made = product(getattr(attention, f"{which}_proj"), h_ND, gated)
    made = made.unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{which}_norm", None)
    return made if norm is None else _norm(made, norm)


def _layer(
    layer: Any, x_ND: Tensor, rotary: tuple[Tensor, Tensor], rows: _Rows, *, last: bool
) -> Tensor:
    """One decoder layer; the last one answers for the chosen places only [M, D]."""
    attention, mlp, (cos, sin), (gated, _) = layer.self_attn, layer.mlp, rotary, rows.gated
    h_ND = _norm(x_ND, layer.input_layernorm)
    k_NGE = _turned(_heads(h_ND, attention, "k", gated), cos, sin)
    v_NGE = _heads(h_ND, attention, "v", gated)
    if last:
        x_ND, h_ND, cos, sin = (
            part.index_select(0, rows.chosen_M) for part in (x_ND, h_ND, cos, sin)
        )
        gated = rows.gated[1]
    q_NHE = _turned(_heads(h_ND, attention, "q", gated), cos, sin)
    mixed_ND = _attend(q_NHE, k_NGE, v_NGE.float(), rows, last=last).flatten(1)
    mixed_ND = mixed_ND.to(attention.o_proj.weight.dtype)
    x_ND = x_ND + product(attention.o_proj, mixed_ND, gated)
    h_ND = _norm(x_ND, layer.post_attention_layernorm)
    gate, up = product(mlp.gate_proj, h_ND, gated), product(mlp.up_proj, h_ND, gated)
    return x_ND + product(mlp.down_proj, F.silu(gate) * up, gated)


def _attend(q_NHE: Tensor, k_NGE: Tensor, v_NGE: Tensor, rows: _Rows, *, last: bool) -> Tensor:
    """Attention within each row; nothing for what is filled up with, which comes last."""
    masks, counts = (rows.chosen_masks, rows.counts) if last else (rows.masks, rows.lengths)
    parts = zip(
        q_NHE[: sum(counts)].split(counts),
        k_NGE[: sum(rows.lengths)].split(rows.lengths),
        v_NGE[: sum(rows.lengths)].split(rows.lengths),
        masks,
        strict=True,
    )
    mixed = []
    with torch.autocast("cpu", enabled=False):
        for q, k, v, mask in parts:
            if len(q):
                q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
                how: dict[str, Any] = {"attn_mask": mask, "is_causal": mask is None}
                found = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
                mixed.append(found[0].transpose(0, 1))
    return F.pad(torch.cat(mixed), (0, 0, 0, 0, 0, len(q_NHE) - sum(counts)))
