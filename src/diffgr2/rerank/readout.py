"""How a ranking is read out of a model's responses: strengths that it says, or a permutation.

Contract: `ReadOut` names the way, `Ways` how a request is decoded as well. `dealt` cuts a list into
windows for said answers, which need nothing of each other; `sliding` into windows for written ones,
which do. Not here: decoding and reading (`task`), what a request may choose (`world`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffgr2.config import Answering
from diffgr2.decode.settings import DecodeSettings
from diffgr2.streams import permutation


@dataclass(frozen=True)
class ReadOut:
    """`views` are presentations of the list in different orders, whose strengths are averaged."""

    answer: Answering = "said"
    views: int = 1


@dataclass(frozen=True)
class Ways:
    """All that a request's `decode` section says, checked and completed by the recipe."""

    settings: DecodeSettings
    read_out: ReadOut
    stream: tuple[str | int, ...] = ("decode",)  # names the random stream


def dealt(order_N: np.ndarray, most: int) -> list[np.ndarray]:
    """Windows of nearly equal length and at most `most` places, dealt like cards.

    >>> [window.tolist() for window in dealt(np.arange(5), 2)]
    [[0, 3], [1, 4], [2]]
    """
    count = -(-len(order_N) // most)
    return [order_N[first::count] for first in range(count)]


def view_of(n: int, number: int, stream: tuple[str | int, ...]) -> np.ndarray:
    """The order in which a view shows the list: the first one as it came, others shuffled."""
    return permutation(n, *stream, "view", number) if number else np.arange(n)


def sliding(n: int, k: int) -> list[tuple[int, int]]:
    """Windows of at most k places, back to front, each half overlapping the one before.

    >>> sliding(10, 10), sliding(22, 10)
    ([(0, 10)], [(12, 22), (7, 17), (2, 12), (0, 7)])
    """
    ends = range(n, k, -max(1, k // 2)) if n > k else range(n, n + 1)
    windows = [(max(0, end - k), end) for end in ends]
    return windows if windows[-1][0] == 0 else [*windows, (0, windows[-1][1] - max(1, k // 2))]
