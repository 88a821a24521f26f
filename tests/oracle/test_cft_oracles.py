"""Conversion fine-tuning: what is supervised, what may be seen, and that packing changes nothing.

Leaks are looked for by perturbation: a response token is replaced wherever it stands in a row, and
no supervised prediction that must not know it may move by one bit's worth.
"""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.model.layout import block_of
from diffgr2.objectives.likelihood import logits_at
from diffgr2.progress import Progress
from diffgr2.stages.cft import CLEAN, NOISY, Taught
from diffgr2.stages.noisy import NoisyRow, noisy_batch
from diffgr2.streams import generator
from diffgr2.train.loop import fit
from support import tiny_stages

CONTRACTS = list(product(("causal", "block_causal", "either"), ("same_position", "shifted")))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def task_of(clean: str = "either", alignment: str = "same_position", **changes: Any):
    contract = tiny_stages.contract_of(clean_attention=clean, alignment=alignment)
    return tiny_stages.cft_task(contract=contract, **changes)[0]


def made(task: Any, step: int, numbers: list[int]) -> tuple[list[NoisyRow], list[Taught], Any]:
    """The rows of a micro and their texts, made again from their own streams, and the micro."""
    part = list(enumerate(numbers))
    again = [task.row(n, generator(task.seed, task.name, step, place)) for place, n in part]
    return [row for row, _, _ in again], [text for _, _, text in again], task._micro(step, part)


def rows_and_micro(task: Any, step: int, numbers: list[int]) -> tuple[list[NoisyRow], Any]:
    rows, _, micro = made(task, step, numbers)
    return rows, micro


def meant(task: Any, rows: list[NoisyRow], micro: Any) -> list[tuple[int, int, int, int]]:
    """(row, half, copy, response position) of each supervised prediction, from where it stands."""
    shifted = task.contract.alignment == "shifted"
    out = []
    for index, half in zip(micro.index_N.tolist(), micro.half_N.tolist(), strict=True):
        b, place = divmod(index, micro.batch.width)
        place = int(np.flatnonzero(rows[b].kept)[place])
        prompt, length = len(rows[b].prompt), len(rows[b].response_R)
        if place < prompt + length:
            at = place - prompt + 1
            copy = -1
            if half == NOISY:  # a block's first token; the copy that masks it
                assert shifted
                copy = int(rows[b].masked_CR[:, at].argmax())
        else:
            copy, at = divmod(place - prompt - length, length)
            at += shifted
        out.append((b, half, copy, at))
    return out


# --------------------------------------------------------------------------------- supervision


@pytest.mark.parametrize(("clean", "alignment"), CONTRACTS)
@pytest.mark.parametrize("random_origin", [True, False])
def test_a_complementary_pair_supervises_every_token_exactly_once(clean, alignment, random_origin):
    """Every token that the grammar leaves open."""
    task = task_of(clean, alignment, random_origin=random_origin)
    attentions = set()
    for step in range(1, 9):
        rows, texts, micro = made(task, step, list(range(6)))
        noisy: dict[int, list[int]] = {b: [] for b in range(len(rows))}
        ar: dict[int, list[int]] = {b: [] for b in range(len(rows))}
        for (b, half, copy, at), target in zip(
            meant(task, rows, micro), micro.target_N.tolist(), strict=True
        ):
            assert target == texts[b].targets(tiny_stages.vocabulary())[0][at]
            (noisy if half == NOISY else ar)[b].append(at)
            if half == NOISY:
                assert rows[b].masked_CR[copy, at]
        for b, row in enumerate(rows):
            length = texts[b].length
            open_R = np.flatnonzero(~texts[b].known_R)  # its filling included
            assert sorted(noisy[b]) == open_R.tolist()
            assert sorted(ar[b]) == (list(range(length)) if row.clean_causal else [])
            assert (row.response_R[length:] == tiny_stages.vocabulary().pad_id).all()
            attentions.add(row.clean_causal)
        assert micro.count == pytest.approx(float(micro.weight_N.sum()))
    assert attentions == {"causal": {True}, "block_causal": {False}}.get(clean, {True, False})


