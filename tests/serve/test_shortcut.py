"""The short way through says what the usual way says, byte by byte but for times.

The usual way is taken by the same request with a media type that is spelled otherwise.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import connection
from diffgr2.serve.keys import Keys
from diffgr2.serve.limits import Limits
from diffgr2.serve.plain import plain_of
from diffgr2.serve.shortcut import SMALL, Shortcut
from support.live import Live, body_of, idle, ids
from support.raw import body_of_answer, head_of, request, talk

USUAL = "content-type: application/json; charset=utf-8"
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"
TIMED = ("date", "x-queue-time", "x-inference-time", "x-total-time", "server-timing")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Shortcut]:
    """Every request that took the short way."""
    seen: list[Shortcut] = []
    begun = connection.begun

    def noted(*given: Any) -> Shortcut | None:
        found = begun(*given)
        if found is not None:
            seen.append(found)
        return found

    monkeypatch.setattr(connection, "begun", noted)
    return seen


def told(answer: bytes) -> tuple[Any, ...]:
    """What a client sees, times left out."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = [line.decode().partition(": ")[::2] for line in head.split(b"\r\n")[1:]]
    kept = [(name.lower(), "" if name in TIMED else value) for name, value in lines]
    value = json.loads(body)
    if isinstance(value, dict) and "created" in value:
        value["created"] = 0
    return head.split(b"\r\n")[0], kept, value


def bodies(reranker: Reranker) -> Iterator[tuple[int, dict[str, Any]]]:
    """Requests of every kind, and their status."""
    good, far = body_of(reranker, 3), ids(reranker, *range(20, 50))
    for decoder in ("ar", "block", "verify"):
        for seed in (1, 2, 3):
            yield 200, body_of(reranker, seed, decode={"decoder": decoder})
    yield 200, {**good, "documents": far}
    yield 200, {**good, "documents": far[:1]}
    yield 200, {**good, "decode": {"views": 3, "details": True}}
    yield 200, {**good, "decode": {"decoder": "ar", "temperature": 0.9}, "seed": 7}
    yield 200, {**good, "return_reasoning": "markdown", "return_documents": True, "top_n": 2}
    yield 200, {**good, "documents": [*far[:4], "gone-17", {"title": "Something new"}]}
    yield 200, {**good, "pin": [far[0]], "boost": {good["documents"][1]: 2}, "strange": 1}
    yield 200, {"query": "user:" + reranker.raw_users[4], "documents": far[:5]}
    yield 200, {"user_id": reranker.raw_users[5], "documents": far[:5], "scores": [5, 4, 3, 2, 1]}
    yield 200, {"query": "words that nobody knows zq", "documents": far[:4]}
    yield 200, {"history": [], "documents": far[:4]}
    yield 200, {"query": far[0], "texts": far[1:5], "return_text": True}
    yield 404, {**good, "model": "another"}
    yield 422, {**good, "documents": [*far[:2], "gone-17"], "strict": True}
    yield 422, {"query": far[0], "texts": ["gone-17", far[2]], "strict": True}
    yield 422, {**good, "scores": [1.0]}
    yield 422, {**good, "pin": ["x"], "exclude": ["x"]}
    yield 422, {**good, "decode": {"views": 99}}
    yield 422, {**good, "decode": {"answer": "written", "views": 2}}


def test_both_ways_say_the_same(reranker: Reranker, taken: list[Shortcut]) -> None:
    with Live(reranker, keys=Keys([f"{KEY} roles=rank,shoppers", OTHER])) as server:
        for number, (status, body) in enumerate(bodies(reranker)):
            lines = (f"authorization: Bearer {KEY}", f"x-request-id: r{number}")
            usual = talk(server.port, request(body, *lines, kind=USUAL))
            assert not taken
            short = talk(server.port, request(body, *lines))
            assert told(short) == told(usual), body
            assert head_of(short)[0] == status, body
            if status == 200 or "texts" in body or "model" in body:
                assert len(taken) == 1, body
            taken.clear()
        shoppers = {"user_id": reranker.raw_users[5], "documents": ids(reranker, 1, 2)}
        lines = (f"authorization: Bearer {OTHER}", "x-request-id: r")
        late = (*lines, "x-request-timeout-ms: 1")
        hard = {**body_of(reranker, 1), "documents": ids(reranker, *range(90))}
        for more, body in ((lines, shoppers), (late, hard), (lines[1:], shoppers)):
            ways = [talk(server.port, request(body, *more, kind=k)) for k in (USUAL, JSON)]
            assert told(ways[0]) == told(ways[1])
            assert head_of(ways[1])[0] in (200, 401, 504)
        assert idle(server.state)


