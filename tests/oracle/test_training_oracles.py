"""What training scores is what decoding saw: replayed log-probabilities, realised states, teacher.

Random models, no training: these are identities of the layouts, not of any learned weight.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_decode_oracles import BLOCK, MASK, PROMPTS, prompts, settings, tiny
from test_forward_oracles import denoising_states

from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import DecodeError
from diffgr2.model.contract import BlockContract
from diffgr2.model.forward import LeanQwen3
from diffgr2.objectives.likelihood import chosen_logp, logits_at
from diffgr2.objectives.noise import frontier
from diffgr2.stages.batches import epoch_order
from diffgr2.stages.noisy import realised, response_blocks
from diffgr2.stages.opd import one_state_per_block
from diffgr2.stages.rl import causal_micro, replay_micro, replay_row
from diffgr2.stages.rollouts import Rollout
from diffgr2.streams import generator
from diffgr2.types import Answer
from support import tiny_stages

CONTRACTS = list(
    product(("causal", "block_causal"), ("same_position", "shifted"), ("document", "response"))
)
PAD = 3  # any token: what fills the places after the end is seen by nothing that counts


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rollouts(module: Any, chosen: Any, lengths: tuple[int, ...] = PROMPTS) -> list[Rollout]:
    given = prompts(21, lengths)
    requests = [DecodeRequest(p, None, ("replay", i)) for i, p in enumerate(given)]
    done = decode(LeanQwen3(module), requests, chosen)
    nobody: Any = None
    return [
        Rollout(p, nobody, 0, t, Answer((), ()), 0.0, 1.0) for p, t in zip(given, done, strict=True)
    ]


@torch.no_grad()
def block_logits(module: Any, batch: Any, index_N: torch.Tensor) -> torch.Tensor:
    return logits_at(
        module,
        batch.ids_BT,
        index_N,
        MASK,
        attends_B1TT=batch.attends_B1TT,
        position_BT=batch.position_BT,
    )


# ------------------------------------------------------------------------- rolled out = replayed


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ar_rollouts_replay_to_their_own_log_probabilities(temperature):
    module = tiny(21)
    rows = rollouts(module, settings(temperature=temperature))
    assert len({len(row.trajectory.tokens_T) for row in rows}) > 1  # padding is at work
    micro = causal_micro(rows, PAD)
    with torch.no_grad():
        logits_NV = logits_at(module, micro.batch.ids_BT, micro.index_N, MASK)
    replay_N = chosen_logp(logits_NV, micro.target_N, temperature)
    assert len(replay_N) == sum(len(row.trajectory.tokens_T) for row in rows) == micro.count
    torch.testing.assert_close(replay_N, micro.old_logp_N, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_block_rollouts_replay_to_their_own_log_probabilities(
    clean_kv, alignment, origin, temperature
):
    module = tiny(22)
    contract = BlockContract(
        block_size=BLOCK, mask_token_id=MASK, alignment=alignment, origin=origin
    )
    together = 0
    for changes in ({"threshold": 0.2}, {"threshold": 0.9, "fused": False}, {"max_tokens": 11}):
        chosen = settings(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
        chosen = replace(chosen, temperature=temperature, **changes)
        rows = rollouts(module, chosen)
        causal = clean_kv == "causal"
        micro = replay_micro(rows, contract, PAD, clean_causal=causal)
        replay_N = chosen_logp(
            block_logits(module, micro.batch, micro.index_N), micro.target_N, temperature
        )
        torch.testing.assert_close(replay_N, micro.old_logp_N, atol=1e-4, rtol=0)
        tokens = [row.trajectory.tokens_T for row in rows]
        assert len(replay_N) == sum(map(len, tokens)) == micro.count
        assert sorted(micro.target_N.tolist()) == sorted(np.concatenate(tokens).tolist())
        together += sum(
            len(t) - len(np.unique(row.trajectory.step_of_T))
            for t, row in zip(tokens, rows, strict=True)
        )
    assert together > 20  # many tokens were committed beside others


def test_a_replay_under_other_weights_is_refused_by_both_stages():
    """The check that every run makes can fail."""
    for task, kind in (
        (tiny_stages.rl_task(prompts=4, group=6)[0], "ar"),
        (tiny_stages.block_rl_task(prompts=4, group=6)[0], "block"),
    ):
        net = tiny_stages.model(kind)
        micros = task.micros(1, net)
        assert micros
        task._check(net, micros[0])
        with torch.no_grad():
            net.model.norm.weight.mul_(1.01)
        with pytest.raises(DecodeError, match="replay differs from the rollout by"):
            task._check(net, micros[0])


# ----------------------------------------------------------------------------- realised states


@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_replay_and_opd_use_the_states_that_the_decoder_was_in(clean_kv, alignment, origin):
    """The canvases are recorded while decoding; nothing is derived from the trajectory there."""
    module = tiny(23)
    chosen = settings(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    chosen = replace(chosen, temperature=1.0, threshold=0.3)
    contract = BlockContract(
        block_size=BLOCK, mask_token_id=MASK, alignment=alignment, origin=origin
    )
    nobody: Any = None
    for prompt in prompts(23, (1, 7, 8, 9)):
        row = denoising_states(LeanQwen3(module), prompt, chosen)
        trajectory = row.result()
        seen: dict[int, list[list[bool]]] = {}
        for start, canvas, _ in row.states:
            seen.setdefault(start, []).append((canvas < 0).tolist())
        given = Rollout(prompt, nobody, 0, trajectory, Answer((), ()), 0.0, 1.0)
        noisy, scored_CR = replay_row(given, contract, PAD, clean_causal=True)
        for start, states in seen.items():
            width = len(states[0])
            for copy, state in enumerate(states):
                assert noisy.masked_CR[copy, start : start + width].tolist() == state
        count_R = scored_CR.sum(0)
        assert noisy.masked_CR[scored_CR].all()
        length = len(trajectory.tokens_T)
        assert count_R.tolist() == [1] * length + [0] * (len(count_R) - length)
        assert noisy.response_R[:length].tolist() == trajectory.tokens_T.tolist()

        _, step_R, block_R, shift = realised(prompt, trajectory, contract, PAD)
        assert shift == noisy.shift
        assert (block_R == response_blocks(len(prompt), len(step_R), BLOCK, shift)).all()
        found: dict[int, set[int]] = {start: set() for start in seen}
        for draw in range(60):
            masked_R = one_state_per_block(step_R, block_R, generator("state", draw))
            for start, states in seen.items():
                state = masked_R[start : start + len(states[0])].tolist()
                found[start].add(states.index(state))
        for start, states in seen.items():  # each of them has its chance
            assert len(found[start]) == len(states) or len(states) > 12


# --------------------------------------------------------------------------------------- OPD


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("origin", ["document", "response"])
def test_one_causal_forward_of_the_teacher_equals_the_three_part_one(direct, alignment, origin):
    contract = tiny_stages.contract_of(alignment=alignment, origin=origin)
    teacher = tiny_stages.fresh(7).eval()
    task, _ = tiny_stages.opd_task(
        teacher, direct=direct, contract=contract, rows=8, micro_rows=8, positions="all"
    )
    (micro,) = task.micros(1, tiny_stages.model("block"))
    mask_id = tiny_stages.vocabulary().mask_id
    n = micro.tokens
    head_M, teach_head_M = micro.index_N[n:], micro.teacher_N[n:]
    assert len(head_M) == len(teach_head_M) > 20
    with torch.no_grad():
        plain_MV = logits_at(teacher, micro.clean.ids_BT, teach_head_M, mask_id)
        parts_MV = logits_at(
            teacher,
            micro.batch.ids_BT,
            head_M,
            mask_id,
            attends_B1TT=micro.batch.attends_B1TT,
            position_BT=micro.batch.position_BT,
        )
    torch.testing.assert_close(
        torch.log_softmax(plain_MV, -1), torch.log_softmax(parts_MV, -1), atol=1e-5, rtol=0
    )
    assert set(micro.teacher_N[:n].tolist()) <= set(teach_head_M.tolist())


@pytest.mark.parametrize("positions", ["all", "frontier"])
def test_opd_compares_masked_positions_up_to_and_including_the_end_token(positions):
    task, _ = tiny_stages.opd_task(None, rows=32, positions=positions, direct=False)
    net = tiny_stages.model("block")
    vocab = tiny_stages.vocabulary()
    (micro,) = task.micros(1, net)
    ends = int((micro.target_N == vocab.end_id).sum())
    assert ends > 0
    # What stands in the student's row there is the mask, and its target the rollout's token.
    n = micro.tokens
    assert (micro.batch.ids_BT.flatten()[micro.index_N[:n]] == vocab.mask_id).all()
    after_N = micro.clean.ids_BT.flatten()[micro.teacher_N[:n] + 1]
    assert torch.equal(after_N, micro.target_N)
    compared = rows_of(task, net, positions)
    for row, at_N, length in compared:
        block_R = response_blocks(len(row.prompt), len(row.response_R), 4, row.shift)
        wanted_R = row.masked_CR[0].copy()
        if positions == "frontier":
            wanted_R = frontier(wanted_R, block_R)
        wanted_R[length:] = False
        assert at_N.tolist() == np.flatnonzero(wanted_R).tolist()
        assert row.response_R[length - 1] == vocab.end_id
    assert any(length - 1 in at_N for _, at_N, length in compared)


def rows_of(task: Any, net: Any, positions: str) -> list[Any]:
    given = [task.outputs.prompt(task.corpus, n) for n in range(12)]
    done = tiny_stages.rolled(net, task.settings, given, "opd", positions)
    return [
        task._row(prompt, trajectory, generator("row", i))
        for i, (prompt, trajectory) in enumerate(zip(given, done, strict=True))
        if trajectory.finished
    ]


def test_opd_loss_is_the_kl_of_teacher_and_student_at_those_places():
    """Recomputed with stock forwards, position by position."""
    teacher = tiny_stages.fresh(8).eval()
    task, config = tiny_stages.opd_task(teacher, rows=4, direct=True)
    net = tiny_stages.model("block").eval()
    (micro,) = task.micros(1, net)
    mask_id = tiny_stages.vocabulary().mask_id
    with torch.no_grad():
        loss = task.loss(net, micro)
        student = net(
            input_ids=micro.batch.ids_BT,
            attention_mask=micro.batch.attends_B1TT,
            position_ids=micro.batch.position_BT,
        ).logits.flatten(0, 1)
        taught = teacher(input_ids=micro.clean.ids_BT).logits.flatten(0, 1)
    keep = torch.arange(student.shape[-1]) != mask_id

    def kl(s: int, t: int) -> float:
        p, q = (torch.log_softmax(x[keep].double(), -1) for x in (taught[t], student[s]))
        return float((p.exp() * (p - q)).sum())

    each = [kl(s, t) for s, t in zip(micro.index_N, micro.teacher_N, strict=True)]
    body, head = sum(each[: micro.tokens]), sum(each[micro.tokens :])
    assert head > 0
    assert float(loss.total) == pytest.approx(body + config.ar_weight * head, rel=1e-4)
    total, n = loss.metrics["kl"]
    assert float(total) == pytest.approx(body, rel=1e-4)
    assert n == len(micro.target_N) == micro.count


def careful_of(task: Any, net: Any, prompts_: int) -> tuple[list[Any], list[Any]]:
    """(careful outputs of the first step's prompts, that step's micros)."""
    picks = epoch_order(len(task.outputs), prompts_, 1, task.seed, task.name)
    given = [task.outputs.prompt(task.corpus, n) for n in picks]
    settled = replace(task.settings, threshold=1.0, temperature=0.0)
    return tiny_stages.rolled(net, settled, given, "careful"), task.micros(1, net)


def test_self_careful_learns_the_models_own_careful_texts():
    task, config = tiny_stages.opd_task(None, teacher="self_careful", rows=24, direct=True)
    net = tiny_stages.model("block")
    careful, (micro,) = careful_of(task, net, 12)
    texts = {tuple(t.tokens_T.tolist()) for t in careful if t.finished}
    assert len(micro.clean.ids_BT) == config.rollouts * sum(t.finished for t in careful) > 12
    end, direct = task.corpus.vocab.end_id, task.corpus.vocab.control["<direct>"]
    for row in micro.clean.ids_BT.tolist():
        assert tuple(row[row.index(direct) + 1 : row.index(end) + 1]) in texts
    assert task.loss(net, micro).total.isfinite()


def test_a_careful_decoding_that_never_ends_teaches_nothing():
    """Though some of its prompt's sampled rollouts do end: those are no careful text."""
    task, _ = tiny_stages.opd_task(
        None, teacher="self_careful", rows=60, direct=True, temperature=1.5
    )
    net = tiny_stages.fresh()
    careful, micros = careful_of(task, net, 30)
    assert not any(t.finished for t in careful)
    sampled = tiny_stages.rolled(net, task.settings, [task.outputs.prompt(task.corpus, 0)] * 60)
    assert any(t.finished for t in sampled)
    assert micros == []
