"""One ranking on its way: windows out, decoded answers in, a permutation at the end.

Contract: `RankTask.window()` gives the next decode, `take()` its answer, `result()` the ranking
once `window()` is None; whoever decodes may batch many tasks. Not here: resolving what was asked
(`resolve`), evidence and prompts' content (`reranker`), decoding (`decode`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from diffgr2.decode.batch import DecodeRequest
from diffgr2.decode.settings import DecodeSettings
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.request import Request
from diffgr2.rerank.names import Item
from diffgr2.types import Trajectory

if TYPE_CHECKING:
    from diffgr2.rerank.reranker import Reranker


@dataclass(frozen=True)
class RankResult:
    """A ranking, best first; `order` holds positions in the list that was given."""

    order: tuple[int, ...]
    items: tuple[Any, ...]  # as the caller named them
    scores: tuple[float, ...]  # 1 … 0, strictly decreasing, made of the rank alone
    valid: bool  # every answer was a permutation before any repair
    repaired: bool  # some answer was completed by the policy
    fallback: bool  # some answer was of no use: its window kept its floor order
    identity: bool  # the order is the one that came in
    failures: tuple[str, ...]
    reasoning: str | None  # plain English, where asked for
    raw: tuple[str, ...]  # what the model wrote, window by window
    trajectories: tuple[Trajectory, ...]
    decode: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Query:
    """One request, resolved."""

    history: list[Item]
    candidates: list[Item]
    named: list[Any]
    scores_N: np.ndarray
    user: int  # dense number, -1 unknown


@dataclass
class _Outcome:
    valid: bool = True
    repaired: bool = False
    fallback: bool = False
    failures: list[str] = field(default_factory=list)
    trajectories: list[Trajectory] = field(default_factory=list)
    prompt_tokens: int = 0
    reasoning_tokens: int = 0
    thoughts: list[tuple[list[int], Request, list[str]]] = field(default_factory=list)


def windows_of(n: int, k: int) -> list[tuple[int, int]]:
    """Windows of at most k places, back to front, each half overlapping the one before.

    >>> windows_of(10, 10), windows_of(22, 10)
    ([(0, 10)], [(12, 22), (7, 17), (2, 12), (0, 7)])
    """
    if n <= k:
        return [(0, n)]
    windows, end, step = [], n, max(1, k // 2)
    while True:
        start = max(0, end - k)
        windows.append((start, end))
        if start == 0:
            return windows
        end -= step


class RankTask:
    """One request on its way: `window()` → decode → `take()` until `window()` is None."""

    def __init__(
        self,
        reranker: Reranker,
        query: Query,
        settings: DecodeSettings,
        *,
        reasoning: bool,
        stream: tuple[str | int, ...] = ("decode",),
    ) -> None:
        self.reranker, self.query, self.settings = reranker, query, settings
        self.reasoning, self.stream = reasoning, stream
        self.order = np.arange(len(query.candidates))
        n = len(self.order)
        self._todo = windows_of(n, reranker.k)[::-1] if n > 1 else []
        self.n_windows = len(self._todo)
        self._outcome = _Outcome()
        self._request: Request | None = None
        self.grounds: dict[int, np.ndarray] = {}  # candidate -> its latest evidence buckets

    def window(self) -> DecodeRequest | None:
        """The next decode, None when the ranking is complete."""
        if not self._todo:
            return None
        self._places = self.order[slice(*self._todo[-1])]
        self._request = request = self.reranker.request(self.query, self._places)
        for place, buckets_F in zip(self._places.tolist(), request.buckets_KF, strict=True):
            self.grounds[place] = buckets_F
        template = self.reranker.template
        prompt = template.prompt(request, reasoning=self.reasoning)
        self._outcome.prompt_tokens += len(prompt)
        number = self.n_windows - len(self._todo)
        stream = self.stream if number == 0 else (*self.stream, number)
        return DecodeRequest(prompt, template.grammar(request), stream)

    def take(self, trajectory: Trajectory) -> None:
        """The decoded answer of the current window."""
        start, end = self._todo.pop()
        assert self._request is not None
        template, outcome, k = self.reranker.template, self._outcome, self._request.k
        tokens = trajectory.tokens_T.tolist()
        answer = template.parse(tokens, self._request)
        mended = POLICIES[self.reranker.recipe.decode.repair](answer.order, k)
        usable = any(0 <= place < k for place in answer.order)
        if not answer.valid:
            outcome.valid = False
            floor = self.reranker.recipe.decode.repair == "floor" or not usable
            outcome.fallback |= floor
            outcome.repaired |= not floor
            outcome.failures += [kind for kind in answer.failures if kind not in outcome.failures]
        self.order[start:end] = self._places[mended]
        outcome.trajectories.append(trajectory)
        outcome.reasoning_tokens += template.answer_start(tokens)
        if self.reasoning:
            names = [self.reranker.names.title(self.query.candidates[p]) for p in self._places]
            outcome.thoughts.append((tokens, self._request, names))

    def english(self) -> str:
        """All windows' reasoning for people; the last window decided the top, so it comes first."""
        template, labels = self.reranker.template, self.reranker.group_labels
        texts = [template.english(*thought, labels) for thought in self._outcome.thoughts]
        return "\n\n".join(texts[::-1])

    def result(self, *, return_reasoning: bool = False, top_k: int | None = None) -> RankResult:
        """The ranking; all windows must have been taken."""
        assert not self._todo, "the ranking is not complete"
        n, outcome = len(self.order), self._outcome
        assert sorted(self.order.tolist()) == list(range(n)), "not a permutation"
        top = n if top_k is None else min(top_k, n)
        runs = outcome.trajectories
        tokens, forwards = sum(len(t.tokens_T) for t in runs), sum(t.nfe for t in runs)
        names = self.reranker.vocab
        return RankResult(
            order=tuple(self.order[:top].tolist()),
            items=tuple(self.query.named[i] for i in self.order[:top].tolist()),
            scores=tuple(1.0 - rank / n for rank in range(top)),
            valid=outcome.valid,
            repaired=outcome.repaired,
            fallback=outcome.fallback,
            identity=bool((self.order == np.arange(n)).all()),
            failures=tuple(outcome.failures),
            reasoning=self.english() if return_reasoning else None,
            raw=tuple(names.decode(t.tokens_T.tolist()) for t in runs),
            trajectories=tuple(runs),
            decode={
                "decoder": self.settings.decoder,
                "rule": self.settings.rule,
                "threshold": self.settings.threshold,
                "windows": self.n_windows,
                "prompt_tokens": outcome.prompt_tokens,
                "tokens": tokens,
                "reasoning_tokens": outcome.reasoning_tokens,
                "forwards": forwards,
                "tokens_per_forward": round(tokens / forwards, 3) if forwards else 0.0,
            },
        )
