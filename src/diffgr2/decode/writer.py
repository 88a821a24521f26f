"""What the batching engine and a decoder say to each other: windows, views, writers.

Contract: a writer plans a `Window` (the tokens that the next forward computes for it, and how far
each of them sees), and updates itself from the `View` of the resulting distributions. Slots of the
cache are document positions, and every pattern of attention is "all slots below a bound": causal
tokens see up to themselves, a canvas up to its end. Not here: batching (`batch`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from diffgr2.decode.draw import draw, tempered
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.settings import DecodeSettings
from diffgr2.types import Trajectory

UNKNOWN = -1


@dataclass(frozen=True)
class Window:
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


class Record:
    """Tokens, commit steps and log-probabilities of one response while it grows."""

    def __init__(self, capacity: int) -> None:
        self.tokens_T = np.full(capacity, UNKNOWN, dtype=np.int64)
        self.step_T = np.full(capacity, -1, dtype=np.int32)
        self.logp_T = np.zeros(capacity, dtype=np.float32)
        self.fresh: list[tuple[int, int]] = []  # (position, token) committed since last asked

    def commit(self, at: int, token: int, step: int, logp: float) -> None:
        self.tokens_T[at], self.step_T[at], self.logp_T[at] = token, step, logp
        self.fresh.append((at, token))

    def take_fresh(self) -> list[tuple[int, int]]:
        """What was committed since the last call (streaming)."""
        fresh, self.fresh = self.fresh, []
        return fresh

    def trajectory(
        self, length: int, nfe: int, *, finished: bool, canvas: int | None = None
    ) -> Trajectory:
        """The first `length` positions; `canvas` > length keeps the terminal block for replay."""
        return Trajectory(
            self.tokens_T[:length].copy(),
            self.step_T[:length].copy(),
            self.logp_T[:length].copy(),
            nfe,
            finished,
            None if canvas is None else self.tokens_T[:canvas].copy(),
            None if canvas is None else self.step_T[:canvas].copy(),
        )


class Writer(ABC):
    """One output under way: plans a window, updates itself from the view of its distributions.

    Positions are response positions; `prefill` prompt tokens must have their keys and values in the
    cache before the first plan, and `slots` of the cache may be used.
    """

    def __init__(
        self,
        key: int,
        prompt: list[int],
        settings: DecodeSettings,
        rng: np.random.Generator,
        grammar: AnswerGrammar | None = None,
        *,
        spare: int = 0,
    ) -> None:
        self.key, self.prompt, self.settings = key, prompt, settings  # key: the caller's number
        self.rng, self.grammar = rng, grammar
        self.prefill = len(prompt) - 1  # the last prompt token is the first window
        self.slots = len(prompt) + settings.max_tokens + spare
        self.record = Record(settings.max_tokens + spare)
        self.length = self.nfe = 0
        self.done = self.finished = False

    def prefill_hi(self) -> list[int]:
        """How far each prompt token sees: causally."""
        return list(range(1, self.prefill + 1))

    @abstractmethod
    def plan(self) -> Window:
        """What the next forward computes for this output."""

    @abstractmethod
    def update(self, view: View) -> None:
        """Commit what the forward settled."""

    def commit_next(self, token: int, logp: float) -> None:
        """Append a token; ends at the end token or at the limit."""
        self.record.commit(self.length, token, self.nfe, logp)
        self.length += 1
        self.finished = token == self.settings.end_id
        self.done = self.finished or self.length == self.settings.max_tokens

    def fresh(self) -> list[tuple[int, int]]:
        """What was committed since the last call, for streaming."""
        return self.record.take_fresh()

    def result(self) -> Trajectory:
        return self.record.trajectory(self.length, self.nfe, finished=self.finished)
