"""Raw bytes on the socket: broken HTTP, slow senders, half-closed and over-size messages."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.limits import Limits
from support.live import Live, body_of, idle
from support.raw import talk

LIMITS = Limits(header_s=1.0, body_s=1.0, body_bytes=20_000)


def good(reranker: Reranker, seed: int = 1) -> bytes:
    data = json.dumps(body_of(reranker, seed, decode={"decoder": "verify"})).encode()
    head = (
        "POST /rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def mutations(base: bytes, rng: random.Random) -> bytes:
    """One broken relative of a good message."""
    data = bytearray(base)
    kind = rng.randrange(12)
    if kind == 0:  # flip some bits
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:  # cut
        del data[rng.randrange(len(data)) :]
    elif kind == 2:  # insert noise
        at = rng.randrange(len(data))
        data[at:at] = rng.randbytes(rng.randrange(1, 60))
    elif kind == 3:  # nothing but noise
        data = bytearray(rng.randbytes(rng.randrange(1, 400)))
    elif kind == 4:  # another method or version
        words = [b"GET", b"BREW", b"", b"\x00", b"POST" * 50, b"PRI * HTTP/2.0\r\n"]
        data = data.replace(b"POST", rng.choice(words), 1)
    elif kind == 5:
        versions = [b"HTTP/9.9", b"HTTP/1.0", b"http/1.1", b"HTTP/", b"HTTP/1.1 x"]
        data = data.replace(b"HTTP/1.1", rng.choice(versions), 1)
    elif kind == 6:  # lengths that lie
        length = rng.choice([b"-1", b"0", b"1e9", b"99999999999999999999", b"abc", b"5, 6"])
        start = data.index(b"Content-Length: ") + 16
        data[start : data.index(b"\r\n", start)] = length
    elif kind == 7:  # chunked and broken
        head, body = data.split(b"\r\n\r\n", 1)
        head = head.replace(b"Content-Length: ", b"X-L: ") + b"\r\nTransfer-Encoding: chunked"
        sizes = [b"%x" % len(body), b"zz", b"ffffffffffffffff", b"-5", b"", b"%x" % (len(body) + 9)]
        data = bytearray(head + b"\r\n\r\n" + rng.choice(sizes) + b"\r\n" + body + b"\r\n0\r\n\r\n")
    elif kind == 8:  # many or long headers
        n = rng.choice([257, 300, 1000])
        extra = b"".join(b"x-%d: y\r\n" % i for i in range(n))
        if rng.random() < 0.3:
            extra = b"x-long: " + b"y" * rng.choice([9_000, 70_000, 200_000]) + b"\r\n"
        data = data.replace(b"Host", extra + b"Host", 1)
    elif kind == 9:  # two lengths, smuggling
        more = rng.choice(
            [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: y\r\n"]
        )
        data = data.replace(b"Host", more + b"Host", 1)
    elif kind == 10:  # broken lines
        data = data.replace(b"\r\n", rng.choice([b"\n", b"\r", b"\r\n ", b"\x00\r\n"]), 1)
    else:  # pipelined, or a target that is none
        targets = [b"/rerank?" + b"a" * 5000, b"*", b"http://x/rerank", b"/\xff\xfe", b"//", b"x"]
        data = data.replace(b"/rerank", rng.choice(targets), 1)
    return bytes(data)


async def send(port: int, data: bytes, rng: random.Random) -> str:
    """Send, half close, read; the status line's code or why there is none."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in [data] if rng.random() < 0.8 else [data[:50], data[50:]]:
            writer.write(part)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(30):
            answer = await reader.read(65536)
        writer.close()
        return answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed"
    except (ConnectionError, BrokenPipeError):
        return "reset"


async def fuzz(server: Live, base: bytes, count: int, seed: int) -> Counter:
    seen: Counter = Counter()
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        rng = random.Random(seed * 1_000_003 + number)
        async with gate:
            seen[await send(server.port, mutations(base, rng), rng)] += 1

    await asyncio.gather(*(one(number) for number in range(count)))
    return seen


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled(wanted: int, timeout_s: float = 20.0) -> int:
    """Descriptors once closed connections are gone."""
    end = time.monotonic() + timeout_s
    while descriptors() > wanted and time.monotonic() < end:
        time.sleep(0.05)
    return descriptors()


def run_fuzz(reranker: Reranker, count: int) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    with Live(reranker, limits=LIMITS) as server:
        base = good(reranker)
        rng = random.Random(0)
        assert asyncio.run(send(server.port, base, rng)) in ("200", "499", "closed")
        before = settled(0, 0.5)
        seen = asyncio.run(fuzz(server, base, count, 7))
        print(f"\nraw messages: {dict(sorted(seen.items()))}")
        assert sum(seen.values()) == count
        assert not [code for code in seen if code.startswith("5") and code != "505"]
        assert seen["400"] > count / 20
        assert idle(server.state)
        assert settled(before) <= before
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
            body = body_of(reranker, 1, decode={"decoder": "verify"})
            assert client.post("/rerank", json=body).status_code == 200


def test_broken_messages_crash_nothing_and_leak_nothing(reranker: Reranker) -> None:
    run_fuzz(reranker, 200)


@pytest.mark.slow
def test_5000_broken_messages(reranker: Reranker) -> None:
    run_fuzz(reranker, 5000)


def test_bounds_on_connections_are_kept(reranker: Reranker) -> None:
    base = good(reranker)
    with Live(reranker, limits=LIMITS) as server:
        many = b"".join(b"x-%d: y\r\n" % i for i in range(257))
        answer = talk(server.port, base.replace(b"Host", many + b"Connection: close\r\nHost", 1))
        assert answer.startswith(b"HTTP/1.1 431")
        assert b'"type": "headers_too_large"' in answer
        assert talk(server.port, b"POST /rer") == b""  # headers that never come
        assert talk(server.port) == b""  # nor anything at all
        begun = time.monotonic()  # nor those of a second request on the same connection
        alive = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        assert talk(server.port, alive, b"POST /rer", pause=0.2).count(b"HTTP/1.1 ") == 1
        unread = alive.replace(b"\r\n\r\n", b"\r\nContent-Length: 9000\r\n\r\n")
        assert talk(server.port, unread, *[b" "] * 3, pause=0.2).count(b"HTTP/1.1 ") == 1
        assert time.monotonic() - begun < 20
        started = talk(server.port, base[:-5])  # a body that never comes
        assert started.startswith(b"HTTP/1.1 408")
        assert talk(server.port, b"hello\r\n\r\n").startswith(b"HTTP/1.1 400")
        head = base.split(b"\r\n\r\n")[0].replace(b"Content-Length: ", b"X-L: ")
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        chunked = head + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert talk(server.port, chunked, *[chunk] * 6).startswith(b"HTTP/1.1 413")
        assert idle(server.state)


def test_of_too_many_idle_connections_the_longest_idle_gives_way(reranker: Reranker) -> None:
    with Live(reranker, limits=Limits(connections=8)) as server:
        held = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(8)]
        time.sleep(0.2)
        alive = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert talk(server.port, alive).startswith(b"HTTP/1.1 200")
        held[0].settimeout(5)
        assert held[0].recv(1) == b""
        for connection in held:
            connection.close()
        with server.client() as client:
            for _ in range(200):
                try:
                    if client.get("/health/live").status_code == 200:
                        break
                except OSError:
                    pass
                time.sleep(0.02)
            assert client.get("/health/live").status_code == 200
