"""From a body's bytes to an `Ask`, with every size checked before it can cost anything.

Contract: `read_body` takes a body within its bounds of size, time, type and the budget of all
bodies; `parse_body` runs off the event loop: it weighs the bytes (how deep, how many values) before
they are parsed, and the lists before they are validated. Not here: what a field means (`schema`),
items (`rerank.names`).
"""

import asyncio
import ctypes
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Request

from diffgr2 import strict_json
from diffgr2.errors import DataError
from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Problem
from diffgr2.serve.state import State

CLOSE = {"connection": "close"}
"""Where the rest of a body is not read."""

TIDY_S = 1.0
LIBC = ctypes.CDLL(None)


def tidy(state: State) -> None:
    """Soon give back to the system what large bodies took: the allocator would keep it."""
    loop, trim = asyncio.get_running_loop(), getattr(LIBC, "malloc_trim", None)

    def work() -> None:
        state.bodies.untidy = False
        if trim is not None and not state.draining:
            state.readers.submit(trim, 0)

    if not state.bodies.untidy:
        state.bodies.untidy = True
        loop.call_later(TIDY_S, work)


def deadline_of(request: Request, limits: Limits, arrived: float) -> float:
    """When the answer must be there, as monotonic time."""
    given, *more = request.headers.getlist("x-request-timeout-ms") or [None]
    if given is None:
        return arrived + limits.timeout_s
    whole = not more and given.isascii() and given.isdigit() and len(given) <= 9
    if not whole or not 1 <= int(given) <= limits.max_timeout_s * 1e3:
        name, most = "x-request-timeout-ms", f"{limits.max_timeout_s * 1e3:.0f}"
        raise Problem(400, f"{name}: expected a whole number from 1 to {most}", name)
    return arrived + int(given) / 1e3


@asynccontextmanager
async def read_body(request: Request, state: State, deadline: float) -> AsyncIterator[bytes]:
    """The body, counted against the budget for as long as the context lasts."""
    limits, budget = state.limits, state.bodies
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "expected content-type application/json", headers=CLOSE)
    if request.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise Problem(415, "compressed bodies are not accepted", headers=CLOSE)
    too_large = Problem(413, f"body of more than {limits.body_bytes} bytes", headers=CLOSE)
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length[:18]) > limits.body_bytes:
        raise too_large
    parts, size = [], 0
    try:
        try:
            left_s = max(0.0, deadline - time.monotonic())
            async with asyncio.timeout(min(limits.body_s, left_s)):
                async for part in request.stream():
                    if size + len(part) > limits.body_bytes:
                        raise too_large
                    if not budget.take(len(part), size + len(part)):
                        raise state.busy("too many bodies are being read")
                    size += len(part)
                    parts.append(part)
        except TimeoutError:
            if time.monotonic() >= deadline:
                raise Problem(504, "the deadline has passed", headers=CLOSE) from None
            told = f"the body took longer than {limits.body_s:g} s"
            raise Problem(408, told, headers=CLOSE) from None
        yield b"".join(parts)
    finally:
        budget.give_back(size)
        if size > budget.SMALL:
            tidy(state)


def parse_body(body: bytes, limits: Limits) -> dict[str, Any]:
    """The JSON object in a body; runs off the event loop."""
    values, depth = strict_json.weigh(body)
    if depth > strict_json.MAX_DEPTH:
        raise Problem(400, f"not valid JSON: more than {strict_json.MAX_DEPTH} levels")
    if values > limits.body_values:
        raise Problem(413, f"body of more than {limits.body_values} values")
    try:
        value = strict_json.loads(body)
    except DataError as error:
        raise Problem(400, str(error)) from None
    if not isinstance(value, dict):
        raise Problem(422, "expected a JSON object")
    return value
