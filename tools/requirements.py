"""What pyproject.toml asks for, as requirement lines for any pip.

    python tools/requirements.py group dev           # dependency groups, their includes followed
    python tools/requirements.py lowest train serve  # lower bounds of the core and these extras

Contract: prints one requirement per line, in the file's order; a name that the file lacks is one
line on stderr and exit code 2. `lowest` makes each bound a pin, torch's the one of constraints.txt:
no other release of it is tested. Standard library only, so that it runs before anything is
installed. Not here: solving (pip), the lock files (`make lock`).
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BOUND = re.compile(r"([\w.-]+)(?:\[[^]]*\])?>=([\w.]+)")
OWN = re.compile(r"diffgr2\[([\w,]+)\]")


def of_groups(groups: dict[str, list[Any]], names: list[str]) -> list[str]:
    """The requirements of these groups; what one includes stands in its place."""
    lines: list[str] = []
    for entry in [entry for name in names for entry in groups[name]]:
        within = isinstance(entry, dict)
        lines += of_groups(groups, [entry["include-group"]]) if within else [entry]
    return lines


def of_extras(project: dict[str, Any], names: list[str]) -> list[str]:
    """The core's requirements and these extras', extras within extras followed, each once."""
    lines, todo = list(project["dependencies"]), list(names)
    for name in todo:
        for line in project["optional-dependencies"][name]:
            own = OWN.fullmatch(line)
            todo += [more for more in own[1].split(",") if more not in todo] if own else []
            lines += [] if own or line in lines else [line]
    return lines


def lowest(lines: list[str], torch: str) -> list[str]:
    """Each lower bound as a pin."""
    pins = []
    for line in lines:
        bound = BOUND.fullmatch(line)
        if bound is None:
            raise ValueError(f"pyproject.toml: {line!r} is not NAME>=VERSION")
        pins.append(torch if bound[1] == "torch" else f"{bound[1]}=={bound[2]}")
    return pins


def wanted(verb: str, names: list[str]) -> list[str]:
    """The lines that the command line asks for."""
    held = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if verb == "group":
        return of_groups(held["dependency-groups"], names)
    if verb != "lowest":
        raise ValueError(f"{verb!r} is neither group nor lowest")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    return lowest(of_extras(held["project"], names), torch)


def main(arguments: list[str]) -> int:
    try:
        print("\n".join(wanted(arguments[0] if arguments else "", arguments[1:])))
    except KeyError as error:
        print(f"error: pyproject.toml has no extra or group {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
