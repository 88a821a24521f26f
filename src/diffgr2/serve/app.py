"""The HTTP application: ranking routes and what surrounds them.

Contract: `make_app(rerankers, …)` returns an ASGI app whose answers are a permutation of the
documents that came in, or one explicit error; every admitted request ends in exactly one outcome
and gives its slot back. A client that leaves, or a deadline that passes, ends the work within one
step. Not here: sockets and signals (`wire`), decoding (`engine`), the page's data (`page`).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from diffgr2 import __version__
from diffgr2.errors import Diffgr2Error
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import docs, feedback, many, page
from diffgr2.serve.door import BATCH_PATH, LIST_PATHS, Door
from diffgr2.serve.keys import Keys
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Limits
from diffgr2.serve.listener import Gone
from diffgr2.serve.openapi import describe
from diffgr2.serve.ranking import (
    Ranking,
    Stream,
    Visit,
    events_of,
    outcome_of,
    problem_of,
    whole,
)
from diffgr2.serve.reading import deadline_of, parse_body, read_body
from diffgr2.serve.schema import Ask, Problem, parse_request
from diffgr2.serve.state import Served, State


@dataclass(frozen=True)
class Shown:
    """What besides ranking is there."""

    page: bool = True
    docs: bool = True
    cors: tuple[str, ...] = ()  # origins whose pages may ask


T = TypeVar("T")


async def visited(
    request: Request,
    read: Callable[[bytes, Limits], T],
    work: Callable[[State, T, float, Visit], Awaitable[Response]],
) -> Response:
    """A request's way in: deadline, body, slot, parsing; and its way out, whatever happened.

    What `read` makes of the body is all that is kept of it.
    """
    state: State = request.app.state.shared
    request_id: str = request.scope["state"]["request_id"]
    visit, outcome, asked = None, "failed", None
    try:
        deadline = deadline_of(request, state.limits, time.monotonic())
        if state.draining:
            raise Problem(503, "the server is shutting down", headers={"retry-after": "1"})
        async with read_body(request, state, deadline) as body:
            visit = Visit(state, request.scope["state"]["facts"])
            asked = await state.aside(deadline, read, body, state.limits)
        del body
        answer = await work(state, asked, deadline, visit)
        outcome = "" if isinstance(answer, Stream) else "ok"  # a stream closes its visit itself
        return answer
    except (Gone, ClientDisconnect):
        outcome = "gone"
        return Response(status_code=499)
    except Exception as error:
        problem = problem_of(error, request_id)
        problem.tei = problem.tei or (isinstance(asked, Ask) and asked.tei)
        outcome = outcome_of(problem)
        if problem is error:
            raise
        raise problem from error
    finally:
        if visit is not None and outcome:
            visit.close(outcome)
        elif visit is None:
            request.scope["state"]["facts"].outcome = outcome
            state.metrics.requests.labels(outcome).inc()


async def rank(request: Request) -> Response:
    """Rank documents for a shopper (see the OpenAPI description)."""
    scope, arrived = request.scope["state"], time.monotonic()

    def read(body: bytes, limits: Limits) -> Ask:
        return parse_request(parse_body(body, limits), limits)

    async def work(state: State, ask: Ask, deadline: float, visit: Visit) -> Response:
        ranking = Ranking(state, scope["request_id"], arrived, deadline)
        streams = False
        try:
            await ranking.begin(ask, scope["caller"], request.receive)
            if ask.stream:
                streams = True
                return Stream(visit, events_of(ranking), deadline, [ranking])
            return await whole(ranking)
        finally:
            if not streams:
                visit.note(ranking)

    return await visited(request, read, work)


async def rank_batch(request: Request) -> Response:
    """Rank many lists of one body; answers come as JSON lines, in the order in which they end."""
    scope, arrived = request.scope["state"], time.monotonic()

    def read(body: bytes, limits: Limits) -> many.Asks:
        return many.asks_of(parse_body(body, limits), limits)

    async def work(state: State, asks: many.Asks, deadline: float, visit: Visit) -> Response:
        bucket = scope["caller"].bucket
        if bucket is not None:
            bucket.charge(len(asks) - 1)  # the door took one
        request_id = scope["request_id"]
        rankings = [Ranking(state, request_id, arrived, deadline, n) for n in range(len(asks))]
        lines = many.lines_of(asks, rankings, scope["caller"], request.receive)
        return Stream(visit, lines, deadline, rankings, many.error_line, "application/x-ndjson")

    return await visited(request, read, work)


# --------------------------------------------------------------------------------- other routes


def error_response(request: Request, problem: Problem) -> JSONResponse:
    """The one error shape."""
    headers = dict(problem.headers)
    if problem.status == 503:
        headers.setdefault("retry-after", "1")
    body = problem.body(request.scope["state"]["request_id"])
    return JSONResponse(body, status_code=problem.status, headers=headers)


def add_errors(app: FastAPI) -> None:
    """Every way to fail ends in the one shape."""

    async def on_problem(request: Request, error: Exception) -> Response:
        return error_response(request, problem_of(error))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        problem = Problem(error.status_code, str(error.detail))
        if error.status_code == 405:
            methods = (error.headers or {}).get("Allow", "")
            problem.headers["allow"] = methods.replace("GET", "GET, HEAD")
        return error_response(request, problem)

    async def on_invalid(request: Request, error: Exception) -> Response:
        return error_response(request, Problem(422, "the request's parameters are not valid"))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)


def add_health(app: FastAPI, state: State) -> None:
    """Liveness, readiness, metrics, reload."""

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
        return Response(await state.told(), media_type="text/plain; version=0.0.4")

    @app.post("/admin/reload", summary="Exchange keys and bundles for what now stands on disk")
    async def reload() -> dict[str, Any]:
        try:
            return {"reloaded": await state.reload()}
        except Diffgr2Error as error:
            raise Problem(409, f"nothing was exchanged: {' '.join(str(error).split())}") from None


def add_models(app: FastAPI, state: State) -> None:
    """What is served."""

    @app.get("/v1/models", summary="The bundles that are served, and what a client may send")
    async def models() -> dict[str, Any]:
        named = dict.fromkeys(state.names, state.first) | state.served
        return {"object": "list", "data": [card(state, *pair) for pair in named.items()]}

    @app.get("/v1/models/{name}", summary="One model", responses={404: {"description": "Unknown"}})
    async def model(name: str) -> dict[str, Any]:
        served = state.find(name)
        if served is None:
            raise Problem(404, f"model {name[:80]!r} is not served here", "model")
        return card(state, name, served)


def card(state: State, name: str, served: Served) -> dict[str, Any]:
    """A model for `/v1/models`."""
    reranker, limits = served.reranker, state.limits
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "diffgr2",
        "k": reranker.k,
        "k_max": reranker.k_max,
        "decoders": list(reranker.decoders),
        "recommended": reranker.ways().settings.decoder,
        "answers": list(reranker.answers),
        "limits": {
            "documents": limits.candidates,
            "shown": limits.shown,
            "history": limits.history,
            "text": limits.text,
            "batch": limits.batch,
            "rules": limits.rules,
            "events": limits.events,
            "body_bytes": limits.body_bytes,
            "timeout_ms": [1, round(limits.max_timeout_s * 1e3)],
            "default_timeout_ms": round(limits.timeout_s * 1e3),
        },
    }


def add_doors(app: FastAPI, state: State, shown: Shown) -> None:
    """What stands before every route."""
    app.add_middleware(Door, state=state)  # type: ignore[arg-type]
    if shown.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(shown.cors),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-request-id", "x-request-timeout-ms"],
            expose_headers=["x-request-id", "retry-after"],
        )


def bare(state: State, lifespan: Any, openapi_url: str | None = None) -> FastAPI:
    """An application without routes."""
    # The framework's own viewers load their scripts from a public host; `docs` is ours.
    app = FastAPI(
        title="diffgr2",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=openapi_url,
    )
    app.state.shared = state
    return app


def make_app(
    rerankers: Reranker | Mapping[str, Reranker],
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    names: tuple[str, ...] = (),
    shown: Shown | None = None,
    log_to: LogTo | None = None,
) -> FastAPI:
    """The application; its lifespan starts and stops the engines. `names` mean the first bundle."""
    if isinstance(rerankers, Reranker):
        rerankers = {names[0] if names else rerankers.name: rerankers}
    shown = shown or Shown()
    state = State(rerankers, limits or Limits(), keys or Keys(), names, log_to)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.start()
        await state.ready()  # the first forward happens before the first request
        yield
        state.draining = True
        await asyncio.to_thread(state.stop)

    app = bare(state, lifespan, "/openapi.json" if shown.docs else None)
    for path in LIST_PATHS:
        app.post(path, summary="Rank documents for a shopper", name=path)(rank)
    app.post(BATCH_PATH, summary="Rank many lists of one body")(rank_batch)
    feedback.add(app, state)
    add_health(app, state)
    add_models(app, state)
    if shown.page or shown.docs:
        page.add_files(app)
    if shown.page:
        page.add(app, state, docs=shown.docs)
    if shown.docs:
        docs.add(app)
        describe(app, state)
    add_errors(app)
    add_doors(app, state, shown)
    return app
