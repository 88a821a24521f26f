"""The API page at `/docs`: complete, self-contained, and every request on it is answered."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser

from diffgr2.serve.docs import SHELL, kind_of, sending
from diffgr2.serve.page import POLICY
from support.live import Live


class Tries(HTMLParser):
    """The requests that the page offers, as (method, path, body)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str | None]] = []
        self._in_body = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("class") == "try":
            self.found.append((str(given["data-method"]), str(given["data-path"]), None))
        self._in_body = tag == "textarea"

    def handle_data(self, data: str) -> None:
        if self._in_body:
            method, path, body = self.found[-1]
            self.found[-1] = (method, path, (body or "") + data)

    def handle_endtag(self, tag: str) -> None:
        self._in_body = False


def test_every_operation_is_listed_and_every_request_on_the_page_is_answered(live: Live) -> None:
    with live.client() as client:
        answer = client.get("/docs/operations")
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["content-type"].startswith("text/html")
        spec = client.get("/openapi.json").json()
        for path in spec["paths"]:
            assert f"<code>{path}</code>" in answer.text
        for field in spec["components"]["schemas"]["RerankRequest"]["properties"]:
            assert f"<code>{field}</code>" in answer.text
        tries = Tries()
        tries.feed(answer.text)
        bodies = [body for _, _, body in tries.found if body is not None]
        assert len(bodies) == 8
        assert len(tries.found) > len(bodies) + 4
        headers = {"content-type": "application/json"}
        for method, path, body in tries.found:
            content = None if body is None else body.encode()
            told = client.request(method, path, content=content, headers=headers)
            wanted = 403 if path == "/admin/reload" else 200  # a right that nobody has without keys
            assert told.status_code == wanted, (method, path, body, told.text)


def test_it_loads_nothing_but_itself(live: Live) -> None:
    with live.client() as client:
        text = client.get("/docs/operations").text
        shell = client.get("/docs").text
    assert shell == SHELL.read_text(encoding="utf-8")
    assert not re.findall(r"https?://", shell)
    assert set(re.findall(r"https?://[^\s<\"']*", text)) == {"http://127.0.0.1:8000"}
    for target in re.findall(r"""(?:src|href)=["']?([^"'\s>]*)""", shell + text):
        assert target.startswith(("data:", "/")), target
        assert not target.startswith("//"), target


def test_markup_in_an_example_is_text() -> None:
    title = '</textarea><script>alert("it\'s")</script>'
    shown = sending("POST", "/rerank", f'{{"query": "{title}"}}')
    assert "<script>" not in shown
    assert title in unescape(shown)


def test_kinds_are_in_words() -> None:
    parts = {"Pair": {"properties": {"a": {}, "b": {}}}}
    for schema, wanted in (
        ({"type": "string"}, "text"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer"),
        ({"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "null"}]}, None),
        ({"enum": ["on", "off"]}, "on | off"),
        ({"$ref": "#/components/schemas/Pair"}, "{a, b}"),
        ({}, "anything"),
    ):
        assert kind_of(schema, parts) == (wanted or "list of number")
