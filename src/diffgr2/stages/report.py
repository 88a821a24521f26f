"""The report of a run: collects what stands and hands it to `evaluate` (DESIGN §7).

Contract: `make_report(runner)` reads only stages that stand for the runner's recipe, so it works at
any point of the pipeline and never mixes recipes; rows appear as their stages stand. It writes
`<run>/report/`: report.json, report.md, ranks.safetensors and a PNG per figure. Besides the rows,
report.json holds `speed` (all decoders and batch sizes of the timing run) and `retriever` (its own
figures over all users). Not here: measuring (`evaluate`), decoding test lists (`score`).
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, read_manifest, write_json
from diffgr2.candidates.lists import load_lists
from diffgr2.config import Recipe
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.errors import ArtifactError
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs
from diffgr2.evaluate.results import build_report, ranks_by_system
from diffgr2.evaluate.tables import number, save_report, timings_table
from diffgr2.evaluate.trec import write_qrels, write_run
from diffgr2.pipeline import STANDS, Runner
from diffgr2.stages.rows import ROWS
from diffgr2.types import CandidateLists

TIMED = {"ar": "ar", "block": "cft_opd_rl", "block_raw": "cft_opd_rl_raw", "verify": "verify"}
"""Decoder of the timing run -> row whose speed it is."""

CURVES = ("loss", "grad_norm", "reward", "kl", "entropy", "rank/valid_rate", "rank/r@1")


@dataclass(frozen=True)
class Made:
    """A report and the files it was written to."""

    report: dict[str, Any]
    paths: list[Path]


@dataclass(frozen=True)
class Collected:
    """What stands of a run."""

    recipe: Recipe
    root: Path
    standing: frozenset[str]

    @cached_property
    def lists(self) -> CandidateLists:
        return load_lists(self.root / "candidates", "test")

    @cached_property
    def dataset(self) -> Dataset:
        return read_dataset(self.root / "data")

    @cached_property
    def speed(self) -> dict[str, Any] | None:
        return read_json(self.root / "speed" / "speed.json") if "speed" in self.standing else None

    @cached_property
    def truth(self) -> np.ndarray | None:
        """True next-item probabilities of the test candidates, where a simulated shop knows."""
        path = self.root / "data" / "truth.safetensors"
        if not path.is_file():
            return None
        from diffgr2.data.shop_truth import true_probabilities

        lists = self.lists
        return true_probabilities(
            load_arrays(path), self.dataset.histories, lists.user_L, lists.end_L, lists.items_LK
        )

    def systems(self) -> list[SystemOutputs]:
        """Every row that stands: evidence scorers, then decoded rows."""
        rows = self._evidence() if "evidence" in self.standing else []
        for spec in ROWS:
            if f"score_{spec.name}" in self.standing:
                outputs = load_outputs(self.root / f"score_{spec.name}", spec.name)
                rows.append(replace(outputs, timing=self._timing(outputs)))
        return rows

    def _evidence(self) -> list[SystemOutputs]:
        """The recipe's scorer as `evidence`, the other kinds beside it."""
        rows = []
        for path in sorted((self.root / "evidence").glob("scores_*_test.safetensors")):
            kind = path.name.removeprefix("scores_").removesuffix("_test.safetensors")
            chosen = kind == self.recipe.evidence.scorer
            score_LK = load_arrays(path)["score_LK"]
            rows.append(
                SystemOutputs(
                    "evidence" if chosen else f"evidence_{kind}",
                    order_from_scores(score_LK, path.name),
                    len(self.lists),
                    meta={"scorer": kind},
                )
            )
        return sorted(rows, key=lambda row: row.name != "evidence")

    def _timing(self, outputs: SystemOutputs) -> dict[str, Any]:
        """Speed at batch 1 from the timing run, scaled to this row's mean output."""
        if self.speed is None or outputs.n_tokens_L is None:
            return {}
        for entry in self.speed["decoders"]:
            if entry["batch"] == 1 and TIMED.get(entry["decoder"]) == outputs.name:
                tokens = float(outputs.n_tokens_L.mean())
                return {
                    "tokens": tokens,
                    "seconds": tokens / entry["tokens_per_s"],
                    "batch": 1,
                    "outputs": 1,
                }
        return {}


