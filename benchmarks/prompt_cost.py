"""What evidence in the prompt costs and gives: runs that differ in their fields, side by side.

    python benchmarks/prompt_cost.py RUN RUN … --out results/prompt_cost.json

Contract: every RUN stands up to its last model and its rows; they answer the same lists (the same
data, candidates and seed), each with the fields of its own recipe. A row says the tokens of a
prompt, whole and `sparse`, the milliseconds of one list from the request on (one thread, all taking
turns, the median of the rounds) and the quality that the run's own report gives, on every test list
that holds its target. Not here: which fields to take (`evidence_fields`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import machine
import numpy as np
from contest import BACKENDS, Contest
from ours import opened
from peers import contest_of, ranked

from diffgr2.artifacts import read_json, write_json
from diffgr2.cli import runs
from diffgr2.errors import ConfigError
from diffgr2.pipeline import source_commit
from diffgr2.prompts.template import make_template

WAYS = ("ar", "block")
ROWS = ("evidence", "ar", "cft_opd_rl")


def tokens_of(contest: Contest, *, sparse: bool) -> float:
    """Tokens of the median prompt."""
    corpus = contest.corpus
    config = corpus.recipe.prompt.model_copy(update={"sparse": sparse})
    template = make_template(corpus.vocab, config, corpus.template.fields)
    return float(np.median([len(template.prompt(request)) for request in contest.requests]))


def quality_of(root: Path) -> dict[str, Any]:
    """The run's own rows on the lists that hold their target."""
    rows = read_json(root / "report" / "report.json")["rows"]
    own = {row["name"]: row for row in rows if row["population"] == "hit"}
    if absent := [name for name in ROWS if name not in own]:
        raise ConfigError(f"{root}: its report has no row {absent[0]} (diffgr2 report {root})")
    kept = ("n", "metrics", "ci", "vs_floor")
    return {name: {key: own[name][key] for key in kept if key in own[name]} for name in ROWS}


def measured(found: dict[str, runs.Run], lists: int, rounds: int) -> list[Any]:
    """A row per run; all are timed in turns."""
    contests = {name: contest_of(run, lists, Path()) for name, run in found.items()}
    ways = {
        (name, way): opened(BACKENDS["onnx"], way, contest, 1, 1)
        for name, contest in contests.items()
        for way in WAYS
    }
    groups = {name: [[request] for request in c.requests] for name, c in contests.items()}
    for (name, _), way in ways.items():  # all warm before the first round
        ranked(way, groups[name])
    seconds: dict[Any, list[float]] = {key: [] for key in ways}
    for _ in range(rounds):
        for key, way in ways.items():
            took = machine.elapsed(lambda w=way, g=groups[key[0]]: ranked(w, g), 1)[0]
            seconds[key].append(took / len(groups[key[0]]) * 1e3)
    return [
        {
            "run": name,
            "fields": list(contest.corpus.vocab.spec.fields),
            "tokens": tokens_of(contest, sparse=False),
            "tokens_sparse": tokens_of(contest, sparse=True),
            "ms": {way: round(float(np.median(seconds[name, way])), 3) for way in WAYS},
            "range_ms": {
                way: [round(end(seconds[name, way]), 3) for end in (min, max)] for way in WAYS
            },
            "quality": quality_of(found[name].root),
        }
        for name, contest in contests.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", help="runs' directories, finished and reported")
    parser.add_argument("--lists", type=int, default=48, help="timed lists")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = {Path(name).name: runs.open_report(name, None, None) for name in given.runs}
    with machine.pinned(1):
        rows = measured(found, given.lists, given.rounds)
    for row in rows:
        print(len(row["fields"]), row["tokens"], row["tokens_sparse"], row["ms"], flush=True)
    if given.out:
        command = f"python benchmarks/prompt_cost.py {' '.join(found)} --lists {given.lists}"
        about = {"command": command, "commit": source_commit(), "machine": machine.about()}
        about |= {"lists": given.lists, "rounds": given.rounds}
        about |= {"commands": [f"diffgr2 run {run.recipe.name}" for run in found.values()]}
        write_json(given.out, about | {"rows": rows})


if __name__ == "__main__":
    main()