def test_each_draw_is_a_pair_of_its_own_over_the_same_clean_half():
    task = task_of("either", draws=3)
    differ = 0
    for step in range(1, 5):
        rows, texts, micro = made(task, step, list(range(6)))
        for b, row in enumerate(rows):
            open_R = np.flatnonzero(~texts[b].known_R)
            assert len(row.masked_CR) == 6
            assert (row.masked_CR[0::2] ^ row.masked_CR[1::2])[:, open_R].all()
            differ += int((row.masked_CR[0] != row.masked_CR[2]).any())
            found = [at for at_b, half, _, at in meant(task, rows, micro) if (at_b, half) == (b, 0)]
            assert sorted(found) == sorted([*open_R.tolist()] * 3)
    assert differ


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_the_asked_share_of_rows_is_attended_causally(share):
    task = task_of("either", causal_share=share)
    drawn = [
        task.row(n, generator(task.seed, task.name, step, n))[0].clean_causal
        for step in range(60)
        for n in range(6)
    ]
    assert np.mean(drawn) == pytest.approx(share, abs=0.08)


def test_without_the_pair_only_masked_tokens_are_supervised():
    task = task_of("block_causal", complementary=False)
    rows, micro = rows_and_micro(task, 1, list(range(6)))
    assert all(len(row.masked_CR) == 1 for row in rows)
    assert len(micro.index_N) == sum(int(row.masked_CR.sum()) for row in rows)
    ids = micro.batch.ids_BT.flatten()
    assert (ids[micro.index_N] == tiny_stages.vocabulary().mask_id).all()


def test_prompts_are_never_masked_and_the_mask_is_never_a_target():
    task = task_of()
    mask_id = tiny_stages.vocabulary().mask_id
    for step in range(1, 5):
        rows, micro = rows_and_micro(task, step, list(range(6)))
        assert (micro.target_N != mask_id).all()
        for b, row in enumerate(rows):
            ids = micro.batch.ids_BT[b]
            assert ids[: len(row.prompt)].tolist() == row.prompt
            clean = ids[len(row.prompt) : len(row.prompt) + len(row.response_R)]
            assert clean.tolist() == row.response_R.tolist()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_asked_share_of_blocks_is_fully_masked(share):
    task = task_of(fully_masked=share)
    full = blocks = 0
    for step in range(1, 80):
        for place, n in enumerate(range(8)):
            row, level_CR, _ = task.row(n, generator(task.seed, task.name, step, place))
            block_R = block_of(len(row.prompt) + np.arange(len(row.response_R)), 4, row.shift)
            first = np.unique(block_R, return_index=True)[1]
            full += int((level_CR[0, first] == 1.0).sum())
            blocks += len(first)
    assert blocks > 2000
    assert full / blocks == pytest.approx(share, abs=0.03)


def test_weights_are_decoupled_and_inverse_t_divides_by_the_level():
    base = {"reasoning_weight": 0.25, "answer_weight": 2.0, "ar_weight": 0.5}
    task = task_of("causal", displaced=0.0, **base)
    _, micro = rows_and_micro(task, 1, list(range(4)))
    for half, scale in ((NOISY, 1.0), (CLEAN, 0.5)):
        for kind, weight in ((0, 0.25), (1, 2.0)):
            part_N = (micro.half_N == half) & (micro.kind_N == kind)
            assert part_N.any()
            assert micro.weight_N[part_N].tolist() == pytest.approx(
                [scale * weight] * int(part_N.sum())
            )
    scaled = task_of("causal", displaced=0.0, **base, loss_scale="inverse_t")
    _, other = rows_and_micro(scaled, 1, list(range(4)))
    assert torch.equal(other.index_N, micro.index_N)
    ratio_N = other.weight_N / micro.weight_N
    assert (ratio_N[micro.half_N == CLEAN] == 1).all()
    assert ((ratio_N >= 1) & (ratio_N <= 10.001)).all()
    assert len(ratio_N[micro.half_N == NOISY].unique()) > 4


# ------------------------------------------------------------------------------------- leakage


