"""How long a request waited for its place: in its own header, and in the metrics."""

from __future__ import annotations

import copy
import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from diffgr2.model.backends import open_backend
from diffgr2.model.session import TorchSession
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.limits import Limits
from support.live import Live, body_of

FORWARD_S = 0.01


class Slow:
    """The model, but every forward takes its time."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def session(self, mask_id: int) -> TorchSession:
        return TorchSession(self, mask_id)  # type: ignore[arg-type]

    def __call__(self, *args: Any, **more: Any) -> torch.Tensor:
        time.sleep(FORWARD_S)
        return self._model(*args, **more)


@pytest.fixture(scope="module")
def asked(reranker: Reranker) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Three requests at once where one is decoded at a time: (their headers in s, metrics)."""
    slow = copy.copy(reranker)
    slow.model = Slow(open_backend(reranker.directory, "torch"))  # type: ignore[assignment]
    bodies = [body_of(reranker, seed, decode={"decoder": "ar"}) for seed in range(3)]
    with Live(slow, limits=Limits(running=1)) as server, server.client() as client:

        def ask(body: dict[str, Any]) -> httpx.Response:
            return client.post("/rerank", json=body)

        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(ask, bodies))
        text = client.get("/metrics").text
    names = ("queue", "inference", "total")
    times = []
    for answer in answers:
        assert answer.status_code == 200, answer.text
        times.append({name: float(answer.headers[f"x-{name}-time"]) / 1e3 for name in names})
        timing = answer.headers["server-timing"]
        assert timing.startswith(f"queue;dur={answer.headers['x-queue-time']},")
    values = {
        sample.name.removeprefix("diffgr2_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("diffgr2_queue_seconds") and "le" not in sample.labels
    }
    return sorted(times, key=lambda one: one["queue"]), values


def test_the_first_one_hardly_waits_and_the_others_wait_for_those_before_them(asked) -> None:
    times, _ = asked
    assert times[0]["inference"] > 5 * FORWARD_S, "there was something to wait for"
    assert times[0]["queue"] < 0.3 * times[0]["total"], "the wait is not the whole time"
    ahead = 0.0
    for before, one in itertools.pairwise(times):
        ahead += before["inference"]
        assert one["queue"] > 0.7 * ahead


def test_waiting_and_computing_fit_into_the_whole(asked) -> None:
    times, _ = asked
    for one in times:
        assert one["queue"] + one["inference"] <= one["total"] + 0.001
        assert one["queue"] + one["inference"] > 0.5 * one["total"]


def test_the_histogram_holds_every_wait_once(asked) -> None:
    times, values = asked
    assert values["queue_seconds_count"] == len(times)
    waited = sum(one["queue"] for one in times)
    assert values["queue_seconds_sum"] == pytest.approx(waited, abs=0.001)
