"""Recipes that use earlier names: taken and told, by files, `--set` and a run's own note alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffgr2 import renames
from diffgr2.cli.runs import open_report
from diffgr2.config import Recipe
from diffgr2.errors import ConfigError
from diffgr2.recipe import load_recipe, validate


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def known(key: str) -> bool:
    """Whether a recipe of this version has such a key."""
    node: object = Recipe(name="x").model_dump()
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def test_the_tables_lead_from_what_is_gone_to_what_there_is() -> None:
    for old, new in renames.KEYS.items():
        assert not known(old), old
        assert known(new), new
    assert not any(map(known, renames.GONE))
    for key, words in renames.WORDS.items():
        assert known(key)
        for old, new in words.items():
            section, _, last = key.partition(".")
            validate({"name": "x", section: {last: new}}, "x")
            field = Recipe.model_fields[section].annotation.model_fields[last]  # type: ignore
            assert old not in str(field.annotation)


def test_a_file_with_earlier_names_is_read(tmp_path: Path, capsys) -> None:
    text = "cft: {shuffle: 0.5}\ndecode: {rule: permutation}\ntraces: {llm: {backoff_s: 1.0}}\n"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.distill.shuffle, recipe.decode.rule) == (0.5, "grammar")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [
        "warning: mine.yaml: cft.shuffle is called distill.shuffle now",
        "warning: mine.yaml: decode.rule: permutation is called decode.rule: grammar now",
    ]
    assert lines[2].startswith("warning: mine.yaml: traces.llm.backoff_s is no longer read (")
    assert len(lines) == 3


def test_set_takes_earlier_names(capsys) -> None:
    sets = ["cft.shuffle=0.25", "opd.rule=permutation", "traces.llm.max_wait_s=5", "seed=3"]
    recipe = load_recipe("micro", sets)
    assert (recipe.distill.shuffle, recipe.opd.rule, recipe.seed) == (0.25, "grammar", 3)
    told = capsys.readouterr().err
    assert "--set: cft.shuffle is called distill.shuffle now" in told
    assert "--set: opd.rule=permutation is called opd.rule=grammar now" in told
    assert told.count("\n") == 3


def test_an_earlier_name_wins_over_what_a_recipe_starts_from(tmp_path: Path) -> None:
    written(tmp_path, "distill: {shuffle: 0.9}\n", "base.yaml")
    over = written(tmp_path, "from: base.yaml\ncft: {shuffle: 0.5}\n")
    assert load_recipe(over).distill.shuffle == 0.5
    assert load_recipe(over, ["cft.shuffle=0.1"]).distill.shuffle == 0.1
    assert load_recipe(over, ["distill.shuffle=0.2"]).distill.shuffle == 0.2


def test_both_names_at_once_are_an_error(tmp_path: Path) -> None:
    told = r"cft\.shuffle: is called distill\.shuffle now, and both are given"
    with pytest.raises(ConfigError, match=rf"^mine\.yaml: {told}"):
        load_recipe(written(tmp_path, "cft: {shuffle: 0.5}\ndistill: {shuffle: 0.5}\n"))
    with pytest.raises(ConfigError, match=rf"^--set: {told}"):
        load_recipe("micro", ["distill.shuffle=0.1", "cft.shuffle=0.1"])
    with pytest.raises(ConfigError, match=told):
        load_recipe("micro", ["cft={shuffle: 0.1}"])  # micro says the new name


def test_a_value_is_judged_under_the_name_it_has_now(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.yaml: distill\.shuffle: "):
        load_recipe(written(tmp_path, "cft: {shuffle: 7.0}\n"))


def test_a_run_of_an_earlier_version_is_understood(tmp_path: Path, capsys) -> None:
    values = Recipe(name="old").model_dump(mode="json")
    values["decode"]["rule"] = "permutation"
    note = {"recipe": values, "named": "old", "overrides": []}
    (tmp_path / "run.json").write_text(json.dumps(note))
    assert open_report(str(tmp_path), None, None).recipe.decode.rule == "grammar"
    assert "run.json: decode.rule: permutation is called" in capsys.readouterr().err


def test_what_is_given_stays_as_it_is() -> None:
    values = {"cft": {"shuffle": 0.5}, "decode": {"rule": "raw"}}
    assert renames.modern(values, "x") == {
        "cft": {},
        "distill": {"shuffle": 0.5},
        "decode": {"rule": "raw"},
    }
    assert values == {"cft": {"shuffle": 0.5}, "decode": {"rule": "raw"}}