JSON = "content-type: application/json"


def counted(server: Live) -> dict[str, float]:
    """Counters of the metrics, and how often histograms were asked."""
    lines = server.state.metrics.text().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    kept = re.compile(r"diffgr2_\w*?(total|count|in_flight|waiting|running)(\{.*\})?")
    return {name: float(value) for name, _, value in pairs if kept.fullmatch(name)}


def test_both_ways_count_the_same(reranker: Reranker, taken: list[Shortcut]) -> None:
    body = body_of(reranker, 2, decode={"decoder": "block"})
    lines, changes = (f"authorization: Bearer {KEY}",), []
    with Live(reranker, keys=Keys([f"{KEY} name=shop"])) as server:
        for kind in (USUAL, JSON):
            talk(server.port, request(body, *lines, kind=kind))
            before = counted(server)
            for status in (200, 404):
                more = {} if status == 200 else {"model": "another"}
                answer = talk(server.port, request({**body, **more}, *lines, kind=kind))
                assert head_of(answer)[0] == status
            assert idle(server.state)
            after = counted(server)
            changes.append({name: after[name] - before.get(name, 0) for name in after})
    assert len(taken) == 3
    assert changes[0] == changes[1]
    assert changes[0]['diffgr2_requests_total{outcome="ok"}'] == 1
    assert changes[0]['diffgr2_key_lists_total{key="shop"}'] == 1


def test_what_is_large_streams_or_is_wrong_goes_the_usual_way(
    live: Live, taken: list[Shortcut]
) -> None:
    good = body_of(live.reranker, 3, decode={"decoder": "ar"})
    for status, message in (
        (200, request({**good, "stream": True})),
        (200, request({**good, "x": "y" * SMALL})),
        (200, request(good, "content-encoding: identity")),
        (200, request(good, "x-request-timeout-ms: 009000", "x: \té")),
        (400, request(good, "x-request-timeout-ms: 0")),
        (400, request(b'{"a": 1, "a": 2}')),
        (413, request(b"[" * 5, "content-length: 3")[:-2]),
        (415, request(good, kind="content-type: text/plain")),
        (422, request({"documents": []})),
        (422, request(b"[]")),
    ):
        answer = talk(live.port, message)
        assert head_of(answer)[0] in (status, 400), message
        assert head_of(answer)[0] == status or status == 413
    assert taken == []
    assert head_of(talk(live.port, request(good)))[0] == 200
    assert len(taken) == 1


def test_requests_on_one_connection_are_answered_in_order(
    live: Live, taken: list[Shortcut]
) -> None:
    good = [body_of(live.reranker, n, decode={"decoder": "ar"}) for n in range(3)]
    messages = [request(b, f"x-request-id: r{n}", close=False) for n, b in enumerate(good)]
    alive = request(None, "x-request-id: a", method="GET", target="/health/live", close=False)
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        client.sendall(messages[0])
        time.sleep(0.002)  # a request that comes while another one is under way
        for part in (messages[1], alive, messages[2][:40], messages[2][40:]):
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while part := client.recv(65536):
            answer += part
    found = re.findall(rb"x-request-id: (\w+)", answer)
    assert found == [b"r0", b"r1", b"a", b"r2"]
    assert answer.count(b"HTTP/1.1 200 ") == 4
    assert len(taken) >= 1


