"""Progress for people: a rich bar on a terminal, a plain line now and then otherwise.

Contract: `with progress.task(label, total) as bar: bar.advance(n, note)`. Plain lines come at most
every `every_s` seconds, so logs stay short, and say how long the rest takes at the
pace so far. Not here: metrics (`train.log`) and results (`evaluate.results`).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TextIO


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


@dataclass
class Progress:
    """Makes tasks that all write to one stream."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    every_s: float = 10.0  # between two plain lines

    @contextmanager
    def task(self, label: str, total: int | None = None) -> Iterator[Task]:
        """Show a piece of work while the block runs."""
        start = last = time.monotonic()
        first: tuple[int, float] | None = None  # what was done, when: a resumed run begins late

        def plain(task: Task, note: str) -> None:
            nonlocal last, first
            now = time.monotonic()
            done, since = first = first or (task.done, now)
            if now - last >= self.every_s or task.done == task.total:
                last = now
                of, left = f"/{task.total}" if task.total else "", ""
                if task.total and done < task.done < task.total:
                    rest = (task.total - task.done) * (now - since) / (task.done - done)
                    left = f", about {rest:.0f}s to go"
                self.line(f"{label}: {task.done}{of} [{now - start:.0f}s{left}] {note}".rstrip())

        if not self.stream.isatty():
            yield Task(total, plain)
            return
        from rich.console import Console  # late: only a terminal has bars
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        facts = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        columns = ("{task.description}", BarColumn(), *facts, "{task.fields[note]}")
        with Bars(*columns, console=Console(file=self.stream), transient=True) as bars:
            bar = bars.add_task(label, total=total, note="")
            yield Task(
                total, lambda t, note: bars.update(bar, completed=t.done, total=t.total, note=note)
            )

    def line(self, text: str) -> None:
        """Print one plain line."""
        print(text, file=self.stream, flush=True)
