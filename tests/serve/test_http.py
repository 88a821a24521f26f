"""The HTTP surface: the clients' shapes, streaming, health, keys, and metrics that are true."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.door import LIST_PATHS
from diffgr2.serve.keys import Keys, read_keys
from diffgr2.serve.limits import PUBLIC, Limits
from support.live import Live, body_of, idle, ids

KEY = "correct-horse-battery-staple"


def events(text: str) -> list[tuple[str, object]]:
    """(name, data) of server-sent events."""
    found = []
    for part in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.splitlines() if line)
        if fields:
            data = fields["data"]
            found.append((fields.get("event", ""), data if data == "[DONE]" else json.loads(data)))
    return found


def counters(client: httpx.Client, **headers: str) -> Counter:
    text = client.get("/metrics", headers=headers).text
    values: Counter = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            values[f"{sample.name}{{{labels}}}"] = sample.value  # type: ignore[assignment]
    return values


@pytest.mark.parametrize("path", LIST_PATHS)
@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
def test_three_paths_give_what_the_python_api_gives(
    live: Live, reranker: Reranker, path: str, decoder: str
) -> None:
    body = body_of(reranker, 3, decode={"decoder": decoder}, return_reasoning=True)
    wanted = reranker.rank(
        body["history"], body["documents"], decode=body["decode"], return_reasoning=True
    )
    with live.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200
    value = answer.json()
    assert [entry["index"] for entry in value["results"]] == list(wanted.order)
    assert [entry["relevance_score"] for entry in value["results"]] == list(wanted.scores)
    assert [entry["id"] for entry in value["results"]] == list(wanted.items)
    assert value["reasoning"] == wanted.reasoning
    assert value["ranking"]["valid"] == wanted.valid
    assert set(value["ranking"]) >= {"valid", "repaired", "fallback", "identity"}
    assert value["usage"]["completion_tokens"] == wanted.decode["tokens"]
    assert all("document" not in entry for entry in value["results"])
    for name in ("x-request-id", "x-queue-time", "x-inference-time", "x-total-time"):
        assert name in answer.headers


def test_nulls_and_unknown_fields_are_as_absent(live: Live, reranker: Reranker) -> None:
    body = body_of(reranker, 4)
    more = {
        "model": None,
        "query": None,
        "top_n": None,
        "return_documents": None,
        "max_tokens_per_doc": None,
        "priority": 3,
        "truncate_prompt_tokens": -1,
        "user_id": None,
        "decode": None,
        "something_else": {"deep": [1]},
    }
    with live.client() as client:
        plain = client.post("/v2/rerank", json=body).json()
        other = client.post("/v2/rerank", json={**body, **more}).json()
    assert other["results"] == plain["results"]


def test_documents_are_handed_back_only_when_asked(live: Live, reranker: Reranker) -> None:
    body = body_of(reranker, 5, return_documents=True, top_n=2)
    body["documents"][1] = {"text": reranker.catalogue.titles[60]}
    with live.client() as client:
        results = client.post("/v1/rerank", json=body).json()["results"]
    assert len(results) == 2
    for entry in results:
        given = body["documents"][entry["index"]]
        assert entry["document"] == {"text": given if isinstance(given, str) else given["text"]}


def test_tei_gets_a_bare_list_and_its_own_errors(live: Live, reranker: Reranker) -> None:
    texts = ids(reranker, 7, 8, 9)
    query = reranker.catalogue.titles[3]
    body = {"query": query, "texts": texts, "raw_scores": False, "model": "default"}
    with live.client() as client:
        plain = client.post("/rerank", json=body).json()
        told = client.post("/rerank", json={**body, "return_text": True}).json()
        error = client.post("/rerank", json={**body, "texts": ["zqx"], "strict": True})
    assert [set(entry) for entry in plain] == [{"index", "score"}] * 3
    assert [entry["text"] for entry in told] == [texts[entry["index"]] for entry in plain]
    assert [e["score"] for e in plain] == sorted((e["score"] for e in plain), reverse=True)
    assert error.status_code == 422
    assert error.json()["error_type"] == "Validation"
    assert isinstance(error.json()["error"], str)


def test_the_query_is_a_channel_for_who_asks(live: Live, reranker: Reranker) -> None:
    documents = ids(reranker, 31, 32, 33, 34)
    user = reranker.raw_users[9]
    history = [reranker.catalogue.raw_ids[i] for i in reranker.histories.of(9)]
    with live.client() as client:

        def results(**more: object) -> list:
            answer = client.post("/rerank", json={"documents": documents, **more})
            assert answer.status_code == 200, answer.text
            return answer.json()["results"]

        by_user = results(user_id=user)
        assert results(query=f"user:{user}") == by_user
        assert results(query=json.dumps({"user_id": user})) == by_user
        assert results(query={"user_id": user, "history": history}) == by_user
        by_history = results(history=history)
        assert results(query=json.dumps(history)) == by_history
        assert results(query=json.dumps({"history": history})) == by_history
        title = reranker.catalogue.titles[3]
        assert results(query=title) == results(history=[title])
        nothing = client.post("/rerank", json={"documents": documents, "query": "zqx"}).json()
        assert nothing["results"] == results(history=[])
        assert nothing["meta"]["warnings"] == ["query: none of its words is known, it says nothing"]


def test_unresolved_documents_name_their_indices(live: Live, reranker: Reranker) -> None:
    documents = [*ids(reranker, 1), "zqx", *ids(reranker, 2), {"id": "nobody"}]
    with live.client() as client:
        body = {"history": ids(reranker, 0), "documents": documents, "strict": True}
        answer = client.post("/rerank", json=body)
    value = answer.json()
    assert answer.status_code == 422
    assert value["indices"] == [1, 3]
    assert value["error"]["param"] == "documents"
    assert value["message"] == value["detail"] == value["error"]["message"]
    assert "documents[1]: " in value["message"]


def test_long_lists_come_back_whole(live: Live, reranker: Reranker) -> None:
    documents = ids(reranker, *range(100, 123))
    with live.client() as client:
        value = client.post(
            "/rerank", json={"history": ids(reranker, 0), "documents": documents}
        ).json()
    assert sorted(entry["index"] for entry in value["results"]) == list(range(23))
    assert value["decode"]["windows"] == 4  # of six places at most
    scores = [entry["relevance_score"] for entry in value["results"]]
    assert all(a > b for a, b in itertools.pairwise(scores))
    assert sum(scores) == pytest.approx(1.0)


def test_views_of_a_long_list_have_a_bound(live: Live, reranker: Reranker) -> None:
    documents = ids(reranker, *range(90))
    with live.client() as client:
        body = {"history": ids(reranker, 0), "documents": documents, "decode": {"views": 2}}
        assert client.post("/rerank", json=body).status_code == 200
    with Live(reranker, limits=Limits(shown=179)) as small, small.client() as client:
        answer = client.post("/rerank", json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == "decode"
        assert client.post("/rerank", json={**body, "decode": {}}).status_code == 200


def test_windows_and_views_are_streamed_by_number(live: Live, reranker: Reranker) -> None:
    body = {
        "history": ids(reranker, 0),
        "documents": ids(reranker, *range(100, 113)),
        "decode": {"views": 2},
    }
    with live.client() as client:
        told = events(client.post("/rerank", json={**body, "stream": True}).text)
        plain = client.post("/rerank", json=body).json()
    deltas = [value for name, value in told if name == "reasoning.delta"]
    assert {delta["window"] for delta in deltas} == set(range(6))  # three windows, two views
    for window in range(6):
        cells = [pair for d in deltas if d["window"] == window for pair in d["committed"]]
        assert len({at for at, _ in cells}) == len(cells)
    shown = [delta["shown"] for delta in deltas if "shown" in delta]
    assert len(shown) == 6
    every = sorted(at for places in shown for at in places)
    assert every == sorted([*range(13)] * 2)  # in each view every document once
    final = next(value for name, value in told if name == "results")
    assert [e["index"] for e in final["results"]] == [e["index"] for e in plain["results"]]


def test_decisions_and_markdown_are_given_where_asked(live: Live, reranker: Reranker) -> None:
    body = body_of(reranker, 4, return_reasoning="markdown", decode={"details": True})
    with live.client() as client:
        value = client.post("/v1/rerank", json=body).json()
        plain = client.post("/v1/rerank", json=body_of(reranker, 4)).json()
    assert "decisions" not in plain
    assert [one["index"] for one in value["decisions"]] == [e["index"] for e in value["results"]]
    for one, entry in zip(value["decisions"], value["results"], strict=True):
        levels = range(len(one["strengths"]))
        mean = sum(level * p for level, p in zip(levels, one["strengths"], strict=True))
        assert mean == pytest.approx(entry["strength"], abs=1e-3)
        for place in one["evidence"]:
            assert sum(piece["probability"] for piece in place) == pytest.approx(1.0, abs=1e-3)
            assert all((piece["field"] is None) == (not piece["phrase"]) for piece in place)
    assert value["reasoning"].count("**") >= 4
    assert value["ranking"]["sure"] == value["results"][0]["relevance_score"]


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
def test_a_stream_tells_every_token_once_and_ends_like_the_answer(
    live: Live, reranker: Reranker, decoder: str
) -> None:
    body = body_of(reranker, 6, decode={"decoder": decoder})
    wanted = reranker.rank(body["history"], body["documents"], decode=body["decode"])
    with live.client() as client:
        plain = client.post("/rerank", json=body).json()
        answer = client.post("/rerank", json={**body, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    assert [name for name, _ in told[-2:]] == ["results", ""]
    assert told[-1][1] == "[DONE]"
    deltas = [value for name, value in told if name == "reasoning.delta"]
    cells = [pair for delta in deltas for pair in delta["committed"]]
    assert len({at for at, _ in cells}) == len(cells)
    forwards = [delta["forward"] for delta in deltas]
    assert forwards == sorted(forwards)
    names, tokens = reranker.vocab.names, wanted.trajectories[0].tokens_T.tolist()
    written = dict(map(tuple, cells))
    assert [written[at] for at in range(len(tokens))] == [names[token] for token in tokens]
    final = told[-2][1]
    assert final["results"] == plain["results"]


def test_models_and_openapi_examples_work(live: Live, reranker: Reranker) -> None:
    with live.client() as client:
        models = client.get("/v1/models").json()
        assert [m["id"] for m in models["data"]] == [reranker.name]
        assert client.get(f"/v1/models/{reranker.name}").json()["id"] == reranker.name
        assert client.get("/v1/models/other").status_code == 404
        spec = client.get("/openapi.json").json()
        assert client.get("/docs/operations").status_code == 200
        for path in LIST_PATHS:
            content = spec["paths"][path]["post"]["requestBody"]["content"]["application/json"]
            assert len(content["examples"]) >= 5
            for name, example in content["examples"].items():
                assert client.post(path, json=example["value"]).status_code == 200, name


def test_another_model_is_not_found(live: Live, reranker: Reranker) -> None:
    with live.client() as client:
        answer = client.post("/rerank", json=body_of(reranker, 1, model="rerank-v3.5"))
        assert answer.status_code == 404
        assert answer.json()["error"]["param"] == "model"
        named = client.post("/rerank", json=body_of(reranker, 1, model=reranker.name))
        assert named.status_code == 200


def test_request_ids_are_echoed_or_made(live: Live) -> None:
    with live.client() as client:
        given = client.get("/health/live", headers={"x-request-id": "abc.DEF-1"})
        assert given.headers["x-request-id"] == "abc.DEF-1"
        made = client.get("/nowhere", headers={"x-request-id": "no spaces here"})
        assert made.headers["x-request-id"] == made.json()["id"] != "no spaces here"


def test_every_route_but_the_public_ones_needs_a_key(reranker: Reranker, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    keys = Keys([KEY, "a-second-key-for-rotation name=next"])
    with Live(reranker, keys=keys) as server, server.client() as client:
        routes = [
            (method, route.path.replace("{name}", "default"))  # type: ignore[attr-defined]
            for route in server.routes
            for method in (route.methods or ())  # type: ignore[attr-defined]
        ]
        assert len(routes) > 12
        opened = set()
        for method, path in routes:
            for key in (None, "wrong-key-of-length-16", KEY[:-1], KEY + "x", "", "é" * 8):
                given = f"Bearer {key}".strip().encode()
                headers = {} if key is None else {"authorization": given}
                if client.request(method, path, headers=headers).status_code != 401:  # type: ignore[arg-type]
                    opened.add(path)
            for value in (f"Bearer {KEY}", "bearer a-second-key-for-rotation"):
                answer = client.request(method, path, headers={"authorization": value})
                assert answer.status_code != 401, path
            assert client.request(
                method, path, headers={"authorization": f"Basic {KEY}"}
            ).status_code in ((401,) if path not in PUBLIC else (200,))
        assert opened == set(PUBLIC)
    assert KEY not in caplog.text


def test_keys_are_read_from_a_file_or_refused(tmp_path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\n\n")
    assert read_keys(path).find(f"Bearer {KEY}".encode())
    path.write_text("short")
    with pytest.raises(ValueError, match="at least 16 characters"):
        read_keys(path)
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="holds no key"):
        read_keys(path)


def test_metrics_equal_what_was_done(reranker: Reranker) -> None:
    with Live(reranker) as server, server.client() as client:
        results = []
        for seed in range(12):
            decoder = ("ar", "block", "verify")[seed % 3]
            body = body_of(reranker, seed, decode={"decoder": decoder})
            results.append(client.post("/rerank", json=body).json())
        for _ in range(3):
            client.post("/rerank", json={"documents": []})
        with client.stream("POST", "/rerank", json=body_of(reranker, 3, stream=True)) as stream:
            for _ in stream.iter_bytes():
                pass
        assert idle(server.state)
        values = counters(client)
        assert values["diffgr2_requests_total{outcome=ok}"] == 13
        assert values["diffgr2_requests_total{outcome=bad_request}"] == 3
        for decoder in ("ar", "verify"):
            mine = [r for r in results if r["decode"]["decoder"] == decoder]
            tokens = sum(r["decode"]["tokens"] for r in mine)
            assert values[f"diffgr2_output_tokens_total{{decoder={decoder}}}"] == tokens
            forwards = sum(r["decode"]["forwards"] for r in mine)
            assert values[f"diffgr2_row_forwards_sum{{decoder={decoder}}}"] == forwards
        again = client.post("/rerank", json=body_of(reranker, 3)).json()
        every = [*results, again]  # the streamed request was this one
        repaired = sum(r["ranking"]["repaired"] for r in every)
        assert values["diffgr2_repaired_total{}"] == repaired
        invalid = Counter(kind for r in every for kind in r["ranking"]["failures"])
        for kind, count in invalid.items():
            assert values[f"diffgr2_invalid_outputs_total{{reason={kind}}}"] == count
        for gauge in ("requests_in_flight", "rows_running", "rows_waiting", "cache_slots"):
            assert values[f"diffgr2_{gauge}{{}}"] == 0


def test_a_deadline_is_kept_and_leaves_nothing_behind(reranker: Reranker) -> None:
    with Live(reranker, limits=Limits()) as server, server.client() as client:
        documents = ids(reranker, *range(100, 190))
        slow = {"decode": {"decoder": "ar", "views": 10}}
        body = {"history": ids(reranker, 0), "documents": documents, **slow}
        for headers in ({"x-request-timeout-ms": "1"}, {"x-request-timeout-ms": "40"}):
            answer = client.post("/rerank", json=body, headers=headers)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "deadline_exceeded"
            assert idle(server.state, 10)
        streamed = client.post(
            "/rerank", json={**body, "stream": True}, headers={"x-request-timeout-ms": "60"}
        )
        # Passed before the stream began, it is a status; later, the stream's last word.
        assert streamed.status_code == 504 or events(streamed.text)[-2][0] == "error"
        assert idle(server.state, 10)
        assert counters(client)["diffgr2_requests_total{outcome=timeout}"] == 3
        for wrong in ("0", "-1", "1.5", "abc", "99999999999999999999", ""):
            answer = client.post("/rerank", json=body, headers={"x-request-timeout-ms": wrong})
            assert answer.status_code == 400


def test_readiness_is_judged_by_a_forward(reranker: Reranker) -> None:
    with Live(reranker) as server, server.client() as client:
        assert client.get("/health/live").json() == {"status": "alive"}
        before = server.state.engine.good_at
        server.state.engine.good_at = 0.0
        assert client.get("/health/ready").json() == {"status": "ready"}
        assert server.state.engine.good_at >= before