@torch.no_grad()
def supervised_logits(net: Any, task: Any, rows: list[NoisyRow], micro: Any) -> torch.Tensor:
    vocab = tiny_stages.vocabulary()
    batch = noisy_batch(rows, vocab.pad_id)
    assert batch.width == micro.batch.width
    return logits_at(
        net,
        batch.ids_BT,
        micro.index_N,
        vocab.mask_id,
        attends_B1TT=batch.attends_B1TT,
        position_BT=batch.position_BT,
    )


def replaced(row: NoisyRow, at: int, token: int) -> NoisyRow:
    response_R = row.response_R.copy()
    response_R[at] = token
    return replace(row, response_R=response_R)


@pytest.mark.parametrize(("clean", "alignment"), CONTRACTS)
def test_no_supervised_prediction_sees_its_token_or_the_future(clean, alignment):
    """Every prediction against every perturbed response token of its row."""
    task = task_of(clean, alignment)
    net = tiny_stages.fresh(11).eval()
    moved = 0
    for step in (1, 2):
        rows, micro = rows_and_micro(task, step, [0, 1, 2])
        places = meant(task, rows, micro)
        before_NV = supervised_logits(net, task, rows, micro)
        for at in range(0, max(len(row.response_R) for row in rows), 1 + step):
            at_B = [min(at, len(row.response_R) - 1) for row in rows]
            changed = [
                replaced(row, r, 7 + (int(row.response_R[r]) + 1) % 40)
                for row, r in zip(rows, at_B, strict=True)
            ]
            after_NV = supervised_logits(net, task, changed, micro)
            gap_N = (after_NV - before_NV).nan_to_num(0.0).abs().amax(-1)
            must_not_N = torch.tensor(
                [not may_see(rows[b], half, copy, q, at_B[b]) for b, half, copy, q in places]
            )
            assert not gap_N[must_not_N].any()
            moved += int((gap_N[~must_not_N] > 1e-4).sum())
    assert moved > 200  # the perturbation does reach those that may see it


