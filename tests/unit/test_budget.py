"""Budget curves: what a way changes of a recipe, what is trained once, what a table shows."""

from __future__ import annotations

import numpy as np
import pytest
from budget import FROM, WAYS, against, numbers, recipe_of, table
from readme_table import budget_table

from diffgr2.config import Recipe
from diffgr2.errors import ConfigError
from diffgr2.evaluate.metrics import METRICS
from diffgr2.recipe import validate
from diffgr2.stages.plan import STAGES


def recipe() -> Recipe:
    return validate({"name": "toy", "opd": {"rows": 2, "steps": 7}}, "toy")


def test_every_stage_starts_from_a_stage_that_it_reads() -> None:
    assert all(source in STAGES[stage].inputs for stage, source in FROM.items())
    assert all({*way} <= {*FROM} for way in WAYS.values())
    assert {*WAYS["shipped"]} == {*WAYS["paper"]} == {*FROM}


@pytest.mark.parametrize(("way", "stage"), [(way, stage) for way in WAYS for stage in WAYS[way]])
def test_a_way_changes_the_stage_and_nothing_else(way: str, stage: str) -> None:
    made = recipe_of(recipe(), stage, way, 30)
    assert getattr(made, stage).steps == 30
    assert made.model_copy(update={stage: getattr(recipe(), stage)}) == recipe()
    if way == "paper":
        config = getattr(made, stage)
        assert (config.rule, config.threshold, config.answer) == ("raw", 0.9, "written")


def test_a_prompt_is_not_rolled_out_more_often_than_there_are_rows() -> None:
    assert recipe_of(recipe(), "opd", "paper", 5).opd.rollouts == 2


def test_more_keys_of_the_stages_can_be_changed_and_no_others() -> None:
    assert recipe_of(recipe(), "opd", "shipped", 5, ["opd.lr=0.5"]).opd.lr == 0.5
    with pytest.raises(ConfigError, match=r"--set sft\.steps=3: a key of opd"):
        recipe_of(recipe(), "opd", "shipped", 5, ["sft.steps=3"])


def test_zero_steps_are_always_there() -> None:
    assert numbers("300,100,100") == [0, 100, 300]


def test_differences_are_paired_by_hand() -> None:
    """Two of four lists gain a first place."""
    base_LM, values_LM = np.zeros((4, len(METRICS))), np.zeros((4, len(METRICS)))
    values_LM[:2, METRICS.index("r@1")] = 1.0
    found = against(values_LM, base_LM, 500, (0, "test"))
    assert found["r@1"]["diff"] == 0.5
    assert found["r@1"]["ci"] == [0.0, 1.0]
    assert found["ndcg@3"] == {"diff": 0.0, "ci": [0.0, 0.0]}


def test_tables_show_validity_and_what_steps_changed() -> None:
    none = {"r@1": {"diff": 0.0, "ci": [0.0, 0.0]}, "ndcg@3": {"diff": 0.0, "ci": [0.0, 0.0]}}
    more = {"r@1": {"diff": 0.1, "ci": [0.05, 0.15]}, "ndcg@3": {"diff": 0.0, "ci": [-0.1, 0.1]}}
    rows = [
        {
            **{"stage": "opd", "way": "paper", "steps": steps, "read": "raw", "n": 50, "tpf": 2.0},
            **{"raw_valid": 0.9, "failures": {"duplicate": 0.1}, "over_none": over},
            "metrics": {"r@1": 0.3, "ndcg@3": 0.4},
            "ci": {"raw_valid": [0.8, 0.95], "tpf": [1.5, 2.5]},
        }
        for steps, over in ((0, none), (100, more))
    ]
    assert "| opd | paper | 100 | raw | .900 | [.800, .950] |" in table(rows)
    report = {"data": "d", "tie_order": "none", "seed": 0, "split": "selection", "command": "c"}
    shown = budget_table({**report, "rows": rows}).splitlines()
    assert "| opd | paper | 0 | raw | .900 [.800, .950] | .100 | .3000 | – |" in shown[2]
    assert "| .3000 | [+.0500, +.1500] | .4000 | [−.1000, +.1000] |" in shown[3]
    assert "the same 50 validation lists of selection users. Made by" in shown[-1]
    rows[1]["on"] = "a card"
    assert "users. Trained on a card. Made by" in budget_table({**report, "rows": rows})
