"""A run: a recipe, its directory, and one process (or one torchrun) at work in it.

Contract: `open_run` reads the recipe and finds the directory (`runs/<recipe name>` unless told
otherwise); `open_report` accepts a directory that was run before as well, and finds its recipe in
`run.json`. `work` holds the directory's lock, so that two commands never write to it at once, joins
the process group that torchrun describes, and runs. Not here: what a stage is (`pipeline`,
`stages.plan`) and what the user sees on the terminal (`verbs`).
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgr2.artifacts import locked, read_json, write_json
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError, ConfigError, nearest
from diffgr2.pipeline import STANDS, Runner
from diffgr2.progress import Progress
from diffgr2.recipe import load_recipe, validate
from diffgr2.stages.diffusing import diffusing
from diffgr2.stages.plan import GOALS, stages_of

RUNS = Path("runs")
NOTE = "run.json"  # beside the stages: which recipe the directory belongs to


@dataclass(frozen=True)
class Run:
    """See the module's docstring."""

    recipe: Recipe
    root: Path
    named: str  # as the user named the recipe
    overrides: tuple[str, ...]

    @property
    def command(self) -> str:
        """What makes this run again."""
        named = Path(self.named).name if self.named.endswith((".yaml", ".yml")) else self.named
        return " ".join(["diffgr2 run", named, *(f"--set {text}" for text in self.overrides)])

    def runner(self, **crew: Any) -> Runner:
        return Runner(self.recipe, self.root, stages_of(self.recipe), **crew)


def open_run(named: str, directory: Path | None, overrides: list[str] | None) -> Run:
    """The run that a recipe's name or file stands for."""
    recipe = load_recipe(named, overrides)
    return Run(recipe, directory or RUNS / recipe.name, named, tuple(overrides or ()))


def open_report(named: str, directory: Path | None, overrides: list[str] | None) -> Run:
    """The run in a directory, or a recipe's run."""
    root = Path(named)
    if not (root / NOTE).is_file():
        if root.is_dir():
            raise ArtifactError(f"{named}: no run was made here ({NOTE} is missing)")
        return open_run(named, directory, overrides)
    if overrides or directory:
        raise ConfigError(f"{named}: a run's directory takes no --set and no --runs")
    note = read_json(root / NOTE)
    match note:
        case {"recipe": dict(values), "named": str(given), "overrides": list(texts)}:
            recipe = validate(values, f"{named}/{NOTE}")
            return Run(recipe, root, given, tuple(map(str, texts)))
    raise ArtifactError(f"{root / NOTE}: not the note of a run")


def set_threads(recipe: Recipe) -> None:
    """The recipe's threads; results depend on their number."""
    # Between two small products a thread waits for its neighbour. To spin for long takes the core
    # from it where others work too (ten times slower then), to sleep at once costs a third of a
    # training step; this many turns are a few microseconds. OpenMP reads it once, with torch.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if recipe.threads:
        import torch

        from diffgr2 import blas

        torch.set_num_threads(recipe.threads)
        blas.keep(recipe.threads)


def say(text: str) -> None:
    """Print a line; under torchrun the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


def say_verdict(run: Run) -> None:
    """What the run is worth, as its last lines; nothing as long as no row of a model stands."""
    from diffgr2.stages.standing import Standing

    if os.environ.get("RANK", "0") != "0":
        return
    runner = run.runner()
    if runner.survey(["evidence"])["evidence"] != STANDS:
        return
    for line in Standing.of(runner).closing:
        print(line)


def work(run: Run, goals: list[str], *, force: bool = False) -> dict[str, dict[str, Any]]:
    """Run the goals; returns the manifests of all stages they need."""
    from diffgr2.stages import tutor, warm
    from diffgr2.train import dist

    warm.check(run.recipe, run.root)
    planned = run.runner()
    if "tutor" in planned.order(goals) and planned.survey(["tutor"])["tutor"] != STANDS:
        tutor.check()
    set_threads(run.recipe)
    note = {"recipe": run.recipe.model_dump(mode="json"), "command": run.command}
    note |= {"named": run.named, "overrides": list(run.overrides)}
    with dist.together() as world:
        if not world.first:
            quiet = Progress(io.StringIO())
            runner = run.runner(progress=quiet, rank=world.rank, on_first=dist.on_first)
            return runner.run(goals, force=force)
        lock = run.root / ".lock"
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            lock.touch()
        except OSError as error:
            raise ConfigError(f"{run.root}: cannot be written ({error.strerror})") from None
        with locked(lock, f"{run.root}: another command is at work here"):
            write_json(run.root / NOTE, note)  # for `report`
            return run.runner(on_first=dist.on_first).run(goals, force=force)


def goals_of(goal: str, recipe: Recipe) -> list[str]:
    """The stages of `--goal`: a goal's name, as far as the recipe has it, or a stage's."""
    stages = stages_of(recipe)
    if goal in GOALS:
        more = ["score_cft"] if diffusing(recipe) and goal == "story" else []
        return [name for name in GOALS[goal] if name in stages] + more
    if goal.replace("-", "_") in stages:
        return [goal.replace("-", "_")]
    told = f"--goal {goal}: expected {', '.join(GOALS)} or a stage"
    raise ConfigError(told + nearest(goal, [*GOALS, *stages]))
