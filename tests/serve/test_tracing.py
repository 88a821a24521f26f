"""Traces: what their spans say and leave out, what switches them on, and that off costs nothing.

The tracer here is a fake of OpenTelemetry's protocol; nothing was sent to a collector.
"""

from __future__ import annotations

import inspect
import itertools
import json
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from diffgr2.cli import serve as verb
from diffgr2.errors import MissingExtraError
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve import tracing
from diffgr2.serve.keys import Keys
from diffgr2.serve.telemetry import Facts, Spent
from support.live import Live, body_of, idle

KEY = "the-key-of-a-traced-team"
SRC = Path(__file__).parents[2] / "src"


class Span:
    def __init__(self, name: str, parent: Any, begun: int, attributes: dict[str, Any]) -> None:
        self.name, self.parent, self.begun, self.attributes = name, parent, begun, attributes
        self.ended = 0

    def end(self, end_time: int) -> None:
        assert self.ended == 0, "ended twice"
        self.ended = end_time


class Tracer:
    """As much of a tracer as is asked of one."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, *, context: Any, start_time: int, attributes: dict) -> Span:
        self.spans.append(Span(name, context, start_time, dict(attributes)))
        return self.spans[-1]


def traces_of(tracer: Tracer) -> tracing.Traces:
    def sent(carrier: Mapping[str, str]) -> str:
        return f"from {carrier['traceparent']}"

    return tracing.Traces(tracer, lambda span: span, sent)


@pytest.fixture
def traced(reranker: Reranker) -> Iterator[tuple[Live, Tracer]]:
    tracer = Tracer()
    with Live(reranker, keys=Keys([f"{KEY} name=search"])) as server:
        server.state.traces = traces_of(tracer)
        yield server, tracer


def finished(tracer: Tracer, n: int) -> list[Span]:
    """All spans, once there are so many: they are written after the answer."""
    end = time.monotonic() + 10
    while len(tracer.spans) < n and time.monotonic() < end:
        time.sleep(0.005)
    assert len(tracer.spans) == n
    while not all(span.ended for span in tracer.spans) and time.monotonic() < end:
        time.sleep(0.005)
    return tracer.spans


def test_a_ranking_is_three_spans_in_order(traced, reranker: Reranker) -> None:
    server, tracer = traced
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    before = time.time_ns()
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        body = body_of(reranker, 3, decode={"decoder": "verify"})
        told = client.post("/v1/rerank", json=body, headers={"traceparent": parent}).json()
    root, waiting, decoding = finished(tracer, 3)
    after = time.time_ns()
    assert [span.name for span in tracer.spans] == ["rerank", "waiting", "decoding"]
    assert root.parent == f"from {parent}"
    assert waiting.parent is root
    assert decoding.parent is root
    assert root.attributes == {
        "diffgr2.route": "/v1/rerank",
        "diffgr2.status": 200,
        "diffgr2.key": "search",
        "diffgr2.lists": 1,
    }
    assert waiting.attributes == {}
    assert decoding.attributes == {
        "diffgr2.decoder": "verify",
        "diffgr2.tokens": told["decode"]["tokens"],
        "diffgr2.forwards": told["decode"]["forwards"],
    }
    slack = 5_000_000  # two clocks are read one after the other
    moments = [before, root.begun, waiting.begun, waiting.ended, decoding.ended, root.ended, after]
    assert all(one <= two + slack for one, two in itertools.pairwise(moments)), moments
    assert abs(decoding.begun - waiting.ended) <= slack


def test_every_list_of_a_batch_has_its_pair(traced, reranker: Reranker) -> None:
    server, tracer = traced
    asks = [body_of(reranker, s) for s in range(5)] + [{"documents": []}]
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        client.post("/v1/rerank/batch", json={"requests": asks})
    spans = finished(tracer, 11)
    assert spans[0].parent is None
    assert spans[0].attributes["diffgr2.lists"] == 5
    assert [span.name for span in spans[1:]] == ["waiting", "decoding"] * 5


def test_a_huge_batch_is_traced_in_part() -> None:
    tracer = Tracer()
    spent = Spent("ar", 1, 1, queued=1.0, started=2.0, ended=3.0, compute_s=0.5)
    facts = Facts(lists=[spent] * 5000)
    traces_of(tracer).request({"lists": 5000}, facts, 0.0, "")
    assert len(tracer.spans) == 1 + 2 * 100
    assert tracer.spans[0].attributes == {"diffgr2.lists": 5000}


def test_what_fails_is_one_span_and_what_ranks_nothing_none(traced, reranker: Reranker) -> None:
    server, tracer = traced
    with server.client() as client:
        mine = {"authorization": f"Bearer {KEY}"}
        for path in ("/health/live", "/v1/models", "/nowhere", "/rerank"):
            client.get(path, headers=mine)
        assert idle(server.state)
        for ask, status in (({"documents": []}, 422), (body_of(reranker, 1), 401)):
            headers = mine if status == 422 else {}
            assert client.post("/rerank", json=ask, headers=headers).status_code == status
    # `GET /rerank` is the route's too: a request that was refused.
    spans = finished(tracer, 3)
    assert [span.attributes["diffgr2.status"] for span in spans] == [405, 422, 401]
    assert all(span.name == "rerank" for span in spans)


def test_no_key_body_or_id_is_in_a_span(traced, reranker: Reranker) -> None:
    server, tracer = traced
    user = reranker.raw_users[3]
    body = body_of(reranker, 4, user_id=user)
    with server.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        client.post("/rerank", json=body, headers={"x-request-id": f"id-{user}"})
        client.post("/rerank/" + user, json=body)
    told = json.dumps([[span.name, span.attributes] for span in finished(tracer, 3)])
    for word in (KEY, user, *body["history"], *body["documents"]):
        assert word not in told


@pytest.mark.parametrize(
    ("environ", "on"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "console"}, False),
        ({"OTEL_SERVICE_NAME": "ranker"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "x"}, False),
    ],
)
def test_the_standard_variables_switch_it_on(environ: dict[str, str], on: bool) -> None:
    assert tracing.wanted(environ) is on


def test_where_the_extra_is_missing_the_option_fails_and_a_variable_warns(
    monkeypatch, capsys
) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(tracing.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'diffgr2\[otel\]'"):
        verb.tracing_of("http://collector:4318/v1/traces")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    assert verb.tracing_of(None) is None
    assert capsys.readouterr().err.startswith("warning: traces need OpenTelemetry")
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    assert verb.tracing_of(None) is None
    assert capsys.readouterr().err == ""


def test_the_exporter_gets_the_address_and_the_service_its_name(monkeypatch) -> None:
    made: dict[str, Any] = {}

    class Provider:
        def __init__(self, resource: Any) -> None:
            made["resource"] = resource

        def add_span_processor(self, processor: Any) -> None:
            made["processor"] = processor

        def get_tracer(self, name: str, version: str) -> Tracer:
            made["tracer"] = name
            return Tracer()

        def shutdown(self) -> None:
            made["closed"] = True

    def exporter(endpoint: str | None) -> tuple[str, str | None]:
        return ("otlp", endpoint)

    fakes = {
        "opentelemetry.sdk.trace": SimpleNamespace(TracerProvider=Provider),
        "opentelemetry.sdk.trace.export": SimpleNamespace(BatchSpanProcessor=lambda e: e),
        "opentelemetry.sdk.resources": SimpleNamespace(Resource=SimpleNamespace(create=dict)),
        "opentelemetry.exporter.otlp.proto.http.trace_exporter": SimpleNamespace(
            OTLPSpanExporter=exporter
        ),
        "opentelemetry.trace": SimpleNamespace(set_span_in_context=lambda span: span),
        "opentelemetry.trace.propagation.tracecontext": SimpleNamespace(
            TraceContextTextMapPropagator=lambda: SimpleNamespace(extract=dict)
        ),
    }
    monkeypatch.setattr(tracing.importlib, "import_module", fakes.__getitem__)
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    traces = tracing.start("http://collector:4318/v1/traces")
    assert made["processor"] == ("otlp", "http://collector:4318/v1/traces")
    assert made["resource"] == {"service.name": "diffgr2"}
    traces.close()
    assert made["closed"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ranker")
    tracing.start(None)
    assert made["processor"] == ("otlp", None)  # the exporter reads its own variables
    assert made["resource"] == {}


def test_off_imports_nothing_of_opentelemetry(monkeypatch) -> None:
    def asked(url: str | None) -> None:
        raise AssertionError("started")

    original = tracing.start
    monkeypatch.setattr(tracing, "start", asked)
    for name in [name for name in verb.os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    assert verb.tracing_of(None) is None
    # No other line of the package imports it: its modules are named in `start` alone.
    named = re.compile(r"import_module\(.opentelemetry|(?:import|from) opentelemetry")
    texts = {path: path.read_text(encoding="utf-8") for path in (SRC / "diffgr2").rglob("*.py")}
    found = {path.name: len(named.findall(text)) for path, text in texts.items()}
    within = inspect.getsource(original)
    assert len(named.findall(within)) == found.pop("tracing.py") == 6
    assert not any(found.values())


def test_off_makes_no_span_and_no_thread(reranker: Reranker, monkeypatch) -> None:
    monkeypatch.setattr(tracing.Traces, "request", lambda *_: pytest.fail("traced"))
    with Live(reranker) as server, server.client() as client:
        assert server.state.traces is None
        before = threading.active_count()
        assert client.post("/rerank", json=body_of(reranker, 1)).status_code == 200
        assert threading.active_count() <= before + 4  # the readers of bodies
