"""Golden bundles, which `tools/golden.py` made: of each format one, with answers of its time."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.name.removesuffix(".tar.xz") for path in GOLDEN.glob("*.tar.xz"))
ANSWERED = [name for name in NAMES if (GOLDEN / f"{name}.json").exists()]


def unpacked(name: str, to: Path) -> Path:
    """The bundle of this name."""
    with tarfile.open(GOLDEN / f"{name}.tar.xz") as archive:
        archive.extractall(to, filter="data")
    return to / "bundle"


def answers(name: str) -> list[dict[str, Any]]:
    """Requests, and what the version that packed the bundle answered."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
