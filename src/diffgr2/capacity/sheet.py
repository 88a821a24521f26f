"""The capacity plan in lines: stages, the first to break, and what traffic takes.

Contract: `Asked` is what the user wants to know, `stage_lines` and `traffic_lines` say it, every
figure with how it is known; each returns (lines, whether all holds). Not here: options
(`cli.planning`), the arithmetic (`forecast`, `queueing`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from diffgr2.capacity.costtable import Served, Table
from diffgr2.capacity.forecast import (
    FREE,
    SLACK,
    Figure,
    advice,
    breaking,
    costs,
    index,
    other_keys,
    sizes_of_data,
)
from diffgr2.capacity.machines import Machines, count_said
from diffgr2.capacity.queueing import Fleet, Replica, Routing, fewest, fleet
from diffgr2.capacity.stalls import NEVER
from diffgr2.config import Recipe
from diffgr2.stages.effort import Size

HELD = 2.0
"""Bytes of memory for a byte of the index on disk: texts are Python's. Assumed."""

DAY_S = 86_400.0

ROUTINGS: dict[Routing, str] = {"two": "the freer of two", "random": "random"}


@dataclass(frozen=True)
class Asked:
    """What is planned for."""

    recipe: Recipe
    size: Size
    machines: Machines
    within: float  # seconds that a stage may take
    decoder: str
    weights: int
    mark: str = ""  # of a bundle
    index: float | None = None  # bytes of a bundle's own, at its own size
    rate: float | None = None
    p99: float = 0.1
    daily: float | None = None


def clock(seconds: float) -> str:
    """`< 1 s`, `40 s`, `12 min`, `3.5 h`, `9 days`."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 4 * DAY_S else f"{seconds / DAY_S:,.0f} days"


def room(value: float) -> str:
    """`640 MB`, `1.2 GB`."""
    return f"{value / 1e9:,.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def stage_lines(table: Table, asked: Asked) -> tuple[list[str], bool]:
    """CPU seconds and memory of what comes before training, and what breaks first."""
    sizes = sizes_of_data(asked.recipe, asked.size)
    found = costs(table, asked.recipe, sizes)
    size = _index(table, asked)
    kept = [] if size is None else [f"index of a replica: {room(size.value)} on disk ({size.mark})"]
    if not found:
        return [*kept, "no stage was measured: diffgr2 plan --measure"], True
    data = ", ".join(f"{count_said(sizes[n])} {n}" for n in ("interactions", "users", "items"))
    lines = [
        f"costs: {table.said()}",
        f"data: {data}, {count_said(sizes['lists'])} lists; CPU time of one thread",
        f"{'stage':12}{'CPU time':>12}  {'':22}{'memory':>11}",
    ]
    for cost in found:
        time, peak = clock(cost.seconds.value), room(cost.peak.value)
        marks = cost.seconds.mark, cost.peak.mark
        lines.append(f"{cost.stage:12}{time:>12}  {marks[0]:22}{peak:>11}  {marks[1]}")
    lines += kept
    laws = [law for cost in found for law in cost.laws]
    lines += ["fits:", *(f"  {law}" for law in dict.fromkeys(laws))]
    if others := other_keys(table, asked.recipe):
        lines.append(f"measured with other values of {', '.join(others)}")
    told, holds = _first(table, asked, sizes)
    return lines + told, holds


def _first(table: Table, asked: Asked, sizes: dict[str, float]) -> tuple[list[str], bool]:
    memory, seconds = asked.machines.memory, asked.within
    found = breaking(table, asked.recipe, sizes, memory, seconds)
    limits = f"{FREE:.0%} of {room(memory)}, {clock(seconds)} a stage"
    if not found:
        return [f"nothing breaks up to 100,000 times the data ({limits})"], True
    first = found[0]
    at = count_said(sizes["interactions"] * first.times)
    size = asked.size
    if first.times > 1:  # what to switch is asked where it breaks
        grown = [round(n * first.times * 1.5) for n in (size.users, size.items, size.interactions)]
        lists = None if size.lists is None else round(size.lists * first.times * 1.5)
        size = Size(*grown, fields=size.fields, lists=lists)
    switch = advice(table, asked.recipe, size, first, memory, seconds)
    lines = [f"first to break: {first.stage}, by {first.what}, at {at} interactions ({limits})"]
    lines.append(f"  switch: {switch}")
    now = [one for one in found if one.times <= 1]
    for other in now[1:]:
        other_at = count_said(sizes["interactions"] * other.times)
        told = advice(table, asked.recipe, size, other, memory, seconds)
        lines += [f"then: {other.stage}, by {other.what}, at {other_at}", f"  switch: {told}"]
    return lines, not now


# -------------------------------------------------------------------------------------- traffic


@dataclass(frozen=True)
class Known:
    """A replica as it was measured, or scaled from the nearest that was."""

    served: Served
    replica: Replica
    figure: Callable[[float], Figure]
    told: str


def known_of(table: Table, asked: Asked) -> Known | None:
    """The service times to count with."""
    same = [one for one in table.served if one.decoder == asked.decoder]
    exact = [one for one in same if asked.mark and one.mark == asked.mark]
    if exact:
        one = exact[0]
        told = f"{one.bundle}, lists of {one.k}, {one.cores} cores"
        here = table.here or one.replica.stalls.watched > 0  # a record is this machine's
        return Known(one, one.replica, lambda v: Figure(v, here=here), told)
    if not same:
        return None
    one = min(same, key=lambda s: abs(s.weights - asked.weights))
    k = asked.recipe.candidates.k / one.k
    # Words cost by the candidate; arithmetic, which only counts where it is more, by the weight.
    times = k * max(1.0, asked.weights / one.weights)
    replica = replace(
        one.replica,
        first=one.replica.first * times,
        each=one.replica.each * times,
        join=one.replica.join * times,
        outside=one.replica.outside * k,
    )
    told = f"scaled ×{times:.2f} from {one.bundle} of {one.weights / 1e6:.2f} M weights"
    return Known(one, replica, lambda v: Figure(v, max(times, 1 / times), False), told)


def traffic_lines(table: Table, asked: Asked) -> tuple[list[str], bool]:
    """Replicas for a rate, core-hours for a day's lists."""
    if asked.rate is None and asked.daily is None:
        return [], True
    known = known_of(table, asked)
    if known is None:
        told = f"no service time of {asked.decoder} was measured: diffgr2 plan BUNDLE --measure"
        return [told], True
    own, mark = known.replica, known.figure(1.0).mark
    alone = own.alone
    lines = [
        f"{asked.decoder}: {alone * 1e3:.1f} ms a list alone, at most "
        f"{own.capacity:.0f} lists a second of a replica of {known.served.cores} cores "
        f"({mark}; {known.told})"
    ]
    if asked.daily is not None:
        hours = asked.daily / own.capacity * known.served.cores / 3600
        lines.append(
            f"{count_said(asked.daily)} lists a day: {hours:,.0f} core-hours, "
            f"{hours / 24:,.1f} cores all day ({mark}, batches full)"
        )
    if asked.rate is None:
        return lines, True
    memory, told = _memory(table, asked, known)
    lines.append(told)
    if own.stalls.watched:
        lines.append(f"counted in, as measured: {own.stalls.said()}")
    else:
        told = "times at which this machine stands still (diffgr2 plan BUNDLE --measure)"
        lines.append(f"not counted: {told}")
    more, holds = _replicas(asked, known, memory, mark)
    return lines + more, holds


