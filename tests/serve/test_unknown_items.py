"""Items that nobody knows, and rules: one bad entry costs no list, and what was done is told."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from diffgr2 import Reranker
from diffgr2.errors import DataError
from diffgr2.rerank.query import arguments_of
from diffgr2.serve.limits import Limits
from support.live import Live, ids

LOST = {"id": "nobody-1"}


def asked(reranker: Reranker, **more: Any) -> dict[str, Any]:
    return {"history": ids(reranker, 3, 4), "documents": ids(reranker, 50, 51, 52, 53, 54), **more}


def ranked(live: Live, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    with live.client() as client:
        answer = client.post("/v1/rerank", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def order(value: dict[str, Any]) -> list[int]:
    return [entry["index"] for entry in value["results"]]


def strictly_falling(value: dict[str, Any]) -> bool:
    scores = [entry["relevance_score"] for entry in value["results"]]
    return all(a > b for a, b in itertools.pairwise(scores)) and scores[-1] >= 0 and scores[0] <= 1


# ------------------------------------------------------------------------------- unknown items


def test_an_unknown_id_keeps_its_place_and_is_named(live: Live, reranker: Reranker) -> None:
    plain = asked(reranker)
    body = asked(reranker, documents=[*plain["documents"][:2], LOST, *plain["documents"][2:]])
    value, alone = ranked(live, body), ranked(live, plain)
    found = order(value)
    assert sorted(found) == list(range(6))
    assert found[2] == 2
    assert [entry.get("placed") for entry in value["results"]][2] == "kept"
    assert "strength" not in value["results"][2]
    assert value["results"][2]["id"] == "nobody-1"
    text = ranked(live, asked(reranker, documents=[*plain["documents"], "nobody-1"]))
    assert text["results"][5]["id"] == "nobody-1"
    assert strictly_falling(value)
    (told,) = value["meta"]["warnings"]
    assert told == "documents[2]: 'nobody-1' keeps its place (no such id in the catalogue)"
    assert alone["meta"]["warnings"] == []


def test_as_many_unknown_ids_as_a_shop_has(live: Live, reranker: Reranker) -> None:
    """The model judges the known ones as if the evidence had been asked for alone."""
    known = ids(reranker, *range(60, 66))
    documents = list(itertools.chain(*zip(known, [f"gone-{i}" for i in range(6)], strict=True)))
    value = ranked(live, asked(reranker, documents=documents, return_reasoning=True))
    assert order(value)[1::2] == [1, 3, 5, 7, 9, 11]
    assert len(value["meta"]["warnings"]) == 6
    assert value["ranking"]["valid"]
    assert "Nothing is known of item gone-0, item gone-1," in value["reasoning"]


def test_nothing_but_unknown_ids_is_the_list_as_it_came(live: Live, reranker: Reranker) -> None:
    body = asked(reranker, documents=["gone-1", {"id": "gone-2"}], return_reasoning=True)
    value = ranked(live, body)
    assert order(value) == [0, 1]
    assert value["ranking"]["identity"]
    assert value["ranking"]["sure"] is None
    assert value["decode"]["forwards"] == 0
    assert "not judged" not in value["reasoning"]
    assert "First choice" not in value["reasoning"]


@pytest.mark.parametrize("more", ["title", "text", "brand", "categories"])
def test_an_unknown_id_is_ranked_on_what_came_with_it(
    live: Live, reranker: Reranker, more: str
) -> None:
    catalogue = reranker.catalogue
    given: dict[str, Any] = {
        "title": f"{catalogue.titles[70]} or so",
        "text": f"{catalogue.titles[70]} or so",
        "brand": catalogue.brands[70],
        "categories": catalogue.categories[70],
    }
    entry = {"id": "new-1", more: given[more]}
    value = ranked(live, asked(reranker, documents=[entry, *ids(reranker, 50, 51)]))
    assert value["meta"]["warnings"] == []
    (own,) = (one for one in value["results"] if one["index"] == 0)
    assert "placed" not in own
    assert own["id"] == "new-1"
    assert own["strength"] >= 0


def test_unknown_purchases_are_left_out_of_the_history(live: Live, reranker: Reranker) -> None:
    plain = asked(reranker)
    body = asked(reranker, history=["gonezz", plain["history"][0], LOST, plain["history"][1]])
    value = ranked(live, body)
    assert value["results"] == ranked(live, plain)["results"]
    assert value["meta"]["warnings"] == [
        "history[0]: 'gonezz' is left out (no such item, and none of its words is known)",
        "history[2]: 'nobody-1' is left out (no such id in the catalogue)",
    ]
    blank = ranked(live, asked(reranker, history=["gone-1"], return_reasoning=True))
    assert order(blank) == [0, 1, 2, 3, 4]
    assert blank["reasoning"].startswith("No earlier purchases to go by.")


def test_the_same_item_twice_costs_no_list(live: Live, reranker: Reranker) -> None:
    documents = ids(reranker, 50, 51, 50)
    value = ranked(live, asked(reranker, documents=documents))
    assert order(value)[2] == 2
    (told,) = value["meta"]["warnings"]
    assert told.endswith("keeps its place (the same item as documents[0])")


def test_what_rules_move_is_not_said_to_stay(live: Live, reranker: Reranker) -> None:
    known = ids(reranker, 50, 51)
    body = asked(reranker, documents=["gone-1", *known, known[1]], return_reasoning=True)
    plain, moved = ranked(live, body), ranked(live, {**body, "pin": {known[0]: 1, known[1]: 4}})
    assert [note.split("(")[0] for note in plain["meta"]["warnings"]] == [
        "documents[0]: 'gone-1' keeps its place ", f"documents[3]: '{known[1]}' keeps its place ",
    ]  # fmt: skip
    assert "item gone-1: it stays where the shop's list had it." in plain["reasoning"]
    assert "(#4) repeats an earlier entry: it stays where" in plain["reasoning"]
    assert order(moved) == [1, 0, 3, 2]
    assert [note.split("(")[0] for note in moved["meta"]["warnings"]] == [
        "documents[0]: 'gone-1' is not judged ", f"documents[3]: '{known[1]}' is not judged ",
    ]  # fmt: skip
    assert "item gone-1: it is not judged, and the shop's rules moved it." in moved["reasoning"]
    assert "(#4) repeats an earlier entry: it is not judged, and" in moved["reasoning"]
    assert "stays" not in moved["reasoning"]


def test_what_an_exclusion_takes_away_is_not_said_to_stay(live: Live, reranker: Reranker) -> None:
    known = ids(reranker, 50, 51)
    value = ranked(live, asked(reranker, documents=[*known, known[1]], exclude=[known[1]]))
    assert (order(value), value["meta"]["warnings"]) == ([0], [])


def test_strict_is_a_flag_of_the_request_and_of_the_server(live: Live, reranker: Reranker) -> None:
    body = asked(reranker, documents=[*ids(reranker, 50), LOST])
    refused = ranked(live, {**body, "strict": True}, 422)
    assert refused["indices"] == [1]
    assert refused["message"] == "documents[1]: no such id in the catalogue"
    assert (
        ranked(live, asked(reranker, strict=True, colour="red"), 422)["error"]["param"] == "colour"
    )
    assert (
        ranked(live, asked(reranker, strict=True, pin=["nobody"]), 422)["error"]["param"] == "pin"
    )
    with Live(reranker, limits=Limits(strict=True)) as closed:
        assert ranked(closed, body, 422)["indices"] == [1]
        assert ranked(closed, {**body, "strict": False})["meta"]["warnings"]


def test_texts_get_their_warnings_in_a_header(live: Live, reranker: Reranker) -> None:
    body = {"query": reranker.catalogue.titles[3], "texts": [*ids(reranker, 50), "zqx\u2028wv"]}
    with live.client() as client:
        answer = client.post("/rerank", json=body)
    assert [set(entry) for entry in answer.json()] == [{"index", "score"}] * 2
    (told,) = json.loads(answer.headers["x-warnings"])
    assert told.startswith("texts[1]: 'zqx")


def test_a_batch_tells_each_list_its_own(live: Live, reranker: Reranker) -> None:
    bodies = [asked(reranker), asked(reranker, documents=[*ids(reranker, 50), LOST])]
    with live.client() as client:
        answer = client.post("/v1/rerank/batch", json={"requests": bodies})
    lines = {line["index"]: line for line in map(json.loads, answer.text.splitlines())}
    assert [len(lines[at]["meta"]["warnings"]) for at in (0, 1)] == [0, 1]


# ------------------------------------------------------------------------------ unknown fields


def test_fields_that_nobody_reads_are_told(live: Live, reranker: Reranker) -> None:
    documents = [{"id": id_, "colour": "red", "titel": "x"} for id_ in ids(reranker, 50, 51)]
    body = asked(reranker, documents=documents, top_k=1, user="u-17", boosts={}, x={"deep": [1]})
    value = ranked(live, body)
    assert value["meta"]["warnings"] == [
        "boosts: unknown field, ignored; did you mean boost?",
        "documents[].colour: unknown field in 2 of 2, ignored",
        "documents[].titel: unknown field in 2 of 2, ignored; did you mean title?",
        "top_k: unknown field, ignored; did you mean top_n?",
        "user: unknown field, ignored; did you mean user_id?",
        "x: unknown field, ignored",
    ]
    assert "u-17" not in json.dumps(value)
    query = {"history": ids(reranker, 3), "when": "now"}
    told = ranked(live, {"query": query, "documents": ids(reranker, 50, 51)})["meta"]["warnings"]
    assert told == ["query.when: unknown field, ignored"]


def test_many_unknown_fields_are_counted(live: Live, reranker: Reranker) -> None:
    value = ranked(live, asked(reranker, **{f"field{i:03}{'y' * 100}": i for i in range(300)}))
    told = value["meta"]["warnings"]
    assert len(told) == 9
    assert told[-1] == "292 more unknown fields, ignored"
    assert all(len(one) < 160 for one in told)


def test_what_other_servers_know_passes_in_silence(live: Live, reranker: Reranker) -> None:
    foreign = {
        "max_chunks_per_doc": 3,
        "max_tokens_per_doc": 512,
        "rank_fields": ["name", "text"],
        "return_embeddings": False,
        "truncate": True,
        "truncation_direction": "Right",
        "raw_scores": False,
        "truncate_prompt_tokens": -1,
        "priority": 0,
    }
    documents = [{"id": id_, "name": "n", "metadata": {}} for id_ in ids(reranker, 50, 51)]
    assert ranked(live, asked(reranker, documents=documents, **foreign))["meta"]["warnings"] == []


def test_scores_beside_the_documents_are_told_where_they_belong(
    live: Live, reranker: Reranker
) -> None:
    documents = [{"id": id_, "score": 2 - n} for n, id_ in enumerate(ids(reranker, 50, 51))]
    (told,) = ranked(live, asked(reranker, documents=documents))["meta"]["warnings"]
    assert told.startswith("documents[].score: ignored; your ranker's scores go in `scores`, one ")
    ranked(live, asked(reranker, documents=documents, strict=True))  # no error: others echo them
    for more in (
        {"documents": documents, "scores": [2.0, 1.0]},
        {"documents": [{**one, "score": None} for one in documents]},
    ):
        assert ranked(live, asked(reranker, **more))["meta"]["warnings"] == []


# --------------------------------------------------------------------------------------- rules


def test_pins_and_exclusions_are_obeyed_and_told(live: Live, reranker: Reranker) -> None:
    body = asked(reranker, return_reasoning=True)
    free = order(ranked(live, body))
    weakest, second = free[-1], free[1]
    names = body["documents"]
    value = ranked(live, {**body, "pin": [names[weakest]]})
    assert order(value) == [weakest, *free[:-1]]
    value = ranked(live, {**body, "pin": [names[weakest]], "exclude": [names[second]]})
    assert order(value)[0] == weakest
    assert sorted(order(value)) == sorted({*free} - {second})
    assert value["results"][0]["placed"] == "pinned"
    assert strictly_falling(value)
    title = reranker.catalogue.titles[50 + weakest]
    assert f"The shop placed {title} at 1." in value["reasoning"]
    assert value["reasoning"].splitlines()[1].startswith(f"At the top: {title}, ahead of ")
    at_four = ranked(live, {**body, "pin": {names[free[0]]: 4}})
    assert order(at_four)[3] == free[0]


def test_a_boost_adds_levels_and_the_strength_stays_the_models(
    live: Live, reranker: Reranker
) -> None:
    body = asked(reranker, return_reasoning=True)
    free = ranked(live, body)
    levels = {entry["index"]: entry["strength"] for entry in free["results"]}
    first, last = order(free)[0], order(free)[-1]
    by = levels[first] - levels[last] + 0.5
    value = ranked(live, {**body, "boost": {body["documents"][last]: by}})
    assert order(value) == [last, *order(free)[:-1]]
    assert {entry["index"]: entry["strength"] for entry in value["results"]} == levels
    assert value["results"][0]["placed"] == "boosted"
    assert strictly_falling(value)
    assert f"by {by:g}." in value["reasoning"]
    little = ranked(live, {**body, "boost": {body["documents"][last]: 1e-9}})
    assert order(little) == order(free)
    down = ranked(live, {**body, "boost": {body["documents"][first]: -100}})
    assert order(down)[-1] == first
    assert "The shop lowered" in down["reasoning"]


def test_at_most_so_many_of_a_brand(live: Live, reranker: Reranker) -> None:
    catalogue = reranker.catalogue
    counts: dict[str, list[int]] = {}
    for item, brand in enumerate(catalogue.brands):
        counts.setdefault(brand, []).append(item)
    many = max(counts.values(), key=len)[:4]
    others = [item for item in range(100) if catalogue.brands[item] != catalogue.brands[many[0]]]
    documents = ids(reranker, *many, *others[:3])
    body = asked(reranker, documents=documents, max_per={"brand": 1}, return_reasoning=True)
    value = ranked(live, body)
    brands = [catalogue.brands[[*many, *others[:3]][at]] for at in order(value)]
    assert len(set(brands[: len(set(brands))])) == len(set(brands))
    assert brands[-3:] == [catalogue.brands[many[0]]] * 3
    assert "The shop wants at most 1 of one brand, so " in value["reasoning"]
    assert ranked(live, {**body, "max_per": {"category": 1}})["results"]


def test_rules_without_a_history(live: Live, reranker: Reranker) -> None:
    body = asked(reranker, history=[], return_reasoning=True)
    names = body["documents"]
    value = ranked(live, {**body, "pin": {names[4]: 2}, "boost": {names[3]: 1}})
    assert order(value) == [3, 4, 0, 1, 2]
    assert value["reasoning"].endswith("All else stays in the shop's order.")


def test_without_rules_nothing_is_different(reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    plain = reranker.rank(raw[3:5], raw[50:62], return_reasoning=True)
    ruled = reranker.rank(raw[3:5], raw[50:62], return_reasoning=True, rules={"exclude": ["x"]})
    one, two = ({**vars(result), "trajectories": ()} for result in (plain, ruled))
    assert one == two
    assert plain.placed == (None,) * 12
    assert plain.warnings == ()


def test_python_and_json_take_the_same_rules(reranker: Reranker) -> None:
    raw = reranker.catalogue.raw_ids
    given = {"history": raw[3:5], "candidates": [*raw[50:54], "gone"], "pin": [raw[52]]}
    one = reranker.rank_many([arguments_of({**given, "exclude": [raw[50]]})])[0]
    two = reranker.rank(
        raw[3:5], [*raw[50:54], "gone"], rules={"pin": [raw[52]], "exclude": [raw[50]]}
    )
    assert one.order == two.order
    assert one.order[0] == 2
    assert one.warnings == two.warnings != ()
    assert one.placed == two.placed
    with pytest.raises(DataError, match=r"candidates\[4\]: "):
        reranker.rank(**arguments_of({**given, "strict": True, "pin": None}))
    written = {"decode": {"answer": "written"}, "rules": {"boost": {raw[50]: 1}}}
    with pytest.raises(DataError, match=r"boost: a written answer states no strengths"):
        reranker.rank(raw[3:5], raw[50:54], **written)


@pytest.mark.parametrize("decode", [{"views": 3}, {"answer": "written"}, {"decoder": "ar"}])
def test_rules_hold_however_it_is_decoded(reranker: Reranker, decode: dict[str, Any]) -> None:
    raw = reranker.catalogue.raw_ids
    shown = [*raw[50:60], "gone", *raw[60:64]]
    rules = {"pin": {raw[63]: 2}, "exclude": [raw[51]]}
    result = reranker.rank(raw[3:5], shown, decode=decode, rules=rules, return_reasoning=True)
    assert sorted(result.order) == [0, *range(2, 15)]
    assert result.items[1] == raw[63]
    assert result.order[9] == 10  # the one nobody knows, one place up for the one that left
    assert list(result.scores) == sorted(result.scores, reverse=True)
    details = reranker.rank(raw[3:5], shown, decode={**decode, "details": True}, rules=rules)
    assert details.decisions is not None
    assert [bool(one.strengths) for one in details.decisions].count(False) == 1
