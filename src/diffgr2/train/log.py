"""The metrics log: one JSON line per optimizer step, with the names TRL uses.

Contract: the log lives in memory and in `metrics.jsonl`; a checkpoint carries its bytes, and a
resumed run starts from those bytes, so that lines past the checkpoint are cut and the finished file
equals an uninterrupted run's but for `WALL_FIELDS`. TensorBoard is a mirror, never read back.
Not here: progress for people (`diffgr2.progress`).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffgr2.errors import CheckpointError, MissingExtraError

WALL_FIELDS = ("step_time",)
"""Fields that depend on the clock: all others are equal in every run of one seed."""


def without_wall(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without the fields that depend on the clock."""
    return [{k: v for k, v in line.items() if k not in WALL_FIELDS} for line in lines]


def parse(raw: bytes, source: str) -> list[dict[str, Any]]:
    """Lines of a log; a broken one is a CheckpointError that names it."""
    lines = []
    for number, text in enumerate(raw.splitlines(), 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict) or line.get("step") != number:
            raise CheckpointError(f"{source}: line {number} is not the metrics of step {number}")
        lines.append(line)
    return lines


class MetricsLog:
    """Appends metrics; closed by `close`. With `path` None it only remembers (other ranks)."""

    def __init__(self, path: Path | None, raw: bytes = b"", tensorboard: Path | None = None):
        self.lines = parse(raw, str(path))
        self.raw = bytearray(raw)
        self._file = self._board = None
        if path is None:
            return
        if not path.is_file() or path.read_bytes() != raw:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(raw)
            os.replace(temporary, path)
        self._path, self._tensorboard = path, tensorboard

    def _open(self) -> None:
        # Opened at the first line, so that a finished run that is run again touches no file.
        self._file = self._path.open("ab", buffering=0)
        if self._tensorboard is not None:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError:
                raise MissingExtraError(
                    "TensorBoard logs need an extra: pip install 'diffgr2[tensorboard]'"
                ) from None
            self._board = SummaryWriter(str(self._tensorboard), purge_step=len(self.lines) + 1)

    def append(self, line: dict[str, Any]) -> None:
        """Add the metrics of the next step."""
        assert line["step"] == len(self.lines) + 1
        raw = json.dumps(line, allow_nan=False).encode() + b"\n"
        self.lines.append(line)
        self.raw += raw
        if not hasattr(self, "_path"):
            return
        if self._file is None:
            self._open()
        assert self._file is not None
        self._file.write(raw)
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()
