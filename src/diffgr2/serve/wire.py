"""Sockets and signals: uvicorn with bounds on connections and a drain that loses nothing.

Contract: `serve` runs an app until SIGTERM or SIGINT. The first signal makes the server unready at
once and lets what is in flight finish for at most the drain time; a second one ends it now. A
connection whose headers do not arrive in time is closed, and what is not HTTP gets the one error
shape. Not here: the application (`app`).
"""

import asyncio
import json
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from diffgr2.errors import ConfigError
from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Problem

BACKLOG = 1024
GRACE_S = 0.05  # after the first signal: connections already made become requests


def protocol_with(limits: Limits) -> type[H11Protocol]:
    """The HTTP protocol with a time limit on headers and JSON for what cannot be parsed."""

    class Bounded(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._refuse("503 Service Unavailable", Problem(503, "too many connections"))
            else:
                self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._late is not None and self._busy():
                self._late.cancel()  # headers are there; a request has limits of its own
                self._late = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._late is None and not self.transport.is_closing():
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._late is not None:
                self._late.cancel()
            super().connection_lost(exc)

        def _busy(self) -> bool:
            # A connection that is kept alive still holds the cycle of the request before.
            return self.cycle is not None and not self.cycle.response_complete

        def _wait(self) -> None:
            self._late = self.loop.call_later(limits.header_s, self._give_up)

        def _give_up(self) -> None:
            self._late = None
            if not self._busy() and not self.transport.is_closing():
                self.transport.close()

        def send_400_response(self, msg: str) -> None:
            self._refuse("400 Bad Request", Problem(400, "not a valid HTTP request"))

        def _refuse(self, status: str, problem: Problem) -> None:
            body = json.dumps(problem.body("none")).encode()
            head = (
                f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            if not self.transport.is_closing():
                self.transport.write(head.encode() + body)
            self.transport.close()

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
        http=protocol_with(limits),
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        access_log=False,
        server_header=False,
        log_level="error",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(limits.drain_s)),
        h11_max_incomplete_event_size=limits.header_bytes,
    )
    return Server(config, app)


def serve(app: FastAPI, limits: Limits, *, host: str, port: int) -> bool:
    """Run until a signal ends it; False if a second signal cut the drain short."""
    server = make_server(app, limits, host=host, port=port)
    try:
        server.run()
    except SystemExit:
        raise ConfigError(f"{host}:{port}: the server could not start there") from None
    finally:
        app.state.shared.engine.stop()  # a thread within torch must not meet the interpreter's end
    return not server.force_exit
