"""Lanes share what there is to do, what is being written included."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffgr2.decode.settings import DecodeRequest
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.jobs import Job
from diffgr2.serve.lanes import engine_of
from diffgr2.serve.limits import Limits
from diffgr2.serve.telemetry import Metrics


@dataclass
class Held:
    """An order whose prompts take until `go` to write."""

    arrived: float = 0.0
    over: bool = False
    begun: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    def together(self, orders: Sequence[Held]) -> Sequence[Job]:
        for order in orders:
            order.begun.set()
            assert order.go.wait(10)
        return []

    def fail(self, error: Exception) -> None:
        raise error


def test_an_order_goes_to_the_lane_that_writes_none(reranker: Reranker) -> None:
    """While prompts are written they are in no queue, and as much to do as what waits there."""
    tiny = reranker.ways({"decoder": "ar", "max_tokens": 1}).settings
    probe = (DecodeRequest([reranker.vocab.end_id]), tiny)
    lanes = engine_of(reranker.model, probe, Limits(lanes=2), Metrics())
    first, second = Held(), Held()
    lanes.start()
    try:
        lanes.order(first)
        assert first.begun.wait(10)
        assert lanes.waiting == 1
        lanes.order(second)
        assert second.begun.wait(10), "both went to one lane"
    finally:
        first.go.set()
        second.go.set()
        lanes.stop()
