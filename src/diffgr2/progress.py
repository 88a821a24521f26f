"""Progress for people: a rich bar on a terminal, a plain line now and then otherwise.

Contract: `Progress.track(iterable, label, total)` and `bar = Progress.task(label, total)` /
`bar.advance(n, note)`. Plain lines appear at most every `every_s` seconds, so logs stay short.
Not here: metrics (`train.log`) or results (`evaluate.report`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TextIO, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

T = TypeVar("T")


class Task:
    """One piece of long work; a context manager."""

    def __init__(self, label: str, total: int | None, stream: TextIO, every_s: float) -> None:
        self.label, self.total, self.done = label, total, 0
        self._stream, self._every_s = stream, every_s
        self._start = self._last = time.monotonic()
        self._rich: RichProgress | None = None
        if stream.isatty():
            self._rich = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=stream),
                transient=True,
            )
            self._id = self._rich.add_task(label, total=total, note="")

    def __enter__(self) -> Task:
        if self._rich:
            self._rich.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._rich:
            self._rich.stop()

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` units as done; `note` is a short text such as the current loss."""
        self.done += n
        if self._rich:
            self._rich.update(self._id, advance=n, note=note)
            return
        now = time.monotonic()
        if now - self._last >= self._every_s or self.done == self.total:
            self._last = now
            of = f"/{self.total}" if self.total else ""
            print(
                f"{self.label}: {self.done}{of} [{now - self._start:.0f}s] {note}".rstrip(),
                file=self._stream,
                flush=True,
            )


class Progress:
    """Makes tasks that all write to one stream (stderr by default)."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every_s = every_s

    def task(self, label: str, total: int | None = None) -> Task:
        return Task(label, total, self._stream, self._every_s)

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Iterate with progress."""
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        with self.task(label, total) as task:
            for item in items:
                yield item
                task.advance()

    def line(self, text: str) -> None:
        """Print one plain line."""
        print(text, file=self._stream, flush=True)
