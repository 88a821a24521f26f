"""Reading a recipe: YAML, the recipe that it starts `from`, plus `--set a.b=c`.

    from: beauty                       # a shipped recipe, or a file beside this one
    data: {interactions: logs.parquet, columns: {user: customer, item: sku}}

Contract: `load_recipe(name_or_path, overrides)` returns a validated `Recipe` or raises a
ConfigError whose single line names the file that said it, the key and what was expected; duplicate
keys are refused too, earlier names of keys are taken and told (`renames`). A recipe takes over all
that the one behind `from` says but its name: sections merge key by key, lists and single values
replace. Columns belong to files: who names files and how to read them takes over nothing of what
was said of others. Paths in a recipe start from its folder, those of shipped recipes and of `--set`
from the working directory. Not here: what a recipe holds (`config`).
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from diffgr2.config import Recipe
from diffgr2.errors import ConfigError, first_problem, nearest
from diffgr2.renames import modern, modern_sets

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


def apply_override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Apply one `a.b=c` in place and return where; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = tuple(path.strip().split("."))
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
    return keys


def validate(
    values: dict[str, Any], source: str, origins: Mapping[tuple[str, ...], str] | None = None
) -> Recipe:
    """Build the recipe; the first problem becomes one line that names its key and who said it."""
    try:
        # Files came by this version's names; a section that `--set` gave whole, and notes, did not.
        return Recipe.model_validate(modern(values, source))
    except ValidationError as error:
        where, message, kind = first_problem(error)
        if kind == "extra_forbidden":
            message = "unknown key" + nearest(str(where[-1]), _keys_beside(where))
        elif kind != "value_error":
            given = repr(error.errors()[0]["input"])
            message = f"{message} (got {given if len(given) <= 80 else given[:77] + '...'})"
        said_by = _said_by(tuple(map(str, where)), origins or {}, source)
        key, more = ".".join(map(str, where)), error.error_count() - 1
        tail = f" (and {more} more)" if more else ""
        raise ConfigError(f"{said_by}: {key}: {message}{tail}".replace(": :", ":")) from None


def _keys_beside(where: Sequence[int | str]) -> Iterable[str]:
    """The keys that the section of this one has; names of a shop's own lead to a section, too."""
    section: type[BaseModel] = Recipe
    for part in where[:-1]:
        if part in section.model_fields:
            kinds = [section.model_fields[str(part)].annotation]
            for kind in kinds:  # grows: list[str] | None, dict[str, Feature]
                kinds += get_args(kind)
            section = next(
                (kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)),
                section,
            )
    return section.model_fields


def find_recipe(name: str, folder: Path | None = None) -> Path:
    """A file as given, from this folder on, or a recipe that ships with the package, by name."""
    path = Path(name) if folder is None else folder / name
    if os.path.isfile(path):
        return path
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{name[:80]}: no such recipe file")
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name not in shipped:
        told = f"{name[:80]}: no such recipe (shipped: {', '.join(shipped)})"
        raise ConfigError(told + nearest(name, shipped))
    return shipped[name]


# ----------------------------------------------------------------------------- one from another

PATHS = (("data", "interactions"), ("data", "items"), ("lists", "file"), ("model", "base"))
"""Keys that name files."""

FILES = {
    "data": ("interactions", {"source", "columns", "item_columns"}),
    "lists": ("file", {"columns", "gains", "features"}),
}
"""Sections that name a file, and keys that say how it is read: said together they stand alone."""

Origins = dict[tuple[str, ...], str]  # where a key stands -> the file that said it


@dataclass
class _Layers:
    """What recipes say one over another, and which of them said what."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: Origins = field(default_factory=dict)

    def lay(self, over: dict[str, Any], source: str) -> None:
        self._merge(self.values, over, (), source)

    def _merge(
        self, base: dict[str, Any], over: dict[str, Any], above: tuple[str, ...], source: str
    ) -> None:
        for key, value in over.items():
            here, old = (*above, key), base.get(key)
            if isinstance(value, dict) and isinstance(old, dict) and not _alone(here, value):
                self._merge(old, value, here, source)
                continue
            base[key] = deepcopy(value)  # an alias in YAML is one object in two places
            self.say(here, source)

    def say(self, here: tuple[str, ...], source: str) -> None:
        """Note who said what stands here."""
        for place in [place for place in self.origins if place[: len(here)] == here]:
            del self.origins[place]
        self.origins[here] = source


def _alone(here: tuple[str, ...], value: dict[str, Any]) -> bool:
    """Whether a section speaks of files of its own and how to read them."""
    file, how = FILES.get(here[0], ("", set()))
    return len(here) == 1 and file in value and bool(how & value.keys())


def _said_by(where: tuple[str, ...], origins: Mapping[tuple[str, ...], str], source: str) -> str:
    """Who said this key or, if nobody, what holds it; where several did, the recipe itself."""
    parts = {said_by for place, said_by in origins.items() if place[: len(where)] == where}
    if not parts:
        above = [where[:n] for n in range(len(where), 0, -1) if where[:n] in origins]
        return origins[above[0]] if above else source
    return parts.pop() if len(parts) == 1 else source


def _from_folder(values: dict[str, Any], folder: Path) -> None:
    """Let the paths of a recipe in this folder start from the working directory, in place."""
    for section, key in PATHS:
        part = values.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str) and part[key]:
            part[key] = os.path.normpath(folder / part[key])
    if isinstance(values.get("start"), str) and values["start"]:
        values["start"] = os.path.normpath(folder / values["start"])
    items = values.get("items")
    if isinstance(items, dict) and isinstance(items.get("vectors"), str):
        kind, colon, name = items["vectors"].partition(":")
        if name.startswith("."):  # a path by its looks; a name that a hub knows has no dot there
            items["vectors"] = kind + colon + os.path.normpath(folder / name)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: cannot be read ({error})") from None
    values = modern(parse_yaml(text, path.name), path.name)
    if path.parent != RECIPES:
        _from_folder(values, path.parent)
    return values


def _chain(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(file name, what it says) of a recipe and of those behind it, the farthest first."""
    found: list[tuple[str, dict[str, Any]]] = []
    seen: set[Path] = set()
    while True:
        seen.add(path.resolve())
        values = _read(path)
        base = values.pop("from", None)
        found.insert(0, (path.name, values))
        if base is None:
            return found
        if not isinstance(base, str) or not base:
            raise ConfigError(f"{path.name}: from: expected a recipe's name or file (got {base!r})")
        try:
            behind = find_recipe(base, path.parent)
        except ConfigError as error:
            raise ConfigError(f"{path.name}: from: {error}") from None
        if behind.resolve() in seen:
            raise ConfigError(f"{path.name}: from: {base} starts from this recipe itself")
        path = behind


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read, lay over what it starts from, override, validate."""
    path = find_recipe(name)
    layers = _Layers()
    for source, values in _chain(path):
        layers.values.pop("name", None)  # a run's directory is its own recipe's
        layers.lay(values, source)
    layers.values.setdefault("name", path.stem)
    for override in modern_sets(overrides or []):
        layers.say(apply_override(layers.values, override), "--set")
    return validate(layers.values, path.name, layers.origins)
