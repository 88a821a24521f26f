"""Why a stage does not stand: which of its inputs outdated it, the root cause before what follows.

Contract: `reasons(runner, states)` compares each stage that was made with what it would be made of
now: keys of the recipe with their old and new values, outside files, inputs that were made anew,
the stage's version; a stage that is outdated by others names those with which it began. Nothing is
run, and no file is read but manifests, and outside files that are as long as before but were
written to. Not here: whether a stage stands (`pipeline.Runner.survey`, whose states are given).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from diffgr2.artifacts import read_manifest
from diffgr2.errors import ArtifactError
from diffgr2.pipeline import STANDS, Runner, Stage, read_part

LONGEST_VALUE = 60  # characters shown of a recipe's value


@dataclass(frozen=True)
class Reason:
    """Why one stage does not stand."""

    own: tuple[str, ...] = ()  # what changed for the stage itself, a line each
    above: tuple[str, ...] = ()  # the stages it depends on with which all began


def reasons(runner: Runner, states: Mapping[str, str]) -> dict[str, Reason]:
    """Of each stage that does not stand, inputs first."""
    found: dict[str, Reason] = {}
    for name, state in states.items():
        if state == STANDS:
            continue
        stage, above = runner.stages[name], dict[str, None]()
        for needed in stage.inputs:
            known = found.get(needed)
            if known is not None:
                above |= dict.fromkeys(known.above or (needed,))
        own: list[str] = []
        if runner.directory(name).is_dir():
            own = changed(runner, stage)
            if not own and not above:
                own = ["made by another version of the stage, or from another version of a file"]
        found[name] = Reason(tuple(own), tuple(above))
    return found


def changed(runner: Runner, stage: Stage) -> list[str]:
    """What differs for a stage from when it was made, but for inputs that do not stand."""
    try:
        made = read_manifest(runner.directory(stage.name))
    except ArtifactError as error:
        return [str(error)]
    old = flat({"seed": made.get("seed"), **made.get("config", {})})
    new = flat({"seed": runner.recipe.seed, **read_part(runner.recipe, stage.sections)})
    lines, read = differences(old, new), made.get("inputs", {})
    for name in stage.inputs:
        if name not in read:
            lines.append(f"{name}: is read now")
        elif runner.checked.get(name, read[name]) != read[name]:
            lines.append(f"{name}: was made anew and differs")
    lines += [f"{name}: is no longer read" for name in read if name not in stage.inputs]
    if made.get("version", stage.version) != stage.version:
        lines.append(f"version of the stage: {made['version']} → {stage.version}")
    for name in stage.packages:
        now, then = find_spec(name) is not None, name in made.get("packages", ())
        if now != then:
            lines.append(f"{name}: is {'installed now' if now else 'no longer installed'}")
    if "outside" in made:
        lines += moved(made["outside"], runner.outside(stage), made.get("contents", {}))
    return lines


def flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested sections by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        deeper = isinstance(value, Mapping) and bool(value)
        found |= flat(value, f"{above}{key}.") if deeper else {f"{above}{key}": value}
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`key: old → new` of every key that differs; a key that either lacks is told from null."""

    def shown(values: Mapping[str, Any], key: str) -> str:
        text = json.dumps(values[key], ensure_ascii=False) if key in values else "no such key"
        return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 1]}…"

    nothing = object()
    keys = [*old, *(key for key in new if key not in old)]
    differ = [key for key in keys if old.get(key, nothing) != new.get(key, nothing)]
    return [f"{key}: {shown(old, key)} → {shown(new, key)}" for key in differ]


def moved(
    old: Mapping[str, list[int]],
    new: Mapping[str, list[int] | None],
    contents: Mapping[str, str],
) -> list[str]:
    """What became of outside files since they were read; `contents` are digests known of then."""
    lines = [f"{path}: is no longer read" for path in old if path not in new]
    for path, state in new.items():
        if path not in old:
            lines.append(f"{path}: is read now")
        elif state is None:
            lines.append(f"{path}: no such file any more")
        elif state[0] != old[path][0]:
            lines.append(f"{path}: {old[path][0]:,} → {state[0]:,} bytes")
        elif state != old[path]:
            content = "another" if path in contents else "unknown (not recorded then)"
            lines.append(f"{path}: was written to, as long as before, its content {content}")
    return lines
