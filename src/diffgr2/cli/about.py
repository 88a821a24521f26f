"""`diffgr2 recipes` and `doctor`: what ships with the package, and what it finds on this machine.

Contract: `recipes` prints one line per shipped recipe; with a name the commented file, or with
`--resolved` every key with the value a run would use. `doctor` prints one line per fact, ends with
what to do about what is missing; the exit code is 1 if a required package is missing or too old,
else 0. Nothing is installed or downloaded. Not here: the schema (`config`), checks of a run
(`status`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffgr2 import __version__
from diffgr2.cli.verbs import Overrides
from diffgr2.errors import ConfigError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EXTRA = re.compile(r"extra == \"([^\"]+)\"")


def recipes(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Show this one.")] = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All keys, defaults included, without comments.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """List the shipped recipes, or show one."""
    import yaml

    from diffgr2.recipe import RECIPES, find_recipe, load_recipe

    if recipe is None:
        for path in sorted(RECIPES.glob("*.yaml")):
            title, _, _ = path.read_text(encoding="utf-8").partition("\n")
            typer.echo(f"{path.stem:12} {title.removeprefix('#').strip()}")
        typer.echo("diffgr2 recipes NAME shows one; copy it to a file of yours to change it")
        return
    checked = load_recipe(recipe, overrides)
    if resolved or overrides:
        values = checked.model_dump(mode="json")
        typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
    else:
        typer.echo(find_recipe(recipe).read_text(encoding="utf-8").rstrip())


def wanted() -> list[tuple[str, Requirement]]:
    """(extra, "" = required; what it needs) of the installed distribution."""
    from packaging.requirements import Requirement

    needs = [Requirement(text) for text in requires("diffgr2") or []]
    own = [need for need in needs if need.name != "diffgr2"]
    return [("".join(EXTRA.findall(str(need.marker))), need) for need in own]


def state_of(need: Requirement) -> tuple[str, bool]:
    """(what to print, whether it will do)."""
    try:
        found = version(need.name)
    except PackageNotFoundError:
        return "missing", False
    good = need.specifier.contains(found, prereleases=True)
    return found if good else f"{found}, will not do (needs {need.specifier})", good


def device_lines() -> list[str]:
    """What models run on, and what torch would compute on."""
    from diffgr2.model.backends import described

    try:
        run_by = f"models run by: {described()}"
    except ConfigError as error:
        run_by = f"models run by: {error}"
    try:
        import torch
    except ImportError:
        return [run_by]
    threads = f"torch threads: {torch.get_num_threads()} of {os.cpu_count()} cores"
    cards = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    devices = [f"device: {card.name}, {card.total_memory / 2**30:.0f} GiB" for card in cards]
    return [run_by, threads, *(devices or ["device: CPU (no CUDA device is visible)"])]


def doctor() -> None:
    """Versions, device, what is missing."""
    typer.echo(f"diffgr2 {__version__}, Python {platform.python_version()}, {sys.platform}")
    try:
        needs = wanted()
    except PackageNotFoundError:
        typer.echo("diffgr2: not installed as a package (pip install -e .), packages not checked")
        needs = []
    broken, optional = [], []
    for extra, need in needs:
        text, good = state_of(need)
        if not extra:
            typer.echo(f"{need.name}: {text}")
            broken += [] if good else [need.name]
        elif not good:
            optional.append(f"optional {need.name}: {text} (pip install 'diffgr2[{extra}]')")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    disk = f"memory: {memory:.0f} GiB, free disk here: {free:.0f} GiB"
    typer.echo("\n".join([*device_lines(), disk, *optional]))
    if broken:
        typer.echo(f"to mend: {', '.join(broken)} (pip install -e . -c constraints.txt)")
        raise typer.Exit(1)
    if needs:
        typer.echo("all required packages are here")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("recipes", rich_help_panel="Runs")(recipes)
    app.command("doctor", rich_help_panel="Runs")(doctor)
