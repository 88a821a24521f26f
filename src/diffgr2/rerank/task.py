"""One ranking on its way: windows out, decoded answers in, a permutation at the end.

Contract: `RankTask.window()` gives the next decode, `take()` its answer, `result()` the ranking
once `window()` is None; whoever decodes may batch many tasks, and may call these on any thread, one
at a time. Not here: resolving what was asked (`names`, `reranker`), decoding (`decode`).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.request import Request
from diffgr2.rerank.names import Item
from diffgr2.rerank.world import World
from diffgr2.types import Trajectory


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

    def ranking(self) -> dict[str, Any]:
        """How far the order is the model's own, for answers as JSON."""
        names = ("valid", "repaired", "fallback", "identity")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "failures": list(self.failures)}


@dataclass(frozen=True)
class Query:
    """One request, resolved."""

    history: list[Item]
    candidates: list[Item]
    named: list[Any]  # the candidates as the caller named them
    scores_N: np.ndarray
    user: int  # dense number, -1 unknown


def windows_of(n: int, k: int) -> list[tuple[int, int]]:
    """Windows of at most k places, back to front, each half overlapping the one before.

    >>> windows_of(10, 10), windows_of(22, 10)
    ([(0, 10)], [(12, 22), (7, 17), (2, 12), (0, 7)])
    """
    ends = range(n, k, -max(1, k // 2)) if n > k else range(n, n + 1)
    windows = [(max(0, end - k), end) for end in ends]
    return windows if windows[-1][0] == 0 else [*windows, (0, windows[-1][1] - max(1, k // 2))]


class RankTask:
    """One request on its way: `window()` → decode → `take()` until `window()` is None."""

    def __init__(
        self,
        world: World,
        query: Query,
        settings: DecodeSettings,
        *,
        reasoning: bool,
        stream: tuple[str | int, ...] = ("decode",),
    ) -> None:
        self.world, self.query, self.settings = world, query, settings
        self.reasoning, self.stream = reasoning, stream
        n = len(query.candidates)
        self.order = np.arange(n)
        self._todo = windows_of(n, world.k)[::-1] if n > 1 else []
        self.n_windows = len(self._todo)
        self.grounds: dict[int, np.ndarray] = {}  # candidate -> its latest evidence buckets
        self._request: Request | None = None  # of the window that is being decoded
        self._failures: dict[str, None] = {}  # kinds, in the order in which they were met
        self._valid, self._repaired, self._fallback = True, False, False
        self._runs: list[Trajectory] = []
        self._prompt_tokens = self._reasoning_tokens = 0
        self._thoughts: list[tuple[list[int], Request, list[str]]] = []

    def request(self, places: np.ndarray) -> Request:
        """The prompt's content for the candidates at these places."""
        query = self.query
        shown = [query.candidates[place] for place in places.tolist()]
        return self.world.request(query.history, shown, query.scores_N[places], query.user)

    def window(self) -> DecodeRequest | None:
        """The next decode, None when the ranking is complete."""
        if not self._todo:
            return None
        self._places = self.order[slice(*self._todo[-1])]
        self._request = request = self.request(self._places)
        self.grounds |= zip(self._places.tolist(), request.buckets_KF, strict=True)
        template = self.world.template
        prompt = template.prompt(request, reasoning=self.reasoning)
        self._prompt_tokens += len(prompt)
        number = self.n_windows - len(self._todo)
        stream = self.stream if number == 0 else (*self.stream, number)
        return DecodeRequest(prompt, template.grammar(request), stream)

    def take(self, trajectory: Trajectory) -> None:
        """The decoded answer of the current window."""
        assert self._request is not None
        start, end = self._todo.pop()
        template, policy, k = self.world.template, self.world.recipe.decode.repair, end - start
        tokens = trajectory.tokens_T.tolist()
        answer = template.parse(tokens, self._request)
        if not answer.valid:
            floor = policy == "floor" or not any(0 <= place < k for place in answer.order)
            self._valid = False
            self._fallback |= floor
            self._repaired |= not floor
            self._failures |= dict.fromkeys(answer.failures)
        self.order[start:end] = self._places[POLICIES[policy](answer.order, k)]
        self._runs.append(trajectory)
        self._reasoning_tokens += template.answer_start(tokens)
        if self.reasoning:
            names = [self.world.names.title(self.query.candidates[p]) for p in self._places]
            self._thoughts.append((tokens, self._request, names))

    def english(self) -> str:
        """All windows' reasoning for people; the last window decided the top, so it comes first."""
        template, labels = self.world.template, self.world.group_labels
        return "\n\n".join(template.english(*said, labels) for said in self._thoughts[::-1])

    def result(self, *, return_reasoning: bool = False, top_k: int | None = None) -> RankResult:
        """The ranking; all windows must have been taken."""
        assert not self._todo, "the ranking is not complete"
        n, runs = len(self.order), self._runs
        assert sorted(self.order.tolist()) == list(range(n)), "not a permutation"
        head = self.order[: n if top_k is None else min(top_k, n)].tolist()
        tokens, forwards = sum(len(t.tokens_T) for t in runs), sum(t.nfe for t in runs)
        return RankResult(
            order=tuple(head),
            items=tuple(self.query.named[i] for i in head),
            scores=tuple(1.0 - rank / n for rank in range(len(head))),
            valid=self._valid,
            repaired=self._repaired,
            fallback=self._fallback,
            identity=bool((self.order == np.arange(n)).all()),
            failures=tuple(self._failures),
            reasoning=self.english() if return_reasoning else None,
            raw=tuple(self.world.vocab.decode(t.tokens_T.tolist()) for t in runs),
            trajectories=tuple(runs),
            decode={
                "decoder": self.settings.decoder,
                "rule": self.settings.rule,
                "threshold": self.settings.threshold,
                "windows": self.n_windows,
                "prompt_tokens": self._prompt_tokens,
                "tokens": tokens,
                "reasoning_tokens": self._reasoning_tokens,
                "forwards": forwards,
                "tokens_per_forward": round(tokens / forwards, 3) if forwards else 0.0,
            },
        )
