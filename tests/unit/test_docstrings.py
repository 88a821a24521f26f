"""The examples in docstrings run, and there are enough of them."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SRC = Path(__file__).parents[2] / "src"


def with_examples() -> list[str]:
    """Modules whose source shows an example."""
    return [
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((SRC / "diffgr2").rglob("*.py"))
        if ">>> " in path.read_text(encoding="utf-8")
    ]


def failures(module: ModuleType) -> tuple[list[str], int]:
    """(what went wrong, how many examples ran) of a module's docstrings."""
    finder, said = doctest.DocTestFinder(), []
    runner = doctest.DocTestRunner(verbose=False)
    # Examples may use numpy by its usual name, imported by their module or not.
    names = {"np": np, **vars(module)}
    for test in finder.find(module, globs=names):
        runner.run(test, out=said.append)
    return said, runner.tries


@pytest.mark.parametrize("name", with_examples())
def test_every_example_is_true(name: str) -> None:
    said, tried = failures(importlib.import_module(name))
    assert tried, "the example is in no docstring"
    assert not said, "".join(said)


def test_fourteen_modules_or_more_show_an_example() -> None:
    assert len(with_examples()) >= 14


def test_a_wrong_example_is_noticed() -> None:
    wrong = ModuleType("wrong", "A promise.\n\n>>> 1 + 1\n3\n")
    said, tried = failures(wrong)
    assert tried == 1
    assert "Got:\n    2" in "".join(said)
