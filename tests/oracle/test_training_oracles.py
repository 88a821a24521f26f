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
from test_decode_oracles import BLOCK, PROMPTS, prompts, ruled
from test_forward_oracles import denoising_states

from diffgr2.decode.batch import decode
from diffgr2.decode.grammar import Free, Grammar
from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import DecodeError
from diffgr2.model.contract import BlockContract
from diffgr2.model.forward import LeanModel
from diffgr2.objectives.likelihood import allowed_logp, logits_at
from diffgr2.stages.batches import epoch_order
from diffgr2.stages.noisy import realised, response_blocks
from diffgr2.stages.opd import one_state_per_block
from diffgr2.stages.rl import Ids, causal_micro, replay_micro, replay_row
from diffgr2.stages.rollouts import Asked, Rollout
from diffgr2.streams import generator
from diffgr2.types import Answer, Trajectory
from support import tiny_stages
from support.grammars import END, GRAMMARS, MASK, Row
from support.tiny_qwen import VOCAB, tiny

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


def hasty() -> Grammar:
    """Free text of two words that ends at any time, long before its room does."""
    banned = np.setdiff1d(np.arange(VOCAB), [5, 6, 20])
    tail = Row().fixed(21).group(3, [[1], [2], [3]]).fixed(END)
    return Grammar(Row().fixed(16, 17).done(), Free(20, 24, banned), tail.done())


RULED = {None: None, **GRAMMARS, "hasty": hasty()}
IDS = Ids(PAD, MASK)


def rollouts(
    module: Any, chosen: Any, grammar: Grammar | None = None, lengths: tuple[int, ...] = PROMPTS
) -> list[Rollout]:
    given = prompts(21, lengths)
    requests = [DecodeRequest(p, grammar, ("replay", i)) for i, p in enumerate(given)]
    done = decode(LeanModel(module), requests, chosen)
    return [rollout(p, grammar, t) for p, t in zip(given, done, strict=True)]


def rollout(prompt: list[int], grammar: Grammar | None, text: Trajectory) -> Rollout:
    nobody: Any = None
    return Rollout(Asked(prompt, grammar, nobody, 0), text, Answer((), ()), 0.0, 1.0)


def decided(row: Rollout) -> list[int]:
    """The tokens that the grammar left open."""
    text = row.trajectory
    forced_T = np.zeros(len(text.tokens_T), bool) if text.forced_T is None else text.forced_T
    return text.tokens_T[~forced_T].tolist()


def check_replay(rows: list[Rollout], micro: Any, logits_NV: torch.Tensor, heat: float) -> None:
    """Every decision once, none of what was forced, and each as likely as it was drawn."""
    sets = (micro.allowed_NA, micro.banned_NB)
    replay_N = allowed_logp(logits_NV, micro.target_N, *sets, heat)
    torch.testing.assert_close(replay_N, micro.old_logp_N, atol=1e-4, rtol=0)
    every = [token for row in rows for token in decided(row)]
    assert sorted(micro.target_N.tolist()) == sorted(every)
    assert len(replay_N) == len(every) == micro.count > 0


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


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ar_rollouts_replay_to_their_own_log_probabilities(temperature, name):
    module = tiny(21)
    rows = rollouts(module, ruled(temperature=temperature), RULED[name])
    lengths = {len(row.trajectory.tokens_T) for row in rows}
    assert len(lengths) > 1 or name in ("said", "written", "spelled")  # padding is at work
    micro = causal_micro(rows, IDS)
    with torch.no_grad():
        logits_NV = logits_at(module, micro.batch.ids_BT, micro.index_N, MASK)
    check_replay(rows, micro, logits_NV, temperature)


