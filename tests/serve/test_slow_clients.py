"""Clients that send slowly, or never read: others are served, and every slot and socket comes back.

Each kind of slow client stands for one way to hold a server up; the normal suite opens 100 of them
together, the slow one 1,000.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.limits import Limits
from diffgr2.serve.wire import allow_files
from support.live import Live, body_of, idle, ids
from support.raw import head_of, request, talk

SHORT = Limits(header_s=2.0, body_s=2.0, write_s=2.0, timeout_s=20.0)
ALIVE = request(method="GET", target="/health/live")
DOCS = "/docs/operations"


def connect(port: int, source: str = "127.0.0.1") -> socket.socket:
    """A client that has room for few bytes."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.bind((source, 0))
    connection.connect(("127.0.0.1", port))
    return connection


@contextmanager
def narrow(reranker: Reranker, limits: Limits) -> Iterator[Live]:
    """A server whose sockets take few bytes that nobody reads."""
    with Live(reranker, limits=limits) as server:
        listening = server._server.servers[0].sockets[0]
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield server


def long_stream(reranker: Reranker) -> bytes:
    """A request whose streamed answer no buffer swallows."""
    body = {
        "history": ids(reranker, 0),
        "documents": ids(reranker, *range(100, 190)),
        "decode": {"decoder": "ar"},
        "stream": True,
    }
    return request(body, close=False)


def kinds(reranker: Reranker) -> dict[str, Callable[[int], bytes]]:
    """What each kind sends, by its number, before it does nothing more."""
    body = json.dumps(body_of(reranker, 1, decode={"decoder": "ar"})).encode()
    whole = request(body, close=False)
    page = request(method="GET", target="/openapi.json", close=False)
    coded = request(None, "transfer-encoding: chunked", "content-type: application/json")
    return {
        "silent": lambda number: b"",
        "in the request line": lambda number: b"POST /rer",
        "in the headers": lambda number: whole[: 20 + number % 40],
        "in the body": lambda number: whole[:-1],
        "before a chunk": lambda number: coded + b"5\r\n[1,2,",
        "large and unfinished": lambda number: request(b" " * 1_500_000)[:60_000],
        "answers unread": lambda number: page * 40,
        "closing and unread": lambda number: page * 20 + request(method="GET", target=DOCS),
        "body for nobody": lambda number: ALIVE.replace(
            b"\r\n\r\n", b"\r\ncontent-length: 9\r\n\r\n"
        ),
        "ranking unread": lambda number: whole,
    }


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    return true()


def gone(server: Live, within_s: float) -> float:
    """Seconds until no connection is left."""
    begun = time.monotonic()
    while server._server.server_state.connections:
        assert time.monotonic() - begun < within_s, "connections outlive their time"
        time.sleep(0.02)
    return time.monotonic() - begun


def crowd(reranker: Reranker, count: int) -> None:
    allow_files(2 * count + 500)
    with narrow(reranker, SHORT) as server, ExitStack() as stack:
        messages = list(kinds(reranker).values())
        for number in range(count):
            connection = stack.enter_context(connect(server.port))
            with suppress(OSError):  # cut already
                connection.sendall(messages[number % len(messages)](number))
        waits = []
        for number in range(10):
            begun = time.monotonic()
            assert head_of(talk(server.port, request(body_of(reranker, number))))[0] == 200
            waits.append(time.monotonic() - begun)
        print(f"\n{count} slow clients: others wait {max(waits):.2f} s at most", end=", ")
        assert idle(server.state, 20)
        print(f"all gone after {gone(server, 20):.1f} s more")
        assert server.state.bodies.held == 0


def test_100_slow_clients_hold_nobody_up(reranker: Reranker) -> None:
    crowd(reranker, 100)


@pytest.mark.slow
def test_1000_slow_clients_hold_nobody_up(reranker: Reranker) -> None:
    crowd(reranker, 1000)


