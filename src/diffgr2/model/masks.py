"""Attention masks of training rows `[prompt | x0 | xt ...]` (paper §3.2).

Contract: a training row holds the prompt, the clean response x0 and one or more noisy copies xt
that share x0's positions; `row_mask` says who sees whom. Masks are boolean, True = attends, for
SDPA (a boolean 4-D mask is silently wrong with eager attention). `Marks` say the same in four
numbers per token, from which `attends` tells any pair: rows may be joined end to end, and no T×T
need ever be made. Not here: where blocks begin (`layout`), noise (`objectives.noise`), caches
(`forward`), kernels (`joined`).

Letters: B rows, T tokens of the row, P prompt, R response.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from diffgr2.model.layout import block_of

NOISY = 2**30
"""The place of a noisy token: out of the reach of all, but of its own block."""


def row_mask(
    prompt_length: int,
    response_length: int,
    noisy_copies: int,
    block_size: int,
    shift: int,
    *,
    clean_causal: bool,
) -> torch.Tensor:
    """Boolean [T, T] mask of one row, T = P + R * (1 + copies).

    Clean tokens see clean tokens: causally, or block-causally (all of their own block within the
    prompt or within the response; the prompt never sees the response, its cache is made before).
    A noisy block sees the prompt, the clean blocks before it, and itself, both ways.
    """
    clean = prompt_length + response_length
    position = torch.arange(clean)
    block = block_of(position, block_size, shift)
    is_response = position >= prompt_length
    total = clean + response_length * noisy_copies
    mask = torch.zeros(total, total, dtype=torch.bool)
    mask[:clean, :clean] = position[None, :] <= position[:, None]
    if not clean_causal:
        same = (block[None, :] == block[:, None]) & (is_response[None, :] == is_response[:, None])
        mask[:clean, :clean] |= same
    noisy_block = block[prompt_length:]
    sees_clean = (block[None, :] < noisy_block[:, None]) | ~is_response[None, :]
    sees_self = noisy_block[None, :] == noisy_block[:, None]
    for copy in range(noisy_copies):
        rows = slice(clean + copy * response_length, clean + (copy + 1) * response_length)
        mask[rows, :clean] = sees_clean
        mask[rows, rows] = sees_self
    return mask


def row_positions(prompt_length: int, response_length: int, noisy_copies: int) -> torch.Tensor:
    """Document positions [T] of a row; every copy of the response shares x0's."""
    clean = torch.arange(prompt_length + response_length)
    return torch.cat([clean, *[clean[prompt_length:]] * noisy_copies])


def stack_masks(masks: list[torch.Tensor], length: int) -> torch.Tensor:
    """Pad [t, t] masks to [B, 1, T, T]; a padding query sees itself only, so no row is empty."""
    out_B1TT = torch.eye(length, dtype=torch.bool).repeat(len(masks), 1, 1, 1)
    for b, mask in enumerate(masks):
        out_B1TT[b, 0, : len(mask), : len(mask)] = mask
    return out_B1TT


@dataclass(frozen=True)
class Marks:
    """Who sees whom, by token: [T], or [B, T] for padded rows (of which each is by itself).

    A token sees the clean tokens before its `reach` (document positions), and the noisy ones of its
    own block and copy; never another document's.
    """

    document: Tensor
    place: Tensor  # document position of a clean token, NOISY of another
    reach: Tensor
    own: Tensor  # number of a noisy token's copy and block, from 1; 0 = clean

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(**{name: change(part) for name, part in vars(self).items()})

    def to(self, device: Any) -> Self:
        return self.map(lambda part: part.to(device))

    def dense(self) -> Tensor:
        """All pairs: [T, T], or [B, 1, T, T]; a padding query sees itself, so no row is empty."""
        length = self.place.shape[-1]
        queries, keys = self.map(lambda part: part[..., None]), self.map(lambda p: p[..., None, :])
        sees = attends(queries, keys) | torch.eye(length, dtype=torch.bool, device=self.own.device)
        return sees if sees.dim() == 2 else sees[:, None]


def attends(query: Marks, key: Marks) -> Tensor:
    """Whether queries see keys, for marks of any shapes that broadcast."""
    clean = key.place < query.reach
    noisy = (query.own == key.own) & (key.own > 0)
    return (query.document == key.document) & (clean | noisy)


def row_marks(
    prompt_length: int,
    response_length: int,
    noisy_copies: int,
    block_size: int,
    shift: int,
    *,
    clean_causal: bool,
) -> Marks:
    """What `row_mask` says, as marks [T].

    A clean token sees up to itself, or to the end of its block within the prompt or within the
    response; a noisy one the whole prompt and the clean blocks before its own.
    """
    clean = prompt_length + response_length
    position = torch.arange(clean)
    begin, end = block_bounds_of(position, block_size, shift)
    last = torch.where(position < prompt_length, prompt_length, clean)
    reach = position + 1 if clean_causal else torch.minimum(end, last)
    noisy_R = begin[prompt_length:].clamp_min(prompt_length)
    block_R = block_of(position, block_size, shift)[prompt_length:]
    rank_R = block_R - block_R.min() if response_length else block_R
    blocks = int(rank_R.max()) + 1 if response_length else 0
    own = [rank_R + copy * blocks + 1 for copy in range(noisy_copies)]
    return Marks(
        torch.zeros(clean + response_length * noisy_copies, dtype=torch.long),
        torch.cat([position, torch.full((response_length * noisy_copies,), NOISY)]),
        torch.cat([reach, *[noisy_R] * noisy_copies]),
        torch.cat([torch.zeros_like(position), *own]),
    )


def block_bounds_of(position: Tensor, block_size: int, shift: int) -> tuple[Tensor, Tensor]:
    """`layout.block_bounds` of each position."""
    begin = block_of(position, block_size, shift) * block_size - shift
    return begin.clamp_min(0), begin + block_size


def causal_marks(length_B: Tensor, width: int) -> Marks:
    """Marks [B, T] of plain causal rows with padding behind them."""
    position_BT = torch.arange(width, device=length_B.device).expand(len(length_B), -1)
    there_BT = position_BT < length_B[:, None]
    nothing_BT = torch.zeros_like(position_BT)
    place_BT = position_BT.where(there_BT, NOISY)
    return Marks(nothing_BT, place_BT, (position_BT + 1).where(there_BT, 0), nothing_BT)


def stack_marks(rows: Sequence[Marks], length: int) -> Marks:
    """Marks [B, T] of rows of several lengths; padding sees and is seen by nobody."""
    fills = {"document": 0, "place": NOISY, "reach": 0, "own": 0}

    def column(name: str, fill: int) -> Tensor:
        parts = [getattr(row, name) for row in rows]
        wide = torch.full((length,), fill)  # so that all are padded to the length
        return pad_sequence([*parts, wide], batch_first=True, padding_value=fill)[:-1]

    return Marks(**{name: column(name, fill) for name, fill in fills.items()})
