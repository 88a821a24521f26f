"""The page in a real browser: what a link or a mistake asks for in vain, and what opens instead."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffgr2.rerank.reranker import Reranker
from support import bundles
from support.live import Live
from support.tab import Tab


def test_errors_stand_where_the_mistake_is_in_the_words_of_the_page(live: Live, browser) -> None:
    with Tab(browser, live.url) as tab:
        k = len(tab.ranked())
        n = len(tab.request()["history"])
        tab.add("past", "zqxwv", found=False)
        told = tab.page.locator("#past-wrong:not(:empty)")
        assert "none of its words is known" in told.inner_text()
        assert told.inner_text().startswith(f"Purchase {n + 1}, “zqxwv”: ")
        assert told.inner_text() in tab.page.inner_text("#summary")
        wrong = tab.page.locator("#past [aria-invalid=true]")
        assert wrong.inner_text().startswith("zqxwv")
        assert tab.page.locator(".result").count() == 0
        wrong.get_by_role("button", name="Remove zqxwv").press("Enter")
        assert len(tab.ranked()) == k
        assert tab.page.inner_text("#past-wrong") == ""
        tab.add("own", "zqxwv", found=False)
        assert len(tab.ranked()) == k + 1
        told = tab.page.locator("#own-wrong:not(:empty)").inner_text()
        assert told.startswith(f"Candidate {k + 1}: “zqxwv” keeps its place")
        assert tab.page.locator("#before [aria-invalid=true]").inner_text().startswith("zqxwv")
        assert "Not judged" in tab.page.inner_text(f".result:nth-child({k + 1}) .why")
        twice = tab.request()["documents"][0]
        tab.add("own", twice)
        assert len(tab.ranked()) == k + 2
        told = tab.page.locator("#own-wrong").inner_text()
        assert "the same item as candidate 1, “" in told
        assert not re.search(r"documents|\[\d", told)
        tab.sound()


@pytest.mark.parametrize(
    ("link", "slot", "told"),
    [
        ("v=99", "#views-wrong", "How often it looks: at most 16."),
        ("h=P0&h=", "#past-wrong", "Purchase 1, “P0”: "),
        ("h={0}&c=%20", "#own-wrong", "Candidate 1: empty text."),
        ("h={0}&c={1}&f0=%5B3%5D", "#own-wrong", "Candidate 1, “"),
    ],
)
def test_what_a_link_asks_in_vain_is_told_at_its_field(
    live: Live, browser, link: str, slot: str, told: str
) -> None:
    raw = live.reranker.catalogue.raw_ids
    with Tab(browser, live.url, "/#" + link.format(raw[0], raw[1])) as tab:
        tab.page.wait_for_selector(f"{slot}:not(:empty)", state="attached")
        text = tab.page.text_content(slot)
        assert text.startswith(told), text
        assert not re.search(r"documents|decode\.|Input|\[\d", text)
        tab.sound()


@pytest.mark.parametrize(
    ("link", "named", "instead"),
    [
        ("d=foo", "decoder “foo”", "it writes with block"),
        ("u=nobody", "shopper “nobody”", "this is an example"),
        ("u=nobody&h={0}", "shopper “nobody”", "the history of the link"),
        ("m=other", "model “other”", "this is “micro-shop”"),
        ("h={0}&c={1}&c={2}&f1=x", "features of candidate 2", "ranked without"),
    ],
)
def test_a_link_says_what_of_it_is_not_there_and_what_is_shown_instead(
    live: Live, browser, link: str, named: str, instead: str
) -> None:
    with Tab(browser, live.url, "/#" + link.format(*live.reranker.catalogue.raw_ids)) as tab:
        assert tab.ranked()
        told = tab.page.inner_text("#missed")
        assert named.lower() in told.lower()
        assert instead in told
        assert told.count(". ") == 0  # one line
        assert "foo" not in json.dumps(tab.request())
        assert "user_id" not in tab.request() or tab.request()["user_id"] != "nobody"
        tab.page.check("input[name=views][value='3']")
        tab.page.wait_for_function("() => !document.getElementById('missed').textContent")
        tab.sound()


def test_a_link_shows_any_shopper_of_the_bundle(live: Live, browser) -> None:
    with live.client() as client:
        few = {one["user"] for one in client.get("/page/shoppers").json()["shoppers"]}
    other = next(user for user in live.reranker.raw_users if user not in few)
    with Tab(browser, live.url, f"/#u={other}") as tab:
        assert tab.ranked()
        assert tab.request()["user_id"] == other
        assert tab.page.inner_text("#missed") == ""


def test_the_newest_purchases_stand_on_top_and_the_rest_behind_a_door(live: Live, browser) -> None:
    raw = live.reranker.catalogue.raw_ids[:9]
    titles = live.reranker.catalogue.titles[:9][::-1]
    with Tab(browser, live.url, "/#" + "&".join(f"h={one}" for one in raw)) as tab:
        tab.ranked()
        assert tab.texts("#past li > span") == titles[:5]
        assert not tab.page.locator("#older li").first.is_visible()
        tab.page.focus("#older summary")
        tab.page.keyboard.press("Enter")
        assert tab.texts("#older li > span") == titles[5:]
        tab.page.locator("#older li button").last.press("Enter")  # the oldest one
        tab.page.wait_for_function("() => document.querySelectorAll('#older li').length === 3")
        tab.ranked()
        assert tab.request()["history"] == raw[1:]
        tab.sound()


def test_what_opens_first_is_a_list_that_changes(live: Live, browser) -> None:
    """Of the examples the first whose top is another one, or else the last."""
    with live.client() as client:
        examples = client.get("/page/shoppers").json()["examples"]
    with Tab(browser, live.url) as tab:
        order, body = tab.ranked(), tab.request()
        tried = examples[: examples.index(body["user_id"]) + 1]
        assert order[0] != 0 or tried == examples
        with live.client() as client:
            for user in tried[:-1]:
                told = client.get("/page/shoppers").json()["shoppers"]
                past = next(one["history"] for one in told if one["user"] == user)
                past = [card["id"] for card in past]
                cards = client.get("/page/candidates", params={"h": past, "user": user}).json()
                given = [card["id"] for card in cards["candidates"]]
                asked = {**body, "user_id": user, "history": past, "documents": given}
                asked["scores"] = [card["score"] for card in cards["candidates"]]
                answer = client.post("/v1/rerank", json=asked).json()
                reasons = [one["evidence"] for one in answer["decisions"][:3]]
                cites = [any(p and p[0]["side"] for p in one) for one in reasons]
                assert answer["results"][0]["index"] == 0 or not all(cites)


def test_only_a_simulated_shop_is_said_to_be_one(
    live: Live, run_dir: Path, tmp_path: Path, browser
) -> None:
    with Tab(browser, live.url) as tab:
        tab.ranked()
        assert "diffgr2" in tab.page.inner_text("h1")
        assert "simulated shop" in tab.page.inner_text("header")
    closed = Reranker.from_pretrained(bundles.private(run_dir / "bundle", tmp_path / "bundle"))
    with Live(closed) as server, Tab(browser, server.url, "/#u=U1") as tab:
        assert len(tab.ranked()) == closed.k
        assert "simulated" not in tab.page.inner_text("header")
        assert "shopper “U1”" in tab.page.inner_text("#missed").lower().replace("u1", "U1")
        assert not tab.page.is_visible("#user")
        assert "user_id" not in tab.request()
        tab.sound()
