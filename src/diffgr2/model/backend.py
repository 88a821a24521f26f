"""What a decoder asks of a model: the interface of all backends, in numpy.

Contract: a `Backend` opens a `Session` of rows with a cache; `add` lets rows join with what their
prompts are, `forward` computes the next tokens of all rows and answers, per row, what a decoder
asks of their distributions through a `View`; `keep` lets rows leave. Slots of the cache are
document positions, and every pattern of attention is "all slots below a bound". Log-probabilities
are those of the full softmax without the mask token, in fp32; logits that no distribution has are a
DecodeError. Not here: any tensor library (`session` is the one in torch).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from diffgr2.errors import DecodeError

BROKEN = "logits hold NaN, +inf or no finite value: the model's output is broken"

NO_TOKEN = -1
"""Pads rows of token ids; its log-probability is −inf."""

NOTHING_BANNED = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Span:
    """New tokens of one row: `ids` at positions `start` …, token t sees slots below `hi[t]`."""

    ids: list[int]
    start: int
    hi: list[int]
    logits_from: int  # distributions are needed from this token on


Chosen = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens, their log-probability among what was allowed, and among everything."""


def check_room(slots: int, room: int) -> None:
    """A row may use no more slots than the model has positions."""
    if slots > room:
        raise DecodeError(f"prompt and output need {slots} positions, the model has {room}")


class View(Protocol):
    """Distributions of a row's span from `logits_from` on."""

    def __len__(self) -> int: ...

    def among(self, row_N: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
        """Log-probabilities [N, A] of these tokens; −inf at NO_TOKEN."""
        ...

    def some(self, row: int, tokens: list[int]) -> list[float]:
        """The same of one row, in plain numbers."""
        ...

    def best(self, row_N: np.ndarray, banned: np.ndarray = NOTHING_BANNED) -> Chosen:
        """The most likely tokens that are not banned; the lowest id of equals."""
        ...

    def drawn(
        self,
        row_N: np.ndarray,
        temperature: float,
        uniform_N: np.ndarray,
        banned: np.ndarray = NOTHING_BANNED,
    ) -> Chosen:
        """One token each by inverse transform; log-probabilities at that temperature, and at 1."""
        ...

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        """Whole log-probabilities [N, V]."""
        ...


class Session(Protocol):
    """Rows under way and their cache."""

    def add(self, prompts: Sequence[Span], slots: int) -> None:
        """Let rows join: their prompts' tokens, and how many slots each of them may use."""
        ...

    def forward(self, spans: Sequence[Span]) -> list[View]:
        """One forward for all rows, in their order."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        ...


class Backend(Protocol):
    """A model that decoders can use."""

    name: str  # of the backend
    lanes: int  # sessions that run well side by side, in threads of their own

    @property
    def max_positions(self) -> int: ...

    def session(self, mask_id: int) -> Session:
        """A session without rows; the mask token is never predicted."""
        ...
