"""The journal of paid answers: an SQLite file with one JSON record per question and sample.

Contract: `open_journal(path)` takes the file for itself; another process that has it is an
ArtifactError, and so is a file that holds no database. A record that `append` returned from is on
disk and found by every later process, also after a kill or a power cut; one whose writing was
interrupted is absent. Each key stands at most once. Not here: what a record means (`traces.llm`).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from diffgr2.artifacts import digest
from diffgr2.errors import ArtifactError

# SQLite's exclusive locking mode is the lock: it ends with its process. A write-ahead log that is
# synced at every commit makes a commit durable with one sync.
OPENING = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
BEGIN EXCLUSIVE;
CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, record TEXT NOT NULL);
COMMIT;
"""


def content_key(model: str, messages: Any, sampling: dict[str, Any], sample: int) -> str:
    """The key of one sample: equal questions have equal keys, whatever the order of dict keys."""
    return digest({"model": model, "messages": messages, "sampling": sampling, "sample": sample})


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal at this path, made if it is not there."""
    with told(path, "cannot be opened"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        # Autocommit; answers may arrive in another thread than the one that opens (notebooks).
        db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    with closing(db):
        with told(path, "cannot be opened"):
            db.executescript(OPENING)
        yield Journal(path, db)


class Journal:
    """The one reader and writer of an open journal."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path, self._db = path, db

    def get(self, key: str) -> dict[str, Any] | None:
        """The record with this key, if it is on disk."""
        with told(self.path, "cannot be read"):
            found = self._db.execute("SELECT record FROM records WHERE key = ?", (key,)).fetchone()
        return json.loads(found[0]) if found else None

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write records, all or none of them; on return they are durable."""
        # ASCII only, so that a lone surrogate in a model's text cannot make a record unwritable.
        entries = [(record["key"], json.dumps(record, sort_keys=True)) for record in records]
        with told(self.path, "cannot be written"), self._db:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO records VALUES (?, ?)", entries)


@contextmanager
def told(path: Path, problem: str) -> Iterator[None]:
    """Errors of the file or of the database as one line."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{path}: {problem} ({error.strerror})") from None
    except sqlite3.Error as error:
        busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        reason = "in use by another process" if busy else f"{problem} ({error})"
        raise ArtifactError(f"{path}: {reason}") from None
