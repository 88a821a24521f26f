"""What may stand where in a response: the grammar that a template gives with every request.

Contract: a `Grammar` is a row of places from the response's start (`head`) and, where the template
has free text, that text up to the one token that ends it (`free`), then a second row (`tail`). A
place allows a set of tokens: one (forced: it costs no forward), some, or those that its `Group`
leaves. A `Guide` follows one response: `commit` writes a token, narrows what the other places may
still take and fills in what that settles, so whoever commits only what `may` allows, in any order,
ends with a text of the grammar. No search, no tensors, no knowledge of any template. Not here:
which token a decoder wants (`choice`), entries of several tokens (`spelling`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from diffgr2.decode.spelling import UNKNOWN, spellings
from diffgr2.errors import DecodeError

NOTHING = -1
"""Fills rows of allowed tokens that are shorter than others."""


@dataclass(frozen=True)
class Group:
    """Entries that must differ: entry j stands at places `at_JN[j]`, spells a row of `choices_CN`.

    Every place allows what some choice has there. With a `filler` (entries of one token only) an
    entry may be that instead, and then all entries after it are; its choices are all different.
    Without one there must be at least as many choices as entries, and choices that are spelled
    alike may stand as often as there are of them.
    """

    at_JN: np.ndarray
    choices_CN: np.ndarray
    filler: int | None = None

    def __post_init__(self) -> None:
        (entries, width), (choices, spelled) = self.at_JN.shape, self.choices_CN.shape
        if width != spelled or (self.filler is not None and width != 1):
            raise DecodeError("grammar: a group's entries and choices differ in length")
        if self.filler is not None and self.alike:
            raise DecodeError("grammar: choices beside a filler are spelled alike")
        if self.filler is None and choices < entries:
            raise DecodeError(f"grammar: {choices} choices for {entries} entries that differ")

    @cached_property
    def places(self) -> list[int]:
        """Where its entries stand."""
        return self.at_JN.ravel().tolist()

    @cached_property
    def alike(self) -> bool:
        """Whether choices of one token are spelled alike."""
        return self.choices_CN.shape[1] == 1 and len(set(self.choices_CN[:, 0].tolist())) < len(
            self.choices_CN
        )


@dataclass(frozen=True)
class Places:
    """A row of T places: `allowed_TA` holds the tokens of each, each once, padded with NOTHING.

    At a place of `scale_T` the tokens are the levels of a strength, in order.
    """

    allowed_TA: np.ndarray
    groups: tuple[Group, ...] = ()
    scale_T: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.allowed_TA)

    def __post_init__(self) -> None:
        if len(self.allowed_TA) and not (self.allowed_TA != NOTHING).any(1).all():
            raise DecodeError("grammar: a place allows no token")

    @cached_property
    def owner(self) -> dict[int, tuple[Group, int, int]]:
        """Place -> (group, entry, index in the entry)."""
        return {
            at: (group, j, n)
            for group in self.groups
            for j, at_N in enumerate(group.at_JN.tolist())
            for n, at in enumerate(at_N)
        }

    @cached_property
    def tokens(self) -> list[list[int]]:
        """What each place allows, without gaps: lists, because there are few of each and NumPy's
        calls are dear."""
        counts = (self.allowed_TA != NOTHING).sum(1).tolist()
        return [row[:n] for row, n in zip(self.allowed_TA.tolist(), counts, strict=True)]


def row_of_places(sets: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Allowed tokens [T, A] of these sets."""
    out_TA = np.full((len(sets), max(map(len, sets), default=1)), NOTHING, dtype=np.int64)
    for at, tokens in enumerate(sets):
        out_TA[at, : len(tokens)] = tokens
    return out_TA


NO_PLACES = Places(np.empty((0, 1), dtype=np.int64))


@dataclass(frozen=True)
class Free:
    """Free text: any token but the banned, `room` of them at most; the last one is `closer`."""

    closer: int
    room: int
    banned: np.ndarray  # token ids


@dataclass(frozen=True)
class Grammar:
    """See the module's docstring."""

    head: Places
    free: Free | None = None
    tail: Places = NO_PLACES

    @property
    def longest(self) -> int:
        return len(self.head) + (self.free.room if self.free else 0) + len(self.tail)


