"""Whether the simulated server keeps a real one's time: an open loop at three loads, against it.

Starts `diffgr2 serve` on a bundle, measures how it answers (`diffgr2.capacity.servicing`), then
sends Poisson arrivals at shares of the rate that it reached at most, and compares the 50th and 99th
percentile with the simulation of the same arrivals. Intervals of what was measured are from blocks
of requests. A client on the same cores takes some of them: its share is told. Wants a machine with
nothing else to do. Not a test: nothing passes or fails.

    python benchmarks/queueing.py runs/demo/bundle --requests 6000 --out results/queueing.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine
import numpy as np

from diffgr2.capacity.queueing import simulate
from diffgr2.capacity.servicing import (
    OPTIONS,
    RUNNING,
    asked_once,
    bodies,
    message_of,
    place_of,
    server,
    serviced,
)
from diffgr2.pipeline import source_commit
from diffgr2.rerank.world import World

LOADS = (0.3, 0.5, 0.7)
CONNECTIONS = 64
BLOCKS = 20


async def open_loop(
    url: str, messages: list[bytes], rate: float, requests: int, seed: int
) -> np.ndarray:
    """Seconds from when each request was due to its answer."""
    due_N = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(CONNECTIONS):
        free.put_nowait(await asyncio.open_connection(*place_of(url)))
    seconds_N = np.full(requests, np.nan)

    async def one(number: int, due: float) -> None:
        reader, writer = await free.get()
        status, answer = await asked_once(reader, writer, messages[number % len(messages)])
        seconds_N[number] = time.perf_counter() - due
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
    return seconds_N


def interval(seconds_N: np.ndarray, percent: float) -> list[float]:
    """Of a percentile, from blocks of requests that follow each other, in milliseconds."""
    blocks, source = np.array_split(seconds_N, BLOCKS), np.random.default_rng(0)
    drawn = source.integers(0, BLOCKS, (500, BLOCKS))
    found = [np.percentile(np.concatenate([blocks[b] for b in row]), percent) for row in drawn]
    return [round(float(value) * 1e3, 2) for value in np.percentile(found, (2.5, 97.5))]


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def compared(url: str, messages: list[bytes], served: Any, requests: int) -> list[dict[str, Any]]:
    """A row of each load."""
    most, rows = max(one.per_s for one in served.rounds), []
    asyncio.run(open_loop(url, messages, 0.5 * most, 200, 9))  # warm
    for number, load in enumerate(LOADS):
        rate, begun, wall = load * most, cpu_s(), time.perf_counter()
        seconds_N = asyncio.run(open_loop(url, messages, rate, requests, number))
        share = (cpu_s() - begun) / (time.perf_counter() - wall)
        seen = simulate(served.replica, 1, rate, requests=40_000, seed=number)
        row: dict[str, Any] = {"decoder": served.decoder, "load": load, "rate": round(rate, 1)}
        for percent in (50, 99):
            real, said = float(np.percentile(seconds_N, percent)), seen.at(percent)
            row |= {
                f"p{percent}_ms": round(real * 1e3, 2),
                f"p{percent}_ci": interval(seconds_N, percent),
                f"p{percent}_simulated_ms": round(said * 1e3, 2),
                f"p{percent}_off": round(said / real - 1, 3),
            }
        rows.append(row | {"client_cores": round(share, 3)})
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--decoders", default="block,verify,ar")
    parser.add_argument("--requests", type=int, default=6_000, help="at each load")
    parser.add_argument("--asked", type=int, default=256, help="in each closed loop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    before, decoders = os.getloadavg()[0], given.decoders.split(",")
    found = serviced(given.bundle, decoders, given.threads, print, asked=given.asked)
    rows: list[dict[str, Any]] = []
    options = (*OPTIONS, "--threads", str(given.threads), "--running", str(RUNNING))
    with server(given.bundle, *options) as running:
        lists = bodies(World(given.bundle), 64)
        for served in found:
            asks = [{**one, "decode": {"decoder": served.decoder}} for one in lists]
            messages = [message_of(running.url, one) for one in asks]
            rows += compared(running.url, messages, served, given.requests)
    report = {
        "command": machine.command("queueing", f"runs/{given.bundle.parent.name}/bundle"),
        "commit": source_commit(),
        "machine": machine.about() | {"load_before": round(before, 1)},
        "rows": rows,
        "served": [asdict(one) for one in found],
    }
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
