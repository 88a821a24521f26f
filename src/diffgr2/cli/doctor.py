"""`diffgr2 doctor`: versions, device, what is missing.

Contract: prints one line per fact, ends with what to do about what is missing; the exit code is 1
if a required package is missing or too old, else 0. Nothing is installed or downloaded. Not here:
checks of a run (`status`).
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import typer

from diffgr2 import __version__

NAME = re.compile(r"^([A-Za-z0-9_.-]+)(\[[^\]]*\])?\s*([^;]*)(?:;(.*))?$")
EXTRA = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]")
LEAST = re.compile(r">=\s*([0-9][0-9.]*)")


def wanted() -> dict[str, list[tuple[str, str]]]:
    """Extra ("" = required) -> (package, least version) of the installed distribution."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for text in requires("diffgr2") or []:
        match = NAME.match(text)
        if match is None or match.group(1) == "diffgr2":
            continue
        extra = EXTRA.search(match.group(4) or "")
        least = LEAST.search(match.group(3))
        groups.setdefault(extra.group(1) if extra else "", []).append(
            (match.group(1), least.group(1) if least else "")
        )
    return groups


def numbers(text: str) -> tuple[int, ...]:
    """A version's leading numbers, for comparison.

    >>> numbers("2.13.0+cpu") < numbers("2.9")
    False
    """
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])


def state_of(package: str, least: str) -> tuple[str, bool]:
    """(what to print, whether it will do)."""
    try:
        found = version(package)
    except PackageNotFoundError:
        return "missing", False
    if least and numbers(found) < numbers(least):
        return f"{found}, too old (needs {least})", False
    return found, True


def device_lines() -> list[str]:
    """What torch would compute on."""
    try:
        import torch
    except ImportError:
        return []
    lines = [f"torch threads: {torch.get_num_threads()} of {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            lines.append(f"device: {about.name}, {about.total_memory / 2**30:.0f} GiB")
    else:
        lines.append("device: CPU (no CUDA device is visible)")
    return lines


def memory_line() -> str:
    """Memory and free disk."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    return f"memory: {pages:.0f} GiB, free disk here: {free:.0f} GiB"


def doctor() -> None:
    """Versions, device, what is missing."""
    typer.echo(f"diffgr2 {__version__}, Python {platform.python_version()}, {sys.platform}")
    try:
        groups = wanted()
    except PackageNotFoundError:
        typer.echo("diffgr2: not installed as a package (pip install -e .), packages not checked")
        groups = {}
    broken, extras = [], []
    for extra, packages in groups.items():
        for package, least in packages:
            text, good = state_of(package, least)
            if not extra:
                typer.echo(f"{package}: {text}")
                if not good:
                    broken.append(package)
            elif not good and extra != "dev":
                extras.append((package, text, extra))
    for line in [*device_lines(), memory_line()]:
        typer.echo(line)
    for package, text, extra in extras:
        typer.echo(f"optional {package}: {text} (pip install 'diffgr2[{extra}]')")
    if broken:
        typer.echo(f"to mend: {', '.join(broken)} (pip install -e . -c constraints.txt)")
        raise typer.Exit(1)
    if groups:
        typer.echo("all required packages are here")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("doctor", rich_help_panel="Runs")(doctor)
