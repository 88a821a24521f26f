"""The page in a real browser with other models: of other templates, and two at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.app import make_app
from support import worded_shop
from support.live import Live
from support.tab import Tab


def test_two_models_are_switched_between(reranker: Reranker, run_dir: Path, browser) -> None:
    server = Live(reranker)
    plain = Reranker.from_pretrained(run_dir / "bundle_ar")
    server.replace(make_app({"fast": reranker, "plain": plain}))
    three, one = list(reranker.decoders), ["ar"]
    with server:
        with Tab(browser, server.url) as tab:
            tab.ranked()
            assert tab.texts("#model option") == ["fast", "plain"]
            assert "model" not in tab.request()
            tab.race()
            tab.page.select_option("#model", "plain")
            tab.page.locator("#curl", has_text='"plain"').wait_for(state="attached")
            order = tab.ranked()
            assert tab.answer()["model"] == "plain"
            assert not tab.page.is_visible("#race")
            ways = tab.page.locator("input[name=decoder]")
            assert ways.evaluate_all("all => all.map(n => n.value)") == one
            tab.race()
            assert tab.page.locator(".lane").count() == 1
            assert tab.stated_by("ar") == [tab.stated_below()]
            link = tab.page.url
            tab.sound()
            tab.page.select_option("#model", "fast")
            tab.page.locator("#curl", has_text='"fast"').wait_for(state="attached")
            tab.ranked()
            assert tab.answer()["model"] == "fast"
            assert ways.evaluate_all("all => all.map(n => n.value)") == three
            tab.sound()
        with Tab(browser, server.url, link.removeprefix(server.url)) as tab:
            assert tab.ranked() == order
            assert tab.page.input_value("#model") == "plain"
            tab.sound()
        with Tab(browser, server.url, "/#m=plain&d=block") as tab:
            tab.ranked()
            assert "no decoder “block”" in tab.page.inner_text("#missed")
            assert tab.answer()["decode"]["decoder"] == "ar"


@pytest.fixture(scope="module", params=["brief", "gr2"])
def worded(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A served model that reads and writes words."""
    kept = os.environ.get("DIFFGR2_WORDED_SHOP")  # a directory that outlives the test run
    root = Path(kept) if kept else tmp_path_factory.mktemp("worded-shop")
    run = worded_shop.build(root / request.param, request.param)
    with Live(Reranker.from_pretrained(run / "bundle")) as server:
        yield server


@pytest.mark.slow  # trains a model of each template
def test_models_that_write_words_are_shown_too(worded: Live, browser) -> None:
    with Tab(browser, worded.url) as tab:
        before = tab.ranked()
        assert sorted(before) == list(range(worded.reranker.k))
        assert tab.page.inner_text("#summary")
        tab.race()
        assert tab.ranked() == before
        lanes = tab.page.locator(".lane")
        assert lanes.count() == len(worded.reranker.decoders)
        assert lanes.first.locator(".cell").count()
        text = tab.page.inner_text("main")
        assert not re.search(r"undefined|NaN|null|\[object|Ġ|Ċ", text)
        spoken = tab.page.is_visible("#viewbox")
        assert spoken == ("said" in worded.reranker.answers)
        assert (tab.page.locator(".chance").count() > 0) == spoken  # of a rank alone there is none
        if spoken:  # it states strengths, in words that the page knows
            assert tab.stated_by(tab.answer()["decode"]["decoder"]) == [tab.stated_below()]
        tab.page.check("#raw")
        assert lanes.first.locator(".cell").first.text_content()
        tab.sound()
