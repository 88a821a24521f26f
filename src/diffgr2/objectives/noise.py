"""Corruption of a response for conversion fine-tuning (paper §3.4).

Contract: `noise_mask` draws one noise level per block, masks each token of the block with that
probability, masks at least one token per block, and masks a share of the blocks entirely (a
decoder's first step). `complement` is the other half of a complementary pair, so that every token
is supervised exactly once. `displaced` corrupts a permutation instead. Pure functions of a
generator. Not here: which tokens a block holds (`model.masks`), and losses.
"""

import numpy as np

T_MIN = 0.1  # lowest noise level: nearly clean blocks teach little


def noise_mask(
    block_R: np.ndarray, fully_masked: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(masked [R], level [R]) for response tokens with these block numbers."""
    blocks, inverse_R = np.unique(block_R, return_inverse=True)
    level_b = rng.uniform(T_MIN, 1.0, len(blocks))
    level_b[rng.random(len(blocks)) < fully_masked] = 1.0
    level_R = level_b[inverse_R]
    draw_R = rng.random(len(block_R))
    masked_R = draw_R < level_R
    order_R = np.lexsort((draw_R, block_R))
    # The lowest draw of a block is masked whatever its level.
    masked_R[order_R[np.searchsorted(block_R[order_R], blocks)]] = True
    return masked_R, level_R


def complement(masked_R: np.ndarray, level_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The other half of the pair: masked where the first is not, at level 1 − t."""
    return ~masked_R, np.maximum(1.0 - level_R, T_MIN)


def displaced(order_K: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """(A permutation of two or more with one entry moved elsewhere, where that stands now).

    Mostly to a place nearby, where a model puts it by mistake; the others keep their order.

    >>> displaced(np.array([7, 8]), np.random.default_rng(0))[0].tolist()
    [8, 7]
    """
    last, taken = len(order_K) - 1, int(rng.integers(len(order_K)))
    far = int(rng.geometric(0.5)) * int(rng.choice([-1, 1]))
    put = min(max(taken + far, 0), last)
    if put == taken:  # at an end of the list: it moves the other way
        put = min(max(taken - far, 0), last)
    return np.insert(np.delete(order_K, taken), put, order_K[taken]), put


def replay_state(step_R: np.ndarray, step: int) -> np.ndarray:
    """Masked [R] just before forward `step`: all that was committed at or after it, or never.

    What a grammar settled before the first forward has a step below 0 and is never masked.
    """
    return step_R >= step


def frontier(
    masked_R: np.ndarray, block_R: np.ndarray, given_R: np.ndarray | None = None
) -> np.ndarray:
    """Masked positions right of the last committed position of their block.

    Left of it a causal teacher does not see what the student has already committed. What is given
    (`given_R`) was no commit: the teacher knows it, too.

    >>> frontier(np.array([True, False, True, True]), np.zeros(4, int)).tolist()
    [False, False, True, True]
    """
    out_R = masked_R.copy()
    for block in np.unique(block_R):
        members = np.flatnonzero(block_R == block)
        open_M = masked_R[members] if given_R is None else masked_R[members] | given_R[members]
        committed = members[~open_M]
        if len(committed):
            out_R[members[members < committed[-1]]] = False
    return out_R
