"""docs/paper_map.md: every name in it leads to code, every entry to a test that is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffgr2.config import Recipe
from diffgr2.recipe import load_recipe, validate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")


def table(page: str) -> list[dict[str, str]]:
    """The page's table, one mapping of heading to cell per line."""
    lines = [line for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(line) for line in cells} == {len(cells[0])}
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def resolve(name: str) -> Any:
    """The module, class, function or method below `diffgr2` that a dotted name says."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(["diffgr2", *parts[:length]])
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(name)


def is_recipe_key(name: str) -> bool:
    """Whether `section.key`, perhaps with `: value`, is what a recipe may say."""
    key, _, value = name.partition(": ")
    section, _, last = key.partition(".")
    if section not in Recipe.model_fields:
        return False
    config = getattr(validate({"name": "toy"}, "toy"), section)
    if value:
        validate({"name": "toy", section: {last: yaml.safe_load(value)}}, "toy")
    return last in type(config).model_fields


def has_test(name: str) -> bool:
    """Whether `file::test` or `file::Class` below tests/ is there."""
    file, _, test = name.partition("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return False
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    named = [node for node in nodes if getattr(node, "name", "") == test]
    return len(named) == 1 and test.lower().startswith("test")


ENTRIES = table(PAGE)


def test_the_table_is_read() -> None:
    assert len(ENTRIES) >= 16
    assert list(ENTRIES[0]) == ["paper", "here", "choice", "held by"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["paper"])
def test_an_entry_leads_to_code_and_to_a_test(entry: dict[str, str]) -> None:
    names = quoted(entry["here"])
    assert names
    for name in names:
        assert is_recipe_key(name) or resolve(name) is not None
    tests = quoted(entry["held by"])
    assert tests
    assert [name for name in tests if not has_test(name)] == []


def test_what_the_text_below_the_table_names_is_there_too() -> None:
    below = PAGE.split("|\n\n", 1)[1]
    names = [name for name in quoted(below) if "." in name and not name.endswith(".json")]
    assert len(names) >= 3
    for name in names:
        assert is_recipe_key(name) or resolve(name) is not None


def recipes_values(key: str) -> list[Any]:
    """What the schema and the shipped recipes say of `section.key`."""
    section, _, last = key.partition(".")
    made = [validate({"name": "toy"}, "toy"), *(load_recipe(name) for name in ("demo", "beauty"))]
    return [getattr(getattr(recipe, section), last) for recipe in made]


DEVIATIONS = re.findall(
    r"^- \*\*(.+?)\.\*\*(.+?)(?=^- |^## )", PAGE, flags=re.MULTILINE | re.DOTALL
)


def test_every_deviation_is_listed() -> None:
    heads = {head for head, _ in DEVIATIONS}
    asked = {"SFT weights", "CFT", "OPD", "RL", "Ties", "Repair", "Template", "Threshold"}
    assert asked <= heads


@pytest.mark.parametrize(("head", "text"), DEVIATIONS, ids=[head for head, _ in DEVIATIONS])
def test_a_deviation_names_what_is_shipped(head: str, text: str) -> None:
    names = quoted(" ".join(text.split()))
    assert names, head
    for name in names:
        key, found, value = name.partition(": ")
        if found:
            assert yaml.safe_load(value) in recipes_values(key), name


def test_a_wrong_name_is_noticed() -> None:
    assert resolve("decode.accept.threshold") is not None
    for wrong in ("decode.accept.nothing", "decode.nothing.threshold", "nothing"):
        with pytest.raises((AttributeError, ModuleNotFoundError)):
            resolve(wrong)
    assert is_recipe_key("decode.clean_kv")
    assert not is_recipe_key("decode.nothing")
    assert not is_recipe_key("decode.accept.threshold")
    with pytest.raises(ValueError, match=r"opd\.teacher"):
        is_recipe_key("opd.teacher: nobody")
    assert not has_test("unit/test_paper_map.py::test_nothing")
    assert not has_test("unit/test_nothing.py::test_a")
    assert has_test("contract/test_decoders.py::TestAr")
