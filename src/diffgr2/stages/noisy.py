"""Rows of `[prompt | x0 | xt ...]` and batches of them: what the diffusion stages train on.

Contract: a `NoisyRow` is one response with one or more noisy copies and says, for each supervised
token, at which flat place of the row its prediction stands: at its own (masked) place, or with
shifted alignment one to the left, where a block's first token is predicted by the clean token
before it. `NoisyBatch.pack` pads rows and builds the attention mask. Not here: noise
(`objectives.noise`), losses, rollouts.

Letters: P prompt, R response (padded to its last block's end), B rows, T tokens, N predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffgr2.model.contract import BlockContract
from diffgr2.model.layout import block_bounds, block_of, row_mask, row_positions, stack_masks


@dataclass(frozen=True)
class NoisyRow:
    """One response and its noisy copies; `response_R` fills its last block.

    A block of a copy without a mask stays out of the row: nothing is predicted there, and no other
    token sees it.
    """

    prompt: list[int]
    response_R: np.ndarray
    masked_CR: np.ndarray  # C copies
    shift: int
    clean_causal: bool

    def kept(self, block_size: int) -> np.ndarray:
        """Which tokens [T] of the full layout (`model.layout`) stand in the row."""
        prompt, length = len(self.prompt), len(self.response_R)
        block_R = response_blocks(prompt, length, block_size, self.shift)
        start_b = np.flatnonzero(np.diff(block_R, prepend=-1))
        used_Cb = np.logical_or.reduceat(self.masked_CR, start_b, axis=1)
        noisy_CR = np.repeat(used_Cb, np.diff(start_b, append=length), axis=1)
        return np.concatenate([np.ones(prompt + length, dtype=bool), noisy_CR.ravel()])

    def ids(self, mask_id: int) -> np.ndarray:
        """Tokens of the full layout."""
        noisy_CR = np.where(self.masked_CR, mask_id, self.response_R[None])
        return np.concatenate([self.prompt, self.response_R, noisy_CR.ravel()]).astype(np.int64)

    def positions(self) -> Tensor:
        """Document positions of the full layout."""
        return row_positions(len(self.prompt), len(self.response_R), len(self.masked_CR))

    def attends(self, block_size: int) -> Tensor:
        """Who sees whom in the full layout."""
        return row_mask(
            len(self.prompt),
            len(self.response_R),
            len(self.masked_CR),
            block_size,
            self.shift,
            clean_causal=self.clean_causal,
        )

    def noisy_places(self, copy: int, at_N: np.ndarray, contract: BlockContract) -> np.ndarray:
        """Where in the row copy's predictions of response tokens `at_N` stand."""
        prompt, length = len(self.prompt), len(self.response_R)
        start = prompt + length * (1 + copy)
        place_T = self.kept(contract.block_size).cumsum() - 1
        place_R = place_T[start : start + length]
        if contract.alignment == "same_position":
            return place_R[at_N]
        block_N = block_of(prompt + at_N, contract.block_size, self.shift)
        before_N = block_of(prompt + at_N - 1, contract.block_size, self.shift)
        first_N = (block_N != before_N) | (at_N == 0)
        return np.where(first_N, prompt + at_N - 1, place_R[at_N - 1])

    def clean_places(self, at_N: np.ndarray) -> np.ndarray:
        """Where the AR head predicts response tokens `at_N`: one to the left, in the clean half."""
        return len(self.prompt) + at_N - 1


def fill_block(
    response: Sequence[int] | np.ndarray, prompt_length: int, block_size: int, shift: int, fill: int
) -> np.ndarray:
    """The response, filled up to the end of its last block."""
    _, end = block_bounds(prompt_length + len(response) - 1, block_size, shift)
    out = np.full(end - prompt_length, fill, dtype=np.int64)
    out[: len(response)] = response
    return out


def response_blocks(prompt_length: int, length: int, block_size: int, shift: int) -> np.ndarray:
    """Block number of each response token."""
    return np.asarray(block_of(prompt_length + np.arange(length), block_size, shift))


@dataclass(frozen=True)
class NoisyBatch:
    """Rows for one forward."""

    ids_BT: Tensor
    position_BT: Tensor
    attends_B1TT: Tensor

    @classmethod
    def pack(
        cls, rows: Sequence[NoisyRow], mask_id: int, pad_id: int, block_size: int
    ) -> NoisyBatch:
        kept = [row.kept(block_size) for row in rows]
        length = -(-max(int(kept_T.sum()) for kept_T in kept) // 8) * 8
        ids = np.full((len(rows), length), pad_id, dtype=np.int64)
        position = torch.zeros(len(rows), length, dtype=torch.int64)
        masks = []
        for b, (row, kept_T) in enumerate(zip(rows, kept, strict=True)):
            stays = torch.from_numpy(np.flatnonzero(kept_T))
            ids[b, : len(stays)] = row.ids(mask_id)[kept_T]
            position[b, : len(stays)] = row.positions()[stays]
            masks.append(row.attends(block_size)[stays][:, stays])
        attends = stack_masks(masks, length)
        return cls(torch.from_numpy(ids), position, attends)

    @property
    def width(self) -> int:
        return self.ids_BT.shape[1]
