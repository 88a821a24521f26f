"""Fixtures of the served model: one micro shop per test run, shared by all workers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffgr2.rerank.reranker import Reranker
from support import featured_shop
from support.live import Live
from support.micro_shop import of_all_workers, shared

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared(tmp_path_factory)


@pytest.fixture(scope="session")
def reranker(run_dir: Path) -> Reranker:
    return Reranker.from_pretrained(run_dir / "bundle")


@pytest.fixture(scope="session")
def live(reranker: Reranker) -> Iterator[Live]:
    """A running server, for tests that leave it as they found it."""
    with Live(reranker) as server:
        yield server


@pytest.fixture(scope="session")
def own_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop whose lists have features of its own."""
    place = ("featured-shop", "DIFFGR2_FEATURED_SHOP")
    return of_all_workers(tmp_path_factory, *place, featured_shop.build)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of this machine, without a window."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()
