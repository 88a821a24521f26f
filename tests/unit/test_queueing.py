"""The simulated replicas against queueing theory."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from diffgr2.capacity.matching import matched, woken
from diffgr2.capacity.queueing import NAP, Replica, closed, fewest, fleet, simulate
from diffgr2.streams import generator

QUANTILES = 4_000
EXPONENTIAL = tuple((-np.log1p(-(np.arange(QUANTILES) + 0.5) / QUANTILES)).tolist())
MEMORYLESS = Replica(1.0, 0.0, running=1, noise=EXPONENTIAL)
FIXED = Replica(1.0, 0.0, running=1)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_server_waits_as_theory_says(load: float) -> None:
    random = simulate(MEMORYLESS, 1, load, requests=60_000, seed=1)
    assert random.mean == pytest.approx(1 / (1 - load), rel=0.06)
    # Responses of M/M/1 are exponential.
    assert random.at(99) == pytest.approx(math.log(100) / (1 - load), rel=0.1)
    fixed = simulate(FIXED, 1, load, requests=60_000, seed=1)
    assert fixed.mean == pytest.approx(1 + load / 2 / (1 - load), rel=0.03)  # M/D/1
    assert fixed.busy == pytest.approx(load, rel=0.02)


def test_a_server_that_must_wake_waits_as_theory_says() -> None:
    load, wake = 0.5, 0.5
    seen = simulate(replace(FIXED, wake=(wake,)), 1, load, requests=60_000, seed=1)
    setup = (2 * wake + load * wake**2) / (2 * (1 + load * wake))  # M/G/1 with setup times
    assert seen.mean == pytest.approx(1 + load / 2 / (1 - load) + setup, rel=0.03)


def test_pauses_wake_by_their_length() -> None:
    alone, after, pause = [0.010] * 50 + [0.013] * 50, [0.014] * 100, 0.02
    found = woken(Replica(0.0115, 0.0, noise=(0.9, 1.1)), alone, after, pause)
    assert found.wake == pytest.approx((0.004 * (1 + NAP / pause), 0.001 * (1 + NAP / pause)))
    # Who asks again at once finds the server awake, who comes rarely does not.
    assert closed(found, 1, requests=400).mean == pytest.approx(found.alone, rel=0.02)
    rare = simulate(found, 1, 1.0, requests=4_000)
    assert rare.mean == pytest.approx(found.alone + 0.0025 * (1 + NAP / pause), rel=0.02)
    # A server that is faster after pauses has nothing to wake from.
    assert woken(FIXED, after, alone, pause).wake == (0.0,)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_freer_of_two_waits_as_the_limit_says(load: float) -> None:
    n, requests = 48, 60_000
    free = simulate(MEMORYLESS, n, n * load, requests=requests, seed=2)
    limit = sum(load ** (2**k - 2) for k in range(1, 9))
    assert free.mean == pytest.approx(limit, rel=0.04)
    anyhow = simulate(MEMORYLESS, n, n * load, requests=requests, seed=2, routing="random")
    assert anyhow.mean == pytest.approx(1 / (1 - load), rel=0.08)


@pytest.mark.parametrize("rate", [0.5, 1.0, 3.0])
def test_a_batch_that_takes_all_who_wait(rate: float) -> None:
    """Batches of any size take one second: whoever comes meanwhile waits for the rest of it."""
    idle = math.exp(-rate)  # no one came during a batch
    wait = rate / idle / 2 / (1 + rate / idle)
    seen = simulate(Replica(1.0, 0.0, running=10**6), 1, rate, requests=40_000, seed=3)
    assert seen.mean - 1 == pytest.approx(wait, rel=0.03)


def test_iterations_are_joined_and_left_one_by_one() -> None:
    replica = Replica(1.0, 0.5, running=4, steps=(3,))
    assert closed(replica, 1, requests=40).mean == pytest.approx(3 * 1.5)
    # Three iterations of four jobs each for four answers, whoever waits.
    assert replica.capacity == pytest.approx(4 / (3 * 3.0))
    full = closed(replica, 40, requests=2_000)
    assert full.rate == pytest.approx(replica.capacity, rel=0.02)
    assert full.jobs == pytest.approx(4, rel=0.02)
    assert full.mean == pytest.approx(40 / replica.capacity, rel=0.02)
    joining = replace(replica, join=1.0)
    assert closed(joining, 1, requests=40).mean == pytest.approx(3 * 1.5 + 1) == joining.alone
    many = closed(joining, 40, requests=2_000)
    assert many.rate == pytest.approx(joining.capacity, rel=0.02)
    lanes = Replica(1.0, 0.0, lanes=2, running=2, beside=0.5)
    assert closed(lanes, 1, requests=40).mean == pytest.approx(1.0)
    # The lane that begins first finds its neighbour idle once.
    assert closed(lanes, 2, requests=400).mean == pytest.approx(1.5, rel=0.02)
    assert lanes.capacity == pytest.approx(2 / 1.5)
    assert closed(Replica(1.0, 0.0, outside=0.25), 1, requests=9).mean == pytest.approx(1.25)


def test_the_same_seed_gives_the_same_figures() -> None:
    one, again, other = (
        simulate(MEMORYLESS, 5, 3.0, requests=3_000, seed=seed).response_N for seed in (4, 4, 5)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_the_fewest_replicas_keep_the_promise_and_one_less_does_not() -> None:
    replica = Replica(0.004, 0.004, 2, 32, noise=EXPONENTIAL)
    found = fewest(replica, 900.0, 0.06, requests=8_000)
    assert found is not None
    assert found.p99 <= 0.06
    assert found.load == pytest.approx(900 / found.replicas / replica.capacity)
    assert fleet(replica, found.replicas - 1, 900.0, requests=8_000).p99 > 0.06
    random = fewest(replica, 900.0, 0.06, routing="random", requests=8_000)
    assert random is not None
    assert random.replicas > found.replicas
    assert fewest(replica, 900.0, 0.003, requests=2_000) is None  # alone it takes 8 ms


@pytest.mark.parametrize(
    ("steps", "each", "join"), [((1,), 0.004, 0.0), ((1, 2), 0.002, 0.002), ((6, 8), 3e-4, 2e-3)]
)
def test_a_replica_is_found_again_from_closed_loops(steps, each: float, join: float) -> None:
    wide = 0.1 * len(steps) * steps[0] ** 0.5
    spread = np.exp(np.random.default_rng(0).normal(0, wide, 200))
    noise = tuple((spread / spread.mean()).tolist())
    true = Replica(0.004 / steps[0], each, 2, 32, 0.6, 0.0008, steps, noise, join)
    rounds = [(n, closed(true, n, seed=5).mean) for n in (1, 2, 4, 8, 16, 32)]
    # Who is alone knows how many forwards each request took.
    alone, forwards = [], []
    for number, count in enumerate(steps):
        one = replace(true, steps=(count,))
        alone += closed(one, 1, requests=300, seed=9 + number).response_N.tolist()
        forwards += [count] * (len(alone) - len(forwards))
    found, off = matched(rounds, alone, forwards, 2, 32)
    assert off < 0.08
    assert found.alone == pytest.approx(true.alone, rel=0.08)
    assert found.capacity == pytest.approx(true.capacity, rel=0.08)
    for load in (0.3, 0.7):
        rate = load * true.capacity
        said, real = (simulate(r, 1, rate, requests=15_000, seed=1) for r in (found, true))
        assert said.at(50) == pytest.approx(real.at(50), rel=0.13)
        assert said.at(99) == pytest.approx(real.at(99), rel=0.13)


def test_arrivals_that_are_given_are_those_that_come() -> None:
    """A burst waits in line; who comes alone does not."""
    burst = simulate(FIXED, 1, 0.0, arrivals=np.array([0.0, 0.0, 0.0, 0.0, 10.0]))
    assert sorted(burst.response_N.tolist()) == pytest.approx([1.0, 1.0, 2.0, 3.0, 4.0])
    seed, rate = 3, 0.5
    drawn = np.cumsum(generator(seed, "capacity", "arrivals").exponential(1 / rate, 500))
    same = simulate(MEMORYLESS, 1, rate, seed=seed, arrivals=drawn).response_N
    assert (same == simulate(MEMORYLESS, 1, rate, requests=500, seed=seed).response_N).all()
