"""Rows joined end to end in one forward of the stock module: training without padding on GPUs.

Contract: `use(model)` gives a stock model of a family an attention of its own name, `chosen(model)`
says whether it has it, and `hidden_at` then computes the trunk's hidden states, to rounding, over
one sequence that holds all rows, told apart by their documents (`masks.Marks`). On CUDA attention
is torch's flex attention, which reads the marks in its kernel and skips blocks of 128 × 128 pairs
that hold none; what it skips is found from strips of 128 queries, so that no T×T is ever made. On
other devices flex attention has no backward, and the same marks make a dense mask for SDPA. Modules
are called, so sharded ones work, and layers may be recomputed. Not here: plain models on CPUs,
which need no module's own forward (`packed`).

Letters: B rows, T tokens of a padded row, N tokens of all rows, M chosen places, H heads, G
key-value heads, E head size, S strips of 128 tokens.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from diffgr2.model.masks import Marks, attends, causal_marks

NAME = "diffgr2_joined"
STRIP = 128
"""Queries and keys of one block of flex attention."""


def use(model: Any) -> None:
    """Let a stock model's attention take joined rows."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # of a call without marks
    model.config._attn_implementation = NAME  # its decoder layers share the object


@cache
def trusted(size: int, groups: int, heads: int, device: str = "cuda") -> str:
    """What is wrong with this device's compiled kernel, in a line; nothing where it equals dense.

    Forwards and back, on two rows, for heads of this size; asked before `auto` takes it.
    """
    length_B = torch.tensor([150, 90], device=device)
    marks_BT = causal_marks(length_B, 150)
    there_BT = torch.arange(150, device=device) < length_B[:, None]
    mask = block_mask(end_to_end(marks_BT, there_BT))
    draw, tokens = torch.Generator(device).manual_seed(0), mask.seq_lengths[0]
    given = [
        torch.randn(1, n, tokens, size, device=device, generator=draw) for n in (heads, groups)
    ]
    found = []
    try:
        for attends_ in (mask, dense(mask)):
            q, k = (part.clone().requires_grad_() for part in given)
            mixed = _attention(None, q, k, k, attends_)[0]
            mixed.square().sum().backward()
            found.append((mixed, q.grad, k.grad))
    except Exception as error:  # whatever a compiler has to say
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    pairs = zip(*found, strict=True)
    close = (torch.allclose(a, b, rtol=1e-2, atol=1e-2) for a, b in pairs)  # TF32 may be on
    return "" if all(close) else "it differs from dense attention"


def chosen(model: Any) -> bool:
    """Whether the model's attention takes joined rows."""
    return getattr(getattr(model, "config", None), "_attn_implementation", None) == NAME


def hidden_at(
    model: Any,
    ids_BT: Tensor,
    index_M: Tensor,
    length_B: Tensor,
    *,
    marks_BT: Marks | None = None,
    position_BT: Tensor | None = None,
) -> Tensor:
    """Hidden states [M, D] at flat places (row * T + t); causal without marks."""
    rows, width = ids_BT.shape
    there_BT = torch.arange(width, device=ids_BT.device) < length_B[:, None]
    if position_BT is None:
        position_BT = torch.arange(width, device=ids_BT.device).expand(rows, -1)
    if marks_BT is None:
        marks_BT = causal_marks(length_B, width)
    marks_N = end_to_end(marks_BT, there_BT)
    more = len(marks_N.own) - int(there_BT.sum())
    hidden_1ND = model.model(
        input_ids=F.pad(ids_BT[there_BT], (0, more))[None],
        attention_mask=block_mask(marks_N),
        position_ids=F.pad(position_BT[there_BT], (0, more))[None],
        use_cache=False,
    ).last_hidden_state
    place_BT = there_BT.flatten().cumsum(0) - 1
    return hidden_1ND[0, place_BT[index_M]]


def end_to_end(marks_BT: Marks, there_BT: Tensor) -> Marks:
    """The rows' tokens one after the other, each row a document, filled up to whole strips."""
    row_BT = torch.arange(len(there_BT), device=there_BT.device)[:, None].expand_as(there_BT)
    marks_N = replace(marks_BT, document=row_BT).map(lambda part: part[there_BT])
    return padded(marks_N, -len(marks_N.own) % STRIP)


