"""Shoppers are private: nobody without the right learns whether one exists, or bought what.

Every route is asked about shoppers who exist and shoppers who do not, in pairs: status, headers and
body must be the same but for what was sent. The bundle is not said to be simulated, except where a
test says otherwise.
"""

from __future__ import annotations

import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scipy.stats import wilcoxon

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Keys
from support import bundles
from support.live import Live, ids

RANK, SHOPPERS = "a-key-that-may-rank", "a-key-that-sees-shoppers"
LINES = [f"{RANK} name=search", f"{SHOPPERS} name=crm roles=rank,shoppers"]
Send = Callable[[httpx.Client, str], httpx.Response]


@pytest.fixture(scope="module")
def closed(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Reranker:
    folder = tmp_path_factory.mktemp("private") / "bundle"
    return Reranker.from_pretrained(bundles.private(run_dir / "bundle", folder))


@pytest.fixture(scope="module")
def server(closed: Reranker) -> Iterator[Live]:
    with Live(closed, keys=Keys(LINES)) as live:
        yield live


def client_of(server: Live, key: str | None) -> httpx.Client:
    return server.client(headers={} if key is None else {"authorization": f"Bearer {key}"})


def pairs_of(reranker: Reranker, n: int) -> list[tuple[str, str]]:
    """(a shopper who exists, one who does not), equally long."""
    known, pairs, source = set(reranker.raw_users), [], random.Random(5)
    while len(pairs) < n:
        user = source.choice(reranker.raw_users)
        digits = "".join(source.choice("0123456789") if c.isdigit() else c for c in user)
        other = digits if digits not in known else "X" + digits[1:]
        pairs.append((user, other))
    assert all(one in known and two not in known for one, two in pairs)
    assert all(len(one) == len(two) for one, two in pairs)
    return pairs


# ------------------------------------------------------------------------------------ asking


def bodies(reranker: Reranker, user: str) -> list[dict[str, Any]]:
    """Every way in which a body can name a shopper, with what else may stand beside."""
    documents, short = ids(reranker, 5, 6, 7), {"decode": {"decoder": "ar", "max_tokens": 8}}
    ways: list[dict[str, Any]] = [
        {"user_id": user},
        {"query": f"user:{user}"},
        {"query": f"user: {user} "},
        {"query": {"user_id": user}},
        {"query": {"user": user}},
        {"query": json.dumps({"user_id": user})},
        {"query": json.dumps({"user": user, "history": ids(reranker, 1)})},
        {"user_id": user, "history": ids(reranker, 1)},
        {"user_id": user, "query": "words"},
        {"query": user},  # as words
        {"query": f"User:{user}"},
        {"user": user, "history": []},  # an unknown field
        {"history": [user]},
        {"history": [{"id": user}]},
    ]
    found = [{**way, "documents": documents, **short} for way in ways]
    one = ways[0]
    found += [
        {**one, "texts": documents},
        {**one, "documents": documents, "stream": True},
        {**one, "documents": documents, "return_reasoning": True},
        {**one, "documents": documents, "decode": {"decoder": "none"}},
        {**one, "documents": documents, "decode": {"max_tokens": 10**9}},
        {**one, "documents": documents, "model": "other"},
        {**one, "documents": documents, "model": user},
        {**one, "documents": documents, "scores": [1.0]},
        {**one, "documents": ["no such item zzzz"]},
        {**one, "documents": [user]},
        {**one, "documents": []},
        {**one},
        {"history": [], "documents": [user, *documents]},
        {"history": [], "documents": [{"id": user, "title": user}]},
        {"history": [], "documents": documents, "seed": 1, "model": f"user:{user}"},
    ]
    return found


def sends(server: Live, reranker: Reranker) -> dict[str, Send]:
    """All routes, in all ways that could name a shopper."""
    found: dict[str, Send] = {}
    for route in server.app.routes:
        path: str = route.path  # type: ignore[attr-defined]
        for method in sorted(route.methods or ()):  # type: ignore[attr-defined]

            def ask(client: httpx.Client, user: str, path: str = path, method: str = method) -> Any:
                params = {"user": user, "user_id": user, "h": user, "query": f"user:{user}"}
                there = path.replace("{name}", user)
                return client.request(method, there, params=params, headers={"x-user": user})

            found[f"{method} {path}"] = ask
    for place in range(len(bodies(reranker, "x"))):
        for path in ("/rerank", "/v1/rerank/batch"):

            def post(
                client: httpx.Client, user: str, path: str = path, place: int = place
            ) -> httpx.Response:
                body = bodies(reranker, user)[place]
                return client.post(path, json={"requests": [body]} if "batch" in path else body)

            found[f"POST {path} {place}"] = post
    shown = [
        lambda u: {"user": u},
        lambda u: {"user": u, "h": ids(reranker, 1)},
        lambda u: {"user": [ids(reranker, 1)[0], u]},
        lambda u: {"user": "", "h": [u]},
        lambda u: {"h": [f"user:{u}"]},
    ]
    for place, params in enumerate(shown):
        found[f"GET /page/candidates {place}"] = lambda client, user, params=params: client.get(
            "/page/candidates", params=params(user)
        )
    for path in ("/page/shoppers/{}", "/page/shoppers/{}/history", "/users/{}", "/v1/users/{}"):
        found[f"GET {path}"] = lambda client, user, path=path: client.get(path.format(user))
    return found


VARIES = ("x-request-id", "date", "x-queue-time", "x-inference-time", "x-total-time")
OWN = re.compile(r'"(id|created)": ?("[0-9a-f]{32}"|\d+)')


def seen(answer: httpx.Response, user: str) -> tuple[Any, ...]:
    """What an answer tells, without what was sent and what every answer has of its own."""
    text = OWN.sub("", answer.text).replace(user, "<user>")
    if answer.request.url.path == "/metrics":
        text = re.sub(r" [0-9.e+-]+$", "", text, flags=re.MULTILINE)  # counts move by themselves
    headers = {
        name: value.replace(user, "<user>")
        for name, value in answer.headers.items()
        if name not in (*VARIES, "server-timing")
    }
    if answer.request.url.path == "/metrics":
        del headers["content-length"]
    return answer.status_code, headers, text


# ------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("key", [RANK, None, "a-key-that-is-unknown"])
def test_known_and_unknown_shoppers_get_the_same_answers(server: Live, closed, key) -> None:
    ((known, unknown),) = pairs_of(closed, 1)
    statuses = set()
    with client_of(server, key) as client:
        for name, send in sends(server, closed).items():
            one, two = send(client, known), send(client, unknown)
            assert seen(one, known) == seen(two, unknown), name
            assert one.status_code < 500, name
            statuses.add(one.status_code)
    assert ({200, 403, 404, 415, 422} if key == RANK else {401}) <= statuses


def test_naming_a_shopper_is_refused_before_anything_is_looked_up(
    server: Live, closed: Reranker, monkeypatch
) -> None:
    """Time cannot tell what nobody asked."""

    def asked(*given: Any) -> Any:
        raise AssertionError(f"a shopper was looked up: {given}")

    ((known, unknown),) = pairs_of(closed, 1)
    with client_of(server, RANK) as client:  # its examples are ranked once, for nobody
        assert client.get("/docs/operations").status_code == 200
    monkeypatch.setattr(closed, "user_number", lambda user: -1 if user is None else asked(user))
    monkeypatch.setattr(type(closed.histories), "of", asked)
    monkeypatch.setattr(closed, "_user", None)
    with client_of(server, RANK) as client:
        for send in sends(server, closed).values():
            for user in (known, unknown):
                answer = send(client, user)
                assert answer.status_code < 500
        for path in ("/page/shoppers", "/docs/operations", "/openapi.json"):
            assert client.get(path).status_code == 200


def test_no_answer_names_a_shopper_or_shows_a_history(server: Live, closed: Reranker) -> None:
    users = re.compile("|".join(map(re.escape, closed.raw_users)))
    with client_of(server, RANK) as client:
        for path in (
            *("/", "/docs", "/docs/operations", "/openapi.json", "/metrics", "/v1/models"),
            *("/page/shoppers", "/page/items"),
        ):
            answer = client.get(path)
            assert answer.status_code == 200
            assert not users.search(answer.text), path
        assert client.get("/page/shoppers").json()["shoppers"] == []
        items = {"h": ids(closed, 1, 2)}
        assert not users.search(client.get("/page/candidates", params=items).text)
        body = {"history": ids(closed, 1), "documents": ids(closed, 5, 6), "return_reasoning": True}
        assert not users.search(client.post("/rerank", json=body).text)


def test_who_has_the_right_sees_shoppers(server: Live, closed: Reranker) -> None:
    ((known, unknown),) = pairs_of(closed, 1)
    body = {"documents": ids(closed, 5, 6, 7), "reasoning": "off"}
    with client_of(server, SHOPPERS) as client:
        rows = client.get("/page/shoppers").json()["shoppers"]
        assert len(rows) >= 20
        assert all(row["user"] in closed.raw_users and row["history"] for row in rows)
        assert client.post("/rerank", json={**body, "user_id": known}).status_code == 200
        assert client.post("/rerank", json={**body, "query": f"user:{known}"}).status_code == 200
        missing = client.post("/rerank", json={**body, "user_id": unknown})
        assert missing.status_code == 422
        found = client.get("/page/candidates", params={"user": known, "h": ids(closed, 1)})
        assert found.status_code == 200


def test_without_keys_nobody_sees_shoppers(closed: Reranker) -> None:
    ((known, unknown),) = pairs_of(closed, 1)
    with Live(closed) as live, live.client() as client:
        for name, send in sends(live, closed).items():
            one, two = send(client, known), send(client, unknown)
            assert seen(one, known) == seen(two, unknown), name
        assert client.get("/page/shoppers").json()["shoppers"] == []
        body = {"documents": ids(closed, 5, 6), "user_id": known}
        assert client.post("/rerank", json=body).status_code == 403


def test_simulated_shoppers_are_for_everybody(live: Live, reranker: Reranker) -> None:
    assert reranker.simulated
    known = reranker.raw_users[3]
    with live.client() as client:
        assert client.get("/page/shoppers").json()["shoppers"]
        body = {"documents": ids(reranker, 5, 6), "user_id": known, "reasoning": "off"}
        assert client.post("/rerank", json=body).status_code == 200
        assert f"user:{reranker.raw_users[0]}" in client.get("/openapi.json").text
        shown = {"user": known, "h": ids(reranker, 1)}
        assert client.get("/page/candidates", params=shown).status_code == 200


def test_nothing_may_be_stored_on_the_way(server: Live, closed: Reranker) -> None:
    for key in (RANK, SHOPPERS, None):
        with client_of(server, key) as client:
            for name, send in sends(server, closed).items():
                answer = send(client, closed.raw_users[0])
                assert answer.headers["cache-control"] == "no-store", name
            body = {"history": ids(closed, 0), "documents": ids(closed, 5, 6), "stream": True}
            assert client.post("/rerank", json=body).headers["cache-control"] == "no-store"


def test_no_log_line_and_no_metric_names_a_shopper(server: Live, closed: Reranker, caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="diffgr2.serve")
    known = closed.raw_users[7]
    for key in (RANK, SHOPPERS, None):
        with client_of(server, key) as client:
            for name, send in sends(server, closed).items():
                if "{" not in name:  # a path is a name that the caller gave
                    send(client, known)
    assert len(caplog.records) > 100
    assert known not in caplog.text
    assert not any(key in caplog.text for key in (RANK, SHOPPERS))
    with client_of(server, SHOPPERS) as client:
        said = client.get("/metrics").text
    assert known not in said
    assert set(re.findall(r'key="(\w+)"', said)) == {"search", "crm"}


# ------------------------------------------------------------------------------------ time


def likeness(client: httpx.Client, ask: Send, pairs: list[tuple[str, str]]) -> float:
    """How likely such a difference in time is by chance (Wilcoxon's signed ranks).

    Which one of a pair is asked first is drawn, so a busy machine is no difference.
    """
    source, differences = random.Random(1), []

    def seconds(user: str) -> float:
        began = time.perf_counter()
        ask(client, user)
        return time.perf_counter() - began

    for known, unknown in pairs:
        if source.random() < 0.5:
            one = seconds(known)
            differences.append(one - seconds(unknown))
        else:
            two = seconds(unknown)
            differences.append(seconds(known) - two)
    result: Any = wilcoxon(differences)
    return float(result.pvalue)


def timings(server: Live, closed: Reranker, n: int, least: float) -> None:
    pairs, documents = pairs_of(closed, n), ids(closed, 5, 6, 7)

    def by_id(client: httpx.Client, user: str) -> httpx.Response:
        return client.post("/rerank", json={"user_id": user, "documents": documents})

    def by_query(client: httpx.Client, user: str) -> httpx.Response:
        return client.post("/rerank", json={"query": f"user:{user}", "documents": documents})

    def by_page(client: httpx.Client, user: str) -> httpx.Response:
        return client.get("/page/candidates", params={"user": user, "h": documents[:1]})

    with client_of(server, RANK) as client:
        for ask in (by_id, by_query, by_page):
            assert ask(client, pairs[0][0]).status_code == 403
            assert likeness(client, ask, pairs) > least, ask.__name__
    with client_of(server, SHOPPERS) as client:  # the same test sees a difference where one is
        assert likeness(client, by_id, pairs[: max(40, n // 10)]) < 1e-6


def test_time_does_not_tell_either(server: Live, closed: Reranker) -> None:
    timings(server, closed, 100, 1e-6)


@pytest.mark.slow
def test_time_does_not_tell_over_1000_pairs(server: Live, closed: Reranker) -> None:
    timings(server, closed, 1000, 1e-4)