@dataclass
class _Section:
    """A row of places at work: where it begins, what stands, and what each may still take."""

    places: Places
    start: int
    own: list[int] = field(init=False)  # UNKNOWN where open
    may: list[list[int]] = field(init=False)
    end: int = field(init=False)

    def __post_init__(self) -> None:
        self.own = [UNKNOWN] * len(self.places)
        self.may = [list(tokens) for tokens in self.places.tokens]
        for group in self.places.groups:
            if group.filler is not None:  # entry j needs j + 1 different choices
                for at in group.places[len(group.choices_CN) :]:
                    self.may[at] = [group.filler] if group.filler in self.may[at] else []
        self.end = self.start + len(self.places)

    def copy(self) -> _Section:
        """The same state, to go on from."""
        twin = object.__new__(_Section)
        twin.places, twin.start, twin.end = self.places, self.start, self.end
        twin.own, twin.may = self.own.copy(), [tokens.copy() for tokens in self.may]
        return twin

    def narrow(self, at: int) -> list[int]:
        """Places left with one option by the commit at place `at`; raises where one has none."""
        owned = self.places.owner.get(at)
        if owned is None:
            return []
        group, j, _ = owned
        if group.at_JN.shape[1] > 1 or group.alike:
            self._spell(group)
        else:
            self._differ(group, j, self.own[at])
        left = [a for a in group.places if self.own[a] == UNKNOWN and len(self.may[a]) < 2]
        if not all(self.may[a] for a in left):
            raise DecodeError("grammar: a commit left a place without any token")
        return left

    def _differ(self, group: Group, j: int, token: int) -> None:
        """Entries of one token."""
        filler = group.filler
        for i, at in enumerate(group.places):
            may = self.may[at]
            if i == j or self.own[at] != UNKNOWN:
                continue
            if token == filler:
                if i > j:
                    self.may[at] = [token] if token in may else []
                continue
            if token in may:
                may.remove(token)
            if i < j and filler in may:
                may.remove(filler)

    def _spell(self, group: Group) -> None:
        """Entries of several tokens: a matching keeps every entry completable."""
        may_JC = spellings(np.array(self.own)[group.at_JN], group.choices_CN)
        for at_N, may_C in zip(group.at_JN.tolist(), may_JC, strict=True):
            for at, choice_C in zip(at_N, group.choices_CN[may_C].T.tolist(), strict=True):
                self.may[at] = [token for token in self.places.tokens[at] if token in choice_C]


