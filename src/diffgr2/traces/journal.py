"""An append-only journal of paid answers: one JSON line per record, fsynced, keyed by content.

Contract: `Journal(path)` takes an exclusive lock, reads what is there and then only appends. A
record that `append` returned from is on disk and is found again by every later process; a record
whose writing was interrupted is absent, never half there. Each key stands at most once. Every line
ends in a checksum (`sum`), so damage is found: a torn last line is cut off (`torn_bytes`), a
damaged line in the middle is reported with its number (`damaged`), copied to
`<name>.quarantine.jsonl` and left where it is, and its key counts as unanswered. Not here: what a
record means (`traces.llm`), and anything that rewrites a journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from diffgr2.artifacts import fsync_path
from diffgr2.errors import ArtifactError

SUM_DIGITS = 16

Commit = Callable[[Sequence[dict[str, Any]]], Awaitable[None]]


@dataclass(frozen=True)
class DamagedLine:
    """A complete line that is not a record; `line` counts from 1."""

    line: int
    reason: str
    raw: str


def content_key(model: str, messages: Any, sampling: dict[str, Any], sample: int) -> str:
    """The key of one sample: equal questions have equal keys, whatever the order of dict keys."""
    value = {"model": model, "messages": messages, "sampling": sampling, "sample": sample}
    return hashlib.sha256(_canonical(value)).hexdigest()


def encode(record: dict[str, Any]) -> bytes:
    """One line with its checksum and its newline."""
    line = _canonical({**record, "sum": _checksum(record)})
    assert b"\n" not in line
    return line + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The record of one line without its newline; ValueError says what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        raise ValueError("not a record")
    claimed = record.pop("sum", None)
    try:
        intact = claimed == _checksum(record)
    except ValueError:  # NaN and Infinity are read by json but never written
        intact = False
    if not intact:
        raise ValueError("checksum differs")
    return record


def _canonical(value: Any) -> bytes:
    # ASCII only, so that a lone surrogate in a model's text cannot make the line unwritable.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(record)).hexdigest()[:SUM_DIGITS]


class Journal:
    """The one writer of a journal file; a context manager."""

    def __init__(self, path: Path | str, *, sync: bool = True) -> None:
        self.path = Path(path)
        self.sync = sync
        self.torn_bytes = 0
        self.damaged: tuple[DamagedLine, ...] = ()
        self._records: dict[str, dict[str, Any]] = {}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(self.path)
        except OSError as error:
            raise ArtifactError(f"{self.path}: cannot be opened ({error.strerror})") from None
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            self._recover()
            if self.sync:
                fsync_path(self.path.parent)
        except OSError as error:
            self.close()
            raise ArtifactError(f"{self.path}: cannot be opened ({error.strerror})") from None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, key: str) -> bool:
        return key in self._records

    def get(self, key: str) -> dict[str, Any] | None:
        """The record with this key, if it is on disk."""
        return self._records.get(key)

    def append(self, *records: dict[str, Any]) -> None:
        """Write records with one write and one sync; on return they are durable.

        If the disk refuses (full, gone), nothing of them stays and an ArtifactError is raised.
        """
        if not records:
            return
        keys = [record["key"] for record in records]
        assert len(set(keys)) == len(keys), f"{self.path}: a key stands twice in one call"
        assert self._records.keys().isdisjoint(keys), f"{self.path}: a key stands already"
        before = os.fstat(self._file).st_size
        try:
            _write_all(self._file, b"".join(encode(record) for record in records))
            if self.sync:
                os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, before)
            raise ArtifactError(f"{self.path}: cannot be written ({error.strerror})") from None
        self._records.update(zip(keys, records, strict=True))

    def close(self) -> None:
        """Close the file and release the lock; further appends fail."""
        for name in ("_file", "_lock"):
            handle = getattr(self, name, -1)
            if handle >= 0:
                os.close(handle)
            setattr(self, name, -1)

    def _recover(self) -> None:
        data = self.path.read_bytes()
        *lines, tail = data.split(b"\n")
        damaged = []
        for number, line in enumerate(lines, 1):
            try:
                record = decode(line)
                if record["key"] in self._records:
                    raise ValueError("key stands twice")
            except ValueError as error:
                damaged.append(DamagedLine(number, str(error), line.decode("utf-8", "replace")))
                continue
            self._records[record["key"]] = record
        self._mend_tail(len(data), tail)
        self.damaged = tuple(damaged)
        _write_quarantine(quarantine_path(self.path), damaged)

    def _mend_tail(self, size: int, tail: bytes) -> None:
        """Cut off what follows the last newline, or give a whole record its missing newline."""
        if not tail:
            return
        try:
            record = decode(tail)
            if record["key"] in self._records:
                raise ValueError("key stands twice")
        except ValueError:
            os.ftruncate(self._file, size - len(tail))
            self.torn_bytes = len(tail)
        else:
            _write_all(self._file, b"\n")
            self._records[record["key"]] = record
        if self.sync:
            os.fsync(self._file)


@contextlib.asynccontextmanager
async def group_commit(journal: Journal) -> AsyncIterator[Commit]:
    """Group commit: what arrives while the disk syncs shares the next write and sync.

    `await commit(records)` returns when they are durable; leaving the context writes the rest.
    """
    queue: asyncio.Queue[tuple[Sequence[dict[str, Any]], asyncio.Future[None]] | None]
    queue = asyncio.Queue()

    async def write() -> None:
        more = True
        while more:
            arrived = [await queue.get()]
            while not queue.empty():
                arrived.append(queue.get_nowait())
            batch = [entry for entry in arrived if entry]
            more = len(batch) == len(arrived)
            records = [record for group, _ in batch for record in group]
            problem = None
            try:
                await asyncio.to_thread(journal.append, *records)
            except Exception as error:
                problem = error
            for _, done in batch:
                if not done.done():
                    done.set_exception(problem) if problem else done.set_result(None)

    async def commit(records: Sequence[dict[str, Any]]) -> None:
        done = asyncio.get_running_loop().create_future()
        queue.put_nowait((records, done))
        await done

    writer = asyncio.create_task(write())
    try:
        yield commit
    finally:
        # Not cancelled: what workers handed in is paid for, even if they are gone.
        queue.put_nowait(None)
        await writer


def quarantine_path(path: Path) -> Path:
    """Where the damaged lines of a journal are listed."""
    return path.with_name(f"{path.stem}.quarantine.jsonl")


def report_lines(journal: Journal) -> Sequence[str]:
    """What recovery found, one plain line each; empty for a healthy journal."""
    lines = []
    if journal.torn_bytes:
        lines.append(f"{journal.path}: cut off a torn last line of {journal.torn_bytes} bytes")
    lines += [f"{journal.path}: line {d.line}: {d.reason}; put aside" for d in journal.damaged[:5]]
    if len(journal.damaged) > 5:
        lines.append(f"{journal.path}: {len(journal.damaged) - 5} more damaged lines put aside")
    return lines


def _lock(path: Path) -> int:
    """An exclusive lock beside the journal; the kernel drops it when its process dies."""
    handle = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise ArtifactError(f"{path}: in use by another process (pid {holder})") from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _write_quarantine(path: Path, damaged: Sequence[DamagedLine]) -> None:
    """List the damaged lines; written whole on each opening, so it never repeats itself."""
    if not damaged:
        path.unlink(missing_ok=True)
        return
    rows = [{"line": d.line, "reason": d.reason, "raw": d.raw} for d in damaged]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
