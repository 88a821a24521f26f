"""Contradictions in an output: statement against prompt, against statement, against the ranking.

Contract: `contradictions(template, shown)` names the kind of every contradiction in one output,
whatever decoded it: in the text that is shown, read back by `told`, and in the response's own
tokens. None is taken on trust from how the text was made. `coherence_rate` is the share of outputs
without any, with Wilson's interval. Not here: whether the evidence that is cited is what counts
(`faithfulness`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from diffgr2.evaluate.significance import wilson
from diffgr2.evaluate.told import Past, Point, Reader, Told, Who, plain
from diffgr2.prompts.english import AGAINST, FOR, NEITHER, Phrases
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import Reading
from diffgr2.prompts.vocab import Vocabulary

MEANING = {
    "unread": "a rendered sentence that names no candidate here, or says what nobody can check",
    "history": "the history is not what the prompt's history is",
    "misstated": "evidence of a candidate is not what the prompt shows",
    "uncited": "evidence of a candidate that its response does not cite",
    "two_grades": "two grades of one field for one candidate",
    "two_sides": "one field for and against one candidate",
    "repeated": "one field twice about one candidate",
    "wrong_side": "a point for with a grade that is not good, or against with one that is not bad",
    "two_strengths": "two strengths for one candidate",
    "strength": "the strength in words is not the strength in the response",
    "verdict": "the verdict's first or second is not the ranking's",
    "self": "a candidate ahead of itself",
    "lines": "the lines about candidates do not follow the ranking",
    "rising": "strengths rise along the ranking",
    "rest": "those left are not as many, or not as weak, as is said",
    "citation": "the response cites evidence that its prompt does not show",
}
KINDS = tuple(MEANING)
"""Kinds of contradictions, in this order everywhere."""

DIGITS = 4
"""Strengths that are equal so far are ties, as the said order takes them."""


class Writes(Protocol):
    """What is asked of a template."""

    @property
    def vocab(self) -> Vocabulary: ...

    @property
    def words(self) -> Mapping[str, Any]: ...

    @property
    def phrases(self) -> Phrases: ...

    def thought(self, tokens: list[int]) -> list[int]: ...

    def citations(self, tokens: list[int], request: Request) -> tuple[int, int]: ...

    def cited(self, token: int, request: Request, at: int) -> tuple[int, int] | None: ...


@dataclass(frozen=True)
class Shown:
    """One output; candidates are numbered as in the request, histories are oldest first."""

    request: Request
    reading: Reading
    order: Sequence[int]  # as it is shown
    text: str
    tokens: Sequence[int] = ()  # the response
    names: Sequence[str] = ()
    kinds: Sequence[str] = ()  # of the request's history items
    newest: Sequence[str] = ()  # their names


def contradictions(template: Writes, shown: Shown) -> tuple[str, ...]:
    """The kind of every contradiction, in KINDS' order."""
    words, phrases, request = template.words, template.phrases, shown.request
    if isinstance(template, Gr2):  # its text is the model's own; its words are those of the chat
        words, shown = template.chat.words, replace(shown, kinds=request.history_kinds)
    free = "steps" in words
    told = Reader(words, phrases, request, shown.names, shown.kinds, shown.newest).read(shown.text)
    found = [
        *["unread"] * told.unread,
        *["history" for past in told.pasts if not _true_past(past, shown)],
        *_points(told.points, phrases, shown, rendered=not free),
        *_strengths(told, words, template.vocab.spec.strengths, shown),
        *_ranking(told, shown),
        *_response(template, shown),
    ]
    if free and (twice := min(found.count("misstated"), found.count("citation"))):
        for _ in range(twice):  # the text is the response
            found.remove("citation")
    return tuple(sorted(found, key=KINDS.index))


# ------------------------------------------------------------------------------- what is checked


def _true_past(past: Past, shown: Shown) -> bool:
    """Whether the history is as it is said to be."""
    held = max(len(shown.request.history_HL), len(shown.kinds), len(shown.newest))
    if past.nothing or not past.readable:
        return past.readable and held == 0
    if past.items:
        ahead = [item for item in map(plain, reversed(shown.newest)) if item]
        return list(past.items) == ahead[: len(past.items)]
    counts = Counter(kind for kind in map(plain, shown.kinds) if kind)
    named = [kind for kind, _, _ in past.named]
    numbers = [n for _, n, _ in past.named]
    return (
        held > 0
        and past.whole in (None, len(counts) == len(named))
        and past.latest in (None, plain([*shown.kinds, ""][len(shown.kinds) - 1]))
        and len(set(named)) == len(named)
        and numbers == sorted(numbers, reverse=True)
        and numbers == [n for _, n in counts.most_common(len(named))]
        and all(
            counts[kind] == n and total in (None, len(shown.kinds)) for kind, n, total in past.named
        )
    )


