"""Log lines that never hold a request up: a bounded queue in front of a stream nobody may read.

Contract: `QueuedLines(stream, dropped)` is a logging handler; a full queue drops the line and calls
`dropped`, and a reader that never comes blocks only the handler's own thread. Not here: what is
logged (`door`).
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import TextIO

ROOM = 10_000  # lines


class QueuedLines(logging.Handler):
    """See the module's docstring."""

    def __init__(self, stream: TextIO, dropped: Callable[[], None]) -> None:
        super().__init__()
        self.stream, self.dropped = stream, dropped
        self._lines: queue.Queue[str | None] = queue.Queue(ROOM)
        self._thread = threading.Thread(target=self._write, name="diffgr2-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (OSError, ValueError):  # the reader has gone
                self.dropped()

    def close(self) -> None:
        """Write what is there, for a second or two at most."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=1.0)
            self._thread.join(timeout=1.0)
        super().close()
