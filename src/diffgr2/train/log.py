"""The metrics log: one JSON line per optimizer step, with the names TRL uses.

Contract: the log lives in memory and in `metrics.jsonl`; a checkpoint carries its bytes, and a
resumed run starts from those bytes, so that lines past the checkpoint are cut and the finished file
equals an uninterrupted run's but for `step_time`. Not here: progress for people
(`diffgr2.progress`).
"""

import json
from pathlib import Path
from typing import Any

from diffgr2.artifacts import replacing

METRICS = "metrics.jsonl"


def without_wall(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines without what depends on the clock: the rest is equal in every run of one seed."""
    return [{k: v for k, v in line.items() if k != "step_time"} for line in lines]


class MetricsLog:
    """Appends metrics; with `path` None it only remembers (other ranks)."""

    def __init__(self, path: Path | None, raw: bytes = b"") -> None:
        self.lines: list[dict[str, Any]] = [json.loads(text) for text in raw.splitlines()]
        self.raw = bytearray(raw)
        self._path = path
        # A finished run that is run again touches no file.
        if path is not None and not (path.is_file() and path.read_bytes() == raw):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(raw)

    def append(self, line: dict[str, Any]) -> None:
        """Add the metrics of the next step."""
        raw = json.dumps(line, allow_nan=False).encode() + b"\n"
        self.lines.append(line)
        self.raw += raw
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(raw)
