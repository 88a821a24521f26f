"""Stages run at growing sizes on invented data, each in a process of its own: seconds and memory.

Contract: `measured(sizes, …)` runs data, items, the retrievers, candidates and evidence by the
command line, a child each on one thread, and returns points for the `Table`: CPU seconds and peak
memory as the kernel counted them, interpreter and imports included. Retrievers are trained for one
epoch and for three, which tells an epoch from the rest. What is sure to take longer than `most`
seconds, by the sizes before, is left out and said. Not here: fits (`powerlaw`), serving
(`servicing`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffgr2.artifacts import read_manifest
from diffgr2.capacity.costtable import GROWS, Machine, Point, Table
from diffgr2.capacity.powerlaw import fit
from diffgr2.capacity.synthetic import NAME, written
from diffgr2.errors import ArtifactError
from diffgr2.recipe import validate

QUICK = ((30_000, 3_000), (60_000, 2_000), (150_000, 12_000), (400_000, 20_000))
THOROUGH = ((100_000, 10_000), (300_000, 30_000), (1_000_000, 40_000), (3_000_000, 120_000))
"""(interactions, items): what grows alone somewhere can be told apart. With fewer than ten
interactions an item the 5-core leaves next to nothing."""

EPOCHS = (1, 3)
FOLDS = 2

RETRIEVERS = {
    "plain": {"kind": "popularity"},  # lists at the least cost
    "itemknn": {"kind": "itemknn"},
    "sasrec": {"kind": "sasrec", "loss": "full", "search": "exact"},
    "sampled": {"kind": "sasrec", "loss": "sampled", "search": "approximate"},
}
"""Runs at one size, by what retrieves."""

LISTS = {"k": 10, "k_max": 20, "folds": FOLDS, "prefixes": 4}
"""The section `candidates` of what is measured."""

FEW = LISTS | {"k_max": 10, "prefixes": 1}
"""The same of a second run of lists and evidence: what grows with interactions and what grows with
lists could not be told apart, did each size have as many lists a user."""

INDEX = {
    "data": ("histories.safetensors", "items.parquet", "users.parquet"),
    "evidence": ("index.safetensors", "index.json"),
    "retriever": ("model.safetensors",),
}
"""What a replica holds of a stage's directory, beside the model."""


MATTER = {
    "items": ("vectors", "quantizer", "vector_dim", "levels", "codes"),
    "retriever": ("dim", "layers", "max_len", "batch_users", "precision"),
    "evidence": ("fields", "history", "moment"),
}
"""Keys of which a recipe with other values is told that its stage was measured with these."""


@dataclass(frozen=True)
class Used:
    """What a child took."""

    seconds: float
    peak: float


