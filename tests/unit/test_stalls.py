"""Spells in which the machine stands still: found, played again, and what they do to a queue."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.capacity import matching
from diffgr2.capacity.matching import matched
from diffgr2.capacity.queueing import Replica, closed, simulate
from diffgr2.capacity.stalls import NEVER, Going, Stalls, found, watched

TWICE = Stalls(10.0, ((2.0, 1.0, 5.0), (6.0, 0.5, 2.0)))
OFTEN = Stalls(2.0, ((0.3, 0.09, 6.0), (0.5, 0.07, 5.0), (1.4, 0.1, 6.0)))


@st.composite
def records(draw) -> Stalls:
    """Spells in order that do not touch, in tenths of a second."""
    at, spells = 0, []
    for _ in range(draw(st.integers(0, 4))):
        begin = at + draw(st.integers(0, 20))
        at = begin + draw(st.integers(1, 20))
        spells.append((begin / 10, (at - begin) / 10, float(draw(st.integers(1, 8)))))
    return Stalls((at + draw(st.integers(1, 20))) / 10, tuple(spells))


@settings(deadline=None)
@given(records(), st.floats(0, 30), st.floats(0, 20), st.floats(0, 20))
def test_work_ends_where_small_steps_say(record: Stalls, offset: float, now: float, work) -> None:
    end, step, done, at = Going(record, offset).end(now, work), 0.01, 0.0, now
    while done < work:
        place = (at + offset) % record.watched
        inside = [slower for b, long, slower in record.spells if b <= place < b + long]
        done += step / (inside[0] if inside else 1.0)
        at += step
    assert end == pytest.approx(at, abs=0.2)


@settings(deadline=None)
@given(records(), st.floats(0, 30), st.floats(0, 20), st.floats(0, 5), st.floats(0, 5))
def test_work_in_two_parts_ends_as_in_one(record, offset, now, first: float, second: float) -> None:
    going = Going(record, offset)
    parts = going.end(going.end(now, first), second)
    assert parts == pytest.approx(going.end(now, first + second), abs=1e-6)
    assert parts >= now + first + second - 1e-9


def test_a_share_of_the_time_is_lost() -> None:
    assert TWICE.share == pytest.approx((0.8 + 0.25) / 10)
    assert Going(TWICE).end(0.0, 10 * (1 - TWICE.share)) == pytest.approx(10.0)
    assert NEVER.share == NEVER.touched(1.0) == 0.0
    assert NEVER.then(TWICE) == TWICE
    both = TWICE.then(TWICE)
    assert both.share == pytest.approx(TWICE.share)
    assert Going(both).end(11.0, 3.0) == pytest.approx(10 + Going(TWICE).end(1.0, 3.0))


def test_spells_are_found_between_pieces_of_work() -> None:
    pace = np.full(10_000, 0.001)
    pace[2000:2010] = 0.009  # .09 s, nine times as slow
    pace[5000], pace[5003] = 0.02, 0.03  # one spell
    pace[7000] = 0.004  # any program's turn
    pace[8000] = pace[8027] = 0.003  # and two more
    seen = found(np.concatenate([[0.0], np.cumsum(pace)]))
    assert [round(begin, 2) for begin, _, _ in seen.spells] == [2.0, 5.08]
    assert seen.spells[0][1:] == (0.09, 9.0)
    assert seen.spells[1][1:] == pytest.approx((0.052, 13.0))
    assert seen.watched == pytest.approx(pace.sum())
    assert found([0.0, 0.001, 0.002]).said() == "the machine never stood still"


def test_watching_takes_as_long_as_asked() -> None:
    seen = watched(0.2)
    assert 0.2 <= seen.watched < 5
    assert all(0 <= begin < seen.watched for begin, _, _ in seen.spells)


def test_a_lone_client_meets_as_many_as_said() -> None:
    alone = Replica(0.016, 0.0, stalls=OFTEN)
    seconds = closed(alone, 1, requests=4_000).response_N
    assert (seconds > 0.017).mean() == pytest.approx(OFTEN.touched(0.016), abs=0.01)
    assert seconds.mean() == pytest.approx(alone.alone, rel=0.02)


def test_a_client_that_pauses_meets_more() -> None:
    going, now, met = Going(OFTEN), 0.0, 0
    pauses = np.random.default_rng(0).exponential(0.02, 4_000)
    for pause in pauses.tolist():
        end = going.end(now + pause, 0.016)
        met += end > now + pause + 0.017
        now = end
    assert met / len(pauses) == pytest.approx(OFTEN.touched(0.016, 0.02), rel=0.2)
    assert OFTEN.touched(0.016, 0.02) > 1.2 * OFTEN.touched(0.016)


def test_who_comes_at_their_own_time_wait_through_them(monkeypatch) -> None:
    """A server that was measured by clients who ask once they are answered, seen by others."""
    monkeypatch.setattr(matching, "ASKED", 200)
    noise = tuple(np.random.default_rng(0).normal(1, 0.1, 200).clip(0.5).tolist())
    true = Replica(0.002, 0.002, 2, 32, 0.1, 0.0005, (1, 2), noise, 0.01, stalls=OFTEN)
    rounds = [(n, closed(true, n, seed=5).mean) for n in (1, 8)]
    alone, forwards = [], []
    for count in (1, 2):
        one = replace(true, steps=(count,))
        alone += closed(one, 1, requests=300, seed=count).response_N.tolist()
        forwards += [count] * (len(alone) - len(forwards))
    rate = 0.4 * true.capacity
    real = simulate(true, 1, rate, requests=12_000, seed=1).at(99)
    told, blind = (matched(rounds, alone, forwards, 2, 32, known)[0] for known in (OFTEN, NEVER))
    assert simulate(told, 1, rate, requests=12_000, seed=1).at(99) == pytest.approx(real, rel=0.15)
    assert simulate(blind, 1, rate, requests=12_000, seed=1).at(99) < 0.85 * real
