"""The HTTP application: one ranking handler behind three paths, and what surrounds it.

Contract: `make_app(reranker, …)` returns an ASGI app whose answers are a permutation of the
documents that came in, or one explicit error; every admitted request ends in exactly one outcome
and gives its slot back. A client that leaves, or a deadline that passes, ends the work within one
step. Not here: sockets and signals (`wire`), decoding (`engine`), the page's data (`page`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from diffgr2 import __version__
from diffgr2.errors import ConfigError, DataError
from diffgr2.items.sids import sid_text
from diffgr2.reranker import DuplicateError, RankTask, Reranker
from diffgr2.resolve import UnresolvedError
from diffgr2.serve import page
from diffgr2.serve.door import Door, Receive, Scope, Send
from diffgr2.serve.engine import Committed, Done, Engine, Event, Failed, Job
from diffgr2.serve.limits import Keys, Limits, Slots
from diffgr2.serve.metrics import Metrics
from diffgr2.serve.openapi import describe
from diffgr2.serve.schema import Ask, Problem, answer, event, parse_request, tei_answer

ALIASES = ("diffgr2", "default", "default/not-specified")
"""Model names that always mean the one model that is served."""

RANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
PROBE_EVERY_S = 5.0


class Gone(Exception):  # noqa: N818
    """The client left."""


class State:
    """What the routes share."""

    def __init__(self, reranker: Reranker, limits: Limits, names: tuple[str, ...]) -> None:
        self.reranker, self.limits = reranker, limits
        self.metrics = Metrics()
        self.engine = Engine(reranker, limits, self.metrics)
        self.slots = Slots(limits.in_flight)
        self.names = names or (reranker.name,)
        self.created = int(time.time())
        self.draining = False
        self.started = False
        self._probing: asyncio.Task[bool] | None = None

    async def ready(self) -> bool:
        """Whether a request sent now would be answered: judged by a real forward."""
        engine = self.engine
        if self.draining or not self.started or not engine.alive or engine.stalled:
            return False
        if not engine.bad and time.monotonic() - engine.good_at < PROBE_EVERY_S:
            return True
        if self._probing is None or self._probing.done():
            limit = self.limits.stall_s
            self._probing = asyncio.create_task(asyncio.to_thread(engine.probe, limit))
        return await asyncio.shield(self._probing)


class Listener:
    """A job's events on the event loop, with the deadline and the client's presence."""

    def __init__(self, deadline: float, receive: Receive) -> None:
        self.deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._gone = asyncio.create_task(self._watch(receive))

    def __call__(self, happened: Event) -> None:
        """Called on the engine's thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, happened)
        except RuntimeError:  # the loop has ended: nobody listens any more
            return

    @staticmethod
    async def _watch(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def next(self) -> Event:
        """The next event; Gone or a 504 Problem where there will be none."""
        getting = asyncio.create_task(self._events.get())
        try:
            await asyncio.wait(
                {getting, self._gone},
                timeout=max(0.0, self.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                return getting.result()
            if self._gone.done():
                raise Gone
            raise Problem(504, "the deadline has passed")
        finally:
            getting.cancel()

    def close(self) -> None:
        self._gone.cancel()


# ---------------------------------------------------------------------------- reading a request


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body within its bounds of size, time and type."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "expected content-type application/json")
    if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise Problem(415, "compressed bodies are not accepted")
    too_large = Problem(413, f"body of more than {limits.body_bytes} bytes")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:18]) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.body_s):
            async for part in request.stream():
                size += len(part)
                if size > limits.body_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise Problem(408, f"the body took longer than {limits.body_s:g} s") from None
    return b"".join(parts)


def deadline_of(request: Request, limits: Limits, arrived: float) -> float:
    """When the answer must be there, as monotonic time."""
    given = request.headers.get("x-request-timeout-ms")
    if given is None:
        return arrived + limits.timeout_s
    if not (
        given.isascii() and given.isdigit() and 1 <= int(given[:9]) <= limits.max_timeout_s * 1e3
    ):
        raise Problem(
            400,
            f"x-request-timeout-ms: expected 1 to {limits.max_timeout_s * 1e3:.0f}",
            "x-request-timeout-ms",
        )
    return arrived + int(given) / 1e3


def prepare(state: State, ask: Ask) -> RankTask:
    """Resolve what was asked; runs on a worker thread."""
    if ask.model is not None and ask.model not in (*state.names, *ALIASES):
        raise Problem(404, f"model {ask.model[:80]!r} is not served here", "model", ask.tei)
    names = {"candidates": "texts" if ask.tei else "documents"}
    history = ask.history
    if ask.wish is not None:
        try:
            state.reranker.names.resolve([ask.wish], "history")
            history = [ask.wish]
        except UnresolvedError:
            history = []
            ask.warnings.append("query: none of its words is known, it says nothing")
    try:
        return state.reranker.prepare(
            history,
            ask.documents,
            scores=ask.scores,
            user=ask.user,
            decode=ask.decode,
            reasoning=ask.reasoning,
        )
    except (UnresolvedError, DuplicateError) as error:
        name = names.get(error.field, error.field)
        listed = "; ".join(f"{name}[{index}]: {why}" for index, why in error.problems.items())
        listed = listed.replace("candidates[", f"{name}[")
        raise Problem(422, listed, name, ask.tei, list(error.problems)) from None
    except ConfigError as error:
        raise Problem(422, str(error), "decode", ask.tei) from None
    except DataError as error:
        raise Problem(422, str(error), str(error).partition(":")[0], ask.tei) from None