def used(command: Sequence[str], env: dict[str, str]) -> Used:
    """Run a command to its end; what it says is shown only where it fails."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            last = (said.read().strip().splitlines() or ["nothing was said"])[-1]
            raise ArtifactError(f"{' '.join(command[3:])}: {last}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Used(usage.ru_utime + usage.ru_stime, float(usage.ru_maxrss * unit))


@dataclass
class Bench:
    """One size after the other in one scratch directory.

    The first of `lists` is everybody's; with each further one lists and their evidence are made
    once more. `without` names parts to leave out.
    """

    most: float
    told: Callable[[str], object]
    points: dict[str, list[Point]] = field(default_factory=dict)
    lists: Sequence[Mapping[str, int]] = (LISTS, FEW)
    without: Collection[str] = ()

    def measure(self, place: Path, interactions: int, items: int) -> None:
        """Every part at one size."""
        place.mkdir()
        paths = written(place, interactions, items)
        self.told(f"{interactions:,} interactions, {items:,} items")
        data = self._stage(place, "plain", "data", paths)
        facts = read_manifest(place / "plain" / "data")["metrics"]
        sizes = {name: float(facts[name]) for name in ("interactions", "users", "items")}
        self._add("data", sizes, data, place / "plain" / "data")
        self._add("items", sizes, self._stage(place, "plain", "items", paths))
        each = min(self.lists[0]["prefixes"], sizes["interactions"] / sizes["users"] - 3)
        about = {**sizes, "lists": sizes["users"] * (2 + each)}
        if not self._affords("candidates:popularity", about):  # nothing follows without lists
            return
        self._stage(place, "plain", "retriever", paths)
        for number, lists in enumerate(self.lists[1:], 1):
            run = self._beside(place, f"plain-{number}", ("data", "items", "retriever"))
            self._listed(place, paths, sizes, run.name, lists)
        sizes |= self._listed(place, paths, sizes, "plain", self.lists[0])
        if self._affords("candidates:itemknn", sizes):
            self._counted(place, paths, sizes)
        for run, search in (("sasrec", "sasrec"), ("sampled", "cells")):
            if self._affords(f"epoch:{run}", sizes, float(max(EPOCHS))):
                self._trained(place, paths, sizes, run, search)

    def _listed(
        self,
        place: Path,
        paths: tuple[Path, Path],
        sizes: dict[str, float],
        run: str,
        lists: Mapping[str, int],
    ) -> dict[str, float]:
        """Lists at the least cost and their evidence; returns how many they are."""
        made = self._stage(place, run, "candidates", paths, lists=lists)
        kept = read_manifest(place / run / "candidates")["metrics"]
        n_lists = float(sum(kept[f"{s}_lists"] for s in ("train", "validation", "test")))
        found = {"lists": n_lists, "shown": n_lists * lists["k_max"]}
        self._add("candidates:popularity", {**sizes, **found}, made)
        evidence = self._stage(place, run, "evidence", paths, lists=lists)
        self._add("evidence", {**sizes, **found}, evidence, place / run / "evidence")
        return found

    def _counted(self, place: Path, paths: tuple[Path, Path], sizes: dict[str, float]) -> None:
        run = self._beside(place, "itemknn")
        found = self._stage(place, "itemknn", "retriever", paths)
        self._add("retriever:itemknn", sizes, found, run / "retriever")
        self._add("candidates:itemknn", sizes, self._stage(place, "itemknn", "candidates", paths))

    def _trained(
        self,
        place: Path,
        paths: tuple[Path, Path],
        sizes: dict[str, float],
        name: str,
        search: str,
    ) -> None:
        """One epoch and three: the difference is two epochs, the rest is all else."""
        run, few, many = self._beside(place, name), *EPOCHS
        one = self._stage(place, name, "retriever", paths, few)
        lists = self._stage(place, name, "candidates", paths, few)
        self._beside(place, f"{name}-{many}")
        more = self._stage(place, f"{name}-{many}", "retriever", paths, many)
        epoch = max((more.seconds - one.seconds) / (many - few), 1e-3)
        self._add(f"epoch:{name}", sizes, Used(epoch, more.peak))
        if name == "sasrec":  # beside its epochs a retriever takes the same whatever its loss
            rest = max(one.seconds - few * epoch, 1e-3)
            self._add("retriever:sasrec", sizes, Used(rest, one.peak), run / "retriever")
        # Each fold trains on the users outside it.
        asked = max(lists.seconds - (FOLDS - 1) * few * epoch, 1e-3)
        metrics = read_manifest(run / "candidates")["metrics"]
        # Few items have no cells that are worth looking into.
        if metrics["search"] == ("approximate" if search == "cells" else "exact"):
            self._add(f"candidates:{search}", sizes, Used(asked, lists.peak))

    def _affords(self, part: str, sizes: dict[str, float], times: float = 1.0) -> bool:
        """Whether it is asked for and ends in time, by what the sizes before took."""
        if part in self.without:
            return False
        known = [(point.sizes, point.seconds) for point in self.points.get(part, [])]
        if not known:
            return True
        need = times * fit(known, GROWS[part]).at(sizes)
        if need > self.most:
            self.told(f"  {part}: left out, it would take {need:,.0f} s")
        return need <= self.most

    def _beside(self, place: Path, run: str, stages: Sequence[str] = ("data",)) -> Path:
        """Another run that begins with what these stages of the plain one made."""
        for stage in stages:
            shutil.copytree(place / "plain" / stage, place / run / stage)
        return place / run

    def _stage(
        self,
        place: Path,
        run: str,
        stage: str,
        paths: tuple[Path, Path],
        epochs: int = 1,
        *,
        lists: Mapping[str, int] | None = None,
    ) -> Used:
        retriever, recipe = RETRIEVERS[run.partition("-")[0]], place / f"{run}.yaml"
        values = recipe_of(paths, retriever, epochs, lists or self.lists[0])
        recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
        words = ["data", "run"] if stage == "data" else [stage]
        command = [sys.executable, "-m", "diffgr2.cli", *words, str(recipe)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        env |= {"POLARS_MAX_THREADS": "1"}
        found = used([*command, "--runs", str(place / run)], env)
        self.told(f"  {run} {stage}: {found.seconds:.1f} s, {found.peak / 1e9:.2f} GB")
        return found

    def _add(
        self, part: str, sizes: dict[str, float], found: Used, where: Path | None = None
    ) -> None:
        names = INDEX.get(part.partition(":")[0], ()) if where else ()
        kept = sum((where / name).stat().st_size for name in names) if where else 0.0
        self.points.setdefault(part, []).append(
            Point(dict(sizes), found.seconds, found.peak, float(kept))
        )


def recipe_of(
    paths: tuple[Path, Path],
    retriever: dict[str, str],
    epochs: int,
    lists: Mapping[str, int] = LISTS,
) -> dict[str, Any]:
    """What is measured: the defaults of a recipe, on one thread."""
    return {
        "name": "costs",
        "threads": 1,
        "data": {
            "source": "table",
            "interactions": str(paths[0].resolve()),
            "items": str(paths[1].resolve()),
            "columns": {"user": "user", "item": "item", "timestamp": "timestamp"},
        },
        "items": {"min_unique": 0.0},
        "retriever": {**retriever, "epochs": epochs, "patience": epochs, "dim": 64},
        "candidates": dict(lists),
    }


def keys_of() -> dict[str, dict[str, Any]]:
    """The keys of what is measured on which costs depend, beside those that are counted with."""
    plain = recipe_of((Path("a"), Path("b")), {"kind": "sasrec"}, 1)
    recipe = validate(plain, "costs").model_dump(mode="json")
    return {name: {key: recipe[name][key] for key in keys} for name, keys in MATTER.items()}


def at_size(bench: Bench, interactions: int, items: int) -> dict[str, Point]:
    """What one more size took, by part; the bench knows it then, too."""
    known = {part: len(points) for part, points in bench.points.items()}
    with tempfile.TemporaryDirectory(prefix="diffgr2-costs-") as scratch:
        bench.measure(Path(scratch) / "size", interactions, items)
    return {p: found[-1] for p, found in bench.points.items() if len(found) > known.get(p, 0)}


def measured(sizes: Sequence[tuple[int, int]], most: float, told: Callable[[str], object]) -> Table:
    """The table without what bundles served.

    The first size is run twice: who comes first reads from the disk and compiles what it imports.
    """
    told("once uncounted, so that modules lie compiled and in memory")
    at_size(Bench(most, lambda _: None), *sizes[0])
    bench = Bench(most, told)
    for interactions, items in sizes:
        at_size(bench, interactions, items)
    points = {part: tuple(found) for part, found in bench.points.items()}
    return Table(Machine.here(), keys_of(), NAME, points)
