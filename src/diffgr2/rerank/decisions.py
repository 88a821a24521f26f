"""What a response decided about each candidate, with the probabilities it had: typed decisions.

Contract: `decisions_of` reads a trajectory that kept its details: of every candidate shown the
distribution over its strengths, and over what could stand at each of its places for evidence. What
the grammar left no choice about has probability 1. `merged` averages the strengths of several
views. Not here: decoding, and the ranking (`task`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import AGAINST, FOR
from diffgr2.prompts.request import Request
from diffgr2.types import Trajectory

DIGITS = 6  # of a probability in JSON

SIDES = {FOR: "for", AGAINST: "against"}


@dataclass(frozen=True)
class Piece:
    """Something that could stand at a place for evidence; without a field: nothing more counts."""

    field: str | None  # of the evidence
    phrase: str  # in English
    side: str  # for, against, or nothing
    probability: float  # of this piece at this place


@dataclass(frozen=True)
class Decision:
    """Of one candidate; empty where the response does not judge it."""

    strengths: tuple[float, ...] = ()  # probability of each level
    evidence: tuple[tuple[Piece, ...], ...] = ()  # of each place, the most probable first

    def as_json(self) -> dict[str, Any]:
        """As answers over HTTP hold it."""
        return {
            "strengths": [round(chance, DIGITS) for chance in self.strengths],
            "evidence": [
                [
                    {**vars(piece), "probability": round(piece.probability, DIGITS)}
                    for piece in place
                ]
                for place in self.evidence
            ],
        }


def decisions_of(
    template: Compact, request: Request, trajectory: Trajectory
) -> dict[int, Decision]:
    """Shown position -> what was decided about it."""
    vocab, found = template.vocab, dict[int, Decision]()
    at, pieces = request.k, list[tuple[Piece, ...]]()
    for place, token in enumerate(template.thought(trajectory.tokens_T.tolist())):
        position = vocab.index_of(token)
        if position is not None:
            at, pieces = position, []
        elif at < request.k and at not in found:
            tokens, chances = (trajectory.chances or {}).get(place, ([token], [1.0]))
            pairs = list(zip(map(int, tokens), map(float, chances), strict=True))
            if vocab.strength_of(token) is None:
                pieces.append(_pieces(template, request, at, pairs))
            else:
                strengths = np.zeros(vocab.spec.strengths)
                for other, chance in pairs:
                    level = vocab.strength_of(other)
                    if level is not None:
                        strengths[level] = chance
                found[at] = Decision(tuple(strengths.tolist()), tuple(pieces))
    return found


def _pieces(
    template: Compact, request: Request, at: int, pairs: Sequence[tuple[int, float]]
) -> tuple[Piece, ...]:
    """What could stand at a place for evidence of candidate `at`."""
    vocab, side_F = template.vocab, template.phrases.sides(request.buckets_KF[at])
    found = []
    for token, chance in sorted(pairs, key=lambda pair: -pair[1]):
        cited = template.cited(token, request, at)
        if cited is not None:
            field, bucket = cited
            side = SIDES.get(int(side_F[field]), "")
            phrase = template.phrases.say(field, bucket)
            found.append(Piece(vocab.spec.fields[field], phrase, side, chance))
        elif token == vocab.control["<none>"]:
            found.append(Piece(None, "", "", chance))
    return tuple(found)


def merged(decisions: Sequence[Decision]) -> Decision:
    """Several views of one candidate: strengths averaged, evidence of the first that has any."""
    judged = [decision for decision in decisions if decision.strengths]
    if not judged:
        return Decision()
    strengths = np.mean([decision.strengths for decision in judged], axis=0)
    return replace(judged[0], strengths=tuple(strengths.tolist()))
