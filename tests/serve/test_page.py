"""The page in a real browser: pick a shopper, run, see two decoders end in permutations."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.page import STATIC
from support import bundles
from support.live import Live

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


def test_the_page_needs_nothing_from_outside() -> None:
    text = STATIC.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'\s>]*//""", text)
    assert "@import" not in text
    assert not re.findall(r"https?://", text)
    controls = re.findall(r"<(?:select|textarea|input)[^>]*id=\"(\w+)\"", text)
    for name in controls:  # every control stands inside a label
        before = text[: text.index(f'id="{name}"')]
        assert before.count("<label") > before.count("</label>"), name


def test_its_data_is_that_of_the_catalogue(live: Live, reranker) -> None:
    with live.client() as client:
        shoppers = client.get("/page/shoppers").json()["shoppers"]
        assert len(shoppers) >= 20
        first = shoppers[0]
        history = [card["id"] for card in first["history"]]
        data = client.get("/page/candidates", params={"h": history, "user": first["user"]}).json()
    assert len(data["candidates"]) == reranker.k
    assert not set(history) & {card["id"] for card in data["candidates"]}
    for card in data["candidates"]:
        assert all(0 <= piece["level"] < data["levels"] for piece in card["evidence"])


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


def shot(page, name: str) -> None:
    """Keep a picture where one is asked for."""
    folder = os.environ.get("DIFFGR2_SHOTS")
    if folder:
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def run_page(live: Live, browser, width: int, height: int, name: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    # Newer Chromium may call a stream aborted that the page has read to its end; that both streams
    # did end is what the lanes and "Done." say below.
    page.on(
        "requestfailed",
        lambda r: None if r.url.endswith("/v1/rerank") else problems.append(r.url),
    )
    outside = []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(live.url) else None)
    page.goto(live.url)
    page.wait_for_selector("#before li")
    page.wait_for_selector("text=Ready")
    page.select_option("#shopper", index=3)
    page.wait_for_timeout(300)
    # By keyboard alone: from the shopper to the button, and press it.
    page.focus("#shopper")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "run"
    page.keyboard.press("Enter")
    for side in ("left", "right"):
        page.wait_for_selector(f"#lane-{side}[data-state=done]", timeout=60_000)
    page.wait_for_selector("text=Done.")
    shot(page, name)
    k = live.reranker.k
    for side in ("left", "right"):
        lane = page.locator(f"#lane-{side}")
        was = lane.locator(".ranking li").evaluate_all("nodes => nodes.map(n => +n.dataset.was)")
        assert sorted(was) == list(range(k))
        tokens = int(lane.locator("[data-n=tokens]").inner_text())
        forwards = int(lane.locator("[data-n=forwards]").inner_text())
        assert forwards > 0
        assert lane.locator(".canvas .in").count() >= tokens
        text = lane.locator(".why").inner_text()
        first = lane.locator(".ranking .title").first.inner_text()
        assert first in text.splitlines()[1]  # the verdict names it
        assert lane.locator(".ranking .how").count() == k
    left = int(page.locator("#lane-left [data-n=tokens]").inner_text())
    assert left >= int(page.locator("#lane-left [data-n=forwards]").inner_text())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not outside
    assert not problems
    page.close()


def test_a_shopper_is_ranked_by_two_decoders_side_by_side(live: Live, browser) -> None:
    run_page(live, browser, 1200, 900, "wide")


def test_it_works_at_a_phones_width(live: Live, browser) -> None:
    run_page(live, browser, 375, 740, "phone")


def test_a_pasted_history_and_what_cannot_be_read(live: Live, browser) -> None:
    page = browser.new_page()
    page.goto(live.url)
    page.wait_for_selector("text=Ready")
    title = live.reranker.catalogue.titles[12]
    page.fill("#history", f"{title}\n{live.reranker.catalogue.raw_ids[5]}")
    page.click("#run")
    page.wait_for_selector("#lane-right[data-state=done]", timeout=60_000)
    assert title in page.inner_text("#past")
    page.fill("#history", "zqxwv")
    page.click("#run")
    page.wait_for_selector("#say.bad")
    assert "none of its words is known" in page.inner_text("#say")
    page.close()


def test_where_shoppers_are_private_a_history_is_written(
    run_dir: Path, tmp_path: Path, browser
) -> None:
    closed = Reranker.from_pretrained(bundles.private(run_dir / "bundle", tmp_path / "bundle"))
    with Live(closed) as server:
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(server.url)
        page.wait_for_selector("text=Ready: write a history")
        assert not page.is_visible("#shopper")
        page.fill("#history", closed.catalogue.raw_ids[5])
        page.click("#run")
        page.wait_for_selector("#lane-right[data-state=done]", timeout=60_000)
        assert not problems
        page.close()


def test_the_api_page_sends_its_examples(live: Live, browser) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 740})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    outside = []
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith(live.url) else None)
    page.goto(f"{live.url}/docs")
    box = page.locator(".try").first
    assert live.url in box.locator("details pre").text_content()
    box.locator("button").click()
    box.locator(".status.good").wait_for(timeout=60_000)
    assert '"results"' in box.locator(".answer").inner_text()
    shot(page, "docs")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not problems
    box.locator("textarea").fill("{")
    box.locator("button").click()
    box.locator(".status.bad").wait_for(timeout=60_000)
    assert not outside
    page.close()
