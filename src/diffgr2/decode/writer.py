"""One output under way: what every decoder's writer keeps, and how it asks for choices.

Contract: a writer plans a `Span` (the tokens that the next forward computes for it, and how far
each of them sees), and updates itself from the `View` of the resulting distributions. Under a
grammar a `Guide` says what may stand where; what it settles is written at once, costs no forward
and stands in every later span in clear. Not here: batching (`batch`), the decoders themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from diffgr2.decode.choice import Choice, Choices, among, one
from diffgr2.decode.grammar import Guide, row_of_places
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.model.backend import NOTHING_BANNED, Span, View
from diffgr2.streams import generator
from diffgr2.types import Trajectory

BEFORE = -1
"""The step of what was settled before the first forward."""


class Writer(ABC):
    """See the module's docstring.

    Positions are response positions; `prefill` prompt tokens must have their keys and values in the
    cache before the first plan, and `slots` of the cache may be used. A writer may be done at once,
    where its grammar leaves no choice.
    """

    def __init__(
        self, key: int, request: DecodeRequest, settings: DecodeSettings, spare: int = 0
    ) -> None:
        self.key, self.settings = key, settings  # key: the caller's number
        self.prompt = request.prompt
        self._stream = request.stream
        self.prefill = len(self.prompt) - 1  # the last prompt token is in the first span
        grammar = request.grammar if settings.rule == "grammar" else None
        capacity = spare + max(settings.max_tokens, grammar.longest if grammar else 0)
        self.slots = len(self.prompt) + capacity
        self.tokens_T = np.full(capacity, UNKNOWN, dtype=np.int64)
        self.step_T = np.full(capacity, BEFORE, dtype=np.int32)
        self.logp_T = np.zeros(capacity, dtype=np.float32)
        self.level_T = np.full(capacity, np.nan, dtype=np.float32)
        self.chances: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.length = self.nfe = 0
        self.done = self.finished = False
        self.told: Choices | None = None  # the answer to `question`
        self._fresh: list[tuple[int, int]] = []
        self.guide = Guide(grammar, self.tokens_T) if grammar else None
        self._hear(BEFORE)

    @cached_property
    def rng(self) -> np.random.Generator:
        """The output's own random stream; greedy decoding needs none."""
        return generator(*self._stream)

    def prefill_hi(self) -> list[int]:
        """How far each prompt token sees: causally."""
        return list(range(1, self.prefill + 1))

    @abstractmethod
    def plan(self) -> Span:
        """What the next forward computes for this output."""

    def question(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows, positions) that `update` will ask about first, where its grammar has no gaps.

        Asked for all writers of a batch together, the answer is `told`; it may be left out.
        """
        return None

    @property
    def foreseeable(self) -> bool:
        """Whether a choice depends on nothing but the view and the guide."""
        settings = self.settings
        return self.guide is not None and settings.temperature == 0.0 and not settings.details

    @abstractmethod
    def update(self, view: View) -> None:
        """Commit what the forward settled."""

    @property
    def limit(self) -> int:
        """No position at or behind it is written."""
        most = self.settings.max_tokens
        return most if self.guide is None else min(most, self.guide.stop)

    def token(self, at: int) -> int:
        """The token at a position; the prompt's are at −1, −2, …"""
        return int(self.tokens_T[at]) if at >= 0 else self.prompt[at]

    def uniforms(self, n: int) -> np.ndarray | None:
        """Random numbers for n positions, None where nothing is sampled."""
        return self.rng.random(n) if self.settings.temperature > 0.0 else None

    def wanted(
        self,
        view: View,
        row_N: np.ndarray,
        at_N: np.ndarray,
        uniform_N: np.ndarray | None,
        guide: Guide | None = None,
    ) -> Choices:
        """What open positions want, each from its row of the view."""
        guide = self.guide if guide is None else guide
        if guide is None:
            return self._free(view, row_N, uniform_N, NOTHING_BANNED)
        known = guide.options(at_N)
        if known is not None:
            raw_NA = view.among(row_N, known[0])
            found = among(raw_NA, *known, self.settings.temperature, uniform_N)
            if self.settings.details:
                self._note(at_N, known[0], found)
            return found
        sets = [guide.allowed(int(at)) for at in at_N]
        free = [n for n, tokens in enumerate(sets) if tokens is None]
        fixed = [n for n, tokens in enumerate(sets) if tokens is not None]
        parts = []
        if fixed:
            tokens_NA = row_of_places([tokens for tokens in sets if tokens is not None])
            scale_N = np.array([guide.scale(int(at_N[n])) for n in fixed])
            raw_NA = view.among(row_N[fixed], tokens_NA)
            own_N = None if uniform_N is None else uniform_N[fixed]
            found = among(raw_NA, tokens_NA, scale_N, self.settings.temperature, own_N)
            if self.settings.details:
                self._note(at_N[fixed], tokens_NA, found)
            parts.append((fixed, found))
        for closing in (False, True):  # whether the token that ends the free text may stand here
            some = [n for n in free if guide.closable(int(at_N[n])) == closing]
            if some:
                banned = guide.without(int(at_N[some[0]]))
                own_N = None if uniform_N is None else uniform_N[some]
                parts.append((some, self._free(view, row_N[some], own_N, banned)))
        return _joined(len(at_N), parts)

    def wants(self, view: View, row: int, at: int) -> Choice:
        """What one open position wants."""
        plain = self.settings.temperature == 0.0 and not self.settings.details
        known = self.guide.option(at) if plain and self.guide is not None else None
        if known is not None:
            return one(view.some(row, known[0]), known[0], scale=known[1])
        found = self.wanted(view, np.array([row]), np.array([at]), self.uniforms(1))
        parts = (found.logp_N, found.sure_N, found.level_N)
        return Choice(int(found.token_N[0]), *(float(part[0]) for part in parts))

    def _free(
        self, view: View, row_N: np.ndarray, uniform_N: np.ndarray | None, banned: np.ndarray
    ) -> Choices:
        """Among all tokens but the banned."""
        if uniform_N is None:
            token_N, logp_N, raw_N = view.best(row_N, banned)
        else:
            heat = self.settings.temperature
            token_N, logp_N, raw_N = view.drawn(row_N, heat, uniform_N, banned)
        return Choices(token_N, logp_N, np.exp(raw_N), np.full(len(token_N), np.nan))

    def _note(self, at_N: np.ndarray, tokens_NA: np.ndarray, found: Choices) -> None:
        """Keep the distributions; a later look at the same position replaces an earlier one."""
        assert found.probability_NA is not None
        for at, tokens_A, probability_A in zip(
            at_N.tolist(), tokens_NA, found.probability_NA, strict=True
        ):
            there_A = tokens_A >= 0
            self.chances[at] = (tokens_A[there_A], probability_A[there_A])

    def commit(self, at: int, token: int, step: int, logp: float, level: float = np.nan) -> None:
        """Write a token for good, and what it settles."""
        self.logp_T[at], self.level_T[at] = logp, level
        if self.guide is None:
            self.tokens_T[at], self.step_T[at] = token, step
            self._fresh.append((at, token))
            return
        self.guide.commit(at, token)
        self._hear(step)

    def _hear(self, step: int) -> None:
        """Take note of what the guide has written since the last time."""
        if self.guide is None:
            return
        for at in self.guide.written:
            self.step_T[at] = step
            self._fresh.append((at, int(self.tokens_T[at])))
            if self.guide.forced_T[at]:
                self.chances.pop(at, None)  # looked at, and then left without a choice
        self.guide.written.clear()

    def advance(self) -> None:
        """Move `length` behind what is known from the left; ends at the end or at the limit."""
        limit = self.limit
        while self.length < limit and self.tokens_T[self.length] != UNKNOWN:
            self.length += 1
            if self.guide is None and self.tokens_T[self.length - 1] == self.settings.end_id:
                self.finished = self.done = True
                return
        end = self.guide.end if self.guide is not None else None
        self.finished = end is not None and self.length == end
        self.done = self.length == limit

    def fresh(self) -> list[tuple[int, int]]:
        """(position, token) of what was committed since the last call, for streaming."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def result(self) -> Trajectory:
        """The first `length` positions."""
        whole = (self.tokens_T, self.step_T, self.logp_T)
        tokens_T, step_T, logp_T = (a_T[: self.length].copy() for a_T in whole)
        forced_T = level_T = None
        if self.guide is not None:
            forced_T = self.guide.forced_T[: self.length].copy()
            level_T = self.level_T[: self.length].copy()
        return Trajectory(
            tokens_T,
            step_T,
            logp_T,
            self.nfe,
            self.finished,
            forced_T=forced_T,
            level_T=level_T,
            chances=self.chances if self.settings.details else None,
        )


def _joined(n: int, parts: Sequence[tuple[list[int], Choices]]) -> Choices:
    """Choices of some positions each, as those of all n."""
    if len(parts) == 1 and len(parts[0][0]) == n:
        return parts[0][1]
    token_N, logp_N = np.zeros(n, dtype=np.int64), np.zeros(n)
    sure_N, level_N = np.zeros(n), np.full(n, np.nan)
    for at, found in parts:
        token_N[at], logp_N[at] = found.token_N, found.logp_N
        sure_N[at], level_N[at] = found.sure_N, found.level_N
    return Choices(token_N, logp_N, sure_N, level_N)
