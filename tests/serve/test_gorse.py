"""Gorse as a client: its request byte by byte, its way to read the answer, proof that we ranked.

Gorse's ranker of type `llm` renders `query_template` once and `document_template` for every item,
and posts both in Jina's shape to `reranker_api.url`, with the standard client of Go. The templates
are Gorse's to render; here stands the text that the ones in docs/serving.md come to.
"""

from __future__ import annotations

import json
import re
import socket
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from support.live import Live, ids

KEY, WATCHER = "gorse-asks-with-this-key", "operators-look-with-this"
DOCS = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def go_json(value: Any) -> bytes:
    """As Go's encoder writes it: compact, UTF-8, with what HTML could take for markup escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def gorse_request(
    port: int, *, token: str, model: str, query: str, documents: list[str], path: str = "/v1/rerank"
) -> bytes:
    """The bytes that Gorse sends; `top_n` is left out because it is 0."""
    body = go_json({"model": model, "query": query, "documents": documents})
    head = (
        f"POST {path} HTTP/1.1\r\n"
        f"Host: 127.0.0.1:{port}\r\n"
        "User-Agent: Go-http-client/1.1\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"Authorization: Bearer {token}\r\n"
        "Content-Type: application/json\r\n"
        "Accept-Encoding: gzip\r\n"
        "\r\n"
    )
    return head.encode() + body


def sent(port: int, request: bytes) -> tuple[int, Any]:
    """(status, JSON) of what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            data += client.recv(65_536)
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])  # type: ignore[index]
        while len(body) < length:
            body += client.recv(65_536)
    assert b"content-encoding" not in head.lower()
    return int(head.split()[1]), json.loads(body)


def read_by_gorse(status: int, value: Any, items: list[str]) -> list[tuple[str, float]]:
    """What Gorse makes of an answer: an item and a score for each result, in the answer's order."""
    assert status == 200, value  # anything else is an error there, and the old list stays
    assert isinstance(value["model"], str)
    assert type(value["usage"]["total_tokens"]) is int
    found = []
    for result in value["results"]:
        assert type(result["index"]) is int
        assert type(result["relevance_score"]) in (int, float)
        found.append((items[result["index"]], float(result["relevance_score"])))
    return found


def calls(server: Live) -> dict[tuple[str, ...], float]:
    with server.client(headers={"authorization": f"Bearer {WATCHER}"}) as client:
        text = client.get("/metrics").text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server(reranker: Reranker) -> Iterator[Live]:
    lines = [f"{KEY} name=gorse roles=rank", f"{WATCHER} name=watcher roles=rank"]
    with Live(reranker, keys=Keys(lines)) as live:
        yield live


def test_what_gorse_sends_is_ranked_and_counted(server: Live, reranker: Reranker) -> None:
    bought, items = ids(reranker, 3, 4, 5), ids(reranker, *range(50, 62))
    before = calls(server)
    request = gorse_request(
        server.port, token=KEY, model="diffgr2", query=json.dumps(bought), documents=items
    )
    status, value = sent(server.port, request)
    ranked = read_by_gorse(status, value, items)
    wanted = reranker.rank(bought, items)
    assert [item for item, _ in ranked] == list(wanted.items)
    assert sorted(item for item, _ in ranked) == sorted(items)
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == len(scores)  # Gorse sorts by them: no two may be equal
    # The proof that the ranker was called: this key's counters, which nothing else moves.
    after = calls(server)
    for name in ("diffgr2_key_requests_total", "diffgr2_key_lists_total"):
        assert after[name, "gorse"] - before.get((name, "gorse"), 0.0) == 1
    written = after["diffgr2_key_tokens_total", "gorse", "written"]
    assert written == value["usage"]["completion_tokens"] > 0
    assert after["diffgr2_requests_total", "ok"] == 1


def test_documents_as_text_are_matched_or_ranked_as_unknown(
    server: Live, reranker: Reranker
) -> None:
    titles, numbers = reranker.catalogue.titles, range(50, 56)
    unique = [n for n in numbers if titles.count(titles[n]) == 1]
    assert len(unique) >= 3
    words = titles[60].split()
    unknown = f"{words[0]} <new> & {words[-1]}\u2028unheard-of"  # what Go escapes is in it
    texts = [*(titles[n] for n in unique), unknown, reranker.sids.text(70)]
    request = gorse_request(
        server.port, token=KEY, model="diffgr2", query=titles[7], documents=texts
    )
    status, value = sent(server.port, request)
    assert sorted(text for text, _ in read_by_gorse(status, value, texts)) == sorted(texts)
    known = {result["index"]: result.get("id") for result in value["results"]}
    raw = reranker.catalogue.raw_ids
    assert [known[i] for i in range(len(unique))] == [raw[n] for n in unique]
    assert known[len(unique)] is None
    assert known[len(unique) + 1] == raw[70]
    assert [text for text, _ in read_by_gorse(status, value, texts)] == list(
        reranker.rank([titles[7]], texts).items
    )


def test_queries_as_templates_render_them(server: Live, reranker: Reranker) -> None:
    items, bought = ids(reranker, *range(50, 54)), ids(reranker, 3, 4)
    spaced = "[\n" + ",\n".join(f'"{item}"' for item in bought) + "\n]\n"
    for query, history in (
        (spaced, bought),  # what a loop over the feedback leaves of line ends
        (json.dumps({"history": bought}), bought),
        ("[]", []),  # a shopper without feedback
    ):
        request = gorse_request(
            server.port, token=KEY, model="diffgr2", query=query, documents=items
        )
        ranked = read_by_gorse(*sent(server.port, request), items)
        assert [item for item, _ in ranked] == list(reranker.rank(history, items).items)


def test_what_would_be_silence_in_gorse_is_a_clear_refusal(
    server: Live, reranker: Reranker
) -> None:
    items = ids(reranker, *range(50, 54))
    good: dict[str, Any] = {
        "token": KEY,
        "model": "diffgr2",
        "query": "[]",
        "documents": items,
    }
    for change, status, word in (
        ({"token": "", "model": "diffgr2"}, 401, "API key"),
        ({"model": "qwen3-rerank"}, 404, "qwen3-rerank"),
        ({"documents": ids(reranker, *range(101))}, 422, "at most 100"),
        ({"documents": ["", *items]}, 422, "documents[0]"),
        ({"path": "/v1/reranks"}, 404, "Not Found"),
    ):
        got, value = sent(server.port, gorse_request(server.port, **{**good, **change}))
        assert got == status, value
        assert word in value["message"]
    assert ("diffgr2_key_lists_total", "gorse") not in calls(server)


def test_the_page_shows_a_config_that_gorse_reads() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL)
    value = tomllib.loads(text)
    ranker = value["recommend"]["ranker"]
    assert ranker["type"] == "llm"
    assert value["openai"]["chat_completion_model"]  # without one, Gorse never asks the ranker
    api = ranker["reranker_api"]
    assert set(api) == {"url", "auth_token", "model"}
    assert api["url"].endswith("/v1/rerank")
    assert api["model"] == "diffgr2"
    assert "{{ item.ItemId }}" in ranker["document_template"]
    assert "feedback" in ranker["query_template"]
    assert value["recommend"]["cache_size"] <= 100
