"""Budget curves: what a stage's steps do to the ranking and to the papers' own way of answering.

    python benchmarks/budget.py RUN --stage opd --steps 0,100,300,1000 --out results/budget.json

Contract: RUN is a run that stands up to the stage's input (`opd`: CFT, `block_rl`: OPD, `cft_rl`:
CFT). The stage is trained once per number of steps and per way (`shipped`: as the recipe has it;
`paper`: rolled out under the plain rule at τ = .9 with the answer written out, OPD's divergence on
all masked positions at the teacher's own temperature; `preference`: RL's stages with preferences
between outputs in place of replay; `--set` changes more), each with its own
schedule, in RUN/budget/<stage>-<way>-<steps>, which is kept: run again, what is made is not made
again, and a training that was killed goes on. Every model answers the same lists: validation lists
of selection users, by which steps may be chosen, or with `--split test` the test lists, by which
nothing may; `said` under the recommended decoder, and `raw`, the papers' row, whose validity is
counted before the floor stands in for what is none. Differences are paired, to 0 steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import digest, read_json, write_json
from diffgr2.capacity.costtable import processor
from diffgr2.cli import runs
from diffgr2.config import Recipe
from diffgr2.errors import ConfigError, Diffgr2Error
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.metrics import MAIN, METRICS, metrics_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import rounded
from diffgr2.evaluate.significance import bootstrap_means, interval
from diffgr2.evaluate.tables import at, interval_at, markdown_table
from diffgr2.evaluate.validity import accounting, intervals
from diffgr2.model.load import device
from diffgr2.pipeline import STANDS, StageContext
from diffgr2.progress import Progress
from diffgr2.prompts.request import Request
from diffgr2.recipe import apply_override, validate
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.judge import meta_of
from diffgr2.stages.plan import CORPUS, STAGES
from diffgr2.stages.score import Model, decode_requests, outputs_of, selection_lists, test_rows
from diffgr2.types import CandidateLists

PLAIN = {"rule": "raw", "threshold": 0.9, "answer": "written", "temperature": 1.0}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "shipped": {"opd": {}, "block_rl": {}, "cft_rl": {}},
    "paper": {
        "opd": PLAIN | {"positions": "all", "rollouts": 4, "teacher_temperature": 1.0},
        "block_rl": PLAIN,
        "cft_rl": PLAIN,
    },
    "preference": {stage: {"objective": "preference"} for stage in ("block_rl", "cft_rl")},
}
"""What a way changes of a stage's section. Learning rates stay the recipe's: the papers' are those
of a model a thousand times as large."""

FROM = {"opd": "cft", "block_rl": "opd", "cft_rl": "cft"}
"""Stage -> the stage whose model it starts from."""
DONE = "budget.json"


def recipe_of(
    recipe: Recipe, stage: str, way: str, steps: int, changes: Sequence[str] = ()
) -> Recipe:
    """The recipe with this budget and way, and the keys that are changed besides."""
    values = recipe.model_dump(mode="json")
    for change in changes:
        if apply_override(values, change)[0] not in FROM:
            raise ConfigError(f"--set {change}: a key of {', '.join(FROM)}")
    values[stage] |= {"steps": steps, **WAYS[way][stage]}
    if stage == "opd":  # a prompt is rolled out several times at most as often as there are rows
        values[stage]["rollouts"] = min(values[stage]["rollouts"], values[stage]["rows"])
    return validate(values, f"budget {stage} {way} {steps}")


def trained(recipe: Recipe, root: Path, stage: str, folder: Path) -> Path:
    """The stage's model under this recipe, trained as far as it is not there."""
    if (folder / DONE).is_file():
        if read_json(folder / DONE)["config"] != getattr(recipe, stage).model_dump(mode="json"):
            raise ConfigError(f"{folder}: made with other settings (remove it)")
        return folder / "model"
    out, work = folder / "model", folder / "work"
    for place in (out, work):
        place.mkdir(parents=True, exist_ok=True)
    inputs = {name: root / name for name in STAGES[stage].inputs}
    start = time.monotonic()
    STAGES[stage].run(StageContext(stage, recipe, inputs, out, work, Progress()))
    config, seconds = getattr(recipe, stage).model_dump(mode="json"), time.monotonic() - start
    write_json(folder / DONE, {"config": config, "seconds": round(seconds, 1), "on": worker()})
    return out


def worker() -> str:
    """What models are trained on here."""
    return torch.cuda.get_device_name() if device().type == "cuda" else processor()


def answered(
    corpus: Corpus, model: Model, how: str, answer: Any, lists: CandidateLists, requests: Any
) -> SystemOutputs:
    """A model's answers to all these lists in one way."""
    batch = corpus.recipe.evaluate.batch
    decoded = decode_requests(corpus, model, requests, how, batch=batch, answer=answer)
    policy = "floor" if how == "raw" else corpus.recipe.decode.repair
    return outputs_of(corpus, how, np.arange(len(lists)), decoded, policy, len(lists))


def point_of(
    outputs: SystemOutputs, lists: CandidateLists, resamples: int, key: Sequence[str | int]
) -> tuple[dict[str, Any], np.ndarray]:
    """What the answers are worth, how sure that is, and each list's metrics."""
    every_L = np.ones(len(lists), dtype=bool)
    values_LM = metrics_of(outputs.order_LK, lists.gains_LK)
    boot_BM = bootstrap_means(values_LM, resamples, *key)
    account = accounting(outputs, every_L)
    point: dict[str, Any] = {
        name: account[name] for name in ("raw_valid", "failures", "identity", "tpf", "forwards")
    }
    point["metrics"] = dict(zip(METRICS, values_LM.mean(0).tolist(), strict=True))
    point["ci"] = {m: list(interval(boot_BM[:, n])) for n, m in enumerate(METRICS)}
    point["ci"] |= intervals(outputs, every_L, resamples, *key, "outputs")
    return point, values_LM


