"""Many clients at once: every answer is the batch-1 answer, every request has one end."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.lanes import Lanes
from diffgr2.serve.limits import Limits
from support.live import Live, Process, body_of, idle, ids

DECODERS = ("ar", "block", "verify")


def catalogue_of(
    reranker: Reranker, n: int, *, reasoning: bool = True
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Bodies and what must come back, from decoding one at a time."""
    pairs = []
    for seed in range(n):
        body = body_of(reranker, seed, decode={"decoder": DECODERS[seed % 3]})
        if not reasoning:
            body["reasoning"] = "off"
        if seed % 5 == 4:
            body["documents"] = ids(reranker, *range(seed, seed + 7))
        result = reranker.rank(
            body["history"], body["documents"], decode=body["decode"], reasoning=reasoning
        )
        wanted = {
            "order": list(result.order),
            "tokens": result.decode["tokens"],
            "forwards": result.decode["forwards"],
            "failures": list(result.failures),
        }
        pairs.append((body, wanted))
    return pairs


def told(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "order": [entry["index"] for entry in value["results"]],
        "tokens": value["decode"]["tokens"],
        "forwards": value["decode"]["forwards"],
        "failures": value["ranking"]["failures"],
    }


async def gather(server: Live | Process, clients: int, requests: int, pairs: list) -> Counter:
    """`requests` in all, from `clients` at once; counts answers by whether they are right."""
    seen: Counter = Counter()
    left = iter(range(requests))

    async def one() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            for number in left:
                body, wanted = pairs[number % len(pairs)]
                name = f"r{number}"
                answer = await client.post("/rerank", json=body, headers={"x-request-id": name})
                right = answer.status_code == 200 and told(answer.json()) == wanted
                seen["right" if right and answer.json()["id"] == name else "wrong"] += 1

    await asyncio.gather(*(one() for _ in range(clients)))
    return seen


def equality(reranker: Reranker, clients: int, requests: int, lanes: int = 1) -> None:
    pairs = catalogue_of(reranker, 24)
    assert len({str(wanted) for _, wanted in pairs}) > 11, "the oracle would accept anything"
    limits = Limits(waiting=clients, timeout_s=280, max_timeout_s=300, lanes=lanes)
    with Live(reranker, limits=limits) as server:
        seen = asyncio.run(gather(server, clients, requests, pairs))
        assert seen == {"right": requests}
        assert idle(server.state)
        shifted = [(body, pairs[i - 1][1]) for i, (body, _) in enumerate(pairs)]
        assert asyncio.run(gather(server, 4, 24, shifted))["wrong"] > 12  # it can fail


@pytest.mark.parametrize("lanes", [1, 3])
def test_concurrent_answers_equal_single_ones(reranker: Reranker, lanes: int) -> None:
    equality(reranker, clients=12, requests=72, lanes=lanes)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", [1, 2])
def test_64_clients_and_2000_answers_equal_single_ones(reranker: Reranker, lanes: int) -> None:
    equality(reranker, clients=64, requests=2000, lanes=lanes)


def test_the_work_of_lanes_is_shared_and_told_as_one(reranker: Reranker) -> None:
    limits = Limits(waiting=64, running=6, lanes=3)
    pairs = catalogue_of(reranker, 12)
    with Live(reranker, limits=limits) as server:
        lanes = server.state.engine
        assert isinstance(lanes, Lanes)
        assert [lane.limits.running for lane in lanes.lanes] == [2, 2, 2]
        assert lanes.alive
        assert not lanes.bad
        seen = asyncio.run(gather(server, 12, 36, pairs))
        assert seen == {"right": 36}
        assert idle(server.state)
        assert all(lane._next_key > 0 for lane in lanes.lanes), "each had something to do"
        assert (lanes.running, lanes.waiting, lanes.slots_used) == (0, 0, 0)
        with server.client() as client:
            assert client.get("/health/ready").status_code == 200
            assert client.post("/admin/reload").status_code in (200, 403)
    assert not lanes.alive


# ----------------------------------------------------------------------------------- overload


