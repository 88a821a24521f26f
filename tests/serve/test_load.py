"""Many clients at once: every answer is the batch-1 answer, every request has one end."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import Live, body_of, idle, ids

from diffgr2.reranker import Reranker
from diffgr2.serve.limits import Limits

DECODERS = ("ar", "block", "verify")


def catalogue_of(reranker: Reranker, n: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Bodies and what must come back, from decoding one at a time."""
    pairs = []
    for seed in range(n):
        body = body_of(reranker, seed, decode={"decoder": DECODERS[seed % 3]})
        if seed % 5 == 4:
            body["documents"] = ids(reranker, *range(seed, seed + 7))
        result = reranker.rank(body["history"], body["documents"], decode=body["decode"])
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


async def gather(server: Live, clients: int, requests: int, pairs: list) -> Counter:
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


def equality(reranker: Reranker, clients: int, requests: int) -> None:
    pairs = catalogue_of(reranker, 24)
    assert len({str(wanted) for _, wanted in pairs}) > 12, "the oracle would accept anything"
    limits = Limits(waiting=clients, timeout_s=280, max_timeout_s=300)
    with Live(reranker, limits=limits) as server:
        seen = asyncio.run(gather(server, clients, requests, pairs))
        assert seen == {"right": requests}
        assert idle(server.state)
        shifted = [(body, pairs[i - 1][1]) for i, (body, _) in enumerate(pairs)]
        assert asyncio.run(gather(server, 4, 24, shifted))["wrong"] > 12  # it can fail


def test_concurrent_answers_equal_single_ones(reranker: Reranker) -> None:
    equality(reranker, clients=12, requests=72)


@pytest.mark.slow
def test_64_clients_and_2000_answers_equal_single_ones(reranker: Reranker) -> None:
    equality(reranker, clients=64, requests=2000)


# ----------------------------------------------------------------------------------- overload


async def flood(server: Live, seconds: float, rate: float, pairs: list) -> tuple[Counter, list]:
    """An open loop: requests leave at their time, whatever came back."""
    seen: Counter = Counter()
    rejections: list[float] = []
    depth: list[int] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:

        async def one(number: int) -> None:
            body, wanted = pairs[number % len(pairs)]
            begun = time.monotonic()
            try:
                answer = await client.post(
                    "/rerank", json=body, headers={"x-request-timeout-ms": "60000"}
                )
            except httpx.HTTPError as error:
                seen[f"lost {type(error).__name__}"] += 1
                return
            depth.append(server.state.slots.taken)
            if answer.status_code == 200:
                seen["answered" if told(answer.json()) == wanted else "wrong"] += 1
            elif answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                rejections.append(time.monotonic() - begun)
                seen["rejected"] += 1
            else:
                seen["timed out" if answer.status_code == 504 else answer.status_code] += 1

        start, tasks, number = time.monotonic(), [], 0
        while time.monotonic() - start < seconds:
            while number < max((time.monotonic() - start) * rate, 24):  # it begins with a burst
                tasks.append(asyncio.create_task(one(number)))
                number += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
    seen["sent"] = number
    assert max(depth) <= server.limits.in_flight
    return seen, sorted(rejections)


def overload(reranker: Reranker, seconds: float) -> None:
    pairs = catalogue_of(reranker, 12)
    limits = Limits(waiting=2, running=2)
    with Live(reranker, limits=limits) as server:
        begun = time.monotonic()
        asyncio.run(gather(server, 4, 24, pairs))
        capacity = 24 / (time.monotonic() - begun)
        seen, rejections = asyncio.run(flood(server, seconds, 4 * capacity, pairs))
        print(f"\noverload: {dict(seen)} at {capacity:.0f}/s capacity")
        assert seen["wrong"] == 0
        assert seen["sent"] == seen["answered"] + seen["rejected"] + seen["timed out"]
        assert seen["rejected"] > 0
        assert seen["answered"] > 0
        worst = rejections[int(len(rejections) * 0.99)]
        print(f"rejections: p50 {rejections[len(rejections) // 2]:.4f} s, p99 {worst:.4f} s")
        assert idle(server.state)
        assert asyncio.run(gather(server, 2, 12, pairs)) == {"right": 12}


def test_overload_loses_and_falsifies_nothing(reranker: Reranker) -> None:
    overload(reranker, seconds=2.0)


@pytest.mark.slow
def test_overload_for_a_minute(reranker: Reranker) -> None:
    overload(reranker, seconds=60.0)


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


def disconnects(reranker: Reranker, count: int) -> None:
    body = {
        "history": [],
        "documents": ids(reranker, *range(100, 190)),
        "decode": {"decoder": "ar"},
    }
    with Live(reranker) as server:
        waits = sorted(
            asyncio.run(drop(server, count, body, 1))
            + asyncio.run(drop(server, count, {**body, "stream": True}, 2))
        )
        print(f"\nslots free after {waits[len(waits) // 2]:.3f} s, at most {waits[-1]:.3f} s")
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
    disconnects(reranker, 100)


# --------------------------------------------------------------------------------------- soak


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.slow
def test_20000_requests_leave_memory_where_it_was(reranker: Reranker) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    pairs = catalogue_of(reranker, 24)
    pairs = [(body | {"reasoning": "off"}, wanted) for body, wanted in pairs]
    with Live(reranker, limits=Limits(timeout_s=280)) as server:
        asyncio.run(gather(server, 8, 4000, pairs))
        marks = [resident()]
        for _ in range(8):
            asyncio.run(gather(server, 8, 2000, pairs))
            marks.append(resident())
        slope = (marks[-1] - marks[0]) / 16
        print(f"\nresident MB: {[round(m) for m in marks]}, {slope:.3f} MB per 1,000 requests")
        assert slope < 1.0
        assert idle(server.state)
