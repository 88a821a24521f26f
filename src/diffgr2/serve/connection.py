"""One HTTP connection: what it may send, how slowly, how long it may leave an answer unread.

Contract: a connection whose headers do not arrive in time is closed, one that leaves its answer
unread is cut, and where no further one fits the longest idle one makes room. A client that has
closed its sending half gets its answer. What is not HTTP gets the one error shape. Not here: the
server and its signals (`wire`), what a request asks for (`door`).
"""

import asyncio
import json
from collections import Counter
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffgr2.serve.limits import Limits
from diffgr2.serve.plain import Plain, plain_of
from diffgr2.serve.schema import Problem
from diffgr2.serve.shortcut import Shortcut, begun
from diffgr2.serve.state import State
from diffgr2.serve.turnaway import turned_away

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


class Bounded(H11Protocol):
    """One connection; `protocol_with` gives the class what all connections of a server share."""

    limits: Limits
    state: State
    idle: dict[H11Protocol, None]  # connections that wait for a request, the longest first
    by_address: Counter[str]
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _asking: asyncio.TimerHandle | None = None
    _closing: asyncio.TimerHandle | None = None
    _half_closed = False
    _address = ""
    _held = b""  # what came behind a request on the short way

    # ------------------------------------------------------------------ coming and going

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.max_size = READ_BYTES
        self.conn = Counted(h11.SERVER, self.limits.header_bytes)
        self._address = self.client[0] if self.client else ""
        self.by_address[self._address] += 1
        if self.client and self.by_address[self._address] > self.limits.per_address:
            told = Problem(429, "too many connections from this address")
            self._refuse("429 Too Many Requests", told)
            return
        if len(self.connections) > self.limits.connections and not self._make_room():
            self._refuse("503 Service Unavailable", Problem(503, "too many connections"))
            return
        self._wait()

    def _make_room(self) -> bool:
        """Cut the connection that has waited longest without a request."""
        longest = next(iter(self.idle), None)
        if longest is None:
            return False
        del self.idle[longest]
        longest.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.by_address[self._address] -= 1
        if self.by_address[self._address] <= 0:
            del self.by_address[self._address]
        self.idle.pop(self, None)
        for timer in (self._late, self._unread, self._asking, self._closing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    # ------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        if isinstance(self.cycle, Shortcut) and self._busy():
            self._held += data  # until its answer is written
            self.flow.pause_reading()
            return
        fresh = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if fresh and data.startswith(b"\r\n"):  # an empty line before a request is none of it
            data = data[2:]
            if not data:
                return
        # Where answers are left unread, the usual way waits until they are.
        plain = plain_of(data) if fresh and not self.flow.write_paused else None
        if plain is not None and self._short(plain):
            return
        super().data_received(data)
        if self._late is not None and self._busy():
            self._at_work()  # headers are there; a request has limits of its own

    def _at_work(self) -> None:
        """The connection does not wait for a request any more."""
        self._unset_keepalive_if_required()
        self.idle.pop(self, None)
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _short(self, plain: Plain) -> bool:
        """Whether a request takes one of the short ways: out, or through."""
        refusal = turned_away(self.state, plain, self.server_state.default_headers)
        if refusal is not None:
            self._at_work()
            self._written(refusal, closes=plain.closes)
            return True
        cycle = begun(self.state, plain, self)
        if cycle is not None:
            self._at_work()
            self.cycle = cycle  # type: ignore[assignment]
        return cycle is not None

    def answered(self, data: bytes, closes: bool) -> None:
        """The answer to a request on the short way, whole."""
        self.server_state.total_requests += 1
        self.cycle = None  # type: ignore[assignment]  # it holds a bundle
        if self.transport.is_closing():
            return
        held, self._held = self._held, b""
        self._written(data, closes=closes or (self._half_closed and not held))
        if held and not closes:
            self.flow.resume_reading()
            self.data_received(held)

    def _written(self, data: bytes, *, closes: bool) -> None:
        """Write a whole answer; the connection ends, or waits for its next request."""
        self.transport.write(data)
        if closes:
            self.transport.close()
            self._close_soon()
        else:
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
        return self._busy() and (ended or isinstance(self.cycle, Shortcut))

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
        self.idle[self] = None
        self._late = self.loop.call_later(self.limits.header_s, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        self.idle.pop(self, None)
        if not self._busy():
            self.transport.abort()

    def _close_soon(self) -> None:
        """A connection that closes stays open while its last answer is not read."""
        if self._closing is None:
            self._closing = self.loop.call_later(self.limits.write_s, self.transport.abort)

    # ------------------------------------------------------------------ writing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > self.limits.header_bytes:
            told = Problem(431, f"headers of more than {self.limits.header_bytes} bytes")
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


def protocol_with(limits: Limits, state: State) -> type[H11Protocol]:
    """The connections of one server, as uvicorn wants them: a class."""
    shared = {"limits": limits, "state": state, "idle": {}, "by_address": Counter()}
    return type("Connection", (Bounded,), shared)