async def ask(port: int, message: bytes) -> tuple[int, str, bytes]:
    """One request on a connection of its own: status, head, body.

    Bare sockets, because a client library's own work would be the larger part of what is timed.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", head)
        assert length is not None
        return int(head[9:12]), head, await reader.readexactly(int(length[1]))
    finally:
        writer.close()


def message_of(body: dict[str, Any]) -> bytes:
    """A request as bytes, patient enough never to time out by itself."""
    data = json.dumps(body).encode()
    head = (
        "POST /rerank HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-timeout-ms: 60000\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def flood(
    port: int, seconds: float, rate: float, pairs: list, depth: Callable[[], int]
) -> tuple[Counter, list[float], int]:
    """An open loop: requests leave at their time, whatever came back.

    Gives how they ended, how long the rejections took, and the most that was in flight.
    """
    seen: Counter = Counter()
    rejections: list[float] = []
    messages = [(message_of(body), wanted) for body, wanted in pairs]
    deepest = 0

    async def one(number: int) -> None:
        nonlocal deepest
        message, wanted = messages[number % len(messages)]
        begun = time.monotonic()
        try:
            status, head, body = await ask(port, message)
        except (OSError, asyncio.IncompleteReadError) as error:
            seen[f"lost {type(error).__name__}"] += 1
            return
        took = time.monotonic() - begun
        deepest = max(deepest, depth())
        if status == 200:
            seen["answered" if told(json.loads(body)) == wanted else "wrong"] += 1
        elif status == 429:
            assert re.search(r"retry-after: [1-9]", head)
            rejections.append(took)
            seen["rejected"] += 1
        else:
            seen["timed out" if status == 504 else str(status)] += 1

    start, tasks, number = time.monotonic(), set(), 0
    while time.monotonic() - start < seconds:
        while number < max((time.monotonic() - start) * rate, 24):  # it begins with a burst
            task = asyncio.create_task(one(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    seen["sent"] = number
    return seen, sorted(rejections), deepest


def overload(
    server: Live | Process, pairs: list, seconds: float, depth: Callable[[], int]
) -> tuple[float, int]:
    """Four times what the server can do: every request has one end, and none a wrong one.

    Gives the 99th percentile of the time that a rejection took, and the most in flight.
    """
    begun = time.monotonic()
    asyncio.run(gather(server, 4, 48, pairs))
    capacity = 48 / (time.monotonic() - begun)
    port = int(server.url.rpartition(":")[2])
    seen, rejections, deepest = asyncio.run(flood(port, seconds, 4 * capacity, pairs, depth))
    print(f"\noverload: {dict(seen)} in {seconds:g} s at {capacity:.0f}/s capacity")
    assert seen["wrong"] == 0
    assert seen["sent"] == seen["answered"] + seen["rejected"] + seen["timed out"]
    assert seen["rejected"] > 0
    assert seen["answered"] > 0
    worst = rejections[int(len(rejections) * 0.99)]
    print(f"rejections: p50 {rejections[len(rejections) // 2]:.4f} s, p99 {worst:.4f} s")
    assert asyncio.run(gather(server, 2, 12, pairs)) == {"right": 12}
    return worst, deepest


def test_overload_loses_and_falsifies_nothing(reranker: Reranker) -> None:
    limits = Limits(waiting=2, running=2)
    with Live(reranker, limits=limits) as server:
        slots = server.state.slots
        _, deepest = overload(server, catalogue_of(reranker, 12), 2.0, lambda: slots.taken)
        assert deepest <= limits.in_flight
        assert idle(server.state)


@pytest.mark.slow
def test_a_minute_of_overload_is_refused_at_once(run_dir: Path, reranker: Reranker) -> None:
    pairs = catalogue_of(reranker, 12)
    with Process(run_dir / "bundle", "--waiting", "2", "--running", "2") as server:
        worst, _ = overload(server, pairs, 60.0, lambda: 0)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            text = client.get("/metrics").text
        for gauge in ("requests_in_flight", "rows_running", "rows_waiting", "cache_slots"):
            assert f"diffgr2_{gauge} 0.0" in text
        assert worst <= 0.05


# -------------------------------------------------------------------------------- disconnects


async def drop(server: Live, count: int, body: dict[str, Any], seed: int) -> list[float]:
    """Clients that leave at a random moment; how long their slots were kept after that."""
    rng, waits = random.Random(seed), []
    data = httpx.Request("POST", "http://x/", json=body).content
    for number in range(count):
        head = (
            "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        ).encode()
        sent = head + data if number % 3 else (head + data)[: rng.randrange(20, len(head + data))]
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        await writer.drain()
        await asyncio.sleep(rng.random() * 0.05)
        if number % 2:
            writer.transport.abort()
        else:
            writer.close()
        begun = time.monotonic()
        if number % 10 == 9:
            while not idle(server.state, 0.002):
                assert time.monotonic() - begun < 20, "a slot is kept for a client that left"
                await asyncio.sleep(0.001)
            waits.append(time.monotonic() - begun)
        del reader
    return waits


def disconnects(reranker: Reranker, count: int, bar_s: float | None = None) -> None:
    """Half of the clients stream; `bar_s` is how long a slot may be kept for one that left."""
    body = {
        "history": ids(reranker, 0),
        "documents": ids(reranker, *range(100, 190)),
        "decode": {"decoder": "ar"},
    }
    with Live(reranker) as server:
        waits = sorted(
            asyncio.run(drop(server, count, body, 1))
            + asyncio.run(drop(server, count, {**body, "stream": True}, 2))
        )
        print(f"\nslots free after {waits[len(waits) // 2]:.3f} s, at most {waits[-1]:.3f} s")
        assert bar_s is None or waits[-1] <= bar_s
        assert idle(server.state, 10)
        with server.client() as client:
            text = client.get("/metrics").text
            for gauge in ("requests_in_flight", "rows_running", "rows_waiting", "cache_slots"):
                assert f"diffgr2_{gauge} 0.0" in text
            small = {**body, "documents": body["documents"][:4], "stream": False}
            assert client.post("/rerank", json=small).status_code == 200


def test_clients_that_leave_free_their_slots(reranker: Reranker) -> None:
    disconnects(reranker, 20)


@pytest.mark.slow
def test_200_clients_that_leave_free_their_slots(reranker: Reranker) -> None:
    disconnects(reranker, 100, bar_s=0.25)


# --------------------------------------------------------------------------------------- soak


def resident(pid: int) -> float:
    """Resident memory of a process in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.slow
def test_20000_requests_leave_memory_where_it_was(run_dir: Path, reranker: Reranker) -> None:
    """The server is a process of its own: a client leaves cycles behind, which are not its."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    pairs = catalogue_of(reranker, 24, reasoning=False)
    with Process(run_dir / "bundle") as server:
        asyncio.run(gather(server, 8, 4000, pairs))
        marks = [resident(server.process.pid)]
        for _ in range(8):
            seen = asyncio.run(gather(server, 8, 2000, pairs))
            assert seen == {"right": 2000}
            marks.append(resident(server.process.pid))
        slope = (marks[-1] - marks[0]) / 16
        print(f"\nresident MB: {[round(m) for m in marks]}, {slope:.3f} MB per 1,000 requests")
        assert slope < 1.0
