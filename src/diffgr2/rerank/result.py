"""What a ranking is, once it is there: order, scores, what was said, and how far it is the model's.

Contract: `RankResult` is plain values, best first; `ranking` and `decided` are its parts as JSON,
for every door alike. Not here: how it came about (`task`), whole answers (`serve.replies`, `cli`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from diffgr2.rerank.decisions import Decision
from diffgr2.rerank.rules import Moved
from diffgr2.types import Trajectory

Telling = bool | Literal["markdown"]
"""Whether the reasoning is wanted, and in which form."""


@dataclass(frozen=True)
class RankResult:
    """A ranking, best first; `order` holds positions in the list that was given.

    `scores` fall strictly. Of a said answer they are calibrated probabilities that this candidate
    is the one, given that one of the list is; of a written one they are made of the rank alone.
    Where rules moved somebody, they only follow the order; `placed` says who was moved, and why.
    """

    order: tuple[int, ...]  # positions in the list that was given
    items: tuple[Any, ...]  # as the caller named them
    scores: tuple[float, ...]  # falling strictly
    levels: tuple[float | None, ...]  # expected strength of each item, None where none is stated
    sure: float | None  # the first place's; None of a written answer, and where nothing was judged
    valid: bool  # every answer was complete, a written one a permutation, before any repair
    repaired: bool  # some answer was completed by the policy, or in floor order
    fallback: bool  # some answer was of no use: its window kept its floor order
    identity: bool  # the order is the one that came in
    failures: tuple[str, ...]  # kinds of what written answers lacked
    reasoning: str | None  # plain English or Markdown, where asked for
    raw: tuple[str, ...]  # what the model wrote, window by window
    trajectories: tuple[Trajectory, ...]  # how it was written, window by window
    decode: dict[str, Any] = field(default_factory=dict)  # the settings, tokens and forwards
    decisions: tuple[Decision, ...] | None = None  # of each item, with `decode.details`
    placed: tuple[Moved | None, ...] = ()  # of each item: pinned, boosted, kept or limited
    warnings: tuple[str, ...] = ()  # what of the request was passed over

    def ranking(self) -> dict[str, Any]:
        """How far the order is the model's own, for answers as JSON."""
        names = ("valid", "repaired", "fallback", "identity", "sure")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, "failures": list(self.failures)}

    def decided(self) -> dict[str, Any]:
        """The decisions for answers as JSON, where they were asked for."""
        if self.decisions is None:
            return {}
        pairs = zip(self.order, self.decisions, strict=True)
        return {"decisions": [{"index": index, **one.as_json()} for index, one in pairs]}
