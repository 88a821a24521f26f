"""Steps that a recipe leaves open: how many, what is said, and what time is expected."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.config import CftConfig, Recipe, SftConfig
from diffgr2.progress import Progress
from diffgr2.recipe import load_recipe
from diffgr2.stages.effort import GROWING, OPEN, Size, chosen, minutes, steps_of, told, work_of

DEMO = Size(users=4_000, items=2_000, interactions=36_000)
BEAUTY = Size(users=22_363, items=12_101, interactions=198_502)
COUNTS = st.integers(0, 10**9)


@given(COUNTS, COUNTS, st.integers(1, 10**6))
def test_more_to_learn_from_never_means_fewer_steps(few: int, more: int, words: int) -> None:
    few, more = sorted((few, more))
    for stage, (_, _, least, most) in GROWING.items():
        low, high = steps_of(stage, few, words), steps_of(stage, more, words)
        assert least <= low <= high <= most
        assert steps_of(stage, few, words, "adamw") > low
    assert steps_of("midtrain", few, words) <= steps_of("midtrain", few, words + more)


def test_steps_stand_near_what_was_measured() -> None:
    assert 700 <= steps_of("sft", 12_000, 1_100) <= 1_000
    assert 900 <= steps_of("sft", BEAUTY.training_lists(load_recipe("beauty")), 3_000) <= 1_500
    assert steps_of("cft", 2_500, 1_100) == 400
    assert (steps_of("rl", 0, 1), steps_of("opd", 0, 1), steps_of("block_rl", 0, 1)) == (10, 20, 10)


def test_what_is_chosen_is_said_and_what_is_given_stands() -> None:
    said = io.StringIO()
    config = chosen(SftConfig(), "sft", 3_000, 1_100, Progress(said))
    assert f"sft: {config.fixed} steps (from 3,000 lists; sft.steps" in said.getvalue()
    assert config == SftConfig(steps=config.fixed)
    for fixed in (SftConfig(steps=5), SftConfig(steps=0)):
        assert chosen(fixed, "sft", 3_000, 1_100, Progress(said)) is fixed
    assert said.getvalue().count("\n") == 1


@pytest.mark.parametrize("word", [None, "auto"])
def test_auto_is_the_default_in_words(word: str | None) -> None:
    assert CftConfig.model_validate({"steps": word}) == CftConfig()


def test_every_stage_with_open_steps_is_estimated_and_scales() -> None:
    recipe = Recipe(name="x")
    small, large = work_of(recipe, DEMO), work_of(recipe, BEAUTY)
    assert {*OPEN, *GROWING, "midtrain"} <= small.keys()
    assert all(0 < small[name] <= large[name] for name in small)
    fewer = work_of(recipe, replace(DEMO, lists=600))
    assert fewer["sft"] < small["sft"]
    assert work_of(load_recipe("micro"), DEMO)["sft"] < small["sft"] / 10


def test_the_estimate_of_the_demo_is_near_its_measured_time() -> None:
    """Some 750 CPU seconds of the story on a core of 67 GFLOP/s (docs/lab.md)."""
    teacher, whole = minutes(work_of(load_recipe("demo"), DEMO), 67.0)
    assert 3 < teacher < 12
    assert teacher < whole < 30
    words = told(work_of(load_recipe("demo"), DEMO), 67.0)
    assert words == f"about {round(teacher)} minutes to the AR teacher (--goal teacher), " \
        f"{round(whole)} for all"  # fmt: skip
