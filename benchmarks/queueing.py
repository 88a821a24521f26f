"""Whether the simulated server keeps a real one's time: an open loop at three loads, against it.

Starts `diffgr2 serve` on a bundle, and in rounds that take turns watches the machine stand still
(`diffgr2.capacity.stalls`), measures how the server answers (`servicing`) and sends Poisson
arrivals at shares of the rate that it reached at most; then compares the 50th and 99th percentile
with the simulation of the very same arrivals: a few hundred hold a burst or none, and their 99th
percentile is that of the burst. Intervals of what was measured are from blocks of requests. Seconds
count from when a request was sent: the client's own timer is a millisecond late, which is told, and
its share of the cores. Wants a machine with nothing else to do; where there is none, `--pinned`
gives each lane a core, which is where a thread that wakes finds itself on an idle machine: on a
busy one it wakes beside the other lane. Not a test: nothing passes or fails.

    python benchmarks/queueing.py runs/demo/bundle --requests 6000 --out results/queueing.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import machine
import numpy as np

from diffgr2.capacity.costtable import Served
from diffgr2.capacity.queueing import Replica, simulate
from diffgr2.capacity.servicing import (
    CLIENTS,
    Loop,
    Server,
    asked_once,
    bodies,
    closed_loop,
    looped,
    messages_of,
    options_of,
    paused,
    place_of,
    served_of,
    server,
)
from diffgr2.capacity.stalls import NEVER, WATCHED, watched
from diffgr2.pipeline import source_commit
from diffgr2.rerank.world import World

LOADS = (0.3, 0.5, 0.7)
CONNECTIONS = 64
BLOCKS = 20
DRAWS = 20  # of service times, in the simulation of a round


def arrivals(rate: float, requests: int, seed: int) -> np.ndarray:
    """When requests of a Poisson process come, in seconds."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))


