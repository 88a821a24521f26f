"""What every request passes before a route sees it: its id, its headers, its key.

Contract: a plain ASGI wrapper that names each request (`x-request-id`, echoed), refuses too many
headers (431) and, where keys are set, everything without one but the public routes (401); whatever
escapes a route becomes the one error shape with the id. Keys and bodies are never logged. Not here:
limits on bodies (`app`) and on connections (`wire`).
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from diffgr2.serve.limits import PUBLIC, Keys, Limits
from diffgr2.serve.schema import Problem
from diffgr2.serve.telemetry import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
log = logging.getLogger("diffgr2.serve")


def header(scope: Scope, name: bytes) -> str | None:
    """The first value of a header."""
    for key, value in scope["headers"]:
        if key == name:
            return value.decode("latin-1")
    return None


async def send_problem(
    send: Send, problem: Problem, request_id: str, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    """An error answer, without any framework."""
    body = json.dumps(problem.body(request_id)).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Door:
    """See the module's docstring."""

    def __init__(self, app: App, keys: Keys, limits: Limits, metrics: Metrics) -> None:
        self.app, self.keys, self.limits, self.metrics = app, keys, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # nothing here speaks websockets
        given = next((v for k, v in scope["headers"] if k == b"x-request-id"), b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started, begun = False, time.monotonic()
        status = 0

        async def named(message: MutableMapping[str, Any]) -> None:
            nonlocal started, status
            if message["type"] == "http.response.start":
                started, status = True, message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            problem = self._refusal(scope)
            if problem is not None:
                extra = [(b"www-authenticate", b"Bearer")] if problem.status == 401 else []
                await send_problem(named, problem, request_id, extra)
            else:
                await self.app(scope, receive, named)
        except Exception as error:
            # The id ties the client's answer to this line; text from requests stays out of it.
            log.exception("request %s failed: %s", request_id, type(error).__name__)
            if not started:
                await send_problem(named, Problem(500, "internal error"), request_id)
        finally:
            line = {
                "id": request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "ms": round((time.monotonic() - begun) * 1e3, 1),
            }
            log.info("%s", json.dumps(line))

    def _refusal(self, scope: Scope) -> Problem | None:
        if len(scope["headers"]) > self.limits.headers:
            return Problem(431, f"more than {self.limits.headers} headers")
        if not self.keys or scope["path"] in PUBLIC:
            return None
        if self.keys.accept(header(scope, b"authorization")):
            return None
        self.metrics.requests.labels("unauthorized").inc()
        return Problem(401, "a valid API key is needed (Authorization: Bearer …)")
