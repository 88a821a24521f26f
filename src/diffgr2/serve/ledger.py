"""The log of impressions and feedback: two rotated files of JSON lines, one thread that writes.

Contract: `note` hands over an impression and never waits; where the queue is full it is dropped and
counted. `feedback` hands over events and gives a future, which is done once they stand in the file:
an event is written once, however often it is sent and whatever was killed in between, as the file
itself is what is remembered. A line goes to the file in one write at its end, so a killed process
loses what waited in the queue (well below a second of it) and no half line is left by us; what a
power cut tore off is cut away when the log is opened, and counted. Files are synced every second.
One server per directory. Not here: what is written (`ranking`, `feedback`), reading it back
(`data.traffic`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffgr2.data.traffic import (
    FEEDBACK,
    IMPRESSIONS,
    KINDS,
    entries_of,
    file_of,
    files_of,
    identity,
    number_of,
)
from diffgr2.errors import ConfigError
from diffgr2.serve.telemetry import Metrics

ROOM = 4_096  # entries that may wait for the writer
SYNC_S = 1.0
CLOSE_S = 10.0

log = logging.getLogger("diffgr2.serve")


class UnknownRequestError(Exception):
    """Feedback on a request that is not in the log; `index` says which of those sent."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class LogTo:
    """Where both logs go, when a new file begins, and how many files of each are kept (0: all)."""

    directory: Path
    rotate_bytes: int = 64_000_000
    keep: int = 0
    room: int = ROOM

    def opened(self, metrics: Metrics) -> Ledger:
        """The log that is kept there."""
        return Ledger(self, metrics)


@dataclass(frozen=True)
class Sent:
    """Feedback on its way; `told` gets whether each event is new."""

    events: Sequence[dict[str, Any]]
    strict: bool
    told: Future[list[bool]] = field(default_factory=Future)


class Log:
    """One kind's files; one thread writes, another one may sync."""

    def __init__(self, directory: Path, kind: str, rotate_bytes: int, keep: int) -> None:
        self.directory, self.kind = directory, kind
        self.rotate_bytes, self.keep = rotate_bytes, keep
        self.torn = sum(_mended(path) for path in files_of(directory, kind))
        files = files_of(directory, kind)
        self.number = number_of(files[-1]) if files else 1
        self.dirty = False
        self._turn = threading.Lock()  # over which file is the present one
        self._open()

    def _open(self) -> None:
        path = file_of(self.directory, self.kind, self.number)
        self.handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.size = os.fstat(self.handle).st_size

    def write(self, entry: dict[str, Any]) -> None:
        """One line, whole or not at all."""
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        if self.size and self.size + len(line) > self.rotate_bytes:
            self._rotate()
        written = os.write(self.handle, line)
        if written < len(line):  # no room on the disk
            os.ftruncate(self.handle, self.size)
            raise OSError(f"{self.kind}: {written} of {len(line)} bytes written")
        self.size += written
        self.dirty = True

    def _rotate(self) -> None:
        self.sync()
        with self._turn:
            os.close(self.handle)
            self.number += 1
            self._open()
        files = files_of(self.directory, self.kind)
        for path in files[: max(0, len(files) - self.keep) if self.keep else 0]:
            path.unlink(missing_ok=True)

    def sync(self) -> None:
        """To the disk, however long that takes; writing goes on meanwhile."""
        with self._turn:
            if not self.dirty:
                return
            self.dirty, handle = False, os.dup(self.handle)
        try:
            os.fdatasync(handle)
        finally:
            os.close(handle)

    def close(self) -> None:
        self.sync()
        with self._turn:
            os.close(self.handle)


