"""Training without padding against the stock module: hidden states, losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from diffgr2.model import packed
from diffgr2.objectives.likelihood import logits_at
from support import tiny_stages

MASK = 40


def model_of(seed: int, **changes: object) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    values = {
        "vocab_size": 41,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 40,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
        **changes,
    }
    return Qwen3ForCausalLM(Qwen3Config(**values))


def case(seed: int, masked: bool):
    """(ids, lengths, places, mask, positions) of a batch; a row may have no place, one two."""
    draws = torch.Generator().manual_seed(seed)
    length_B = torch.randint(1, 12, (5,), generator=draws)
    width = int(length_B.max()) + 2
    ids_BT = torch.randint(0, MASK, (5, width), generator=draws)
    there_BT = torch.arange(width) < length_B[:, None]
    flat = there_BT.flatten().nonzero()[:, 0]
    index_N = flat[torch.randint(0, len(flat), (7,), generator=draws)]
    if not masked:
        return ids_BT, length_B, index_N, None, None
    sees = torch.rand(5, width, width, generator=draws) < 0.5
    sees &= there_BT[:, None] & there_BT[:, :, None]
    sees |= torch.eye(width, dtype=torch.bool)
    position_BT = torch.randint(0, 20, (5, width), generator=draws)
    return ids_BT, length_B, index_N, sees[:, None], position_BT


def gradients(model: Qwen3ForCausalLM, logits_NV: torch.Tensor) -> list[torch.Tensor]:
    """Of the summed log-probabilities of token 3."""
    model.zero_grad()
    logits_NV.log_softmax(-1)[:, 3].sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("more", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_logits_and_gradients_are_those_of_each_row_alone_in_the_stock_module(
    seed, masked, more, monkeypatch
):
    """Also where products are filled up, which they are in bf16."""
    if more:
        monkeypatch.setattr(packed, "filling", lambda n: more)
    model = model_of(seed)
    ids_BT, length_B, index_N, sees, position_BT = case(seed, masked)
    layout = {"attends_B1TT": sees, "position_BT": position_BT}
    found_NV = logits_at(model, ids_BT, index_N, MASK, length_B=length_B, **layout)
    rows = []
    for place in index_N.tolist():
        b, t = divmod(place, ids_BT.shape[1])
        n = int(length_B[b])
        alone = {
            "attends_B1TT": None if sees is None else sees[b : b + 1, :, :n, :n],
            "position_BT": None if position_BT is None else position_BT[b : b + 1, :n],
        }
        rows.append(logits_at(model, ids_BT[b : b + 1, :n], torch.tensor([t]), MASK, **alone)[0])
    wanted_NV = torch.stack(rows)
    torch.testing.assert_close(found_NV, wanted_NV, rtol=1e-5, atol=1e-6)
    pairs = zip(gradients(model, found_NV), gradients(model, wanted_NV), strict=True)
    for mine, other in pairs:
        assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-9


def test_in_bf16_products_come_in_few_sizes():
    assert {packed.filling(n) for n in range(999)} == {0}
    with torch.autocast("cpu", torch.bfloat16):
        made = {n: n + packed.filling(n) for n in range(1, 8192)}
    assert all(n <= size <= n * 17 / 16 for n, size in made.items())
    assert sum(4096 <= size < 8192 for size in {*made.values()}) == 16


@pytest.mark.parametrize("make", ["sft", "cft", "opd", "rl", "block_rl"])
def test_a_stage_without_padding_has_the_losses_that_it_had_with_it(make):
    task, model, _ = getattr(tiny_stages, f"make_{make}")()
    for micro in task.micros(1, model):
        padded = replace(micro, batch=replace(micro.batch, length_B=None))
        assert micro.batch.length_B is not None
        mine, other = (float(task.loss(model, m).total.detach()) for m in (micro, padded))
        assert mine == pytest.approx(other, rel=1e-5, abs=1e-6)


def test_what_is_no_plain_qwen3_is_left_to_its_own_forward():
    assert packed.able(model_of(0))
    assert not packed.able(model_of(0, use_sliding_window=True))
    assert not packed.able(model_of(0, hidden_act="gelu"))
    assert not packed.able(model_of(0, attention_bias=True))
    assert not packed.able(torch.nn.Linear(2, 2))