def test_a_client_that_leaves_frees_its_slot(live: Live, taken: list[Shortcut]) -> None:
    body = {"history": ids(live.reranker, 0), "documents": ids(live.reranker, *range(90))}
    gone = live.state.metrics.requests.labels("gone")._value
    before = gone.get()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
            client.sendall(request({**body, "decode": {"decoder": "ar"}}, close=False))
            end = time.monotonic() + 20
            while not live.state.slots.taken and time.monotonic() < end:
                time.sleep(0.001)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert idle(live.state)
    assert len(taken) == 5
    assert gone.get() > before


def test_of_requests_that_are_written_together_one_fails_alone(
    reranker: Reranker, taken: list[Shortcut], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [body_of(reranker, n, decode={"decoder": "block"}) for n in range(8)]
    truth = [list(reranker.rank(b["history"], b["documents"]).order) for b in good]
    with Live(reranker, limits=Limits(waiting=64)) as server:
        world = server.reranker
        write, sizes = world.requests, []

        def requests(asked: Any) -> Any:
            sizes.append(len(asked))
            if any(len(one.candidates) == 3 for one in asked):
                raise IndexError("a bug")
            return write(asked)

        monkeypatch.setattr(world, "requests", requests)
        poison = {**good[0], "documents": good[0]["documents"][:3]}
        server.state.engine.order(Pause())
        with ThreadPoolExecutor(9) as pool:
            asked = [*good, poison]
            answers = list(pool.map(lambda b: talk(server.port, request(b)), asked))
        monkeypatch.undo()
        assert [head_of(answer)[0] for answer in answers] == [200] * 8 + [500]
        for answer, order in zip(answers, truth, strict=False):
            found = json.loads(body_of_answer(answer))["results"]
            assert [entry["index"] for entry in found] == order
        assert max(sizes) > 1
        assert idle(server.state)


class Pause:
    """Holds the engine up, so that requests gather."""

    arrived, over = 0.0, False

    def together(self, orders: Any) -> list[Any]:
        time.sleep(0.5)
        return orders[1].together(orders[1:]) if orders[1:] else []

    def fail(self, error: Exception) -> None:
        raise AssertionError(error)


# ----------------------------------------------------------------------------------- the bytes

LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "host: localhost",
                "Host: x",
                "content-type: application/json",
                "connection: close",
                "connection: keep-alive, x",
                "connection: Keep-Alive",
                "transfer-encoding: chunked",
                "expect: 100-continue",
                "x-a:  b  ",
                "x-a:",
                "x_b: c",
                " folded: d",
                "x: \t",
                "x\r: y",
                "content-length: 5",
                "Content-Length: 0",
            ]
        ),
        st.text(st.characters(max_codepoint=255), max_size=12),
    ),
    max_size=6,
)
FIRSTS = st.sampled_from(
    ["POST /rerank HTTP/1.1", "POST /v1/rerank/batch HTTP/1.1", "POST /rerank HTTP/1.0", "GET /"]
)


@settings(max_examples=400, deadline=None)
@given(FIRSTS, LINES, st.binary(max_size=8), st.booleans())
@example("POST /rerank HTTP/1.1", ["host: x"], b"{}", True)
def test_what_is_plain_is_what_the_library_reads(
    first: str, lines: list[str], body: bytes, measured: bool
) -> None:
    more = [f"content-length: {len(body)}"] if measured else []
    data = "\r\n".join([first, *lines, *more, "", ""]).encode("latin-1") + body
    plain = plain_of(data)
    if plain is None:
        return
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(data)
    asked, parts = reader.next_event(), []
    while isinstance(event := reader.next_event(), h11.Data):
        parts.append(bytes(event.data))
    assert isinstance(asked, h11.Request)
    assert isinstance(event, h11.EndOfMessage)
    assert (asked.method, asked.target.decode()) == (b"POST", plain.path)
    assert dict(asked.headers) == plain.headers
    assert len(asked.headers) == len(plain.headers)
    assert b"".join(parts) == plain.body == body
    assert reader.trailing_data == (b"", False)
