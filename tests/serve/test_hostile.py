"""Hostile requests in families: every one has its exact status, and none a 5xx that is not meant.

Bodies, headers, request lines and batches that a client might invent. What a family means stands
with it; the raw bytes go out on a connection of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.live import Live, idle, ids
from support.raw import body_of_answer, head_of, request, talk

Case = tuple[str, bytes, int]
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


def check(live: Live, cases: list[Case]) -> None:
    """Each case's status and the one error shape; 0 stands for any but a 5xx."""
    wrong = []
    for name, message, wanted in cases:
        answer = talk(live.port, message)
        status, headers = head_of(answer)
        shaped = True
        if status >= 400 and not message.startswith(b"HEAD"):
            shaped = shape(body_of_answer(answer), headers)
        fits = status < 500 if wanted == 0 else status == wanted
        if not fits or not shaped:
            wrong.append((name, wanted, status, answer[-200:]))
    assert not wrong, "\n".join(map(str, wrong))
    assert head_of(talk(live.port, request(method="GET", target="/health/live")))[0] == 200
    assert idle(live.state)


def shape(body: bytes, headers: dict[str, str]) -> bool:
    try:
        value = json.loads(body)
        named = value["id"] == headers.get("x-request-id", value["id"])
        return named and bool(value["message"]) and headers["content-type"] == "application/json"
    except (ValueError, KeyError):
        return False


# --------------------------------------------------------------------------- headers and lines


def wrappings(good: bytes) -> Iterator[Case]:
    """Good bodies whose headers say that they are something else."""
    for kind in (
        *("application/json-patch+json", "application/ld+json", "application/json, text/plain"),
        *(
            "APPLICATION/JSONP",
            "*/*",
            "application/*",
            "text/json",
            "application",
            "; charset=utf-8",
        ),
        *("multipart/form-data", "application/json/x", "\xe9", "application json", "json; q=1"),
    ):
        yield f"type {kind}", request(good, kind=f"content-type: {kind}"), 415
    for kind in ("application/json;charset=utf-8", "Application/JSON ; a=b", "application/json;"):
        yield f"type {kind}", request(good, kind=f"content-type: {kind}"), 200
    for coding in (
        "gzip",
        "GZIP",
        "deflate",
        "br",
        "zstd",
        "x-gzip",
        "compress",
        "identity, gzip",
        "*",
    ):
        yield f"coding {coding}", request(good, f"content-encoding: {coding}"), 415
    yield "no coding", request(good, "content-encoding: identity"), 200
    for wanted in (
        *(
            "0",
            "00",
            "-5",
            "+5",
            "5.0",
            "5e3",
            "0x10",
            "1_000",
            "5,5",
            "5;",
            "300001",
            "5 5",
            "five",
        ),
        *(
            "999999999",
            "9999999999",
            "1" * 400,
            "\xb2",
            "",
            "null",
            "inf",
            "nan",
            "5ms",
            "-0",
            "1/2",
        ),
    ):
        yield f"deadline {wanted}", request(good, f"x-request-timeout-ms: {wanted}"), 400
    for wanted in ("  9000", "9000  ", "\t9000", "009000", "300000"):
        yield f"deadline {wanted!r}", request(good, f"x-request-timeout-ms: {wanted}"), 200
    twice = ("x-request-timeout-ms: 9000", "X-Request-Timeout-Ms: 9000")
    yield "deadline twice", request(good, *twice), 400
    for name in ("a b", "\xe9", "x" * 129, "", "../..", "<script>", "a\tb", "a,b"):
        answer = request(good, f"x-request-id: {name}")
        yield f"id {name}", answer, 200  # an id that is none is replaced


