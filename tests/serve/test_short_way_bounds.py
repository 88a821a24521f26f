"""The short way through is bound by what bounds the usual way, and takes nobody's turn."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from diffgr2.decode.settings import DecodeRequest
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import app, shortcut
from diffgr2.serve.engine import Engine
from diffgr2.serve.jobs import Event, Job
from diffgr2.serve.lanes import Lanes
from diffgr2.serve.limits import Limits
from diffgr2.serve.telemetry import Metrics
from support.live import Live, body_of, idle, ids
from support.raw import JSON, body_of_answer, head_of, request, talk

USUAL = "content-type: application/json; charset=utf-8"
WAYS = (USUAL, JSON)


class Asked:
    """One list as an order, as a connection makes one."""

    def __init__(self, job: Job, arrived: float, *, over: bool = False) -> None:
        self.job, self.arrived, self.over = job, arrived, over

    def together(self, orders: Sequence[Asked]) -> list[Job]:
        for one in orders:
            one.job.queued_at = one.arrived
        return [one.job for one in orders]

    def fail(self, error: Exception) -> None:
        raise AssertionError(error)


class Decoding:
    """An engine that decodes one list at a time, not started yet, and in which order lists end."""

    def __init__(self, reranker: Reranker) -> None:
        ways = reranker.ways({"decoder": "ar", "max_tokens": 1})
        probe = (DecodeRequest([reranker.vocab.end_id]), ways.settings)
        self.engine = Engine(reranker.model, probe, Limits(running=1), Metrics())
        self.reranker, self.ended = reranker, []
        self.waiting: list[int] = []  # as each list ended

    def job(self, name: str, queued_at: float) -> Job:
        task = self.reranker.prepare(ids(self.reranker, 1), ids(self.reranker, 5, 6, 7))
        (_, wanted), *_ = task.pending()
        job = Job(wanted, task.settings, partial(self._heard, name))
        job.queued_at = queued_at
        return job

    def _heard(self, name: str, _: Event) -> None:
        self.ended.append(name)
        self.waiting.append(self.engine.waiting)

    def run(self, lists: int) -> list[str]:
        """Until so many lists have ended."""
        self.engine.start()
        end = time.monotonic() + 30
        while len(self.ended) < lists and time.monotonic() < end:
            time.sleep(0.002)
        self.engine.stop()
        return self.ended


def test_jobs_and_orders_have_their_turn_as_they_came(reranker: Reranker) -> None:
    decoding, now = Decoding(reranker), time.monotonic()
    for number in (1, 3, 4, 6):
        decoding.engine.submit(decoding.job(f"job {number}", now + number))
    for number in (2, 5, 7):
        asked = decoding.job(f"order {number}", now)
        decoding.engine.order(Asked(asked, now + number))
    told = ["job 1", "order 2", "job 3", "job 4", "order 5", "job 6", "order 7"]
    assert decoding.run(7) == told


def test_orders_that_nobody_waits_for_do_not_pile_up(reranker: Reranker) -> None:
    """A client that asks and leaves has given its slot back, so nothing else bounds them."""
    decoding, now = Decoding(reranker), time.monotonic()
    for number in range(3):
        decoding.engine.submit(decoding.job(f"job {number}", now))
    left = decoding.job("nobody's", now)
    for _ in range(500):
        decoding.engine.order(Asked(left, now + 1, over=True))
    assert decoding.run(3) == ["job 0", "job 1", "job 2"]
    assert decoding.waiting == [2, 1, 0]


def test_a_plain_request_is_answered_beside_many_others(reranker: Reranker) -> None:
    documents = ids(reranker, *range(90))
    hard = {**body_of(reranker, 2), "documents": documents, "decode": {"decoder": "ar", "views": 2}}
    over = threading.Event()
    with Live(reranker, limits=Limits(running=2, waiting=20)) as server:

        def flood() -> None:
            while not over.is_set():
                talk(server.port, request(hard, kind=USUAL))

        threads = [threading.Thread(target=flood) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            end = time.monotonic() + 30
            while server.state.engine.waiting < 4 and time.monotonic() < end:
                time.sleep(0.01)
            asked = request(body_of(reranker, 1), "x-request-timeout-ms: 30000")
            assert head_of(talk(server.port, asked))[0] == 200
        finally:
            over.set()
            for thread in threads:
                thread.join()
        assert idle(server.state)


def test_a_lane_that_fails_draws_no_more_requests_to_itself(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: Engine) -> None:
        if self is lane:
            raise IndexError("a bug")
        write(self)

    write, message = Engine._write, request(body_of(reranker, 1, decode={"decoder": "block"}))
    with Live(reranker, limits=Limits(lanes=2, running=4)) as server:
        engines = server.state.engine
        assert isinstance(engines, Lanes)
        lane = engines.lanes[0]
        monkeypatch.setattr(Engine, "_write", faulty)
        found = [head_of(talk(server.port, message))[0] for _ in range(10)]
        assert found == [500] + [200] * 9
        monkeypatch.undo()
        assert engines.probe(10.0)  # as `/health/ready` has it
        assert not engines.bad
        assert head_of(talk(server.port, message))[0] == 200
        assert idle(server.state)


def test_what_is_late_once_its_prompt_is_written_is_not_decoded(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = shortcut.write_together

    def slow(tasks: Any) -> None:
        time.sleep(0.5)
        write(tasks)

    monkeypatch.setattr(shortcut, "write_together", slow)
    body = body_of(reranker, 1, decode={"decoder": "ar"})
    with Live(reranker) as server:
        written = server.state.metrics.tokens.labels("ar")._value
        before = written.get()
        answer = talk(server.port, request(body, "x-request-timeout-ms: 100"))
        assert head_of(answer)[0] == 504
        assert idle(server.state)
        monkeypatch.undo()
        again = talk(server.port, request({**body, "decode": {"decoder": "block"}}))
        assert head_of(again)[0] == 200  # so the engine has come past it
        assert idle(server.state)
        assert written.get() == before


@pytest.mark.parametrize("limits", [Limits(body_bytes=50), Limits(headers=3)])
def test_bounds_hold_on_both_ways(reranker: Reranker, limits: Limits) -> None:
    with Live(reranker, limits=limits) as server:
        message = [request(body_of(reranker, 1), "x-a: 1", kind=kind) for kind in WAYS]
        usual, short = (head_of(talk(server.port, one))[0] for one in message)
        assert usual == short in (413, 431)


def test_a_fault_is_answered_on_both_ways(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*given: Any) -> Any:
        raise IndexError("a bug")

    for module in (app, shortcut):
        monkeypatch.setattr(module, "parse_request", faulty)
    for kind in WAYS:
        answer = talk(live.port, request(body_of(live.reranker, 1), kind=kind))
        assert head_of(answer)[0] == 500
        assert b"a bug" not in body_of_answer(answer)
    assert idle(live.state)


def test_traces_that_fail_cost_no_answer(reranker: Reranker) -> None:
    class Faulty:
        def request(self, *given: Any) -> None:
            raise OSError("no collector")

        def close(self) -> None: ...

    with Live(reranker) as server:
        server.state.traces = Faulty()  # type: ignore[assignment]
        for kind in WAYS:
            answer = talk(server.port, request(body_of(reranker, 1), kind=kind))
            assert head_of(answer)[0] == 200
        assert idle(server.state)


@pytest.mark.parametrize("full", [True, False])
def test_answers_that_are_left_unread_do_not_pile_up(reranker: Reranker, full: bool) -> None:
    body = {**body_of(reranker, 1), "documents": ids(reranker, *range(12))}
    message = request({**body, "return_reasoning": True}, close=False)
    with Live(reranker) as server, socket.socket() as client:
        for room in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            client.setsockopt(socket.SOL_SOCKET, room, 4_096)
        client.connect(("127.0.0.1", server.port))
        client.settimeout(0.5)
        while not server.connections:
            time.sleep(0.01)
        (transport,) = (connection.transport for connection in server.connections)
        served = transport.get_extra_info("socket")
        served.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        state, most, end = server.state, 0, time.monotonic() + 6
        taken = state.slots.taken
        state.slots.taken = state.slots.limit if full else taken
        try:
            while time.monotonic() < end and most < 200_000:
                client.sendall(message)
                while not full and state.slots.taken and time.monotonic() < end:
                    time.sleep(0.0005)  # its answer comes first, so that the next is plain too
                time.sleep(0.0005)
                most = max(most, transport.get_write_buffer_size())
        except OSError:
            pass  # the server reads no more
        state.slots.taken = taken
        assert 60_000 < most < 100_000
