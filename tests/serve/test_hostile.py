"""Hostile bodies in families: every one has its exact status, and none a 5xx.

What a family means stands with it; each request goes out on a connection of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.hostile import Case, check
from support.live import Live, ids
from support.raw import request

N = 100_001  # one value more than a body may hold


def small(names: list[str]) -> dict[str, Any]:
    return {"history": names[:1], "documents": names[1:3], "decode": {"decoder": "ar"}}


def grammar(names: list[str]) -> Iterator[Case]:
    """Texts that are nearly JSON."""
    good = json.dumps(small(names))[:-1]
    for number in (
        *("-", "1.", ".5", "1e", "1e+", "--1", "0b1", "0o7", "1_000", "00", "-01", "1,5", "Inf"),
        *("+Infinity", "nan", "NULL", "None", "True", "undefined", "1e400", "-1e400", "1f", "٣"),
    ):
        yield f"number {number}", f'{good}, "x": {number}}}'.encode(), 400
    for tail in (
        "",
        ",",
        "]",
        "}}",
        "} x",
        "}\x00",
        "}\x1f",
        "} {}",
        "}//",
        "}/**/",
        "};",
        "}\u00a0",
    ):
        yield f"tail {tail!r}", (good + tail).encode(), 400
    for text in (
        *(r"\u12", r"\u12g4", r"\x00", r"\'", r"\u{41}", r"\8", "\t", "\x01", "\x7f\x00", "\\"),
        *(r"\udc00\ud800", r"\ud800x", r"\uD83D", r"\ude00", r"a\ud83d\u0041"),
    ):
        yield f"text {text!r}", f'{good}, "x": "{text}"}}'.encode(), 400
    for name, data in {
        "utf-7": good.encode("utf-7") + b'+AGE-": 1}',
        "utf-16-be": (good + "}").encode("utf-16-be"),
        "utf-32": (good + "}").encode("utf-32-le"),
        "latin-1": (good + ', "x": "é"}').encode("latin-1"),
        "cut character": (good + ', "x": "').encode() + b"\xe2\x82" + b'"}',
        "5-byte character": (good + ', "x": "').encode() + b"\xf8\x88\x80\x80\x80" + b'"}',
        "beyond unicode": (good + ', "x": "').encode() + b"\xf4\x90\x80\x80" + b'"}',
        "encoded surrogates": (good + ', "x": "').encode() + b"\xed\xa0\xbd\xed\xb8\x80" + b'"}',
    }.items():
        yield f"encoding {name}", data, 400
    for first, second in (
        ("x", r"\u0078"),
        ("documents", "documents"),
        ("documents", r"\u0064ocuments"),
        ("", ""),
        ("__proto__", "__proto__"),
    ):
        yield f"twice {second}", f'{good}, "{first}": [], "{second}": []}}'.encode(), 400
    for inside in ("query", "decode", "history", "ignored"):
        twice = '{"id": 1, "id": 2}'
        value = f"[{twice}]" if inside == "history" else twice
        yield f"twice in {inside}", f'{{"{inside}": {value}}}'.encode(), 400


def sizes(names: list[str]) -> Iterator[Case]:
    """Too deep is 400 and too many values 413, in whatever field; too long lists are 422."""
    base = small(names)
    for field in ("history", "documents", "texts", "scores", "query", "decode", "model", "ignored"):
        for shape in ("[]", "{}"):
            opened = shape[0] if shape == "[]" else '{"a":'
            for levels in (65, 999, 20_000, 200_000):
                inner = opened * levels + ("1" if shape == "{}" else "") + shape[1] * levels
                yield f"{levels} {shape} in {field}", f'{{"{field}": {inner}}}'.encode(), 400
        many = {"ones": "[" + "1," * N + "1]", "empty": "[" + "{}," * N + "{}]"}
        many["texts"] = "[" + '"",' * N + '""]'
        many["keys"] = "{" + ",".join(f'"{i}":1' for i in range(N)) + "}"
        for name, inner in many.items():
            yield f"many {name} in {field}", f'{{"{field}": {inner}}}'.encode(), 413
    for name, change in {
        "101 documents": {"documents": [f"a{i}" for i in range(101)]},
        "201 in the history": {"history": names[:1] * 201},
        "50,000 documents": {"documents": [1] * 50_000},
        "50,000 scores": {"scores": [1] * 50_000},
        "40,000 in the history": {"history": [[]] * 40_000},
        "40,000 in a query": {"history": None, "query": [{}] * 40_000},
        "50,000 in a query's history": {"history": None, "query": {"history": [1] * 50_000}},
        "65 keys in a document": {"documents": [{str(i): 1 for i in range(65)}]},
        "65 categories": {"documents": [{"title": "a", "categories": ["a"] * 65}]},
        "65 keys in decode": {"decode": {str(i): 1 for i in range(65)}},
        "65 keys in a query": {"query": {str(i): 1 for i in range(65)}},
        "a long list in a query": {"query": {"user_id": [1] * 65}},
        "a query of 200,001 values as text": {"query": json.dumps([1] * 200_000)},
        "a query of 201 items as text": {"history": None, "query": json.dumps(["a"] * 201)},
        "a query of 2,000 levels as text": {"query": "[" * 2_000 + " " * 2_000},
        "a query of many keys as text": {"query": json.dumps({str(i): 1 for i in range(N)})},
        "an object of 65 keys in a query as text": {
            "history": None,
            "query": json.dumps([{str(i): "a" for i in range(65)}]),
        },
        "a text of a million": {"documents": ["a" * 1_000_000]},
        "a title of a million": {"history": [{"title": "a" * 1_000_000}]},
        "a category of a million": {"history": [{"title": "a", "categories": ["a" * 1_000_000]}]},
        "a shopper of a million": {"history": None, "user_id": "a" * 1_000_000},
        "a query of a million": {"history": None, "query": "a" * 1_000_000},
        "a decoder of a million": {"decode": {"decoder": "a" * 1_000_000}},
    }.items():
        yield name, json.dumps({**base, **change}).encode(), 422
    yield "a model of a million", json.dumps({**base, "model": "m" * 1_000_000}).encode(), 404
    for size in (2_000_001, 5_000_000):
        yield f"{size} bytes", b" " * size, 413


def harmless(names: list[str]) -> Iterator[Case]:
    """Odd and allowed: fields nobody knows, names of other worlds, every kind of space."""
    base = small(names)
    for key in ("__proto__", "constructor", "__class__", "$ref", "", " ", "\u0000", "é", "\u2028"):
        yield f"key {key!r}", json.dumps({**base, key: {"x": [1, None, "y"]}}).encode(), 200
    yield "spaces", b" \r\n\t" * 1000 + json.dumps(base).encode() + b"\n" * 1000, 200
    yield (
        "64 levels",
        json.dumps({**base, "x": 1}).replace("1}", "[" * 63 + "]" * 63 + "}").encode(),
        200,
    )
    yield "escaped keys", json.dumps(base).replace("documents", r"\u0064ocuments").encode(), 200
    for title in ("\u202e" + names[0], "a\u0000b", "%00", "{{7*7}}", "<|mask|>", "'; DROP TABLE"):
        yield f"title {title!r}", json.dumps({**base, "documents": [names[1], title]}).encode(), 0


def batches(names: list[str]) -> Iterator[Case]:
    """A batch is refused as a whole only where it is no list of requests."""
    for name, value in {
        "nothing": {},
        "null": {"requests": None},
        "empty": {"requests": []},
        "object": {"requests": {}},
        "text": {"requests": "[]"},
        "number": {"requests": 1},
        "101": {"requests": [small(names)] * 101},
        "50,000": {"requests": [1] * 50_000},
        "other name": {"request": [small(names)]},
        "documents": small(names),
    }.items():
        yield f"batch {name}", json.dumps(value).encode(), 422
    yield "batch list", json.dumps([small(names)]).encode(), 422
    yield "batch deep", b'{"requests": ' + b"[" * 99_000, 400
    yield "batch many", b'{"requests": [' + b"1," * N + b"1]}", 413
    yield "batch jsonl", b'{"requests": []}\n{"requests": []}', 400


BODIES = (grammar, sizes, harmless, batches)


@pytest.mark.parametrize("family", BODIES)
def test_hostile_bodies_have_their_exact_status(live: Live, family: Any) -> None:
    names = ids(live.reranker, 5, 6, 7)
    target = "/v1/rerank/batch" if family is batches else "/v1/rerank"
    check(
        live, [(name, request(body, target=target), status) for name, body, status in family(names)]
    )


def test_there_are_enough_of_them_and_no_two_are_alike() -> None:
    cases = [case[1] for family in BODIES for case in family(["a", "b", "c"])]
    assert len(cases) >= 180
    assert len(set(cases)) >= len(cases) - 2
