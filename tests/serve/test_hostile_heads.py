"""Hostile header lines, frames and request lines: every one has its exact status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from support.hostile import Case, check
from support.live import Live, ids
from support.raw import request


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


def lines(good: bytes) -> Iterator[Case]:
    """Versions, methods and first lines."""
    live = request(method="GET", target="/health/live")
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


def targets(good: bytes) -> Iterator[Case]:
    """What is asked for, and how it is written."""
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


FAMILIES = (wrappings, lengths, heads, lines, targets)


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_heads_have_their_exact_status(live: Live, family: Any) -> None:
    names = ids(live.reranker, 5, 6, 7)
    good = {"history": names[:1], "documents": names[1:3], "decode": {"decoder": "ar"}}
    check(live, list(family(json.dumps(good).encode())))


def test_there_are_enough_of_them_and_no_two_are_alike() -> None:
    cases = [case[1] for family in FAMILIES for case in family(b'{"a": 1}')]
    assert len(cases) >= 180
    assert len(set(cases)) == len(cases)
