"""What the decoders mean: plain loops over the stock model, no cache, no batching. Read this first.

Contract: every forward recomputes the whole document (`model.slow`) under an explicit mask, what a
grammar allows is found by listing all its texts, and nothing else of `decode` or `model.layout` is
used; the fast decoders (`ar`, `block`, `verify`) must write the same tokens in the same steps,
which the oracle tests check. Not here: speed; nothing but tests and readers uses this.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import floor, nan
from typing import Any, Protocol

import numpy as np

from diffgr2.decode.grammar import NOTHING, Grammar, Group, Places
from diffgr2.decode.settings import DecodeSettings

Random = np.random.Generator | None


@dataclass
class Slow:
    """What a decode produced, per position; see `types.Trajectory`."""

    tokens: list[int]
    steps: list[int]
    logps: list[float]
    levels: list[float]
    forced: list[bool]
    nfe: int
    finished: bool


class SlowModel(Protocol):
    """The stock model (`model.slow`), or whatever else has distributions."""

    def logp(self, ids: list[int], sees: list[int]) -> Any:
        """Log-probabilities [T, V] of a document, token t of which sees positions below `sees[t]`;
        an array or a tensor."""
        ...


# ----------------------------------------------------------------------- one choice of a token


@dataclass(frozen=True)
class Choice:
    token: int
    logp: float  # at the temperature, over what was allowed
    confidence: float  # of all tokens, allowed or not, at temperature 1
    level: float = nan  # expected level where a strength stands


def log_softmax(raw: np.ndarray) -> np.ndarray:
    return raw - raw.max() - np.log(np.exp(raw - raw.max()).sum())


def choose(
    logp_V: Any, allowed: Sequence[int], scale: bool, temperature: float, uniform: float
) -> Choice:
    """Pick among the allowed tokens; on a scale these are the levels in order."""
    every = np.asarray(logp_V, np.float64)
    raw = every[list(allowed)]
    if not np.isfinite(raw).any():
        raw = np.zeros(len(allowed))
    logp = log_softmax(raw)
    level = sum(i * float(p) for i, p in enumerate(np.exp(logp))) if scale else nan
    if temperature > 0:
        logp = log_softmax(raw / temperature)
        total = 0.0
        sums = [total := total + float(p) for p in np.exp(logp)]
        best = next(i for i, s in enumerate(sums) if s > uniform * total)
    elif scale:
        best = floor(round(level, 6) + 0.5)
    else:
        best = min(range(len(allowed)), key=lambda i: (-float(logp[i]), allowed[i]))
    near = allowed[max(best - 1, 0) : best + 2] if scale else [allowed[best]]
    confidence = sum(float(np.exp(every[token])) for token in near)
    return Choice(allowed[best], float(logp[best]), confidence, level)


# ------------------------------------------------------------------------------- the grammar


def group_texts(group: Group) -> Iterator[dict[int, int]]:
    """All {place: token} that a group can be: different choices, then nothing but fillers."""
    at, choices = group.at_JN.tolist(), group.choices_CN.tolist()
    most = min(len(at), len(choices))
    for chosen in range(0 if group.filler is not None else len(at), most + 1):
        for order in permutations(choices, chosen):
            entries = [*order, *[[group.filler]] * (len(at) - chosen)]
            yield {
                place: token
                for places, entry in zip(at, entries, strict=True)
                for place, token in zip(places, entry, strict=True)
            }


def row_allows(places: Places, known: dict[int, int]) -> list[list[int]]:
    """What may stand at each place of a row: whatever some text has that agrees with the known."""
    rows = [[t for t in row if t != NOTHING] for row in places.allowed_TA.tolist()]
    may = [{known[at]} if at in known else set(row) for at, row in enumerate(rows)]
    for group in places.groups:
        found = {at: set() for at in group.at_JN.ravel().tolist()}
        for text in group_texts(group):
            if all(token in may[at] for at, token in text.items()):
                for at, token in text.items():
                    found[at].add(token)
        for at, tokens in found.items():
            may[at] = tokens
    return [[t for t in row if t in some] for row, some in zip(rows, may, strict=True)]


@dataclass
class Text:
    """A response under way: what is known of each position, and what may stand at the others."""

    settings: DecodeSettings
    grammar: Grammar | None
    known: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)  # none for forced tokens
    nfe: int = 0

    @classmethod
    def begin(cls, settings: DecodeSettings, grammar: Grammar | None) -> "Text":
        text = cls(settings, None if settings.rule == "raw" else grammar)
        text.settle(-1)
        return text

    def copy(self) -> "Text":
        more = dict(self.known), dict(self.steps), dict(self.choices)
        return Text(self.settings, self.grammar, *more, self.nfe)

    def first_open(self) -> int:
        at = 0
        while at in self.known:
            at += 1
        return at

    def end(self) -> int | None:
        """The response's length, None where it is not known yet."""
        if self.grammar is None:  # an end token behind which nothing is open
            ends = [at for at, token in self.known.items() if token == self.settings.end_id]
            return min(ends) + 1 if ends and min(ends) < self.first_open() else None
        head, free, tail = len(self.grammar.head), self.grammar.free, len(self.grammar.tail)
        if free is None:
            return head + tail
        closers = [at for at, t in self.known.items() if at >= head and t == free.closer]
        return min(closers) + 1 + tail if closers else None

    def limit(self) -> int:
        """Nothing can be chosen from this position on."""
        end = self.end()
        if self.grammar is not None and end is None:
            end = len(self.grammar.head) + (self.grammar.free.room if self.grammar.free else 0)
        return self.settings.max_tokens if end is None else min(end, self.settings.max_tokens)

    def done(self) -> bool:
        return self.first_open() >= self.limit()

    def rows(self) -> Iterator[tuple[int, Places]]:
        """(start, row of places) of each row whose start is known."""
        if self.grammar is not None:
            yield 0, self.grammar.head
            end = self.end()
            if end is not None:
                yield end - len(self.grammar.tail), self.grammar.tail

    def row_of(self, at: int) -> tuple[int, Places] | None:
        return next((r for r in self.rows() if r[0] <= at < r[0] + len(r[1])), None)

    def may(self, at: int, vocabulary: int) -> list[int]:
        """The tokens that may stand at this position."""
        every = [t for t in range(vocabulary) if t != self.settings.mask_id]
        if self.grammar is None:
            return every
        row = self.row_of(at)
        if row is not None:
            start, places = row
            return row_allows(places, self.part(start, places))[at - start]
        free, head = self.grammar.free, len(self.grammar.head)
        end = self.end()
        if free is None or at >= head + free.room or (end is not None and at >= end):
            return []
        behind = max((p for p in self.known if p >= head), default=-1)
        if at == head + free.room - 1:
            return [free.closer] if at > behind else []
        banned = {*free.banned.tolist(), *([free.closer] if at < behind else [])}
        return [t for t in every if t not in banned]

    def part(self, start: int, places: Places) -> dict[int, int]:
        """The known tokens of a row, by place."""
        inside = range(start, start + len(places))
        return {at - start: token for at, token in self.known.items() if at in inside}

    def scale(self, at: int) -> bool:
        """Whether a strength stands here."""
        start, places = self.row_of(at) or (0, None)
        scale_T = places.scale_T if places is not None else None
        return scale_T is not None and bool(scale_T[at - start])

    def closes(self, at: int, token: int) -> bool:
        """Whether this token would end the open free text."""
        free = self.grammar.free if self.grammar else None
        return bool(free and self.row_of(at) is None and token == free.closer)

    def choose(self, at: int, logp_V: Any, temperature: float, uniform: float) -> Choice:
        allowed = self.may(at, len(logp_V))
        return choose(logp_V, allowed, self.scale(at), temperature, uniform)

    def commit(self, at: int, choice: Choice) -> None:
        """Write a token, and all that has one possibility now."""
        self.known[at], self.steps[at], self.choices[at] = choice.token, self.nfe, choice
        self.settle(self.nfe)

    def settle(self, step: int) -> None:
        while forced := self.forced():
            for at, token in forced.items():
                self.known[at], self.steps[at] = token, step

    def forced(self) -> dict[int, int]:
        """Open positions of which only one token is possible."""
        found = {}
        for start, places in self.rows():
            for at, tokens in enumerate(row_allows(places, self.part(start, places)), start):
                if len(tokens) == 1 and at not in self.known:
                    found[at] = tokens[0]
        free = self.grammar.free if self.grammar is not None else None
        if self.grammar is not None and free is not None and self.end() is None:
            first, last = len(self.grammar.head), len(self.grammar.head) + free.room - 1
            if last == first or any(last - 1 <= at for at in self.known):  # no other is left
                found[last] = free.closer
        return found

    def result(self) -> Slow:
        end = self.end()
        limit = self.settings.max_tokens
        finished = end is not None and end <= limit
        every = range(end if end is not None and finished else limit)
        chosen = [self.choices.get(at, Choice(self.known[at], 0.0, 1.0)) for at in every]
        return Slow(
            [self.known[at] for at in every],
            [self.steps[at] for at in every],
            [choice.logp for choice in chosen],
            [choice.level for choice in chosen],
            [at not in self.choices for at in every],
            self.nfe,
            finished,
        )