async def open_loop(
    url: str, messages: list[bytes], rate: float, requests: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds from sending each request to its answer, and those by which it was sent late."""
    due_N = arrivals(rate, requests, seed)
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection(*place_of(url)))
    seconds_N, late_N = np.full(requests, np.nan), np.full(requests, np.nan)

    async def one(number: int, due: float) -> None:
        reader, writer = await free.get()
        sent = time.perf_counter()
        status, answer = await asked_once(reader, writer, messages[number % len(messages)])
        seconds_N[number], late_N[number] = time.perf_counter() - sent, sent - due
        free.put_nowait((reader, writer))
        if status != 200:
            raise SystemExit(f"status {status}: {answer[:200]!r}")

    begun, tasks = time.perf_counter() + 0.05, []
    for number, due in enumerate((begun + due_N).tolist()):
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    while not free.empty():
        free.get_nowait()[1].close()
    return seconds_N, late_N


def interval(seconds_N: np.ndarray, percent: float) -> list[float]:
    """Of a percentile, from blocks of requests that follow each other, in milliseconds."""
    blocks, source = np.array_split(seconds_N, BLOCKS), np.random.default_rng(0)
    drawn = source.integers(0, BLOCKS, (500, BLOCKS))
    found = [np.percentile(np.concatenate([blocks[b] for b in row]), percent) for row in drawn]
    return [round(float(value) * 1e3, 2) for value in np.percentile(found, (2.5, 97.5))]


def by_round(seconds: list[np.ndarray], percent: float) -> list[float]:
    """A percentile of each round, in milliseconds."""
    return [round(float(np.percentile(one_N, percent)) * 1e3, 1) for one_N in seconds]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Open:
    """What open loops of one load saw, round after round."""

    load: float
    rate: float
    seconds: list[np.ndarray] = field(default_factory=list)
    late: list[np.ndarray] = field(default_factory=list)
    stolen: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    wall_s: float = 0.0

    def add(self, url: str, messages: list[bytes], requests: int, seed: int) -> None:
        begun, wall, before = cpu_s(), time.perf_counter(), machine.ticks()
        seconds_N, late_N = asyncio.run(open_loop(url, messages, self.rate, requests, seed))
        self.cpu_s += cpu_s() - begun
        self.wall_s += time.perf_counter() - wall
        self.stolen.append(machine.stolen(before, machine.ticks()))
        self.seconds.append(seconds_N)
        self.late.append(late_N)

    def simulated(self, served: Served, pace: float, number: int) -> np.ndarray:
        """Seconds that the arrivals of a round would take, drawn several times."""
        replica = at_pace(served.replica, pace)
        due_N = arrivals(self.rate, len(self.seconds[number]), number)
        draws = range(DRAWS)
        seen = [simulate(replica, 1, self.rate, seed=draw, arrivals=due_N) for draw in draws]
        return np.concatenate([one.response_N for one in seen])

    def row(self, served: Served, paces: list[float]) -> dict[str, Any]:
        """Beside what the simulation says, of each round at the pace that its closed loops had."""
        said = [self.simulated(served, pace, number) for number, pace in enumerate(paces)]
        seconds_N, simulated_N = np.concatenate(self.seconds), np.concatenate(said)
        row: dict[str, Any] = {"decoder": served.decoder, "load": self.load}
        most = max(one.per_s for one in served.rounds)  # of all rounds, the load's is the first's
        row |= {"rate": round(self.rate, 1), "load_of_all": round(self.rate / most, 2)}
        for percent in (50, 99):
            real, simulated = (float(np.percentile(x, percent)) for x in (seconds_N, simulated_N))
            row |= {
                f"p{percent}_ms": round(real * 1e3, 2),
                f"p{percent}_ci": interval(seconds_N, percent),
                f"p{percent}_rounds_ms": by_round(self.seconds, percent),
                f"p{percent}_simulated_ms": round(simulated * 1e3, 2),
                f"p{percent}_simulated_rounds_ms": by_round(said, percent),
                f"p{percent}_off": round(simulated / real - 1, 3),
            }
        late = float(np.percentile(np.concatenate(self.late), 99)) * 1e3
        row |= {"client_cores": round(self.cpu_s / self.wall_s, 3)}
        row |= {"stolen_rounds": [round(share, 3) for share in self.stolen]}
        return row | {"sent_late_p99_ms": round(late, 2)}


def at_pace(replica: Replica, pace: float) -> Replica:
    """The replica with all its seconds so many times as long."""
    names = ("first", "each", "join", "outside")
    longer = {name: getattr(replica, name) * pace for name in names}
    return replace(replica, **longer, wake=tuple(one * pace for one in replica.wake))


def paces_of(rounds: list[dict[int, Loop]]) -> list[float]:
    """How long the closed loops of a round took, as a share of those of all rounds."""
    taken = np.array([[np.mean(loop.seconds) for loop in one.values()] for one in rounds])
    return np.exp(np.log(taken / taken.mean(0)).mean(1)).tolist()


def pinned(process: int, lanes: int) -> None:
    """The threads that worked most are the lanes: each gets a core of its own."""
    work = {}
    for task in Path(f"/proc/{process}/task").iterdir():
        words = (task / "stat").read_text().rpartition(")")[2].split()
        work[int(task.name)] = int(words[11]) + int(words[12])
    cores = sorted(os.sched_getaffinity(0))
    for lane, thread in enumerate(sorted(work, key=lambda one: -work[one])[:lanes]):
        os.sched_setaffinity(thread, {cores[lane % len(cores)]})


def joined(rounds: list[dict[int, Loop]]) -> dict[int, Loop]:
    """Rounds of closed loops as one."""
    found = {}
    for n in rounds[0]:
        loops = [one[n] for one in rounds]
        seconds = [value for loop in loops for value in loop.seconds]
        told = [value for loop in loops for value in loop.told]
        wall = sum(len(loop.seconds) / loop.per_s for loop in loops)
        found[n] = Loop(seconds, told, len(seconds) / wall)
    return found


def short(served: Served) -> dict[str, Any]:
    """What was measured, of its spreads the means alone."""
    found = asdict(served)
    for name in ("noise", "steps", "wake"):
        found["replica"][name] = round(float(np.mean(found["replica"][name])), 6)
    del found["replica"]["stalls"]
    return found | {"stalls": served.replica.stalls.said()}


def compared(
    running: Server, world: World, decoder: str, given: argparse.Namespace
) -> tuple[list[dict[str, Any]], Served]:
    """A row of each load; closed and open loops take turns, so that both meet the same machine."""
    url, closed, opened, after, stalls = running.url, [], list[Open](), list[float](), NEVER
    messages = messages_of(url, bodies(world, 64), decoder)
    asyncio.run(closed_loop(url, messages, 4, 64))  # warm
    if given.pinned:
        pinned(running.process.pid, given.threads)
    for number in range(given.rounds):
        stalls = stalls.then(watched(given.watch / given.rounds))
        closed.append(looped(url, messages, CLIENTS, max(1, given.asked // given.rounds)))
        after += asyncio.run(paused(url, messages, 2 * given.asked // given.rounds, number))
        if not opened:
            most = closed[0][max(CLIENTS)].per_s
            opened = [Open(load, load * most) for load in LOADS]
        for one in opened:
            one.add(url, messages, given.requests // given.rounds, number)
    held = (given.threads, running.memory)
    served = served_of(world, decoder, joined(closed), after, stalls, *held)
    paces = paces_of(closed)
    rows = [one.row(served, paces) | {"paces": [round(p, 2) for p in paces]} for one in opened]
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    print(stalls.said(), flush=True)
    return rows, served


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--decoders", default="block,verify,ar")
    parser.add_argument("--requests", type=int, default=6_000, help="at each load")
    parser.add_argument("--asked", type=int, default=256, help="in each closed loop")
    parser.add_argument("--rounds", type=int, default=6, help="in which both loops take turns")
    parser.add_argument("--watch", type=float, default=WATCHED, help="seconds, of all rounds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pinned", action="store_true", help="see above")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    before, world = os.getloadavg()[0], World(given.bundle)
    rows: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    with server(given.bundle, *options_of(given.threads)) as running:
        for decoder in given.decoders.split(","):
            some, served = compared(running, world, decoder, given)
            rows += some
            found.append(short(served))
    report = {
        "command": machine.command("queueing", "runs/demo/bundle"),
        "commit": source_commit(),
        "machine": machine.about() | {"load_before": round(before, 1)},
        "rows": rows,
        "served": found,
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
