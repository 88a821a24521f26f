"""Sockets and signals: uvicorn with bounds on connections and a drain that loses nothing.

Contract: `serve` runs an app until SIGTERM or SIGINT. The first signal makes the server unready at
once and lets what is in flight finish for at most the drain time; a second one ends it now; SIGHUP
reloads keys and bundles. Not here: one connection (`connection`), the application (`app`).
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from diffgr2.errors import ConfigError
from diffgr2.serve.connection import protocol_with
from diffgr2.serve.limits import Limits

BACKLOG = 4096
GRACE_S = 0.05  # after the first signal: connections already made become requests


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
        proxy_headers=False,  # who asks is told by the connection alone
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


class Refused(logging.Filter):
    """Keeps why an address cannot be had, which uvicorn would log as a line of its own."""

    why = ""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.msg
        if not isinstance(error, OSError):
            return True
        number = error.errno or 0
        self.why = os.strerror(number).lower() if number > 0 else str(error.strerror or error)
        self.why += "; --port 0 takes a free one" * (number == errno.EADDRINUSE)
        return False


def serve(app: FastAPI, limits: Limits, *, host: str, port: int) -> bool:
    """Run until a signal ends it; False if a second signal cut the drain short."""
    allow_files(limits.connections + 256)
    server = make_server(app, limits, host=host, port=port)
    log, refused = logging.getLogger("uvicorn.error"), Refused()
    log.addFilter(refused)
    try:
        server.run()
    except SystemExit:
        why = f" ({refused.why})" if refused.why else ""
        raise ConfigError(f"{host}:{port}: the server could not start there{why}") from None
    finally:
        log.removeFilter(refused)
        app.state.shared.stop()  # a thread within torch must not meet the interpreter's end
    return not server.force_exit
