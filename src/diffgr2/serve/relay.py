"""The door before several replicas: everything of the server but the ranking itself.

Contract: `make_relay(fleet, …)` is an ASGI app that `wire` serves like any other: connections,
hosts, keys, rates, sizes, slots and deadlines are the door's, as in one server; what passes is
asked of a replica. One that is lost costs the requests that it had in flight a second try on
another, and where that is lost too, or none is there, a 503 with `Retry-After`; what a stream had
begun to tell ends with its error. Metrics are those of all replicas, a reload reaches every one or
none, the logs are kept here. Not here: how replicas are reached and how many there are
(`on_serve`), what they do (`replica`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from diffgr2.errors import ArtifactError
from diffgr2.serve import feedback, many
from diffgr2.serve.app import Shown, add_doors, add_errors, add_health, bare, visited
from diffgr2.serve.door import BATCH_PATH, LIST_PATHS
from diffgr2.serve.keys import Keys
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Limits
from diffgr2.serve.listener import Gone
from diffgr2.serve.ranking import Stream, Visit, error_event
from diffgr2.serve.reading import deadline_of, parse_body
from diffgr2.serve.replica import Call, End, Headers, Reply, shifted, told_to
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import State
from diffgr2.serve.totals import Totals

T = TypeVar("T")

WATCH_S = 1.0  # how often the number of replicas is asked
GRACE_S = 0.25  # a replica may say itself that the deadline has passed
ASK_S = 10.0  # until every replica has told its metrics
PREPARE_S = 600.0  # until every replica has opened its bundles anew

DROPPED = {
    *(b"authorization", b"connection", b"content-length", b"expect", b"keep-alive"),
    *(b"transfer-encoding", b"upgrade", b"x-request-id", b"x-request-timeout-ms"),
}
"""Headers that end at the door, or that it writes anew."""


class ReplicaLostError(Exception):
    """The replica that was asked has gone, or none is there."""


class Fleet(Protocol):
    """The replicas, however they are reached."""

    def start(self) -> Coroutine[Any, Any, None]: ...

    def stop(self) -> Coroutine[Any, Any, None]: ...

    def running(self) -> Coroutine[Any, Any, int]:
        """How many replicas answer now."""
        ...

    def ask(self, call: Call) -> Coroutine[Any, Any, Reply]:
        """One of them; ReplicaLostError where it went away meanwhile."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[tuple[int, Headers] | bytes | End]:
        """Likewise, part by part."""
        ...

    def everyone(self, what: str, timeout_s: float) -> Coroutine[Any, Any, list[Any]]:
        """A method of each `Replica`; what those said that are there to the end."""
        ...


class Gate(State):
    """A state without bundles: the fleet has them."""

    relays = True

    def __init__(self, fleet: Fleet, limits: Limits, keys: Keys, log_to: LogTo | None) -> None:
        super().__init__({}, limits, keys, (), log_to)
        self.fleet, self.totals = fleet, Totals()
        self.replicas, self.lost_at = 0, 0.0  # and when there were last fewer than before
        self._features: set[str] = set()
        self._adding = asyncio.Lock()

    async def ready(self) -> bool:
        if self.draining or not self.started:
            return False
        with suppress(Exception):
            return any(await self.fleet.everyone("ready", self.limits.stall_s + 1.0))
        return False

    async def told(self) -> bytes:
        async with self._adding:
            pairs = await self.fleet.everyone("metrics", ASK_S)
            return self.totals.text(self.metrics.text(), dict(pairs))

    async def reload(self) -> list[str]:
        async with self._exchange:
            keys = await asyncio.to_thread(self.keys.reread)
            said = await self.fleet.everyone("prepare", PREPARE_S)
            wrong = next((one["error"] for one in said if "error" in one), None)
            wrong = wrong or (None if said else "no replica is there")
            wrong = "the server is shutting down" if self.draining else wrong
            if wrong is not None:
                await self.fleet.everyone("drop", ASK_S)
                raise ArtifactError(wrong)
            await self.fleet.everyone("commit", ASK_S)
            self.keys.replace(keys)
            self.metrics.reloads.inc()
            self._features = set()
            return said[0]["names"]

    def features(self) -> set[str]:
        return self._features

    def saw(self, replicas: int) -> None:
        """So many answer now."""
        if replicas < self.replicas:
            self.lost_at = time.monotonic()
        self.replicas = replicas

    async def watch(self) -> None:
        """How many replicas there are, and so how much may be in flight."""
        while True:
            with suppress(Exception):  # one look that fails is no news
                self.saw(await self.fleet.running())
                self.slots.limit = self.limits.in_flight * max(1, self.replicas)
                if not self._features and self.ledger is not None:
                    told = await self.fleet.everyone("features", ASK_S)
                    self._features = {name for names in told for name in names}
            await asyncio.sleep(WATCH_S)


