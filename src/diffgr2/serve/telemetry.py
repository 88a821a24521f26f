"""Prometheus metrics of one server, in a registry of its own.

Contract: names begin with `diffgr2_`; counters move exactly once per event, gauges return to 0 when
the server is idle. Not here: when things happen (`engine`, `app`).
"""

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
        self.key_requests = counter("key_requests", "Requests by key", "key")
        self.reloads = counter("reloads", "Times that bundles were exchanged")
        self.log_dropped = counter("log_dropped", "Log lines dropped: nobody read them")
        self.engine_errors = counter("engine_errors", "Forwards that failed", "kind")

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
