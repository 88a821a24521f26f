"""What the server takes on: every bound in one place, and what counts against it.

Contract: `Limits` is every bound of the server; `Slots` is the one admission authority, taken
before any work on a request and given back exactly once; `Budget` bounds the bytes of all bodies
that are held at once, and large bodies leave room for small ones. Not here: where they are enforced
(`door`, `ranking`, `wire`), and keys.
"""

import math
import time
from dataclasses import dataclass

ANY_ADDRESS = "<address>"
"""Among the hosts: any address. A foreign page can point a name of its own at us, no address."""

FILES = (
    *("look.css", "page.css", "docs.css"),
    *("ask.js", "dom.js", "fields.js", "items.js", "link.js", "plainly.js"),
    *("race.js", "ranking.js", "words.js", "page.js", "docs.js"),
)
"""What the two pages are made of, below `/static/`."""

PUBLIC = ("/", "/docs", "/health/live", "/health/ready", *(f"/static/{name}" for name in FILES))
"""What answers without a key: the two pages (they hold no data) and the two health routes."""


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
    shown: int = 2_000  # documents times views of one list
    history: int = 200
    text: int = 2_048  # characters
    events: int = 1_000  # of feedback in one body
    rules: int = 1_000  # ids in one rule of a request
    strict: bool = False  # unknown items and fields are errors where a request says nothing else
    batch: int = 100  # lists in one batch
    batch_parallel: int = 8  # of which this many are decoded at once
    waiting: int = 128  # requests admitted beyond those that decode
    running: int = 32  # outputs decoded at once
    lanes: int = 1  # threads that decode, each with batches of its own; 0: as many as the model has
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

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0
        self._pace_s = 0.0  # seconds from one end to the next while there is work
        self._since = 0.0  # of the last end, or of the first work after a rest

    @property
    def full(self) -> bool:
        return self.taken >= self.limit

    def take(self) -> bool:
        """One slot, or False if none is free."""
        if self.full:
            return False
        if not self.taken:
            self._since = time.monotonic()
        self.taken += 1
        return True

    def give_back(self) -> None:
        assert self.taken > 0, "a slot was given back twice"
        self.taken -= 1
        now = time.monotonic()
        took_s, self._since = now - self._since, now
        self._pace_s += (took_s - self._pace_s) / 16 if self._pace_s else took_s

    def retry_after_s(self) -> int:
        """Whole seconds until the present queue is gone, at the pace of the last ends.

        Where nothing ends, the pace is what has passed since the last end.
        """
        pace_s = max(self._pace_s, time.monotonic() - self._since if self.taken else 0.0)
        return min(60, max(1, math.ceil(self.taken * pace_s)))


class Budget:
    """Bytes of bodies that are held now; used on the event loop only.

    Clients that send large bodies slowly may fill three quarters; the rest is for small ones.
    """

    SMALL = 65_536

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self.untidy = False  # a large body has left memory that the allocator still keeps

    def take(self, size: int, body: int) -> bool:
        """`size` more bytes of a body that then has `body`."""
        limit = self.limit if body <= self.SMALL else self.limit * 3 // 4
        if self.held + size > limit:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0, "bytes were given back twice"
