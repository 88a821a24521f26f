"""From other threads to the event loop.

Contract: a `Post` has the loop do what other threads hand over, in their order; a failure of one
piece of work costs no other. Not here: what it is (`listener`, `shortcut`).
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable


class Post:
    """What other threads hand to the event loop, in the order in which they do.

    To wake a loop is a message to itself, which costs about as much as to answer a client: who has
    more to hand over than one piece of work calls `later`, and `wake` in the end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._called = loop, False
        self._items: deque[Callable[[], object]] = deque()

    def __call__(self, work: Callable[[], object]) -> None:
        """Run this on the loop, soon."""
        self._items.append(work)
        self.wake()

    def later(self, work: Callable[[], object]) -> None:
        """Run this on the loop, once somebody wakes it."""
        self._items.append(work)

    def wake(self) -> None:
        """Have the loop do what was handed over, if there is anything."""
        if self._items and not self._called:
            self._called = True
            # The loop may have ended: nobody listens any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first, so that what comes from now on wakes it again
        while self._items:
            try:
                self._items.popleft()()
            except Exception as error:  # one piece of work costs no other
                told = "work that another thread handed over failed"
                self._loop.call_exception_handler({"message": told, "exception": error})
