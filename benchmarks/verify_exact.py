"""Is `verify`'s output, token for token, the model's own greedy text? Over all test lists of a run.

Usage: `python benchmarks/verify_exact.py runs/beauty [--users all|hit] [--out results/FILE.json]`.
Decodes every list with the last diffusion checkpoint twice, `ar` and `verify`, and counts outputs
that differ; for those it says how close the two best tokens were where the texts part, because
sums in another order (wider forwards) can turn a near tie.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import write_json
from diffgr2.cli import runs
from diffgr2.decode.batch import decode
from diffgr2.model.backends import open_backend
from diffgr2.model.contract import contract_of
from diffgr2.pipeline import source_commit
from diffgr2.progress import Progress
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.plan import CORPUS
from diffgr2.stages.score import prompts_for, test_rows
from diffgr2.types import Trajectory

CHUNK = 1024  # lists between two lines of progress
SHOWN = 20  # differing outputs that are described one by one


def parting(corpus: Corpus, row: int, greedy: Trajectory, verified: Trajectory) -> dict[str, Any]:
    """Where two texts part, and how likely each side's token was to its decoder."""
    n = min(len(greedy.tokens_T), len(verified.tokens_T))
    differs = np.flatnonzero(greedy.tokens_T[:n] != verified.tokens_T[:n])
    at = int(differs[0]) if len(differs) else n - 1
    return {
        "list": int(row),
        "at": at,
        "logp_greedy": float(greedy.logprob_T[at]),
        "logp_verify": float(verified.logprob_T[at]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--users", choices=("all", "hit"), default="all")
    parser.add_argument("--limit", type=int, default=0, help="at most this many lists; 0 = all")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    run = runs.open_report(options.run, None, None)
    runs.set_threads(run.recipe)
    inputs = {name: run.root / name for name in (*CORPUS, "block_rl")}
    corpus = open_corpus(inputs, run.recipe)
    backend = open_backend(inputs["block_rl"])
    contract = contract_of(inputs["block_rl"])
    plans = {how: corpus.settings(contract, how) for how in ("ar", "verify")}
    rows = test_rows(corpus, options.users, options.limit)
    totals: dict[str, tuple[int, int]] = dict.fromkeys(plans, (0, 0))
    different: list[dict[str, Any]] = []
    with Progress().task("verify against greedy", len(rows)) as bar:
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            shown = [corpus.request("test", int(row)) for row in part]
            requests = prompts_for(corpus, shown, corpus.template.answers[0])
            texts: dict[str, list[Trajectory]] = {}
            for how, settings in plans.items():
                texts[how] = decode(backend, requests, settings, batch=run.recipe.evaluate.batch)
                tokens, forwards = totals[how]
                tokens += sum(len(t.tokens_T) for t in texts[how])
                totals[how] = (tokens, forwards + sum(t.nfe for t in texts[how]))
            for row, greedy, verified in zip(part, texts["ar"], texts["verify"], strict=True):
                if not np.array_equal(greedy.tokens_T, verified.tokens_T):
                    different.append(parting(corpus, int(row), greedy, verified))
            bar.advance(len(part))
    result = {
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "commit": source_commit(),
        "command": f"python benchmarks/verify_exact.py runs/{run.recipe.name} "
        f"--users {options.users}",
        "outputs": len(rows),
        "different": len(different),
        "tokens": totals["ar"][0],
        "tpf": round(totals["verify"][0] / totals["verify"][1], 3),
        "first_different": different[:SHOWN],
    }
    print(f"{len(rows) - len(different):,} of {len(rows):,} outputs identical, TPF {result['tpf']}")
    if options.out is not None:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
