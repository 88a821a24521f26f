"""Rows of `[prompt | x0 | xt ...]` and batches of them: what the diffusion stages train on.

Contract: a `NoisyRow` is one response with one or more noisy copies and says, for each supervised
token, at which place of the row its prediction stands: at its own (masked) place, or with shifted
alignment one to the left, where a block's first token is predicted by the clean token before it.
`noisy_batch` pads rows and marks who sees whom; `realised` reads a trajectory as response,
steps, blocks, and how far a canvas reached when. Not here: noise (`objectives.noise`), losses,
rollouts.

Letters: P prompt, R response (padded to its last block's end), B rows, T tokens, N predictions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffgr2.decode.grammar import Grammar
from diffgr2.model.contract import BlockContract
from diffgr2.model.layout import block_bounds, block_of, response_shift
from diffgr2.model.masks import Marks, row_marks, row_mask, row_positions, stack_marks
from diffgr2.objectives.noise import replay_state
from diffgr2.stages.batches import TokenBatch
from diffgr2.types import NEVER, Trajectory


@dataclass(frozen=True)
class NoisyRow:
    """One response and its noisy copies; `response_R` ends where the last block's canvas does.

    A block of a copy without a mask stays out of the row: nothing is predicted there, and no other
    token sees it; so does what a copy's canvas did not reach (`there_CR`, None: it reached all).
    The full layout (`model.masks`) is the row with all of that in it.
    """

    prompt: list[int]
    response_R: np.ndarray
    masked_CR: np.ndarray  # C copies
    shift: int
    clean_causal: bool
    contract: BlockContract
    there_CR: np.ndarray | None = None

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
        if self.there_CR is not None:
            noisy_CR &= self.there_CR
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

    def marks(self) -> Marks:
        """The same, by token."""
        size = self.contract.block_size
        return row_marks(*self._shape, size, self.shift, clean_causal=self.clean_causal)

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
    marks = []
    for b, row in enumerate(rows):
        stays = torch.from_numpy(np.flatnonzero(row.kept))
        ids_BT[b, : len(stays)] = torch.from_numpy(row.ids())[stays]
        position_BT[b, : len(stays)] = row.positions()[stays]
        marks.append(row.marks().map(lambda part, stays=stays: part[stays]))
    length_B = torch.tensor([len(row.place) for row in marks])
    return TokenBatch(ids_BT, position_BT, stack_marks(marks, length), length_B)


def response_blocks(prompt_length: int, length: int, block_size: int, shift: int) -> np.ndarray:
    """Block number of each response token."""
    return np.asarray(block_of(prompt_length + np.arange(length), block_size, shift))


def rounds_of(
    step_R: np.ndarray, block_R: np.ndarray, forced_R: np.ndarray | None = None
) -> dict[int, np.ndarray]:
    """The steps, in order, that decided tokens of each block that had any.

    What was forced may have been settled by a step of an earlier block, which is no state of this.
    """
    made_R = (step_R >= 0) & (step_R != NEVER)
    if forced_R is not None:
        made_R[: len(forced_R)] &= ~forced_R
    rounds = {b: np.unique(step_R[(block_R == b) & made_R]) for b in np.unique(block_R)}
    return {b: steps for b, steps in rounds.items() if len(steps)}


@dataclass(frozen=True)
class Realised:
    """A trajectory as training reads it: R tokens, up to where a canvas of the last block reached.

    A canvas ends with the response, which is not known before its free text has ended: up to the
    step `closed` it ends at `open_end`, behind it at `end`.
    """

    tokens_R: np.ndarray
    step_R: np.ndarray
    block_R: np.ndarray
    shift: int
    rounds: dict[int, np.ndarray]  # see `rounds_of`
    closed: int
    open_end: int
    end: int

    def state(self, step_of_block: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(masked [R], on the canvas [R]) just before one step of each of these blocks."""
        masked_R = np.zeros(len(self.step_R), dtype=bool)
        there_R = np.ones_like(masked_R)
        for block, step in step_of_block.items():
            own_R = self.block_R == block
            reach = self.open_end if step <= self.closed else self.end
            there_R &= ~own_R | (np.arange(len(own_R)) < reach)
            masked_R |= own_R & replay_state(self.step_R, step)
        return masked_R & there_R, there_R


def realised(
    prompt: list[int],
    trajectory: Trajectory,
    contract: BlockContract,
    fill: int,
    grammar: Grammar | None,
) -> Realised:
    """A text as it was decoded under this grammar, None: under none.

    A position that was never committed has the token `fill` and the step NEVER; what a grammar
    settled before the first forward has a step below 0.
    """
    step_R, tokens_R, size = trajectory.canvas_step_T, trajectory.canvas_T, contract.block_size
    assert tokens_R is not None
    assert step_R is not None
    end = open_end = len(tokens_R)
    tokens_R = np.where(step_R == NEVER, fill, tokens_R)
    shift = response_shift(len(prompt), size, contract.origin)
    closed = closed_at(tokens_R, step_R, grammar)
    if closed is not None and grammar is not None and grammar.free is not None:
        # A text that its limit cut was never longer.
        open_end = len(grammar.head) + grammar.free.room
        open_end = open_end if trajectory.finished else min(open_end, len(trajectory.tokens_T))
        block_end = block_bounds(len(prompt) + end - 1, size, shift)[1] - len(prompt)
        more = max(min(open_end, block_end) - end, 0)
        tokens_R = np.pad(tokens_R, (0, more), constant_values=fill)
        step_R = np.pad(step_R, (0, more), constant_values=NEVER)
    block_R = response_blocks(len(prompt), len(tokens_R), size, shift)
    rounds = rounds_of(step_R, block_R, trajectory.forced_T)
    reach = (-1 if closed is None else closed, open_end, end)
    return Realised(tokens_R.astype(np.int64), step_R, block_R, shift, rounds, *reach)


def closed_at(tokens_R: np.ndarray, step_R: np.ndarray, grammar: Grammar | None) -> int | None:
    """The step that ended the free text; None: there is none, or it was not ended."""
    if grammar is None or grammar.free is None:
        return None
    head = len(grammar.head)
    found = np.flatnonzero((tokens_R[head:] == grammar.free.closer) & (step_R[head:] != NEVER))
    return int(step_R[head + found[0]]) if len(found) else None
