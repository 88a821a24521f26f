"""The table of costs: what was measured, where and when, and the laws that follow from it.

Contract: a `Table` is one JSON file (`FORMAT`): the machine, points of each stage (sizes, CPU
seconds, peak memory, bytes written) and what bundles served. `opened(None)` is this user's own
table where `diffgr2 plan --measure` made one, else the one that ships, which says whose figures
they are; a broken one is an ArtifactError. Not here: measuring (`measuring`, `servicing`) and what
is made of it (`forecast`).
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from diffgr2 import __version__
from diffgr2.artifacts import read_json, write_json
from diffgr2.capacity.powerlaw import Law, fit
from diffgr2.capacity.queueing import Replica
from diffgr2.capacity.stalls import NEVER, Stalls
from diffgr2.errors import ArtifactError
from diffgr2.model.backends import cores

FORMAT = 1
SHIPPED = Path(__file__).parent / "costs.json"

GROWS: dict[str, dict[str, float]] = {
    "data": {"interactions": 1.0},
    "items": {"items": 1.0, "interactions": 0.0},
    "retriever:sasrec": {"interactions": 0.5, "items": 0.5},
    "retriever:itemknn": {"interactions": 1.0, "items": 0.0},
    "epoch:sasrec": {"interactions": 1.0, "items": 1.0},
    "epoch:sampled": {"interactions": 1.0, "items": 0.0},
    "candidates:sasrec": {"lists": 1.0, "items": 1.0},
    "candidates:cells": {"lists": 1.0, "items": 0.5},
    "candidates:itemknn": {"lists": 1.0, "items": 1.0},
    "candidates:popularity": {"lists": 1.0, "items": 1.0},
    "evidence": {"shown": 0.75, "interactions": 0.25},  # pairs are counted, lists looked up
}
"""Parts of stages and the sizes they grow with, by the power that their loops suggest. `shown` is
lists times candidates of one. A retriever's part is all but its epochs, and so are the candidates':
each fold trains on its share of the users. `sampled` is SASRec with a loss over a sample, `cells`
with approximate search."""

MEMORY: dict[str, dict[str, float]] = {
    "data": {"interactions": 1.0},
    "items": {"items": 1.0},
    "retriever:sasrec": {"interactions": 0.5, "items": 0.5},
    "retriever:itemknn": {"interactions": 1.0},
    "epoch:sasrec": {"interactions": 0.5, "items": 0.5},
    "epoch:sampled": {"interactions": 0.5, "items": 0.5},
    "candidates:sasrec": {"lists": 1.0},
    "candidates:cells": {"lists": 1.0},
    "candidates:itemknn": {"lists": 1.0},
    "candidates:popularity": {"lists": 1.0},
    "evidence": {"interactions": 1.0, "shown": 0.0},  # counts are held, lists pass by in chunks
}


KEPT: dict[str, dict[str, float]] = {
    "data": {"interactions": 1.0},
    "retriever:sasrec": {"items": 1.0},
    "retriever:itemknn": {"interactions": 1.0},
    "evidence": {"interactions": 1.0},
}
"""The same of the bytes that a bundle takes from a stage."""

GRAIN = {"seconds": 0.5, "peak": 2e7, "kept": 0.0}
"""What one run differs from the next by, however small it is."""


BUSY = 1.0
"""Load of a core from which figures are no longer a machine's own."""


@dataclass(frozen=True)
class Machine:
    """Where and when figures were taken."""

    processor: str
    cores: int
    memory: float  # bytes
    python: str
    version: str
    when: str
    load: float

    @staticmethod
    def here() -> Machine:
        return Machine(
            processor(),
            cores(),
            memory(),
            platform.python_version(),
            __version__,
            time.strftime("%Y-%m-%d", time.gmtime()),
            round(os.getloadavg()[0], 1),
        )

    def same(self, other: Machine) -> bool:
        return (self.processor, self.cores) == (other.processor, other.cores)

    def said(self) -> str:
        room = f"{self.memory / 1e9:.0f} GB"
        said = f"on {self.when} on {self.processor} ({self.cores} cores, {room})"
        busy = self.load > BUSY * self.cores  # others took caches, memory and turns
        return said + " beside other work, so times are too long" * busy


@dataclass(frozen=True)
class Point:
    """One run of a part at one size."""

    sizes: dict[str, float]
    seconds: float  # of processors
    peak: float  # bytes
    kept: float = 0.0  # bytes of what a bundle takes of it