# ------------------------------------------------------------------------------------ asking


def call_of(request: Request, body: bytes, deadline: float) -> Call:
    """A request as a replica is to see it."""
    scope = request.scope
    left_ms = max(1, round((deadline - time.monotonic()) * 1e3))
    caller = scope["state"].get("caller")
    # The default may be longer than what a client may ask for: then it is the replica's too.
    most_ms = request.app.state.shared.limits.max_timeout_s * 1e3
    headers = [(key, value) for key, value in scope["headers"] if key not in DROPPED]
    headers += [
        (b"x-request-id", scope["state"]["request_id"].encode()),
        *([(b"x-request-timeout-ms", str(left_ms).encode())] if left_ms <= most_ms else []),
        *([(b"authorization", told_to(caller))] if caller is not None else []),
        *([(b"content-length", str(len(body)).encode())] if body else []),
    ]
    return Call(scope["method"], scope["path"], scope["query_string"], headers, body)


def lost() -> Problem:
    told = "the replica that had this request has gone"
    return Problem(503, told, headers={"retry-after": "1"})


class Asking:
    """One request under way: its client, its deadline, its second try."""

    def __init__(self, gate: Gate, request: Request, body: bytes, deadline: float) -> None:
        self.gate, self.request, self.body, self.deadline = gate, request, body, deadline
        self.arrived = time.monotonic()
        self._gone: asyncio.Task[None] | None = None

    def _call(self) -> Call:
        return call_of(self.request, self.body, self.deadline)

    async def _left(self) -> None:
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    async def meanwhile(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of it while the client is there and there is time."""
        self._gone = self._gone or asyncio.create_task(self._left())
        working = asyncio.create_task(work)
        left_s = max(0.0, self.deadline - time.monotonic()) + GRACE_S
        try:
            await asyncio.wait(
                {working, self._gone}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
            )
            if working.done():
                return working.result()
            if self._gone.done():
                raise Gone
            raise Problem(504, "the deadline has passed")
        finally:
            if not working.done():
                working.cancel()
                await asyncio.wait({working}, timeout=1.0)

    async def _anybody(self) -> None:
        """A 503 at once where nobody is there to ask."""
        if not self.gate.replicas:
            self.gate.saw(await self.meanwhile(self.gate.fleet.running()))
        if not self.gate.replicas:
            raise lost()

    async def whole(self) -> Reply:
        """The answer of a replica; of another, where the first one is lost."""
        for last in (False, True):
            await self._anybody()
            try:
                return await self.meanwhile(self.gate.fleet.ask(self._call()))
            except ReplicaLostError:
                self.gate.lost_at = time.monotonic()
                if last:
                    raise lost() from None
                self.gate.saw(await self.meanwhile(self.gate.fleet.running()))
            except Problem as problem:
                # Who waited while replicas went had no whole time of its own.
                if problem.status == 504 and self.gate.lost_at >= self.arrived:
                    raise lost() from None
                raise
        raise AssertionError("two tries end in one way or another")

    async def begin(self) -> tuple[int, Headers, AsyncGenerator[bytes | End]]:
        """A stream's status and headers, and what follows."""
        for last in (False, True):
            await self._anybody()
            parts = self.gate.fleet.stream(self._call())
            try:
                first = await self.meanwhile(anext(parts))  # type: ignore[arg-type]
                assert isinstance(first, tuple)
                return *first, parts  # type: ignore[return-value]
            except ReplicaLostError:
                self.gate.lost_at = time.monotonic()
                await parts.aclose()
                if last:
                    raise lost() from None
            except BaseException:
                await parts.aclose()
                raise
        raise AssertionError("two tries end in one way or another")

    async def parts(self, rest: AsyncGenerator[bytes | End], visit: Visit) -> AsyncGenerator[bytes]:
        """The stream's parts as they come."""
        try:
            while True:
                try:
                    one = await self.meanwhile(anext(rest))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return
                except ReplicaLostError:
                    raise lost() from None
                if isinstance(one, End):
                    self.noted(one)
                    if one.outcome not in ("", "ok"):
                        visit.close(one.outcome)
                else:
                    yield one
        finally:
            await rest.aclose()
            self.over()

    def noted(self, end: End) -> None:
        """What the reply brought along, for the logs."""
        state = self.request.scope["state"]
        state["facts"].lists += [shifted(one, self.arrived) for one in end.lists]
        self.request.scope["route"] = SimpleNamespace(path=end.route)
        if self.gate.ledger is not None:
            for line in end.lines:
                self.gate.ledger.note(line)

    def over(self) -> None:
        if self._gone is not None:
            self._gone.cancel()
            self._gone = None


def response_of(status: int, headers: Headers, body: bytes) -> Response:
    """An answer as the replica gave it; its id is the door's to write."""
    response = Response(status_code=status)
    response.body = body
    response.raw_headers = [pair for pair in headers if pair[0] != b"x-request-id"]
    return response


async def ranked(request: Request) -> Response:
    """A ranking request, to a replica."""
    gate: Gate = request.app.state.shared
    batch = request.scope["path"] == BATCH_PATH
    caller = request.scope["state"].get("caller")
    counts = batch and caller is not None and caller.bucket is not None

    def read(body: bytes, limits: Limits) -> tuple[bytes, int]:
        lists = len(many.asks_of(parse_body(body, limits), limits)) if counts else 1
        return body, lists

    async def work(_: State, read: tuple[bytes, int], deadline: float, visit: Visit) -> Response:
        body, lists = read
        if counts and caller is not None:
            caller.bucket.charge(lists - 1)  # the door took one
        asking = Asking(gate, request, body, deadline)
        try:
            if batch or b'"stream"' in body:
                return await _streamed(asking, visit, batch=batch)
            reply = await asking.whole()
        except Problem as problem:
            if problem.status == 503:
                visit.close("failed")
            raise
        finally:
            asking.over()
        asking.noted(reply.end)
        if reply.end.outcome:
            visit.close(reply.end.outcome)
        return response_of(reply.status, reply.headers, reply.body)

    return await visited(request, read, work)


async def _streamed(asking: Asking, visit: Visit, *, batch: bool) -> Response:
    """A stream, or the whole answer where it is none."""
    status, headers, rest = await asking.begin()
    kind = dict(headers).get(b"content-type", b"").decode("latin-1")
    if status == 200 and kind.startswith(("text/event-stream", "application/x-ndjson")):
        told = many.error_line if batch else error_event
        parts = asking.parts(rest, visit)
        return Stream(visit, parts, asking.deadline, [], told, kind)
    body = b"".join([part async for part in asking.parts(rest, visit)])
    return response_of(status, headers, body)


async def passed_on(request: Request) -> Response:
    """Whatever else a replica answers: the page, the description, the models, and what is wrong."""
    gate: Gate = request.app.state.shared
    deadline = deadline_of(request, gate.limits, time.monotonic())
    asking = Asking(gate, request, b"", deadline)
    try:
        reply = await asking.whole()
    except Gone:
        return Response(status_code=499)
    finally:
        asking.over()
    asking.noted(reply.end)
    return response_of(reply.status, reply.headers, reply.body)


# --------------------------------------------------------------------------------------- app


def make_relay(
    fleet: Fleet,
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    shown: Shown | None = None,
    log_to: LogTo | None = None,
) -> FastAPI:
    """See the module's docstring; its lifespan starts and stops the fleet."""
    gate, shown = Gate(fleet, limits or Limits(), keys or Keys(), log_to), shown or Shown()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gate.start()
        await fleet.start()
        gate.saw(await fleet.running())
        watching = asyncio.create_task(gate.watch())
        yield
        gate.draining = True
        watching.cancel()
        await fleet.stop()
        await asyncio.to_thread(gate.stop)

    app = bare(gate, lifespan)
    for path in (*LIST_PATHS, BATCH_PATH):
        app.post(path)(ranked)
    if gate.ledger is not None:
        feedback.add(app, gate)
    add_health(app, gate)
    app.add_route("/{path:path}", passed_on, methods=None)  # type: ignore[arg-type]
    add_errors(app)
    add_doors(app, gate, shown)
    return app
