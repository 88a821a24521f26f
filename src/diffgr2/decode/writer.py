"""What the batching engine and a decoder say to each other: windows, views, writers.

Contract: a writer plans a `Span` (the tokens that the next forward computes for it, and how far
each of them sees), and updates itself from the `View` of the resulting distributions. Slots of the
cache are document positions, and every pattern of attention is "all slots below a bound": causal
tokens see up to themselves, a canvas up to its end. Not here: batching (`batch`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from diffgr2.decode.answer_rule import UNKNOWN
from diffgr2.decode.draw import draw, tempered
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.streams import generator
from diffgr2.types import Trajectory


@dataclass(frozen=True)
class Span:
    """New tokens of one row: `ids` at positions `start` …, token t sees slots below `hi[t]`."""

    ids: list[int]
    start: int
    hi: list[int]
    logits_from: int  # distributions are needed from this token on


@dataclass(frozen=True)
class View:
    """Distributions of a row's window from `logits_from` on."""

    logp_TV: torch.Tensor  # log-probabilities at temperature 1, mask excluded
    top_T: np.ndarray  # most likely token
    top_logp_T: np.ndarray  # its log-probability

    def choose(
        self, rows: slice, temperature: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, log-probability at `temperature`, confidence) of these window tokens."""
        if temperature == 0.0:
            logp_T = self.top_logp_T[rows]
            return self.top_T[rows], logp_T, np.exp(logp_T)
        logp_TV = self.logp_TV[rows]
        hot_TV = tempered(logp_TV, temperature)
        token_T = draw(hot_TV, rng.random(len(hot_TV))).cpu().numpy()
        every_T = np.arange(len(token_T))
        drawn_T = hot_TV.cpu().numpy()[every_T, token_T]
        confidence_T = np.exp(logp_TV.cpu().numpy()[every_T, token_T])
        return token_T, drawn_T, confidence_T


class Writer(ABC):
    """One output under way: plans a window, updates itself from the view of its distributions.

    Positions are response positions; `prefill` prompt tokens must have their keys and values in the
    cache before the first plan, and `slots` of the cache may be used.
    """

    def __init__(
        self, key: int, request: DecodeRequest, settings: DecodeSettings, spare: int = 0
    ) -> None:
        self.key, self.settings = key, settings  # key: the caller's number
        self.prompt, self.grammar = request.prompt, request.grammar
        self.rng = generator(*request.stream)
        self.prefill = len(self.prompt) - 1  # the last prompt token is the first window
        capacity = settings.max_tokens + spare
        self.slots = len(self.prompt) + capacity
        self.tokens_T = np.full(capacity, UNKNOWN, dtype=np.int64)
        self.step_T = np.full(capacity, -1, dtype=np.int32)
        self.logp_T = np.zeros(capacity, dtype=np.float32)
        self.length = self.nfe = 0
        self.done = self.finished = False
        self._fresh: list[tuple[int, int]] = []

    def prefill_hi(self) -> list[int]:
        """How far each prompt token sees: causally."""
        return list(range(1, self.prefill + 1))

    @abstractmethod
    def plan(self) -> Span:
        """What the next forward computes for this output."""

    @abstractmethod
    def update(self, view: View) -> None:
        """Commit what the forward settled."""

    def token(self, at: int) -> int:
        """The token at a position; the prompt's are at −1, −2, …"""
        return int(self.tokens_T[at]) if at >= 0 else self.prompt[at]

    def commit(self, at: int, token: int, step: int, logp: float) -> None:
        """Write a token for good."""
        self.tokens_T[at], self.step_T[at], self.logp_T[at] = token, step, logp
        self._fresh.append((at, token))

    def commit_next(self, token: int, logp: float) -> None:
        """Append a token; ends at the end token or at the limit."""
        self.commit(self.length, token, self.nfe, logp)
        self.length += 1
        self.finished = token == self.settings.end_id
        self.done = self.finished or self.length == self.settings.max_tokens

    def fresh(self) -> list[tuple[int, int]]:
        """(position, token) of what was committed since the last call, for streaming."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def result(self) -> Trajectory:
        """The first `length` positions."""
        whole = (self.tokens_T, self.step_T, self.logp_T)
        tokens_T, step_T, logp_T = (a_T[: self.length].copy() for a_T in whole)
        return Trajectory(tokens_T, step_T, logp_T, self.nfe, self.finished)