def against(
    values_LM: np.ndarray, base_LM: np.ndarray, resamples: int, key: Sequence[str | int]
) -> dict[str, dict[str, Any]]:
    """The paired difference to other values of the same lists."""
    diff_LM = values_LM - base_LM
    boot_BM = bootstrap_means(diff_LM, resamples, *key)
    return {
        m: {"diff": float(diff_LM[:, n].mean()), "ci": list(interval(boot_BM[:, n]))}
        for n, m in enumerate(METRICS)
        if m in MAIN
    }


Asked = tuple[Corpus, CandidateLists, list[Request]]


def asked_of(run: runs.Run, split: str, n_lists: int) -> Asked:
    """The lists that every model answers."""
    corpus = open_corpus({n: run.root / n for n in CORPUS}, run.recipe)
    lists, requests = selection_lists(corpus, n_lists)
    if split == "test":
        rows = test_rows(corpus, "hit", n_lists)
        requests = [corpus.request("test", int(row)) for row in rows]
        lists = corpus.judged("test").take(rows)
    if not requests:
        raise ConfigError(f"{run.root}: no list of a selection user holds its target")
    return corpus, lists, requests


def curve(
    run: runs.Run,
    stage: str,
    way: str,
    budget: Sequence[int],
    asked: Asked,
    changes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """One row per number of steps and way of answering."""
    corpus, lists, requests = asked
    resamples, key = run.recipe.evaluate.bootstrap, (run.recipe.seed, "budget")
    floor_LK = floor_order(len(lists), lists.k, lists.length_L)
    floor_LM, rows, base = metrics_of(floor_LK, lists.gains_LK), [], dict[str, np.ndarray]()
    for steps in budget:
        mark = f"-{digest(sorted(changes))[:8]}" if changes else ""
        folder = run.root / "budget" / f"{stage}-{way}-{steps}{mark}"
        recipe = recipe_of(run.recipe, stage, way, steps, changes)
        source = trained(recipe, run.root, stage, folder) if steps else run.root / FROM[stage]
        model = Model.open(source)
        for read, how in (("said", "recommended"), ("raw", "raw")):
            answer = "said" if read == "said" else "written"
            outputs = answered(corpus, model, how, answer, lists, requests)
            point, values_LM = point_of(outputs, lists, resamples, key)
            base.setdefault(read, values_LM)
            row: dict[str, Any] = {"stage": stage, "way": way, "steps": steps, "read": read}
            row |= {"n": len(lists), **point}
            row["over_floor"] = against(values_LM, floor_LM, resamples, key)
            row["over_none"] = against(values_LM, base[read], resamples, key)
            if steps:
                done = read_json(folder / DONE)
                row |= {name: done[name] for name in ("seconds", "on") if name in done}
            rows.append(rounded(row))
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The curves for the terminal."""
    columns: list[Any] = [(name, at(name)) for name in ("stage", "way", "steps", "read")]
    columns += [("valid", at("raw_valid", 3)), ("95 %", interval_at("ci.raw_valid"))]
    for metric in MAIN:
        columns += [(metric.upper(), at(f"metrics.{metric}"))]
        columns += [("to 0 steps, 95 %", interval_at(f"over_none.{metric}.ci", 4))]
    columns += [("TPF", at("tpf", 1)), ("s", at("seconds", 0))]
    return markdown_table([dict(row) for row in rows], columns)


def numbers(text: str) -> list[int]:
    return sorted({0, *(int(part) for part in text.split(","))})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's directory")
    parser.add_argument("--stage", choices=[*FROM], nargs="+", default=["opd"])
    parser.add_argument("--way", choices=[*WAYS], nargs="+", default=["shipped", "paper"])
    parser.add_argument("--steps", type=numbers, default=[0, 100, 300, 1000])
    parser.add_argument("--split", choices=["selection", "test"], default="selection")
    parser.add_argument("--lists", type=int, default=0, help="how many are answered; 0 = all")
    parser.add_argument("--set", nargs="*", default=[], dest="changes", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("results/budget.json"))
    given = parser.parse_args(arguments)
    run = runs.open_report(given.run, None, None)
    runs.set_threads(run.recipe)
    needed = [*dict.fromkeys(n for stage in given.stage for n in STAGES[stage].inputs)]
    states = run.runner().survey(needed)
    if missing := [name for name in needed if states[name] != STANDS]:
        raise ConfigError(f"{run.root}: {missing[0]} does not stand (run: diffgr2 run {run.named})")
    asked, rows = asked_of(run, given.split, given.lists), []
    for stage in given.stage:
        for way in [way for way in given.way if stage in WAYS[way]]:
            rows += curve(run, stage, way, given.steps, asked, given.changes)
            print(table(rows), flush=True)
    said = f"--stage {' '.join(given.stage)} --way {' '.join(given.way)}"
    steps = ",".join(map(str, given.steps))
    command = f"python benchmarks/budget.py {given.run} {said} --steps {steps}"
    command += f" --split {given.split}"
    command += f" --set {' '.join(given.changes)}" if given.changes else ""
    told = {"seed": run.recipe.seed, "split": given.split, "rows": rows}
    write_json(given.out, meta_of(run.recipe, command) | told)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Diffgr2Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
