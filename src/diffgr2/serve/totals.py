"""The metrics of all replicas as if they were one server's.

Contract: `Totals.text(own, replicas)` adds up, sample by sample, what the replicas tell, and takes
from the door what only the door sees. A replica that has gone keeps its place in counters and
histograms, so that no sum falls; gauges are of those that are there. Not here: asking the replicas
(`relay`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

DOORS = (
    *("requests", "requests_in_flight", "ready", "key_requests", "log_dropped"),
    *("impressions", "feedback", "log_torn", "reloads"),
)
"""What is counted where clients are: at the door."""

LASTING = ("counter", "histogram", "summary")

Key = tuple[str, tuple[tuple[str, str], ...]]
Families = dict[str, Metric]


def families_of(text: bytes) -> Families:
    """A text of metrics, by the families' names."""
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def is_doors(name: str) -> bool:
    bare = name.removeprefix("diffgr2_").removesuffix("_created").removesuffix("_total")
    return bare in DOORS


def added(parts: Iterable[Families]) -> Families:
    """All parts' samples, those of one name and labels in one; of times of birth the first."""
    found: dict[str, tuple[Metric, dict[Key, float]]] = {}
    for families in parts:
        for name, family in families.items():
            _, sums = found.setdefault(name, (family, {}))
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                old = sums.get(key)
                if old is None:
                    sums[key] = sample.value
                elif name.endswith("_created"):
                    sums[key] = min(old, sample.value)
                else:
                    sums[key] = old + sample.value
    made: Families = {}
    for name, (family, sums) in found.items():
        made[name] = Metric(name, family.documentation, family.type)
        for (sample, labels), value in sums.items():
            made[name].add_sample(sample, dict(labels), value)
    return made


class Told:
    """What was added up, as a collector."""

    def __init__(self, families: Families) -> None:
        self.families = families

    def collect(self) -> Iterable[Metric]:
        return self.families.values()


class Totals:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._last: dict[str, Families] = {}  # of each replica that was ever asked
        self._gone: Families = {}

    def text(self, own: bytes, replicas: Mapping[str, bytes]) -> bytes:
        fresh = {name: families_of(text) for name, text in replicas.items()}
        for name in self._last.keys() - fresh.keys():
            lasting = {n: f for n, f in self._last.pop(name).items() if _lasts(n, f)}
            self._gone = added([self._gone, lasting])
        self._last = fresh
        door = families_of(own)
        theirs = added([{n: f for n, f in door.items() if not is_doors(n)}, self._gone])
        theirs = added([theirs, *fresh.values()])
        families = {n: door[n] if is_doors(n) and n in door else f for n, f in theirs.items()}
        families |= {n: f for n, f in door.items() if n not in families}
        registry = CollectorRegistry()
        registry.register(Told({n: families[n] for n in sorted(families)}))  # type: ignore[arg-type]
        return generate_latest(registry)


def _lasts(name: str, family: Metric) -> bool:
    return family.type in LASTING or name.endswith("_created")
