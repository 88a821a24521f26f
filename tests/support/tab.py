"""A tab of a browser on the served page: opened, used, and what went wrong in it.

Contract: `Tab` opens the page and collects errors of scripts and requests to elsewhere, which
`close` finds none of; its methods do what people do and wait for what they would see.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

PATIENCE_MS = 60_000
RANKED = "#result[aria-busy=false] .result"


class Tab:
    def __init__(self, browser: Any, url: str, path: str = "/", **options: Any) -> None:
        options.setdefault("viewport", {"width": 1400, "height": 900})
        options.setdefault("reduced_motion", "reduce")
        self.page, self.url = browser.new_page(**options), url
        self.page.set_default_timeout(PATIENCE_MS)
        self.problems: list[str] = []
        self.outside: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(url + path)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(self.url):
            self.outside.append(request.url)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def sound(self) -> None:
        """No script failed, nothing was loaded from elsewhere, nothing is wider than the window."""
        assert not self.problems
        assert not self.outside
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert self.page.evaluate(wide) <= 0

    def ranked(self) -> list[int]:
        """Where each of the ranking stood in the list that came, once it is there."""
        self.page.wait_for_selector(RANKED)
        return self.page.locator(".result").evaluate_all("all => all.map(n => +n.dataset.was)")

    def request(self) -> dict[str, Any]:
        """The body of the request that the page names to developers."""
        words = shlex.split(self.page.text_content("#curl").replace("\\\n", ""))
        assert words[:3] == ["curl", "-s", f"{self.url}/v1/rerank"]
        return json.loads(words[words.index("-d") + 1])

    def texts(self, what: str) -> list[str]:
        return self.page.locator(what).all_text_contents()

    def answer(self) -> dict[str, Any]:
        """The answer that the page names to developers."""
        return json.loads(self.page.text_content("#answer"))

    def stated_below(self) -> dict[str, Any]:
        """Of each candidate by name what the ranking says of it."""
        return self.page.evaluate("""() => Object.fromEntries(
          [...document.querySelectorAll(".result")].map(one => [
            one.querySelector(".title").textContent,
            { strength: one.querySelector(".why").textContent.split(".")[0].toLowerCase(),
              cites: [...one.querySelectorAll(".side > .evidence q")].map(q => q.textContent),
            }]))""")

    def stated_by(self, decoder: str) -> list[dict[str, Any]]:
        """The same as a lane says it, window by window."""
        return self.page.evaluate(
            """decoder => [...document.querySelectorAll(
                `.lane[data-decoder=${decoder}] .window`)].map(window => {
              const found = {};
              let last = null;
              for (const cell of window.querySelectorAll(".cell")) {
                const text = cell.textContent;
                if (cell.matches(".item")) last = found[text] ||= { strength: "", cites: [] };
                else if (cell.matches(".strength")) last.strength ||= text;
                else if (cell.matches(".cited")) last.cites.push(text);
              }
              return found; })""",
            decoder,
        )

    def race(self) -> None:
        """By keyboard alone."""
        self.page.focus("#run")
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("#lanes .lane:last-child[data-state=done]")
        self.page.wait_for_selector("#run[aria-disabled=false]")

    def add(self, field: str, words: str, *, found: bool = True) -> None:
        """Search the catalogue in a field and take what is marked, by keyboard alone."""
        self.page.focus(f"#q-{field}")
        self.page.keyboard.type(words)
        self.page.wait_for_selector(f"#l-{field} li")
        if not found:
            self.page.keyboard.press("ArrowUp")  # the words as they stand are the last choice
        # Shown before it is asked for anew, so that `ranked` waits for what comes of it.
        self.page.evaluate("document.getElementById('result').setAttribute('aria-busy', 'true')")
        self.page.keyboard.press("Enter")
