"""The door before replicas: it answers as one server does, whoever of them goes away."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from diffgr2.serve.limits import Limits
from diffgr2.serve.relay import make_relay
from diffgr2.serve.telemetry import Metrics
from diffgr2.serve.totals import Totals
from support.live import Live, body_of
from support.replicated import InProcess

KEYS = ["0123456789abcdef-rank name=shop", "0123456789abcdef-ops name=ops roles=rank,admin"]
SHOP = {"authorization": "Bearer 0123456789abcdef-rank"}
OPS = {"authorization": "Bearer 0123456789abcdef-ops"}


class Behind(Live):
    """The door on a real socket, two replicas behind it."""

    def __init__(self, reranker: Reranker, **options: Any) -> None:
        super().__init__(reranker)
        self.fleet = InProcess(reranker, Limits())
        self.replace(make_relay(self.fleet, limits=Limits(), **options))


@pytest.fixture
def behind(reranker: Reranker) -> Iterator[Behind]:
    with Behind(reranker) as server:
        yield server


def samples(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def test_answers_are_those_of_one_server(behind: Behind, live: Live, reranker: Reranker) -> None:
    with behind.client() as ours, live.client() as single:
        for seed in range(4):
            body = body_of(reranker, seed, return_reasoning=True)
            got, wanted = (c.post("/v1/rerank", json=body) for c in (ours, single))
            assert got.status_code == wanted.status_code == 200
            assert got.json()["results"] == wanted.json()["results"]
            assert got.json()["id"] == got.headers["x-request-id"]
            drop = {"date", "content-length", "x-request-id"}
            assert {*got.headers} - drop == {*wanted.headers} - drop
        for path in (
            "/v1/models",
            "/v1/models/none",
            "/nothing",
            "/openapi.json",
            "/docs",
            "/docs/operations",
            "/",
        ):
            got, wanted = (c.get(path) for c in (ours, single))
            assert got.status_code == wanted.status_code, path
    assert {*behind.fleet.asked} == {"replica-0", "replica-1"}


def test_streams_and_batches_come_through(behind: Behind, reranker: Reranker) -> None:
    with behind.client() as client:
        body = body_of(reranker, 1)
        whole = client.post("/v1/rerank", json=body).json()["results"]
        streamed = client.post("/v1/rerank", json={**body, "stream": True})
        assert streamed.headers["content-type"].startswith("text/event-stream")
        assert streamed.text.endswith("data: [DONE]\n\n")
        assert "event: reasoning.delta" in streamed.text
        many = client.post("/v1/rerank/batch", json={"requests": [body, {"documents": 1}]})
        lines = {line["index"]: line for line in map(json.loads, many.text.splitlines())}
        assert lines[0]["results"] == whole
        assert "error" in lines[1]


def test_a_lost_replica_costs_nothing_where_another_one_is(
    behind: Behind, reranker: Reranker
) -> None:
    """Both are asked again and again while one of them goes: every request is answered."""
    statuses: list[int] = []

    def asks(number: int) -> None:
        with behind.client() as client:
            for seed in range(6):
                body = body_of(reranker, number * 10 + seed, decode={"decoder": "ar"})
                statuses.append(client.post("/v1/rerank", json=body).status_code)

    threads = [threading.Thread(target=asks, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    loop = behind.state.post._loop
    while len(behind.fleet.asked) < 6:
        threading.Event().wait(0.005)
    loop.call_soon_threadsafe(behind.fleet.cut, behind.fleet.every[0])
    for thread in threads:
        thread.join()
    assert statuses == [200] * 24
    assert len(behind.fleet.asked) >= 24


def test_where_no_replica_is_left_it_is_503_and_says_when_to_come_again(
    behind: Behind, reranker: Reranker
) -> None:
    for one in behind.fleet.every:
        behind.fleet.cut(one)
    with behind.client() as client:
        for more in ({}, {"stream": True}):
            answer = client.post("/v1/rerank", json=body_of(reranker, 1, **more))
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == 503
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        told = samples(client.get("/metrics").text)
    assert told['diffgr2_requests_total{outcome="failed"}'] == 2
    assert behind.state.slots.taken == 0


def test_metrics_are_of_all_replicas_and_outlive_them(behind: Behind, reranker: Reranker) -> None:
    with behind.client() as client:
        for seed in range(6):
            client.post("/v1/rerank", json=body_of(reranker, seed))
        before = samples(client.get("/metrics").text)
        each = [one.state.metrics for one in behind.fleet.every]
        forwards = [samples(one.text().decode()) for one in each]
        name = next(key for key in before if key.startswith("diffgr2_forwards_total"))
        assert before[name] == sum(one.get(name, 0) for one in forwards) > forwards[0].get(name, 0)
        assert before['diffgr2_requests_total{outcome="ok"}'] == 6
        behind.fleet.there.pop(0)
        after = samples(client.get("/metrics").text)
    falls = {key for key in before if "_total" in key and after[key] < before[key]}
    assert not falls


def test_totals_add_and_never_fall() -> None:
    def told(n: float, running: float) -> bytes:
        metrics = Metrics()
        metrics.forwards.labels("ar").inc(n)
        metrics.running.set(running)
        metrics.seconds.labels("ar").observe(n)
        return metrics.text()

    totals, own = Totals(), Metrics().text()
    name = 'diffgr2_forwards_total{decoder="ar"}'
    both = samples(totals.text(own, {"a": told(2, 1), "b": told(3, 4)}).decode())
    assert (both[name], both["diffgr2_rows_running"]) == (5, 5)
    assert both['diffgr2_request_seconds_count{decoder="ar"}'] == 2
    one = samples(totals.text(own, {"b": told(4, 4)}).decode())
    assert (one[name], one["diffgr2_rows_running"]) == (6, 4)
    new = samples(totals.text(own, {"b": told(4, 0), "c": told(1, 0)}).decode())
    assert (new[name], new["diffgr2_rows_running"]) == (7, 0)


def test_a_reload_reaches_every_replica_or_none(reranker: Reranker) -> None:
    with Behind(reranker, keys=Keys(KEYS)) as server, server.client() as client:
        assert client.post("/admin/reload", headers=SHOP).status_code == 403
        before = [one.state.first for one in server.fleet.every]
        answer = client.post("/admin/reload", headers=OPS)
        assert (answer.status_code, answer.json()["reloaded"]) == (200, [reranker.name])
        after = [one.state.first for one in server.fleet.every]
        assert all(new is not old for new, old in zip(after, before, strict=True))
        server.fleet.every[1].state.draining = True  # it refuses to open anything
        refused = client.post("/admin/reload", headers=OPS)
        assert refused.status_code == 409
        assert [one.state.first for one in server.fleet.every] == after
        assert [one._fresh for one in server.fleet.every] == [{}, {}]


def test_keys_and_roles_are_the_doors(reranker: Reranker) -> None:
    body = body_of(reranker, 3)
    with Behind(reranker, keys=Keys(KEYS)) as server, server.client() as client:
        assert client.post("/v1/rerank", json=body).status_code == 401
        forged = {"authorization": 'Relayed {"name": "x", "roles": ["rank"]}'}
        assert client.post("/v1/rerank", json=body, headers=forged).status_code == 401
        assert client.post("/v1/rerank", json=body, headers=SHOP).status_code == 200
        assert server.fleet.asked
        told = samples(client.get("/metrics", headers=SHOP).text)
    assert told['diffgr2_key_lists_total{key="shop"}'] == 1
    assert told['diffgr2_requests_total{outcome="unauthorized"}'] == 2


def test_a_client_that_leaves_ends_its_work_on_the_replica(
    behind: Behind, reranker: Reranker
) -> None:
    from support.live import idle

    with behind.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post(
            "/v1/rerank",
            json=body_of(reranker, 5, decode={"decoder": "ar", "views": 4}),
            timeout=0.001,
        )
    assert idle(behind.state)
    assert all(idle(one.state) for one in behind.fleet.every)
