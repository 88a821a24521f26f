"""Rows of `[prompt | x0 | xt ...]` and batches of them: what the diffusion stages train on.

Contract: a `NoisyRow` is one response with one or more noisy copies and says, for each supervised
token, at which place of the row its prediction stands: at its own (masked) place, or with shifted
alignment one to the left, where a block's first token is predicted by the clean token before it.
`noisy_batch` pads rows and builds the attention mask; `realised` reads a trajectory as response,
steps and blocks. Not here: noise (`objectives.noise`), losses, rollouts.

Letters: P prompt, R response (padded to its last block's end), B rows, T tokens, N predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffgr2.model.contract import BlockContract
from diffgr2.model.layout import block_of, response_shift, row_mask, row_positions, stack_masks
from diffgr2.stages.batches import TokenBatch
from diffgr2.types import NEVER, Trajectory


@dataclass(frozen=True)
class NoisyRow:
    """One response and its noisy copies; `response_R` fills its last block.

    A block of a copy without a mask stays out of the row: nothing is predicted there, and no other
    token sees it. The full layout (`model.layout`) is the row with those blocks in it.
    """

    prompt: list[int]
    response_R: np.ndarray
    masked_CR: np.ndarray  # C copies
    shift: int
    clean_causal: bool
    contract: BlockContract

    @property
    def _shape(self) -> tuple[int, int, int]:
        return len(self.prompt), len(self.response_R), len(self.masked_CR)

    @property
    def blocks(self) -> np.ndarray:
        """Block number [R] of each response token."""
        prompt, length, _ = self._shape
        return response_blocks(prompt, length, self.contract.block_size, self.shift)

    @cached_property
    def kept(self) -> np.ndarray:
        """Which tokens [T] of the full layout stand in the row."""
        prompt, length, _ = self._shape
        start_b = np.flatnonzero(np.diff(self.blocks, prepend=-1))
        used_Cb = np.logical_or.reduceat(self.masked_CR, start_b, axis=1)
        noisy_CR = np.repeat(used_Cb, np.diff(start_b, append=length), axis=1)
        return np.concatenate([np.ones(prompt + length, dtype=bool), noisy_CR.ravel()])

    def ids(self) -> np.ndarray:
        """Tokens of the full layout."""
        noisy_CR = np.where(self.masked_CR, self.contract.mask_token_id, self.response_R[None])
        return np.concatenate([self.prompt, self.response_R, noisy_CR.ravel()]).astype(np.int64)

    def positions(self) -> Tensor:
        """Document positions of the full layout."""
        return row_positions(*self._shape)

    def attends(self) -> Tensor:
        """Who sees whom in the full layout."""
        size = self.contract.block_size
        return row_mask(*self._shape, size, self.shift, clean_causal=self.clean_causal)

    def noisy_places(self, copy_N: np.ndarray | int, at_N: np.ndarray) -> np.ndarray:
        """Where in the row these copies' predictions of response tokens `at_N` stand."""
        prompt, length, copies = self._shape
        place_CR = (self.kept.cumsum() - 1)[prompt + length :].reshape(copies, length)
        if self.contract.alignment == "same_position":
            return place_CR[copy_N, at_N]
        block_R = self.blocks
        first_N = (block_R[at_N] != block_R[at_N - 1]) | (at_N == 0)
        return np.where(first_N, prompt + at_N - 1, place_CR[copy_N, at_N - 1])

    def clean_places(self, at_N: np.ndarray) -> np.ndarray:
        """Where the AR head predicts response tokens `at_N`: one to the left, in the clean half."""
        return len(self.prompt) + at_N - 1


def noisy_batch(rows: Sequence[NoisyRow], pad_id: int) -> TokenBatch:
    """Rows for one forward."""
    length = -(-max(int(row.kept.sum()) for row in rows) // 8) * 8
    ids_BT = torch.full((len(rows), length), pad_id)
    position_BT = torch.zeros_like(ids_BT)
    masks = []
    for b, row in enumerate(rows):
        stays = torch.from_numpy(np.flatnonzero(row.kept))
        ids_BT[b, : len(stays)] = torch.from_numpy(row.ids())[stays]
        position_BT[b, : len(stays)] = row.positions()[stays]
        masks.append(row.attends()[stays][:, stays])
    return TokenBatch(ids_BT, position_BT, stack_masks(masks, length))


def response_blocks(prompt_length: int, length: int, block_size: int, shift: int) -> np.ndarray:
    """Block number of each response token."""
    return np.asarray(block_of(prompt_length + np.arange(length), block_size, shift))


def rounds_of(step_R: np.ndarray, block_R: np.ndarray) -> dict[int, np.ndarray]:
    """The steps, in order, that committed tokens of each block that had any."""
    made_R = (step_R >= 0) & (step_R != NEVER)
    rounds = {b: np.unique(step_R[(block_R == b) & made_R]) for b in np.unique(block_R)}
    return {b: steps for b, steps in rounds.items() if len(steps)}


def realised(
    prompt: list[int], trajectory: Trajectory, contract: BlockContract, fill: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(tokens [R], step [R], block [R], shift) up to the end of the terminal block.

    A position that was never committed has the token `fill` and the step NEVER; what a grammar
    settled before the first forward has a step below 0.
    """
    step_R = trajectory.canvas_step_T
    assert trajectory.canvas_T is not None
    assert step_R is not None
    tokens_R = np.where(step_R == NEVER, fill, trajectory.canvas_T).astype(np.int64)
    shift = response_shift(len(prompt), contract.block_size, contract.origin)
    block_R = response_blocks(len(prompt), len(tokens_R), contract.block_size, shift)
    return tokens_R, step_R, block_R, shift
