"""Arrays that come in pieces, put together in memory or in files.

Contract: `Pieces(path)` takes rows that belong one behind the other; `whole(like)` gives them as
one array: of a file a read-only map, whose pages the system may drop and read again, so that
memory holds one piece at a time. Without a path all pieces are held. `Columns` holds the raw
evidence of lists in a file, written some lists at a time and read field by field or some lists at a
time; nothing of it stays in memory. Not here: files that others read (`artifacts`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Pieces:
    """See the module's docstring."""

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.held = path, list[np.ndarray]()
        self.file = None if path is None else path.open("wb")

    @classmethod
    def several(cls, count: int, work: Path | None, name: str) -> list[Pieces]:
        """So many arrays, in files of this directory where there is one."""
        return [cls(None if work is None else work / f"{name}_{at}.bin") for at in range(count)]

    def add(self, rows: np.ndarray) -> None:
        """Rows behind those that are there."""
        if self.file is None:
            self.held.append(rows)
        else:
            self.file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def whole(self, like: np.ndarray) -> np.ndarray:
        """All rows, in the type and with the columns of `like`, which has none."""
        if self.file is None or self.path is None:
            return np.concatenate([like, *self.held])
        self.file.close()
        if not self.path.stat().st_size:
            return like
        flat = np.memmap(self.path, like.dtype, mode="r").view(np.ndarray)
        return flat.reshape(-1, *like.shape[1:])


@dataclass(frozen=True)
class Columns:
    """float32 values of fields (L, K, F) in a file, one field behind the other."""

    path: Path
    lists: int
    k: int
    fields: int

    def put(self, begin: int, value_CKF: np.ndarray) -> None:
        """Values of the lists from `begin` on."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            for f in range(self.fields):
                file.seek(4 * self.k * (f * self.lists + begin))
                file.write(np.ascontiguousarray(value_CKF[:, :, f], np.float32).data)

    def _map(self, f: int, shape: tuple[int, ...]) -> np.ndarray:
        if not math.prod(shape):
            return np.empty(shape, np.float32)
        at = 4 * self.k * self.lists * f
        return np.memmap(self.path, np.float32, "r", at, shape).view(np.ndarray)

    def field(self, f: int) -> np.ndarray:
        """(L, K) of one field, mapped."""
        return self._map(f, (self.lists, self.k))

    def parts(self, step: int) -> Iterator[np.ndarray]:
        """(C, K, F) of all lists, so many at a time."""
        for begin in range(0, self.lists, step):
            # Mapped anew each time, or memory would seem to hold what was read before.
            value_FLK = self._map(0, (self.fields, self.lists, self.k))
            yield np.ascontiguousarray(value_FLK[:, begin : begin + step].transpose(1, 2, 0))
