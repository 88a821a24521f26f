"""`rerank --engine ray` on this machine: how two workers share rows, what they gain, and kills.

Makes lists of the bundle's own items, two of whose rows are bad, then

- `--rounds N`: one worker and two take turns on the same rows, N times each; rows of each worker,
  rows a second from the first share's beginning to the last one's end (Ray's start is not counted),
  and rows per second of processor time, which neighbours on a busy machine do not change;
- `--kills N`: SIGKILL at random moments to workers and to the command in turn, the command run
  again each time, then every row counted: lost, there twice, set aside and by what name.

Exit code 1 if a row was lost or is there twice. Where RAY_ADDRESS is set that Ray is used.

    python benchmarks/ray_batches.py runs/micro/bundle --kills 20 --out results/ray_batches.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import machine
from replica_kills import actors

from diffgr2.pipeline import source_commit
from diffgr2.rerank.world import World

EMPTY, STRANGER = 7, 11  # rows with no candidates, and with one that is no id
SETTLE_S = 120.0


def lists_of(bundle: Path, n: int, per_list: int, path: Path) -> Path:
    """Rows of a JSON lines file; short ones where lists are."""
    world = World(bundle)
    raw = world.catalogue.raw_ids
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for row in range(n):
            names = draw.sample(raw, per_list + 2)
            body: dict[str, Any] = {"history": names[:2], "candidates": names[2:]}
            if row == EMPTY:
                body["candidates"] = []
            if row == STRANGER:
                body["candidates"] = [{"no": "id"}]
            out.write(json.dumps(body) + "\n")
    return path


def begun(bundle: Path, lists: Path, output: Path, workers: int) -> subprocess.Popen[str]:
    line = ["rerank", "-m", bundle, "--engine", "ray", "--workers", workers]
    line += ["-i", lists, "-o", output]
    return subprocess.Popen(
        [sys.executable, "-m", "diffgr2.cli", *map(str, line)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def entries(output: Path) -> list[dict[str, Any]]:
    """The ledger's, with the moments at which they were written."""
    found = []
    for path in (output / "_ledger").glob("*.json"):
        found.append({**json.loads(path.read_text()), "ended": path.stat().st_mtime})
    return sorted(found, key=lambda one: one["ended"])


def round_of(bundle: Path, lists: Path, folder: Path, workers: int) -> dict[str, Any]:
    """One batch."""
    output, load = folder / "ranked", os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / "ranked"
        command = begun(bundle, lists, output, workers)
        _, told = command.communicate()
        if command.returncode not in (0, 6):
            raise SystemExit(told[-2000:])
        done = entries(output)
    rows, spent = Counter[str](), Counter[str]()
    for one in done:
        count = one["ranked"] + len(one["set_aside"])
        rows[one["worker"]] += count
        spent[one["worker"]] += one["cpu_seconds"]
    every = sum(rows.values())
    wall = done[-1]["ended"] - min(one["ended"] - one["seconds"] for one in done)
    cpu = sum(spent.values())
    row = {
        "workers": workers,
        "rows": every,
        "shares": len(done),
        "by_worker": sorted(round(count / every, 3) for count in rows.values()),
        "seconds": round(wall, 2),
        "rows_per_s": round(every / wall, 1),
        "cpu_seconds": round(cpu, 2),
        "rows_per_cpu_s": round(every / cpu, 1),
        "cores_had": round(cpu / wall, 2),
        "load": round(load, 1),
    }
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    return row


def gains(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Two workers over one, round by round."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    names = ("rows_per_s", "rows_per_cpu_s")
    return {name: [round(two[name] / one[name], 2) for one, two in pairs] for name in names} | {
        "least_share": min(min(two["by_worker"]) for _, two in pairs)
    }


def at_work(output: Path, since: float) -> bool:
    """Whether a share was begun or ended since then."""
    files = [*(output / "_trying").glob("*.json"), *(output / "_ledger").glob("*.json")]
    return any(file.stat().st_mtime > since for file in files if file.exists())


def killed(bundle: Path, lists: Path, folder: Path, kills: int, n: int) -> dict[str, Any]:
    """Kills at random moments, then every row's fate."""
    output, draw = folder / "killed", random.Random(1)
    victims, standing, starts = Counter[str](), [], 0
    command = begun(bundle, lists, output, 2)
    while sum(victims.values()) < kills:
        since, limit = time.time(), time.monotonic() + SETTLE_S
        while command.poll() is None and time.monotonic() < limit:
            if at_work(output, since):
                break
            time.sleep(0.02)
        time.sleep(3 * draw.random())  # somewhere in a share
        if command.poll() is not None:
            print("the batch was over before all kills", flush=True)
            break
        there = actors()
        if sum(victims.values()) % 2 and there:
            os.kill(draw.choice(there), signal.SIGKILL)
            victims["workers"] += 1
        else:
            command.kill()
            command.communicate()
            victims["commands"] += 1
            command, starts = begun(bundle, lists, output, 2), starts + 1
        standing.append(len(entries(output)))
        print(f"{dict(victims)}: {standing[-1]} shares stand", flush=True)
    said, told = command.communicate()
    if command.returncode not in (0, 6):
        raise SystemExit(told[-2000:])
    rows = Counter(
        json.loads(line)["row"]
        for path in output.glob("part-*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    )
    aside = [json.loads(one) for one in (output / "_set_aside.jsonl").read_text().splitlines()]
    named = {one["row"] for one in aside}
    return {
        "kills": dict(victims),
        "commands": starts + 1,
        "rows": n,
        "shares_standing_at_kills": standing,
        "lost": n - len(rows.keys() | named),
        "twice": sum(count > 1 for count in rows.values()) + len(rows.keys() & named),
        "set_aside": [{"row": one["row"], "reason": one["reason"]} for one in aside],
        "said": said.strip().splitlines()[-1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=600, help="of a round")
    parser.add_argument("--kill-rows", type=int, default=8_000)
    parser.add_argument("--per-list", type=int, default=4, help="candidates of a row")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    report: dict[str, Any] = {
        "command": machine.command("ray_batches", f"runs/{given.bundle.parent.name}/bundle"),
        "commit": source_commit(),
        "machine": machine.about() | {"load_before": round(os.getloadavg()[0], 1)},
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if given.rounds:
            lists = lists_of(given.bundle, given.rows, given.per_list, folder / "lists.jsonl")
            rows = [
                round_of(given.bundle, lists, folder, workers)
                for _ in range(given.rounds)
                for workers in (1, 2)
            ]
            report |= {"rounds": rows, "two_over_one": gains(rows)}
            print(report["two_over_one"])
        if given.kills:
            lists = lists_of(given.bundle, given.kill_rows, given.per_list, folder / "many.jsonl")
            report["killed"] = killed(given.bundle, lists, folder, given.kills, given.kill_rows)
            print({k: v for k, v in report["killed"].items() if k != "shares_standing_at_kills"})
    report["machine"]["load_after"] = round(os.getloadavg()[0], 1)
    if given.out:
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    killed_to = report.get("killed", {})
    return int(bool(killed_to.get("lost") or killed_to.get("twice")))


if __name__ == "__main__":
    sys.exit(main())
