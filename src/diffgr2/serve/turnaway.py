"""The short way out of an overloaded server: a ranking refused from its bytes alone.

Contract: `turned_away(state, data)` is the whole answer to a request that the door would refuse
because no slot is free, and None for everything else, which then goes its usual way. Refusing must
cost little beside ranking, or refusals eat what the server could have answered. Not here: why else
a request is refused (`door`), sockets (`connection`).
"""

import json
import logging
import re
import uuid

from diffgr2.serve.door import HOST, RANK_PATHS, REQUEST_ID, answers_for
from diffgr2.serve.state import State
from diffgr2.serve.telemetry import ACCESS, Facts, access_line

FIRST = re.compile(rb"POST (" + b"|".join(map(str.encode, RANK_PATHS)) + rb") HTTP/1\.1\r\n")
UNUSUAL = (b"transfer-encoding", b"expect", b"origin", b"upgrade", b"content-encoding")
"""Headers whose requests go the usual way."""

access = logging.getLogger(ACCESS)


def turned_away(state: State, data: bytes) -> bytes | None:
    """See the module's docstring; `data` is all that a waiting connection has received."""
    first = FIRST.match(data) if state.slots.full and not state.draining else None
    head, ended, body = data.partition(b"\r\n\r\n")
    if first is None or not ended:
        return None
    lines = head.split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    whole = headers.get(b"content-length") == str(len(body)).encode()
    if not whole or len(headers) != len(lines) or any(name in headers for name in UNUSUAL):
        return None
    host = headers.get(b"host", b"/")
    if not HOST.fullmatch(host) or not answers_for(state.limits, host):
        return None
    caller = state.keys.find(headers.get(b"authorization"))
    if caller is None or not caller.may("rank") or caller.bucket is not None:
        return None
    given = headers.get(b"x-request-id", b"")
    request_id = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    return _answer(state, first[1].decode(), request_id, caller.name, headers.get(b"connection"))


def _answer(state: State, path: str, request_id: str, key: str, connection: bytes | None) -> bytes:
    """The 429, counted and logged as the door does it."""
    state.metrics.requests.labels("rejected").inc()
    if key:
        state.metrics.key_requests.labels(key).inc()
    if access.isEnabledFor(logging.INFO):
        line = access_line(request_id, "POST", path, 429, 0.0, Facts(key))
        access.info("%s", json.dumps(line))
    problem = state.full()
    body = json.dumps(problem.body(request_id))
    close = "connection: close\r\n" if (connection or b"").lower() == b"close" else ""
    return (
        f"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nretry-after: {problem.headers['retry-after']}\r\n"
        f"cache-control: no-store\r\nx-request-id: {request_id}\r\n{close}\r\n{body}"
    ).encode()
