"""The runner: which stages stand, which must run, and how each directory is published.

Contract: a stage is a function `run(ctx) -> metrics` that reads `ctx.inputs`, writes into `ctx.out`
and may keep resumable state in `ctx.work`. Its key is the digest of (name, version, its config
sections, seed, the inputs' fingerprints); a directory whose manifest carries that key is skipped,
so a changed input re-runs just what depends on it. An interrupted stage leaves `.NAME.partial`,
which is continued when its key still matches and thrown away otherwise. Not here: what a stage
does; the table of stages is `stages.table`.
"""

from __future__ import annotations

import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffgr2 import __version__
from diffgr2.artifacts import digest, fingerprint, publish, read_json, read_manifest, write_json
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.progress import Progress


@dataclass(frozen=True)
class StageContext:
    """What a stage is given."""

    name: str
    recipe: Recipe
    inputs: Mapping[str, Path]  # stage name -> its published directory
    out: Path  # write results here; published when `run` returns
    work: Path  # survives interruption; removed after publishing
    progress: Progress

    @property
    def seed(self) -> int:
        return self.recipe.seed


@dataclass(frozen=True)
class Stage:
    """One arrow of DESIGN §3."""

    name: str
    run: Callable[[StageContext], dict[str, Any]]
    inputs: tuple[str, ...]  # names of the stages it reads
    sections: tuple[str, ...]  # recipe sections its result depends on
    summary: str  # one line for --help
    version: int = 1  # raise it when the stage's meaning changes
    files: Callable[[Recipe], list[Path]] | None = None  # outside files it reads


def versions() -> dict[str, str]:
    """Versions that a manifest records (they do not enter the key)."""
    import numpy
    import polars
    import torch
    import transformers

    return {
        "diffgr2": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "polars": polars.__version__,
    }


class Runner:
    """Runs stages of one recipe in one directory."""

    def __init__(
        self,
        recipe: Recipe,
        root: Path,
        stages: Mapping[str, Stage],
        progress: Progress | None = None,
    ) -> None:
        self.recipe, self.root, self.stages = recipe, root, stages
        self.progress = progress or Progress()
        self._checked: dict[str, str] = {}  # stage -> fingerprint, valid during this run

    def directory(self, name: str) -> Path:
        return self.root / name

    def order(self, goals: list[str]) -> list[str]:
        """The goals and all they need, inputs first."""
        result: list[str] = []

        def visit(name: str) -> None:
            if name not in self.stages:
                raise ConfigError(f"{name}: no such stage (known: {', '.join(self.stages)})")
            for needed in self.stages[name].inputs:
                visit(needed)
            if name not in result:
                result.append(name)

        for goal in goals:
            visit(goal)
        return result

    def key(self, stage: Stage) -> str:
        """Digest of all the stage's result depends on; its inputs must stand."""
        config = self.recipe.model_dump(mode="json", include=set(stage.sections))
        outside = {}
        for path in stage.files(self.recipe) if stage.files else []:
            if not path.is_file():
                raise ConfigError(f"{path}: no such file (stage {stage.name})")
            outside[str(path)] = [path.stat().st_size, path.stat().st_mtime_ns]
        return digest(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": config,
                "seed": self.recipe.seed,
                "inputs": {name: self._checked[name] for name in stage.inputs},
                "outside": outside,
            }
        )

    def standing(self, stage: Stage, key: str) -> str | None:
        """The fingerprint of the stage's directory if it is valid for this key."""
        try:
            manifest = read_manifest(self.directory(stage.name))
        except ArtifactError:
            return None
        return fingerprint(manifest) if manifest.get("key") == key else None

    def run(self, goals: list[str], *, force: bool = False) -> dict[str, dict[str, Any]]:
        """Run what is missing; returns each stage's manifest."""
        manifests: dict[str, dict[str, Any]] = {}
        self.root.mkdir(parents=True, exist_ok=True)
        for name in self.order(goals):
            stage = self.stages[name]
            key = self.key(stage)
            mark = self.standing(stage, key)
            if mark is not None and not (force and name in goals):
                self.progress.line(f"{name}: stands")
                manifests[name] = read_manifest(self.directory(name))
            else:
                manifests[name] = self._run_one(stage, key)
                mark = fingerprint(manifests[name])
            self._checked[name] = mark
        return manifests

    def _run_one(self, stage: Stage, key: str) -> dict[str, Any]:
        partial = self.root / f".{stage.name}.partial"
        try:
            fresh = read_json(partial / "key.json") != key
        except ArtifactError:
            fresh = True
        if fresh:
            shutil.rmtree(partial, ignore_errors=True)
        out, work = partial / "out", partial / "work"
        shutil.rmtree(out, ignore_errors=True)  # outputs are always written anew
        out.mkdir(parents=True)
        work.mkdir(exist_ok=True)
        if fresh:
            write_json(partial / "key.json", key)
        self.progress.line(f"{stage.name}: {'runs' if fresh else 'continues'} ({stage.summary})")
        context = StageContext(
            name=stage.name,
            recipe=self.recipe,
            inputs={name: self.directory(name) for name in stage.inputs},
            out=out,
            work=work,
            progress=self.progress,
        )
        start = time.monotonic()
        metrics = stage.run(context)
        wall_s = round(time.monotonic() - start, 3)
        manifest = publish(
            out,
            self.directory(stage.name),
            {
                "stage": stage.name,
                "key": key,
                "seed": self.recipe.seed,
                "config": self.recipe.model_dump(mode="json", include=set(stage.sections)),
                "inputs": {name: self._checked[name] for name in stage.inputs},
                "versions": versions(),
                "metrics": metrics,
                "wall_s": wall_s,
            },
        )
        shutil.rmtree(partial, ignore_errors=True)
        self.progress.line(f"{stage.name}: done in {wall_s:.1f} s")
        return manifest