@pytest.mark.parametrize("name", RULED)
@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_block_rollouts_replay_to_their_own_log_probabilities(clean_kv, alignment, origin, name):
    """Over several blocks; with free text the canvas's end depends on the step."""
    module = tiny(22)
    contract = BlockContract(
        block_size=BLOCK, mask_token_id=MASK, alignment=alignment, origin=origin
    )
    together = longest = 0
    changes = ({"threshold": 0.2}, {"threshold": 0.9, "fused": False}, {"max_tokens": 11})
    for number, change in enumerate(changes):
        chosen = ruled(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
        chosen = replace(chosen, temperature=(1.0, 0.7)[number % 2], **change)
        rows = rollouts(module, chosen, RULED[name])
        micro = replay_micro(rows, contract, IDS, clean_causal=clean_kv == "causal")
        logits_NV = block_logits(module, micro.batch, micro.index_N)
        check_replay(rows, micro, logits_NV, chosen.temperature)
        for row in rows:
            text = row.trajectory
            together += len(text.tokens_T) - len(np.unique(text.step_of_T))
            longest = max(longest, len(text.tokens_T))
    assert together > 20  # many tokens were committed beside others
    assert longest > BLOCK or name == "loose"


def test_a_canvas_is_as_wide_as_it_was_before_its_free_text_had_ended():
    """Wider than the whole text, or narrower; both are met, and the padding is never a target."""
    module, met = tiny(22), set()
    contract = BlockContract(block_size=BLOCK, mask_token_id=MASK)
    for name in ("text", "hasty"):
        chosen = ruled(decoder="block", temperature=1.0, threshold=0.3)
        for row in rollouts(module, chosen, RULED[name]):
            grammar, text = row.asked.grammar, row.trajectory
            found = realised(row.asked.prompt, text, contract, PAD, grammar)
            assert found.end == len(text.tokens_T)
            noisy, _, _ = replay_row(row, contract, PAD, clean_causal=True)
            assert not noisy.masked_CR[~noisy.there_CR].any()
            met.add(("wider", len(found.tokens_R) > found.end))
            met.add(("narrower", bool((~noisy.there_CR[:, : found.end]).any())))
    assert met >= {("wider", True), ("narrower", True)}


@pytest.mark.parametrize("answer", ["said", "written"])
@pytest.mark.parametrize("reasoning", [True, False])
@pytest.mark.parametrize("make", [tiny_stages.rl_task, tiny_stages.block_rl_task])
def test_both_stages_replay_what_their_template_asks_for(make, reasoning, answer):
    """Blocks of 4, so that every answer spans some; lists of other lengths, too."""
    asked = {"reasoning": reasoning, "answer": answer, "prompts": 4, "micro_rows": 7}
    task, _ = make(**asked, vary=0.5, hide=0.5)
    micros = task.micros(1, net := tiny_stages.model("ar" if task.contract is None else "block"))
    assert len(micros) > 1
    for micro in micros:
        assert (micro.allowed_NA >= 0).any(-1).all()  # there is no free text
        task._check(net, micro)
    marker = tiny_stages.vocabulary().control["<answer>"]
    for row in task._rollouts:
        tokens = row.trajectory.tokens_T.tolist()
        assert row.trajectory.finished
        assert row.answer.valid
        assert (marker in tokens) == (answer == "written")
        assert len(tokens) > 4


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


@pytest.mark.parametrize("name", [None, "written", "text", "hasty"])
@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_replay_and_opd_use_the_states_that_the_decoder_was_in(clean_kv, alignment, origin, name):
    """The canvases are recorded while decoding; nothing is derived from the trajectory there."""
    module = tiny(23)
    chosen = ruled(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    chosen = replace(chosen, temperature=1.0, threshold=0.3)
    contract = BlockContract(
        block_size=BLOCK, mask_token_id=MASK, alignment=alignment, origin=origin
    )
    grammar = RULED[name]
    for prompt in prompts(23, (1, 7, 8, 9)):
        row = denoising_states(LeanModel(module), prompt, chosen, grammar)
        trajectory = row.result()
        seen: dict[int, list[list[bool]]] = {}
        for start, canvas, _ in row.states:
            seen.setdefault(start, []).append((canvas < 0).tolist())
        given = rollout(prompt, grammar, trajectory)
        noisy, made, copy_D = replay_row(given, contract, PAD, clean_causal=True)
        for start, states in seen.items():
            block_R = noisy.blocks == noisy.blocks[start]
            for copy, state in enumerate(states):
                there_R = noisy.there_CR[copy] & block_R
                assert np.flatnonzero(there_R).tolist() == [start + i for i in range(len(state))]
                assert noisy.masked_CR[copy, there_R].tolist() == state
        assert noisy.masked_CR[copy_D, made.at_D].all()
        length = len(trajectory.tokens_T)
        open_T = np.ones(length, bool) if grammar is None else ~trajectory.forced_T
        assert sorted(made.at_D.tolist()) == np.flatnonzero(open_T).tolist()
        assert noisy.response_R[:length].tolist() == trajectory.tokens_T.tolist()

        text = realised(prompt, trajectory, contract, PAD, grammar)
        assert text.shift == noisy.shift
        length = len(text.tokens_R)
        assert (text.block_R == response_blocks(len(prompt), length, BLOCK, text.shift)).all()
        found: dict[int, set[int]] = {start: set() for start in seen}
        for draw in range(60):
            masked_R, there_R = one_state_per_block(text, generator("state", draw))
            for start, states in seen.items():
                own_R = there_R & (text.block_R == text.block_R[start])
                found[start].add(states.index(masked_R[own_R].tolist()))
        for start, states in seen.items():  # each of them has its chance
            assert len(found[start]) == len(states) or len(states) > 12
        first_R, there_R = one_state_per_block(text, None)
        for start, states in seen.items():
            own_R = there_R & (text.block_R == text.block_R[start])
            assert first_R[own_R].tolist() == states[0]


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


@pytest.mark.parametrize("answer", ["said", "written"])
@pytest.mark.parametrize("positions", ["all", "frontier"])
def test_opd_compares_masked_positions_that_the_grammar_left_open(positions, answer):
    """Not what was given, however long the answer is; the frontier passes over it, too."""
    task, _ = tiny_stages.opd_task(None, rows=32, positions=positions, answer=answer, direct=False)
    net, vocab = tiny_stages.model("block"), tiny_stages.vocabulary()
    (micro,) = task.micros(1, net)
    # What stands in the student's row there is the mask, and its target the rollout's token.
    n = micro.tokens
    assert (micro.batch.ids_BT.flatten()[micro.index_N[:n]] == vocab.mask_id).all()
    after_N = micro.clean.ids_BT.flatten()[micro.teacher_N[:n] + 1]
    assert torch.equal(after_N, micro.target_N)
    given = {vocab.end_id, vocab.control["<answer>"]}
    assert not given & set(micro.target_N.tolist())
    passed = 0
    for text, (row, at_N, length) in compared(task, net):
        forced_T, step_T = text.forced_T, text.step_of_T
        assert not (forced_T[at_N] & (step_T[at_N] < 0)).any()
        masked_R = row.masked_CR[0]
        behind_given = 0
        for at in range(length):
            own_R = row.blocks == row.blocks[at]
            committed = np.flatnonzero(own_R & ~masked_R & (text.canvas_step_T >= 0))
            wanted = bool(masked_R[at])
            if positions == "frontier" and len(committed):
                wanted &= at > committed[-1]
            assert (at in at_N) == wanted
            given_R = own_R & (text.canvas_step_T < 0)
            behind_given += wanted and bool(given_R[at:].any())
        passed += behind_given
        end = row.response_R[length - 1]
        assert (
            end == vocab.end_id if answer == "written" else vocab.strength_of(int(end)) is not None
        )
    assert passed  # a given token behind it does not keep a position from being compared


def compared(task: Any, net: Any) -> list[tuple[Trajectory, Any]]:
    """(rollout, its row) of some outputs."""
    given = [tiny_stages.asked_of(task, n, "opd") for n in range(12)]
    texts = tiny_stages.rolled(net, task.settings, given)
    assert all(text.finished for text in texts)
    return [
        (text, task._row(request, text, generator("row", i)))
        for i, (request, text) in enumerate(zip(given, texts, strict=True))
    ]


def test_a_teacher_of_another_temperature_keeps_the_strengths_as_they_are():
    """A colder strength would be another one; all other tokens follow the teacher's temperature."""
    vocab, net = tiny_stages.vocabulary(), tiny_stages.model("block")
    task, _ = tiny_stages.opd_task(
        tiny_stages.model("ar").eval(), rows=8, direct=False, teacher_temperature=0.5
    )
    (micro,) = task.micros(1, net)
    after_N = micro.clean.ids_BT.flatten()[micro.teacher_N + 1]
    said_N = torch.tensor([vocab.strength_of(t) is not None for t in after_N.tolist()])
    assert said_N.any()
    assert not said_N.all()
    assert (micro.heat_N[said_N] == 1).all()
    assert (micro.heat_N[~said_N] == 0.5).all()


def test_opd_loss_is_the_kl_of_teacher_and_student_at_those_places():
    """Recomputed with stock forwards, position by position."""
    teacher = tiny_stages.fresh(8).eval()
    task, config = tiny_stages.opd_task(teacher, rows=4, direct=False, teacher_temperature=0.7)
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
        said = tiny_stages.vocabulary().strength_of(int(micro.clean.ids_BT.flatten()[t + 1]))
        heat = 0.7 if said is None else 1.0
        pair = (taught[t] / heat, student[s])
        p, q = (torch.log_softmax(x[keep].double(), -1) for x in pair)
        return float((p.exp() * (p - q)).sum())

    each = [kl(int(s), int(t)) for s, t in zip(micro.index_N, micro.teacher_N, strict=True)]
    body, head = sum(each[: micro.tokens]), sum(each[micro.tokens :])
    assert head > 0
    assert float(loss.total) == pytest.approx(body + config.ar_weight * head, rel=1e-4)
    total, n = loss.metrics["kl"]
    assert float(total) == pytest.approx(body, rel=1e-4)
    assert n == len(micro.target_N) == micro.count


def careful_of(task: Any, net: Any, prompts_: int) -> tuple[list[Any], list[Any]]:
    """(careful outputs of the first step's prompts, that step's micros)."""
    picks = epoch_order(len(task.outputs), prompts_, 1, task.seed, task.name)
    given = [tiny_stages.asked_of(task, n, "careful") for n in picks]
    settled = replace(task.settings, threshold=1.0, temperature=0.0)
    return tiny_stages.rolled(net, settled, given), task.micros(1, net)


@pytest.mark.parametrize("direct", [True, False])
def test_self_careful_learns_the_models_own_careful_texts(direct):
    task, config = tiny_stages.opd_task(None, teacher="self_careful", rows=24, direct=direct)
    net, ids = tiny_stages.model("block"), task.corpus.vocab.control
    careful, (micro,) = careful_of(task, net, 12)
    texts = {tuple(t.tokens_T.tolist()) for t in careful if t.finished}
    assert len(micro.clean.ids_BT) == config.rollouts * sum(t.finished for t in careful) > 12
    opens = ids["<direct>" if direct else "<reason>"]
    for row in micro.clean.ids_BT.tolist():
        text = row[row.index(opens) + 1 :]
        assert any(tuple(text[: len(known)]) == known for known in texts)
    assert task.loss(net, micro).total.isfinite()
    open_ = {t for text in careful for t in text.tokens_T[text.step_of_T >= 0].tolist()}
    assert set(micro.target_N.tolist()) <= open_  # in the decoder's first step or later


def test_a_careful_decoding_that_never_ends_teaches_nothing():
    """Though some of its prompt's sampled rollouts do end: those are no careful text."""
    changes = {"teacher": "self_careful", "rows": 60, "temperature": 1.5, "rule": "raw"}
    task, _ = tiny_stages.opd_task(None, direct=True, **changes)
    net = tiny_stages.fresh()
    careful, micros = careful_of(task, net, 30)
    assert not any(t.finished for t in careful)
    given = [tiny_stages.asked_of(task, 0, "sampled", i) for i in range(60)]
    assert any(t.finished for t in tiny_stages.rolled(net, task.settings, given))
    assert micros == []
