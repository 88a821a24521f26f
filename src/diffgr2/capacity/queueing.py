"""Replicas under load, simulated: how long requests take at a rate, and how many replicas it needs.

Contract: a `Replica` is what the server is to a queue: lanes, each of which decodes in iterations
that waiting jobs join at their start, an iteration's seconds being `first + each * jobs + join *
joining` times a drawn factor, and up to `wake` more the longer its lane had slept; where the
machine stands still (`stalls`), all its lanes do. `simulate` sends Poisson arrivals to equal
replicas, each to the one of two drawn at random that has less to do (`two`), or to any (`random`);
`closed` is so many clients who ask again once they are answered. The same seed gives the same
figures. Not here: where the seconds come from (`servicing`, `matching`), a network, failures,
clients that give up, caches, replicas that share a machine and its spells.

>>> one = Replica(first=0.010, each=0.0)
>>> seen = simulate(one, 1, rate=1.0, requests=200, seed=0)
>>> round(seen.at(50), 3)
0.01
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from diffgr2.capacity.stalls import NEVER, Going, Stalls
from diffgr2.streams import generator

Routing = Literal["two", "random"]

WARM = 0.1
"""Share of the first answers that do not count: they met empty queues."""

ALIKE = 48
"""Replicas beyond which no more are simulated: each meets the same, at its share of the rate."""


NAP = 0.005
"""Seconds of sleep after which two thirds of `wake` are due: a lane's core, clock and caches turn
to other things meanwhile. Seen with pauses of 2, 5, 20 and 60 ms."""


@dataclass(frozen=True)
class Replica:
    """See the module's docstring."""

    first: float  # seconds of an iteration, however many jobs it has
    each: float  # and for each of them
    lanes: int = 1
    running: int = 32  # jobs at once, of all lanes together
    beside: float = 0.0  # how much slower an iteration is while all other lanes are busy
    outside: float = 0.0  # seconds of a request that no lane spends
    steps: tuple[int, ...] = (1,)  # iterations of a job, one of these
    noise: tuple[float, ...] = (1.0,)  # factors of an iteration, one of these, mean 1
    join: float = 0.0  # seconds more of an iteration for each job that joins it: its prompt
    wake: tuple[float, ...] = (0.0,)  # seconds more of one whose lane slept long; goes with noise
    stalls: Stalls = NEVER  # of the machine, in which all seconds but `outside` are longer

    @property
    def capacity(self) -> float:
        """Requests a second, at most: all lanes full."""
        most = max(1, self.running // self.lanes)
        left = most / (sum(self.steps) / len(self.steps))  # jobs that leave after an iteration
        turn = self.first + self.each * most + self.join * left
        going = 1 - self.stalls.share
        return self.lanes * left / turn * going / (1 + self.beside * (self.lanes > 1))

    @property
    def alone(self) -> float:
        """Mean seconds of a request that meets nobody."""
        steps = sum(self.steps) / len(self.steps)
        work = (self.first + self.each) * steps + self.join
        return work / (1 - self.stalls.share) + self.outside


@dataclass(frozen=True)
class Seen:
    """What a simulation saw."""

    response_N: np.ndarray  # seconds, in order of answers
    rate: float  # answers a second
    busy: float  # share of time that lanes decoded
    jobs: float  # in a mean iteration

    def at(self, percent: float) -> float:
        return float(np.percentile(self.response_N, percent))

    @property
    def mean(self) -> float:
        return float(self.response_N.mean())


class _Lane:
    __slots__ = ("busy", "idle", "jobs", "place", "waiting")

    def __init__(self, place: int) -> None:
        self.place = place  # of its replica
        self.waiting: deque[list] = deque()
        self.jobs: list[list] = []  # [arrived, iterations left]
        self.busy = False
        self.idle = -np.inf  # since when it is not busy


class _World:
    """The replicas, and what happens next in them."""

    def __init__(self, replica: Replica, replicas: int, seed: int) -> None:
        self.replica, self.source = replica, generator(seed, "capacity", "queue")
        lanes = [[_Lane(n) for _ in range(replica.lanes)] for n in range(replicas)]
        self.lanes, self.load = lanes, [0] * replicas
        self.most = max(1, replica.running // replica.lanes)
        self.heap: list[tuple[float, int, _Lane]] = []
        stalls = replica.stalls
        begins = self.source.uniform(0, stalls.watched, replicas if stalls.spells else 0).tolist()
        self.going = [Going(stalls, begin) for begin in begins] or [Going(stalls)] * replicas
        self.events = self.iterations = self.decoded = 0
        self.busy_s = 0.0
        wake = np.resize(replica.wake, len(replica.noise))
        self._steps = self._drawn(np.asarray(replica.steps))
        self._noise = self._drawn(np.stack([replica.noise, wake], axis=1))

    def _drawn(self, values: np.ndarray) -> Iterator:
        """One of the values at random, for ever."""
        while True:
            yield from values[self.source.integers(0, len(values), 4096)].tolist()

    def arrive(self, now: float, place: int) -> None:
        """A request comes to a replica, and there to the lane that has least to do."""
        lanes = self.lanes[place]
        lane = lanes[0]
        if len(lanes) > 1:
            lane = min(lanes, key=lambda one: len(one.waiting) + len(one.jobs))
        lane.waiting.append([now, next(self._steps)])
        self.load[place] += 1
        if not lane.busy:
            self._begin(lane, now)

    def _begin(self, lane: _Lane, now: float) -> None:
        """The next iteration, with all who wait and have room."""
        jobs, waiting, before = lane.jobs, lane.waiting, len(lane.jobs)
        while waiting and len(jobs) < self.most:
            jobs.append(waiting.popleft())
        slept = 0.0 if lane.busy else 1 - math.exp((lane.idle - now) / NAP)
        lane.busy = bool(jobs)
        if not jobs:
            lane.idle = now
            return
        own = self.replica
        seconds = own.first + own.each * len(jobs) + own.join * (len(jobs) - before)
        factor, wake = next(self._noise)
        seconds *= factor
        others = own.lanes - 1
        if others and own.beside:
            beside = sum(one.busy for one in self.lanes[lane.place]) - 1
            seconds *= 1 + own.beside * beside / others
        seconds += slept * wake
        self.iterations += 1
        self.decoded += len(jobs)
        end = self.going[lane.place].end(now, seconds)
        self.busy_s += end - now
        self.events += 1
        heapq.heappush(self.heap, (end, self.events, lane))

    def step(self) -> tuple[float, int, list[float]]:
        """The next iteration ends: (when, at which replica, when those that leave had come)."""
        now, _, lane = heapq.heappop(self.heap)
        left, kept = [], []
        for job in lane.jobs:
            job[1] -= 1
            if job[1] > 0:
                kept.append(job)
            else:
                left.append(job[0])
        lane.jobs = kept
        self.load[lane.place] -= len(left)
        self._begin(lane, now)
        return now, lane.place, left

    def seen(self, response: list[float], until: float) -> Seen:
        response_N = np.asarray(response[int(len(response) * WARM) :])
        lanes = len(self.lanes) * self.replica.lanes
        share = self.busy_s / max(until * lanes, 1e-12)
        jobs = self.decoded / max(self.iterations, 1)
        return Seen(response_N, len(response) / max(until, 1e-12), min(share, 1.0), jobs)


def simulate(
    replica: Replica,
    replicas: int,
    rate: float,
    *,
    requests: int = 20_000,
    seed: int = 0,
    routing: Routing = "two",
    arrivals: np.ndarray | None = None,
) -> Seen:
    """An open loop: `rate` requests a second to all replicas together, whatever becomes of them;
    or these arrivals, in seconds."""
    world, draw = _World(replica, replicas, seed), generator(seed, "capacity", "arrivals")
    drawn_N = np.cumsum(draw.exponential(1 / rate, requests)) if arrivals is None else arrivals
    arrival_N, requests = drawn_N.tolist(), len(drawn_N)
    first_N = draw.integers(0, replicas, requests).tolist()
    other_N = draw.integers(1, max(replicas, 2), requests).tolist()
    response: list[float] = []
    heap, load, now = world.heap, world.load, 0.0
    for number, arrived in enumerate(arrival_N):
        while heap and heap[0][0] <= arrived:
            now, _, left = world.step()
            response += [now - came + replica.outside for came in left]
        place = first_N[number]
        if routing == "two" and replicas > 1:
            other = (place + other_N[number]) % replicas
            place = other if load[other] < load[place] else place
        world.arrive(arrived, place)
    while heap:
        now, _, left = world.step()
        response += [now - came + replica.outside for came in left]
    return world.seen(response, now)


def closed(replica: Replica, clients: int, *, requests: int = 2_000, seed: int = 0) -> Seen:
    """So many clients at one replica, each of which asks again as soon as it is answered."""
    world, response, now = _World(replica, 1, seed), [], 0.0
    asked = [(0.0, n) for n in range(clients)]  # when who asks next
    heapq.heapify(asked)
    while len(response) < requests:
        if asked and (not world.heap or asked[0][0] <= world.heap[0][0]):
            when, _ = heapq.heappop(asked)
            world.arrive(when, 0)
            continue
        now, _, left = world.step()
        for came in left:
            answered = now + replica.outside
            response.append(answered - came)
            heapq.heappush(asked, (answered, len(response)))
    return world.seen(response, now)


@dataclass(frozen=True)
class Fleet:
    """Replicas that keep a promise."""

    replicas: int
    rate: float
    load: float  # rate over what all could do at most
    p50: float
    p99: float
    routing: Routing


def fleet(
    replica: Replica,
    replicas: int,
    rate: float,
    *,
    routing: Routing = "two",
    requests: int = 20_000,
    seed: int = 0,
) -> Fleet:
    """So many replicas at a rate; of very many a part is simulated."""
    part = min(replicas, ALIKE)
    seen = simulate(
        replica, part, rate * part / replicas, requests=requests, seed=seed, routing=routing
    )
    load = rate / replicas / replica.capacity
    return Fleet(replicas, rate, load, seen.at(50), seen.at(99), routing)


def fewest(
    replica: Replica,
    rate: float,
    p99: float,
    *,
    routing: Routing = "two",
    requests: int = 20_000,
    seed: int = 0,
) -> Fleet | None:
    """The fewest replicas whose 99th percentile is within `p99` seconds; None: however many, no."""

    def tried(count: int) -> Fleet:
        return fleet(replica, count, rate, routing=routing, requests=requests, seed=seed)

    low = max(1, int(rate / replica.capacity))
    high, found = low, tried(low)
    while found.p99 > p99:
        if found.load < 0.005:
            return None
        low, high = high + 1, high + max(1, high // 3)
        found = tried(high)
    while low < high:
        middle = (low + high) // 2
        seen = tried(middle)
        if seen.p99 <= p99:
            high, found = middle, seen
        else:
            low = middle + 1
    return found