# ---------------------------------------------------------------------------------- decoders


def ar(
    model: SlowModel,
    prompt: list[int],
    settings: DecodeSettings,
    grammar: Grammar | None = None,
    rng: Random = None,
) -> Slow:
    """One choice a forward, from left to right."""
    text = Text.begin(settings, grammar)
    while not text.done():
        at = text.first_open()
        ids = prompt + [text.known[t] for t in range(at)]
        logp_V = model.logp(ids, [t + 1 for t in range(len(ids))])[-1]
        text.commit(at, text.choose(at, logp_V, settings.temperature, rng.random() if rng else 0))
        text.nfe += 1
    return text.result()


def boundaries(length: int, settings: DecodeSettings, prompt_length: int) -> list[int]:
    """The end of the block that holds each document position below `length`."""
    first = 0 if settings.origin == "document" else prompt_length % settings.block_size
    ends, size = [], settings.block_size
    for position in range(length):
        end = first
        while end <= position:
            end += size
        ends.append(end)
    return ends


def accepted(
    settings: DecodeSettings, confidence: dict[int, float], entropy: dict[int, float]
) -> list[int]:
    """The positions that commit, of {position: confidence}, the surest (leftmost) first."""
    order = sorted(confidence, key=lambda at: (-confidence[at], at))
    commit = {order[0]}
    if settings.accept == "threshold":
        commit |= {at for at, c in confidence.items() if c > settings.threshold}
    elif settings.accept == "static":
        commit |= set(order[: settings.per_step])
    else:
        total = 0.0
        for at in sorted(confidence, key=lambda at: (entropy[at], at)):
            if total > settings.entropy_bound:
                break
            commit.add(at)
            total += entropy[at]
    return [at for at in order if at in commit]


