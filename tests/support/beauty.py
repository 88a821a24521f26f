"""The Beauty files, where a checkout has them beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

PLACE = Path(__file__).parents[3] / "shared" / "data" / "beauty"

FILES = [f"data.{name}={(PLACE / name).resolve()}.parquet" for name in ("interactions", "items")]
"""As changes of the recipe."""

needs_beauty = pytest.mark.skipif(
    not (PLACE / "interactions.parquet").is_file(), reason="the Beauty files are not here"
)
