"""What the engine is given to do, and what it tells of it.

Contract: a `Job` is one prompt to decode, an `Order` a request whose prompts are not written yet,
an `Event` what happened to a job. Not here: the engine (`engine`), who asks (`ranking`,
`shortcut`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import Writer
from diffgr2.types import Trajectory


@dataclass(frozen=True)
class Committed:
    """Tokens that a step committed, as (position in the response, token)."""

    forward: int  # forwards of this output so far
    compute_s: float  # seconds of forwards that this job took part in
    tokens: list[tuple[int, int]]


@dataclass(frozen=True)
class Decoded:
    """The output is complete."""

    trajectory: Trajectory


@dataclass(frozen=True)
class Failed:
    """The job failed by itself."""

    error: BaseException


Event = Committed | Decoded | Failed


@dataclass(eq=False)
class Job:
    """One prompt in the engine."""

    wanted: DecodeRequest
    settings: DecodeSettings
    listen: Callable[[Event], None]
    streams: bool = False
    first: bool = False  # a later window of a request that has waited already
    number: int = 0  # of the request's decodes
    cancelled: bool = False
    ended: bool = False
    queued_at: float = field(default_factory=time.monotonic)
    started_at: float | None = None
    compute_s: float = 0.0
    writer: Writer | None = None
    tokens: int = 0  # of the finished output
    alone: bool = False  # a batch it was in failed: it is decoded by itself now
    told: set[int] = field(default_factory=set)  # positions streamed already

    @property
    def turn(self) -> float:
        """By what those that wait are in order: who has waited already comes before all others."""
        return 0.0 if self.first or self.alone else self.queued_at

    def tell(self, event: Event) -> None:
        """Hand an event over, at most one last one."""
        if self.ended or self.cancelled:
            return
        self.ended = isinstance(event, Decoded | Failed)
        self.listen(event)


class Order(Protocol):
    """A request whose prompts are not written yet; both are called on the engine's thread."""

    arrived: float  # monotonic time: its jobs wait behind those that came before
    over: bool  # nobody waits for it any more

    def together(self, orders: Sequence[Self]) -> Sequence[Job]:
        """What is to decode of these orders, `self` the first of them; never raises."""
        ...

    def fail(self, error: Exception) -> None:
        """Nothing will come of it."""
        ...
