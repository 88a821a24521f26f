"""Attention masks of training rows `[prompt | x0 | xt ...]` (paper §3.2).

Contract: a training row holds the prompt, the clean response x0 and one or more noisy copies xt
that share x0's positions; `row_mask` says who sees whom. Masks are boolean, True = attends, for
SDPA (a boolean 4-D mask is silently wrong with eager attention). Not here: where blocks begin
(`layout`), noise (`objectives.noise`), caches (`forward`).

Letters: B rows, T tokens of the row, P prompt, R response.
"""

import torch

from diffgr2.model.layout import block_of


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
