"""When the machine itself all but stands still: spells in which it is several times slower.

Contract: `watched(seconds)` does the same small piece of work over and over, on one core, and
returns the spells in which it took far longer (on virtual machines all cores were seen to);
`Stalls` joins records, says what share of the time they cost, and `Going` tells when work that
begins at a moment ends, playing the record again and again. A virtual machine whose host takes its
cores away sees such spells, in no account of its own: a client who asks again once it is answered
meets few of them, while those who come at their own times all wait through each. Not here: how a
server answers (`servicing`), the queue (`queueing`).

>>> Going(Stalls(10.0, ((4.0, 1.0, 5.0),))).end(3.9, 0.2)  # .1 before, .1 five times as slow
4.5
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

WATCHED = 20.0
"""Seconds of watching: such spells come about once a second where they come."""

PIECE = 0.001
"""Seconds of a piece of work, about."""

SLOW = 2.0
"""Times as long as the median piece from which one belongs to a spell."""

APART = 0.03
"""Seconds between two slow pieces from which they belong to different spells."""

SHORT = 0.01
"""Seconds that a spell costs below which it is any program's turn at the core."""


@dataclass(frozen=True)
class Stalls:
    """A record of spells: (begin, seconds, times as slow), in order, none over its end."""

    watched: float = 0.0  # seconds
    spells: tuple[tuple[float, float, float], ...] = ()

    @cached_property
    def share(self) -> float:
        """Of the time, what they cost."""
        lost = sum(seconds * (1 - 1 / slower) for _, seconds, slower in self.spells)
        return lost / self.watched if self.spells else 0.0

    def touched(self, seconds: float, pause: float = 0.0) -> float:
        """About what share of the requests of a lone client meet one, each of so many seconds; the
        client pauses before each."""
        if not self.spells:
            return 0.0
        turn = pause + seconds
        met = (seconds / turn + long / (pause + seconds * slow) for _, long, slow in self.spells)
        return min(turn * sum(met) / self.watched, 1.0)

    def then(self, other: Stalls) -> Stalls:
        """One record after the other."""
        moved = tuple((self.watched + begin, long, slower) for begin, long, slower in other.spells)
        return Stalls(self.watched + other.watched, (*self.spells, *moved))

    def said(self) -> str:
        """For a reader."""
        if not self.spells:
            return "the machine never stood still"
        rate, mean = len(self.spells) / self.watched, np.mean([one[1] for one in self.spells])
        return (
            f"the machine itself slows down {rate:.1f} times a second for {mean * 1e3:.0f} ms, "
            f"which costs {100 * self.share:.0f} % of its time"
        )


NEVER = Stalls()


class Going:
    """Time as work sees it; `offset` is where in the record time 0 stands."""

    def __init__(self, stalls: Stalls, offset: float = 0.0) -> None:
        self.stalls, self.offset = stalls, offset
        self._begins = [begin for begin, _, _ in stalls.spells]

    def end(self, now: float, work: float) -> float:
        """When so many seconds of work that begin now are done."""
        spells, watched = self.stalls.spells, self.stalls.watched
        if not spells:
            return now + work
        at = now + self.offset  # in the time of the record
        turn, number = at // watched, bisect_right(self._begins, at % watched) - 1
        while True:
            if number < 0:
                turn, number = turn - 1, len(spells) - 1
            begin, seconds, slower = spells[number]
            until = turn * watched + begin + seconds
            if at < until:
                if work * slower <= until - at:
                    return at + work * slower - self.offset
                work, at = work - (until - at) / slower, until
            number += 1
            if number == len(spells):
                turn, number = turn + 1, 0
            calm = turn * watched + spells[number][0] - at
            if work <= calm:
                return at + work - self.offset
            work, at = work - calm, at + calm


def watched(seconds: float = WATCHED) -> Stalls:
    """See the module's docstring; wants a machine with nothing else to do."""
    clock, size = time.perf_counter, _size()
    begun = now = clock()
    moments = [0.0]
    while now - begun < seconds:
        sum(range(size))
        now = clock()
        moments.append(now - begun)
    return found(moments)


def _size() -> int:
    """Of a piece of work."""
    size, took = 1000, 0.0
    while took < PIECE:
        size *= 2
        took = min(_took(size) for _ in range(5))
    return size


def _took(size: int) -> float:
    begun = time.perf_counter()
    sum(range(size))
    return time.perf_counter() - begun


def found(moments: Iterable[float]) -> Stalls:
    """The spells between moments, each pair of which has a piece of work between."""
    moment_N = np.asarray([*moments])
    piece_N = np.diff(moment_N)
    if not len(piece_N):
        return Stalls()
    usual = float(np.median(piece_N))
    spells: list[list[int]] = []  # the first and the last slow piece
    for piece in np.flatnonzero(piece_N > SLOW * usual).tolist():
        if spells and moment_N[piece] - moment_N[spells[-1][1] + 1] < APART:
            spells[-1][1] = piece
        else:
            spells.append([piece, piece])
    kept = []
    for first, last in spells:
        begin, seconds = float(moment_N[first]), float(moment_N[last + 1] - moment_N[first])
        work = usual * (last + 1 - first)
        if seconds - work >= SHORT:
            slower = seconds / work
            kept.append((round(begin, 4), round(seconds, 4), round(slower, 2)))
    return Stalls(round(float(moment_N[-1]), 4), tuple(kept))