def _points(
    points: Sequence[Point], phrases: Phrases, shown: Shown, *, rendered: bool
) -> Iterator[str]:
    """Evidence against the prompt, against the response, and against itself."""
    buckets_KF, side_KF = shown.request.buckets_KF, phrases.sides(shown.request.buckets_KF)
    about: dict[tuple[Who, int], list[Point]] = defaultdict(list)
    for point in points:
        if point.who:
            about[point.who, point.field].append(point)
    for (who, number), said in about.items():
        # Of equal names any one may be meant.
        holders = [i for i in who if any(buckets_KF[i, number] in p.buckets for p in said)]
        grades = {p.buckets for p in said}
        sides = {p.side for p in said} - {NEITHER}
        if not holders:
            yield "misstated"
        if len(grades) > 1:
            yield "two_grades"
        if len(sides) > 1:
            yield "two_sides"
        elif sides and not any(_rightly(p, phrases, side_KF, holders) for p in said if p.side):
            yield "wrong_side"
        once = {(p.sentence, p.side, p.buckets) for p in said}
        yield from ["repeated"] * (len(said) - len(once))
        if rendered and not any(number in shown.reading.cites[i] for i in who):
            yield "uncited"


def _rightly(point: Point, phrases: Phrases, side_KF: np.ndarray, holders: Sequence[int]) -> bool:
    """Whether a point's grade is one of its side, and says something of who has it."""
    graded = any(phrases.side_FB[point.field, b] == point.side for b in point.buckets)
    silent = holders and all(side_KF[i, point.field] == NEITHER for i in holders)
    return graded and not silent


def _strengths(told: Told, words: Mapping[str, Any], levels: int, shown: Shown) -> Iterator[str]:
    """Words against the response's strengths, against each other, and along the lines."""
    levels_K = shown.reading.levels_K
    by_who: dict[Who, set[int]] = defaultdict(set)
    for who, word in told.strengths:
        by_who[who].add(word)
    for who, said in by_who.items():
        if len(said) > len(who):  # candidates of one name may have one each
            yield "two_strengths"
        elif not all(any(w == _word(levels_K[i], words, levels) for i in who) for w in said):
            yield "strength"
    known_K = np.round(np.asarray(levels_K, dtype=float)[list(shown.order)], DIGITS)
    judged = known_K[~np.isnan(known_K)]
    spoken = [word for _, word in told.strengths if word >= 0]
    if (np.diff(judged) > 0).any() or (np.diff(spoken) > 0).any():
        yield "rising"


def _word(level: float, words: Mapping[str, Any], levels: int) -> int:
    """The number of the word for a level, -1 for none: equal parts of the scale."""
    n = len(words["strengths"])
    edges = np.arange(1, n) * (levels - 1) / n
    return -1 if np.isnan(level) else int((level >= edges - 1e-6).sum())


def _ranking(told: Told, shown: Shown) -> Iterator[str]:
    """Verdict, lines and the rest against the order."""
    order = list(shown.order)
    for (first, who), second in told.verdicts:
        right = bool(order) and order[0] in who
        if second and second[0] == first:
            yield "self"
        elif second:
            right = right and len(order) > 1 and order[1] in second[1]
        if not right:
            yield "verdict"
    lined = zip(told.lines, order, strict=False)
    if len(told.lines) > len(order) or any(place not in who for who, place in lined):
        yield "lines"
    levels_K = np.round(shown.reading.levels_K, DIGITS)
    for count, weaker in told.rests:
        left, ahead = order[len(told.lines) :], order[: len(told.lines)]
        weak = not weaker or (ahead and left and max(levels_K[left]) <= min(levels_K[ahead]))
        if count != len(left) or not weak:
            yield "rest"


def _response(template: Writes, shown: Shown) -> Iterator[str]:
    """What the response's own tokens say, rendered or not."""
    tokens = list(shown.tokens)
    right, total = template.citations(tokens, shown.request) if tokens else (0, 0)
    yield from ["citation"] * (total - right)
    cited: dict[tuple[int, int], list[int]] = defaultdict(list)
    strengths: dict[int, set[int]] = defaultdict(set)
    vocab, at = template.vocab, None
    for token in template.thought(tokens) if tokens else ():
        at = vocab.index_of(token) if vocab.index_of(token) is not None else at
        if at is None:
            continue
        evidence, level = template.cited(token, shown.request, at), vocab.strength_of(token)
        if evidence is not None:
            cited[at, evidence[0]].append(evidence[1])
        elif level is not None:
            strengths[at].add(level)
    side_FB = template.phrases.side_FB
    for (_, number), buckets in cited.items():
        sides = {int(side_FB[number, bucket]) for bucket in buckets}
        if {FOR, AGAINST} <= sides:
            yield "two_sides"
        elif len(set(buckets)) > 1:
            yield "two_grades"
        yield from ["repeated"] * (len(buckets) - len(set(buckets)))
    yield from ("two_strengths" for levels in strengths.values() if len(levels) > 1)


# ------------------------------------------------------------------------------------------ rates


def coherence_rate(counts: Sequence[int] | np.ndarray) -> tuple[float, tuple[float, float]]:
    """Share of outputs without a contradiction, from each output's number of them."""
    coherent, n = int((np.asarray(counts) == 0).sum()), len(counts)
    return (coherent / n, wilson(coherent, n)) if n else (0.0, (0.0, 1.0))