def _index(table: Table, asked: Asked) -> Figure | None:
    """Bytes that a replica's index takes on disk: the bundle's own, or by the laws."""
    if asked.index is not None:
        return Figure(asked.index)
    return index(table, asked.recipe, sizes_of_data(asked.recipe, asked.size))


def _memory(table: Table, asked: Asked, known: Known) -> tuple[float, str]:
    """Bytes of a replica at the data's size."""
    size, there = _index(table, asked), known.served
    if size is None:
        told = f"with an index of {room(there.index)}, others were not measured"
        return there.memory, f"memory of a replica: {room(there.memory)} ({told})"
    more = max(size.value - there.index, 0.0)
    same = asked.mark == there.mark and more < (SLACK - 1) * there.index
    figure = replace(size, value=there.memory + HELD * more, here=size.here and table.here and same)
    return figure.value, f"memory of a replica: {room(figure.value)} ({figure.mark})"


def _replicas(asked: Asked, known: Known, memory: float, mark: str) -> tuple[list[str], bool]:
    assert asked.rate is not None
    own, machines, cores = known.replica, asked.machines, known.served.cores
    each = min(machines.cores // cores, int(FREE * machines.memory // max(memory, 1.0)))
    lines, holds = [], True
    for routing, name in ROUTINGS.items():
        found = fewest(own, asked.rate, asked.p99, routing=routing)
        head = f"{asked.rate:,.0f} lists a second, p99 ≤ {asked.p99 * 1e3:.0f} ms, {name}: "
        if found is None:
            lines.append(head + "no number of replicas keeps it")
            holds = holds and routing != "two"
            lines += _calm(asked, own, routing)
            continue
        lines.append(head + f"{_fleet(found)} (simulated, service times {mark})")
        if routing == "two":
            told, holds = _placed(found, each, machines, cores, memory)
            lines.append(told)
            if not holds and each * machines.count * own.capacity > asked.rate:
                lines.append("  there: " + _fleet(_tried(own, each * machines.count, asked.rate)))
    return lines, holds


def _calm(asked: Asked, own: Replica, routing: Routing) -> list[str]:
    """What would keep it where the machine is no reason."""
    assert asked.rate is not None
    calm = replace(own, stalls=NEVER)
    found = fewest(calm, asked.rate, asked.p99, routing=routing) if own.stalls.spells else None
    return [f"  on a machine that never stands still: {_fleet(found)}"] if found else []


def _tried(own: Replica, count: int, rate: float, routing: Routing = "two") -> Fleet:
    return fleet(own, count, rate, routing=routing)


def _fleet(found: Fleet) -> str:
    many = "replica" if found.replicas == 1 else "replicas"
    return (
        f"{found.replicas:,} {many} at a load of {found.load:.2f}, "
        f"p50 {found.p50 * 1e3:.0f} ms, p99 {found.p99 * 1e3:.0f} ms"
    )


def _placed(
    found: Fleet, each: int, machines: Machines, cores: int, memory: float
) -> tuple[str, bool]:
    if each < 1:
        short = "cores" if machines.cores < cores else "memory"
        need = f"{cores} cores and {room(memory)}"
        return f"  a replica does not fit a machine, for its {short}: it takes {need}", False
    needed = -(-found.replicas // each)
    fits = needed <= machines.count
    many = "machine" if needed == 1 else "machines"
    told = f"  {each} on a machine of {machines.cores} cores: {needed:,} {many}"
    return f"{told} ({machines.count} there)", fits
