"""Grammars for tests: hand-made ones over the tiny model's tokens, random ones, and an acceptor.

`accepts` reads a whole text from left to right and shares nothing with the code under test.
"""

from __future__ import annotations

import numpy as np

from diffgr2.decode.grammar import (
    NO_PLACES,
    Free,
    Grammar,
    Group,
    Guide,
    Places,
    row_of_places,
)
from diffgr2.decode.spelling import UNKNOWN

END, MASK = 0, 28  # of the tiny model


def open_places(guide: Guide, start: int, stop: int) -> list[int]:
    """Open positions in [start, stop) that a token may be committed to."""
    return [at for at in range(start, min(stop, guide.stop)) if guide.tokens_T[at] == UNKNOWN]


class Row:
    """Collects places; `done` makes the row."""

    def __init__(self) -> None:
        self.sets: list[list[int]] = []
        self.groups: list[Group] = []
        self.scales: list[int] = []

    def fixed(self, *tokens: int) -> Row:
        self.sets += [[token] for token in tokens]
        return self

    def one_of(self, *tokens: int) -> Row:
        self.sets.append(list(tokens))
        return self

    def strength(self, *levels: int) -> Row:
        self.scales.append(len(self.sets))
        return self.one_of(*levels)

    def group(self, entries: int, choices: list[list[int]], filler=None, between=()) -> Row:
        """Entries that differ; the tokens `between` stand before each of them."""
        width = len(choices[0]) if choices else 1
        choices_CN = np.array(choices, dtype=np.int64).reshape(len(choices), width)
        at = []
        for _ in range(entries):
            self.fixed(*between)
            at.append(range(len(self.sets), len(self.sets) + width))
            for n in range(width):
                some = sorted(set(choices_CN[:, n].tolist()))
                self.sets.append(some if filler is None else [*some, filler])
        self.groups.append(Group(np.array([list(r) for r in at]), choices_CN, filler))
        return self

    def done(self) -> Places:
        scale_T = np.zeros(len(self.sets), dtype=bool)
        scale_T[self.scales] = True
        return Places(row_of_places(self.sets), tuple(self.groups), scale_T)


def said(answer: bool = False) -> Grammar:
    """What `compact` asks for: index, two cites, strength of three candidates."""
    row, none, levels = Row(), 10, (11, 12, 13, 14, 15)
    for index, own in ((1, [4, 5, 6]), (2, [7, 8]), (3, [])):
        row.fixed(index).group(2, [[token] for token in own], none).strength(*levels)
    if answer:
        row.fixed(16).group(3, [[1], [2], [3]]).fixed(END)
    return Grammar(row.done())


def spelled() -> Grammar:
    """A permutation of entries of several tokens, in a frame."""
    entries = [[2, 6], [2, 7], [3, 6], [4, 7]]
    return Grammar(Row().fixed(16, 17).group(4, entries, between=(18,)).fixed(19, END).done())


def text(room: int = 9) -> Grammar:
    """A frame, free text, and a permutation behind it."""
    free = Free(20, room, np.array([END, MASK]))
    tail = Row().fixed(21).group(3, [[2, 6], [2, 7], [3, 6]], between=(18,)).fixed(END)
    return Grammar(Row().fixed(16, 17).done(), free, tail.done())


def loose() -> Grammar:
    """Sets, a strength in free order, fewer entries than choices, free text without a tail."""
    row = Row().one_of(9, 3, 5).strength(15, 12, 13).group(2, [[1], [2], [3], [4]])
    return Grammar(row.done(), Free(20, 4, np.array([MASK])))


GRAMMARS = {
    "said": said(),
    "written": said(answer=True),
    "spelled": spelled(),
    "text": text(),
    "loose": loose(),
}


# ------------------------------------------------------------------------------- random ones


def random_row(rng: np.random.Generator, tokens: np.ndarray, parts: int) -> Places:
    """Up to four kinds of parts over these tokens."""
    row = Row()

    def some(low: int, high: int) -> list[int]:
        return rng.choice(tokens, int(rng.integers(low, high + 1)), replace=False).tolist()

    for _ in range(parts):
        between = some(0, 1)
        match int(rng.integers(6)):
            case 0:
                row.fixed(*some(1, 2))
            case 1:
                row.one_of(*some(1, 4))
            case 2:
                row.strength(*some(1, 4))
            case 3:
                choices = some(1, 4)
                entries = int(rng.integers(1, len(choices) + 1))
                row.group(entries, [[c] for c in choices], between=between)
            case 4:
                filler, *own = some(1, 4)
                row.group(int(rng.integers(1, 4)), [[c] for c in own], filler, between)
            case _:
                pairs = {(a, b) for a in some(1, 2) for b in some(1, 2)}
                entries = int(rng.integers(1, min(len(pairs), 3) + 1))
                row.group(entries, sorted(map(list, pairs)), between=between)
    return row.done()


def random_grammar(rng: np.random.Generator, vocabulary: int, mask: int) -> Grammar:
    """Any grammar that the classes can say, a few tokens long."""
    tokens = np.delete(np.arange(vocabulary), mask)
    head = random_row(rng, tokens, int(rng.integers(0, 4)))
    tail = random_row(rng, tokens, int(rng.integers(0, 3)))
    if rng.random() < 0.5:
        return Grammar(head, None, tail if rng.random() < 0.3 else NO_PLACES)
    closer, *banned = rng.choice(tokens, int(rng.integers(1, 6)), replace=False).tolist()
    return Grammar(head, Free(closer, int(rng.integers(1, 7)), np.array([mask, *banned])), tail)


# -------------------------------------------------------------------------------- acceptor


def _row_accepts(places: Places, tokens: list[int]) -> bool:
    for token, row in zip(tokens, places.allowed_TA.tolist(), strict=True):
        if token not in row or token < 0:
            return False
    for group in places.groups:
        entries = [tuple(tokens[at] for at in row) for row in group.at_JN.tolist()]
        filled = [group.filler is not None and entry == (group.filler,) for entry in entries]
        if filled != sorted(filled):
            return False
        named = [entry for entry, empty in zip(entries, filled, strict=True) if not empty]
        if len(set(named)) < len(named):
            return False
        if not set(named) <= set(map(tuple, group.choices_CN.tolist())):
            return False
    return True


def accepts(grammar: Grammar, tokens: list[int]) -> bool:
    """Whether this is a complete text of the grammar."""
    head, rest = tokens[: len(grammar.head)], tokens[len(grammar.head) :]
    if len(head) < len(grammar.head) or not _row_accepts(grammar.head, head):
        return False
    if grammar.free is not None:
        free = grammar.free
        if free.closer not in rest[: free.room]:
            return False
        at = rest.index(free.closer)
        if set(rest[:at]) & set(free.banned.tolist()):
            return False
        rest = rest[at + 1 :]
    return len(rest) == len(grammar.tail) and _row_accepts(grammar.tail, rest)
