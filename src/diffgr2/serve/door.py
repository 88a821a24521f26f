"""What every request passes before a route sees it: its id, its headers, its host, its key.

Contract: a plain ASGI wrapper that names each request (`x-request-id`, echoed), refuses what is no
proper HTTP/1 request (two framings, another version, too many headers), hosts that are not ours,
callers without a key or above their rate, and ranking requests while no slot is free, all before a
byte of the body is read. HEAD is GET without its body. Whatever escapes a route becomes the one
error shape with the id. Nothing it answers may be stored. One access line a request goes to the
log; keys and bodies never do. Not here: bodies (`reading`) and connections (`connection`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from diffgr2.serve.limits import ANY_ADDRESS, PUBLIC, Limits
from diffgr2.serve.schema import Problem
from diffgr2.serve.telemetry import ACCESS, Facts, access_line, route_of

if TYPE_CHECKING:
    from diffgr2.serve.state import State

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LIST_PATHS = ("/rerank", "/v1/rerank", "/v2/rerank")
BATCH_PATH = "/v1/rerank/batch"
FEEDBACK_PATH = "/v1/feedback"
RANK_PATHS = (*LIST_PATHS, BATCH_PATH)
ADMIN = "/admin/"
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")
ABSOLUTE = re.compile(rb"https?://([^/?#]*)([^?#]*)", re.IGNORECASE)

log = logging.getLogger("diffgr2.serve")
access = logging.getLogger(ACCESS)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first value of a header."""
    return next((value for key, value in scope["headers"] if key == name), None)


def host_of(value: bytes) -> str:
    """A Host header's name without port and brackets, in lower case."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0] if text.count(":") == 1 else text


def answers_for(limits: Limits, value: bytes) -> bool:
    """Whether a Host header names this server."""
    host = host_of(value)
    if not limits.hosts or host in limits.hosts:
        return True
    if ANY_ADDRESS not in limits.hosts:
        return False
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


_numbers: deque[bytes] = deque()


def request_id_of(given: bytes | None) -> str:
    """The id that a request brings, if it is one; else a new one of 128 random bits.

    They are drawn many at a time: to ask the system for each costs as much as reading a body.
    """
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode()
    if not _numbers:
        drawn = os.urandom(4_096)
        _numbers.extend(drawn[at : at + 16] for at in range(0, len(drawn), 16))
    return _numbers.popleft().hex()


async def send_problem(send: Send, problem: Problem, request_id: str) -> None:
    """An error answer, without any framework."""
    body = json.dumps(problem.body(request_id)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((key.encode(), value.encode()) for key, value in problem.headers.items()),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def told(
    state: State,
    request_id: str,
    method: str,
    route: str,
    status: int,
    begun: float,
    facts: Facts,
    parent: bytes | None = None,
) -> None:
    """The access line of a request that has ended and, where they are wanted, its spans."""
    if state.traces is None and not access.isEnabledFor(logging.INFO):
        return
    line = access_line(request_id, method, route, status, time.monotonic() - begun, facts)
    access.info("%s", json.dumps(line))
    if state.traces is not None and route in RANK_PATHS:
        state.traces.request(line, facts, begun, (parent or b"").decode("latin-1"))


class Door:
    """See the module's docstring."""

    def __init__(self, app: App, state: State) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # nothing here speaks websockets
        begun, started, status = time.monotonic(), False, 0
        request_id = request_id_of(header(scope, b"x-request-id"))
        facts = Facts()
        scope.setdefault("state", {}).update(request_id=request_id, facts=facts)
        method = scope["method"]
        if scope["path"].removesuffix("/") in RANK_PATHS:  # as some clients spell it
            scope["path"] = scope["path"].removesuffix("/")
        if method == "HEAD":
            scope["method"] = "GET"

        async def named(message: Message) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                kept = list(message.get("headers", []))
                if not any(key == b"cache-control" for key, _ in kept):
                    kept.append((b"cache-control", b"no-store"))
                message["headers"] = [*kept, (b"x-request-id", request_id.encode())]
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            problem = self._refusal(scope, facts)
            if problem is not None:
                await send_problem(named, problem, request_id)
            else:
                await self.app(scope, receive, named)
        except Exception as error:
            # The id ties the client's answer to this line; text from requests stays out of it.
            log.exception("request %s failed: %s", request_id, type(error).__name__)
            if not started:
                await send_problem(named, Problem(500, "internal error"), request_id)
        finally:
            parent, route = header(scope, b"traceparent"), route_of(scope)
            told(self.state, request_id, method, route, status, begun, facts, parent)

    def _refusal(self, scope: Scope, facts: Facts) -> Problem | None:
        """Why this request goes no further, if it does not."""
        limits = self.state.limits
        close = {"connection": "close"}
        if not scope["http_version"].startswith("1."):
            return Problem(505, "expected HTTP/1.1", headers=close)
        names = [key for key, _ in scope["headers"]]
        if len(names) > limits.headers:
            return Problem(431, f"more than {limits.headers} headers", headers=close)
        if b"transfer-encoding" in names and b"content-length" in names:
            return Problem(400, "Content-Length and Transfer-Encoding contradict", headers=close)
        if b"transfer-encoding" in names and scope["http_version"] == "1.0":
            return Problem(400, "HTTP/1.0 knows no Transfer-Encoding", headers=close)
        asked = self._target(scope)
        if not HOST.fullmatch(header(scope, b"host") or b"") or not HOST.fullmatch(asked):
            return Problem(400, "Host: expected a name or address and a port", headers=close)
        if not answers_for(limits, asked):
            return Problem(421, "this server does not answer for that host (see --allow-host)")
        return self._who(scope, facts)

    def _target(self, scope: Scope) -> bytes:
        """The host that is asked; a target in absolute form becomes a path, and its host counts."""
        absolute = ABSOLUTE.match(scope.get("raw_path") or b"")
        if absolute is None:
            return header(scope, b"host") or b""
        scope["raw_path"] = absolute[2] or b"/"
        scope["path"] = unquote(scope["raw_path"].decode("latin-1"))
        return absolute[1] or b"/"  # a target without a host asks for none

    def _who(self, scope: Scope, facts: Facts) -> Problem | None:
        """The caller, its rights and its rate; and whether there is room for a ranking."""
        state, path = self.state, scope["path"]
        if path in PUBLIC and scope["method"] == "GET":
            return None
        caller = state.keys.find(header(scope, b"authorization"))
        if caller is None:
            state.metrics.requests.labels("unauthorized").inc()
            told = "a valid API key is needed (Authorization: Bearer …)"
            return Problem(401, told, headers={"www-authenticate": "Bearer"})
        scope["state"]["caller"] = caller
        if caller.name:
            facts.key = caller.name
            state.metrics.key_requests.labels(caller.name).inc()
        ranks = path in RANK_PATHS and scope["method"] == "POST"
        role = "admin" if path.startswith(ADMIN) else "rank"
        if not caller.may(role):
            lacks = "this key lacks" if caller.name else "this needs a key with"
            return Problem(403, f"{lacks} the role {role}")
        counted = ranks or (path == FEEDBACK_PATH and scope["method"] == "POST")
        wait_s = caller.bucket.wait_s() if caller.bucket is not None and counted else 0.0
        if wait_s:
            if ranks:
                state.metrics.requests.labels("rejected").inc()
            return state.busy("this key's rate is used up", after_s=int(wait_s) + 1)
        if ranks and state.slots.full:
            state.metrics.requests.labels("rejected").inc()
            return state.full()
        return None
