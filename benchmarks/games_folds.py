"""A recipe with lists of its own, cross-validated by list: every list is a test list once.

    python benchmarks/games_folds.py games --set lists.file=… --out results/games.json

Contract: runs the recipe once per fold (`lists.folds`, `lists.fold`) in `<runs>/<name>-fold<n>`,
each of which stands as any run does and is not repeated, puts the folds' test lists together and
writes one report about all of them, with intervals against the floor and against LambdaMART (the
rival that uses the same columns). A row counts that every fold has. Not here: training
(`diffgr2 run`).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import write_json
from diffgr2.config import Recipe
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.tables import render_markdown
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import load_recipe
from diffgr2.stages.plan import stages_of
from diffgr2.stages.report import meta_of
from diffgr2.stages.standing import Standing
from diffgr2.types import CandidateLists

RIVAL = "lambdamart"
KEPT = ("raw_valid_L", "contradictions_L", "n_tokens_L", "nfe_L", "cited_right_L", "cited_total_L")
"""What is told of outputs besides their orders."""


def joined_lists(parts: Sequence[CandidateLists]) -> CandidateLists:
    """The test lists of all folds, one behind the other."""
    arrays = [part.arrays() for part in parts]
    joined: dict[str, Any] = {
        name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]
    }
    return CandidateLists("test", **joined)


def joined_outputs(name: str, parts: Sequence[SystemOutputs]) -> SystemOutputs:
    """A row's answers on the test lists of all folds."""
    starts = np.cumsum([0, *(part.n_lists for part in parts)])
    arrays = [part.arrays() for part in parts]
    kept: dict[str, Any] = {
        key: np.concatenate([part[key] for part in arrays])
        for key in KEPT
        if all(key in part for part in arrays)
    }
    return SystemOutputs(
        name,
        np.concatenate([part.order_LK for part in parts]),
        int(starts[-1]),
        rows_L=np.concatenate(
            [part.rows + start for part, start in zip(parts, starts[:-1], strict=True)]
        ).astype(np.int32),
        meta=parts[0].meta,
        **kept,
    )


def fold_of(recipe: Recipe, folds: int, fold: int) -> Recipe:
    lists = recipe.lists.model_copy(update={"folds": folds, "fold": fold})
    return recipe.model_copy(update={"lists": lists})


def run_fold(recipe: Recipe, root: Path, goals: list[str]) -> Standing:
    """One fold's run, as far as it does not stand."""
    stages = stages_of(recipe)
    Runner(recipe, root, stages, Progress()).run([goal for goal in goals if goal in stages])
    return Standing.of(Runner(recipe, root, stages))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="*", help="these folds alone, without a report")
    parser.add_argument("--goal", nargs="+", default=["score_ar"], help="stages; rival is added")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", nargs="*", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("results/games.json"))
    given = parser.parse_args()
    recipe = load_recipe(given.recipe, given.overrides)
    found = []
    for fold in range(given.folds) if given.only is None else given.only:
        root = given.runs / f"{recipe.name}-fold{fold}"
        one = fold_of(recipe, given.folds, fold)
        found.append(run_fold(one, root, ["rival", *given.goal]))
    if given.only is not None:
        return
    rows: dict[str, list[SystemOutputs]] = {}
    for fold in found:
        for outputs in fold.systems:
            rows.setdefault(outputs.name, []).append(outputs)
    systems = [joined_outputs(n, p) for n, p in rows.items() if len(p) == len(found)]
    command = f"python benchmarks/games_folds.py {given.recipe} --goal {' '.join(given.goal)}"
    meta = meta_of(fold_of(recipe, given.folds, 0), command)
    lists = joined_lists([fold.lists for fold in found])
    report = build_report(
        meta, lists, systems, resamples=recipe.evaluate.bootstrap, seed=recipe.seed, rival=RIVAL
    )
    report["folds"] = given.folds
    write_json(given.out, report)
    print(render_markdown(report, []))


if __name__ == "__main__":
    main()
