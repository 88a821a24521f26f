"""The page of a shop that has features of its own: edited, ranked by, and wrong values told."""

from __future__ import annotations

from support.live import Live
from support.tab import Tab


def test_features_are_edited_and_what_they_cannot_be_is_told(live: Live, browser) -> None:
    with Tab(browser, live.url) as tab:
        k = len(tab.ranked())
        tab.page.click("#candidates > summary")
        tab.page.click("#before li:first-child .features summary")
        tab.page.fill("#feature-0-price", "3")
        tab.page.press("#feature-0-price", "Tab")
        tab.page.locator("#curl", has_text="price").wait_for(state="attached")
        assert len(tab.ranked()) == k
        assert tab.page.evaluate("document.activeElement.id") == "feature-0-ctr"
        assert tab.request()["documents"][0]["features"] == {"price": 3}
        tab.page.wait_for_selector("#before li:first-child .features[open]")
        tab.page.select_option("#feature-0-badge", "eco")
        tab.page.locator("#curl", has_text="eco").wait_for(state="attached")
        tab.ranked()
        tab.page.fill("#feature-0-price", "cheap")
        tab.page.press("#feature-0-price", "Tab")
        told = tab.page.locator("#own-wrong:not(:empty)")
        assert told.inner_text().startswith("Feature price: expected a number")
        assert tab.page.get_attribute("#feature-0-price", "aria-invalid") == "true"
        assert len(tab.ranked()) == k
        tab.sound()
