"""Many lists in one body: streamed, equal to single answers; a bad one costs no other."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import httpx
import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.keys import Bucket, Keys
from diffgr2.serve.limits import Limits
from support.live import Live, body_of, idle, ids

PATH = "/v1/rerank/batch"
KEY = "a-key-for-batches-only"


def lines_of(answer: httpx.Response) -> dict[int, dict[str, Any]]:
    """The answers by index; each index stands once."""
    lines = [json.loads(line) for line in answer.text.splitlines()]
    by_index = {line.pop("index"): line for line in lines}
    assert len(by_index) == len(lines)
    return by_index


def long_list(reranker: Reranker, n: int = 90) -> dict[str, Any]:
    """A list of many windows, one after another: seconds of work."""
    slow = {"decode": {"decoder": "ar", "answer": "written"}}
    return {"history": ids(reranker, 0), "documents": ids(reranker, *range(100, 100 + n)), **slow}


AR = {"decode": {"decoder": "ar"}}


def same(line: dict[str, Any], single: dict[str, Any]) -> bool:
    """Whether a line is the answer to the single request, as far as answers repeat."""
    names = ("object", "model", "results", "usage", "ranking", "reasoning")
    decode = {k: v for k, v in single["decode"].items() if not k.endswith("_ms")}
    return all(near(line.get(name), single.get(name)) for name in names) and decode == {
        k: v for k, v in line["decode"].items() if not k.endswith("_ms")
    }


def near(one: Any, two: Any) -> bool:
    """Equal, but for what batching does to the last digits of a number."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(near(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(near, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return one == pytest.approx(two, abs=1e-3)
    return one == two


def test_a_batch_equals_its_single_requests(live: Live, reranker: Reranker) -> None:
    asks = [
        body_of(
            reranker,
            seed,
            decode={"decoder": ("ar", "block", "verify")[seed % 3]},
            return_reasoning=bool(seed % 2),
            return_documents=True,
        )
        for seed in range(24)
    ]
    with live.client() as client:
        answer = client.post(PATH, json={"requests": asks})
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.headers["cache-control"] == "no-store"
        lines = lines_of(answer)
        singles = [client.post("/v1/rerank", json=ask).json() for ask in asks]
    assert sorted(lines) == list(range(24))
    for index, single in enumerate(singles):
        assert same(lines[index], single), index
        assert lines[index]["id"] == answer.headers["x-request-id"]
    assert idle(live.state)


