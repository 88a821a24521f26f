"""One ranking request from body to answer: admission's slot, its job, its listener, its end.

Contract: a `Ranking` owns a slot and a job and gives both back exactly once, with one outcome,
however the request ends; `Listener` brings the engine's events to the event loop together with the
deadline and the client's presence. Not here: routes (`app`), decoding (`engine`).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import ConfigError, DataError
from diffgr2.items.sids import sid_text
from diffgr2.rerank.names import ListProblem
from diffgr2.rerank.query import wished
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.task import RankTask
from diffgr2.serve.door import Receive, Scope, Send
from diffgr2.serve.engine import Committed, Engine, Event, Failed, Job
from diffgr2.serve.limits import Limits, Slots
from diffgr2.serve.schema import Ask, Problem, answer, event, tei_answer
from diffgr2.serve.telemetry import Metrics

log = logging.getLogger("diffgr2.serve")

ALIASES = ("diffgr2", "default", "default/not-specified")
"""Model names that always mean the one model that is served."""

PROBE_EVERY_S = 5.0


class Gone(Exception):  # noqa: N818
    """The client left."""


class State:
    """What the routes share."""

    def __init__(self, reranker: Reranker, limits: Limits, names: tuple[str, ...]) -> None:
        self.reranker, self.limits = reranker, limits
        self.metrics = Metrics()
        probe = DecodeRequest([reranker.vocab.end_id])
        tiny = reranker.settings({"decoder": "ar", "max_tokens": 1})
        self.engine = Engine(reranker.model, (probe, tiny), limits, self.metrics)
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
        history = wished(state.reranker.names, ask.wish)
        if history is None:
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
    except ListProblem as error:
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
    world, facts = task.world, []
    for item, named in zip(task.query.candidates, task.query.named, strict=True):
        if item.number is not None:
            raw = world.catalogue.raw_ids[item.number]
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
        self.jobs: list[Job] = []  # one a window
        self.listener: Listener | None = None
        self._open = True
        state.metrics.in_flight.set(state.slots.taken)

    def close(self, outcome: str) -> None:
        """Exactly once, whatever happened."""
        if not self._open:
            return
        self._open = False
        if self.jobs and not self.jobs[-1].ended:
            self.state.engine.cancel(self.jobs[-1])
        if self.listener is not None:
            self.listener.close()
        self.state.slots.give_back()
        self.state.metrics.in_flight.set(self.state.slots.taken)
        self.state.metrics.requests.labels(outcome).inc()

    async def begin(self, ask: Ask, receive: Receive) -> None:
        """Resolve, then hand the first window over to the engine."""
        self.ask = ask
        self.task = await asyncio.to_thread(prepare, self.state, ask)
        self.listener = Listener(self.deadline, receive)
        self._submit(await asyncio.to_thread(self.task.window))

    def _submit(self, wanted: DecodeRequest | None) -> None:
        """One window to the engine; none where a list of one needs no decode."""
        if wanted is not None:
            later, streams = bool(self.jobs), self.ask.stream
            job = Job(wanted, self.task.settings, self.listener, streams, first=later)  # type: ignore[arg-type]
            self.jobs.append(job)
            self.state.engine.submit(job)

    async def steps(self) -> AsyncIterator[Committed]:
        """What each forward committed, window after window; ends when the ranking is complete.

        Answers are read and prompts written here, on worker threads: the engine only decodes.
        """
        assert self.listener is not None
        under_way = bool(self.jobs)
        while under_way:
            happened = await self.listener.next()
            if isinstance(happened, Failed):
                raise happened.error
            if isinstance(happened, Committed):
                yield happened
                continue
            await asyncio.to_thread(self.task.take, happened.trajectory)
            wanted = await asyncio.to_thread(self.task.window)
            self._submit(wanted)
            under_way = wanted is not None

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
        waited = [(job.started_at or now) - job.queued_at for job in self.jobs[:1]]
        queue, compute = sum(waited), sum(job.compute_s for job in self.jobs)
        total = now - self.arrived
        return {
            "x-queue-time": f"{queue * 1e3:.1f}",
            "x-inference-time": f"{compute * 1e3:.1f}",
            "x-total-time": f"{total * 1e3:.1f}",
            "server-timing": f"queue;dur={queue * 1e3:.1f}, inference;dur={compute * 1e3:.1f}",
        }


async def whole(ranking: Ranking) -> Response:
    """Wait for the ranking and answer at once."""
    async for _ in ranking.steps():
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
            problem = problem_of(error, ranking.request_id)
            outcome = outcome_of(problem)
            body = event("error", problem.body(ranking.request_id)) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": body, "more_body": False})
        finally:
            ranking.close(outcome)

    async def _parts(self) -> AsyncIterator[bytes]:
        names = self.ranking.state.reranker.vocab.names
        ranking, before_s, window = self.ranking, 0.0, 0
        async for step in ranking.steps():
            if window != len(ranking.jobs) - 1:
                before_s += ranking.jobs[window].compute_s
                window += 1
            value = {
                "window": window,
                "forward": step.forward,
                "compute_ms": round((before_s + step.compute_s) * 1e3, 2),
                "committed": [[at, names[token]] for at, token in step.tokens],
            }
            yield event("reasoning.delta", value)
        yield event("results", ranking.answer())
        yield b"data: [DONE]\n\n"


def problem_of(error: Exception, request_id: str = "") -> Problem:
    """Any failure as an error with a status; what nobody caused is logged with its id."""
    if isinstance(error, Problem):
        return error
    log.error("request %s failed", request_id, exc_info=error)
    return Problem(500, "the request could not be decoded")


def outcome_of(problem: Problem) -> str:
    named = {504: "timeout", 429: "rejected", 503: "draining"}
    return named.get(problem.status, "bad_request" if problem.status < 500 else "failed")
