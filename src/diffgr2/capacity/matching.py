"""From what a server was seen to do to the replica that the simulation runs.

Contract: `matched(rounds, alone, forwards, lanes, running, stalls)` finds the seconds of an
iteration, of each job in it, of what lies outside and of what a busy lane costs its neighbour, for
which closed loops of the simulation, on a machine that stands still as this one does, answer in the
mean times that the rounds had. What of a job does not grow with its forwards is that of joining,
told from requests that were alone; their spread, beside that of their forwards, is that of
iterations. `woken` adds what a lone request takes longer where the server slept before it. As many
of the slowest as met a spell of the machine's are no part of a spread. Not here: asking a server
(`servicing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffgr2.capacity.queueing import NAP, Replica, closed
from diffgr2.capacity.stalls import NEVER, Stalls

FACTORS = (2.0, 1.4, 1.15, 1.05, 1.02)
"""Steps of the search, coarse ones first."""

ASKED = 600
"""Requests of a simulated loop."""

KEPT = 200
"""Quantiles of the spread that are kept."""

STEPS = 40
"""The same of forwards."""

LEAST = 0.1
"""Factor of an iteration, at least."""


def matched(
    rounds: Sequence[tuple[int, float]],
    alone: Sequence[float],
    forwards: Sequence[int],
    lanes: int,
    running: int,
    stalls: Stalls = NEVER,
) -> tuple[Replica, float]:
    """(the replica, its largest share off); rounds are (clients, mean seconds), the lone client's
    requests took so many seconds and forwards."""
    mean, most, turns = float(np.mean(alone)), max(rounds), float(np.mean(forwards))
    touched = stalls.touched(mean)
    share, noise = spread(np.asarray(alone, float), np.asarray(forwards, float), touched)
    full = most[1] / most[0] * lanes  # of a job where batches are full and all lanes busy
    even = np.linspace(0, 1, STEPS)
    steps = tuple(int(n) for n in np.quantile(forwards, even, method="nearest"))

    # By what a job costs beside a busy lane: what it costs alone is then a question of its own.
    def replica(first: float, full: float, beside: float, outside: float) -> Replica:
        work = full / (1 + beside)
        each, join = work * (1 - share) / turns, work * share
        own = Replica(first, each, lanes, running, beside, outside, steps, noise, join)
        return replace(own, stalls=stalls)

    def off(values: list[float]) -> list[float]:
        means = ((closed(replica(*values), n, requests=ASKED).mean, seen) for n, seen in rounds)
        return [float(np.log(said / seen)) for said, seen in means]

    # Several beginnings, since a lane that is slower beside another looks like one that is slower.
    beginnings = [
        [mean * part / turns, full, beside, 0.02 * mean]
        for part in (0.1, 0.4, 0.7)
        for beside in ((0.1, 0.5, 1.0) if lanes > 1 else (0.0,))
    ]
    least, best = min((float(np.square(off(one)).sum()), one) for one in beginnings)
    for factor in FACTORS:
        moved = True
        while moved:
            moved = False
            for at in range(len(best)):
                for times in (factor, 1 / factor):
                    tried = [value * times if at == n else value for n, value in enumerate(best)]
                    if not best[at] or tried[-1] > 0.5 * mean:
                        continue
                    value = float(np.square(off(tried)).sum())
                    if value < least * (1 - 1e-3):
                        best, least, moved = tried, value, True
    worst = max(abs(np.expm1(value)) for value in off(best))
    return replica(*best), float(worst)


def woken(
    replica: Replica, alone: Sequence[float], after: Sequence[float], pause: float
) -> Replica:
    """With the seconds more that lone requests took after pauses, exponential ones of that mean."""
    even_Q = (np.arange(len(replica.noise)) + 0.5) / len(replica.noise)
    met, met_after = (replica.stalls.touched(float(np.mean(alone)), p) for p in (0.0, pause))
    more_Q = np.quantile(after, even_Q * (1 - met_after)) - np.quantile(alone, even_Q * (1 - met))
    # Short pauses among them wake nobody; so the mean is of 1 - exp(-pause / NAP) of it.
    wake_Q = np.maximum(more_Q, 0.0) * (1 + NAP / pause)
    return replace(replica, wake=tuple(round(float(q), 7) for q in wake_Q))


def spread(
    alone_N: np.ndarray, forwards_N: np.ndarray, touched: float = 0.0
) -> tuple[float, tuple[float, ...]]:
    """(share of a lone request that does not grow with its forwards, factors of an iteration), of
    all but the slowest that share."""
    share, factor_N = _factors(alone_N, forwards_N)
    if touched:
        calm_N = factor_N <= np.quantile(factor_N, 1 - touched)
        alone_N, forwards_N = alone_N[calm_N], forwards_N[calm_N]
        share, factor_N = _factors(alone_N, forwards_N)
    even_Q = (np.arange(KEPT) + 0.5) / KEPT
    factor_Q = np.quantile(factor_N, even_Q)
    # A request's spread is what is left of its iterations': each of them has more.
    wide_Q = np.maximum(1 + (factor_Q - factor_Q.mean()) * forwards_N.mean() ** 0.5, LEAST)
    return share, tuple(round(float(q), 4) for q in wide_Q / wide_Q.mean())


def _factors(alone_N: np.ndarray, forwards_N: np.ndarray) -> tuple[float, np.ndarray]:
    """The share, and of each request how many times as long it took as its forwards say."""
    mean, turns = alone_N.mean(), forwards_N.mean()
    share = 0.0
    if forwards_N.std() > 0:
        slope = np.cov(alone_N, forwards_N, bias=True)[0, 1] / forwards_N.var()
        share = float(np.clip(1 - slope * turns / mean, 0.0, 1.0))
    return share, alone_N / (mean * (share + (1 - share) * forwards_N / turns))
