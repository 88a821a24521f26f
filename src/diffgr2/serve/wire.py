"""Sockets and signals: uvicorn with bounds on connections and a drain that loses nothing.

Contract: `serve` runs an app until SIGTERM or SIGINT. The first signal makes the server unready at
once and lets what is in flight finish for at most the drain time; a second one ends it now; SIGHUP
reloads keys and bundles. A connection whose headers do not arrive in time is closed, one that
leaves its answer unread is cut, and where no further one fits the longest idle one makes room. A
client that has closed its sending half gets its answer. What is not HTTP gets the one error shape.
Not here: the application (`app`).
"""

import asyncio
import contextlib
import json
import resource
import signal
from collections import Counter
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffgr2.errors import ConfigError
from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import State
from diffgr2.serve.turnaway import turned_away

BACKLOG = 4096
GRACE_S = 0.05  # after the first signal: connections already made become requests
GONE_S = 1.0  # after a client closed its sending half: is it still there?
READ_BYTES = 8_192  # at once from one connection, so that no sender keeps the loop for itself
PIECES = 4_096  # parts of a body that may be tiny


class Counted(h11.Connection):
    """HTTP/1 that refuses a body in very many tiny chunks: each costs as much as a large one."""

    pieces = size = 0

    def next_event(self) -> Any:
        event: Any = super().next_event()
        if isinstance(event, h11.Request):
            self.pieces = self.size = 0
        elif isinstance(event, h11.Data):
            self.pieces += 1
            self.size += len(event.data)
            if self.pieces > PIECES and self.size < 64 * self.pieces:
                raise h11.RemoteProtocolError("a body in too many tiny chunks")
        return event


