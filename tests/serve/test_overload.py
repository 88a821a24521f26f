"""More than the server can do: refusals are cheap, and what it can do it still does.

A refusal is the same by whichever way it comes, and at twelve times the load every request ends in
one way. How much of the best rate of answers is left then is timed by `benchmarks/serving.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from diffgr2.serve.limits import Limits
from diffgr2.serve.logs import QueuedLines
from diffgr2.serve.plain import plain_of
from diffgr2.serve.turnaway import turned_away
from support.live import Live, Process, body_of
from support.raw import body_of_answer, head_of, request, talk

BODY = {"history": ["a"], "documents": ["b"]}
KEY = "0123456789abcdef"


@pytest.fixture
def full(reranker: Reranker) -> Iterator[Live]:
    """A server without a free slot, and with keys."""
    keys = Keys([f"{KEY} name=shop", "fedcba9876543210 rate=1/h", "aaaabbbbccccdddd roles=admin"])
    limits = Limits(waiting=0, running=1, hosts=("localhost",))
    with Live(reranker, limits=limits, keys=keys) as server:
        assert server.state.slots.take()
        yield server
        server.state.slots.give_back()


def told(answer: bytes) -> tuple:
    """What a client sees of a refusal."""
    status, headers = head_of(answer)
    value = json.loads(body_of_answer(answer))
    assert headers.pop("date")
    kept = {name: headers[name] for name in headers if name != "connection"}
    return status, kept, value, headers.get("connection", "").lower()


def test_the_short_way_out_says_what_the_door_says(full: Live) -> None:
    lines = (f"authorization: Bearer {KEY}", "x-request-id: r1")
    message = request(BODY, *lines)
    before = full.state.metrics.requests.labels("rejected")._value.get()
    assert turned_away(full.state, plain_of(message)) is not None
    short = told(talk(full.port, message))
    usual = request(BODY, *lines, "expect: 100-continue")
    assert turned_away(full.state, plain_of(usual)) is None
    assert told(talk(full.port, usual)) == short
    assert short[0] == 429
    assert int(short[1]["retry-after"]) >= 1
    assert full.state.metrics.requests.labels("rejected")._value.get() == before + 3
    assert full.state.metrics.key_requests.labels("shop")._value.get() == 3
    twice = request(BODY, *lines, close=False) * 2 + message
    answer = talk(full.port, twice)  # pipelined: the usual way
    assert answer.count(b"HTTP/1.1 429 ") == 3
    with socket.create_connection(("127.0.0.1", full.port), timeout=10) as kept:
        for _ in range(3):  # the connection stays
            kept.sendall(request(BODY, *lines, close=False))
            assert kept.recv(4096).startswith(b"HTTP/1.1 429 ")
        live = request(method="GET", target="/health/live")
        kept.sendall(live)
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_what_is_unusual_goes_the_usual_way(full: Live) -> None:
    key = f"authorization: Bearer {KEY}"
    whole = request(BODY, key)
    for status, message in (
        (401, request(BODY)),
        (401, request(BODY, "authorization: Bearer 0123456789abcdeX")),
        (403, request(BODY, "authorization: Bearer aaaabbbbccccdddd")),
        (421, request(BODY, key, host="evil.example")),
        (400, request(BODY, key, host="a b")),
        (400, request(BODY, key, "host: localhost")),
        (400, request(BODY, key, "content-length: 3")),
        (400, request(BODY, key, "transfer-encoding: chunked")),
        (405, request(BODY, key, method="PUT")),
        (404, request(BODY, key, target="/v3/rerank")),
        (200, request(method="GET", target="/health/live")),
        (505, whole.replace(b"HTTP/1.1", b"HTTP/2.0", 1)),
    ):
        assert turned_away(full.state, plain_of(message)) is None
        assert head_of(talk(full.port, message))[0] == status, message
    for part in (whole[:30], whole[:-1], whole + b"x", b"", b"\r\n" + whole):
        assert turned_away(full.state, plain_of(part)) is None
    assert turned_away(full.state, plain_of(whole)) is not None
    full.state.slots.give_back()
    assert turned_away(full.state, plain_of(whole)) is None
    assert full.state.slots.take()


def test_a_log_that_nobody_reads_drops_lines_and_counts_them() -> None:
    """The writer's thread may wait for ever; who logs never does."""
    read, write = os.pipe()
    dropped = Counter()
    stream = os.fdopen(write, "w")
    handler = QueuedLines(stream, lambda: dropped.update(lines=1))
    logger = logging.getLogger("diffgr2.test.unread")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        done = threading.Event()

        def work() -> None:
            for number in range(12_500):
                logger.warning("%d %s", number, "x" * 200)
            done.set()

        threading.Thread(target=work, daemon=True).start()
        assert done.wait(60), "a log that nobody reads stops who logs"
        assert 2_000 <= dropped["lines"] <= 2_500
        handler.close()
    finally:
        logger.removeHandler(handler)
        seen = b""
        os.set_blocking(read, False)
        end = time.monotonic() + 20
        while seen.count(b"\n") + dropped["lines"] < 12_500 and time.monotonic() < end:
            try:
                seen += os.read(read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
        os.close(read)
    assert seen.startswith(b"0 x")
    assert seen.count(b"\n") + dropped["lines"] == 12_500  # every line is written or counted


# --------------------------------------------------------------------------------------- goodput


class Load:
    """Requests on connections of their own; how they ended, and when the last answer came."""

    def __init__(self, port: int, messages: list[bytes]) -> None:
        self.port, self.messages = port, messages
        self.seen: Counter = Counter()
        self.last = 0.0

    async def one(self, number: int) -> None:
        message = self.messages[number % len(self.messages)]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(message)
            status, headers = head_of(await reader.read(-1))
        finally:
            writer.close()
        self.seen[status] += 1
        if status == 200:
            self.last = time.monotonic()
        assert status != 429 or int(headers["retry-after"]) >= 1

    async def closed(self, clients: int, seconds: float) -> float:
        """Answers a second to clients that each wait for their answer."""
        begun = time.monotonic()

        async def client(number: int) -> None:
            while time.monotonic() - begun < seconds:
                await self.one(number)

        await asyncio.gather(*(client(number) for number in range(clients)))
        return self.seen[200] / (self.last - begun)

    async def open(self, rate: float, seconds: float) -> float:
        """Answers a second to requests that leave at their time, whatever comes back."""
        begun, tasks = time.monotonic(), []
        while (passed := time.monotonic() - begun) < seconds:
            while len(tasks) < passed * rate:
                tasks.append(asyncio.create_task(self.one(len(tasks))))
            await asyncio.sleep(0.002)
        await asyncio.gather(*tasks)
        self.seen["sent"] = len(tasks)
        return self.seen[200] / (self.last - begun)


def goodput(run_dir: Path, reranker: Reranker, seconds: float, rounds: int) -> list[float]:
    """What is left of the best at twelve times the load, by round."""
    bodies = [body_of(reranker, seed, decode={"decoder": "ar"}) for seed in range(24)]
    messages = [request(body, "x-request-timeout-ms: 60000") for body in bodies]
    shares = []
    with Process(run_dir / "bundle", "--waiting", "24", "--running", "8") as server:
        port = int(server.url.rpartition(":")[2])
        asyncio.run(Load(port, messages).closed(8, seconds / 2))
        for _ in range(rounds):
            best = asyncio.run(Load(port, messages).closed(32, seconds))
            load = Load(port, messages)
            kept = asyncio.run(load.open(12 * best, seconds))
            after = asyncio.run(Load(port, messages).closed(32, seconds))
            shares.append(kept / max(best, after))
            print(f"\n{best:.0f} and {after:.0f}/s at best, {kept:.0f}/s at 12x: {dict(load.seen)}")
            assert load.seen["sent"] == load.seen[200] + load.seen[429]
            assert load.seen[429] > 0
    return shares


def test_overload_ends_every_request_in_one_way(run_dir: Path, reranker: Reranker) -> None:
    assert goodput(run_dir, reranker, 0.5, 1)[0] > 0  # how much: benchmarks/serving.py