def unread_streams(reranker: Reranker, count: int) -> None:
    """More unread streams than slots: they lose their slots long before their deadline."""
    limits = Limits(waiting=0, running=4, write_s=1.0, timeout_s=120.0)
    message = long_stream(reranker)
    with narrow(reranker, limits) as server, ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(server.port)).sendall(message)
        assert until(lambda: server.state.slots.taken > 0)
        begun = time.monotonic()
        assert idle(server.state, 60), "a slot is kept for a client that does not read"
        took = time.monotonic() - begun
        print(f"\nunread streams: slots free after {took:.1f} s")
        assert took < limits.timeout_s / 2
        assert head_of(talk(server.port, request(body_of(reranker, 1))))[0] == 200
        gone(server, 20)
        text = bytes(server.state.metrics.text()).decode()
        assert 'outcome="gone"' in text or 'outcome="timeout"' in text


def test_streams_that_nobody_reads_lose_their_slots(reranker: Reranker) -> None:
    unread_streams(reranker, 4)


@pytest.mark.slow
def test_1000_streams_that_nobody_reads(reranker: Reranker) -> None:
    allow_files(2500)
    unread_streams(reranker, 1000)


def test_an_unread_stream_ends_at_its_deadline(reranker: Reranker) -> None:
    """Where the write deadline is the longer one."""
    message = long_stream(reranker).replace(b"host", b"x-request-timeout-ms: 700\r\nhost", 1)
    with narrow(reranker, Limits(write_s=3.0)) as server, connect(server.port) as connection:
        connection.sendall(message)
        assert until(lambda: server.state.slots.taken > 0)
        assert idle(server.state, 5)
        gone(server, 10)


def test_large_bodies_under_way_leave_room_for_small_ones(reranker: Reranker) -> None:
    limits = Limits(bodies_bytes=4_000_000, body_s=3.0)
    part = request(b" " * 1_900_000)[:1_400_000]
    with Live(reranker, limits=limits) as server, ExitStack() as stack:
        held = [stack.enter_context(connect(server.port)) for _ in range(4)]
        for connection in held:
            connection.settimeout(1.0)
            with suppress(OSError):  # no room
                connection.sendall(part)
        assert until(lambda: server.state.bodies.held > 1_000_000)
        time.sleep(0.3)
        assert server.state.bodies.held <= 3_000_000
        large = talk(server.port, request(b" " * 1_900_000))
        assert head_of(large)[0] == 429
        assert "retry-after" in head_of(large)[1]
        assert head_of(talk(server.port, request(body_of(reranker, 1))))[0] == 200
        time.sleep(limits.body_s)
        assert idle(server.state)
        assert until(lambda: server.state.bodies.held == 0)
        assert head_of(talk(server.port, request(b" " * 1_900_000)))[0] == 400


def test_one_address_cannot_have_every_connection(reranker: Reranker) -> None:
    with (
        Live(reranker, limits=Limits(per_address=8, connections=12)) as server,
        ExitStack() as stack,
    ):
        for _ in range(8):
            stack.enter_context(connect(server.port))
        refused = talk(server.port)
        assert head_of(refused)[0] == 429
        assert b'"message"' in refused
        with connect(server.port, "127.0.0.2") as other:
            other.sendall(ALIVE)
            assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        stack.close()
        gone(server, 10)
        assert head_of(talk(server.port, ALIVE))[0] == 200  # and the count goes down again


def test_a_connection_at_work_is_never_the_one_that_gives_way(reranker: Reranker) -> None:
    """Only idle ones make room, those that idle longest first."""
    with Live(reranker, limits=Limits(connections=4)) as server, ExitStack() as stack:
        working = stack.enter_context(connect(server.port))
        parts = [request(body_of(reranker, 2), close=False), request(method="GET", target=DOCS)]
        slow = [server.state.readers.submit(time.sleep, 1.0) for _ in range(4)]
        working.sendall(b"".join(parts))  # pipelined: at work from the first to the second
        idling = [stack.enter_context(connect(server.port)) for _ in range(12)]
        answer = b""
        while part := working.recv(65536):
            answer += part
        assert answer.count(b"HTTP/1.1 200 ") == 2
        assert all(one.done() for one in slow)
        assert idling[0].recv(1) == b""