def canvas_logp(
    model: SlowModel,
    prompt: list[int],
    known: dict[int, int],
    start: int,
    end: int,
    settings: DecodeSettings,
) -> dict[int, Any]:
    """{canvas position: log-probabilities} of one denoising forward."""
    p = len(prompt)
    ends = boundaries(p + end, settings, p)
    ids = prompt + [known.get(at, settings.mask_id) for at in range(end)]
    if settings.clean_kv == "causal":
        sees = [t + 1 for t in range(p + start)]
    else:
        sees = [min(ends[t], p) for t in range(p)] + ends[p : p + start]
    sees += [p + end] * (end - start)
    logp_TV = model.logp(ids, sees)
    back = 1 if settings.alignment == "shifted" else 0
    return {at: logp_TV[p + at - back] for at in range(start, end)}


def block(
    model: SlowModel,
    prompt: list[int],
    settings: DecodeSettings,
    grammar: Grammar | None = None,
    rng: Random = None,
) -> Slow:
    """Denoise block after block; every step commits what is sure, and at least one position."""
    text, start, saved = Text.begin(settings, grammar), 0, 0
    while not text.done():
        end = boundaries(len(prompt) + start + 1, settings, len(prompt))[-1] - len(prompt)
        if text.first_open() >= end:
            start = end
            continue
        if saved < start and not settings.fused and text.nfe:  # what is clean enters the cache
            text.nfe += 1
        saved = start
        if text.grammar is not None:
            end = min(end, text.limit())
        logp = canvas_logp(model, prompt, text.known, start, end, settings)
        hot, places = settings.temperature, [t for t in range(start, end) if t not in text.known]
        choice = {t: text.choose(t, logp[t], hot, rng.random() if rng else 0) for t in places}
        rows = {at: np.asarray(logp[at], np.float64) for at in choice}
        entropy = {at: -float((np.exp(r) * np.maximum(r, -1e9)).sum()) for at, r in rows.items()}
        confidence = {at: chosen.confidence for at, chosen in choice.items()}
        # What stands behind a wish to end the free text may belong to the tail: too early.
        closing = [t for t in places if text.closes(t, choice[t].token)]
        first = [t for t in places if t <= min([*closing, end])]
        sure = [at for at in accepted(settings, confidence, entropy) if at in first]
        for at in sure or [max(first, key=lambda t: confidence[t])]:
            if at not in text.known and choice[at].token in text.may(at, len(logp[at])):
                text.commit(at, choice[at])
        text.nfe += 1
    return text.result()


def verify(
    model: SlowModel, prompt: list[int], settings: DecodeSettings, grammar: Grammar | None = None
) -> Slow:
    """What `ar` writes (greedy): a draft of what comes next is checked in one causal forward."""
    text, p = Text.begin(settings, grammar), len(prompt)
    draft: dict[int, int] = {}  # the tokens from the first open position on, without a gap
    while not text.done():
        start = text.first_open()
        checked = start + len(draft)
        end = min(start + settings.canvas, text.limit())
        shown = {**draft, **text.known}
        ids = prompt + [shown.get(at, settings.mask_id) for at in range(end)]
        causal = [t + 1 for t in range(p + checked)]
        logp_TV = model.logp(ids, causal + [p + end] * (end - checked))
        # Who predicts which position: clean tokens the next, masks their own (or the next).
        back = {at: at <= checked or settings.alignment == "shifted" for at in range(end + 1)}
        rows = {at: p + at - back[at] for at in back if at >= start}
        while not text.done() and (at := text.first_open()) <= checked:
            text.commit(at, text.choose(at, logp_TV[p + at - 1], 0, 0))
            if draft.get(at) != text.known[at]:
                break
        text.nfe += 1
        draft, guess = {}, text.copy()
        for at in range(text.first_open(), min(start + settings.canvas, text.limit())):
            if (text.grammar and at >= guess.limit()) or rows.get(at, len(ids)) >= len(ids):
                break
            if at not in guess.known:
                guess.commit(at, guess.choose(at, logp_TV[rows[at]], 0, 0))
            draft[at] = guess.known[at]
    return text.result()
