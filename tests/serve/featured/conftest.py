"""Here `reranker` and `live` are those of a shop whose lists have features of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from diffgr2 import Reranker
from support.live import Live


@pytest.fixture(scope="session")
def reranker(own_dir: Path) -> Reranker:
    return Reranker.from_pretrained(own_dir / "bundle")


@pytest.fixture(scope="session")
def live(reranker: Reranker) -> Iterator[Live]:
    with Live(reranker) as server:
        yield server
