"""Mid-training's four tasks: what is asked, what is to be answered, how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from diffgr2.config import MidtrainConfig
from diffgr2.prompts.request import item_text
from diffgr2.stages.midtrain import TASKS, MidtrainTask
from support import tiny_stages

OPENS = {
    "sequential": "<task_next>",
    "caption": "<task_caption>",
    "persona": "<task_persona>",
    "general": "<task_text>",
}


def rows_of(rows: int, step: int = 1, seed: int = 5, **shares: float) -> list[tuple[Any, ...]]:
    """(prompt, response, number of the task) of every row of a step."""
    shop = tiny_stages.corpus()
    config = tiny_stages.config_of(MidtrainConfig, rows=rows, micro_rows=1, **shares)
    task = MidtrainTask(shop, config, seed, shop.dataset.histories.train_part())
    found = []
    for micro in task.micros(step, tiny_stages.fresh()):
        [ids] = getattr(micro, "batch", micro).ids_BT.tolist()
        response = micro.target_N.tolist()
        assert ids[-len(response) :] == response, "every token of the response is a target"
        [kind] = set(micro.kind_N.tolist())
        found.append((ids[: -len(response)], response, kind))
    assert len(found) == rows
    return found


def only(name: str) -> dict[str, float]:
    return {task: float(task == name) for task in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_the_four_tasks_ask_for_what_they_are_named_after(name: str) -> None:
    shop = tiny_stages.corpus()
    vocab, codes_IL = shop.vocab, shop.sids.codes_IL
    train = shop.dataset.histories.train_part()
    newest = {
        tuple(vocab.sid_ids(codes_IL[train.of(user)[-(shop.recipe.prompt.history + 1) :]]).ravel())
        for user in range(train.n_users)
    }
    text_of = {
        tuple(vocab.sid_ids(codes_IL[item]).tolist()): vocab.text_ids(
            item_text(shop.dataset.catalogue, item)
        )
        for item in range(len(shop.dataset.catalogue))
    }
    for prompt, response, kind in rows_of(24, **only(name)):
        assert TASKS[kind] == name
        assert vocab.control[OPENS[name]] == prompt[0]
        assert response[-1] == vocab.end_id
        shown, said = tuple(prompt[1:]), response[:-1]
        if name == "sequential":
            assert shown == ()
            assert tuple(said) in newest
        elif name == "persona":
            assert shown in newest, "the held-out items are not shown"
            assert vocab.decode(said) == "likes ours, soap"
        elif name == "caption":
            assert said == text_of[shown]
        else:
            assert shown == ()
            assert said in text_of.values()


def test_shares_are_kept_and_a_seed_decides() -> None:
    rows = rows_of(400)
    share = Counter(TASKS[kind] for _, _, kind in rows)
    config = MidtrainConfig(steps=1)
    wanted = np.array([getattr(config, name) for name in TASKS])
    np.testing.assert_allclose([share[name] / 400 for name in TASKS], wanted, atol=0.07)
    few = {"rows": 30}
    assert rows_of(**few) == rows_of(**few)
    assert rows_of(**few) != rows_of(**few, seed=6)
    assert rows_of(**few) != rows_of(**few, step=2)