def facts_of(task: RankTask) -> list[dict[str, str]]:
    """Id and semantic ID of each document that the catalogue knows."""
    reranker, facts = task.reranker, []
    for item, named in zip(task.query.candidates, task.query.named, strict=True):
        if item.number is not None:
            raw = reranker.catalogue.raw_ids[item.number]
            facts.append({"id": raw, "sid": sid_text(item.codes)})
        else:
            given = named.get("id") if isinstance(named, dict) else None
            facts.append({"id": given} if given else {})
    return facts


# ------------------------------------------------------------------------------------- ranking


class Ranking:
    """One admitted request; owns its slot, its job and its listener, and gives all of them back."""

    def __init__(self, state: State, request_id: str, arrived: float, deadline: float) -> None:
        self.state, self.request_id = state, request_id
        self.arrived, self.deadline = arrived, deadline
        self.job: Job | None = None
        self.listener: Listener | None = None
        self._open = True
        state.metrics.in_flight.set(state.slots.taken)

    def close(self, outcome: str) -> None:
        """Exactly once, whatever happened."""
        if not self._open:
            return
        self._open = False
        if self.job is not None and not self.job.ended:
            self.state.engine.cancel(self.job)
        if self.listener is not None:
            self.listener.close()
        self.state.slots.give_back()
        self.state.metrics.in_flight.set(self.state.slots.taken)
        self.state.metrics.requests.labels(outcome).inc()

    async def begin(self, ask: Ask, receive: Receive) -> None:
        """Resolve, then hand over to the engine."""
        self.ask = ask
        self.task = await asyncio.to_thread(prepare, self.state, ask)
        self.listener = Listener(self.deadline, receive)
        self.job = Job(self.task, self.listener, streams=ask.stream)
        self.state.engine.submit(self.job)

    async def event(self) -> Event:
        """The next event of the job."""
        assert self.listener is not None
        happened = await self.listener.next()
        if isinstance(happened, Failed):
            raise happened.error
        return happened

    def answer(self) -> Any:
        """The body of a complete ranking; counts what happened."""
        result = self.task.result(return_reasoning=self.ask.return_reasoning, top_k=self.ask.top_n)
        metrics = self.state.metrics
        for reason in result.failures:
            metrics.invalid.labels(reason).inc()
        metrics.repaired.inc(result.repaired)
        metrics.fallback.inc(result.fallback)
        metrics.prompt_tokens.inc(result.decode["prompt_tokens"])
        metrics.seconds.labels(result.decode["decoder"]).observe(time.monotonic() - self.arrived)
        if self.ask.tei:
            return tei_answer(self.ask, result)
        return answer(
            self.ask,
            result,
            facts_of(self.task),
            model=self.state.names[0],
            request_id=self.request_id,
            created=int(time.time()),
        )

    def timing(self) -> dict[str, str]:
        """TEI's timing headers, in milliseconds."""
        now = time.monotonic()
        job = self.job
        queue = (job.started_at or now) - job.queued_at if job else 0.0
        compute = job.compute_s if job else 0.0
        total = now - self.arrived
        return {
            "x-queue-time": f"{queue * 1e3:.1f}",
            "x-inference-time": f"{compute * 1e3:.1f}",
            "x-total-time": f"{total * 1e3:.1f}",
            "server-timing": f"queue;dur={queue * 1e3:.1f}, inference;dur={compute * 1e3:.1f}",
        }


async def whole(ranking: Ranking) -> Response:
    """Wait for the ranking and answer at once."""
    while not isinstance(await ranking.event(), Done):
        pass
    body = ranking.answer()
    ranking.close("ok")
    return JSONResponse(body, headers=ranking.timing())


class Stream(Response):
    """Server-sent events: what each step committed, then the results."""

    media_type = "text/event-stream"

    def __init__(self, ranking: Ranking) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.ranking = ranking

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        ranking, outcome = self.ranking, "failed"
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self._parts():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            outcome = "ok"
        except (Gone, OSError):
            outcome = "gone"
        except Exception as error:
            problem = problem_of(error)
            outcome = outcome_of(problem)
            body = event("error", problem.body(ranking.request_id)) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            ranking.close(outcome)

    async def _parts(self) -> AsyncIterator[bytes]:
        names = self.ranking.state.reranker.vocab.names
        while True:
            happened = await self.ranking.event()
            if isinstance(happened, Committed):
                yield event(
                    "reasoning.delta",
                    {
                        "window": happened.window,
                        "forward": happened.forward,
                        "compute_ms": round(happened.compute_s * 1e3, 2),
                        "committed": [[at, names[token]] for at, token in happened.tokens],
                    },
                )
            else:
                yield event("results", self.ranking.answer())
                yield b"data: [DONE]\n\n"
                return