@dataclass(frozen=True)
class Round:
    """So many clients at a server, each asking again once it is answered."""

    clients: int
    requests: int
    mean: float  # seconds
    p50: float
    p99: float
    per_s: float


@dataclass(frozen=True)
class Served:
    """How a bundle answered, by one decoder."""

    bundle: str  # its name
    mark: str  # of its manifest: the same bundle again is known by it
    decoder: str
    weights: int
    k: int  # candidates of its lists
    cores: int  # of the server
    memory: float  # bytes that the server held
    index: float  # bytes of the bundle's data, evidence and retriever
    sizes: dict[str, float]  # of its data
    rounds: tuple[Round, ...]
    replica: Replica
    misfit: float  # of the replica's means against the rounds'


@dataclass(frozen=True)
class Table:
    """See the module's docstring."""

    machine: Machine
    recipe: dict[str, Any] = field(default_factory=dict)  # keys that the stages were run with
    generator: str = ""
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    served: tuple[Served, ...] = ()
    shipped: bool = False

    @property
    def here(self) -> bool:
        """Whether the figures are of this machine."""
        return self.machine.same(Machine.here())

    @cached_property
    def laws(self) -> dict[tuple[str, str], Law]:
        """By part and `seconds`, `peak` or `kept`."""
        found = {}
        for part, points in self.points.items():
            for what, grows in (("seconds", GROWS), ("peak", MEMORY), ("kept", KEPT)):
                values = [(p.sizes, getattr(p, what)) for p in points]
                if part in grows and values and all(value > 0 for _, value in values):
                    based = not part.startswith("epoch:") or what != "seconds"
                    found[part, what] = fit(values, grows[part], GRAIN[what], based=based)
        return found

    def said(self) -> str:
        """Whose figures they are."""
        whose = "shipped with diffgr2" if self.shipped else "yours"
        other = "" if self.here else "; this machine is another"
        own = "; its own: diffgr2 plan --measure" if self.shipped or not self.here else ""
        return f"{whose}, measured {self.machine.said()}{other}{own}"

    def with_points(self, machine: Machine, found: Table) -> Table:
        """Stages measured anew; what bundles served stays if the machine is the same."""
        served = self.served if self.machine.same(machine) and not self.shipped else ()
        return replace(found, served=served)

    def with_served(self, machine: Machine, found: list[Served]) -> Table:
        """Bundles measured anew, in place of what was known of them."""
        if self.shipped or not self.machine.same(machine):
            return Table(machine, served=tuple(found))
        new = {(one.mark, one.decoder) for one in found}
        kept = [one for one in self.served if (one.mark, one.decoder) not in new]
        return replace(self, served=(*kept, *found))


def own_place() -> Path:
    """Where this user's table lies."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "diffgr2" / "costs.json"


def opened(place: Path | None) -> Table:
    """See the module's docstring; what the user's own lacks is taken from the shipped one."""
    if place is not None:
        return read(place)
    shipped = replace(read(SHIPPED), shipped=True)
    if not own_place().is_file():
        return shipped
    own = read(own_place())
    return own if own.points else replace(shipped, served=(*own.served, *shipped.served))


def read(place: Path) -> Table:
    values = read_json(place)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtifactError(f"{place}: not a table of costs of format {FORMAT}")
    try:
        points = {
            part: tuple(Point(**one) for one in values["points"][part])
            for part in GROWS
            if part in values["points"]
        }
        machine = Machine(**values["machine"])
        served = tuple(_served(one) for one in values["served"])
        if not machine.same(Machine.here()):  # its spells are no part of what this machine does
            served = tuple(replace(s, replica=replace(s.replica, stalls=NEVER)) for s in served)
        return Table(machine, values["recipe"], values["generator"], points, served)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{place}: not a table of costs ({error})") from None


def _served(values: dict[str, Any]) -> Served:
    own = dict(values.pop("replica"))
    own |= {name: tuple(own[name]) for name in ("steps", "noise", "wake") if name in own}
    if stalls := own.pop("stalls", None):
        spells = tuple((begin, long, slower) for begin, long, slower in stalls["spells"])
        own["stalls"] = Stalls(stalls["watched"], spells)
    rounds = tuple(Round(**one) for one in values.pop("rounds"))
    return Served(**values, rounds=rounds, replica=Replica(**own))


def write(place: Path, table: Table) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    values = asdict(table) | {"format": FORMAT}
    del values["shipped"]
    write_json(place, values)


# --------------------------------------------------------------------------------- this machine


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def memory() -> float:
    """Bytes that this process may take: the machine's, or what its control group allows."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return float(min(pages, int(limit)) if limit.isdigit() else pages)
