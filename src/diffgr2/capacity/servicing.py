"""How a bundle answers, asked over HTTP: a server of its own, and clients that wait their turn.

Contract: `serviced(bundle, decoders, threads, …)` starts `diffgr2 serve` on the bundle, asks it for
lists of the bundle's own shoppers and retriever, alone and with more and more clients at once, for
each decoder between two halves of watching the machine, and returns what the table keeps. `server`,
`message_of` and `asked_once` are for whoever times servers. Clients write bare sockets, since a
client library's work is as much as the server's own. Not here: what follows from it (`matching`,
`forecast`), and open loops (`benchmarks/queueing.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import digest, read_manifest
from diffgr2.candidates.retrieval import prefixes, top_k
from diffgr2.capacity.costtable import Round, Served
from diffgr2.capacity.matching import matched, woken
from diffgr2.capacity.stalls import WATCHED, Stalls, watched
from diffgr2.errors import ArtifactError
from diffgr2.model.backends import cores
from diffgr2.model.contract import read_config
from diffgr2.model.family import sizes_of
from diffgr2.rerank.world import World
from diffgr2.streams import generator

CLIENTS = (1, 2, 4, 8, 16, 32)
ASKED = 128
"""Requests of a round, or eight of each client."""

ALONE = 4
"""Times as many of the lone client, whose spread is kept."""

PAUSE = 0.02
"""Mean seconds between an answer and the next request of a client who pauses."""

RUNNING = 32
"""Lists that the server decodes at once."""

OPTIONS = ("--timeout", "300", "--force", "--no-page")
"""How fast a bundle answers is told whatever it was judged."""

HISTORY = 50
"""Purchases that a request brings."""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen

    @property
    def memory(self) -> float:
        """Bytes that it holds, 0 where the system does not say."""
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        except OSError:
            return 0.0
        found = re.search(r"VmHWM:\s+(\d+) kB", text)
        return float(found[1]) * 1024 if found else 0.0


@contextmanager
def server(bundle: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """A server that ends with the block."""
    command = [sys.executable, "-m", "diffgr2.cli", "serve", "--model", str(bundle), "--port", "0"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, *options], env={**os.environ, **(env or {})}, **pipes)
    assert process.stdout is not None
    match = re.search(r"http://\S+", process.stdout.readline())
    try:
        if match is None:
            raise ArtifactError(f"{bundle}: its server did not start")
        yield Server(match[0], process)
    finally:
        process.terminate()
        process.wait()


async def asked_once(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[int, bytes]:
    """Status and body of an answer."""
    writer.write(message)
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length is not None
    return int(head[9:12]), await reader.readexactly(int(length[1]))


def message_of(url: str, body: dict[str, Any], *, close: bool = False) -> bytes:
    """A request as clients write it."""
    data = json.dumps(body).encode()
    head = (
        f"POST /rerank HTTP/1.1\r\nhost: {url.removeprefix('http://')}\r\naccept: */*\r\n"
        f"connection: {'close' if close else 'keep-alive'}\r\nx-request-timeout-ms: 300000\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def place_of(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def bodies(world: World, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Requests of the bundle's shoppers: what they bought, and the retriever's list for it."""
    known = world.histories
    able_U = np.flatnonzero(known.lengths_U > 0)
    users = generator(seed, "capacity", "shoppers").choice(able_U, min(count, len(able_U)), False)
    queries = prefixes(known, users, known.lengths_U[users])
    k = min(world.k, known.n_items - int(queries.lengths_U.max()))
    items_LK, scores_LK = top_k(world.retriever, queries, k)
    raw, found = world.catalogue.raw_ids, []
    for row in range(len(users)):
        history = [raw[item] for item in queries.of(row)[-HISTORY:].tolist()]
        body = {"history": history, "documents": [raw[item] for item in items_LK[row].tolist()]}
        if not world.seats.index.own_scores:  # it learned on other scores than the retriever's
            body["scores"] = scores_LK[row].tolist()
        found.append(body)
    return found


@dataclass(frozen=True)
class Loop:
    """What clients saw."""

    seconds: list[float]
    told: list[dict[str, Any]]  # of each answer, how it was decoded
    per_s: float

    @property
    def forwards(self) -> list[int]:
        return [max(1, int(one["forwards"])) for one in self.told]


async def _timed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[float, bytes]:
    """Seconds of a request, and its answer."""
    begun = time.perf_counter()
    status, answer = await asked_once(reader, writer, message)
    if status != 200:
        raise ArtifactError(f"status {status}: {answer[:200]!r}")
    return time.perf_counter() - begun, answer


async def closed_loop(url: str, messages: Sequence[bytes], clients: int, requests: int) -> Loop:
    """`clients` that each ask again as soon as they are answered."""
    numbers, seconds, answers = iter(range(requests)), list[float](), list[bytes]()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(*place_of(url))
        for number in numbers:
            took, answer = await _timed(reader, writer, messages[number % len(messages)])
            seconds.append(took)
            answers.append(answer)
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(clients)))
    wall = time.perf_counter() - begun
    told = [json.loads(answer)["decode"] for answer in answers]
    return Loop(seconds, told, requests / wall)


