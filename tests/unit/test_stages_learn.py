"""Each training stage learns what it is for, on a shop of a few lists, in a few steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.stages.batches import epoch_order
from diffgr2.stages.corpus import Corpus
from support import tiny_stages


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few(rows: int) -> Corpus:
    """The first lists of each split only."""
    shop = tiny_stages.corpus()
    part = np.arange(rows)
    return replace(
        shop,
        lists={split: lists.take(part) for split, lists in shop.lists.items()},
        buckets={split: buckets[part] for split, buckets in shop.buckets.items()},
        traces={
            split: type(t)(**{name: array[part] for name, array in vars(t).items()})
            for split, t in shop.traces.items()
        },
    )


@pytest.mark.parametrize(("n", "rows"), [(7, 3), (7, 7), (3, 8), (1, 2)])
def test_steps_walk_through_reshuffled_epochs(n, rows):
    walked = [at for step in range(1, 3 * n + 1) for at in epoch_order(n, rows, step, 5, "walk")]
    assert len(walked) == 3 * n * rows
    epochs = [walked[at : at + n] for at in range(0, len(walked), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1 or n == 1


@pytest.mark.parametrize(("share", "floor"), [(0.0, 1.0), (0.3, 0.75), (1.0, 1 / 6)])
def test_rl_shows_the_asked_share_of_prompts_with_shuffled_candidates(share, floor):
    """A shuffle of three candidates leaves them as they were one time in six."""
    plain = {"vary": 0.0, "hide": 0.0, "prompts": 100, "refill": 0}
    roller = tiny_stages.rl_task(shuffle=share, **plain)[0].roller
    shop = roller.corpus
    as_they_came = {shop.request(*hit).codes_KL.tobytes() for hit in shop.hits}
    shown = [asked for step in range(1, 5) for asked in roller.prompts(step, 0)]
    found = np.mean([asked.request.codes_KL.tobytes() in as_they_came for asked in shown])
    assert found == pytest.approx(floor, abs=0.08 if share > 0 else 0)


def test_sft_learns_two_examples_by_heart():
    as_it_came = {"shuffle": 0.0, "vary": 0.0, "hide": 0.0, "direct": 0.0}
    task, config = tiny_stages.sft_task(steps=60, rows=4, lr=1e-2, **as_it_came)
    task.corpus = few(1)
    lines = tiny_stages.quietly(task, tiny_stages.fresh(), config)
    assert lines[0]["loss"] > 4
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]
    assert lines[-1]["answer/accuracy"] > 0.9
    assert lines[-1]["reasoning/accuracy"] > 0.9


def test_opd_in_bf16_rolls_out_in_the_weights_own_precision():
    """Autocast is for the loss alone: the first step's rollouts are those of fp32."""
    first = []
    for precision in ("fp32", "bf16"):
        frozen = tiny_stages.model("ar").eval().requires_grad_(False)
        task, config = tiny_stages.opd_task(frozen, steps=2, precision=precision)
        first.append(tiny_stages.quietly(task, tiny_stages.model("block"), config)[0])
    for name in ("rank/valid_rate", "completions/mean_length", "decode/tokens_per_forward"):
        assert first[0][name] == first[1][name]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], rel=0.1)
    assert first[0]["loss"] != first[1]["loss"]


def test_cft_learns_two_outputs_by_heart_and_keeps_the_ar_head():
    task, config = tiny_stages.cft_task(steps=80, rows=4, lr=1e-2)
    outputs = task.outputs
    task.outputs = type(outputs)(**{name: array[:2] for name, array in vars(outputs).items()})
    lines = tiny_stages.quietly(task, tiny_stages.fresh(), config)
    first = [line["reasoning/loss"] for line in lines[:5]]
    last = [line["reasoning/loss"] for line in lines[-5:]]
    assert np.mean(last) < 0.25 * np.mean(first)
    assert np.mean([line["answer/accuracy"] for line in lines[-5:]]) > 0.8
    assert min(line["ar/loss"] for line in lines[-5:] if "ar/loss" in line) < 0.5


