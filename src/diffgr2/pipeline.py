"""The runner: which stages stand, which must run, and how each directory is published.

Contract: a stage is a function `run(ctx) -> metrics` that reads `ctx.inputs`, writes into `ctx.out`
and may keep resumable state in `ctx.work`. Its key is the digest of (name, version, its config
sections, seed, the inputs' fingerprints, optional packages that are there); a directory whose
manifest carries that key is skipped, so a changed input re-runs just what depends on it. The
contents of its inputs are verified when a stage runs, each file once per process. An interrupted
stage leaves `.NAME.partial`, which is continued when its key still matches and thrown away
otherwise. Under `torchrun` every process walks the same order; shared stages run on all of them,
the others on the first while the rest wait, and only the first writes. Not here: what a stage is
(`stage`) and does, the table of stages (`stages.plan`), what outdated one (`stages.reasons`).
"""

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffgr2 import __version__
from diffgr2.artifacts import (
    digest,
    fingerprint,
    held,
    is_held,
    known_sha256,
    publish,
    read_json,
    read_manifest,
    write_json,
)
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.progress import Progress
from diffgr2.stage import Stage, StageContext

DIRTY = "+dirty"
"""Behind a commit: the source was not as it was committed."""


@cache
def source_commit() -> str:
    """The commit that this source stands at, marked where it differs from it; "" outside git."""
    told, here = [], Path(__file__)
    known = f"ls-files --error-unmatch {here.name}"  # else it lies in somebody else's checkout
    for words in (known, "rev-parse HEAD", "status --porcelain -- ."):
        command = ["git", "-C", str(here.parent), *words.split()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return ""
        told.append(done.stdout.strip())
    return told[1] + (DIRTY if told[2] else "")


def versions() -> dict[str, str]:
    """Versions that a manifest records (they do not enter the key)."""
    own = {"diffgr2": __version__, "python": platform.python_version(), "commit": source_commit()}
    return own | {name: version(name) for name in ("torch", "transformers", "numpy", "polars")}


def read_part(recipe: Recipe, sections: tuple[str, ...]) -> dict[str, Any]:
    """The values of these sections, and of single keys written as `section.key`."""
    include: dict[str, Any] = {}
    for name in sections:
        section, _, key = name.partition(".")
        include[section] = {key, *include.get(section, ())} if key else True
    return recipe.model_dump(mode="json", include=include)


STANDS, RUNNING, OUTDATED = "stands", "running", "outdated"
INTERRUPTED, MISSING = "interrupted", "missing"


@dataclass
class Runner:
    """Runs stages of one recipe in one directory."""

    recipe: Recipe
    root: Path
    stages: Mapping[str, Stage]
    progress: Progress = field(default_factory=Progress)
    rank: int = 0
    on_first: Callable[[Callable[[], Any]], Any] = lambda work: work()
    checked: dict[str, str] = field(default_factory=dict)  # stage -> fingerprint of this run

    def directory(self, name: str) -> Path:
        return self.root / name

    def partial(self, name: str) -> Path:
        return self.root / f".{name}.partial"

    def order(self, goals: list[str]) -> list[str]:
        """The goals and all they need, inputs first."""
        result: dict[str, None] = {}

        def visit(name: str) -> None:
            if name not in self.stages:
                raise ConfigError(f"{name}: no such stage (known: {', '.join(self.stages)})")
            for needed in self.stages[name].inputs:
                visit(needed)
            result[name] = None

        for goal in goals:
            visit(goal)
        return list(result)

    def _facts(self, stage: Stage) -> dict[str, Any]:
        """What the stage's result depends on, as its manifest says it; its inputs must stand."""
        return {
            "stage": stage.name,
            "seed": self.recipe.seed,
            "config": read_part(self.recipe, stage.sections),
            "inputs": {name: self.checked[name] for name in stage.inputs},
        }

    def key(self, stage: Stage) -> str:
        """Digest of all the stage's result depends on."""
        return digest(self._facts(stage) | self._origin(stage))

    def _origin(self, stage: Stage) -> dict[str, Any]:
        """The stage's version and the outside files it reads; they must be there."""
        outside = self.outside(stage)
        for path, state in outside.items():
            if state is None:
                where = f"stage {stage.name}; paths in a recipe start from its folder"
                raise ConfigError(f"{path}: no such file ({where})")
        origin: dict[str, Any] = {"version": stage.version, "outside": outside}
        if stage.packages:
            origin["packages"] = [name for name in stage.packages if find_spec(name)]
        return origin

    def outside(self, stage: Stage) -> dict[str, list[int] | None]:
        """Size and time of the outside files that the stage reads, None for one that is gone.

        A file that was only written to again, its content as it was, has the time it was read at.
        """
        paths = stage.files(self.recipe) if stage.files else []
        made = self._made(stage) if paths else {}
        found: dict[str, list[int] | None] = {}
        for path in paths:
            facts = path.stat() if path.is_file() else None
            state = [facts.st_size, facts.st_mtime_ns] if facts else None
            before = made.get("outside", {}).get(str(path))
            content = made.get("contents", {}).get(str(path))
            if state and before and content and state != before and state[0] == before[0]:
                state = before if known_sha256(path) == content else state
            found[str(path)] = state
        return found

    def _made(self, stage: Stage) -> dict[str, Any]:
        """The manifest of the stage's directory, {} without a complete one."""
        try:
            return read_manifest(self.directory(stage.name))
        except ArtifactError:
            return {}

    def standing(self, stage: Stage, key: str) -> dict[str, Any] | None:
        """The manifest of the stage's directory if it is complete and of this key."""
        manifest = self._made(stage)
        return manifest if manifest.get("key") == key else None

    def survey(self, goals: list[str], *, gone: bool = False) -> dict[str, str]:
        """How each stage stands, without running any; a stage on outdated inputs is outdated.

        An outside file that is gone is an error, or with `gone` one more reason.
        """
        states: dict[str, str] = {}
        for name in self.order(goals):
            stage = self.stages[name]
            found = None
            there = not gone or None not in self.outside(stage).values()
            if there and all(states[needed] == STANDS for needed in stage.inputs):
                found = self.standing(stage, self.key(stage))
            if found is not None:
                self.checked[name] = fingerprint(found)
                states[name] = STANDS
            elif self.partial(name).is_dir():
                states[name] = RUNNING if is_held(self.partial(name)) else INTERRUPTED
            else:
                states[name] = OUTDATED if self.directory(name).is_dir() else MISSING
        return states

    def run(self, goals: list[str], *, force: bool = False) -> dict[str, dict[str, Any]]:
        """Run what is missing; returns each stage's manifest."""
        manifests: dict[str, dict[str, Any]] = {}
        order = self.order(goals)
        self.root.mkdir(parents=True, exist_ok=True)
        for name in order:
            stage = self.stages[name]
            key = self.key(stage)
            again = force and name in goals
            found = None if again else self.on_first(lambda: self._found(stage, key))  # noqa: B023
            if found is not None:
                self.progress.line(f"{name}: stands")
            manifests[name] = found or self._run_one(stage, key)
            self.checked[name] = fingerprint(manifests[name])
        return manifests

    def _found(self, stage: Stage, key: str) -> dict[str, Any] | None:
        """As `standing`; clears up after a run that was killed just after publishing."""
        found = self.standing(stage, key)
        if found is not None and self._left(stage, key):
            shutil.rmtree(self.partial(stage.name), ignore_errors=True)
        return found

    def _left(self, stage: Stage, key: str) -> bool:
        """Whether an interrupted run of this key left its working directories."""
        try:
            return read_json(self.partial(stage.name) / "key.json") == key
        except ArtifactError:
            return False

    def _run_one(self, stage: Stage, key: str) -> dict[str, Any]:
        origin = self._origin(stage)
        # Before it runs: what is written to meanwhile is not what this stage read.
        read = [*origin["outside"]]
        contents = self.on_first(lambda: {path: known_sha256(Path(path)) for path in read})
        origin |= {"contents": contents} if read else {}
        fresh = self.on_first(lambda: self._prepare(stage, key))
        self.progress.line(f"{stage.name}: {'runs' if fresh else 'continues'} ({stage.summary})")
        start = time.monotonic()
        with held(self.partial(stage.name)) if self.rank == 0 else nullcontext():
            if stage.shared:
                metrics = stage.run(self._context(stage))
                self.on_first(lambda: None)  # nobody writes any more when the directory moves
            else:
                metrics = self.on_first(lambda: stage.run(self._context(stage)))
        wall_s = round(time.monotonic() - start, 3)
        made = {"key": key, "versions": versions(), "metrics": metrics, "wall_s": wall_s}
        manifest = self.on_first(lambda: self._publish(stage, made | origin))
        self.progress.line(f"{stage.name}: done in {wall_s:.1f} s")
        return manifest

    def _prepare(self, stage: Stage, key: str) -> bool:
        """Verify inputs, make working directories; False if an interrupted run goes on in them."""
        for name in stage.inputs:
            try:
                read_manifest(self.directory(name), verify=True)
            except ArtifactError as error:
                raise ArtifactError(f"{error} (run stage {name} again with --force)") from None
        partial = self.partial(stage.name)
        fresh = not self._left(stage, key)
        if fresh:
            shutil.rmtree(partial, ignore_errors=True)
        for out in partial.glob("out*"):
            shutil.rmtree(out, ignore_errors=True)  # outputs are always written anew
        (partial / "out").mkdir(parents=True)
        (partial / "work").mkdir(exist_ok=True)
        if fresh:
            write_json(partial / "key.json", key)
        return fresh

    def _context(self, stage: Stage) -> StageContext:
        partial = self.partial(stage.name)
        out = partial / ("out" if self.rank == 0 else f"out-{self.rank}")
        out.mkdir(exist_ok=True)
        inputs = {name: self.directory(name) for name in stage.inputs}
        work = partial / "work"
        return StageContext(stage.name, self.recipe, inputs, out, work, self.progress)

    def _publish(self, stage: Stage, made: dict[str, Any]) -> dict[str, Any]:
        partial = self.partial(stage.name)
        manifest = publish(partial / "out", self.directory(stage.name), self._facts(stage) | made)
        shutil.rmtree(partial, ignore_errors=True)
        return manifest
