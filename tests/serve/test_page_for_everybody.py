"""The pages by axe-core: no violation, wide and on a phone, light and dark, whatever is shown.

The rules are a package's that is never shipped (`pip install axe-core-python`, or `npm install
axe-core` beside the source); without it these tests are skipped.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import pytest

from support.live import Live
from support.tab import Tab

ROOT = Path(__file__).parents[2]
WIDTHS = {1400: 900, 390: 844}
RUN = """async (rules) => (await axe.run(document, {
  resultTypes: ["violations"], ...(rules ? { runOnly: rules } : {}) })).violations"""
COLOURS = ["color-contrast", "link-in-text-block"]  # what a scheme may change


def source() -> str | None:
    """The rules as a script."""
    found = [ROOT / "node_modules" / "axe-core" / "axe.min.js"]
    for package in ("axe_core_python", "axe_playwright_python"):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or []:
            found += sorted(Path(folder).rglob("axe*.js"))
    return next((path.read_text(encoding="utf-8") for path in found if path.is_file()), None)


@pytest.fixture(scope="module")
def axe() -> str:
    text = source()
    if text is None:
        pytest.skip("needs axe-core (pip install axe-core-python, or npm install axe-core)")
    return text


def violations(tab: Tab, axe: str) -> list[Any]:
    """At both widths, light and dark."""
    found: list[Any] = []
    if not tab.page.evaluate("typeof axe === 'object'"):
        tab.page.evaluate(axe)
    for (width, height), scheme in itertools.product(WIDTHS.items(), ("light", "dark")):
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.emulate_media(color_scheme=scheme)
        for one in tab.page.evaluate(RUN, COLOURS if scheme == "dark" else None):
            nodes = [(node["html"][:160], node["failureSummary"][:240]) for node in one["nodes"]]
            found.append((width, scheme, one["id"], nodes[:3]))
    return found


def test_the_page(live: Live, browser, axe: str) -> None:
    with Tab(browser, live.url) as tab:
        tab.ranked()
        assert violations(tab, axe) == []
        tab.race()
        opened = "#developers, #candidates, .result:first-child details, .lane:first-child details"
        tab.page.evaluate(f"document.querySelectorAll('{opened}').forEach(one => one.open = true)")
        assert violations(tab, axe) == []
        tab.page.focus("#q-past")
        tab.page.keyboard.type("a")
        tab.page.wait_for_selector("#l-past li")
        assert violations(tab, axe) == []
        tab.page.keyboard.press("Escape")
        tab.add("past", "zqxwv", found=False)
        tab.page.wait_for_selector("#past-wrong:not(:empty)")
        assert violations(tab, axe) == []


def test_the_page_of_the_api(live: Live, browser, axe: str) -> None:
    with Tab(browser, live.url, "/docs") as tab:
        tab.page.locator(".try button").first.click()
        tab.page.locator(".status.good").first.wait_for()
        assert violations(tab, axe) == []


def test_everything_is_reached_by_keyboard_and_seen(live: Live, browser) -> None:
    """Tab walks through every control once, and each shows that it has the focus."""
    reachable = "a[href], button, input, select, textarea, summary, [tabindex='0']"
    with Tab(browser, live.url) as tab:
        tab.ranked()
        wanted = tab.page.evaluate(
            """which => [...document.querySelectorAll(which)].filter((one) => one.checkVisibility()
              && !one.disabled && (one.type !== "radio" || one.checked)).length""",
            reachable,
        )
        tab.page.evaluate("document.activeElement.blur()")
        seen = set()
        for _ in range(wanted + 3):
            tab.page.keyboard.press("Tab")
            at, outline = tab.page.evaluate(
                """which => [[...document.querySelectorAll(which)].indexOf(document.activeElement),
                  getComputedStyle(document.activeElement).outlineStyle]""",
                reachable,
            )
            if at >= 0:
                seen.add(at)
                assert outline != "none", at
        assert len(seen) == wanted