def test_a_bad_one_costs_no_other(live: Live, reranker: Reranker) -> None:
    good = body_of(reranker, 5)
    texts = ids(reranker, 7, 8, 9)
    asks: list[tuple[Any, Any]] = [
        (good, None),
        ({**good, "documents": []}, 422),
        ({**good, "documents": ["zqxwv-nothing"], "strict": True}, 422),
        ("not an object", 422),
        (None, 422),
        ([good], 422),
        ({**good, "model": "somebody-else"}, 404),
        ({**good, "history": 5}, 422),
        ({"query": good["history"][0], "texts": texts}, None),
        ({"query": good["history"][0], "texts": [""]}, "Validation"),
        ({**good, "decode": {"decoder": "nothing"}}, 422),
        ({**good, "documents": ids(reranker, *range(101))}, 422),
        ({**good, "user_id": reranker.raw_users[1]}, None),  # of a simulated shop
        ({**good, "stream": True}, None),
        (good, None),
    ]
    with live.client() as client:
        lines = lines_of(client.post(PATH, json={"requests": [ask for ask, _ in asks]}))
        single = client.post("/v1/rerank", json=good).json()
        tei = client.post("/rerank", json=asks[8][0]).json()
    assert sorted(lines) == list(range(len(asks)))
    for index, (_, wanted) in enumerate(asks):
        line = lines[index]
        if wanted is None:
            assert "error" not in line, line
            assert line["results"]
        elif isinstance(wanted, str):
            assert line["error_type"] == wanted
        else:
            assert line["error"]["code"] == wanted, (index, line)
    assert same(lines[0], single)
    assert same(lines[14], single)
    assert lines[8]["results"] == tei
    assert idle(live.state)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "requests"),
        ({"requests": []}, 422, "requests"),
        ({"requests": {"0": {}}}, 422, "requests"),
        ({"requests": None}, 422, "requests"),
        ({"requests": [{}] * 101}, 422, "requests"),
        ([{}], 422, None),
    ],
)
def test_what_is_no_batch_is_one_error(live: Live, body: Any, status: int, param: Any) -> None:
    with live.client() as client:
        answer = client.post(PATH, json=body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_the_bounds_can_be_read_and_are_kept(reranker: Reranker) -> None:
    limits = Limits(batch=3, candidates=5, history=2, text=20, body_bytes=3000, max_timeout_s=9)
    with Live(reranker, limits=limits) as server, server.client() as client:
        told = client.get("/v1/models/default").json()["limits"]
        assert told == {
            "documents": 5,
            "shown": 2000,
            "history": 2,
            "text": 20,
            "batch": 3,
            "events": 1000,
            "rules": 1000,
            "body_bytes": 3000,
            "timeout_ms": [1, 9000],
            "default_timeout_ms": 30000,
        }
        raw = ids(reranker, *range(6))
        ask = {"history": raw[:2], "documents": raw[: told["documents"]]}
        asks = {"requests": [ask] * told["batch"]}
        most = {"x-request-timeout-ms": str(told["timeout_ms"][1])}
        assert client.post(PATH, json=asks, headers=most).status_code == 200
        assert client.post(PATH, json={"requests": [ask] * 4}).status_code == 422
        assert client.post("/rerank", json={**ask, "documents": raw}).status_code == 422
        assert client.post("/rerank", json={**ask, "history": raw[:3]}).status_code == 422
        assert client.post("/rerank", json={**ask, "query": "x" * 21}).status_code != 500
        padded = json.dumps({**ask, "pad": ""})
        fits = json.dumps({**ask, "pad": "x" * (3000 - len(padded))}).encode()
        kind = {"content-type": "application/json"}
        assert client.post("/rerank", content=fits, headers=kind).status_code == 200
        assert client.post("/rerank", content=fits + b" ", headers=kind).status_code == 413
        over = {"x-request-timeout-ms": str(told["timeout_ms"][1] + 1)}
        assert client.post("/rerank", json=ask, headers=over).status_code == 400


def test_answers_come_as_they_end_and_not_at_the_end(reranker: Reranker) -> None:
    with Live(reranker) as server, server.client() as client:
        long, short = [long_list(reranker)] * 4, [body_of(reranker, s) for s in range(4)]
        asks = [*long, *short, *long * 8]  # eight at once; much is left where a line is read late
        with client.stream("POST", PATH, json={"requests": asks}) as answer:
            first = json.loads(next(answer.iter_lines()))
            assert 4 <= first["index"] < 8
            assert server.state.slots.taken == 1, "all hold one slot as long as one is not done"
        assert idle(server.state)


def test_a_batch_has_one_deadline(reranker: Reranker) -> None:
    with Live(reranker) as server, server.client() as client:
        asks = [body_of(reranker, 1), *(long_list(reranker) for _ in range(30))]
        before = time.monotonic()
        late = {"x-request-timeout-ms": "400"}
        lines = lines_of(client.post(PATH, json={"requests": asks}, headers=late))
        took = time.monotonic() - before
        assert sorted(lines) == list(range(31))
        errors = [line["error"]["code"] for line in lines.values() if "error" in line]
        assert errors.count(504) == len(errors) >= 8
        # A wide margin, for a busy machine.
        assert took < 10
        assert idle(server.state, 10)


def test_a_client_that_leaves_frees_its_work(reranker: Reranker, caplog) -> None:
    with Live(reranker) as server:
        body = json.dumps({"requests": [long_list(reranker) for _ in range(40)]}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        end = time.monotonic() + 20
        while server.state.engine.running < 8 and time.monotonic() < end:
            time.sleep(0.005)
        assert server.state.engine.running == 8  # so many of a batch at once, not more
        assert server.state.slots.taken == 1
        client.close()
        assert idle(server.state, 10)
        with server.client() as other:
            assert other.post("/rerank", json=body_of(reranker, 1)).status_code == 200
        assert server.state.first.holders == 0
        text = server.state.metrics.text().decode()
        assert 'diffgr2_requests_total{outcome="gone"} 1.0' in text
        assert 'diffgr2_requests_total{outcome="failed"} 0.0' in text
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == []


def test_batches_share_the_server_with_single_requests(reranker: Reranker) -> None:
    limits = Limits(waiting=2, running=4)
    with Live(reranker, limits=limits) as server, server.client() as client:
        asks = {"requests": [body_of(reranker, seed) for seed in range(60)]}
        found: list[httpx.Response] = []
        sender = threading.Thread(target=lambda: found.append(client.post(PATH, json=asks)))
        sender.start()
        with server.client() as other:
            singles = [other.post("/rerank", json=body_of(reranker, s)) for s in range(4)]
        sender.join()
        assert [single.status_code for single in singles] == [200] * 4
        lines = lines_of(found[0])
        assert len(lines) == 60
        assert not any("error" in line for line in lines.values())


def test_a_rate_counts_the_lists_of_a_batch(reranker: Reranker) -> None:
    keys = Keys([f"{KEY} name=nightly rate=60/h"])  # so slow that none comes back meanwhile
    bucket = keys.find(f"Bearer {KEY}".encode()).bucket  # type: ignore[union-attr]
    assert bucket is not None
    mine = {"authorization": f"Bearer {KEY}"}
    with Live(reranker, keys=keys) as server, server.client(headers=mine) as client:
        bucket.left = bucket.burst = 10.0
        asks = {"requests": [body_of(reranker, 1)] * 8}
        assert client.post(PATH, json=asks).status_code == 200
        assert 2 <= bucket.left < 3
        assert client.post(PATH, json=asks).status_code == 200  # the last drop, and a debt of five
        assert -6 <= bucket.left < -5
        answer = client.post("/rerank", json=body_of(reranker, 1))
        assert answer.status_code == 429
        assert 300 < int(answer.headers["retry-after"]) <= 421


def test_a_bucket_in_debt_waits_until_it_is_repaid() -> None:
    bucket = Bucket(2.0, 10.0)
    assert bucket.wait_s() == 0.0
    bucket.charge(29)
    assert 9.0 < bucket.wait_s() <= 10.5  # 20 owed and one wanted, at two a second
