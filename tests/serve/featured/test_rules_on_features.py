"""A shop's own features in rules, of unknown items, and in the log."""

from __future__ import annotations

import json
from pathlib import Path

from diffgr2 import Reranker
from diffgr2.data.from_log import lists_from_log
from diffgr2.serve.ledger import LogTo
from support.live import Live
from support.live import ids as raw

FULL = {"price": 3, "ctr": 0.9, "badge": "bestseller", "in_stock": True}


def test_at_most_so_many_of_a_feature(live: Live, reranker: Reranker) -> None:
    badges = ["gold", "gold", "gold", "silver", None, "gold"]
    documents = [
        {"id": id_, "features": {"badge": badge, "price": 3}}
        for id_, badge in zip(raw(reranker, *range(10, 16)), badges, strict=True)
    ]
    body = {"history": raw(reranker, 0), "documents": documents, "return_reasoning": True}
    with live.client() as client:
        free = client.post("/rerank", json=body).json()
        held = client.post("/rerank", json={**body, "max_per": {"badge": 1}}).json()
        wrong = client.post("/rerank", json={**body, "max_per": {"colour": 1}})
    ranked = [entry["index"] for entry in free["results"]]
    first, later = [], []
    for at in ranked:
        full = badges[at] is not None and badges[at] in [badges[other] for other in first]
        (later if full else first).append(at)
    assert [entry["index"] for entry in held["results"]] == first + later
    assert len(later) == 3
    assert wrong.status_code == 422
    assert "known: brand, category, price, ctr, badge, in_stock" in wrong.json()["message"]


def test_what_comes_with_an_unknown_id_is_enough_to_judge_it(live: Live, reranker) -> None:
    entries = [{"id": "new-1", "features": FULL}, {"id": "new-2"}, *raw(reranker, 10, 11)]
    body = {"history": raw(reranker, 0), "documents": entries, "return_reasoning": True}
    with live.client() as client:
        value = client.post("/rerank", json=body).json()
    by_index = {entry["index"]: entry for entry in value["results"]}
    assert "strength" in by_index[0]
    assert "placed" not in by_index[0]
    assert by_index[1]["placed"] == "kept"
    assert [told.split(":")[0] for told in value["meta"]["warnings"]] == ["documents[1]"]
    assert "item new-2" in value["reasoning"]


def test_no_event_is_called_like_a_feature(reranker: Reranker, tmp_path: Path) -> None:
    event = {"request_id": "r", "item": "P1", "event": "price"}
    with Live(reranker, log_to=LogTo(tmp_path / "log")) as server, server.client() as client:
        refused = client.post("/v1/feedback", json=event)
        many = client.post("/v1/feedback", json={"events": [{**event, "event": "click"}, event]})
        assert client.post("/v1/feedback", json={**event, "event": "click"}).status_code == 202
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "event")
    assert refused.json()["message"] == "event: a feature of the model is called so"
    assert many.json()["message"] == "events[1].event: a feature of the model is called so"


def test_scores_of_another_scale_are_not_logged_as_given(
    reranker: Reranker, tmp_path: Path
) -> None:
    body = {"history": raw(reranker, 0), "documents": raw(reranker, *range(10, 16))}
    with Live(reranker, log_to=LogTo(tmp_path / "log")) as server, server.client() as client:
        for top in (1e30, 0.0):
            scores = [top - at * top / 10 for at in range(6)]
            assert client.post("/rerank", json={**body, "scores": scores}).status_code == 200
    lists_from_log(tmp_path / "log", tmp_path / "lists.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "lists.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [None] * 6 + [0.0] * 6


def test_features_come_back_out_of_the_log(reranker: Reranker, tmp_path: Path) -> None:
    entries = [{"id": raw(reranker, 10)[0], "features": FULL}, *raw(reranker, 11)]
    body = {"history": raw(reranker, 0), "documents": entries}
    with Live(reranker, log_to=LogTo(tmp_path / "log")) as server, server.client() as client:
        assert client.post("/rerank", json=body).status_code == 200
    made = lists_from_log(tmp_path / "log", tmp_path / "lists.jsonl")
    one, two = map(json.loads, (tmp_path / "lists.jsonl").read_text().splitlines())
    assert {name: one[made.features[name]] for name in FULL} == FULL
    assert {two[made.features[name]] for name in FULL} == {None}
