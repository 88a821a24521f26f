"""The engine's events on the event loop, with the deadline and the client's presence.

Contract: a `Listener` is called on the engine's thread, with a decode's number and what happened;
`next` hands that over on the event loop, or raises where nothing more will come: `Gone` when the
client left, a 504 when the deadline passed. Not here: what the events mean (`ranking`).
"""

import asyncio
import time
from functools import partial

from diffgr2.serve.door import Receive
from diffgr2.serve.jobs import Event
from diffgr2.serve.post import Post
from diffgr2.serve.schema import Problem


class Gone(Exception):  # noqa: N818
    """The client left."""


class Listener:
    """The events of numbered jobs on the event loop, the deadline, the client's presence."""

    def __init__(self, deadline: float, receive: Receive, post: Post) -> None:
        self.deadline, self._post = deadline, post
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._gone = asyncio.create_task(self._watch(receive))

    def __call__(self, number: int, happened: Event) -> None:
        """Called on the engine's thread, which wakes the loop when it has told what there is."""
        self._post.later(partial(self._events.put_nowait, (number, happened)))

    @staticmethod
    async def _watch(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def next(self) -> tuple[int, Event]:
        """A job's number and its next event; Gone or a 504 Problem where there will be none."""
        getting = asyncio.create_task(self._events.get())
        try:
            await asyncio.wait(
                {getting, self._gone},
                timeout=max(0.0, self.deadline - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if getting.done():
                return getting.result()
            if self._gone.done():
                raise Gone
            raise Problem(504, "the deadline has passed")
        finally:
            getting.cancel()

    def close(self) -> None:
        self._gone.cancel()
