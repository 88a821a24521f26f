"""The short way out of an overloaded server: a ranking refused from its bytes alone.

Contract: `turned_away(state, plain)` is the whole answer to a request that the door would refuse
because no slot is free, and None for everything else, which then goes its usual way. Refusing must
cost little beside ranking, or refusals eat what the server could have answered. Not here: why else
a request is refused (`door`), sockets (`connection`).
"""

import json
import time
from collections.abc import Sequence

from diffgr2.serve.door import request_id_of, told
from diffgr2.serve.plain import Plain, caller_of
from diffgr2.serve.state import State
from diffgr2.serve.telemetry import Facts


def turned_away(
    state: State, plain: Plain | None, given: Sequence[tuple[bytes, bytes]] = ()
) -> bytes | None:
    """See the module's docstring; `plain` is what a waiting connection has received.

    `given` are headers that every answer has.
    """
    if plain is None or not state.slots.full or state.draining:
        return None
    caller = caller_of(state, plain)
    if caller is None:
        return None
    request_id = request_id_of(plain.headers.get(b"x-request-id"))
    first = b"".join(b"%s: %s\r\n" % pair for pair in given).decode("latin-1")
    return _answer(state, plain, request_id, caller.name, first)


def _answer(state: State, plain: Plain, request_id: str, key: str, first: str) -> bytes:
    """The 429, counted and told as the door does it."""
    state.metrics.requests.labels("rejected").inc()
    if key:
        state.metrics.key_requests.labels(key).inc()
    parent, begun = plain.headers.get(b"traceparent"), time.monotonic()
    told(state, request_id, "POST", plain.path, 429, begun, Facts(key), parent)
    problem = state.full()
    body = json.dumps(problem.body(request_id))
    close = "connection: close\r\n" if plain.closes else ""
    return (
        f"HTTP/1.1 429 Too Many Requests\r\n{first}content-type: application/json\r\n"
        f"content-length: {len(body)}\r\nretry-after: {problem.headers['retry-after']}\r\n"
        f"cache-control: no-store\r\nx-request-id: {request_id}\r\n{close}\r\n{body}"
    ).encode()