def problem_of(error: Exception) -> Problem:
    """Any failure as an error with a status."""
    return error if isinstance(error, Problem) else Problem(500, "the request could not be decoded")


def outcome_of(problem: Problem) -> str:
    named = {504: "timeout", 429: "rejected", 503: "draining"}
    return named.get(problem.status, "bad_request" if problem.status < 500 else "failed")


async def rank(request: Request) -> Response:
    """Rank documents for a shopper (see the OpenAPI description)."""
    state: State = request.app.state.shared
    limits, arrived = state.limits, time.monotonic()
    request_id: str = request.scope["state"]["request_id"]
    try:
        deadline = deadline_of(request, limits, arrived)
        if state.draining:
            raise Problem(503, "the server is shutting down")
        body = await read_body(request, limits)
        if not state.slots.take():
            raise Problem(429, f"{limits.in_flight} requests are in flight already")
    except Problem as problem:
        state.metrics.requests.labels(outcome_of(problem)).inc()
        raise
    ranking = Ranking(state, request_id, arrived, deadline)
    outcome, tei = "failed", False
    try:
        ask = parse_request(body, limits)
        tei = ask.tei
        await ranking.begin(ask, request.receive)
        if ask.stream:
            outcome = ""  # the stream closes the ranking
            return Stream(ranking)
        return await whole(ranking)
    except Gone:
        outcome = "gone"
        return Response(status_code=499)
    except Exception as error:
        problem = problem_of(error)
        problem.tei = problem.tei or tei
        outcome = outcome_of(problem)
        if problem is error:
            raise
        raise problem from error
    finally:
        if outcome:
            ranking.close(outcome)


# --------------------------------------------------------------------------------- other routes


def error_response(request: Request, problem: Problem) -> JSONResponse:
    """The one error shape."""
    headers = {}
    if problem.status in (429, 503):
        headers["retry-after"] = str(request.app.state.shared.limits.retry_after_s)
    if problem.status in (408, 413):
        headers["connection"] = "close"  # the rest of the body is not read
    body = problem.body(request.scope["state"]["request_id"])
    return JSONResponse(body, status_code=problem.status, headers=headers)


def add_errors(app: FastAPI) -> None:
    """Every way to fail ends in the one shape."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return error_response(request, problem_of(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(request, Problem(error.status_code, str(error.detail)))

    async def on_invalid(request: Request, error: Exception) -> Response:
        return error_response(request, Problem(422, "the request's parameters are not valid"))

    async def on_gone(request: Request, error: Exception) -> Response:
        request.app.state.shared.metrics.requests.labels("gone").inc()
        return Response(status_code=499)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(ClientDisconnect, on_gone)


def add_health(app: FastAPI, state: State) -> None:
    """Liveness, readiness, metrics, models."""

    @app.get("/health/live", summary="Whether the process answers")
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/health/ready", summary="Whether a ranking would succeed now: a real forward")
    async def ready() -> dict[str, str]:
        good = await state.ready()
        state.metrics.ready.set(good)
        if not good:
            raise Problem(503, "not ready")
        return {"status": "ready"}

    @app.get("/metrics", summary="Prometheus metrics")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4")

    def card(name: str) -> dict[str, Any]:
        reranker = state.reranker
        return {
            "id": name,
            "object": "model",
            "created": state.created,
            "owned_by": "diffgr2",
            "k": reranker.k,
            "decoders": list(reranker.decoders),
            "recommended": reranker.settings().decoder,
        }

    @app.get("/v1/models", summary="The model that is served")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in state.names]}

    @app.get("/v1/models/{name}", summary="One model", responses={404: {"description": "Unknown"}})
    async def model(name: str) -> dict[str, Any]:
        if name not in (*state.names, *ALIASES):
            raise Problem(404, f"model {name[:80]!r} is not served here", "model")
        return card(name)


def make_app(
    reranker: Reranker,
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    names: tuple[str, ...] = (),
) -> FastAPI:
    """The application; its lifespan starts and stops the engine."""
    limits = limits or Limits()
    state = State(reranker, limits, names)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.engine.start()
        state.started = True
        await state.ready()  # the first forward happens before the first request
        yield
        state.draining = True
        await asyncio.to_thread(state.engine.stop)

    app = FastAPI(
        title="diffgr2", version=__version__, lifespan=lifespan, redoc_url=None, debug=False
    )
    app.state.shared = state
    for path in RANK_PATHS:
        app.post(path, summary="Rank documents for a shopper", name=path)(rank)
    add_health(app, state)
    page.add(app, state.reranker)
    add_errors(app)
    describe(app, reranker)
    app.add_middleware(Door, keys=keys or Keys([]), limits=limits, metrics=state.metrics)  # type: ignore[arg-type]
    return app


Handler = Callable[[Request], Awaitable[Response]]
