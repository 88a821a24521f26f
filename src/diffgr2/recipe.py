"""Reading a recipe: YAML plus `--set a.b=c`.

Contract: `load_recipe(name_or_path, overrides)` returns a validated `Recipe` or raises a
ConfigError whose single line names the file, the key and what was expected; duplicate keys are
refused too. Not here: what a recipe holds (`config`).
"""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from diffgr2.config import Recipe
from diffgr2.errors import ConfigError, first_problem

RECIPES = Path(__file__).parent / "recipes"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} is not text")
        if key in result:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key {key!r} stands twice")
        result[key] = loader.construct_object(value_node, deep=True)
    return result


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A YAML mapping; every failure is one ConfigError line that starts with `source`."""
    try:
        value = yaml.load(text, Loader=_StrictLoader)  # a SafeLoader subclass
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or type(error).__name__
        raise ConfigError(f"{source}:{where} not valid YAML ({problem})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: expected a mapping of sections")
    return value


def apply_override(values: dict[str, Any], override: str) -> None:
    """Apply one `a.b=c` in place; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected key.key=value")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ConfigError, ValueError, RecursionError):
        raise ConfigError(f"--set {override}: value is not valid YAML") from None
    node = values
    for key in keys[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {key} is not a section")
    node[keys[-1]] = value


def validate(values: dict[str, Any], source: str) -> Recipe:
    """Build the recipe; the first problem becomes one line that names its key."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        where, message, kind = first_problem(error)
        if kind == "extra_forbidden":
            message = "unknown key"
        elif kind != "value_error":
            given = repr(error.errors()[0]["input"])
            message = f"{message} (got {given if len(given) <= 80 else given[:77] + '...'})"
        key, more = ".".join(map(str, where)), error.error_count() - 1
        tail = f" (and {more} more)" if more else ""
        raise ConfigError(f"{source}: {key}: {message}{tail}".replace(": :", ":")) from None


def find_recipe(name: str) -> Path:
    """A file as given, or a recipe that ships with the package by its name."""
    if os.path.isfile(name):
        return Path(name)
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{name[:80]}: no such recipe file")
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in shipped:
        raise ConfigError(f"{name[:80]}: no such recipe (shipped: {', '.join(shipped)})")
    return shipped[name]


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read, override, validate."""
    path = find_recipe(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read ({error})") from None
    values = parse_yaml(text, path.name)
    values.setdefault("name", path.stem)
    for override in overrides or []:
        apply_override(values, override)
    return validate(values, path.name)
