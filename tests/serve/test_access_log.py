"""The access log and usage counters: what they say, what they never say, and no forged lines."""

from __future__ import annotations

import io
import json
import logging
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from diffgr2.serve.logs import ROOM, QueuedLines
from diffgr2.serve.telemetry import ACCESS, JsonLines, clock
from support.live import Live, Process, body_of

KEY, OTHER = "the-key-of-the-search-team", "the-key-of-somebody-else"
LINES = [f"{KEY} name=search roles=rank,shoppers", f"{OTHER} name=ops roles=rank,admin"]
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
RANKED = {"lists", "decoder", "tokens", "forwards", "queue_ms", "inference_ms"}
ALWAYS = {"time", "id", "method", "route", "status", "ms"}

Logged = Callable[[], list[dict[str, Any]]]


class Kept(logging.Handler):
    """Lines as the log would hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def served(reranker: Reranker) -> Iterator[tuple[Live, Logged]]:
    """A server with keys, and a function that gives the lines since it was last called."""
    kept, log = Kept(), logging.getLogger("diffgr2.serve")
    level = log.level
    with Live(reranker, keys=Keys(LINES)) as server:
        log.setLevel(logging.INFO)
        log.addHandler(kept)

        def logged() -> list[dict[str, Any]]:
            # A line is written after its answer was sent: the last request's marks the end.
            with server.client(headers={"x-request-id": "the-last-one"}) as client:
                client.get("/health/live")
            end = time.monotonic() + 10
            while not (kept.lines and "the-last-one" in kept.lines[-1]):
                assert time.monotonic() < end
                time.sleep(0.005)
            lines, kept.lines = kept.lines[:-1], []
            assert all(line.splitlines() == [line] for line in lines)
            return [json.loads(line) for line in lines]

        try:
            yield server, logged
        finally:
            log.setLevel(level)
            log.removeHandler(kept)


def usage(client: httpx.Client) -> dict[tuple[str, ...], float]:
    text = client.get("/metrics", headers={"authorization": f"Bearer {OTHER}"}).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("diffgr2_key_") and sample.name.endswith("_total")
    }


def test_a_ranking_is_one_line_with_its_figures(served, reranker: Reranker) -> None:
    server, logged = served
    mine = {"authorization": f"Bearer {KEY}", "x-request-id": "mine-1"}
    with server.client(headers=mine) as client:
        for decoder in ("ar", "block", "verify"):
            for stream in (False, True):
                body = body_of(reranker, 3, decode={"decoder": decoder}, stream=stream)
                answer = client.post("/v1/rerank", json=body)
                assert answer.status_code == 200
                (line,) = logged()
                assert set(line) == ALWAYS | RANKED | {"key"}
                assert STAMP.fullmatch(line["time"])
                assert (line["id"], line["method"], line["status"]) == ("mine-1", "POST", 200)
                assert (line["route"], line["key"]) == ("/v1/rerank", "search")
                assert (line["decoder"], line["lists"]) == (decoder, 1)
                if not stream:
                    told = answer.json()["decode"]
                    assert line["tokens"] == told["tokens"]
                    assert line["forwards"] == told["forwards"]
                assert line["tokens"] > 0
                assert line["ms"] >= line["queue_ms"] >= 0
                assert line["ms"] >= line["inference_ms"] > 0


def test_a_batch_adds_its_lists_up(served, reranker: Reranker) -> None:
    server, logged = served
    asks = [body_of(reranker, s, decode={"decoder": d}) for s, d in enumerate(["ar", "block"] * 3)]
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        answer = client.post("/v1/rerank/batch", json={"requests": [*asks, {"documents": []}]})
    told = [json.loads(line) for line in answer.text.splitlines()]
    (line,) = logged()
    assert line["route"] == "/v1/rerank/batch"
    assert (line["lists"], line["decoder"]) == (6, "ar+block")
    assert line["tokens"] == sum(one["decode"]["tokens"] for one in told if "decode" in one)
    assert line["forwards"] == sum(one["decode"]["forwards"] for one in told if "decode" in one)


def test_what_is_not_ranked_has_its_line_too(served, reranker: Reranker) -> None:
    server, logged = served
    mine = {"authorization": f"Bearer {KEY}"}
    with server.client() as client:
        for method, path, headers, status, route in (
            ("GET", "/health/live", {}, 200, "/health/live"),
            ("HEAD", "/health/live", {}, 200, "/health/live"),
            ("GET", "/v1/models/default", mine, 200, "/v1/models/{name}"),
            ("GET", "/v1/models/S0000012", mine, 404, "/v1/models/{name}"),
            ("POST", "/v1/rerank", {}, 401, "/v1/rerank"),
            ("POST", "/admin/reload", mine, 403, "/admin/reload"),
            ("GET", "/nowhere", mine, 404, "/nowhere"),
            ("GET", "/" + "x" * 5000, mine, 404, "/" + "x" * 79),
            ("DELETE", "/v1/rerank", mine, 405, "/v1/rerank"),
        ):
            assert client.request(method, path, headers=headers).status_code == status
            (line,) = logged()
            assert set(line) - {"key"} == ALWAYS
            assert (line["method"], line["status"], line["route"]) == (method, status, route)
            assert line.get("key") == ("search" if headers else None)
        late = {**mine, "x-request-timeout-ms": "1"}
        assert client.post("/rerank", json=body_of(reranker, 1), headers=late).status_code == 504
        (line,) = logged()
        assert line["status"] == 504


def test_what_an_overloaded_server_refuses_has_its_line(served, reranker: Reranker) -> None:
    server, logged = served
    slots, body = server.state.slots, json.dumps(body_of(reranker, 1))
    slots.taken, kept = slots.limit, slots.taken
    try:
        for path in ("/v1/rerank", "/v1/rerank/batch"):
            head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
            kind = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
                client.sendall(f"{head}{kind}\r\n{body}".encode())  # at once: the short way out
                assert client.recv(4096).startswith(b"HTTP/1.1 429 ")
    finally:
        slots.taken = kept
    lines = logged()
    assert [(line["route"], line["status"], line["key"]) for line in lines] == [
        ("/v1/rerank", 429, "search"),
        ("/v1/rerank/batch", 429, "search"),
    ]
    assert all(set(line) == ALWAYS | {"key"} for line in lines)


def test_no_key_no_body_no_shopper_in_any_line(served, reranker: Reranker) -> None:
    server, logged = served
    user, secret = reranker.raw_users[3], "a-word-that-only-this-body-holds"
    body = body_of(reranker, 2)
    titles = [reranker.catalogue.titles[i] for i in (60, 61, 62)]
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        for ask in (
            {"user_id": user, "documents": titles},
            {"query": f"user:{user}", "documents": titles},
            {"query": secret, "documents": titles},
            {**body, "documents": [secret]},
            {**body, "documents": [secret], "decode": {secret: 1}},
            {**body, "model": secret},
            {"requests": [{**body, "documents": titles, "user_id": user}]},
        ):
            for path in ("/rerank", "/v1/rerank/batch"):
                client.post(path, json=ask)
        client.get(f"/page/candidates?user={user}&h={body['history'][0]}")
        client.get(f"/v1/models/{user}")
        client.post("/rerank", content=b'{"' + secret.encode(), headers={"x-other": secret})
    lines = json.dumps(logged())
    assert lines.count('"route"') == 17
    words = [KEY, OTHER, user, secret, *titles, *body["history"], *body["documents"]]
    assert [word for word in words if word in lines] == []


FORGED = '{"time": "2000-01-01T00:00:00.000Z", "key": "ops", "status": 200}'


def test_no_request_can_write_a_line_of_its_own(served) -> None:
    server, logged = served
    asks = [
        f"GET /a%0a{FORGED.replace(' ', '%20')} HTTP/1.1\r\nHost: localhost\r\n",
        "GET /b%0d%0a%e2%80%a8%c2%85%1b[2J HTTP/1.1\r\nHost: localhost\r\n",
        f"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: x %0a{FORGED}\r\n",
        "GET /health/live HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \u2028y\r\n",
        'GET /c","status":200,"x":" HTTP/1.1\r\nHost: localhost\r\n',
        "G\u0085ET /health/live HTTP/1.1\r\nHost: localhost\r\n",
        f"GET /health/live HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {FORGED}\r\n",
    ]
    for ask in asks:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
            client.sendall((ask + "Connection: close\r\n\r\n").encode("utf-8"))
            while client.recv(4096):
                pass
    lines = logged()
    assert 5 <= len(lines) <= len(asks)  # what is no HTTP at all never becomes a request
    for line in lines:
        assert set(line) == ALWAYS  # so none was forged: theirs have a key
        assert re.fullmatch(r"[A-Za-z0-9_.:-]{1,128}", line["id"])


def test_other_records_are_lines_of_json_as_well() -> None:
    form = JsonLines()
    try:
        raise ValueError(f"two\nlines\n{FORGED}")
    except ValueError:
        record = logging.LogRecord(
            "diffgr2.serve", logging.ERROR, "", 0, "failed: %s", ("a\nb",), sys.exc_info()
        )
    text = form.format(record)
    assert "\n" not in text
    value = json.loads(text)
    assert (value["level"], value["message"]) == ("error", "failed: a\nb")
    assert value["traceback"].endswith(FORGED)
    assert STAMP.fullmatch(value["time"])
    assert clock(1_700_000_000.0625) == "2023-11-14T22:13:20.062Z"


def test_usage_is_counted_by_key(served, reranker: Reranker) -> None:
    server, _ = served
    with server.client() as client:
        first = usage(client)
        assert ("diffgr2_key_lists_total", "search") not in first
        mine = {"authorization": f"Bearer {KEY}"}
        ranked = [
            client.post("/rerank", json=body_of(reranker, s), headers=mine).json() for s in range(3)
        ]
        client.post("/rerank", json={"documents": []}, headers=mine)  # 422: a request, no list
        asks = {"requests": [body_of(reranker, s) for s in range(3, 7)]}
        answer = client.post("/v1/rerank/batch", json=asks, headers=mine)
        ranked += [json.loads(line) for line in answer.text.splitlines()]
        client.post("/rerank", json=body_of(reranker, 1))  # nobody's
        now = usage(client)
    assert now["diffgr2_key_requests_total", "search"] == 5
    assert now["diffgr2_key_lists_total", "search"] == 7
    read = sum(one["usage"]["prompt_tokens"] for one in ranked)
    written = sum(one["usage"]["completion_tokens"] for one in ranked)
    assert now["diffgr2_key_tokens_total", "search", "read"] == read
    assert now["diffgr2_key_tokens_total", "search", "written"] == written
    assert now["diffgr2_key_requests_total", "ops"] == 2
    assert ("diffgr2_key_lists_total", "ops") not in now


def test_without_the_option_no_line_is_made(reranker: Reranker, caplog) -> None:
    caplog.set_level(logging.WARNING, logger="diffgr2.serve")
    with Live(reranker) as server, server.client() as client:
        client.post("/rerank", json=body_of(reranker, 1))
    assert [r for r in caplog.records if r.name.startswith("diffgr2.serve")] == []


class Unread(io.StringIO):
    """A stream whose reader has stopped reading."""

    def __init__(self) -> None:
        super().__init__()
        self.read_again = threading.Event()

    def write(self, text: str) -> int:
        self.read_again.wait()
        return super().write(text)


def test_a_full_queue_drops_lines_and_counts_them() -> None:
    stream, dropped = Unread(), []
    lines = QueuedLines(stream, lambda: dropped.append(1))
    record = logging.LogRecord(ACCESS, logging.INFO, "", 0, "a line", (), None)
    for _ in range(ROOM + 501):
        lines.emit(record)
    assert len(dropped) in (500, 501)  # one line may be with the writer already
    stream.read_again.set()
    lines.close()
    assert 0 < stream.getvalue().count("a line\n") <= ROOM + 1


def test_a_server_whose_log_nobody_reads_goes_on_and_ends(run_dir: Path) -> None:
    with Process(run_dir / "bundle", "--log") as server:  # its stderr is a pipe of 64 KiB
        with httpx.Client(base_url=server.url, timeout=30) as client:
            for _ in range(700):
                assert client.get("/health/live").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
