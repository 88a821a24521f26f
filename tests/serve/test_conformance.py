"""HTTP as the standards have it, byte by byte: methods, targets, framing, interim answers, ends."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from socket import gethostname
from typing import Any

import httpx
import pytest

from diffgr2.cli.serve import answered
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.connection import GONE_S
from diffgr2.serve.limits import Limits, Slots
from diffgr2.serve.replies import event, line_of
from support.live import Live, body_of, idle, ids
from support.raw import JSON, body_of_answer, head_of, request, talk

GETS = (
    "/",
    "/docs",
    "/static/page.js",
    "/openapi.json",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/v1/models",
)


@pytest.mark.parametrize("path", GETS)
def test_head_is_get_without_its_body(live: Live, path: str) -> None:
    with live.client() as client:
        whole = client.get(path)
    answer = talk(live.port, request(method="HEAD", target=path))
    status, headers = head_of(answer)
    assert status == whole.status_code == 200
    assert body_of_answer(answer) == b""
    for name in ("content-type", "cache-control"):
        assert headers[name] == whole.headers[name]
    if path != "/metrics":  # which counts the question
        assert headers["content-length"] == whole.headers["content-length"]


def test_every_get_of_the_app_answers_head(live: Live) -> None:
    """Walks the routes, so that a new one cannot be forgotten."""
    found = 0
    for route in live.routes:
        if "GET" in getattr(route, "methods", ()) and "{" not in route.path:  # type: ignore[attr-defined]
            got = head_of(talk(live.port, request(method="GET", target=route.path)))[0]  # type: ignore[attr-defined]
            headed = talk(live.port, request(method="HEAD", target=route.path))  # type: ignore[attr-defined]
            assert head_of(headed)[0] == got
            assert body_of_answer(headed) == b""
            found += 1
    assert found >= len(GETS)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/rerank", {"POST"}),
        ("HEAD", "/v1/rerank/batch", {"POST"}),
        ("PUT", "/health/live", {"GET", "HEAD"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/metrics", {"GET", "HEAD"}),
        ("OPTIONS", "/v1/rerank", {"POST"}),
        ("TRACE", "/", {"GET", "HEAD"}),
        ("PATCH", "/v1/models/diffgr2", {"GET", "HEAD"}),
    ],
)
def test_405_says_what_is_allowed(live: Live, method: str, path: str, allowed: set) -> None:
    status, headers = head_of(talk(live.port, request(method=method, target=path)))
    assert status == 405
    assert set(headers["allow"].replace(" ", "").split(",")) == allowed


def test_hosts_and_absolute_targets(reranker: Reranker) -> None:
    def ask(target: str, host: str) -> int:
        message = request(method="GET", target=target, host=host)
        return head_of(talk(server.port, message))[0]

    with Live(reranker, limits=Limits(hosts=("localhost", "127.0.0.1", "::1"))) as server:
        own = ("localhost", "LocalHost:80", "127.0.0.1:8000", "[::1]:80", "[::1]", "localhost:")
        for host in own:
            assert ask("/health/live", host) == 200, host
            assert ask(f"http://{host}/health/live", "evil.example") == 200, host
        others = ("evil.example", "localhost.evil.example", "127.0.0.1.evil", "localhost.", "[::2]")
        for host in (*others, "", "evil.example:80", "2130706433", "0.0.0.0"):
            assert ask("/v1/models", host) == 421, host
            assert ask("/health/live", host) == 421, host
            if host:
                assert ask(f"http://{host}/health/live", "localhost") == 421, host


def test_an_empty_line_before_a_request_is_passed_over(live: Live) -> None:
    message = request(method="GET", target="/health/live", close=True)
    assert head_of(talk(live.port, b"\r\n" + message))[0] == 200


def test_a_server_for_others_is_asked_by_address_too(reranker: Reranker) -> None:
    """As probes and containers do; a foreign page cannot, it has nothing but a name."""
    hosts = answered("0.0.0.0", (), keyed=False)
    with Live(reranker, limits=Limits(hosts=hosts)) as server:
        for host, status in (
            ("10.1.2.3:8000", 200),
            ("[fe80::1]", 200),
            (gethostname(), 200),
            ("evil.example", 421),
            ("2130706433", 421),
        ):
            message = request(method="GET", target="/health/ready", host=host)
            assert head_of(talk(server.port, message))[0] == status, host


def test_a_doubtful_frame_ends_the_connection(live: Live) -> None:
    """What follows such a message is never read as a request of its own."""
    smuggled = request(method="GET", target="/v1/models")
    doubtful = (
        b"POST /rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n"
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    for first in (
        doubtful,
        doubtful.replace(b"content-length: 5", b"content-length: 5\r\ncontent-length: 6"),
        doubtful.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"content-length: 5\r\n", b""),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        answer = talk(live.port, first + smuggled)
        assert answer.count(b"HTTP/1.1 ") == 1
        status, headers = head_of(answer)
        assert status == (505 if first.startswith(b"PRI") else 400)
        assert headers["connection"] == "close"


def test_a_client_that_closed_its_sending_half_is_answered(live: Live) -> None:
    body = body_of(live.reranker, 3, decode={"decoder": "ar"})
    for streams in (False, True):
        message = request({**body, "stream": streams}, close=False)
        answer = talk(live.port, message, eof=True)
        assert head_of(answer)[0] == 200
        assert b"[DONE]" in answer or b'"results"' in answer
    both = request(method="GET", target="/health/live", close=False)
    answer = talk(live.port, request(body, close=False) + both + both, eof=True)
    assert answer.count(b"HTTP/1.1 200") == 3  # all that it had sent before
    cut = request(body, close=False)[:-9]
    assert talk(live.port, cut, eof=True) == b""
    assert idle(live.state)


class Slow:
    """Keeps the engine from its work for a while."""

    done = False
    arrived, over = 0.0, False

    def together(self, orders: Any) -> list[Any]:
        time.sleep(GONE_S + 0.6)
        self.done = True
        return orders[1].together(orders[1:]) if orders[1:] else []

    def fail(self, error: Exception) -> None:
        raise AssertionError(error)


def test_a_long_answer_to_a_half_closed_client_is_announced(live: Live) -> None:
    """HTTP/1.1 clients get interim answers, which those of HTTP/1.0 do not know."""
    body = {"history": ids(live.reranker, 0), "documents": ids(live.reranker, *range(100, 190))}
    message = request({**body, "decode": {"decoder": "ar"}}, close=False)
    usual = message.replace(b"application/json", b"application/json;charset=utf-8", 1)
    for version in (b"HTTP/1.1", b"HTTP/1.0"):
        slow = [live.state.readers.submit(time.sleep, GONE_S + 0.6) for _ in range(4)]
        answer = talk(live.port, usual.replace(b"HTTP/1.1", version, 1), eof=True)
        assert answer.startswith(b"HTTP/1.1 102 Processing\r\n\r\n") == (version == b"HTTP/1.1")
        assert head_of(answer)[0] == 200
        assert all(one.done() for one in slow)
    live.state.engine.order(slow := Slow())
    answer = talk(live.port, message, eof=True)  # on the short way, which has no readers
    assert answer.startswith(b"HTTP/1.1 102 Processing\r\n\r\n")
    assert head_of(answer)[0] == 200
    assert slow.done


def test_expect_100_continue(live: Live) -> None:
    """The go-ahead comes only for a body that will be read."""
    data = json.dumps(body_of(live.reranker, 1, decode={"decoder": "ar"})).encode()
    whole = request(data, "expect: 100-continue")
    head, body = whole[: -len(data)], data
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    for wrong in (
        head.replace(JSON.encode(), b"content-type: text/plain"),
        head.replace(b"content-length: ", b"content-length: 99999"),
        head.replace(b"connection", b"x-request-timeout-ms: no\r\nconnection"),
    ):
        assert 400 <= int(talk(live.port, wrong)[9:12]) < 500
    old = talk(live.port, whole.replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert old.startswith(b"HTTP/1.1 200 ")


def test_pipelined_requests_are_answered_in_order(live: Live) -> None:
    parts, wanted = [], []
    for number in range(60):
        body = body_of(live.reranker, number, decode={"decoder": "ar"})
        if number % 3 == 0:
            parts.append(request(body, f"x-request-id: r{number}", close=False))
        elif number % 3 == 1:
            line = f"x-request-id: r{number}"
            parts.append(request(None, line, method="HEAD", target="/health/live", close=False))
        else:
            kind = "content-type: text/plain"  # refused before its body is read
            parts.append(request(b"{}" * 900, f"x-request-id: r{number}", kind=kind, close=False))
        wanted.append(f"r{number}")
    parts.append(request(None, "x-request-id: last", method="GET", target="/health/live"))
    answer = talk(live.port, b"".join(parts[::3])[:1], b"".join(parts[::3])[1:], parts[-1])
    found = [line[14:] for line in answer.decode("latin-1").split("\r\n") if "x-request-id" in line]
    assert found == [*wanted[::3], "last"]
    answer = talk(live.port, *parts[:2], parts[-1])
    assert answer.count(b"HTTP/1.1 200 ") == 3
    refused = talk(live.port, parts[2], parts[-1])
    assert refused.count(b"HTTP/1.1 ") == 1, "415 ends the connection: the body was not read"


def test_streams_are_lines_for_every_reader(live: Live) -> None:
    for text in ("a\u2028b", "a\u2029b", "a\x85b", "a\r\nb", "a\x0bb\x0cc", "a\x1cb\x1db\x1ec"):
        assert len(line_of({"x": text}).splitlines()) == 1
        assert json.loads(line_of({"x": text})) == {"x": text}
        assert len(event("results", {"x": text}).decode().splitlines()) == 3
    known = live.reranker.catalogue.titles[3]
    document = {"title": f"{known} \u2028 {known}\x85"}
    first = ids(live.reranker, 9)
    body = {"history": first, "documents": [*first, document], "return_documents": True}
    with live.client() as client:
        text = client.post("/rerank", json={**body, "stream": True}).text
        lines = client.post("/v1/rerank/batch", json={"requests": [body] * 3}).text
    for line in text.splitlines():
        assert line == "" or line.startswith(("event: ", "data: "))
    assert "\\u2028" in text
    assert [json.loads(line)["results"] for line in lines.splitlines()]
    assert len(lines.splitlines()) == 3


def test_a_body_in_tiny_chunks(live: Live) -> None:
    """Chunked bodies of a sensible kind are read; very many tiny chunks end the connection."""
    body = body_of(live.reranker, 2, decode={"decoder": "ar"})
    head = request(None, "transfer-encoding: chunked", JSON)

    def chunks(data: bytes, size: int) -> bytes:
        parts = (data[at : at + size] for at in range(0, len(data), size))
        return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    for size in (1, 7, 64, 10_000):
        small = json.dumps(body).encode()
        assert head_of(talk(live.port, head, chunks(small, size)))[0] == 200
    large = json.dumps({**body, "x": "y" * 1_900_000}).encode()
    assert head_of(talk(live.port, head, chunks(large, 4_096)))[0] == 200
    begun = time.monotonic()
    assert head_of(talk(live.port, head, chunks(large, 1)))[0] == 400
    assert time.monotonic() - begun < live.limits.body_s  # and not after its time
    assert idle(live.state)


def test_the_deadline_covers_the_body_too(live: Live) -> None:
    message = request(body_of(live.reranker, 2), "x-request-timeout-ms: 300")
    begun = time.monotonic()
    assert head_of(talk(live.port, message[:-5]))[0] == 504
    assert time.monotonic() - begun < live.limits.body_s / 2
    assert idle(live.state)


def test_retry_after_follows_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def run(seconds: float, waiting: int) -> int:
        """One end after the other, with so many in flight."""
        slots = Slots(1000)
        for _ in range(waiting):
            assert slots.take()
        for _ in range(100):
            clock[0] += seconds
            slots.give_back()
            assert slots.take()
        return slots.retry_after_s()

    assert run(0.01, 10) == 1
    assert run(0.1, 40) == 4
    assert run(0.1, 160) == 16
    assert run(2.0, 160) == 60
    slots = Slots(4)
    assert slots.retry_after_s() == 1
    clock[0] += 3600  # a night without work is not the pace of anything
    for _ in range(4):
        slots.take()
    assert slots.retry_after_s() == 1
    clock[0] += 7  # nothing ends
    assert slots.retry_after_s() == 28


def test_429_tells_when_to_come_again(reranker: Reranker) -> None:
    async def flood(url: str) -> list[Any]:
        body = {
            "history": ids(reranker, 0),
            "documents": ids(reranker, *range(60)),
            "decode": {"decoder": "ar"},
        }
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            return await asyncio.gather(*(client.post("/rerank", json=body) for _ in range(24)))

    with Live(reranker, limits=Limits(waiting=1, running=1)) as server:
        answers = asyncio.run(flood(server.url))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 429}
