"""What the server takes on: every bound in one place, and what counts against it.

Contract: `Limits` is every bound of the server; `Slots` is the one admission authority, taken
before any work on a request and given back exactly once; `Budget` bounds the bytes of all bodies
that are held at once. Not here: where they are enforced (`door`, `ranking`, `wire`), and keys.
"""

import math
import time
from collections import deque
from dataclasses import dataclass

PUBLIC = ("/", "/health/live", "/health/ready")
"""What answers without a key: the page (it holds no data) and the two health routes."""


@dataclass(frozen=True)
class Limits:
    """See the module's docstring."""

    body_bytes: int = 2_000_000
    bodies_bytes: int = 64_000_000  # of all bodies together, admitted or not
    body_values: int = 100_000  # commas and brackets of one body, before it is parsed
    connections: int = 4_000
    per_address: int = 3_000  # connections of one address
    headers: int = 256
    header_bytes: int = 65_536
    header_s: float = 10.0  # until a connection's request line and headers are there
    body_s: float = 10.0  # until a request's body is there
    write_s: float = 10.0  # that a client may leave its answer unread
    candidates: int = 100
    history: int = 200
    text: int = 2_048  # characters
    batch: int = 100  # lists in one batch
    batch_parallel: int = 8  # of which this many are decoded at once
    waiting: int = 128  # requests admitted beyond those that decode
    running: int = 32  # outputs decoded at once
    tokens: int = 32_768  # cache slots of all outputs together
    timeout_s: float = 30.0  # deadline where the client names none
    max_timeout_s: float = 300.0
    drain_s: float = 30.0  # for requests in flight after SIGTERM
    stall_s: float = 10.0  # a step that takes longer makes the server unready
    hosts: tuple[str, ...] = ()  # names in Host that are answered; none = every name

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot at once."""
        return self.waiting + self.running


class Slots:
    """A counter with a limit; used on the event loop only, so taking is atomic."""

    RECENT_S = 10.0

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._ended: deque[float] = deque(maxlen=1024)  # when slots were given back, lately

    @property
    def full(self) -> bool:
        return self.taken >= self.limit

    def take(self) -> bool:
        """One slot, or False if none is free."""
        if self.full:
            return False
        self.taken += 1
        return True

    def give_back(self) -> None:
        assert self.taken > 0, "a slot was given back twice"
        self.taken -= 1
        self._ended.append(time.monotonic())

    def retry_after_s(self) -> int:
        """Whole seconds until the present queue is gone, at the pace of the last seconds."""
        since = time.monotonic() - self.RECENT_S
        ended = sum(at > since for at in self._ended)
        return min(60, max(1, math.ceil(self.taken * self.RECENT_S / ended))) if ended else 1


class Budget:
    """Bytes of bodies that are held now; used on the event loop only."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, size: int) -> bool:
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0, "bytes were given back twice"