class Guide:
    """A response under its grammar; `tokens_T` is the caller's array, UNKNOWN where open."""

    def __init__(self, grammar: Grammar, tokens_T: np.ndarray) -> None:
        self.grammar, self.tokens_T = grammar, tokens_T
        self.forced_T = np.zeros(len(tokens_T), dtype=bool)
        self.written: list[int] = []  # positions, in the order in which they were settled
        self._sections = [_Section(grammar.head, 0)]
        if grammar.free is None:
            self._sections.append(_Section(grammar.tail, len(grammar.head)))
        self._free_end = len(grammar.head)  # behind the last committed token of the free text
        self._measure()
        for section in self._sections:
            self._open(section)
        self._settle_closer()

    def copy(self, tokens_T: np.ndarray) -> Guide:
        """The same state over another array (for drafts)."""
        other = object.__new__(Guide)
        other.grammar, other.tokens_T = self.grammar, tokens_T
        other.forced_T, other._free_end = self.forced_T.copy(), self._free_end
        other.written = []
        other._sections = [section.copy() for section in self._sections]
        other._measure()
        return other

    def _measure(self) -> None:
        """Say how long the response is, as far as that is settled."""
        closed, free = len(self._sections) > 1, self.grammar.free
        self.end: int | None = self._sections[-1].end if closed else None
        """The response's length, None while its free text is open."""
        assert closed or free is not None
        room = 0 if free is None else free.room
        self.stop: int = self._sections[-1].end if closed else len(self.grammar.head) + room
        """No token may stand at or behind it: the end, or as far as open free text can go."""

    def _open(self, section: _Section) -> None:
        """Fill in what a new section leaves no choice about."""
        room = len(self.tokens_T) - section.start  # the caller's limit
        known = [at for at, may in enumerate(section.may[: max(room, 0)]) if len(may) == 1]
        # Places of no group settle nothing else, so they are written at once.
        alone = [at for at in known if at not in section.places.owner]
        for at in alone:
            section.own[at] = section.may[at][0]
        place_N = section.start + np.array(alone, dtype=np.int64)
        self.tokens_T[place_N] = [section.own[at] for at in alone]
        self.forced_T[place_N] = True
        self.written.extend(place_N.tolist())
        for at in known:
            if section.own[at] == UNKNOWN:
                self._force(section, at)

    def _force(self, section: _Section, at: int) -> None:
        if section.start + at >= len(self.tokens_T):
            return  # beyond the caller's limit
        if section.own[at] == UNKNOWN:
            self.forced_T[section.start + at] = True
            self._write(section, at, section.may[at][0])

    def _write(self, section: _Section, at: int, token: int) -> None:
        self.tokens_T[section.start + at] = section.own[at] = token
        self.written.append(section.start + at)
        for other in section.narrow(at):
            self._force(section, other)

    def _section(self, at: int) -> _Section | None:
        """The row of places that position `at` belongs to, None in free text."""
        for section in self._sections:
            if section.start <= at < section.end:
                return section
        return None

    def options(self, at_N: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Allowed tokens [N, A] of open positions, NOTHING for others, and which are strengths.

        None where the response is not one row of places: then each position is asked by itself.
        """
        sets = self.sets(at_N)
        return None if sets is None else (row_of_places(sets[0]), sets[1])

    def sets(self, at_N: np.ndarray) -> tuple[list[list[int]], np.ndarray] | None:
        """The same as lists."""
        if self.grammar.free is not None or len(self.grammar.tail):
            return None
        section = self._sections[0]
        scale_T = section.places.scale_T
        scale_N = np.zeros(len(at_N), dtype=bool) if scale_T is None else scale_T[at_N]
        return [section.may[at] for at in at_N.tolist()], scale_N

    def option(self, at: int) -> tuple[list[int], bool] | None:
        """The same of one position, without gaps."""
        if self.grammar.free is not None or len(self.grammar.tail):
            return None
        return self._sections[0].may[at], self.scale(at)

    def left(self, at: int) -> int:
        """How many tokens may stand at a position, where `options` answers."""
        return len(self._sections[0].may[at])

    def scale(self, at: int) -> bool:
        """Whether a strength stands at position `at`."""
        section = self._section(at)
        if section is None or section.places.scale_T is None:
            return False
        return bool(section.places.scale_T[at - section.start])

    def allowed(self, at: int) -> np.ndarray | None:
        """The tokens that may stand at an open position; None in free text (see `without`)."""
        section, free = self._section(at), self.grammar.free
        if section is not None:
            return np.array(section.may[at - section.start])
        if free is None or at >= self.stop:
            raise DecodeError(f"grammar: position {at} is behind the response's end")
        return np.array([free.closer]) if self.end is None and at == self.stop - 1 else None

    def closable(self, at: int) -> bool:
        """Whether the token that ends the free text may stand at this open position of it."""
        return at >= self._free_end

    def too_early(self, at_N: np.ndarray, token_N: np.ndarray) -> np.ndarray:
        """Which of these wishes lie behind one to end the open free text: too early to grant.

        What such a position wants may belong to the tail; granted, it would keep the text open.
        """
        free = self.grammar.free
        if free is None or self.end is not None:
            return np.zeros(len(at_N), dtype=bool)
        closing_N = (token_N == free.closer) & (at_N >= self._free_end)
        return at_N > at_N[closing_N].min(initial=self.stop)

    def without(self, at: int) -> np.ndarray:
        """The tokens that may not stand at an open position of the free text."""
        free = self.grammar.free
        assert free is not None
        return free.banned if at >= self._free_end else np.append(free.banned, free.closer)

    def may(self, at: int, token: int) -> bool:
        """Whether this token may be committed there now."""
        if at >= min(len(self.tokens_T), self.stop) or self.tokens_T[at] != UNKNOWN:
            return False
        free, section = self.grammar.free, self._section(at)
        if section is not None:
            return token in section.may[at - section.start]
        assert free is not None
        if self.end is None and at == self.stop - 1:
            return token == free.closer
        closing = token == free.closer and at < self._free_end
        return not closing and not bool((free.banned == token).any())

    def commit(self, at: int, token: int) -> None:
        """Write a token that `may` allows, and all that it settles."""
        if not self.may(at, token):
            raise DecodeError(f"grammar: token {token} may not stand at position {at}")
        section, free = self._section(at), self.grammar.free
        if section is not None:
            self._write(section, at - section.start, token)
            return
        assert free is not None
        self.tokens_T[at] = token
        self.written.append(at)
        self._free_end = max(self._free_end, at + 1)
        if token == free.closer:
            self._open_tail()
        else:
            self._settle_closer()

    def _open_tail(self) -> None:
        self._sections.append(_Section(self.grammar.tail, self._free_end))
        self._measure()
        self._open(self._sections[-1])

    def _settle_closer(self) -> None:
        """Free text that fills its room but for the last place can only be closed there."""
        free, at = self.grammar.free, self.stop - 1
        if free is None or self.end is not None or not self._free_end == at < len(self.tokens_T):
            return
        self.tokens_T[at], self.forced_T[at] = free.closer, True
        self.written.append(at)
        self._free_end = at + 1
        self._open_tail()
