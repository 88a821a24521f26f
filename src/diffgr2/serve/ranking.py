"""One ranking from what was asked to the answer: its slot, its bundle, its jobs, its end.

Contract: a `Visit` owns a slot and gives it back exactly once, with one outcome, however the
request ends; a `Ranking` holds one bundle and its jobs; `Listener` brings the engine's events to
the event loop together with the deadline and the client's presence. What takes time (resolving
items, prompts, answers) runs on reader threads within the deadline. Not here: routes (`app`),
bodies (`reading`), decoding (`engine`).
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse, Response

from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import nearest
from diffgr2.serve.asked import facts_of, named_by, prepare
from diffgr2.serve.door import Receive, Scope, Send
from diffgr2.serve.impressions import impression_of
from diffgr2.serve.jobs import Committed, Failed, Job
from diffgr2.serve.keys import Caller
from diffgr2.serve.listener import Gone, Listener
from diffgr2.serve.replies import answer, event, tei_answer
from diffgr2.serve.schema import Ask, Problem
from diffgr2.serve.state import Served, State
from diffgr2.serve.telemetry import Facts, Spent
from diffgr2.types import Trajectory

HEADER_MOST = 4_096  # characters of one header's value

log = logging.getLogger("diffgr2.serve")


class Ranking:
    """One list on its way through a bundle; gives back the bundle, its job and its listener."""

    def __init__(
        self,
        state: State,
        request_id: str,
        arrived: float,
        deadline: float,
        number: int | None = None,  # of a batch's lists
    ) -> None:
        self.state, self.request_id = state, request_id
        self.list_id = request_id if number is None else f"{request_id}.{number}"
        self.arrived, self.deadline = arrived, deadline
        self.served: Served | None = None
        self.jobs: list[Job] = []  # one a decode, by number
        self.listener: Listener | None = None
        self.key = ""  # the caller's name
        self.warnings: list[str] = []  # of the answer
        self.ended: float | None = None

    def close(self) -> None:
        """Give everything back; may be called again."""
        self.ended = self.ended or time.monotonic()
        for job in self.jobs:
            if not job.ended:
                self.engine.cancel(job)
        if self.listener is not None:
            self.listener.close()
        if self.served is not None:
            self.served.let_go()
            self.served = None

    def open(self, ask: Ask, caller: Caller) -> None:
        """Find the bundle and hold it; a Problem where the caller may not ask this."""
        self.ask, self.key = ask, caller.name
        served = self.state.find(ask.model)
        if served is None:
            named = ", ".join(list(self.state.served)[:8])
            told = (
                f"model {(ask.model or '')[:80]!r} is not served here (served: {named}; see --name)"
            )
            told += nearest(ask.model or "", self.state.served)
            raise Problem(404, told, "model")
        # Before any look-up, so that the answer says nothing about who exists.
        if ask.user is not None and not (caller.may("shoppers") or served.simulated):
            raise Problem(
                403,
                "user_id: looking up shoppers needs the role shoppers"
                " (or a bundle of simulated shoppers)",
                "user_id",
            )
        self.served, self.engine = served.hold(), served.engine

    def plan(self) -> None:
        """Resolve what was asked; on any thread."""
        assert self.served is not None
        self.task = prepare(self.served.reranker, self.ask, self.state.limits)

    async def begin(self, ask: Ask, caller: Caller, receive: Receive) -> None:
        """Resolve, then hand over to the engine what can be decoded now."""
        self.open(ask, caller)
        wanted = await self.state.aside(self.deadline, self._planned)
        self.listener = Listener(self.deadline, receive, self.state.post)
        self._submit(wanted)

    def _planned(self) -> list[tuple[int, DecodeRequest]]:
        self.plan()
        return self.task.pending()

    def _submit(self, wanted: Sequence[tuple[int, DecodeRequest]]) -> None:
        """Decodes to the engine; none where a list of one needs no decode."""
        assert self.listener is not None
        later = bool(self.jobs)
        fresh = [
            Job(
                request,
                self.task.settings,
                partial(self.listener, number),
                self.ask.stream,
                first=later,
                number=number,
            )
            for number, request in wanted
        ]
        self.jobs += fresh
        for job in fresh:
            self.engine.submit(job)

    async def steps(self) -> AsyncIterator[tuple[int, Committed]]:
        """What each forward committed, and of which decode; ends when the ranking is complete.

        Answers are read and prompts written here, on worker threads: the engine only decodes.
        """
        assert self.listener is not None
        left = len(self.jobs)
        while left:
            number, happened = await self.listener.next()
            if isinstance(happened, Failed):
                raise happened.error
            if isinstance(happened, Committed):
                yield number, happened
                continue
            wanted = await self.state.aside(self.deadline, self._took, number, happened.trajectory)
            self._submit(wanted)
            left += len(wanted) - 1

    def _took(self, number: int, trajectory: Trajectory) -> list[tuple[int, DecodeRequest]]:
        """A response comes back, and what may be decoded now."""
        self.task.take(number, trajectory)
        return self.task.pending()

    def answer(self) -> Any:
        """The body of a complete ranking; counts what happened."""
        result = self.task.result(return_reasoning=self.ask.return_reasoning, top_k=self.ask.top_n)
        self.warnings = [*self.ask.warnings, *(named_by(self.ask, w) for w in result.warnings)]
        metrics = self.state.metrics
        for reason in result.failures:
            metrics.invalid.labels(reason).inc()
        metrics.repaired.inc(result.repaired)
        metrics.fallback.inc(result.fallback)
        metrics.prompt_tokens.inc(result.decode["prompt_tokens"])
        if self.key:
            metrics.key_lists.labels(self.key).inc()
            metrics.key_tokens.labels(self.key, "read").inc(result.decode["prompt_tokens"])
            metrics.key_tokens.labels(self.key, "written").inc(result.decode["tokens"])
        metrics.seconds.labels(result.decode["decoder"]).observe(time.monotonic() - self.arrived)
        assert self.served is not None
        if self.state.ledger is not None:
            took_s, model = time.monotonic() - self.arrived, self.served.name
            line = impression_of(
                self.list_id, self.ask, self.task, result, model=model, took_s=took_s
            )
            self.state.ledger.note(line)
        if self.ask.tei:
            return tei_answer(self.ask, result)
        return answer(
            self.ask,
            result,
            facts_of(self.task),
            warnings=self.warnings,
            model=self.served.name,
            request_id=self.request_id,
            created=int(time.time()),
        )

    def spent(self) -> Spent | None:
        """For the access log and traces, once it is closed; None where nothing was decoded."""
        if not self.jobs:
            return None
        writers = [job.writer for job in self.jobs if job.writer is not None]
        return Spent(
            decoder=self.task.settings.decoder,
            tokens=sum(job.tokens for job in self.jobs),
            forwards=sum(writer.nfe for writer in writers),
            queued=self.jobs[0].queued_at,
            started=self.jobs[0].started_at,
            ended=self.ended or time.monotonic(),
            compute_s=self._spent()[1],
        )

    def _spent(self) -> tuple[float, float]:
        """(seconds in the queue, seconds of forwards); decodes that shared forwards share them."""
        now = self.ended or time.monotonic()
        begun = [(job.started_at or now) - job.queued_at for job in self.jobs[:1]]
        most = sum(now - (job.started_at or now) for job in self.jobs[:1])
        return sum(begun), min(most, sum(job.compute_s for job in self.jobs))

    def timing(self) -> dict[str, str]:
        """TEI's timing headers, in milliseconds."""
        queue, compute = (f"{seconds * 1e3:.1f}" for seconds in self._spent())
        told = json.dumps(self.warnings) if self.warnings and self.ask.tei else ""
        return {
            # TEI's bare list has no room for them.
            **({"x-warnings": told[:HEADER_MOST]} if told else {}),
            "x-queue-time": queue,
            "x-inference-time": compute,
            "x-total-time": f"{(time.monotonic() - self.arrived) * 1e3:.1f}",
            "server-timing": f"queue;dur={queue}, inference;dur={compute}",
        }


