"""The page in a real browser: what it shows at once, the race, a link, keys."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from diffgr2.serve.limits import FILES
from diffgr2.serve.page import STATIC
from support.live import Live
from support.tab import Tab

WIDE, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
SIZES = pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
KEY = "a-key-of-sixteen-or-more"
MOST_LINES = 400


def shot(tab: Tab, name: str) -> None:
    """Keep a picture where one is asked for."""
    folder = os.environ.get("DIFFGR2_SHOTS")
    if folder:
        tab.page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


# --------------------------------------------------------------------------------- without one


def test_the_files_are_small_say_what_they_are_and_need_nothing_from_outside(live: Live) -> None:
    pages = {"index.html", "docs.html"}
    assert {path.name for path in STATIC.iterdir()} == pages | {*FILES}
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"https?://|@import|\burl\(", text), path.name
        assert len(text.splitlines()) <= MOST_LINES, path.name
        if path.suffix == ".js":
            assert text.startswith("// Contract: "), path.name
            assert "Not here: " in text.split("\n\n")[0], path.name
        if path.suffix == ".html":  # the policy allows neither
            assert not re.findall(r"<script(?![^>]*\ssrc=)|<style| style=| on\w+=", text), path.name
    with live.client() as client:
        for name in FILES:
            answer = client.get(f"/static/{name}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/")
        policy = client.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


def test_its_data_is_that_of_the_catalogue(live: Live, reranker: Reranker) -> None:
    with live.client() as client:
        told = client.get("/page/shoppers").json()
        assert len(told["shoppers"]) >= 20
        first = told["shoppers"][0]
        users = {one["user"] for one in told["shoppers"]}
        assert told["examples"]
        assert {*told["examples"]} <= users
        history = [card["id"] for card in first["history"]]
        data = client.get("/page/candidates", params={"h": history, "user": first["user"]}).json()
    assert len(data["candidates"]) == reranker.k
    assert [card["id"] for card in data["history"]] == history
    assert not set(history) & {card["id"] for card in data["candidates"]}
    phrases = {text for one in told["tokens"].values() if (text := one.get("text"))}
    for card in data["candidates"]:
        assert all(0 <= piece["level"] < data["levels"] for piece in card["evidence"])
        assert {piece["said"] for piece in card["evidence"]} <= phrases


def test_a_list_of_ones_own_has_its_evidence_and_its_errors(live: Live, reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    with live.client() as client:
        own = client.get("/page/candidates", params={"h": raw[:2], "c": ["mild soap", raw[7]]})
        cards = own.json()["candidates"]
        assert [card.get("id") for card in cards] == [None, raw[7]]
        assert cards[0]["title"] == "mild soap"
        for params, field in (
            ({"h": "zqxwv"}, "history"),
            ({"h": raw[0], "c": ""}, "documents"),
            ({"h": raw[0], "c": ["x"] * 101}, "documents"),
            ({"h": raw[0], "c": raw[7], "f": "{"}, "features"),
            ({"h": raw[0], "c": raw[7], "f": "3"}, "documents"),
        ):
            answer = client.get("/page/candidates", params=params)
            assert answer.status_code == 422, params
            assert answer.json()["error"]["param"] == field, answer.text
        assert client.get("/page/candidates", params={"model": "none"}).status_code == 404


def test_the_search_finds_by_all_words(live: Live, reranker: Reranker) -> None:
    catalogue = reranker.catalogue
    with live.client() as client:

        def found(words: str) -> list[str]:
            answer = client.get("/page/items", params={"q": words})
            return [card["id"] for card in answer.json()["items"]]

        assert found(catalogue.raw_ids[17].lower()) == [catalogue.raw_ids[17]]
        title = catalogue.titles[12]
        assert catalogue.raw_ids[12] in found(" ".join(reversed(title.upper().split())))
        assert found("zqxwv") == []
        assert 0 < len(found("")) <= 12
        assert client.get("/page/items", params={"q": "x" * 2049}).status_code == 422


# ----------------------------------------------------------------------------------- in a browser


@SIZES
def test_an_example_is_ranked_on_the_first_screen(live: Live, browser, size: Any) -> None:
    with Tab(browser, live.url, viewport=size) as tab:
        order = tab.ranked()
        assert sorted(order) == list(range(live.reranker.k))
        for what in ("h1", "header p", "#summary", "#run", ".result:first-child .why"):
            box = tab.page.locator(what).bounding_box()
            assert box["y"] + box["height"] <= size["height"], what
        with live.client() as client:
            answer = client.post("/v1/rerank", json=tab.request()).json()
        assert [one["index"] for one in answer["results"]] == order
        said = tab.page.locator(".result .why").all_inner_texts()
        for text in said[:3]:  # what the server itself says of the first ones
            assert text[0].lower() + text[1:] in answer["reasoning"], text
        for now, was in enumerate(order):
            mark = tab.page.locator(".result .move > :first-child").nth(now).inner_text()
            up = was - now
            assert mark == ("=" if not up else f"▲{up}" if up > 0 else f"▼{-up}")
        cited = tab.page.locator(".side > .evidence q").all_inner_texts()
        assert all(any(phrase in text for text in said) for phrase in cited)
        tab.sound()


@SIZES
def test_decoders_race_side_by_side_where_the_eye_is(live: Live, browser, size: Any) -> None:
    with Tab(browser, live.url, viewport=size) as tab:
        tab.ranked()
        tab.race()
        assert tab.page.evaluate("document.activeElement.id") == "run"  # the focus stays
        lanes = tab.page.locator(".lane")
        names = lanes.evaluate_all("all => all.map(n => n.dataset.decoder)")
        assert names == list(live.reranker.decoders)
        boxes = [lanes.nth(n).locator(".figures").bounding_box() for n in range(len(names))]
        assert len({round(box["y"]) for box in boxes}) == 1
        assert all(box["y"] + box["height"] < size["height"] for box in boxes)
        assert all(a["x"] + a["width"] <= b["x"] for a, b in pairwise(boxes))
        with live.client() as client:
            for n, name in enumerate(names):
                body = tab.request()
                body["decode"]["decoder"] = name
                decode = client.post("/v1/rerank", json=body).json()["decode"]
                time, forwards, each = lanes.nth(n).locator(".figures b").all_inner_texts()
                assert int(time) > 0
                assert int(forwards) == decode["forwards"]
                assert float(each) == pytest.approx(decode["tokens_per_forward"], abs=0.06)
                assert lanes.nth(n).locator(".cell").count() == decode["tokens"]
                steps = lanes.nth(n).locator(".steps li b").all_text_contents()
                committed = sum(int(re.findall(r"(\d+) token", text)[0]) for text in steps)
                assert committed >= decode["tokens"]
        tab.page.wait_for_function(
            "() => [...document.querySelectorAll('.lane .end')].every(one => one.textContent)"
        )
        assert sum("the ranking below" in text for text in tab.texts(".lane .end")) == 1
        words = lanes.first.locator(".cell").all_inner_texts()
        assert not any("<" in word for word in words)
        tab.page.check("#raw")
        assert lanes.first.locator(".cell").first.inner_text() == "<c_1>"
        tab.page.uncheck("#raw")
        assert lanes.first.locator(".cell").all_inner_texts() == words
        tab.sound()
        shot(tab, "wide" if size is WIDE else "phone")


@pytest.mark.parametrize(("decoder", "views"), [("ar", 1), ("block", 1), ("verify", 3)])
def test_the_lane_of_the_ranking_states_what_the_ranking_states(
    live: Live, browser, decoder: str, views: int
) -> None:
    """Of every candidate the same strength and the same evidence, in whatever order it shows them;
    and that of another decoder what that one answers."""
    link = f"/#d={decoder}&v={views}"
    with Tab(browser, live.url, link) as tab:
        before = tab.ranked()
        tab.race()
        assert tab.ranked() == before
        below = tab.stated_below()
        assert [one["index"] for one in tab.answer()["results"]] == before
        lane = tab.page.locator(f".lane[data-decoder={decoder}]")
        assert "the ranking below" in lane.locator(".end").text_content()
        assert decoder in tab.page.inner_text("#lanes-say").rpartition("below")[2]
        windows = tab.stated_by(decoder)
        assert len(windows) == views
        assert windows[0] == below
        for window in windows:  # what counts is one strength, whichever view says it
            assert {name: one["strength"] for name, one in window.items()} == {
                name: one["strength"] for name, one in below.items()
            }
        for other in {*live.reranker.decoders} - {decoder}:
            body = tab.request()
            body["decode"]["decoder"] = other
            with live.client() as client:
                answer = client.post("/v1/rerank", json=body).json()
            told = tab.page.locator(f".lane[data-decoder={other}] .end").text_content()
            places = sum(
                one["index"] != at for one, at in zip(answer["results"], before, strict=True)
            )
            assert (f"{places} place" in told) if places else ("same order" in told)
        tab.sound()


def test_a_link_shows_the_same(live: Live, browser) -> None:
    catalogue = live.reranker.catalogue
    with Tab(browser, live.url) as tab:
        tab.ranked()
        tab.add("past", catalogue.raw_ids[5])
        tab.ranked()
        tab.add("own", catalogue.titles[12])
        assert len(tab.ranked()) == live.reranker.k + 1
        tab.page.check("input[name=decoder][value=ar]")
        tab.page.wait_for_function("() => document.getElementById('say').innerText.includes('ar:')")
        order, body = tab.ranked(), tab.request()
        assert body["history"][-1] == catalogue.raw_ids[5]
        assert body["documents"][-1] == catalogue.raw_ids[12]
        assert body["decode"]["decoder"] == "ar"
        assert "user_id" not in body  # a history of one's own is nobody's
        tab.race()
        link = tab.page.url
        tab.sound()
    with Tab(browser, live.url, link.removeprefix(live.url)) as tab:
        assert tab.ranked() == order
        assert tab.request() == body
        tab.page.wait_for_selector(".lane:last-child[data-state=done]")
        tab.page.click("#link")
        tab.page.wait_for_function("() => document.getElementById('say').innerText.length > 5")
        tab.sound()


def test_where_keys_are_set_both_pages_ask_for_one(reranker: Reranker, browser) -> None:
    with Live(reranker, keys=Keys([KEY])) as server:
        with Tab(browser, server.url) as tab:
            tab.page.wait_for_selector("#key-wrong:not(:empty)")
            assert "API key" in tab.page.inner_text("#key-wrong")
            tab.page.fill("#key", KEY)
            tab.page.keyboard.press("Enter")
            tab.ranked()
            assert not tab.page.is_visible("#key")
            assert KEY not in tab.page.content() + tab.page.url
            assert "$DIFFGR2_KEY" in tab.page.text_content("#curl")
            tab.race()
            tab.sound()
        with Tab(browser, server.url, "/docs") as tab:
            tab.page.wait_for_selector("#key-wrong:not(:empty)")
            tab.page.fill("#key", "no-key-of-this-server")
            tab.page.keyboard.press("Enter")
            assert tab.page.is_visible("#key")
            assert not tab.page.locator(".try").count()
            tab.page.fill("#key", KEY)
            tab.page.keyboard.press("Enter")
            box = tab.page.locator(".try").first
            box.locator("button").click()
            box.locator(".status.good").wait_for()
            tab.sound()


def test_the_api_page_sends_its_examples(live: Live, browser) -> None:
    with Tab(browser, live.url, "/docs", viewport=PHONE) as tab:
        box = tab.page.locator(".try").first
        box.wait_for()
        assert live.url in box.locator("details pre").text_content()
        box.locator("button").click()
        box.locator(".status.good").wait_for()
        assert '"results"' in box.locator(".answer").inner_text()
        shot(tab, "docs")
        tab.sound()
        box.locator("textarea").fill("{")
        box.locator("button").click()
        box.locator(".status.bad").wait_for()
        assert '"error"' in box.locator(".answer").inner_text()
        assert not tab.outside


def test_motion_is_for_who_wants_it(live: Live, browser) -> None:
    moving = "getComputedStyle(document.querySelector('.pace i')).transitionDuration"
    with Tab(browser, live.url) as tab:
        tab.ranked()
        tab.race()
        assert tab.page.evaluate(moving) == "0s"
        tab.page.emulate_media(reduced_motion="no-preference")
        assert tab.page.evaluate(moving) != "0s"
