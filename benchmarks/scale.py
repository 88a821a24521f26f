"""What the tables cost at a size: CPU seconds and peak memory of every step, on a made crowd.

Usage: `python benchmarks/scale.py DIR --interactions 1000000 --items 60000 [--out results.json]
[--memory-limit 6] [--steps data,pairs,evidence] [--equal]`. Steps, each in a process of its own, on
one thread unless `--threads` says more: `crowd` (benchmarks/crowd.py), `data` and `evidence` (the
stages), `items` (only if named: the stage), `lists` (made, not retrieved, so that no training is
needed: bought items drawn by popularity, the target among them in FOUND of the lists, one training
list a user, K candidates), `pairs` (the counts alone), `equal` (only if named or with `--equal`:
counted in one part as if memory had no end, compared bit for bit). What stands in DIR is not made
again unless its step is named.

`--memory-limit G` is RLIMIT_DATA of G GiB: all private memory that a process asks for, used or not;
polars' allocator then gives back what was freed, which otherwise stays asked for. Read-only maps of
files do not count, because the system can drop their pages; `peak_gb` is ru_maxrss, which counts
them as far as they happen to be in memory. CPU seconds are user and system of all threads. Not a
test: but `equal` fails if the counts differ, and a step that meets the limit ends with its error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

K, FOUND = 10, 0.2
LISTS_AT_ONCE = 1 << 18
USUAL = ("crowd", "data", "lists", "pairs", "evidence")


def recipe_of(place: Path) -> Any:
    """The recipe that all steps share."""
    from diffgr2.config import Recipe

    data = {
        "source": "table",
        "interactions": str(place / "interactions.parquet"),
        "items": str(place / "items.parquet"),
        "tie_order": "shuffle",
    }
    candidates = {"k": K, "k_max": K, "prefixes": 1}
    return Recipe.model_validate({"name": "scale", "data": data, "candidates": candidates})


def stage(place: Path, name: str) -> dict[str, Any]:
    """Run a stage into DIR/name."""
    from diffgr2.pipeline import StageContext
    from diffgr2.progress import Progress

    out, work = place / f"{name}.new", place / f"{name}.work"
    for path in (out, work):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
    inputs = {other: place / other for other in ("data", "items", "candidates")}
    context = StageContext(name, recipe_of(place), inputs, out, work, Progress())
    metrics = importlib.import_module(f"diffgr2.stages.{name}").run(context)
    shutil.rmtree(work)
    shutil.rmtree(place / name, ignore_errors=True)
    out.rename(place / name)
    told = ("interactions_used", "interactions", "users", "items", "tie_groups", "fields")
    return {key: metrics[key] for key in told if key in metrics}


def histories_of(place: Path) -> Any:
    """What the stage `data` wrote, without the texts."""
    from diffgr2.artifacts import load_arrays, read_json
    from diffgr2.types import Histories

    arrays = load_arrays(place / "data" / "histories.safetensors")
    n_items = read_json(place / "data" / "report.json")["items"]
    return Histories(arrays["offsets"], arrays["items"], arrays["timestamps"], n_items)


def lists(place: Path) -> dict[str, Any]:
    """Candidate lists of all splits, and vectors where no stage made any."""
    from diffgr2.artifacts import save_arrays
    from diffgr2.candidates.lists import save_lists, training_positions
    from diffgr2.types import CandidateLists

    histories, rng = histories_of(place), np.random.default_rng(0)
    out, users = place / "candidates", np.arange(histories.n_users, dtype=np.int32)
    out.mkdir(exist_ok=True)
    asked = {
        "train": training_positions(histories, users, 1),
        "validation": (users, histories.lengths_U - 2),
        "test": (users, histories.lengths_U - 1),
    }
    for split, (user_L, end_L) in asked.items():
        target_L = histories.items_N[histories.offsets_U1[user_L] + end_L]
        items_LK = np.empty((len(user_L), K), np.int32)
        for begin in range(0, len(user_L), LISTS_AT_ONCE):
            at = slice(begin, begin + LISTS_AT_ONCE)
            items_LK[at] = drawn(histories.items_N, target_L[at], histories.n_items, rng)
        scores_LK = np.broadcast_to(np.linspace(1.0, 0.1, K, dtype=np.float32), items_LK.shape)
        given = (user_L, end_L.astype(np.int32), target_L, items_LK, scores_LK)
        save_lists(out, CandidateLists(split, *given))
    if not (place / "items").exists():
        (place / "items").mkdir()
        vectors_ID = rng.normal(size=(histories.n_items, 64)).astype(np.float32)
        save_arrays(place / "items" / "vectors.safetensors", vectors_ID=vectors_ID)
    return {f"{split}_lists": len(user_L) for split, (user_L, _) in asked.items()}


def drawn(
    items_N: np.ndarray, target_L: np.ndarray, n_items: int, rng: np.random.Generator
) -> np.ndarray:
    """K different items a list, bought ones by how often, with the target in some."""
    found_LK = items_N[rng.integers(0, len(items_N), (len(target_L), K))]
    for _ in range(50):
        found_LK = np.sort(found_LK, 1)
        twice_LK = np.pad(found_LK[:, 1:] == found_LK[:, :-1], ((0, 0), (1, 0)))
        twice_LK |= found_LK == target_L[:, None]
        if not twice_LK.any():
            break
        found_LK[twice_LK] = rng.integers(0, n_items, int(twice_LK.sum()))
    found_LK = rng.permuted(found_LK, axis=1)
    hit = np.flatnonzero(rng.random(len(target_L)) < FOUND)
    found_LK[hit, rng.integers(0, K, len(hit))] = target_L[hit]
    return found_LK


def pairs(place: Path) -> dict[str, Any]:
    """The counts of the train part, in files."""
    from diffgr2.candidates.pairs import PairCounts
    from diffgr2.config import EvidenceConfig

    work = place / "pairs.work"
    work.mkdir(exist_ok=True)
    counts = PairCounts.build(histories_of(place).train_part(), EvidenceConfig().history, work=work)
    return {"pairs": len(counts.pair_P), "kinds": len(counts.kinds)}


def equal(place: Path) -> dict[str, Any]:
    """The same in one part, in memory."""
    from diffgr2.candidates import pairs as counting
    from diffgr2.config import EvidenceConfig

    train, history = histories_of(place).train_part(), EvidenceConfig().history
    parted = counting.PairCounts.build(train, history)
    counting.PART = 1 << 60
    whole = counting.PairCounts.build(train, history)
    for name, array in vars(whole).items():
        if isinstance(array, np.ndarray) and array.tobytes() != getattr(parted, name).tobytes():
            raise SystemExit(f"{name} differs")
    return {"pairs_equal": len(whole.pair_P)}


def crowd(place: Path, count: int, items: int) -> dict[str, Any]:
    """The tables."""
    from crowd import write

    write(place, count, items, 0)
    return {}


def run_step(args: argparse.Namespace) -> None:
    """In a process of its own: one step, and what it took."""
    if args.memory_limit:
        limit = int(args.memory_limit * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "crowd": lambda: crowd(args.place, args.interactions, args.items),
        "data": lambda: stage(args.place, "data"),
        "items": lambda: stage(args.place, "items"),
        "lists": lambda: lists(args.place),
        "pairs": lambda: pairs(args.place),
        "equal": lambda: equal(args.place),
        "evidence": lambda: stage(args.place, "evidence"),
    }
    told = steps[args.step]()
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9
    print(json.dumps({"cpu_s": round(cpu_s, 2), "peak_gb": round(peak, 3), **told}))


def wanted(args: argparse.Namespace) -> list[str]:
    """The steps, in order."""
    steps = args.steps.split(",") if args.steps else [*USUAL, *(["equal"] if args.equal else [])]
    made = {"crowd": "interactions.parquet"}
    return [s for s in steps if args.steps or not (args.place / made.get(s, "no file")).exists()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=60_000)
    parser.add_argument("--steps", default="", help="only these, separated by commas")
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-limit", type=float, default=0.0, help="GiB of RLIMIT_DATA")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args)
        return
    args.place.mkdir(parents=True, exist_ok=True)
    threads = dict.fromkeys(
        ("POLARS_MAX_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"),
        str(args.threads),
    )
    if args.memory_limit:
        threads["_RJEM_MALLOC_CONF"] = "retain:false,dirty_decay_ms:0,muzzy_decay_ms:0"
    size = {"interactions": args.interactions, "items": args.items}
    found: dict[str, Any] = {**size, "memory_limit_gib": args.memory_limit or None, "steps": {}}
    for step in wanted(args):
        command = [sys.executable, __file__, *sys.argv[1:], "--step", step]
        ran = subprocess.run(
            command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, check=False
        )
        if ran.returncode:
            raise SystemExit(f"{step}: failed ({ran.returncode})")
        found["steps"][step] = json.loads(ran.stdout.splitlines()[-1])
        print(step, json.dumps(found["steps"][step]), flush=True)
        if args.out:
            args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
