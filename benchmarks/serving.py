"""Latency and throughput of the server by decoder and number of clients.

Starts `diffgr2 serve` on a bundle as a process of its own and asks it for the retriever's lists of
the bundle's shoppers, closed loop. Prints a table and, with --out, writes JSON. Rejections are
timed on a second server with few slots under an open loop. `--beside SOURCE BUNDLE` runs another
version's server, from its source tree and on a bundle that it packed, in turn with ours, and says
how many times as many requests a second ours answers. Not a test: nothing passes or fails.

    python benchmarks/serving.py runs/demo/bundle --requests 64 --out results/serving.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import machine
import numpy as np

from diffgr2.capacity.servicing import asked_once, closed_loop, message_of, place_of, server
from diffgr2.errors import Diffgr2Error
from diffgr2.pipeline import source_commit

DECODERS = ("ar", "block", "verify")
CLIENTS = (1, 8, 32)
TIMES = 4  # the best rate: more than that no client in Python sends in time


def bodies(url: str, count: int) -> list[dict[str, Any]]:
    """Requests as a shop would send them: shoppers and the retriever's lists for them."""
    with httpx.Client(base_url=url, timeout=60) as client:
        shoppers = client.get("/page/shoppers").json()["shoppers"]
        found = []
        for shopper in shoppers[:count]:
            history = [card["id"] for card in shopper["history"]][-50:]
            query = {"h": history, "user": shopper["user"]}
            cards = client.get("/page/candidates", params=query).json()["candidates"]
            found.append(
                {
                    "history": history,
                    "user_id": shopper["user"],
                    "documents": [card["id"] for card in cards],
                    "scores": [card["score"] for card in cards],
                }
            )
    return found


def row_of(
    url: str, asked: list[dict[str, Any]], decoder: str, clients: int, requests: int
) -> dict[str, Any]:
    """What `clients` saw that each ask again as soon as they are answered."""
    messages = [message_of(url, {**body, "decode": {"decoder": decoder}}) for body in asked]
    loop = asyncio.run(closed_loop(url, messages, clients, requests))
    tokens, forwards = (sum(one[name] for one in loop.told) for name in ("tokens", "forwards"))
    return {
        "decoder": decoder,
        "clients": clients,
        "requests": requests,
        "p50_ms": round(float(np.percentile(loop.seconds, 50)) * 1e3, 1),
        "p99_ms": round(float(np.percentile(loop.seconds, 99)) * 1e3, 1),
        "requests_per_s": round(loop.per_s, 2),
        "tokens_per_request": round(tokens / requests, 1),
        "tokens_per_forward": round(tokens / forwards, 2),
    }


async def overload(url: str, asked: list[dict[str, Any]], seconds: float, rate: float) -> dict:
    """An open loop at a rate beyond capacity: what happened to every request, and how fast."""
    ends: dict[str, int] = dict.fromkeys(("answered", "rejected", "timed_out", "other", "lost"), 0)
    messages = [message_of(url, body, close=True) for body in asked]
    rejected: list[float] = []
    last = [0.0]  # when the last answer came

    async def one(number: int) -> None:
        begun = time.perf_counter()
        try:
            reader, writer = await asyncio.open_connection(*place_of(url))
            status, _ = await asked_once(reader, writer, messages[number % len(messages)])
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            ends["lost"] += 1
            return
        name = {200: "answered", 429: "rejected", 504: "timed_out"}
        ends[name.get(status, "other")] += 1
        if status == 200:
            last[0] = time.perf_counter()
        if status == 429:
            rejected.append(time.perf_counter() - begun)

    begun, tasks = time.perf_counter(), []
    while (now := time.perf_counter() - begun) < seconds:
        while len(tasks) < now * rate:
            tasks.append(asyncio.create_task(one(len(tasks))))
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    sent = len(tasks)
    assert sent == sum(ends.values())
    shown = {f"rejection_p{p}_ms": float(np.percentile(rejected, p)) * 1e3 for p in (50, 99)}
    pace = round(ends["answered"] / (last[0] - begun), 2)
    figures = {k: round(v, 1) for k, v in shown.items() if rejected}
    return {"sent": sent, **ends, "answers_per_s": pace, **figures}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times faster than ar the others answer a lone client, at the median."""
    alone = {row["decoder"]: row["p50_ms"] for row in rows if row["clients"] == 1}
    return {name: round(alone["ar"] / alone[name], 2) for name in DECODERS if name != "ar"}


def measured(urls: list[str], requests: int) -> list[list[dict[str, Any]]]:
    """Each server's rows; the servers take turns."""
    asked = [bodies(url, 40) for url in urls]
    for url, some in zip(urls, asked, strict=True):
        for decoder in DECODERS:  # warm
            row_of(url, some, decoder, 4, 8)
    found: list[list[dict[str, Any]]] = [[] for _ in urls]
    for clients in CLIENTS:
        for decoder in DECODERS:
            count = max(requests, 4 * clients)
            for url, some, rows in zip(urls, asked, found, strict=True):
                rows.append(row_of(url, some, decoder, clients, count))
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return found


def commit_of(source: Path) -> str:
    """The commit of another version's tree."""
    command = ["git", "-C", str(source), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def times(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Our requests a second over the other's."""
    return [
        {
            "decoder": one["decoder"],
            "clients": one["clients"],
            "times": round(one["requests_per_s"] / two["requests_per_s"], 2),
        }
        for one, two in zip(ours, others, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--beside", nargs=2, type=Path, metavar=("SOURCE", "BUNDLE"))
    parser.add_argument(
        "--requests",
        type=int,
        default=256,
        help="per decoder and number of clients; at least 4 each",
    )
    parser.add_argument("--threads", default="0", help="of the model; 0: each server's own choice")
    parser.add_argument("--overload", type=float, default=10.0, help="seconds; 0 = leave it out")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    options, others = ("--threads", given.threads, "--timeout", "300"), []
    with ExitStack() as stack:
        # --force: how fast a bundle answers is told whatever it was judged.
        urls = [stack.enter_context(server(given.bundle, *options, "--force")).url]
        if given.beside:
            source, bundle = given.beside
            theirs = {"PYTHONPATH": str(source.resolve() / "src")}
            urls.append(stack.enter_context(server(bundle, *options, env=theirs)).url)
        rows, *others = measured(urls, given.requests)
    report: dict[str, Any] = {
        "command": machine.command("serving", f"runs/{given.bundle.parent.name}/bundle"),
        "commit": source_commit(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "rows": rows,
        "p50_ar_over": ratios(rows),
    }
    if others:
        report["beside"] = {"commit": commit_of(given.beside[0]), "rows": others[0]}
        report["beside"]["times"] = times(rows, others[0])
        print("requests a second, ours over the other's:", *report["beside"]["times"], sep="\n")
    print("p50 of ar over that of others, 1 client:", report["p50_ar_over"])
    if given.overload:
        small = ("--running", "8", "--waiting", "8", "--threads", given.threads, "--force")
        with server(given.bundle, *small) as running:
            url = running.url
            capacity = max(row["requests_per_s"] for row in rows if row["decoder"] == "block")
            report["overload"] = asyncio.run(
                overload(url, bodies(url, 40), given.overload, TIMES * capacity)
            )
            report["overload"]["goodput"] = round(report["overload"]["answers_per_s"] / capacity, 2)
            print(report["overload"])
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Diffgr2Error as error:
        raise SystemExit(str(error)) from None
