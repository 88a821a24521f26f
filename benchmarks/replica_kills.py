"""Kill replicas of a running `serve --engine ray` under load and count what clients saw.

    python benchmarks/replica_kills.py http://127.0.0.1:8000 --kills 10 --clients 4 --pause 15

Sends ranking requests of the served description's own example from several clients without a pause,
and every `--pause` seconds kills (SIGKILL) a replica's process on this machine. Prints statuses,
and whether every 503 said when to come again; exit code 1 if anything else than 200, 429 or such a
503 came. Not here: starting the server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path

import machine

from diffgr2.pipeline import source_commit


def titled(title: bytes) -> list[int]:
    """Processes on this machine by how the title that Ray gives them begins."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            own = place.read_bytes()
        except OSError:
            continue
        if own.startswith(title):
            found.append(int(place.parent.name))
    return found


def actors() -> list[int]:
    """Processes of a batch's workers."""
    return titled(b"ray::RankShares")


def replicas() -> list[int]:
    """Processes of Serve's replicas."""
    return titled(b"ray::ServeReplica:diffgr2:")


def example(url: str) -> bytes:
    with urllib.request.urlopen(url + "/openapi.json", timeout=60) as answer:
        spec = json.load(answer)
    content = spec["paths"]["/v1/rerank"]["post"]["requestBody"]["content"]["application/json"]
    return json.dumps(content["examples"]["ids"]["value"]).encode()


class Load:
    """Clients that ask without a pause."""

    def __init__(self, url: str, body: bytes, clients: int) -> None:
        self.url, self.body = url, body
        self.seen: Counter[str] = Counter()
        self.slowest_s = 0.0
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def _ask(self) -> None:
        kind = {"content-type": "application/json"}
        while not self.over.is_set():
            request = urllib.request.Request(self.url + "/v1/rerank", self.body, kind)
            begun = time.monotonic()
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    said = str(answer.status)
            except urllib.error.HTTPError as error:
                later = " with retry-after" if error.headers.get("retry-after") else ""
                said = f"{error.code}{later}"
                time.sleep(0.2)
            except OSError as error:
                said = type(error).__name__
            self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
            self.seen[said] += 1

    def stop(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--pause", type=float, default=15.0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    load, choice = Load(given.url, example(given.url), given.clients), random.Random(0)
    killed: list[int] = []  # of so many replicas
    while len(killed) < given.kills:
        time.sleep(given.pause)
        there = replicas()
        if there:
            os.kill(choice.choice(there), signal.SIGKILL)
            killed.append(len(there))
            print(f"kill {len(killed)} of {len(there)} replicas: {dict(load.seen)}", flush=True)
    time.sleep(given.pause)
    load.stop()
    print(f"{len(killed)} kills: {dict(load.seen)}, slowest {load.slowest_s:.1f} s")
    if given.out:
        report = {
            "command": machine.command("replica_kills", "URL"),
            "commit": source_commit(),
            "machine": machine.about(),
            "replicas_at_kills": killed,
            "answers": dict(load.seen),
            "slowest_s": round(load.slowest_s, 1),
        }
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    fine = {"200", "429 with retry-after", "503 with retry-after"}
    return int(bool(load.seen.keys() - fine))


if __name__ == "__main__":
    sys.exit(main())
