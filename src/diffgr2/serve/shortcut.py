"""The short way through: a plain ranking request from its bytes to its answer's.

Contract: `begun(state, plain, connection)` takes a whole, small request (`plain`) from the event
loop to the engine and its answer back, past HTTP library, framework and reader threads, whose work
would be most of what a small model's answer costs; None where something is wrong or unusual, which
then goes the usual way. The answer is the same, header by header, and so are slots, outcomes,
deadlines, counters and logs. Requests that wait are resolved and their prompts written together, on
the engine's thread. A `Shortcut` also is what a connection asks of the request under way. Not here:
streams, batches and whatever is large (`app`, `reading`), one ranking (`ranking`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from diffgr2.decode.settings import DecodeRequest
from diffgr2.rerank.task import write_together
from diffgr2.serve.door import LIST_PATHS, request_id_of, told
from diffgr2.serve.jobs import Committed, Event, Failed, Job
from diffgr2.serve.keys import Caller
from diffgr2.serve.plain import Plain, caller_of
from diffgr2.serve.ranking import Ranking, Visit, outcome_of, problem_of
from diffgr2.serve.reading import parse_body
from diffgr2.serve.schema import Ask, Problem, parse_request
from diffgr2.serve.state import State
from diffgr2.serve.telemetry import Facts

SMALL = 8_192
"""Bytes of a body that is read on the event loop; with its headers it comes in one read."""

PHRASES = {
    200: b"OK",
    403: b"Forbidden",
    404: b"Not Found",
    422: b"Unprocessable Entity",
    499: b"",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class Connection(Protocol):
    """What the short way asks of a connection."""

    loop: asyncio.AbstractEventLoop
    server_state: Any

    def answered(self, data: bytes, closes: bool) -> None:
        """Write the whole answer."""
        ...


def begun(state: State, plain: Plain, connection: Connection) -> Shortcut | None:
    """See the module's docstring."""
    arrived = time.monotonic()
    limits, wanted = state.limits, plain.headers.get(b"x-request-timeout-ms")
    fits = 0 < len(plain.body) <= min(SMALL, limits.body_bytes)
    if plain.path not in LIST_PATHS or not fits or state.draining or state.relays:
        return None
    if plain.headers.get(b"content-type") != b"application/json":
        return None
    wait_s = limits.timeout_s
    if wanted is not None:
        if not wanted.isdigit() or len(wanted) > 9:
            return None
        wait_s = int(wanted) / 1e3
        if not 0.001 <= wait_s <= limits.max_timeout_s:
            return None
    caller = caller_of(state, plain)
    if caller is None or state.slots.full:
        return None
    try:
        ask = parse_request(parse_body(plain.body, limits), limits)
    except Exception:  # the usual way says what is wrong
        return None
    if ask.stream:
        return None
    return Shortcut(state, plain, connection, caller, ask, arrived, arrived + wait_s)


