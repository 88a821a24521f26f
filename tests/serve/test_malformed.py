"""Curated malformed requests: each has one exact status and the one error shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from diffgr2.serve.limits import Limits
from diffgr2.serve.schema import Problem, parse_request
from support.live import Live, idle

Case = tuple[str, bytes, dict[str, str], int]
JSON = {"content-type": "application/json"}
PLACEHOLDERS = ("P0000170", "P0000046", "P0000186")  # stand for items of the catalogue
GOOD: dict[str, Any] = {"history": ["P0000170"], "documents": ["P0000046", "P0000186"]}
HUGE = "9" * 5000


def raw_cases() -> Iterator[tuple[str, bytes, int]]:
    """Bodies that are not what JSON means."""
    texts = {
        "empty": b"",
        "blank": b"   ",
        "not json": b"hello",
        "single quotes": b"{'a': 1}",
        "trailing comma": b'{"documents": ["a"],}',
        "comment": b'{"documents": ["a"]} // x',
        "two values": b"{} {}",
        "cut": json.dumps(GOOD).encode()[:-5],
        "byte order mark": b"\xef\xbb\xbf{}",
        "utf-16": json.dumps(GOOD).encode("utf-16"),
        "bad utf-8": b'{"documents": ["\xff\xfe"]}',
        "overlong utf-8": b'{"documents": ["\xc0\xaf"]}',
        "raw surrogate": b'{"documents": ["\xed\xa0\x80"]}',
        "escaped surrogate": b'{"documents": ["\\ud800"], "history": []}',
        "surrogate key": b'{"\\udfff": 1}',
        "control character": b'{"documents": ["a\nb"]}',
        "bad escape": b'{"documents": ["\\x41"]}',
        "nan": b'{"documents": ["a"], "scores": [NaN]}',
        "infinity": b'{"documents": ["a"], "scores": [Infinity]}',
        "minus infinity": b'{"documents": ["a"], "scores": [-Infinity]}',
        "too large a number": b'{"documents": ["a"], "scores": [1e999]}',
        "huge integer": f'{{"top_n": {HUGE}}}'.encode(),
        "19 digits": b'{"top_n": 1234567890123456789}',
        "negative huge": f'{{"seed": -{HUGE}}}'.encode(),
        "leading zero": b'{"top_n": 01}',
        "plus": b'{"top_n": +1}',
        "hex": b'{"top_n": 0x10}',
        "duplicate key": b'{"documents": ["a"], "documents": ["b"]}',
        "duplicate inner key": b'{"documents": [{"id": "a", "id": "b"}]}',
        "duplicate decode key": b'{"decode": {"threshold": 1, "threshold": 0}}',
        "deep list": b"[" * 90_000,
        "deep closed list": b"[" * 3000 + b"]" * 3000,
        "deep object": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "65 levels": b'{"x":' + b"[" * 65 + b"]" * 65 + b"}",
        "null byte": b"\x00",
        "pickle": b"\x80\x04\x95\x0b\x00.",
        "gzip": b"\x1f\x8b\x08\x00",
        "xml": b"<request/>",
        "form": b"documents=a&documents=b",
        "python literal": b"{'documents': None}",
    }
    for name, body in texts.items():
        yield f"body/{name}", body, 400
    for name, body in {
        "null": b"null",
        "number": b"1",
        "text": b'"documents"',
        "list": b'[{"documents": ["a"]}]',
        "empty object": b"{}",
        "true": b"true",
    }.items():
        yield f"top/{name}", body, 422


WRONG_TYPES: dict[str, list[Any]] = {
    "model": [1, 1.5, True, [], {}, ["default"]],
    "query": [1, 1.5, True, 0],
    "documents": ["P0000046", 1, True, {}, {"0": "a"}, 1.5],
    "texts": ["P0000046", 1, True, {}, [1], [None], [{}], [["a"]]],
    "top_n": ["3", 1.5, True, [], {}, -1, -100, "", "all"],
    "return_documents": ["true", 1, 0, [], {}, "yes"],
    "history": ["P0000170", 1, True, {}, 1.5],
    "user_id": [1, True, [], {}, 1.5],
    "scores": ["1", 1, True, {}, ["1", "2"], [None, 1.0], [[1.0], 2.0], [True, "x"]],
    "return_reasoning": ["true", 1, [], {}, "no"],
    "reasoning": ["maybe", 1, [], {}, "ON", 0.5, ""],
    "decode": ["fast", 1, True, [], 1.5],
    "seed": ["1", 1.5, True, [], -1],
    "stream": ["true", 1, [], {}],
    "strict": ["true", 1, [], {}],
    "pin": ["P0000046", 1, True, [1], [None], [["a"]], {"a": "1"}, {"a": 1.5}, {"a": True}],
    "exclude": ["P0000046", 1, True, {}, {"a": 1}, [1], [None]],
    "boost": [["P0000046"], 1, "a", True, {"a": "1"}, {"a": None}, {"a": True}, {"a": [1]}],
    "max_per": [["brand"], 2, "brand", True, {"brand": "2"}, {"brand": 1.5}, {"brand": True}],
}

ENTRIES: list[tuple[str, Any]] = [
    ("number", 5),
    ("float", 1.5),
    ("true", True),
    ("null", None),
    ("list", ["P0000046"]),
    ("empty text", ""),
    ("blank text", "   "),
    ("newline only", "\n\t"),
    ("no known word", "zqxwv kjhgf"),
    ("empty object", {}),
    ("object of nulls", {"id": None, "text": None}),
    ("object of unknown keys", {"name": "P0000046"}),
    ("only a brand", {"brand": "Calmora"}),
    ("unknown id", {"id": "nobody"}),
    ("number as id", {"id": 46}),
    ("list as title", {"title": ["a"]}),
    ("true as text", {"text": True}),
    ("text as categories", {"title": "x", "categories": "Hair"}),
    ("numbers as categories", {"title": "x", "categories": [1]}),
    ("number as description", {"title": "x", "description": 1}),
    ("not a semantic id", {"sid": "12-34"}),
    ("cut semantic id", {"sid": "<s_a_1>"}),
    ("semantic id out of range", "<s_a_999><s_b_1>"),
    ("semantic id with huge code", "<s_a_99999999999999999999><s_b_1>"),
    ("semantic id too long", "<s_a_1><s_b_1><s_c_1>"),
    ("text too long", "matte " * 400),
    ("title too long", {"title": "matte " * 400}),
    ("description too long", {"title": "matte", "description": "x" * 2049}),
    ("category too long", {"title": "matte", "categories": ["x" * 2049]}),
]
"""Things that name no item; in documents and in histories alike, of strict requests."""

DECODES: list[Any] = [
    {"decoder": "beam"},
    {"decoder": "AR"},
    {"decoder": 1},
    {"decoder": ["ar"]},
    {"decoder": ""},
    {"threshold": "0.5"},
    {"threshold": 1.01},
    {"threshold": -0.01},
    {"threshold": True},
    {"threshold": []},
    {"accept": "all"},
    {"accept": 1},
    {"per_step": 0},
    {"per_step": -1},
    {"per_step": 1.5},
    {"per_step": "8"},
    {"per_step": 10_000},
    {"per_step": True},
    {"entropy_bound": 0},
    {"entropy_bound": -1.0},
    {"entropy_bound": "1"},
    {"rule": "sorted"},
    {"rule": "permutation"},
    {"answer": "spoken"},
    {"answer": True},
    {"views": 0},
    {"views": 17},
    {"views": "2"},
    {"views": 2, "answer": "written"},
    {"details": "yes"},
    {"details": 1},
    {"rule": 0},
    {"canvas": 0},
    {"canvas": 100_000},
    {"canvas": "32"},
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"temperature": "hot"},
    {"max_tokens": 0},
    {"max_tokens": -5},
    {"max_tokens": 1_000_000},
    {"max_tokens": 1.5},
    {"clean_kv": "causal"},
    {"block_size": 8},
    {"mask_id": 3},
    {"end_id": 0},
    {"fused": False},
    {"__class__": "x"},
    {"decoder": "ar", "unknown": 1},
]

QUERIES: list[Any] = [
    "",
    "   ",
    "user:",
    "user:   ",
    "user:nobody at all",
    "user:" + "x" * 3000,
    "x" * 2049,
    {},
    {"history": "P0000170"},
    {"history": [1]},
    {"history": [{"id": "nobody"}]},
    {"user_id": 7},
    {"user_id": ""},
    {"user_id": "nobody"},
    {"other": 1},
    [1, 2],
    [None],
    [[]],
    '{"history": [1]}',
    '{"history": "a"}',
    '{"user_id": []}',
    "[1]",
    "{}",
    '["zqxwv"]',
]

LISTS: list[tuple[str, dict[str, Any]]] = [
    ("documents missing", {"documents": None}),
    ("documents empty", {"documents": []}),
    ("texts empty", {"documents": None, "texts": []}),
    ("101 documents", {"documents": [f"matte {i}" for i in range(101)]}),
    ("1000 documents", {"documents": ["matte"] * 1000}),
    ("101 texts", {"documents": None, "texts": [f"matte {i}" for i in range(101)]}),
    ("201 in the history", {"history": ["P0000170"] * 201}),
    ("same id twice", {"documents": ["P0000046", "P0000046"]}),
    ("same item by id and object", {"documents": ["P0000046", {"id": "P0000046"}]}),
    ("too few scores", {"scores": [1.0]}),
    ("too many scores", {"scores": [3.0, 2.0, 1.0]}),
    ("no scores", {"scores": []}),
    ("nobody asks", {"history": None}),
    ("empty user", {"history": None, "user_id": ""}),
    ("unknown user", {"history": None, "user_id": "nobody"}),
    ("long user", {"history": None, "user_id": "u" * 2049}),
]


RULES: list[tuple[str, dict[str, Any]]] = [
    ("pinned and excluded", {"pin": ["P0000046"], "exclude": ["P0000046"]}),
    ("two at one place", {"pin": {"P0000046": 1, "P0000186": 1}}),
    ("pinned twice", {"pin": ["P0000046", "P0000046"]}),
    ("place 0", {"pin": {"P0000046": 0}}),
    ("place below 0", {"pin": {"P0000046": -1}}),
    ("place beyond the list", {"pin": {"P0000046": 3}}),
    ("place beyond what is left", {"pin": {"P0000046": 2}, "exclude": ["P0000186"]}),
    ("empty id pinned", {"pin": [""]}),
    ("empty id excluded", {"exclude": [""]}),
    ("nothing is left", {"exclude": ["P0000046", "P0000186"]}),
    ("a boost beyond reason", {"boost": {"P0000046": 1e7}}),
    ("a boost of a written answer", {"boost": {"P0000046": 1}, "decode": {"answer": "written"}}),
    ("none of a brand", {"max_per": {"brand": 0}}),
    ("less than none", {"max_per": {"brand": -2}}),
    ("unknown group", {"max_per": {"colour": 2}}),
    ("1001 pins", {"pin": [f"P{i}" for i in range(1001)]}),
    ("1001 exclusions", {"exclude": [f"P{i}" for i in range(1001)]}),
    ("1001 boosts", {"boost": {f"P{i}": 1 for i in range(1001)}}),
    ("65 groups", {"max_per": {f"g{i}": 1 for i in range(65)}}),
]
"""Rules that no answer can obey."""


def body_cases() -> Iterator[tuple[str, bytes, int]]:
    """Bodies that are JSON and wrong."""
    changes: list[tuple[str, dict[str, Any], int]] = []
    for field, values in WRONG_TYPES.items():
        for value in values:
            base = {"documents": None} if field == "texts" else {}
            changes.append((f"type/{field}={value!r}", {**base, field: value}, 422))
    for name, entry in ENTRIES:
        changes.append((f"document/{name}", {"documents": ["P0000046", entry]}, 422))
        changes.append((f"history/{name}", {"history": ["P0000170", entry]}, 422))
    for value in DECODES:
        changes.append((f"decode/{value!r}", {"decode": value}, 422))
    for value in QUERIES:
        changes.append((f"query/{str(value)[:40]!r}", {"history": None, "query": value}, 422))
    for name, change in LISTS:
        changes.append((f"list/{name}", change, 422))
    for name in ("other", "rerank-v3.5", "", "DIFFGR2", "../../etc/passwd", "x" * 5000):
        changes.append((f"model/{name[:20]}", {"model": name}, 404))
    for name, change, status in changes:
        yield name, json.dumps({**GOOD, "strict": True, **change}).encode(), status
    for name, change in RULES:  # these contradict themselves, however lenient one is
        yield f"rules/{name}", json.dumps({**GOOD, **change}).encode(), 422


def header_cases() -> Iterator[Case]:
    """Good bodies in a wrong wrapping."""
    body = json.dumps(GOOD).encode()
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/octet-stream",
        "application/jsonp",
        "json",
        "text/json",
        "application/x-ndjson",
        "",
    ):
        yield f"content-type/{kind}", body, {"content-type": kind}, 415
    for encoding in ("gzip", "br", "deflate", "zstd", "gzip, gzip", "x"):
        headers = {**JSON, "content-encoding": encoding}
        yield f"content-encoding/{encoding}", body, headers, 415
    for value in ("0", "-1", "1e3", "abc", "1.5", "5 0", "300001", "99999999999999", "٣"):
        headers = {**JSON, "x-request-timeout-ms": value}
        yield f"timeout/{value}", body, headers, 400
    yield "body/too large", b" " * 2_000_001, JSON, 413
    yield "body/too large json", b'{"query": "' + b"x" * 2_100_000 + b'"}', JSON, 413


def cases() -> list[Case]:
    plain = [(name, body, JSON, status) for name, body, status in [*raw_cases(), *body_cases()]]
    return [*plain, *header_cases()]


CASES = cases()


def test_there_are_enough_cases_and_no_two_are_alike() -> None:
    assert len(CASES) >= 280
    assert len({(body, str(headers)) for _, body, headers, _ in CASES}) == len(CASES)


def test_every_malformed_request_gets_its_exact_status(live: Live) -> None:
    wrong = []
    names = dict(zip(PLACEHOLDERS, live.reranker.catalogue.raw_ids[5:], strict=False))

    def real(body: bytes) -> bytes:
        for placeholder, raw in names.items():
            body = body.replace(placeholder.encode(), raw.encode())
        return body

    good = real(json.dumps(GOOD).encode())
    with live.client() as client:
        assert client.post("/rerank", content=good, headers=JSON).status_code == 200
        for name, body, headers, status in CASES:
            body = real(body) if name != "body/utf-16" else body
            encoded = {key: value.encode() for key, value in headers.items()}
            answer = client.post("/rerank", content=body, headers=encoded)  # type: ignore[arg-type]
            try:
                value = answer.json()
                shaped = bool(value["message"]) and value["id"] == answer.headers["x-request-id"]
                shaped &= "error_type" in value or value["error"]["code"] == status
            except (ValueError, KeyError, TypeError):
                shaped = False
            if answer.status_code != status or not shaped:
                wrong.append((name, status, answer.status_code, answer.text[:200]))
        assert not wrong
        assert client.post("/rerank", content=good, headers=JSON).status_code == 200
    assert idle(live.state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"documents": [{"id": 22}]}, "documents.0.id: Input should be a valid string"),
        ({"documents": ["a", {"id": "a", "brand": 5}]}, "documents.1.brand: Input should be a "
         "valid string"),
        ({"history": [{"id": "a", "categories": "Tea > Table"}]}, "history.0.categories: Input "
         "should be a valid list"),
        ({"documents": [5]}, "documents.0: Input should be a valid string"),
        ({"decode": {"foo": 1}}, "decode.foo: unknown field"),
    ],
)  # fmt: skip
def test_what_is_wrong_within_an_entry_is_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_request({**GOOD, **change}, Limits())
    assert (caught.value.status, caught.value.message) == (422, told)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/rerank", 405),
        ("PUT", "/v1/rerank", 405),
        ("DELETE", "/v2/rerank", 405),
        ("PATCH", "/metrics", 405),
        ("POST", "/", 405),
        ("POST", "/health/ready", 405),
        ("GET", "/v3/rerank", 404),
        ("GET", "/rerank/", 405),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/static/index.html", 404),
        ("GET", "/v1/models/" + "x" * 4000, 404),
        ("GET", "/page/candidates?h=" + "x" * 2049, 422),
        ("GET", "/page/candidates?h=zqxwv", 422),
    ],
)
def test_other_routes_fail_in_the_same_shape(live: Live, method, path, status) -> None:
    with live.client(follow_redirects=True) as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    value = answer.json()
    assert value["error"]["code"] == status
    assert value["id"] == answer.headers["x-request-id"]