def reward_of(task: Any, net: Any) -> float:
    """Mean reward over many samples of all the lists, with one set of random streams."""
    rewards = [task.roller.collect(900 + n, net)[1]["reward"] for n in range(3)]
    return float(np.mean(rewards))


@pytest.mark.parametrize(
    ("make", "kind", "lr", "more"),
    [(tiny_stages.rl_task, "ar", 2e-3, 0.1), (tiny_stages.block_rl_task, "block", 6e-3, 0.03)],
)
def test_rl_raises_the_reward_of_a_toy_group(make, kind, lr, more):
    task, config = make(
        steps=40,
        prompts=6,
        group=8,
        shuffle=0.0,
        refill=0,
        epochs=1,
        lr=lr,
        warmup=1,
        clip_high=0.28,
    )
    task.roller.corpus = few(3)
    net = tiny_stages.model(kind)
    before = reward_of(task, net)
    lines = tiny_stages.quietly(task, net, config)
    after = reward_of(task, net)
    assert sum(line["groups"] > 0 for line in lines) >= 5
    assert after > before + more, (before, after)


@pytest.mark.parametrize("make", [tiny_stages.rl_task, tiny_stages.block_rl_task])
@pytest.mark.parametrize("wanted", [None, "ndcg", "rank"])
def test_of_a_shops_own_lists_the_whole_order_is_rewarded_by_its_gains(make, wanted):
    how = {"prompts": 4, "group": 4, "refill": 0, "shuffle": 0.5, "overlong_cache": 0}
    task, config = make(**how, reward=wanted)
    roller, rng = task.roller, np.random.default_rng(0)
    lists = {
        split: replace(own, gains=rng.choice([0.0, 1.0], own.items_LK.shape) + 3.0 * own.gains_LK)
        for split, own in roller.corpus.lists.items()
    }
    roller.corpus = replace(roller.corpus, lists=lists)
    net = tiny_stages.model("ar" if make is tiny_stages.rl_task else "block")
    rollouts, _ = roller.collect(1, net)
    told = [each for each in rollouts if each.answer.valid]
    assert told
    for each in told:
        asked, order = each.asked, list(each.answer.order)
        if wanted == "rank":
            gained = (asked.target - order.index(asked.target)) / asked.request.k
            assert asked.gains is None
        else:
            assert asked.gains is not None
            assert asked.gains[asked.target] == max(asked.gains)
            gains_1K = np.array([asked.gains])
            both = metrics_of(np.array([order, range(len(order))]), gains_1K.repeat(2, 0))
            after, before = both[:, METRICS.index("ndcg@10")]
            gained = after - before
        base = gained + config.alpha * (gained > 1e-9)
        kept = base + config.alpha  # the best order there is
        assert each.reward == pytest.approx(base) or each.reward == pytest.approx(kept)


def kl_of(task: Any, net: Any, micros: list[Any]) -> float:
    """Mean divergence over these states."""
    with torch.no_grad():
        parts = [task.loss(net, micro).metrics["kl"] for micro in micros]
    return sum(float(total) for total, _ in parts) / sum(float(n) for _, n in parts)


def test_opd_brings_the_student_to_its_teacher():
    """Measured on the states of one set of rollouts, before and after."""
    teacher = tiny_stages.model("ar").eval().requires_grad_(False)
    task, config = tiny_stages.opd_task(teacher, steps=24, rows=16, rollouts=4, lr=1e-3)
    net = tiny_stages.model("block")
    held_task, _ = tiny_stages.opd_task(teacher, rows=48, rollouts=1)
    held = held_task.micros(900, net)
    before = kl_of(task, net, held)
    tiny_stages.quietly(task, net, config)
    assert kl_of(task, net, held) < 0.6 * before