def _mended(path: Path) -> bool:
    """Cut away a line without an end; whether there was one."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65_536)
            file.seek(begin)
            found = file.read(end - begin).rfind(b"\n")
            if found >= 0:
                end = begin + found + 1
                break
            end = begin
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
        return end < size


class Ledger:
    """See the module's docstring."""

    def __init__(self, to: LogTo, metrics: Metrics) -> None:
        directory = to.directory
        self.directory, self.metrics = directory, metrics
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _only_one(directory)
            self._logs = {kind: Log(directory, kind, to.rotate_bytes, to.keep) for kind in KINDS}
        except OSError as error:
            raise ConfigError(f"--log-dir {directory}: {error.strerror}") from None
        metrics.log_torn.inc(sum(one.torn for one in self._logs.values()))
        self._seen = self._remembered()
        self._shown: set[int] | None = None  # requests in the log, once somebody asks
        self._entries: queue.Queue[dict[str, Any] | Sent | None] = queue.Queue(to.room)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diffgr2-ledger", daemon=True)
        self._syncing = threading.Thread(target=self._sync, name="diffgr2-sync", daemon=True)
        self._thread.start()
        self._syncing.start()

    def note(self, impression: dict[str, Any]) -> None:
        """See the module's docstring; `id` names the request."""
        try:
            self._entries.put_nowait(impression)
        except queue.Full:
            self.metrics.impressions.labels("dropped").inc()

    def feedback(self, events: Sequence[dict[str, Any]], *, strict: bool) -> Future[list[bool]]:
        """See the module's docstring; raises queue.Full where nothing more can wait."""
        sent = Sent(events, strict)
        self._entries.put_nowait(sent)
        return sent.told

    def close(self) -> None:
        """Write what waits; nothing may be handed over afterwards."""
        try:
            self._entries.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(timeout=CLOSE_S)

    # ---------------------------------------------------------------------------- thread

    def _run(self) -> None:
        while (entry := self._entries.get()) is not None:
            if isinstance(entry, Sent):
                self._take(entry)
            else:
                self._write(entry)
        self._ended.set()
        self._syncing.join()
        for one in self._logs.values():
            one.close()
        os.close(self._lock)

    def _write(self, impression: dict[str, Any]) -> None:
        try:
            self._logs[IMPRESSIONS].write(impression)
        except Exception as error:
            self.metrics.impressions.labels("dropped").inc()
            log.warning("an impression could not be written: %s", type(error).__name__)
            return
        self.metrics.impressions.labels("written").inc()
        if self._shown is not None:
            self._shown.add(identity(impression["id"]))

    def _take(self, sent: Sent) -> None:
        """Write what is new of some feedback, then say so."""
        if not sent.told.set_running_or_notify_cancel():
            return  # nobody waits any more, and nothing was promised
        try:
            if sent.strict:
                for index, event in enumerate(sent.events):
                    if identity(event["id"]) not in self._requests():
                        raise UnknownRequestError(index)
            sent.told.set_result([self._once(event) for event in sent.events])
        except Exception as error:
            sent.told.set_exception(error)

    def _once(self, event: dict[str, Any]) -> bool:
        """Write an event unless it stands there; whether it was new."""
        keys = keys_of(event)
        if not self._seen.isdisjoint(keys):
            self.metrics.feedback.labels("duplicate").inc()
            return False
        self._logs[FEEDBACK].write(event)
        self._seen.update(keys)
        self.metrics.feedback.labels("stored").inc()
        return True

    def _sync(self) -> None:
        """A thread of its own: a slow disk holds up nothing that a kill could lose."""
        while not self._ended.wait(SYNC_S):
            for one in self._logs.values():
                try:
                    one.sync()
                except OSError as error:
                    log.warning("%s could not be synced: %s", one.kind, error.strerror)

    def _remembered(self) -> set[int]:
        """What the feedback in the files is known by."""
        entries = entries_of(self.directory, FEEDBACK, Counter())
        return {key for entry in entries for key in keys_of(entry)}

    def _requests(self) -> set[int]:
        """The requests whose impressions stand in the files, read when first asked for."""
        if self._shown is None:
            self._shown = set()
            for entry in entries_of(self.directory, IMPRESSIONS, Counter()):
                self._shown.add(identity(str(entry.get("id", ""))))
        return self._shown


def keys_of(event: dict[str, Any]) -> list[int]:
    """What an event is the same by: request, item and event; and its own key, where it has one."""
    keys = [identity("event", *(str(event.get(name, "")) for name in ("id", "item", "event")))]
    if event.get("key"):
        keys.append(identity("key", str(event.get("by", "")), str(event["key"])))
    return keys


def _only_one(directory: Path) -> int:
    """A lock that goes with the process."""
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(f"--log-dir {directory}: another server writes there") from None
    return handle
