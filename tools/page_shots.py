"""Pictures of the page that a bundle is served with, as they stand in `docs/`.

Contract: `python tools/page_shots.py BUNDLE` serves the bundle on a free port, opens the page in a
Chromium of this machine, runs the race and writes `docs/page.png` (1400 x 900) and
`docs/page_phone.png` (390 x 844), compressed. `--all DIR` writes what a reviewer looks at instead:
before and after the race, light and dark, with an error, whole pages. Not here: tests of the page
(`tests/serve/test_page.py`).
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from diffgr2 import Reranker
from diffgr2.serve.app import make_app
from diffgr2.serve.limits import Limits
from diffgr2.serve.wire import make_server

DOCS = Path(__file__).parents[1] / "docs"
SIZES = {"page": (1400, 900), "page_phone": (390, 844)}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLOURS = 128  # of a picture: text on plain grounds has few
MOST = 250_000  # bytes


@contextmanager
def served(bundle: Path) -> Iterator[str]:
    """The page's address, while it is served."""
    limits = Limits()
    app = make_app(Reranker.from_pretrained(bundle), limits=limits)
    server = make_server(app, limits, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            sys.exit(f"{bundle}: the server did not start")
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def kept(png: bytes, path: Path) -> None:
    """The picture with few colours; an error where it is too large for a repository."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {size / 1e3:.0f} kB")
    if size > MOST:
        sys.exit(f"{path}: more than {MOST / 1e3:.0f} kB")


def opened(browser: Any, url: str, size: tuple[int, int], scheme: str = "light") -> Any:
    """The page, its example ranked."""
    page = browser.new_page(
        viewport={"width": size[0], "height": size[1]},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    page.goto(url)
    page.wait_for_selector("#result[aria-busy=false] .result", timeout=60_000)
    return page


def raced(page: Any) -> None:
    """Press the button and wait for the end."""
    page.click("#run")
    page.wait_for_selector("#lanes .lane:last-child[data-state=done]", timeout=60_000)
    page.wait_for_selector("#run[aria-disabled=false]")


def for_review(browser: Any, url: str, out: Path) -> None:
    """See the module's docstring."""
    out.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        for scheme in ("light", "dark"):
            page = opened(browser, url, size, scheme)
            kept(page.screenshot(), out / f"{name}_{scheme}_first.png")
            raced(page)
            kept(page.screenshot(), out / f"{name}_{scheme}_raced.png")
            if scheme == "light":
                page.check("#raw")
                kept(page.screenshot(full_page=True), out / f"{name}_{scheme}_whole.png")
            page.fill("#q-past", "zqxwv")
            page.wait_for_selector("#l-past li")
            page.press("#q-past", "Enter")
            page.wait_for_selector("#past-wrong:not(:empty)", timeout=60_000)
            page.locator("#ask").scroll_into_view_if_needed()
            kept(page.screenshot(), out / f"{name}_{scheme}_error.png")
            page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the page.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--all", type=Path, metavar="DIR", help="what a reviewer looks at")
    given = parser.parse_args()
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        sys.exit("no Chromium on this machine (Debian: apt-get install chromium)")
    with served(given.bundle) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        if given.all:
            for_review(browser, url, given.all)
        else:
            for name, size in SIZES.items():
                page = opened(browser, url, size)
                raced(page)
                kept(page.screenshot(), DOCS / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