async def paused(url: str, messages: Sequence[bytes], requests: int, seed: int = 0) -> list[float]:
    """Seconds of a lone client's requests, before each of which the server slept a while."""
    reader, writer = await asyncio.open_connection(*place_of(url))
    pauses, seconds = generator(seed, "capacity", "pauses").exponential(PAUSE, requests), []
    for number, pause in enumerate(pauses.tolist()):
        await asyncio.sleep(pause)
        seconds.append((await _timed(reader, writer, messages[number % len(messages)]))[0])
    writer.close()
    return seconds


def lanes_of(weights: int, threads: int) -> int:
    """Lanes of a server on so many threads, as the ONNX backend has them."""
    from diffgr2.model.ort import SMALL, TINY

    return threads if TINY < weights <= SMALL else 1


def serviced(
    bundle: Path,
    decoders: Sequence[str],
    threads: int,
    told: Callable[[str], object],
    clients: Sequence[int] | None = None,
    asked: int | None = None,
    watch: float | None = None,
) -> list[Served]:
    """See the module's docstring."""
    threads, clients, asked = min(threads, cores()), clients or CLIENTS, asked or ASKED
    world, half = World(bundle), (watch or WATCHED) / 2
    with server(bundle, *options_of(threads)) as running:
        lists, found = bodies(world, 64), []
        for decoder in decoders:
            messages = messages_of(running.url, lists, decoder)
            asyncio.run(closed_loop(running.url, messages, 4, 32))  # warm
            told(f"{decoder}: {half:.0f} s of watching the machine before, as many behind")
            before = watched(half)
            loops = looped(running.url, messages, clients, asked)
            for n, loop in loops.items():
                told(f"{decoder}: {n} clients: {loop.per_s:.0f} lists a second")
            after = asyncio.run(paused(running.url, messages, 2 * asked))
            told(f"{decoder}: after a pause {np.mean(after) * 1e3:.1f} ms")
            stalls = before.then(watched(half))
            told(f"{decoder}: {stalls.said()}")
            found.append(served_of(world, decoder, loops, after, stalls, threads, running.memory))
    return found


def options_of(threads: int) -> tuple[str, ...]:
    """Of a server that is measured."""
    return (*OPTIONS, "--threads", str(threads), "--running", str(RUNNING))


def messages_of(url: str, lists: Sequence[dict[str, Any]], decoder: str) -> list[bytes]:
    return [message_of(url, {**one, "decode": {"decoder": decoder}}) for one in lists]


def looped(
    url: str, messages: Sequence[bytes], clients: Sequence[int], asked: int
) -> dict[int, Loop]:
    """A closed loop of each number of clients."""
    counts = {n: max(asked * (ALONE if n == 1 else 1), 8 * n) for n in clients}
    return {n: asyncio.run(closed_loop(url, messages, n, count)) for n, count in counts.items()}


def served_of(
    world: World,
    decoder: str,
    loops: Mapping[int, Loop],
    after: Sequence[float],
    stalls: Stalls,
    threads: int,
    memory: float,
) -> Served:
    """What the table keeps of loops, the least of which is the lone client's, and of pauses."""
    weights = sizes_of(read_config(world.directory)).weights
    rounds, alone = [_round(n, loop) for n, loop in loops.items()], loops[min(loops)]
    means, lanes = [(one.clients, one.mean) for one in rounds], lanes_of(weights, threads)
    replica, misfit = matched(means, alone.seconds, alone.forwards, lanes, RUNNING, stalls)
    replica = woken(replica, alone.seconds, after, PAUSE)
    facts = (world.name, mark_of(world.directory), decoder, weights, world.k)
    held = (threads, memory, index_bytes(world.directory), sizes_in(world))
    return Served(*facts, *held, tuple(rounds), replica, misfit)


def _round(clients: int, loop: Loop) -> Round:
    p50, p99 = np.percentile(loop.seconds, (50, 99))
    mean = float(np.mean(loop.seconds))
    values = (round(value, 6) for value in (mean, float(p50), float(p99), loop.per_s))
    return Round(clients, len(loop.seconds), *values)


def mark_of(bundle: Path) -> str:
    """What tells this bundle from others."""
    return digest(read_manifest(bundle)["files"])[:16]


def sizes_in(world: World) -> dict[str, float]:
    known = world.histories
    facts = (len(known.items_N), known.n_users, known.n_items)
    return dict(zip(("interactions", "users", "items"), map(float, facts), strict=True))


def index_bytes(bundle: Path) -> float:
    """What a replica holds besides the model: purchases, catalogue, counts and the retriever."""
    files = read_manifest(bundle)["files"]
    parts = ("data/", "evidence/", "retriever/", "items/")
    return float(sum(entry["size"] for name, entry in files.items() if name.startswith(parts)))
