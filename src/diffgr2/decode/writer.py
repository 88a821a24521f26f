"""What the engine and a decoder say to each other: windows, views and the row protocol.

Contract: a row plans a `Window` (the tokens that the next forward computes for it, and how far each
of them sees), and updates itself from the `View` of the resulting distributions. Slots of the cache
are document positions, and every pattern of attention here is "all slots below a bound": causal
tokens see up to themselves, a canvas up to its end. Not here: batching (`engine`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from diffgr2.decode.draw import draw, tempered
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


class Writer(Protocol):
    """One request in decoding."""

    settings: DecodeSettings
    key: int  # position in the caller's list
    prompt: list[int]
    prefill: int  # prompt tokens whose keys and values must be in the cache before the first plan
    slots: int  # cache slots it may use
    done: bool
    nfe: int

    def prefill_hi(self) -> list[int]: ...
    def plan(self) -> Window: ...
    def update(self, view: View) -> None: ...
    def result(self) -> Trajectory: ...
    def fresh(self) -> list[tuple[int, int]]: ...


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
