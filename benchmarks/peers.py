"""Everybody who could rank these lists, timed beside each other in one run.

Usage: `python benchmarks/peers.py runs/demo [--out results/peers.json]`, with the extra `bench`.
Ranks test lists of a run by our decoders, by other engines that write the AR teacher's text from
the same weights, and by rankers that write nothing. Milliseconds per list hold all from the
request on: prompt, prefill, decoding, reading. All take turns, for several rounds; the median
counts. Beside each stands which share of its time the machine could not have done without. A rival
that is not installed is left out by name; one that writes other tokens shows it in `same_tokens`.
A rival is one entry of `RIVALS`. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import engines
import machine
import numpy as np
import ours
import rankers
from contest import BACKENDS, Contest, Open, Texts, Way

from diffgr2.artifacts import write_json
from diffgr2.cli import runs
from diffgr2.pipeline import source_commit
from diffgr2.prompts.request import Request
from diffgr2.stages.batches import chunks
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.plan import CORPUS
from diffgr2.stages.score import test_rows

RIVALS: dict[str, Open] = {**engines.ENTRIES, **rankers.ENTRIES}
BATCHES = (1, 8, 32)
THREADS = (1, 2)


def opened(
    entries: Mapping[str, Open], contest: Contest, batch: int, threads: int
) -> tuple[dict[str, Way], dict[str, str]]:
    """Those that can take part, and why the others cannot."""
    ways: dict[str, Way] = {}
    absent: dict[str, str] = {}
    for name, entry in entries.items():
        try:
            ways[name] = entry(contest, batch, threads)
        except ImportError as error:
            absent[name] = f"{error.name or error} is not installed"
    return ways, absent


def ranked(way: Way, groups: Sequence[Sequence[Request]]) -> Texts:
    """All groups, one after the other."""
    return [text for group in groups for text in way.rank(group)]


def take_turns(
    ways: Mapping[str, Way],
    contest: Contest,
    limit: machine.Limit,
    batch: int,
    *,
    lists: int,
    rounds: int,
) -> Iterator[dict[str, Any]]:
    """One row for each, of the median round; before the first round all have been warm."""
    count = max(batch, lists // batch * batch)
    groups = list(chunks(contest.requests[:count], batch))
    texts = {name: ranked(way, groups) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            took = machine.elapsed(lambda way=way: ranked(way, groups), limit.threads)[0]
            seconds[name].append(took)
    for name, way in ways.items():
        works = [way.work(group) for group in groups]
        whole = sum((work for work in works if work is not None), machine.Work())
        median = float(np.median(seconds[name]))
        tokens = sum(map(len, texts[name]))
        yield {
            "name": name,
            "batch": batch,
            "threads": limit.threads,
            "ms_per_list": round(median / count * 1e3, 4),
            "range_ms": [round(end(seconds[name]) / count * 1e3, 4) for end in (min, max)],
            "tokens_per_s": round(tokens / median, 1) if tokens else None,
            "share_of_limit": round(limit.share(whole, median), 4) if whole.flop else None,
            "same_tokens": contest.same(way, texts[name]),
            "tokens": tokens / count,
            "forwards": round(whole.forwards / len(groups), 2) if tokens else None,
        }


def measure(
    entries: Mapping[str, Open],
    contest: Contest,
    *,
    batches: Sequence[int] = BATCHES,
    threads: Sequence[int] = THREADS,
    lists: int = 8,
    rounds: int = 5,
) -> dict[str, Any]:
    """What stands in `results/peers.json`, but for how it was made."""
    rows, limits, missing, limit = [], [], {}, None
    for count in sorted(threads):  # fewer first: pools of threads grow, they do not shrink
        with machine.pinned(count):
            limit = machine.limit(count, contest.shape.bytes).at_least(limit)
            limits.append({key: round(value) for key, value in asdict(limit).items()})
            for batch in batches:
                ways, absent = opened(entries, contest, batch, count)
                missing |= absent
                for row in take_turns(ways, contest, limit, batch, lists=lists, rounds=rounds):
                    rows.append(row)
                    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    for name, why in missing.items():
        print(f"left out: {name}: {why}")
    about = machine.about()
    return {"machine": about, "limit": limits, "left_out": sorted(missing), "rows": rows}


def contest_of(run: runs.Run, lists: int, scratch: Path) -> Contest:
    """A run's first test lists and its models."""
    corpus = open_corpus({name: run.root / name for name in CORPUS}, run.recipe)
    requests = [corpus.request("test", int(row)) for row in test_rows(corpus, "hit", lists)]
    teacher, direct, student = (run.root / name for name in ("rl", "direct_rl", "block_rl"))
    return Contest(corpus, requests, teacher, direct, student, scratch)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's directory, or a recipe")
    parser.add_argument("--engines", default=",".join(BACKENDS), help="that ours run on")
    parser.add_argument("--only", default="", help="names that hold one of these words")
    parser.add_argument("--batches", type=numbers, default=BATCHES)
    parser.add_argument("--threads", type=numbers, default=THREADS)
    parser.add_argument("--lists", type=int, default=8, help="per round, but a batch at least")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run = runs.open_report(given.run, None, None)
    entries: dict[str, Open] = {}
    for name in given.engines.split(","):
        entries |= ours.entries(name, BACKENDS[name])
    entries |= RIVALS
    words = given.only.split(",")
    entries = {name: one for name, one in entries.items() if any(word in name for word in words)}
    sizes: dict[str, Any] = {key: getattr(given, key) for key in ("batches", "threads")}
    with tempfile.TemporaryDirectory() as scratch:
        contest = contest_of(run, max(given.lists, *given.batches), Path(scratch))
        found = measure(entries, contest, **sizes, lists=given.lists, rounds=given.rounds)
    command = machine.command("peers", f"runs/{run.recipe.name}")
    made = {"recipe": run.recipe.name, "commit": source_commit(), "command": command}
    if given.out is not None:
        write_json(given.out, {**made, "lists": given.lists, "rounds": given.rounds, **found})


if __name__ == "__main__":
    main()