def collect(runner: Runner) -> Collected:
    """What stands of the runner's recipe."""
    states = runner.survey(list(runner.stages))
    standing = frozenset(name for name, state in states.items() if state == STANDS)
    if not {"data", "candidates"} <= standing:
        raise ArtifactError(
            f"{runner.root}: no candidate lists stand for recipe {runner.recipe.name} "
            f"(run: diffgr2 candidates {runner.recipe.name})"
        )
    return Collected(runner.recipe, runner.root, standing)


def commit() -> str:
    """The source's commit where it is a git checkout, "" otherwise."""
    where = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def described(recipe: Recipe) -> str:
    """The data in a few words, no path of this machine."""
    data = recipe.data
    if data.source == "shop":
        return f"simulated shop, {data.shop.n_items:,} items, {data.shop.n_users:,} shoppers"
    return f"{data.source}: {Path(data.interactions or '').name}"


def meta_of(recipe: Recipe, command: str) -> dict[str, str]:
    """The report's head."""
    data = recipe.data
    tie = data.tie_order if data.tie_order == "file" else f"shuffle({data.tie_seed})"
    return {
        "recipe": recipe.name,
        "data": described(recipe),
        "tie_order": "none" if data.source == "shop" else tie,
        "commit": commit(),
        "command": command,
    }


def make_report(runner: Runner, *, command: str) -> Made:
    """Collect, measure, draw, write."""
    from diffgr2.stages.figures import figures_of

    found = collect(runner)
    recipe, lists, systems = found.recipe, found.lists, found.systems()
    report = build_report(
        meta_of(recipe, command),
        lists,
        systems,
        resamples=recipe.evaluate.bootstrap,
        seed=recipe.seed,
        truth_LK=found.truth,
    )
    if found.speed is not None:
        report["speed"] = found.speed["decoders"]
    if "retriever" in found.standing:
        report["retriever"] = read_manifest(found.root / "retriever")["metrics"]
    ranks = ranks_by_system(lists, systems, found.truth)
    out = found.root / "report"
    figures = figures_of(found, report, ranks)
    paths = save_report(out, report, figures=figures, ranks=ranks)
    with (out / "report.md").open("a", encoding="utf-8") as file:
        file.write(notes(found, report))
    write_json(out / "ids.json", read_json(found.root / "items" / "report.json"))
    return Made(report, paths)


def notes(found: Collected, report: dict[str, Any]) -> str:
    """What the tables need to be read rightly."""
    lines = ["", "## Reading the rows", ""]
    about = report.get("retriever", {})
    if "test_ndcg@10" in about:
        lines.append(
            f"- The lists are the retriever's ({found.recipe.retriever.kind}) own top "
            f"{found.lists.k}, in its order, so the row `floor` over all users is the retriever "
            f"itself up to rank {found.lists.k}. Its own evaluation over the whole catalogue: R@10 "
            f"{number(about.get('test_r@10'))}, NDCG@10 {number(about['test_ndcg@10'])}."
        )
    if found.truth is not None:
        lines.append(
            "- `oracle` orders candidates by the true probabilities that the simulated shop draws "
            "from: no re-ranker can do better on average."
        )
    else:
        lines.append("- `oracle` puts the target first: a bound that no re-ranker can reach.")
    lines.append(
        "- Diffusion rows use the recipe's recommended setting; the same names with `_raw` follow "
        "the plain rule at τ = .9. `student_ar` is the last diffusion checkpoint decoded token by "
        "token."
    )
    speeds = report.get("speed")
    if speeds:
        lines += ["", "## Speed, decoders taking turns in one run", "", timings_table(speeds)]
    return "\n".join(lines) + "\n"


def write_trec(runner: Runner, out: Path) -> list[Path]:
    """A TREC run per row and the qrels, with raw ids."""
    found = collect(runner)
    out.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {
        "users": found.dataset.raw_users,
        "items": found.dataset.catalogue.raw_ids,
    }
    paths = [out / "qrels.txt"]
    write_qrels(paths[0], found.lists, **names)
    floor_LK = np.tile(np.arange(found.lists.k, dtype=np.int16), (len(found.lists), 1))
    systems = [SystemOutputs("floor", floor_LK, len(found.lists)), *found.systems()]
    for outputs in systems:
        paths.append(out / f"{outputs.name}.run")
        write_run(
            paths[-1], found.lists, outputs.order_LK, outputs.name, rows_L=outputs.rows_L, **names
        )
    return paths