class Visit:
    """A request's slot and outcome: taken before any work, given back once, counted once."""

    def __init__(self, state: State, facts: Facts) -> None:
        if not state.slots.take():
            raise state.full()
        self.state, self.facts, self._open = state, facts, True
        state.metrics.in_flight.set(state.slots.taken)

    def note(self, ranking: Ranking) -> None:
        """End a ranking, and keep its figures for the log."""
        ranking.close()
        spent = ranking.spent()
        if spent is not None:
            self.facts.lists.append(spent)

    def close(self, outcome: str, rankings: Sequence[Ranking] = ()) -> None:
        """Exactly once, whatever happened."""
        for ranking in rankings:
            self.note(ranking)
        if self._open:
            self._open = False
            self.facts.outcome = outcome
            self.state.slots.give_back()
            self.state.metrics.in_flight.set(self.state.slots.taken)
            self.state.metrics.requests.labels(outcome).inc()


async def whole(ranking: Ranking) -> Response:
    """Wait for the ranking and answer at once."""
    async for _ in ranking.steps():
        pass
    return JSONResponse(ranking.answer(), headers=ranking.timing())


def error_event(body: dict[str, Any]) -> bytes:
    """The last event of a stream that failed."""
    return event("error", body) + b"data: [DONE]\n\n"


