"""Engines side by side over one model, as one.

Contract: `Lanes` is what an `Engine` is to those outside: each job and each order goes to the lane
that has least to do, and stays there; one whose last work failed gets some only where the others
are full, or it would have least to do for ever. A lane is a thread with batches of its own; while
one waits for the model, which holds no lock, another one writes prompts and reads answers, so a
model that runs on one thread keeps several cores busy. The bounds on jobs and cache slots are
shared out. Not here: what a lane does (`engine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.backend import Backend
from diffgr2.serve.engine import Engine
from diffgr2.serve.jobs import Job, Order
from diffgr2.serve.limits import Limits
from diffgr2.serve.telemetry import Metrics


def engine_of(
    model: Backend,
    probe: tuple[DecodeRequest, DecodeSettings],
    limits: Limits,
    metrics: Metrics,
) -> Engine | Lanes:
    """One engine, or as many lanes as are wanted."""
    n = max(1, min(limits.lanes or model.lanes, limits.running))
    given = (model, probe, limits, metrics)
    return Engine(*given) if n == 1 else Lanes(*given, n)


class Lanes:
    """See the module's docstring."""

    def __init__(
        self,
        model: Backend,
        probe: tuple[DecodeRequest, DecodeSettings],
        limits: Limits,
        metrics: Metrics,
        n: int,
    ) -> None:
        part = replace(limits, running=limits.running // n, tokens=limits.tokens // n)
        self.lanes = [Engine(model, probe, part, metrics) for _ in range(n)]

    def start(self, told: Callable[[], object] | None = None) -> None:
        for lane in self.lanes:
            lane.start(told)

    def stop(self) -> None:
        """End the threads after their current step; open jobs fail."""
        self.end()
        for lane in self.lanes:
            lane.stop()

    def end(self) -> None:
        """End the threads soon."""
        for lane in self.lanes:
            lane.end()

    def _freest(self) -> Engine:
        def burden(lane: Engine) -> tuple[bool, int]:
            return not lane.alive, lane.load + (lane.limits.running if lane.bad else 0)

        return min(self.lanes, key=burden)

    def submit(self, job: Job) -> None:
        self._freest().submit(job)

    def order(self, order: Order) -> None:
        self._freest().order(order)

    def cancel(self, job: Job) -> None:
        """Take effect before the next step."""
        for lane in self.lanes:
            lane.cancel(job)

    def probe(self, timeout_s: float) -> bool:
        """A real forward on each thread; whether all were good."""
        good = [lane.probe(timeout_s) for lane in self.lanes]  # of each, whatever the others say
        return all(good)

    @property
    def stalled(self) -> bool:
        return any(lane.stalled for lane in self.lanes)

    @property
    def alive(self) -> bool:
        return all(lane.alive for lane in self.lanes)

    @property
    def bad(self) -> bool:
        return any(lane.bad for lane in self.lanes)

    @property
    def good_at(self) -> float:
        """When the lane whose last good forward is longest ago had it."""
        return min(lane.good_at for lane in self.lanes)

    @property
    def running(self) -> int:
        return sum(lane.running for lane in self.lanes)

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self.lanes)

    @property
    def slots_used(self) -> int:
        return sum(lane.slots_used for lane in self.lanes)
