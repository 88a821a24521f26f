"""OpenTelemetry spans of ranking requests, for who wants them (the extra `otel`).

Contract: `start` opens an exporter over OTLP/HTTP, set up by OpenTelemetry's own variables; nothing
of OpenTelemetry is imported before. A request becomes one span, `rerank`, with two children a list
(a hundred lists at most): `waiting` until its first forward, `decoding` from there to its end. They
are written when the request has ended and sent from the exporter's own thread, so that no collector
holds a request up. They carry the key's name, never keys, bodies or ids of shoppers and items. Not
here: what is measured (`ranking`, `telemetry`).
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from diffgr2 import __version__
from diffgr2.serve.telemetry import Facts

SHOWN = ("route", "status", "key", "lists")
PER_LIST = ("decoder", "tokens", "forwards")
TRACED = 100  # lists of one request; spans are made on the event loop


def wanted(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces."""
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporter == "none"
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    return not off and (exporter == "otlp" or any(environ.get(name) for name in names))


def nanoseconds(monotonic_s: float) -> int:
    """A moment of the monotonic clock as time since 1970, as spans want it."""
    return time.time_ns() - round((time.monotonic() - monotonic_s) * 1e9)


class Traces:
    """Spans through one tracer; `within` makes a span the parent, `sent` reads a caller's trace.

    `tracer` is OpenTelemetry's; the two functions and `flush` keep its modules out of this one.
    """

    def __init__(
        self,
        tracer: Any,
        within: Callable[[Any], Any],
        sent: Callable[[Mapping[str, str]], Any],
        flush: Callable[[], object] = lambda: None,
    ) -> None:
        self.tracer, self.within, self.sent, self.close = tracer, within, sent, flush

    def request(self, line: Mapping[str, Any], facts: Facts, begun: float, parent: str) -> None:
        """Write the spans of a request that has just ended; `parent` is its traceparent header."""
        context = self.sent({"traceparent": parent}) if parent else None
        shown = {f"diffgr2.{name}": line[name] for name in SHOWN if name in line}
        root = self.tracer.start_span(
            "rerank", context=context, start_time=nanoseconds(begun), attributes=shown
        )
        inside = self.within(root)
        for spent in facts.lists[:TRACED]:
            about = {f"diffgr2.{name}": getattr(spent, name) for name in PER_LIST}
            started = spent.ended if spent.started is None else spent.started
            self._span("waiting", inside, spent.queued, started, {})
            if spent.started is not None:
                self._span("decoding", inside, started, spent.ended, about)
        root.end(end_time=time.time_ns())

    def _span(
        self, name: str, inside: Any, begun: float, ended: float, about: dict[str, Any]
    ) -> None:
        start = nanoseconds(begun)
        span = self.tracer.start_span(name, context=inside, start_time=start, attributes=about)
        span.end(end_time=nanoseconds(ended))


def start(url: str | None) -> Traces:
    """Traces over OTLP/HTTP to `url`, or to where the variables say; ImportError without the extra.

    Modules are asked for by name, so that checkers need not have them.
    """
    sdk = importlib.import_module("opentelemetry.sdk.trace")
    export = importlib.import_module("opentelemetry.sdk.trace.export")
    resources = importlib.import_module("opentelemetry.sdk.resources")
    otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    api = importlib.import_module("opentelemetry.trace")
    propagation = importlib.import_module("opentelemetry.trace.propagation.tracecontext")
    resource = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in resource
    about = {} if named else {"service.name": "diffgr2"}
    provider = sdk.TracerProvider(resource=resources.Resource.create(about))
    exporter = otlp.OTLPSpanExporter(endpoint=url)  # None: its own variables and default
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return Traces(
        provider.get_tracer("diffgr2", __version__),
        api.set_span_in_context,
        propagation.TraceContextTextMapPropagator().extract,
        provider.shutdown,
    )