class Stream(Response):
    """Parts of an answer as they come; the visit ends with the stream.

    A client that does not read holds its slot until the deadline and not longer.
    """

    def __init__(
        self,
        visit: Visit,
        parts: AsyncGenerator[bytes],
        deadline: float,
        rankings: list[Ranking],
        told: Callable[[dict[str, Any]], bytes] = error_event,
        media_type: str = "text/event-stream",
    ) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self.visit, self.parts = visit, parts
        self.deadline, self.rankings, self.told = deadline, rankings, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        outcome, request_id = "failed", scope["state"]["request_id"]

        async def give(body: bytes, *, more: bool) -> None:
            async with asyncio.timeout(max(0.05, self.deadline - time.monotonic())):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for part in self.parts:
                await give(part, more=True)
            await give(b"", more=False)
            outcome = "ok"
        except TimeoutError:
            outcome = "timeout"  # unread to the end: the server cuts the connection
        except (Gone, OSError):
            outcome = "gone"
        except Exception as error:
            problem = problem_of(error, request_id)
            outcome = outcome_of(problem)
            with contextlib.suppress(TimeoutError):
                await give(self.told(problem.body(request_id)), more=False)
        finally:
            await self.parts.aclose()  # its tasks end before the slot is free
            self.visit.close(outcome, self.rankings)


async def events_of(ranking: Ranking) -> AsyncGenerator[bytes]:
    """Server-sent events: what each step committed, then the results; the first of a window says
    which documents it shows, in its order."""
    names, written = ranking.task.world.vocab.names, ranking.task.read_out.answer == "written"
    begun = set[int]()
    async for number, step in ranking.steps():
        # Windows of a written answer follow each other, others are decoded side by side.
        before_s = sum(job.compute_s for job in ranking.jobs[:number]) if written else 0.0
        value = {
            "window": number,
            "forward": step.forward,
            "compute_ms": round((before_s + step.compute_s) * 1e3, 2),
            "committed": [[at, names[token]] for at, token in step.tokens],
        }
        if number not in begun:
            begun.add(number)
            value["shown"] = ranking.task.parts[number].places.tolist()
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
    named = {504: "timeout", 429: "rejected", 503: "draining", 403: "unauthorized"}
    return named.get(problem.status, "bad_request" if problem.status < 500 else "failed")