def padded(marks_N: Marks, more: int) -> Marks:
    """With so many tokens behind them that are one another's document and see backwards."""

    def filled(part: Tensor, values: Tensor) -> Tensor:
        return torch.cat([part, values])

    at = torch.arange(more, device=marks_N.own.device)
    nothing = torch.zeros_like(at)
    return Marks(
        filled(marks_N.document, nothing - 1),
        filled(marks_N.place, at),
        filled(marks_N.reach, at + 1),
        filled(marks_N.own, nothing),
    )


def block_mask(marks_N: Marks) -> BlockMask:
    """Which strips of keys each strip of queries has to look at, and where it may see all."""
    strips = len(marks_N.own) // STRIP
    some, every = [], []
    for s in range(strips):
        queries = marks_N.map(lambda part, s=s: part[s * STRIP : (s + 1) * STRIP, None])
        pairs = attends(queries, marks_N.map(lambda part: part[None]))
        blocks = pairs.unflatten(1, (strips, STRIP))
        some.append(blocks.any(2).any(0))
        every.append(blocks.all(2).all(0))
    some_SS, every_SS = torch.stack(some), torch.stack(every)
    size = len(marks_N.own)
    return BlockMask.from_kv_blocks(
        *_listed(some_SS & ~every_SS),
        *_listed(every_SS),
        BLOCK_SIZE=STRIP,
        mask_mod=_sight(marks_N),
        seq_lengths=(size, size),
    )


def _sight(marks_N: Marks) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """`masks.attends` of places, of tensors alone: torch's compiler reads it into the kernel."""
    document_N, own_N = marks_N.document, marks_N.own
    place_N, reach_N = marks_N.place, marks_N.reach

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        clean = place_N[key] < reach_N[query]
        noisy = (own_N[query] == own_N[key]) & (own_N[key] > 0)
        return (document_N[query] == document_N[key]) & (clean | noisy)

    return sees


def _listed(chosen_SS: Tensor) -> tuple[Tensor, Tensor]:
    """How many of each row are chosen [1, 1, S], and their numbers in front [1, 1, S, S]."""
    count_S = chosen_SS.sum(1).int()
    order_SS = torch.argsort(chosen_SS.int(), dim=1, descending=True, stable=True).int()
    return count_S[None, None], order_SS[None, None]


def dense(mask: BlockMask) -> Tensor:
    """All pairs of a block mask [N, N]: for small sequences and for tests."""
    size = mask.seq_lengths[0]
    at = torch.arange(size, device=mask.kv_num_blocks.device)
    nothing = torch.zeros((), dtype=torch.long, device=at.device)
    return mask.mask_mod(nothing, nothing, at[:, None], at[None])


@cache
def _compiled() -> Any:
    """Whole or not at all: what is not compiled has no backward, and would not say why."""
    return torch.compile(flex_attention, fullgraph=True)


def _attention(
    module: Any,
    q_1HNE: Tensor,
    k_1GNE: Tensor,
    v_1GNE: Tensor,
    attention_mask: BlockMask | Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What the stock layers call; norms and rotation under autocast leave queries in fp32."""
    q_1HNE, k_1GNE = q_1HNE.to(v_1GNE.dtype), k_1GNE.to(v_1GNE.dtype)
    if isinstance(attention_mask, BlockMask) and q_1HNE.device.type == "cuda":
        how: dict[str, Any] = {"block_mask": attention_mask, "scale": scaling, "enable_gqa": True}
        mixed_1HNE = _compiled()(q_1HNE, k_1GNE, v_1GNE, **how)
    else:
        mask = dense(attention_mask) if isinstance(attention_mask, BlockMask) else attention_mask
        how = {"attn_mask": mask, "is_causal": mask is None, "scale": scaling, "enable_gqa": True}
        mixed_1HNE = F.scaled_dot_product_attention(q_1HNE, k_1GNE, v_1GNE, **how)
    return mixed_1HNE.transpose(1, 2).contiguous(), None
