"""Block layout: where the blocks of a document begin and end (paper §3.2).

Contract: `block_of` is the only place that divides by the block size. Plain integers, or anything
that computes like them. Not here: who sees whom (`masks`), and caches (`forward`).
"""

from typing import Any, TypeVar

Position = TypeVar("Position", bound=Any)  # an integer, or an array or tensor of them


def block_of(position: Position, block_size: int, shift: int = 0) -> Position:
    """Block number of a document position; `shift` moves the boundaries left by that much."""
    return (position + shift) // block_size


def block_bounds(position: int, block_size: int, shift: int = 0) -> tuple[int, int]:
    """First and one-past-last document position of the block that holds `position`.

    >>> block_bounds(37, 32), block_bounds(37, 32, shift=30)
    ((32, 64), (34, 66))
    """
    start = block_of(position, block_size, shift) * block_size - shift
    return max(start, 0), start + block_size


def response_shift(prompt_length: int, block_size: int, origin: str) -> int:
    """The shift that realises the recorded origin for a prompt of this length."""
    return 0 if origin == "document" else -prompt_length % block_size
