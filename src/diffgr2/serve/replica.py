"""The application without sockets: asked by calls, answered by replies, as one of several replicas.

Contract: a `Replica` runs an app of `make_app`, unchanged. `ask` gives a whole reply, `stream` its
status and headers, then parts, then how it ended. Who calls has been at the door (`relay`), which
says who it is; the reply brings along what the door keeps: what the request was, and impressions
for the log. A call that is cancelled is a client that left. A reload is `prepare` on every
replica, then `commit` on every one, or `drop`. Not here: who asks and how calls travel (`relay`,
`on_serve`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import FastAPI

from diffgr2.errors import Diffgr2Error, first_line
from diffgr2.serve.door import route_of
from diffgr2.serve.keys import ANYBODY, Caller, Keys
from diffgr2.serve.state import Served, State
from diffgr2.serve.telemetry import Facts, Spent

SCHEME = b"Relayed "
AHEAD = 64  # parts of a stream that may wait for the door
LINES = 10_000  # impressions that wait for a reply

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Call:
    """A request that has been at the door."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes


@dataclass(frozen=True)
class End:
    """What is known of a request once it has ended; moments count from its arrival."""

    route: str
    outcome: str
    lists: list[Spent]
    lines: list[dict[str, Any]]  # impressions, of whichever requests


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes
    end: End


def told_to(caller: Caller) -> bytes:
    """A caller as the header that a replica believes."""
    value = {"name": caller.name, "roles": sorted(caller.roles)}
    return SCHEME + json.dumps(value).encode()


class Believed(Keys):
    """The keys of a replica: the door's word."""

    def __bool__(self) -> bool:
        return True  # with no keys at all everybody would be nobody

    def find(self, header: bytes | None) -> Caller | None:
        if header is None or not header.startswith(SCHEME):
            return ANYBODY
        value = json.loads(header.removeprefix(SCHEME))
        return Caller(value["name"], frozenset(value["roles"]))


@dataclass
class Gathered:
    """Impressions that the next replies take along; the log itself is the door's."""

    lines: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=LINES))

    def opened(self, metrics: Any) -> Gathered:
        return self

    def note(self, line: dict[str, Any]) -> None:
        self.lines.append(line)

    def taken(self) -> list[dict[str, Any]]:
        found = []
        with contextlib.suppress(IndexError):
            while True:
                found.append(self.lines.popleft())
        return found

    def close(self) -> None:
        """Nothing is kept here."""


class Replica:
    """See the module's docstring."""

    def __init__(self, app: FastAPI, name: str) -> None:
        self.app, self.name = app, name
        self.state: State = app.state.shared
        self._life: Any = None
        self._fresh: dict[str, Served] = {}

    async def start(self) -> None:
        """On the event loop that will be asked."""
        self._life = self.app.router.lifespan_context(self.app)
        await self._life.__aenter__()

    async def stop(self) -> None:
        if self._life is not None:
            life, self._life = self._life, None
            await life.__aexit__(None, None, None)

    @property
    def healthy(self) -> bool:
        """Whether this process is of use; False: begin another."""
        return all(engine.alive and not engine.stalled for engine in self.state.engines)

    # ----------------------------------------------------------------------------- requests

    async def ask(self, call: Call) -> Reply:
        """The whole answer."""
        parts: list[bytes] = []
        status, headers, end = 500, Headers(), None
        async for one in self.stream(call):
            if isinstance(one, bytes):
                parts.append(one)
            elif isinstance(one, End):
                end = one
            else:
                status, headers = one
        assert end is not None
        return Reply(status, headers, b"".join(parts), end)

    async def stream(self, call: Call) -> AsyncGenerator[tuple[int, Headers] | bytes | End]:
        """(status, headers), then parts, then the `End`."""
        arrived, scope = time.monotonic(), scope_of(call)
        told: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(AHEAD)
        gone, given = asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": call.body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def work() -> None:
            try:
                await self.app(scope, receive, told.put)  # type: ignore[arg-type]
            finally:
                if not gone.is_set():
                    await told.put(None)

        working = asyncio.create_task(work())
        try:
            while (message := await told.get()) is not None:
                if message["type"] == "http.response.start":
                    yield message["status"], [(bytes(k), bytes(v)) for k, v in message["headers"]]
                elif message.get("body"):
                    yield bytes(message["body"])
            await working
            yield self._end(scope, arrived)
        finally:
            gone.set()
            while not working.done():  # it may wait to tell more
                with contextlib.suppress(asyncio.QueueEmpty):
                    told.get_nowait()
                await asyncio.wait({working}, timeout=0.01)

    def _end(self, scope: dict[str, Any], arrived: float) -> End:
        facts: Facts = scope["state"]["facts"]
        lists = [shifted(one, -arrived) for one in facts.lists]
        ledger = self.state.ledger
        lines = ledger.taken() if isinstance(ledger, Gathered) else []
        return End(route_of(scope), facts.outcome, lists, lines)

    # -------------------------------------------------------------------------- all of them

    async def metrics(self) -> tuple[str, bytes]:
        return self.name, self.state.metrics.text()

    async def ready(self) -> bool:
        return await self.state.ready()

    async def features(self) -> list[str]:
        return sorted(self.state.features())

    async def prepare(self) -> dict[str, Any]:
        """Open what now stands on the disk, beside what is served: its names, or what is wrong."""
        await self.drop()
        try:
            self._fresh = await self.state.opened_anew()
        except Exception as error:
            said = str(error) if isinstance(error, Diffgr2Error) else first_line(error)
            return {"error": " ".join(said.split())}
        return {"names": list(self._fresh)}

    async def commit(self) -> None:
        """Put it in place."""
        if self._fresh:
            fresh, self._fresh = self._fresh, {}
            self.state.exchange(fresh)

    async def drop(self) -> None:
        """Forget it."""
        fresh, self._fresh = self._fresh, {}
        for served in fresh.values():
            served.retire()


def shifted(spent: Spent, by: float) -> Spent:
    """The same with its moments moved."""
    started = None if spent.started is None else spent.started + by
    return replace(spent, queued=spent.queued + by, started=started, ended=spent.ended + by)


def scope_of(call: Call) -> dict[str, Any]:
    """What the application asks of a connection."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": call.method,
        "scheme": "http",
        "path": call.path,
        "raw_path": call.path.encode("utf-8", "surrogateescape"),
        "query_string": call.query,
        "root_path": "",
        "headers": call.headers,
        "client": None,
        "server": None,
        "state": {},
    }