class Shortcut:
    """See the module's docstring; all but what is said to be of the engine's is the loop's."""

    def __init__(
        self,
        state: State,
        plain: Plain,
        connection: Connection,
        caller: Caller,
        ask: Ask,
        arrived: float,
        deadline: float,
    ) -> None:
        self.state, self.plain, self.connection = state, plain, connection
        self.ask, self.arrived, self.deadline = ask, arrived, deadline
        # What the connection looks at: it may be told to close, and tells that the client left.
        self.response_started = self.response_complete = self.disconnected = False
        self.keep_alive = True
        self.over = False  # nothing more comes of it: answered, failed or gone
        self.facts = Facts(caller.name)
        if caller.name:
            state.metrics.key_requests.labels(caller.name).inc()
        self.request_id = request_id_of(plain.headers.get(b"x-request-id"))
        self.visit = Visit(state, self.facts)
        self.ranking = Ranking(state, self.request_id, arrived, deadline)
        loop = connection.loop
        self._late = loop.call_later(max(0.0, deadline - time.monotonic()), self._time_is_up)
        try:
            self.ranking.open(ask, caller)
        except Problem as problem:
            # What is wrong is told as soon as the connection knows this request.
            loop.call_soon(self._failed, problem)
            return
        self.ranking.engine.order(self)

    # ------------------------------------------------------------------------ the engine's

    def together(self, orders: Sequence[Shortcut]) -> list[Job]:
        """See `engine.Order`."""
        planned = [order for order in orders if not order.over and order._try(order.ranking.plan)]
        # If that fails, each is written by itself, so that only the one that fails does.
        with contextlib.suppress(Exception):
            write_together([order.ranking.task for order in planned])
        jobs: list[Job] = []
        for order in planned:
            if not order.over:
                order._try(partial(order._begin, jobs))
        return jobs

    def _try(self, work: Any) -> bool:
        """Whether it went well; else the request has failed."""
        try:
            work()
        except Exception as error:
            self.fail(error)
            return False
        return True

    def _begin(self, jobs: list[Job]) -> None:
        task = self.ranking.task
        jobs += [self._job(*one) for one in task.pending()]
        if task.complete:  # a list of one needs no decode
            self._ready()

    def _job(self, number: int, wanted: DecodeRequest, *, first: bool = False) -> Job:
        listen = partial(self._heard, number)
        job = Job(wanted, self.ranking.task.settings, listen, first=first, number=number)
        job.queued_at = self.arrived
        self.ranking.jobs.append(job)
        job.cancelled = self.over  # the loop may have looked at the jobs just before
        return job

    def _heard(self, number: int, happened: Event) -> None:
        """A decode has ended."""
        if isinstance(happened, Failed):
            error = happened.error
            self.fail(error if isinstance(error, Exception) else RuntimeError(str(error)))
        elif not isinstance(happened, Committed):
            self._try(lambda: self._took(number, happened.trajectory))

    def _took(self, number: int, trajectory: Any) -> None:
        task = self.ranking.task
        task.take(number, trajectory)
        for one in task.pending():
            self.ranking.engine.submit(self._job(*one, first=True))
        if task.complete:
            self._ready()

    def _ready(self) -> None:
        """The ranking is complete: its answer's body goes to the loop."""
        if not self.over:
            value = self.ranking.answer()
            body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            self.state.post.later(partial(self._answered, body.encode()))

    def fail(self, error: Exception) -> None:
        """Nothing will come of it; also of the loop's."""
        self.state.post(partial(self._failed, error))

    # -------------------------------------------------------------------------- the loop's

    def _answered(self, body: bytes) -> None:
        if not self.over:
            self._end(200, body, "ok", self.ranking.timing())

    def _failed(self, error: Exception) -> None:
        if self.over:
            return
        problem = problem_of(error, self.request_id)
        problem.tei = problem.tei or self.ask.tei
        headers = dict(problem.headers)
        if problem.status == 503:
            headers.setdefault("retry-after", "1")
        value = problem.body(self.request_id)
        body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._end(problem.status, body.encode(), outcome_of(problem), headers)

    def _time_is_up(self) -> None:
        self._failed(Problem(504, "the deadline has passed"))

    @property
    def message_event(self) -> Shortcut:
        """What the connection sets when there is news."""
        return self

    def set(self) -> None:
        """Perhaps the client has left."""
        if self.disconnected and not self.over:
            self._close(499, "gone")

    def _end(self, status: int, body: bytes, outcome: str, headers: dict[str, str]) -> None:
        """Answer, in one piece."""
        closes = self.plain.closes
        lines = [
            b"HTTP/1.1 %d %s" % (status, PHRASES.get(status, b"")),
            *(name + b": " + value for name, value in self.connection.server_state.default_headers),
            *(f"{name}: {value}".encode("latin-1") for name, value in headers.items()),
            b"content-length: %d" % len(body),
            b"content-type: application/json",
            b"cache-control: no-store",
            b"x-request-id: " + self.request_id.encode(),
            *([b"connection: close"] if closes else []),
        ]
        self.response_started = self.response_complete = True
        try:
            self._close(status, outcome)
        finally:  # whatever happens to the log
            answer = b"\r\n".join([*lines, b"", body])
            self.connection.answered(answer, closes or not self.keep_alive)

    def _close(self, status: int, outcome: str) -> None:
        """Give everything back, and tell."""
        self.over = True
        self._late.cancel()
        self.visit.close(outcome, [self.ranking])
        parent, path = self.plain.headers.get(b"traceparent"), self.plain.path
        told(self.state, self.request_id, "POST", path, status, self.arrived, self.facts, parent)
        self.ranking.jobs = []  # which know this, so that nothing waits for the collector of cycles
