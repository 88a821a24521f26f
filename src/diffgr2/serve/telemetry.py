"""What is told of requests: Prometheus metrics, the access log's fields, lines of the log.

Contract: metrics stand in a registry of their own and begin with `diffgr2_`; counters move exactly
once per event, gauges return to 0 when the server is idle. `Facts` gathers what one request was and
holds names, numbers and times, never keys, bodies or ids. `JsonLines` makes every record one line
of JSON, whatever its text holds. Not here: when things happen (`engine`, `door`, `ranking`), and
who carries the lines away (`logs`, `tracing`).
"""

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
PER_FORWARD = (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32)

OUTCOMES = (
    "ok",
    "bad_request",
    "unauthorized",
    "rejected",
    "timeout",
    "gone",
    "failed",
    "draining",
)


LONGEST = 80  # characters of a path that is no route

ACCESS = "diffgr2.serve.access"
"""The logger of the access lines, which are JSON already."""


@dataclass(frozen=True)
class Spent:
    """What one list took; moments are of the monotonic clock."""

    decoder: str
    tokens: int
    forwards: int
    queued: float
    started: float | None  # its first forward, if there was one
    ended: float
    compute_s: float


@dataclass
class Facts:
    """What a request was, gathered on its way."""

    key: str = ""
    lists: list[Spent] = field(default_factory=list)
    outcome: str = ""  # of a ranking request, once it has one

    def shown(self) -> dict[str, Any]:
        """The fields of the access log that only some requests have."""
        fields: dict[str, Any] = {"key": self.key} if self.key else {}
        if self.lists:
            waits = [(one.started or one.ended) - one.queued for one in self.lists]
            fields |= {
                "lists": len(self.lists),
                "decoder": "+".join(sorted({one.decoder for one in self.lists})),
                "tokens": sum(one.tokens for one in self.lists),
                "forwards": sum(one.forwards for one in self.lists),
                "queue_ms": round(max(waits) * 1e3, 1),
                "inference_ms": round(sum(one.compute_s for one in self.lists) * 1e3, 1),
            }
        return fields


def route_of(scope: Any) -> str:
    """The route that took a request; else its path, cut short."""
    route = scope.get("route")
    return route.path if route is not None else scope["path"][:LONGEST]


def clock(seconds: float) -> str:
    """A time of day as people and collectors read it: UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1e3) % 1000:03d}Z"


def access_line(
    request_id: str, method: str, route: str, status: int, took_s: float, facts: Facts
) -> dict[str, Any]:
    """A request's line in the access log."""
    return {
        "time": clock(time.time()),
        "id": request_id,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(took_s * 1e3, 1),
        **facts.shown(),
    }


class JsonLines(logging.Formatter):
    """See the module's docstring."""

    def format(self, record: logging.LogRecord) -> str:
        if record.name == ACCESS:
            return record.getMessage()
        line = {
            "time": clock(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Metrics:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"diffgr2_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str) -> Gauge:
            return Gauge(f"diffgr2_{name}", about, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"diffgr2_{name}", about, labels, registry=registry, buckets=buckets)

        self.requests = counter("requests", "Ranking requests by outcome", "outcome")
        for outcome in OUTCOMES:
            self.requests.labels(outcome)
        self.seconds = histogram("request_seconds", "From arrival to answer", SECONDS, "decoder")
        self.queue_seconds = histogram("queue_seconds", "From admission to first step", SECONDS)
        self.in_flight = gauge("requests_in_flight", "Requests that hold a slot")
        self.running = gauge("rows_running", "Rows in decoding")
        self.waiting = gauge("rows_waiting", "Rows that wait for a place")
        self.slots_used = gauge("cache_slots", "Cache slots of the rows in decoding")
        self.ready = gauge("ready", "1 while the server takes requests")
        about = "Models that were opened, by the backend that runs them"
        self.backend = counter("models_opened", about, "backend")
        self.forwards = counter("forwards", "Forwards of the model", "decoder")
        self.step_seconds = histogram("step_seconds", "One forward", SECONDS, "decoder")
        self.tokens = counter("output_tokens", "Tokens written", "decoder")
        self.prompt_tokens = counter("prompt_tokens", "Tokens read")
        self.denoise_steps = histogram(
            "row_forwards", "Forwards of one output", (1, 2, 4, 8, 16, 32, 64, 128, 256), "decoder"
        )
        self.per_forward = histogram(
            "tokens_per_forward", "Output tokens per forward", PER_FORWARD, "decoder"
        )
        self.invalid = counter("invalid_outputs", "Raw answers that are no permutation", "reason")
        self.repaired = counter("repaired", "Rankings completed by the policy")
        self.fallback = counter("fallback", "Rankings that kept a floor order")
        self.key_requests = counter("key_requests", "Requests by key, of any kind", "key")
        self.key_lists = counter("key_lists", "Lists that were ranked for a key", "key")
        self.key_tokens = counter("key_tokens", "Tokens read and written for a key", "key", "kind")
        self.reloads = counter("reloads", "Times that bundles were exchanged")
        self.log_dropped = counter("log_dropped", "Log lines dropped: nobody read them")
        self.impressions = counter("impressions", "Rankings for the log, by outcome", "outcome")
        for outcome in ("written", "dropped"):
            self.impressions.labels(outcome)
        self.feedback = counter("feedback", "Events sent as feedback, by outcome", "outcome")
        for outcome in ("stored", "duplicate", "dropped"):
            self.feedback.labels(outcome)
        self.log_torn = counter("log_torn", "Torn lines that were cut off the logs at the start")
        self.engine_errors = counter("engine_errors", "Forwards that failed", "kind")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
