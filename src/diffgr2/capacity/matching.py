"""From what a server was seen to do to the replica that the simulation runs.

Contract: `matched(rounds, alone, steps, lanes, running)` finds the seconds of an iteration, of each
job in it, of what lies outside and of what a busy lane costs its neighbour, for which closed loops
of the simulation answer in the mean times that the rounds had; the spread of iterations is that of
requests that were alone. Not here: asking a server (`servicing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffgr2.capacity.queueing import Replica, closed

FACTORS = (2.0, 1.4, 1.15, 1.05, 1.02)
"""Steps of the search, coarse ones first."""

ASKED = 600
"""Requests of a simulated loop."""

KEPT = 200
"""Quantiles of the spread that are kept."""


def matched(
    rounds: Sequence[tuple[int, float]],
    alone: Sequence[float],
    steps: Sequence[int],
    lanes: int,
    running: int,
) -> tuple[Replica, float]:
    """(the replica, its largest share off); rounds are (clients, mean seconds)."""
    mean, most = float(np.mean(alone)), max(rounds)
    turns = float(np.mean(steps))
    each = most[1] / most[0] / turns * lanes
    quantile_Q = np.quantile(np.asarray(alone) / mean, (np.arange(KEPT) + 0.5) / KEPT)
    noise = tuple(round(float(q), 4) for q in quantile_Q / quantile_Q.mean())
    first = max(mean / turns - each, 0.1 * mean / turns)
    begun = Replica(first, each, lanes, running, 0.1, 0.02 * mean, tuple(steps), noise)

    def off(replica: Replica) -> list[float]:
        means = ((closed(replica, n, requests=ASKED).mean, seen) for n, seen in rounds)
        return [float(np.log(said / seen)) for said, seen in means]

    best, least = begun, float(np.square(off(begun)).sum())
    names = ["first", "each", "outside", *(["beside"] if lanes > 1 else [])]
    for factor in FACTORS:
        moved = True
        while moved:
            moved = False
            for name in names:
                for times in (factor, 1 / factor):
                    tried = replace(best, **{name: getattr(best, name) * times})
                    if tried.outside > 0.5 * mean:
                        continue
                    value = float(np.square(off(tried)).sum())
                    if value < least * (1 - 1e-3):
                        best, least, moved = tried, value, True
    worst = max(abs(np.expm1(value)) for value in off(best))
    return best, float(worst)
