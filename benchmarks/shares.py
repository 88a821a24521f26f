"""What sharing the rollouts is worth: one RL stage's, by one process and by two.

Usage: `python benchmarks/shares.py runs/demo [--stage rl] [--rounds 3] [--out FILE.json]`. Every
process has one thread. Two processes take turns, round by round, at decoding each its share and at
decoding everything each, as before there were shares; one process runs the
same rounds before them. Weights are sharded and lent as in training, and groups graded, so the
seconds are those of a stage's rollouts. Says whether rewards and lengths agree. Not a test: nothing
passes or fails.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_json, write_json
from diffgr2.cli import runs
from diffgr2.pipeline import source_commit

SAME = ("reward", "completions/mean_length", "rank/valid_rate", "decode/tokens_per_forward")


@contextmanager
def everything() -> Iterator[None]:
    """Each process does all of it."""
    from diffgr2.train import dist

    before = dist.in_shares
    dist.in_shares = lambda n, work: list(work(range(n)))
    try:
        yield
    finally:
        dist.in_shares = before


def rounds(root: Path, stage: str, count: int) -> list[dict[str, Any]]:
    """Rollouts of the first rounds: how they were made, their seconds, what they are like."""
    from diffgr2.model.contract import contract_of
    from diffgr2.model.load import open_model
    from diffgr2.stages.corpus import open_corpus
    from diffgr2.stages.plan import CORPUS
    from diffgr2.stages.rl import STARTS
    from diffgr2.stages.rollouts import Roller, rollout_settings
    from diffgr2.train import dist

    recipe = runs.open_report(str(root), None, None).recipe
    corpus = open_corpus({name: root / name for name in CORPUS}, recipe)
    source, config = root / STARTS[stage], getattr(recipe, stage)
    settings = rollout_settings(corpus, contract_of(source), config)
    roller = Roller(stage, corpus, config, settings, recipe.seed, reasoning=stage != "direct_rl")
    model, found = open_model(source), []
    with dist.together() as here:
        dist.shard(model, config)
        ways = ["shares", "everything"] if here.size > 1 else ["alone"]
        roller.collect(count + 1, model)  # what only the first one costs is not timed
        for number in range(1, count + 1):
            for way in ways:
                dist.meet()
                start = time.perf_counter()
                if way == "everything":
                    with everything():
                        rollouts, metrics = roller.collect(number, model)
                else:
                    rollouts, metrics = roller.collect(number, model)
                dist.meet()
                seconds = time.perf_counter() - start
                point = {"round": number, "way": way, "seconds": seconds, "kept": len(rollouts)}
                found.append(point | {name: metrics[name] for name in SAME})
    return found


def child(given: argparse.Namespace) -> None:
    import torch

    from diffgr2.train import dist

    torch.set_num_threads(1)
    found = rounds(given.run, given.stage, given.rounds)
    if os.environ.get("RANK", "0") == "0":
        write_json(given.child, found)
    dist.leave()


def measured(given: argparse.Namespace, size: int) -> list[dict[str, Any]]:
    """The rounds by so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(given.run), "--child", str(path)]
        command += ["--stage", given.stage, "--rounds", str(given.rounds)]
        own = [told | {"WORLD_SIZE": str(size), "RANK": str(n)} for n in range(size)]
        children = [subprocess.Popen(command, env={**os.environ, **each}) for each in own]
        codes = [process.wait() for process in children]
        if any(codes):
            raise SystemExit(f"a process ended with {codes}")
        return read_json(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="a run whose stage can be rolled out")
    parser.add_argument("--stage", default="rl", choices=("rl", "direct_rl", "block_rl", "cft_rl"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given)
        return
    points = measured(given, 1) + measured(given, 2)
    spent: dict[str, float] = {}
    for point in points:
        spent[point["way"]] = spent.get(point["way"], 0.0) + point["seconds"]
    for way, seconds in spent.items():
        print(f"{way:11} {seconds / given.rounds:7.2f} s a round")
    apart = max(
        abs(point[name] - other[name])
        for point in points
        for other in points
        if point["round"] == other["round"]
        for name in SAME
    )
    ratio, gain = spent["everything"] / spent["shares"], spent["alone"] / spent["shares"]
    print(f"shares: {ratio:.2f} x as fast as everything each, {gain:.2f} x as one process")
    print(f"rewards, lengths, valid and tokens a forward differ by {apart:.1e} at most")
    if given.out is not None:
        facts = {"stage": given.stage, "commit": source_commit(), "load": os.getloadavg()}
        facts |= {"ratio": ratio, "against_one": gain, "apart": apart, "points": points}
        write_json(given.out, facts)


if __name__ == "__main__":
    main()