def lengths(good: bytes) -> Iterator[Case]:
    """Framing: whatever two readers could understand differently is refused."""
    data = b"content-type: application/json\r\nhost: localhost\r\nconnection: close\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(good), good)

    def raw(*lines: bytes, body: bytes = good, version: bytes = b"1.1") -> bytes:
        inner = b"".join(line + b"\r\n" for line in lines)
        return b"POST /rerank HTTP/" + version + b"\r\n" + data + inner + b"\r\n" + body

    size = b"content-length: %d" % len(good)
    coded = b"transfer-encoding: chunked"
    yield "chunked", raw(coded, body=chunked), 200
    yield "chunked in capitals", raw(b"Transfer-Encoding: CHUNKED", body=chunked), 200
    yield "the same length twice", raw(size, size), 200  # as the standard allows
    for length in (
        b"-1",
        b"+5",
        b"0x5",
        b"5 5",
        b"5,6",
        b"1e3",
        b"",
        b"abc",
        b"9" * 21,
        b"9" * 5000,
        b"\xb2",
    ):
        yield f"length {length[:30]!r}", raw(b"content-length: " + length), 400
    yield "two lengths", raw(size, b"content-length: 3"), 400
    yield "length and chunked", raw(size, coded, body=chunked), 400
    yield "chunked and length", raw(coded, b"content-length: 0", body=chunked), 400
    yield "chunked twice", raw(coded, coded, body=chunked), 400
    for coding in (
        b"gzip",
        b"gzip, chunked",
        b"chunked, gzip",
        b"identity",
        b"xchunked",
        b"",
        b"chunked;q=1",
        b'"chunked"',
    ):
        yield f"coding {coding!r}", raw(b"transfer-encoding: " + coding, body=chunked), 400
    yield "chunked in 1.0", raw(coded, body=chunked, version=b"1.0"), 400
    for name, broken in {
        "no size": b"\r\n" + chunked,
        "size of letters": b"zz\r\n" + good + b"\r\n0\r\n\r\n",
        "negative size": b"-5\r\n" + good,
        "size with 0x": b"0x5\r\nabcde\r\n0\r\n\r\n",
        "size of 21 digits": b"1" * 21 + b"\r\n" + good,
        "more than its size": b"2\r\n" + good + b"\r\n0\r\n\r\n",
        "a bare newline": b"%x\n%s\n0\r\n\r\n" % (len(good), good),
    }.items():
        yield f"chunks: {name}", raw(coded, body=broken), 400
    yield "chunks: an endless extension", raw(coded, body=b"5;" + b"x" * 80_000), 431
    yield (
        "too large, chunked",
        raw(coded, body=b"1e8481\r\n" + b" " * 2_000_001 + b"\r\n0\r\n\r\n"),
        413,
    )
    yield "too large, announced", raw(b"content-length: 2000001", body=b""), 413
    yield "far too large, announced", raw(b"content-length: 99999999999999999", body=b""), 413


