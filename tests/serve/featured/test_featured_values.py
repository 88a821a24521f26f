"""Values of a shop's own fields in requests that their fields cannot hold, or that are quoted."""

from __future__ import annotations

from typing import Any

import pytest

from diffgr2 import Reranker
from support.live import Live

FULL = {"price": 3, "ctr": 0.9, "badge": "bestseller", "in_stock": True}


def raw(reranker: Reranker, *numbers: int) -> list[str]:
    return [reranker.catalogue.raw_ids[number] for number in numbers]


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "words for a number": ({"ctr": "high"}, "features.ctr: expected a number (got 'high')"),
    "true for a number": ({"ctr": True}, "features.ctr: expected a number (got True)"),
    "false for a number": ({"price": False}, "features.price: expected a number (got False)"),
    "a list for a number": ({"price": [7]}, "features.price: expected a number (got [7])"),
    "an empty list for a number": ({"ctr": []}, "features.ctr: expected a number (got [])"),
    "an object for a number": ({"ctr": {"v": 1}}, "features.ctr: expected a number (got {'v': 1})"),
    "two for a flag": ({"in_stock": 2}, "features.in_stock: expected true or false (got 2)"),
    "half for a flag": ({"in_stock": 0.5}, "features.in_stock: expected true or false (got 0.5)"),
    "less than nothing for a flag": ({"in_stock": -1}, "features.in_stock: expected true or false"),
    "a list for a flag": ({"in_stock": [True]}, "features.in_stock: expected true or false"),
    "an object for a flag": ({"in_stock": {}}, "features.in_stock: expected true or false"),
    "a list for a word": ({"badge": ["new"]}, "features.badge: expected text, the name"),
    "an object for a word": ({"badge": {"new": 1}}, "features.badge: expected text, the name"),
    "two lines": ({"price": "1\n2"}, "features.price: expected a number (got '1\\n2')"),
    "a long list": ({"price": [1] * 50}, "features.price: expected a number (got [1, 1, 1"),
    "other characters": ({"ctr": "\u202e７"}, "features.ctr: expected a number"),
    "one good and one bad": ({"price": 1, "ctr": "x"}, "features.ctr: expected a number"),
    "a word that is a text": ({"badge": "x" * 101}, "features.badge: expected text, the name"),
}


@pytest.mark.parametrize(("value", "told"), ODD.values(), ids=ODD)
def test_a_value_that_its_field_cannot_hold_costs_no_list(
    value: dict[str, Any], told: str, reranker: Reranker, live: Live
) -> None:
    good, bad = raw(reranker, 5, 6)
    documents = [{"id": good, "features": FULL}, {"id": bad, "features": value}]
    body = {"history": raw(reranker, 0), "documents": documents}
    with live.client() as client:
        reply = client.post("/v1/rerank", json=body)
        assert reply.status_code == 200
        (warning,) = reply.json()["meta"]["warnings"]
        assert warning.startswith(told.removesuffix(")"))
        assert warning.endswith(", in 1 of 2, taken as missing")
        assert "\n" not in warning
        assert len(warning) < 200
        reply = client.post("/v1/rerank", json={**body, "strict": True})
        assert reply.status_code == 422
        error = reply.json()
        assert error["message"].startswith(f"documents[1]: {told.removesuffix(')')}")
        assert error["error"]["param"] == "documents"
    name = told.split(":")[0].removeprefix("features.")
    kept = {key: one for key, one in value.items() if key != name}
    levels = [
        reranker.rank(raw(reranker, 0), [documents[0], {"id": bad, "features": one}]).levels
        for one in (value, kept)
    ]
    assert levels[0] == levels[1], "it counts as missing"


def test_values_in_quotes_mean_what_they_mean_in_a_file(reranker: Reranker) -> None:
    quoted = {"price": " 12.5", "ctr": "0.3", "in_stock": "yes", "badge": " bestseller\n"}
    meant = {"price": 12.5, "ctr": 0.3, "in_stock": True, "badge": "bestseller"}
    nothing = {"price": "", "ctr": "n/a", "in_stock": "-", "badge": "none"}
    rows = []
    for values in (quoted, meant, nothing, {}):
        task = reranker.prepare(raw(reranker, 0), [{"id": raw(reranker, 5)[0], "features": values}])
        assert task.query.warnings == ()
        rows.append(task.whole.buckets_KF.tolist())
    assert rows[0] == rows[1]
    assert rows[2] == rows[3]


def test_a_group_by_a_value_that_is_none_has_no_limit(reranker: Reranker) -> None:
    given = (raw(reranker, 0), raw(reranker, 5, 6, 7, 8, 9, 10))
    found = []
    for word in (" bestseller", "bestseller"):
        others = ({"badge": value} for value in (["new"], {"new": 1}, "n/a", "n/a"))
        features = [FULL, {**FULL, "badge": word}, *others]
        found.append(reranker.rank(*given, features=features, rules={"max_per": {"badge": 1}}))
    one, other = found
    assert one.order == other.order, "one word, however it is spaced"
    assert one.placed == other.placed
    assert one.order[-1] in (0, 1)
    assert [one.placed[place] for place, at in enumerate(one.order) if at > 1] == [None] * 4
