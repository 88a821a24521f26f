"""What the permutation rule knows of an answer: where it starts and how a candidate is spelled.

Contract: after the first `marker` and `offset` tokens more, K entries follow, `stride` tokens
apart; entry j spells one candidate in its first N tokens, as given by `choices_KN`. A plain
dataclass, so that `decode` can use it without knowing any template. Not here: the rule itself
(`decode.answer_rule`).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class AnswerGrammar:
    """Geometry and spelling of an answer."""

    marker: tuple[int, ...]
    offset: int
    stride: int
    choices_KN: np.ndarray  # int64 token ids

    @property
    def k(self) -> int:
        return len(self.choices_KN)

    def slots(self, start: int) -> np.ndarray:
        """Positions [K, N] of the entries' tokens, for a marker that ends before `start`."""
        first_K = start + self.offset + self.stride * np.arange(self.k)
        return first_K[:, None] + np.arange(self.choices_KN.shape[1])[None]

    def find(self, tokens_T: np.ndarray) -> int | None:
        """Index after the first complete marker in these tokens, else None.

        The first, because parsers and AR decoding, which meets it first, take that one too.

        >>> AnswerGrammar((7, 8), 0, 1, np.array([[1], [2]])).find(np.array([5, 7, 8, 7, 8]))
        3
        """
        width = len(self.marker)
        for start in (tokens_T == self.marker[0]).nonzero()[0].tolist():
            if tuple(tokens_T[start : start + width].tolist()) == self.marker:
                return start + width
        return None
