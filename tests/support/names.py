"""Names that others build on: how they are collected, and the lists that hold them.

`DIFFGR2_NAMES=grow pytest tests/contract/test_names.py` adds names that are new to the lists; no
command takes any away.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import diffgr2
from diffgr2 import errors
from diffgr2.config import Recipe

LISTS = Path(__file__).parents[1] / "golden" / "names"


def gone(which: str, there: Iterable[str]) -> list[str]:
    """Names of a list that are no longer there, and calls that need more than they did."""
    path, now = LISTS / f"{which}.txt", {*there}
    promised = {*path.read_text(encoding="utf-8").splitlines()} if path.exists() else set[str]()
    needed = dict(map(_needs, (name for name in now if NEEDS in name)))
    lost = []
    for name in sorted(promised - now):
        call, most = _needs(name)
        if NEEDS not in name or call not in needed or not needed[call] <= most:
            lost.append(name)
    if os.environ.get("DIFFGR2_NAMES") == "grow":
        kept = {name for name in promised if NEEDS not in name or _needs(name)[0] not in needed}
        path.write_text("".join(f"{name}\n" for name in sorted(kept | now)), encoding="utf-8")
    return lost


NEEDS = ": needs "


def _needs(name: str) -> tuple[str, frozenset[str]]:
    """A call, and what it cannot do without."""
    call, _, words = name.partition(NEEDS)
    return call, frozenset(words.split(", ")) - {"nothing"}


def fields_of(value: Any, at: str = "") -> Iterator[str]:
    """Where values stand in a JSON document; entries of a list are alike."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields_of(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from fields_of(inner, f"{at}[]")
    else:
        yield at.removesuffix("[]")


def recipe_keys(model: type[BaseModel] = Recipe, above: str = "") -> Iterator[str]:
    """Every key of a recipe, dotted."""
    for key, field in model.model_fields.items():
        inner = field.annotation
        kinds = [inner, *getattr(inner, "__args__", ())]
        sections = [
            kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not sections:
            yield f"{above}{key}"
        for section in sections:
            yield from recipe_keys(section, f"{above}{key}.")


def python_names() -> Iterator[str]:
    """What `diffgr2` exports: functions and methods with their parameters, fields; exit codes."""
    for name in diffgr2.__all__:
        thing = getattr(diffgr2, name)
        yield name
        if dataclasses.is_dataclass(thing):
            yield from (f"{name}.{field.name}" for field in dataclasses.fields(thing))
        if not isinstance(thing, type):
            continue
        for key, member in vars(thing).items():
            if key.startswith("_"):
                continue
            call = member.__func__ if isinstance(member, classmethod) else member
            if not inspect.isfunction(call):
                continue
            given = [*inspect.signature(call).parameters.values()][1:]  # behind self or cls
            yield from (f"{name}.{key}({one.name})" for one in given)
            needed = [one.name for one in given if one.default is one.empty]
            yield f"{name}.{key}{NEEDS}{', '.join(needed) or 'nothing'}"
    for name, kind in vars(errors).items():
        if isinstance(kind, type) and issubclass(kind, errors.Diffgr2Error):
            yield f"{name}: exit code {kind.exit_code}"


def verbs(app: typer.Typer) -> Iterator[str]:
    """Every verb, and its arguments and options."""

    def walk(command: Any, path: str) -> Iterator[str]:
        for parameter in command.params:
            options = [*parameter.opts, *parameter.secondary_opts]
            argument = parameter.param_type_name == "argument"
            for option in [parameter.name.upper()] if argument else options:
                yield f"{path} {option}".strip()
        needed = sorted(str(one.name) for one in command.params if one.required)
        yield f"{path}{NEEDS}{', '.join(needed) or 'nothing'}"
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, f"{path} {name}".strip())

    yield from walk(typer.main.get_command(app), "")


def http_names(client: Any, requests: dict[str, tuple[str, Any]]) -> Iterator[str]:
    """Paths and fields of requests that the server describes, and fields that it answers with."""
    described = client.get("/openapi.json").json()
    for path, methods in described["paths"].items():
        yield from (f"{method.upper()} {path}" for method in methods)
    for model, schema in described["components"]["schemas"].items():
        for field in schema.get("properties", {}):
            yield f"{model}.{field}"
            if field not in schema.get("required", ()):
                yield f"{model}.{field}: may be left out"
    for name, (path, body) in requests.items():
        answer = client.get(path) if body is None else client.post(path, json=body)
        lines = answer.text.splitlines() if "ndjson" in answer.headers["content-type"] else []
        read = [json.loads(line) for line in lines] or [answer.json()]
        for value in read:
            yield from (f"{name} -> {field}" for field in fields_of(value))
