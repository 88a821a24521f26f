"""Do better semantic IDs help the re-ranker? Its SFT model under the papers' IDs, ours, and noise.

    python benchmarks/ids_for_ranking.py demo --runs runs/ids --out results/ids_for_ranking.json

Contract: one run per variant of the section `items` (`rqvae`: of text, the papers'; `blend`: the
default; `shuffled`: the default's IDs dealt out among the items, which then mean nothing), each up
to the stage `sft` in RUNS/<variant>, kept and continued as runs are; data, retriever and candidate
lists are the first one's. Every model answers the same validation lists of selection users, read as
the recipe reads answers. Differences are paired, to `rqvae`, 95 %. `--set` changes all variants, as
in `--set sft.steps=300`. Test lists are not looked at. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from budget import against, answered, point_of

from diffgr2.artifacts import read_json, write_json
from diffgr2.cli import runs
from diffgr2.errors import ConfigError, Diffgr2Error
from diffgr2.evaluate.results import rounded
from diffgr2.evaluate.tables import at, interval_at, markdown_table
from diffgr2.pipeline import Runner
from diffgr2.recipe import load_recipe
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.judge import meta_of
from diffgr2.stages.plan import CORPUS, STAGES
from diffgr2.stages.score import Model, selection_lists

VARIANTS = {
    "rqvae": ("items.quantizer=rqvae", "items.min_unique=0.5"),
    "blend": ("items.quantizer=blend",),
    "shuffled": ("items.quantizer=blend", "items.shuffle=true"),
}
SHARED = ("data", "retriever", "candidates")
"""Stages that no ID has a part in."""


def row_of(name: str, given: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    """One variant's figures, and each list's metrics."""
    recipe = load_recipe(given.recipe, [*given.changes, *VARIANTS[name]])
    runs.set_threads(recipe)
    root, first = given.runs / name, given.runs / next(iter(VARIANTS))
    for stage in SHARED:
        if root != first and not (root / stage).exists():
            shutil.copytree(first / stage, root / stage)
    Runner(recipe, root, STAGES).run(["sft"])
    corpus = open_corpus({stage: root / stage for stage in CORPUS}, recipe)
    lists, requests = selection_lists(corpus, given.lists)
    if not requests:
        raise ConfigError(f"{root}: no list of a selection user holds its target")
    model = Model.open(root / "sft")
    outputs = answered(corpus, model, "ar", "said", lists, requests)
    key = (recipe.seed, "ids")
    point, values_LM = point_of(outputs, lists, recipe.evaluate.bootstrap, key)
    unique = read_json(root / "items" / "report.json")["unique"]["natural"]
    return {"ids": name, "n": len(lists), "natural": unique, **point}, values_LM


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for the terminal."""
    columns: list[Any] = [("IDs", at("ids")), ("n", at("n")), ("natural", at("natural", 4))]
    for metric in ("r@1", "ndcg@3", "ndcg@10"):
        columns += [(metric.upper(), at(f"metrics.{metric}"))]
        columns += [("to rqvae, 95 %", interval_at(f"over_rqvae.{metric}.ci", 4))]
    return markdown_table(rows, columns)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", help="a shipped name or a YAML file")
    parser.add_argument("--runs", type=Path, default=Path("runs/ids"))
    parser.add_argument("--lists", type=int, default=0, help="how many are answered; 0 = all")
    parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    recipe = load_recipe(given.recipe, given.changes)
    rows, base_LM = [], None
    for name in VARIANTS:
        row, values_LM = row_of(name, given)
        base_LM = values_LM if base_LM is None else base_LM
        key = (recipe.seed, "ids")
        row["over_rqvae"] = against(values_LM, base_LM, recipe.evaluate.bootstrap, key)
        rows.append(rounded(row))
        print(table(rows), flush=True)
    # Files' places are this machine's own.
    told = [change for change in given.changes if not change.startswith("data.")]
    command = f"python benchmarks/ids_for_ranking.py {recipe.name}"
    command += f" --set {' '.join(told)}" if told else ""
    if given.out is not None:
        found = {"seed": recipe.seed, "split": "selection", "rows": rows}
        write_json(given.out, meta_of(recipe, command) | found)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Diffgr2Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