def protocol_with(limits: Limits, state: State) -> type[H11Protocol]:
    """The HTTP protocol with its bounds, and JSON for what cannot be parsed."""
    idle: dict[H11Protocol, None] = {}  # connections that wait for a request, the longest first
    by_address: Counter[str] = Counter()

    class Bounded(H11Protocol):
        _late: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _asking: asyncio.TimerHandle | None = None
        _closing: asyncio.TimerHandle | None = None
        _half_closed = False
        _address = ""

        # ------------------------------------------------------------------ coming and going

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.max_size = READ_BYTES
            self.conn = Counted(h11.SERVER, limits.header_bytes)
            self._address = self.client[0] if self.client else ""
            by_address[self._address] += 1
            if self.client and by_address[self._address] > limits.per_address:
                told = Problem(429, "too many connections from this address")
                self._refuse("429 Too Many Requests", told)
                return
            if len(self.connections) > limits.connections and not self._make_room():
                self._refuse("503 Service Unavailable", Problem(503, "too many connections"))
                return
            self._wait()

        def _make_room(self) -> bool:
            """Cut the connection that has waited longest without a request."""
            longest = next(iter(idle), None)
            if longest is None:
                return False
            del idle[longest]
            longest.transport.abort()
            return True

        def connection_lost(self, exc: Exception | None) -> None:
            by_address[self._address] -= 1
            if by_address[self._address] <= 0:
                del by_address[self._address]
            idle.pop(self, None)
            for timer in (self._late, self._unread, self._asking, self._closing):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        # ------------------------------------------------------------------ reading

        def data_received(self, data: bytes) -> None:
            fresh = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
            refusal = turned_away(state, data) if fresh else None
            if refusal is not None:
                self._turn_away(refusal)
                return
            super().data_received(data)
            if self._late is not None and self._busy():
                self._late.cancel()  # headers are there; a request has limits of its own
                self._late = None
                idle.pop(self, None)

        def _turn_away(self, refusal: bytes) -> None:
            """Answer without having read; the connection waits for its next request."""
            self.transport.write(refusal)
            if b"\r\nconnection: close\r\n" in refusal:
                self.transport.close()
                self._close_soon()
            else:
                self._unset_keepalive_if_required()
                idle.pop(self, None)
                if self._late is not None:
                    self._late.cancel()
                self._wait()

        def eof_received(self) -> bool:  # type: ignore[override]
            """Keep the connection for the answer if the whole request is there."""
            if not self._whole():
                self._close_soon()
                return False
            self._half_closed = True
            self._asking = self.loop.call_later(GONE_S, self._ask)
            return True

        def _whole(self) -> bool:
            """Whether a request that is there to its end still waits for its answer."""
            ended = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED)
            return self._busy() and ended

        def _ask(self) -> None:
            """Is the client still there? A second interim answer to one that is not fails."""
            knows = self.conn.their_http_version != b"1.0"  # what an interim answer is
            if self._busy() and not self.cycle.response_started:
                if knows:
                    self.transport.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                self._asking = self.loop.call_later(GONE_S, self._ask)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._half_closed and not self._whole():  # else it had sent another before
                self.transport.close()
            if self.transport.is_closing():
                self._close_soon()
            elif self._late is None and not self._busy():
                self._wait()

        def _busy(self) -> bool:
            # A connection that is kept alive still holds the cycle of the request before.
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            idle[self] = None
            self._late = self.loop.call_later(limits.header_s, self._give_up)

        def _give_up(self) -> None:
            self._late = None
            idle.pop(self, None)
            if not self._busy():
                self.transport.abort()

        def _close_soon(self) -> None:
            """A connection that closes stays open while its last answer is not read."""
            if self._closing is None:
                self._closing = self.loop.call_later(limits.write_s, self.transport.abort)

        # ------------------------------------------------------------------ writing

        def pause_writing(self) -> None:
            super().pause_writing()
            self._unread = self.loop.call_later(limits.write_s, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None:
                self._unread.cancel()
                self._unread = None

        def send_400_response(self, msg: str) -> None:
            if len(self.conn.trailing_data[0]) > limits.header_bytes:
                told = Problem(431, f"headers of more than {limits.header_bytes} bytes")
                self._refuse("431 Request Header Fields Too Large", told)
            else:
                self._refuse("400 Bad Request", Problem(400, "not a valid HTTP request"))

        def _refuse(self, status: str, problem: Problem) -> None:
            body = json.dumps(problem.body("none")).encode()
            head = (
                f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            begun = False
            if self._busy():
                begun = self.cycle.response_started
                self.cycle.disconnected = True  # nobody waits for another answer
                self.cycle.message_event.set()
            if not begun and not self.transport.is_closing():
                self.transport.write(head.encode() + body)
            self.transport.close()
            self._close_soon()

    return Bounded


class Server(uvicorn.Server):
    """uvicorn with our drain; see the module's docstring."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._ours = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        loop: asyncio.AbstractEventLoop | None = getattr(self, "_loop", None)
        if self._ours.state.shared.draining:
            self.force_exit = True
            if loop is not None:
                loop.call_soon_threadsafe(self._abort)
            return
        self._ours.state.shared.draining = True
        if loop is None:
            self.should_exit = True
        else:
            loop.call_soon_threadsafe(loop.call_later, GRACE_S, self._exit)

    def _abort(self) -> None:
        """Cut every connection: from Python 3.12 on, a server is not closed before they are."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _exit(self) -> None:
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        with contextlib.suppress(RuntimeError, ValueError):  # tests run servers on other threads
            self._loop.add_signal_handler(signal.SIGHUP, self._ours.state.shared.reload_soon)
        await super().startup(sockets=sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"listening on http://{shown}:{port}", flush=True)


def make_server(app: FastAPI, limits: Limits, *, host: str, port: int) -> Server:
    """A server that is not running yet."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol_with(limits, app.state.shared),
        ws="none",
        loop="asyncio",
        lifespan="on",
        backlog=BACKLOG,
        access_log=False,
        log_config=None,
        server_header=False,
        log_level="error",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(limits.drain_s)),
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    return Server(config, app)


def allow_files(wanted: int) -> None:
    """As many open files as connections need, if the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(app: FastAPI, limits: Limits, *, host: str, port: int) -> bool:
    """Run until a signal ends it; False if a second signal cut the drain short."""
    allow_files(limits.connections + 256)
    server = make_server(app, limits, host=host, port=port)
    try:
        server.run()
    except SystemExit:
        raise ConfigError(f"{host}:{port}: the server could not start there") from None
    finally:
        app.state.shared.stop()  # a thread within torch must not meet the interpreter's end
    return not server.force_exit
