"""The stages on the papers' chat: free text whose end no canvas knows before it is written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.template import make_template
from diffgr2.stages.corpus import Corpus
from diffgr2.stages.distill import asked, packed
from diffgr2.stages.rl import RlTask
from diffgr2.stages.rollouts import rollout_settings
from diffgr2.streams import generator
from diffgr2.types import Trajectory
from support import tiny_stages

ROOM, BLOCK = 14, 8


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """The tiny corpus under `gr2`, with room for a few words."""
    monkeypatch.setattr(Gr2, "_room", ROOM)
    shop = tiny_stages.corpus()
    prompt = shop.recipe.prompt.model_copy(update={"template": "gr2"})
    template = make_template(shop.vocab, prompt)
    return replace(
        shop, template=template, recipe=shop.recipe.model_copy(update={"prompt": prompt})
    )


def talkative(shop: Corpus, chance: float) -> Any:
    """A random model that ends its text sooner or later."""
    net = tiny_stages.fresh(5, tied=False)
    with torch.no_grad():
        net.lm_head.weight *= 2
        net.lm_head.weight[shop.template._shut[0]] *= chance
    return net


@pytest.mark.parametrize("rule", ["grammar", "raw"])
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("make", [tiny_stages.rl_task, tiny_stages.block_rl_task])
def test_rollouts_with_free_text_replay_to_their_own_log_probabilities(
    make, reasoning, rule, chat: Corpus
):
    changes = {} if make is tiny_stages.rl_task else {"threshold": 0.1}
    if changes:
        changes["contract"] = tiny_stages.contract_of(block_size=BLOCK)
    asked_for = {"reasoning": reasoning, "prompts": 2, "group": 4, "refill": 0, "micro_rows": 3}
    task, config = make(**asked_for, rule=rule, **changes)
    roller: Any = task.roller
    roller.corpus, roller.settings = chat, rollout_settings(chat, task.contract, config)
    micros = task.micros(1, net := talkative(chat, 4.0))
    if rule == "raw":  # random tokens are no JSON, so no group has variance
        rows = [r for group in roller._round(1, 0, tiny_stages.lean(net)) for r in group][:3]
        micros = [task._micro(rows)]
    else:
        rows = task._rollouts
        assert all(row.answer.valid for row in rows)
        assert not reasoning or len({len(row.trajectory.tokens_T) for row in rows}) > 1
    for micro in micros:
        task._check(net, micro)
    assert isinstance(task, RlTask)


def taught(shop: Corpus) -> Any:
    """What a flawless teacher would write, as `distill` keeps it."""
    config = tiny_stages.shown_config(direct=0.3)
    made = []
    for one in asked(shop, config, tiny_stages.SEED)[:12]:
        trace = shop.taught(("train", "validation")[one.split], one.row, one.shown)
        how: Any = {"reasoning": not one.direct, "answer": one.answer}
        tokens_T = np.array(shop.template.response(one.shown.request, trace, **how).tokens)
        steps_T = np.arange(len(tokens_T), dtype=np.int32)
        nothing_T = np.zeros(len(tokens_T), dtype=np.float32)
        made.append((one, Trajectory(tokens_T, steps_T, nothing_T, len(tokens_T), True)))
    return packed(made, shop.recipe.candidates.k_max)


def test_conversion_rows_end_with_the_response_and_keep_its_opening(chat: Corpus):
    task, _ = tiny_stages.cft_task(free=0.0)
    task.corpus, task.outputs = chat, taught(chat)
    assert set(task.outputs.direct_N.tolist()) == {True, False}
    opening = len(chat.template._open)
    for n in range(len(task.outputs)):
        row, _, text = task.row(n, generator("chat", n))
        assert row.response_R.tolist() == task.outputs.response(n).tolist()
        assert np.isnan(text.levels_R).all()
        if not task.outputs.direct_N[n]:
            assert text.known_R.tolist() == [True] * opening + [False] * (text.length - opening)
        else:
            assert text.known_R.any()
            assert text.known_R[-1]
        assert not row.masked_CR[:, text.known_R].any()


def test_opd_compares_states_of_texts_that_end_anywhere(chat: Corpus):
    contract = tiny_stages.contract_of(block_size=BLOCK)
    task, config = tiny_stages.opd_task(
        tiny_stages.fresh(6).eval(), rows=6, contract=contract, positions="all", threshold=0.1
    )
    task.corpus, task.outputs = chat, taught(chat)
    task.settings = rollout_settings(chat, contract, config)
    net = talkative(chat, 4.0)
    (micro,) = task.micros(1, net)
    loss = task.loss(net, micro)
    assert loss.total.isfinite()
    mask_id = chat.vocab.mask_id
    places = micro.index_N[: micro.tokens]
    assert (micro.batch.ids_BT.flatten()[places] == mask_id).all()
    assert mask_id not in micro.target_N.tolist()
