"""Progress for people: a rich bar on a terminal, a plain line now and then otherwise.

Contract: `with progress.task(label, total) as bar: bar.advance(n, note)`. Plain lines come at most
every `every_s` seconds, so logs stay short. Not here: metrics (`train.log`) and results
(`evaluate.report`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


@dataclass
class Task:
    """One piece of long work."""

    total: int | None  # None where it is not known
    show: Callable[[Task, str], None]
    done: int = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` units as done; `note` is a short text such as the current loss."""
        self.done += n
        self.show(self, note)


class Progress:
    """Makes tasks that all write to one stream (stderr by default)."""

    def __init__(self, stream: TextIO | None = None, every_s: float = 10.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._every_s = every_s

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Show a piece of work while the block runs."""
        if not self._stream.isatty():
            yield Task(total, self._now_and_then(label))
            return
        facts = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        columns = ("{task.description}", BarColumn(), *facts, "{task.fields[note]}")
        with Bars(*columns, console=Console(file=self._stream), transient=True) as bars:
            bar = bars.add_task(label, total=total, note="")

            def show(task: Task, note: str) -> None:
                bars.update(bar, completed=task.done, total=task.total, note=note)

            yield Task(total, show)

    def _now_and_then(self, label: str) -> Callable[[Task, str], None]:
        start = last = time.monotonic()

        def show(task: Task, note: str) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= self._every_s or task.done == task.total:
                last = now
                of = f"/{task.total}" if task.total else ""
                self.line(f"{label}: {task.done}{of} [{now - start:.0f}s] {note}".rstrip())

        return show

    def line(self, text: str) -> None:
        """Print one plain line."""
        print(text, file=self._stream, flush=True)
