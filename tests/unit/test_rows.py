"""Which rows a recipe has, what they depend on, and what a goal builds of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from diffgr2.cli.runs import goals_of
from diffgr2.config import Recipe
from diffgr2.errors import ConfigError
from diffgr2.pipeline import Runner
from diffgr2.prompts.template import TEMPLATES
from diffgr2.recipe import validate
from diffgr2.stages.plan import STAGES, stages_of
from diffgr2.stages.rows import ROWS, SAYING, rows_of_recipe
from diffgr2.stages.standing import Standing


def recipe(**prompt: str) -> Recipe:
    return validate({"name": "test", "prompt": prompt}, "test")


def read_of(name: str, made: Recipe) -> set[str]:
    """The keys of `decode` that a row depends on."""
    sections = stages_of(made)[f"score_{name}"].sections
    return {key.removeprefix("decode.") for key in sections if key.startswith("decode")}


def test_the_templates_that_state_strengths_are_known():
    assert {name for name, made in TEMPLATES.items() if "said" in made.answers} == {*SAYING}


def test_rows_have_names_of_their_own_and_endings_that_say_how_they_are_read():
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        ending = row.name.endswith(("_written", "_raw"))
        assert row.answer == ("written" if ending else "said"), row.name
        assert row.name.endswith("_raw") == (row.how in ("raw", "ar_raw")), row.name
        assert row.reasoning != ("direct" in row.name), row.name


def test_a_recipe_with_both_answers_has_every_row():
    assert rows_of_recipe(recipe(answer="written")) == ROWS
    assert stages_of(recipe(answer="written")).keys() | {"tutor"} == STAGES.keys()


def test_a_recipe_that_only_says_has_no_written_row():
    names = {row.name for row in rows_of_recipe(recipe(answer="said"))}
    assert {"ar", "ar_direct", "block_direct", "naive", "cft_opd_rl", "verify"} <= names
    assert not any(name.endswith(("_written", "_raw")) for name in names)


def test_without_strengths_the_plain_names_are_the_written_rows():
    rows = {row.name: row for row in rows_of_recipe(recipe(template="gr2"))}
    assert {row.answer for row in rows.values()} == {"written"}
    assert {"ar", "ar_raw", "cft_raw", "block_direct"} <= rows.keys()
    assert not any(name.endswith("_written") for name in rows)


def test_a_goal_leaves_out_what_the_recipe_has_not_and_a_stage_is_refused():
    said = recipe(answer="said")
    goals = goals_of("ladder", said)
    assert "score_ar" in goals
    assert "score_ar_written" not in goals
    assert goals_of("score-ar", said) == ["score_ar"]
    with pytest.raises(ConfigError, match="--goal score_ar_written: expected"):
        goals_of("score_ar_written", said)


def test_the_story_needs_no_row_of_an_ablation():
    stages = stages_of(recipe(answer="written"))
    needed = Runner(recipe(answer="written"), Path(), stages).order(goals_of("story", recipe()))
    scored = [name for name in needed if name.startswith("score_")]
    assert scored == ["score_ar", "score_cft_opd_rl", "score_verify"]
    assert needed[-1] == "bundle"
    assert not {"direct_rl", "cft_rl", "speed", "probes"} & set(needed)


def test_rows_depend_on_the_decode_keys_that_they_read():
    both, chat = recipe(answer="written"), recipe(template="gr2")
    assert read_of("ar", both) == {"temperature", "max_tokens", "rule"}
    assert read_of("ar_written", both) == read_of("ar", both) | {"repair"}
    assert read_of("ar_raw", both) == {"temperature", "max_tokens"}
    assert read_of("cft_raw", both) == {"temperature", "max_tokens", "clean_kv"}
    assert "threshold" in read_of("block_direct", both)
    assert not {"answer", "views", "repair"} & read_of("cft", both)
    assert read_of("ar", chat) == read_of("ar_written", both)


def test_the_policy_for_broken_answers_is_the_papers_in_raw_rows():
    policies = {row.name: row.policy("repair") for row in ROWS}
    assert policies["ar_written"] == policies["cft_written"] == "repair"
    assert policies["ar_raw"] == policies["cft_raw"] == "floor"


def test_only_the_recipes_own_rows_are_read_from_a_run(monkeypatch, tmp_path):
    made = {}
    loaded = SimpleNamespace(n_tokens_L=None, name="x")
    monkeypatch.setattr(
        "diffgr2.stages.standing.load_outputs", lambda _, name: made.setdefault(name, loaded)
    )
    monkeypatch.setattr("diffgr2.stages.standing.replace", lambda outputs, **_: outputs)
    stages = frozenset({"score_ar", "score_ar_written"})
    assert len(Standing(recipe(answer="said"), tmp_path, stages).systems) == 1
    assert {*made} == {"ar"}
