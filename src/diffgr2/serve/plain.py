"""Ranking requests whose bytes leave no question: what may go without the framework.

Contract: `plain_of(data)` is a `Plain` where `data` is one whole `POST` to a ranking path in
HTTP/1.1, written as clients write it, and None for everything else, which then goes the usual way:
what is broken, doubtful or unusual is judged there alone. `caller_of` is who may send it, None
where the door would have something to say. Not here: what becomes of it (`turnaway`, `shortcut`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffgr2.serve.door import HOST, RANK_PATHS, answers_for
from diffgr2.serve.keys import Caller

if TYPE_CHECKING:
    from diffgr2.serve.state import State

FIRST = re.compile(rb"POST (" + b"|".join(map(str.encode, RANK_PATHS)) + rb") HTTP/1\.1")
NAME = re.compile(rb"[A-Za-z0-9_-]+")
PRINTABLE = bytes(range(0x20, 0x7F))
MOST = 64  # headers
UNUSUAL = (b"transfer-encoding", b"expect", b"origin", b"upgrade", b"content-encoding")
"""Headers whose requests go the usual way."""


@dataclass(frozen=True)
class Plain:
    """One request; `headers` by name in lower case, each stands once."""

    path: str
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def closes(self) -> bool:
        """Whether the client wants the connection closed behind the answer."""
        return self.headers.get(b"connection", b"").lower() == b"close"


def plain_of(data: bytes) -> Plain | None:
    """See the module's docstring; `data` is all that a waiting connection has received."""
    head, ended, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    first = FIRST.fullmatch(lines[0])
    if first is None or not ended or len(lines) > MOST:
        return None
    # Nothing but printable ASCII and whole ends of lines: so no tabs and no folded lines either.
    if head.translate(None, PRINTABLE) != b"\r\n" * (len(lines) - 1):
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not NAME.fullmatch(name):
            return None
        headers[name.lower()] = value.strip()
    whole = headers.get(b"content-length") == b"%d" % len(body)
    alone = len(headers) == len(lines) - 1  # none stands twice
    usual = headers.get(b"connection", b"close").lower() in (b"close", b"keep-alive")
    if not (whole and alone and usual and b"host" in headers):
        return None
    if any(name in headers for name in UNUSUAL):
        return None
    return Plain(first[1].decode(), headers, body)


def caller_of(state: State, plain: Plain) -> Caller | None:
    """See the module's docstring; who has a rate is counted at the door."""
    host, limits = plain.headers[b"host"], state.limits
    if len(plain.headers) > limits.headers:
        return None
    if not HOST.fullmatch(host) or not answers_for(limits, host):
        return None
    caller = state.keys.find(plain.headers.get(b"authorization"))
    if caller is None or not caller.may("rank") or caller.bucket is not None:
        return None
    return caller
