"""`POST /v1/feedback`: what a shopper did with a ranking that was shown.

Contract: `{"request_id", "item", "event", "time"?, "idempotency_key"?}`, or many of them as
`{"events": […]}`, are stored once each, however often they are sent: the answer comes when they
stand in the log (202, or 200 where nothing was new). A body with anything wrong stores nothing and
is one 422 that names the first; a log that cannot take more is 503 with `Retry-After`, and may be
asked again. No event is called like a feature of a model that is served: lists made of the log have
a column for each. Feedback on a request that the log does not hold is taken too (another server may
have it), and 404 where that is `strict`. Not here: the files (`ledger`), lists (`data.from_log`).
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from diffgr2.data.traffic import EVENT, EVENTS, TAKEN
from diffgr2.serve.door import FEEDBACK_PATH
from diffgr2.serve.ledger import UnknownRequestError
from diffgr2.serve.limits import Limits
from diffgr2.serve.reading import deadline_of, parse_body, read_body
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import State
from diffgr2.serve.unknowns import strange

FIELDS = ("request_id", "item", "id", "event", "time", "idempotency_key")
TOP = (*FIELDS, "events", "strict")
REQUEST_ID_MOST = 160  # characters: an id of 128 and a list's number in a batch
KEY_MOST = 200
LATEST = 1e11  # unix seconds; milliseconds are beyond it


@dataclass(frozen=True)
class Feedback:
    """A body, read."""

    events: list[dict[str, Any]]
    strict: bool
    warnings: list[str]


def read_feedback(body: dict[str, Any], limits: Limits, features: Collection[str] = ()) -> Feedback:
    """See the module's docstring; `features` are those of the models."""
    strict, warnings = body.get("strict"), strange(body, "", TOP)
    if strict is not None and not isinstance(strict, bool):
        raise Problem(422, "strict: expected true or false", "strict")
    strict = limits.strict if strict is None else strict
    given = body.get("events")
    if given is None:
        return Feedback([read_event(body, "", limits, features)], strict, warnings)
    if not isinstance(given, list) or not given:
        raise Problem(422, "events: expected a list of at least one", "events")
    if len(given) > limits.events:
        raise Problem(422, f"events: {len(given)} given, at most {limits.events}", "events")
    beside = next((key for key in FIELDS if body.get(key) is not None), None)
    if beside:
        raise Problem(422, f"{beside}: stands beside events", beside)
    events = [read_event(one, f"events[{at}].", limits, features) for at, one in enumerate(given)]
    names = dict.fromkeys(name for one in given for name in one)
    return Feedback(events, strict, [*warnings, *strange(names, "events[].", FIELDS)])


def read_event(
    value: Any, where: str, limits: Limits, features: Collection[str] = ()
) -> dict[str, Any]:
    """One event as the log keeps it."""
    if not isinstance(value, Mapping):
        raise Problem(422, f"{where[:-1]}: expected an object", "events")
    for name in FIELDS:
        if name != "time" and not isinstance(value.get(name), str | None):
            raise Problem(422, f"{where}{name}: expected text", name)
    item, other = value.get("item"), value.get("id")
    if item is not None and other is not None and item != other:
        raise Problem(422, f"{where}item: is also given as id", "item")
    found: dict[str, Any] = {
        "id": _text(value, "request_id", where, REQUEST_ID_MOST),
        "item": _text({"item": other if item is None else item}, "item", where, limits.text),
        "event": _text(value, "event", where, 64),
    }
    if found["event"] in TAKEN or not EVENT.fullmatch(found["event"]):
        told = "a column of lists" if found["event"] in TAKEN else "expected a word such as click"
        raise Problem(422, f"{where}event: {told}", "event")
    if found["event"] in features and found["event"] not in EVENTS:
        raise Problem(422, f"{where}event: a feature of the model is called so", "event")
    found["time"] = _time(value.get("time"), where)
    if value.get("idempotency_key") is not None:
        found["key"] = _text(value, "idempotency_key", where, KEY_MOST)
    return found


def _text(value: Mapping[str, Any], name: str, where: str, most: int) -> str:
    text = value.get(name)
    if text is None:
        raise Problem(422, f"{where}{name}: missing", name)
    if not 1 <= len(text) <= most:
        raise Problem(422, f"{where}{name}: expected 1 to {most} characters", name)
    return text


def _time(value: Any, where: str) -> float:
    """When it happened, as unix seconds; now where nobody says."""
    if value is None:
        return round(time.time(), 3)
    told = f"{where}time: expected unix seconds or 2026-01-31T09:12:44Z"
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise Problem(422, told, "time") from None
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        value = moment.timestamp()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not isfinite(value) or not 0 <= value <= LATEST:
        raise Problem(422, told, "time")
    return round(float(value), 3)


# --------------------------------------------------------------------------------------- route


def add(app: FastAPI, state: State) -> None:
    """Add the route; without a log it says what is missing, and stands in no description."""

    async def nothing_kept(request: Request) -> Response:
        raise Problem(404, "this server keeps no log of feedback (see serve --log-dir)")

    async def feedback(request: Request) -> Response:
        assert state.ledger is not None
        begun = time.monotonic()
        deadline = deadline_of(request, state.limits, begun)
        if state.draining:
            raise Problem(503, "the server is shutting down", headers={"retry-after": "1"})
        async with read_body(request, state, deadline) as body:
            # Of all models, as feedback does not say which of them it is about.
            given = await state.aside(deadline, _read, body, state.limits, state.features())
        caller = request.scope["state"]["caller"]
        for event in given.events:
            if caller.name:
                event["by"] = caller.name
        bucket = caller.bucket
        if bucket is not None:
            bucket.charge(len(given.events) - 1)  # the door took one
        return await _stored(request, state, given, deadline)

    kept = state.ledger is not None
    app.post(
        FEEDBACK_PATH,
        summary="Tell what a shopper did with a ranking",
        status_code=202,
        include_in_schema=kept,
    )(feedback if kept else nothing_kept)


def _read(body: bytes, limits: Limits, features: Collection[str]) -> Feedback:
    return read_feedback(parse_body(body, limits), limits, features)


async def _stored(request: Request, state: State, given: Feedback, deadline: float) -> Response:
    """The answer, once the log has it."""
    assert state.ledger is not None
    unable = Problem(503, "the log cannot take it now", headers={"retry-after": "1"})
    try:
        told = state.ledger.feedback(given.events, strict=given.strict)
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            fresh = await asyncio.wrap_future(told)
    except queue.Full:
        state.metrics.feedback.labels("dropped").inc(len(given.events))
        raise unable from None
    except TimeoutError:
        raise Problem(504, "the deadline has passed") from None
    except OSError:
        raise unable from None
    except UnknownRequestError as error:
        where = f"events[{error.index}]." if len(given.events) > 1 else ""
        raise Problem(404, f"{where}request_id: not in the log", "request_id") from None
    value = {
        "id": request.scope["state"]["request_id"],
        "stored": sum(fresh),
        "duplicates": len(fresh) - sum(fresh),
        "results": ["stored" if new else "duplicate" for new in fresh],
        "meta": {"warnings": given.warnings},
    }
    return JSONResponse(value, status_code=202 if any(fresh) else 200)