def may_see(row: NoisyRow, half: int, copy: int, target: int, other: int) -> bool:
    """Whether the prediction of `target` may depend on response token `other` (block size 4)."""
    if half == CLEAN:
        return other < target
    mine, its = ((len(row.prompt) + at + row.shift) // 4 for at in (target, other))
    if its == mine:
        return not row.masked_CR[copy, other]
    return its < mine


@pytest.mark.parametrize("clean", ["causal", "block_causal"])
def test_gradients_reach_only_what_a_noisy_prediction_may_see(clean):
    """The same by derivatives: of one logit by the embeddings of all tokens of the row."""
    task = task_of(clean)
    net = tiny_stages.fresh(12).eval()
    rows, micro = rows_and_micro(task, 1, [3])
    row, prompt, length = rows[0], len(rows[0].prompt), len(rows[0].response_R)
    embedded = net.model.embed_tokens(micro.batch.ids_BT).detach().requires_grad_()
    hidden = net.model(
        inputs_embeds=embedded,
        attention_mask=micro.batch.attends_B1TT,
        position_ids=micro.batch.position_BT,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    logits_N = net.lm_head(hidden[micro.index_N]).gather(-1, micro.target_N[:, None])[:, 0]
    kept_T = torch.from_numpy(row.kept)
    for n, (_, half, copy, target) in enumerate(meant(task, rows, micro)):
        (grad,) = torch.autograd.grad(logits_N[n], embedded, retain_graph=True)
        in_row_T = grad[0].abs().amax(-1) > 0
        assert in_row_T[0]  # the prompt is always read
        assert not in_row_T[kept_T.sum() :].any()  # padding never
        reached_T = torch.zeros(len(kept_T), dtype=torch.bool)  # places of the full layout
        reached_T[kept_T] = in_row_T[: kept_T.sum()]
        clean_R = reached_T[prompt : prompt + length]
        for other in np.flatnonzero(clean_R.numpy()).tolist():
            if half == CLEAN:
                assert other < target
            else:
                assert (prompt + other + row.shift) // 4 < (prompt + target + row.shift) // 4
        for c in range(len(row.masked_CR)):
            start = prompt + length * (1 + c)
            seen_R = reached_T[start : start + length].numpy()
            block_R = (prompt + np.arange(length) + row.shift) // 4
            own_R = (block_R == block_R[target]) & (half == NOISY and c == copy)
            assert not (seen_R & ~own_R).any()
            if half == NOISY and c == copy:
                assert (seen_R == own_R).all()  # both ways, and all of it


# ------------------------------------------------------------------- packing and accumulation


@torch.no_grad()
@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
def test_leaving_out_blocks_without_a_mask_changes_no_prediction(alignment):
    """Row by row against the full layout, in which every copy stands whole."""
    task = task_of("either", alignment)
    vocab, net = tiny_stages.vocabulary(), tiny_stages.fresh(13).eval()
    rows, micro = rows_and_micro(task, 3, list(range(6)))
    packed_NV = supervised_logits(net, task, rows, micro)
    left_out = 0
    for b, row in enumerate(rows):
        kept_T = row.kept
        left_out += int((~kept_T).sum())
        mine_N = micro.index_N // micro.batch.width == b
        at_N = np.flatnonzero(kept_T)[(micro.index_N[mine_N] % micro.batch.width).numpy()]
        full_NV = logits_at(
            net,
            torch.from_numpy(row.ids())[None],
            torch.from_numpy(at_N),
            vocab.mask_id,
            attends_B1TT=row.attends()[None, None],
            position_BT=row.positions()[None],
        )
        torch.testing.assert_close(packed_NV[mine_N], full_NV, atol=1e-5, rtol=1e-5)
    assert left_out > 8


def totals(net: Any, task: Any, micros: list[Any]) -> tuple[float, float, torch.Tensor]:
    """(sum of losses, sum of counts, gradient) over these micros."""
    net.zero_grad()
    total = 0.0
    for micro in micros:
        loss = task.loss(net, micro)
        loss.total.backward()
        total += float(loss.total.detach())
    gradient = torch.cat([p.grad.flatten() for p in net.parameters()])
    return total, sum(micro.count for micro in micros), gradient


STAGES = {
    "sft": (lambda **c: tiny_stages.sft_task(rows=6, **c)[0], "ar"),
    "cft": (lambda **c: tiny_stages.cft_task(rows=6, sharpen=0.1, **c)[0], "ar"),
    "rl": (lambda **c: tiny_stages.rl_task(prompts=4, **c)[0], "ar"),
    "opd": (
        lambda **c: tiny_stages.opd_task(tiny_stages.model("ar"), rows=8, direct=False, **c)[0],
        "block",
    ),
    "block_rl": (lambda **c: tiny_stages.block_rl_task(prompts=4, **c)[0], "block"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_rows_packed_together_are_rows_one_by_one(stage):
    """Padding, batch width and the number of forwards change no loss and no gradient."""
    make, kind = STAGES[stage]
    net = tiny_stages.model(kind)
    found = []
    for size in (1, 3, 64):
        micros = make(micro_rows=size).micros(1, net)
        found.append((len(micros), *totals(net, make(micro_rows=size), micros)))
    many, _, one = found
    assert many[0] > one[0] == 1
    for _, total, count, gradient in found:
        assert count == pytest.approx(one[2], rel=1e-9)
        assert total == pytest.approx(one[1], rel=1e-5, abs=1e-5)
        assert (gradient - one[3]).norm() <= 1e-4 * one[3].norm()
    assert one[3].norm() > 0


@pytest.mark.parametrize("stage", ["sft", "cft"])
def test_accumulation_changes_no_step(stage, tmp_path):
    """Three optimizer steps, cut in three ways: the same losses and weights."""
    make, kind = STAGES[stage]
    runs = []
    for size in (1, 4, 64):
        task, net = make(micro_rows=size, steps=3), tiny_stages.model(kind)
        lines = fit(task, net, task.config, tmp_path / str(size), 0, Progress(io.StringIO()))
        weights = torch.cat([p.detach().flatten() for p in net.parameters()])
        runs.append(([line["loss"] for line in lines], weights))
    for losses, weights in runs[:-1]:
        assert losses == pytest.approx(runs[-1][0], rel=1e-5)
        assert (weights - runs[-1][1]).norm() <= 1e-4 * runs[-1][1].norm()