def heads(good: bytes) -> Iterator[Case]:
    """Header lines and request lines that are none, or too many, or meant for another host."""
    live = request(method="GET", target="/health/live")

    def line(text: bytes) -> bytes:
        return live.replace(b"connection", text + b"\r\nconnection", 1)

    for text in (
        *(
            b"x y: 1",
            b"x : 1",
            b": 1",
            b"x",
            b"x\x00: 1",
            b"x: \x00",
            b"x: a\rb",
            b"(x): 1",
            b"x@y: 1",
        ),
        *(b" x: 1\r\ny: 2", b"host: other", b"\xe9: 1", b"x: a\x7fb\x00"),
    ):
        yield f"header {text!r}", line(text), 400
    for text in (
        b"x:",
        b"x: \x01",
        b"x: \xe9",
        b"x:1",
        b"X-Y_Z.~!: 1",
        b"range: bytes=0-1",
        b"if-match: *",
        b"upgrade: websocket",
        b"upgrade: h2c",
        b"expect: nothing",
        b"te: trailers",
        b"cookie: a=b; c",
        b"forwarded: for=x",
        b"accept: image/png",
    ):
        yield f"header {text!r}", line(text), 200
    for host in (
        "a b",
        "a/b",
        "a@b:80",
        "localhost:x",
        "a:1:2",
        "[::1",
        "<x>",
        "a\\b",
        "a?b",
        "a#b",
        "é",
    ):
        yield f"host {host}", request(method="GET", target="/health/live", host=host), 400
    yield "no host", live.replace(b"host: localhost\r\n", b""), 400
    for count in (257, 2_000, 15_000):
        yield f"{count} headers", line(b"\r\n".join([b"a:"] * count)), 431
    for size in (80_000, 300_000):  # the last read may go over the bound
        yield f"a header of {size}", line(b"x: " + b"y" * size), 431
        yield f"a name of {size}", line(b"x" * size + b": y"), 431
        yield f"a target of {size}", live.replace(b"/health", b"/" + b"a" * size), 431
    for version, status in {
        "1.0": 200,
        "1.2": 200,
        "1.9": 200,
        "2.0": 505,
        "0.9": 505,
        "3.0": 505,
        "9.9": 505,
        "1": 400,
        "1.10": 400,
        "-1.1": 400,
        "": 400,
        "1.1 ": 400,
        "x": 400,
        "11": 400,
    }.items():
        yield (
            f"version {version}",
            live.replace(b"HTTP/1.1", b"HTTP/" + version.encode(), 1),
            status,
        )
    yield "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505
    for first in (
        b"GET",
        b"GET /",
        b"/ HTTP/1.1",
        b"GET / http/1.1",
        b"GET  / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"G\xe9T / HTTP/1.1",
        b"GET /a b HTTP/1.1",
        b"GET /\x00 HTTP/1.1",
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-x",
        b"EHLO x",
        b"*1",
        b"GET / HTTP/1.1\r",
        b"(GET) / HTTP/1.1",
    ):
        yield f"line {first!r}", first + b"\r\nhost: localhost\r\nconnection: close\r\n\r\n", 400
    for method in (
        "PUT",
        "DELETE",
        "PATCH",
        "OPTIONS",
        "TRACE",
        "BREW",
        "get",
        "PROPFIND",
        "M-SEARCH",
    ):
        yield f"method {method}", request(method=method, target="/rerank"), 405
    for target, status in {
        "/health/live?x=%ff": 200,
        "/health/live?" + "a=b&" * 2_000: 200,
        "/health/live#x": 404,
        "/health/live/": 404,
        "//health/live": 404,
        "/health/../health/live": 404,
        "/health/live;x": 404,
        "/%68ealth/live": 200,
        "/health%2flive": 200,
        "/health/live%00": 404,
        "/health/live%20": 404,
        "/%ff%fe": 404,
        "/HEALTH/LIVE": 404,
        "/..%2f..%2fetc/passwd": 404,
        "/v1/models/%2e%2e%2f": 404,
        "*": 404,
        "health/live": 404,
        "/static/../serve.py": 404,
        "/.git/config": 404,
        "/" + "a/" * 9_000: 404,
        "http://localhost/health/live": 200,
        "HTTP://LOCALHOST:80/health/live?x": 200,
        "https://localhost/health/live": 200,
        "http://localhost": 200,
        "http:///health/live": 400,
        "http://a@localhost/health/live": 400,
        "ftp://localhost/health/live": 404,
        "localhost:80": 404,
        "http://localhost:x/health/live": 400,
    }.items():
        yield f"target {target[:40]}", request(method="GET", target=target), status


HEADERS = (wrappings, lengths, heads)


@pytest.mark.parametrize("family", HEADERS)
def test_hostile_heads_have_their_exact_status(live: Live, family: Any) -> None:
    names = ids(live.reranker, 5, 6, 7)
    check(live, list(family(json.dumps(small(names)).encode())))


def test_there_are_enough_of_them_and_no_two_are_alike() -> None:
    names = ["a", "b", "c"]
    bodies = [case for family in BODIES for case in family(names)]
    wrapped = [case for family in HEADERS for case in family(json.dumps(small(names)).encode())]
    assert len({case[1] for case in bodies}) + len({case[1] for case in wrapped}) >= 400
