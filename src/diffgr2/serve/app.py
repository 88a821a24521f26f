"""The HTTP application: one ranking handler behind three paths, and what surrounds it.

Contract: `make_app(reranker, …)` returns an ASGI app whose answers are a permutation of the
documents that came in, or one explicit error; every admitted request ends in exactly one outcome
and gives its slot back. A client that leaves, or a deadline that passes, ends the work within one
step. Not here: sockets and signals (`wire`), decoding (`engine`), the page's data (`page`).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from diffgr2 import __version__
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import docs, page
from diffgr2.serve.door import Door
from diffgr2.serve.limits import Keys, Limits
from diffgr2.serve.openapi import describe
from diffgr2.serve.ranking import (
    ALIASES,
    Gone,
    Ranking,
    State,
    Stream,
    deadline_of,
    outcome_of,
    problem_of,
    read_body,
    whole,
)
from diffgr2.serve.schema import Problem, parse_request

RANK_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")


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
        problem = problem_of(error, request_id)
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

    # The framework's own viewers load their scripts from a public host; `docs` is ours.
    app = FastAPI(
        title="diffgr2", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.shared = state
    for path in RANK_PATHS:
        app.post(path, summary="Rank documents for a shopper", name=path)(rank)
    add_health(app, state)
    page.add(app, state.reranker)
    docs.add(app)
    add_errors(app)
    describe(app, reranker)
    app.add_middleware(Door, keys=keys or Keys([]), limits=limits, metrics=state.metrics)  # type: ignore[arg-type]
    return app
