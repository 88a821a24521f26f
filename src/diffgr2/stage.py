"""What a stage is: its line in the table of stages, and what it is given when it runs.

Contract: both are plain data that import next to nothing, so that the command line knows its stages
before any work begins. Not here: the runner (`pipeline`), the table (`stages.plan`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffgr2.config import Recipe
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
    """One box of the pipeline."""

    name: str
    run: Callable[[StageContext], dict[str, Any]]
    inputs: tuple[str, ...]  # names of the stages it reads
    sections: tuple[str, ...]  # recipe sections, or keys of one (a.b), its result depends on
    summary: str  # one line for --help
    version: int = 1  # raise it when the stage's meaning changes
    files: Callable[[Recipe], list[Path]] | None = None  # outside files it reads
    shared: bool = False  # several processes of a torchrun work on it together
    packages: tuple[str, ...] = ()  # it does without, but does more where they are installed
