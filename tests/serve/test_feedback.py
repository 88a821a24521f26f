"""Impressions and feedback over HTTP: what is kept, what is answered, what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffgr2 import Reranker
from diffgr2.data.from_log import lists_from_log
from diffgr2.data.traffic import FEEDBACK, IMPRESSIONS, files_of
from diffgr2.serve.feedback import Feedback, read_feedback
from diffgr2.serve.keys import Keys
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Problem
from support.live import Live, body_of, ids

PATH = "/v1/feedback"
GOOD = {"request_id": "r-1", "item": "P0000046", "event": "click"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def server(reranker: Reranker, directory: Path) -> Iterator[Live]:
    with Live(reranker, log_to=LogTo(directory)) as live:
        yield live


def kept(directory: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """The lines of a log once there are so many."""
    end = time.monotonic() + 10
    while True:
        text = "".join(path.read_text() for path in files_of(directory, kind))
        if text.count("\n") >= count or time.monotonic() > end:
            return [json.loads(line) for line in text.splitlines()]
        time.sleep(0.01)


def send(client: httpx.Client, body: Any, status: int) -> dict[str, Any]:
    answer = client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


# -------------------------------------------------------------------------------- impressions


def test_an_impression_is_what_was_answered(server: Live, reranker: Reranker, directory) -> None:
    documents = [*ids(reranker, 50, 51), "gone-1", {"id": ids(reranker, 52)[0]}, {"text": "a comb"}]
    body = {
        "history": [*ids(reranker, 3), "gone-2"],
        "documents": documents,
        "scores": [5.0, 4.0, 3.0, 2.0, 1.0],
        "user_id": reranker.raw_users[4],
        "decode": {"decoder": "ar"},
        "top_n": 3,
    }
    with server.client() as client:
        answer = client.post("/v1/rerank", json=body, headers={"x-request-id": "mine.1"}).json()
    (line,) = kept(directory, IMPRESSIONS, 1)
    assert line["id"] == answer["id"] == "mine.1"
    assert line["user"] == reranker.raw_users[4]
    assert line["history"] == ids(reranker, 3)
    assert line["items"] == [*ids(reranker, 50, 51), "gone-1", *ids(reranker, 52), None]
    assert line["given"] == body["scores"]
    assert line["order"] == [entry["index"] for entry in answer["results"]]
    assert len(line["order"]) == 3
    assert line["scores"] == pytest.approx(
        [e["relevance_score"] for e in answer["results"]], abs=1e-6
    )
    assert line["placed"][2] == "kept"
    assert line["decoder"] == "ar"
    assert line["model"] == answer["model"]
    assert line["ms"] > 0
    assert abs(time.time() - line["time"]) < 60
    assert "comb" not in json.dumps(line)  # words are nobody's id


def test_every_way_to_be_ranked_is_an_impression(server: Live, reranker, directory) -> None:
    one = body_of(reranker, 3)
    title = reranker.catalogue.titles[5]
    with server.client() as client:
        client.post("/rerank", json={"query": title, "texts": one["documents"]})
        client.post("/rerank", json={**one, "stream": True}, headers={"x-request-id": "s"})
        client.post("/rerank", json={**one, "documents": []})  # answered by an error: none
        headers = {"x-request-id": "b"}
        client.post("/v1/rerank/batch", json={"requests": [one, {}, one]}, headers=headers)
        found = kept(directory, IMPRESSIONS, 4)
        assert [line["id"] for line in found[1:2]] == ["s"]
        assert {line["id"] for line in found[2:]} == {"b.0", "b.2"}  # the batch's lists, by number
        assert found[0]["history"] == (
            [None] if reranker.catalogue.titles.count(title) > 1 else ids(reranker, 5)
        )
        told = client.get("/metrics").text
    assert 'diffgr2_impressions_total{outcome="written"} 4.0' in told
    assert title not in json.dumps(found)


def test_without_a_directory_nothing_is_kept(live: Live) -> None:
    with live.client() as client:
        assert "serve --log-dir" in send(client, GOOD, 404)["message"]
        assert PATH not in client.get("/openapi.json").json()["paths"]


# ----------------------------------------------------------------------------------- feedback


def test_feedback_is_stored_once(server: Live, directory: Path) -> None:
    with server.client() as client:
        first = send(client, {**GOOD, "time": "2026-01-31T09:12:44Z"}, 202)
        again = send(client, GOOD, 200)
        by_id = send(client, {"request_id": "r-1", "id": "P0000046", "event": "click"}, 200)
        other = send(client, {**GOOD, "event": "purchase", "idempotency_key": "k"}, 202)
        keyed = send(client, {**GOOD, "event": "cart", "idempotency_key": "k"}, 200)
        many = {"events": [{**GOOD, "event": "wish"}, GOOD, {**GOOD, "item": "P2"}]}
        batch = send(client, many, 202)
        told = client.get("/metrics").text
    assert (first["stored"], first["duplicates"]) == (1, 0)
    assert again["results"] == by_id["results"] == keyed["results"] == ["duplicate"]
    assert other["results"] == ["stored"]
    assert batch["results"] == ["stored", "duplicate", "stored"]
    lines = kept(directory, FEEDBACK, 4)
    assert [line["event"] for line in lines] == ["click", "purchase", "wish", "click"]
    assert lines[0] == {"id": "r-1", "item": "P0000046", "event": "click", "time": 1769850764.0}
    assert 'diffgr2_feedback_total{outcome="stored"} 4.0' in told
    assert 'diffgr2_feedback_total{outcome="duplicate"} 4.0' in told


def test_feedback_on_what_was_never_shown(server: Live, reranker: Reranker) -> None:
    with server.client() as client:
        asked = body_of(reranker, 3)
        answer = client.post("/rerank", json=asked).json()
        event = {"request_id": answer["id"], "item": asked["documents"][0], "event": "click"}
        send(client, {**event, "strict": True}, 202)
        refused = send(client, {**GOOD, "strict": True}, 404)
        assert refused["error"]["param"] == "request_id"
        both = {"events": [{**event, "event": "cart"}, GOOD], "strict": True}
        assert send(client, both, 404)["message"] == "events[1].request_id: not in the log"
        send(client, {**event, "event": "cart"}, 202)  # nothing of the refused body was stored
        send(client, GOOD, 202)


def test_unknown_fields_are_warnings(server: Live) -> None:
    with server.client() as client:
        told = send(client, {**GOOD, "quantity": 2, "evnt": "x"}, 202)["meta"]["warnings"]
        assert told == [
            "quantity: unknown field, ignored",
            "evnt: unknown field, ignored; did you mean event?",
        ]
        many = {"events": [{**GOOD, "item": "a", "shop": 1}], "x": 1}
        told = send(client, many, 202)["meta"]["warnings"]
    assert told == ["x: unknown field, ignored", "events[].shop: unknown field, ignored"]


def test_keys_and_rates_hold_here_too(reranker: Reranker, directory: Path) -> None:
    keys = Keys(["a-key-of-the-shop name=shop rate=5/h", "a-key-for-reload1 name=ops roles=admin"])
    with Live(reranker, log_to=LogTo(directory), keys=keys) as live:
        with live.client() as client:
            send(client, GOOD, 401)
        with live.client(headers={"authorization": "Bearer a-key-for-reload1"}) as client:
            send(client, GOOD, 403)
        with live.client(headers={"authorization": "Bearer a-key-of-the-shop"}) as client:
            send(client, {"events": [{**GOOD, "item": str(n)} for n in range(5)]}, 202)
            refused = client.post(PATH, json=GOOD)
            assert refused.status_code == 429
            assert refused.headers["retry-after"]
    assert [line["by"] for line in kept(directory, FEEDBACK, 5)] == ["shop"] * 5


def test_a_log_that_is_full_is_asked_again(reranker: Reranker, directory: Path) -> None:
    with Live(reranker, log_to=LogTo(directory)) as live, live.client() as client:
        ledger = live.state.ledger
        assert ledger is not None
        log = ledger._logs[FEEDBACK]

        def full(entry: dict[str, Any]) -> None:
            raise OSError(28, "No space left on device")

        write, log.write = log.write, full  # type: ignore[method-assign]
        refused = client.post(PATH, json=GOOD)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        log.write = write  # type: ignore[method-assign]
        send(client, GOOD, 202)


def test_the_api_describes_it_and_its_examples_are_answered(server: Live) -> None:
    with server.client() as client:
        route = client.get("/openapi.json").json()["paths"][PATH]["post"]
        content = route["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            assert client.post(PATH, json=example["value"]).status_code == 202
        assert PATH in client.get("/docs/operations").text
        assert client.get("/v1/models/default").json()["limits"]["events"] == 1000


def test_the_loop_closes(server: Live, reranker: Reranker, directory: Path, tmp_path) -> None:
    """What was served and clicked comes back as the lists that a recipe reads."""
    asked: dict[str, dict[str, Any]] = {}
    with server.client() as client:
        for seed in range(6):
            body = body_of(reranker, seed, user_id=reranker.raw_users[seed])
            answer = client.post("/rerank", json={**body, "top_n": 3}).json()
            asked[answer["id"]] = {**body, "shown": [one["id"] for one in answer["results"]]}
            clicked = asked[answer["id"]]["shown"][0]
            send(client, {"request_id": answer["id"], "item": clicked, "event": "purchase"}, 202)
    kept(directory, IMPRESSIONS, 6)
    made = lists_from_log(directory, tmp_path / "lists.jsonl")
    assert (made.lists, made.rows, made.events, made.skipped) == (6, 24, {"purchase": 6}, {})
    rows = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    for name, body in asked.items():
        mine = [row for row in rows if row["list"] == name]
        assert [row["item"] for row in mine] == body["documents"]
        assert [row["place"] for row in mine] == [1, 2, 3, 4]
        assert mine[0]["history"] == body["history"]
        assert mine[0]["user"] == body["user_id"]
        by_place = sorted((row["shown"], row["item"]) for row in mine if row["shown"])
        assert [item for _, item in by_place] == body["shown"]
        assert [row["item"] for row in mine if row["purchase"]] == body["shown"][:1]


# ---------------------------------------------------------------------------------- malformed

MALFORMED: list[tuple[Any, str]] = [
    ({}, "request_id: missing"),
    ({**GOOD, "request_id": None}, "request_id: missing"),
    ({**GOOD, "request_id": ""}, "request_id: expected 1 to 160 characters"),
    ({**GOOD, "request_id": "x" * 161}, "request_id: expected 1 to 160 characters"),
    ({**GOOD, "request_id": 7}, "request_id: expected text"),
    ({**GOOD, "item": None}, "item: missing"),
    ({**GOOD, "item": 46}, "item: expected text"),
    ({**GOOD, "item": ["a"]}, "item: expected text"),
    ({**GOOD, "item": "x" * 2049}, "item: expected 1 to 2048 characters"),
    ({**GOOD, "id": "P2"}, "item: is also given as id"),
    ({**GOOD, "event": None}, "event: missing"),
    ({**GOOD, "event": True}, "event: expected text"),
    ({**GOOD, "event": "two words"}, "event: expected a word such as click"),
    ({**GOOD, "event": "1st"}, "event: expected a word such as click"),
    ({**GOOD, "event": "click\n"}, "event: expected a word such as click"),
    ({**GOOD, "event": "x" * 65}, "event: expected 1 to 64 characters"),
    ({**GOOD, "event": "item"}, "event: a column of lists"),
    ({**GOOD, "time": "yesterday"}, "time: expected unix seconds or 2026-01-31T09:12:44Z"),
    ({**GOOD, "time": 1769850764000}, "time: expected unix seconds or 2026-01-31T09:12:44Z"),
    ({**GOOD, "time": -1}, "time: expected unix seconds or 2026-01-31T09:12:44Z"),
    ({**GOOD, "time": True}, "time: expected unix seconds or 2026-01-31T09:12:44Z"),
    ({**GOOD, "time": [1]}, "time: expected unix seconds or 2026-01-31T09:12:44Z"),
    ({**GOOD, "idempotency_key": 1}, "idempotency_key: expected text"),
    ({**GOOD, "idempotency_key": "x" * 201}, "idempotency_key: expected 1 to 200 characters"),
    ({**GOOD, "strict": "yes"}, "strict: expected true or false"),
    ({"events": {}}, "events: expected a list of at least one"),
    ({"events": []}, "events: expected a list of at least one"),
    ({"events": [GOOD] * 1001}, "events: 1001 given, at most 1000"),
    ({"events": [GOOD], "item": "P1"}, "item: stands beside events"),
    ({"events": [GOOD, 5]}, "events[1]: expected an object"),
    ({"events": [GOOD, {**GOOD, "event": "?"}]}, "events[1].event: expected a word such as click"),
    ([GOOD], "expected a JSON object"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED)
def test_what_is_malformed_is_one_line_and_stores_nothing(
    server: Live, directory: Path, body: Any, message: str
) -> None:
    with server.client() as client:
        assert send(client, body, 422)["message"] == message
    assert kept(directory, FEEDBACK, 0) == []


def test_bodies_are_bounded_like_every_other(server: Live) -> None:
    with server.client() as client:
        kind = {"content-type": "application/json"}
        assert client.post(PATH, content=b"x" * 2_000_001, headers=kind).status_code == 413
        assert client.post(PATH, content=b"{", headers=kind).status_code == 400
        assert client.post(PATH, content=b"{}", headers={"content-type": "a/b"}).status_code == 415
        assert client.get(PATH).status_code == 405


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = (
    PLAIN | st.lists(PLAIN, max_size=2) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
)
FIELDS = st.sampled_from(["request_id", "item", "id", "event", "time", "idempotency_key", "x"])
EVENTS = st.dictionaries(FIELDS, VALUES | st.sampled_from(["a", "click", "2026-01-31"]))


@given(EVENTS | st.dictionaries(st.just("events"), st.lists(EVENTS | VALUES, max_size=3) | VALUES))
def test_any_body_is_read_or_refused_in_one_line(body: dict[str, Any]) -> None:
    try:
        found = read_feedback(body, Limits())
    except Problem as problem:
        told = problem.message
        status = problem.status
    else:
        assert isinstance(found, Feedback)
        assert all(
            json.loads(json.dumps(event, allow_nan=False)) == event for event in found.events
        )
        told, status = "", 422
    assert status == 422
    assert "\n" not in told
    assert len(told) < 200
