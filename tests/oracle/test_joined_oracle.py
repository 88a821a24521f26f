"""Joined rows against each row alone, marks against the mask they stand for, flex against dense."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask

from diffgr2.model import joined
from diffgr2.model.masks import (
    Marks,
    attends,
    causal_marks,
    row_marks,
    row_mask,
    stack_marks,
    stack_masks,
)
from diffgr2.objectives.likelihood import logits_at
from diffgr2.train.working import recompute
from support import tiny_stages
from support.tiny_qwen import tiny

MASK = 28
ROW = st.tuples(st.integers(0, 9), st.integers(1, 12), st.integers(0, 3))
BLOCKS = st.integers(1, 6).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@settings(max_examples=300)
@given(ROW, BLOCKS, st.booleans())
def test_marks_say_what_the_mask_says(row: Any, block: Any, causal: bool) -> None:
    marks = row_marks(*row, *block, clean_causal=causal)
    assert torch.equal(marks.dense(), row_mask(*row, *block, clean_causal=causal))


@given(st.lists(ROW, min_size=1, max_size=4), BLOCKS, st.booleans())
def test_padded_marks_say_what_padded_masks_say(rows: Any, block: Any, causal: bool) -> None:
    marks = [row_marks(*row, *block, clean_causal=causal) for row in rows]
    width = max(len(one.place) for one in marks) + 3
    masks = [row_mask(*row, *block, clean_causal=causal) for row in rows]
    assert torch.equal(stack_marks(marks, width).dense(), stack_masks(masks, width))


def test_causal_marks_are_the_lower_triangle_of_what_is_no_padding() -> None:
    length_B = torch.tensor([3, 5])
    masks = [torch.ones(int(n), int(n), dtype=torch.bool).tril() for n in length_B]
    assert torch.equal(causal_marks(length_B, 6).dense(), stack_masks(masks, 6))


def document(rows: list[Marks]) -> Marks:
    """Rows end to end, each a document, filled up to whole strips."""
    parts = [
        Marks(torch.full_like(row.own, n), row.place, row.reach, row.own)
        for n, row in enumerate(rows)
    ]
    names = ("document", "place", "reach", "own")
    whole = Marks(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    return joined.padded(whole, -len(whole.own) % joined.STRIP)


def long_rows(seed: int) -> list[Marks]:
    draws = np.random.default_rng(seed)
    rows = []
    for _ in range(3):
        prompt, response, copies = draws.integers((300, 20, 1), (450, 90, 4)).tolist()
        shift, causal = int(draws.integers(16)), bool(draws.integers(2))
        rows.append(row_marks(prompt, response, copies, 16, shift, clean_causal=causal))
    return rows


@pytest.mark.parametrize("seed", range(4))
def test_strips_that_are_skipped_hold_no_pair_and_whole_ones_all(seed: int) -> None:
    marks = document(long_rows(seed))
    mask = joined.block_mask(marks)
    query, key = marks.map(lambda p: p[:, None]), marks.map(lambda p: p[None])
    wanted = attends(query, key)
    strips = len(marks.own) // joined.STRIP
    blocks = wanted.unflatten(0, (strips, -1)).unflatten(2, (strips, -1)).transpose(1, 2)
    found = torch.zeros(strips, strips, dtype=torch.long)
    lists: Any = (
        (mask.kv_num_blocks, mask.kv_indices, 1),
        (mask.full_kv_num_blocks, mask.full_kv_indices, 2),
    )
    for count, index, value in lists:
        for s in range(strips):
            found[s, index[0, 0, s, : int(count[0, 0, s])].long()] = value
    some, every = blocks.flatten(2).any(-1), blocks.flatten(2).all(-1)
    assert torch.equal(found, some.long() + every.long())
    assert (found == 0).any(), "a test in which nothing is skipped shows little"
    assert (found == 2).any()
    assert torch.equal(joined.dense(mask), wanted)


FLEX = """
import torch, warnings
warnings.simplefilter("ignore")
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.attention.flex_attention import BlockMask

from diffgr2.model import joined
from test_joined_oracle import document, long_rows
marks = document(long_rows(0))
mask = joined.block_mask(marks)
torch.manual_seed(0)
size = len(marks.own)
q, k, v = (torch.randn(1, heads, size, 16) for heads in (4, 2, 2))
with torch.no_grad():
    found = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    wanted = F.scaled_dot_product_attention(q, k, v, joined.dense(mask), enable_gqa=True)
torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
print("equal", size)
"""

TRACED = """
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from diffgr2.model import joined
from test_joined_oracle import document, long_rows
compiled = torch.compile(flex_attention, backend="eager", fullgraph=True)
for seed in (0, 1):
    mask = joined.block_mask(document(long_rows(seed)))
    size = mask.seq_lengths[0]
    sees = torch.compile(mask.mask_mod, backend="eager", fullgraph=True)
    at, nothing = torch.arange(size), torch.zeros((), dtype=torch.long)
    wanted = joined.dense(mask)
    assert torch.equal(sees(nothing, nothing, at[:, None], at[None]), wanted)
    q, k, v = (torch.randn(1, heads, size, 16) for heads in (4, 2, 2))
    with torch.no_grad():
        found = compiled(q, k, v, block_mask=mask, enable_gqa=True)
        equal = F.scaled_dot_product_attention(q, k, v, wanted, enable_gqa=True)
    torch.testing.assert_close(found, equal, rtol=1e-5, atol=1e-5)
print("equal", size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("script", [FLEX, TRACED], ids=["eager", "traced whole"])
def test_flex_attention_over_the_block_mask_equals_dense_attention(script: str) -> None:
    """In a process of its own: flex attention loads torch's compiler."""
    folder = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("equal")


# ------------------------------------------------------------------------------ whole forwards


def gradients(model: Any) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("family", ["Qwen3", "Qwen2", "Llama"])
def test_joined_rows_equal_rows_alone(family: str, again: bool) -> None:
    """Logits to 1e-5, gradients to 1e-5 of their size; recomputed layers, too."""
    plain, model = tiny(3, family=family), tiny(3, family=family)
    joined.use(model)
    assert joined.chosen(model)
    assert not joined.chosen(plain)
    if again:
        recompute(model)
        model.train()
    draws = torch.Generator().manual_seed(1)
    shapes = [(5, 7, 2, 4, 3), (0, 9, 1, 3, 0), (11, 4, 0, 4, 1)]
    rows = [row_marks(*shape, clean_causal=bool(n % 2)) for n, shape in enumerate(shapes)]
    lengths = [len(row.own) for row in rows]
    width, length_B = max(lengths) + 2, torch.tensor(lengths)
    ids_BT = torch.randint(0, MASK, (3, width), generator=draws)
    position_BT = torch.randint(0, 40, (3, width), generator=draws)
    index_N = torch.tensor([b * width + t for b, n in enumerate(lengths) for t in (0, 3, n - 1)])
    index_N = index_N[torch.randperm(len(index_N), generator=draws)]
    for marks, position in ((stack_marks(rows, width), position_BT), (None, None)):
        layout = {"marks_BT": marks, "position_BT": position}
        found_NV = logits_at(model, ids_BT, index_N, MASK, length_B=length_B, **layout)
        alone = []
        for place in index_N.tolist():
            b, t = divmod(place, width)
            own: dict[str, Any] = {}
            if marks is not None:
                own = {"attends_B1TT": rows[b].dense()[None, None]}
                own["position_BT"] = position_BT[b : b + 1, : lengths[b]]
            ids_1T = ids_BT[b : b + 1, : lengths[b]]
            alone.append(logits_at(plain, ids_1T, torch.tensor([t]), MASK, **own)[0])
        wanted_NV = torch.stack(alone)
        torch.testing.assert_close(found_NV, wanted_NV, rtol=1e-5, atol=1e-5)
        for net, logits_NV in ((model, found_NV), (plain, wanted_NV)):
            net.zero_grad()
            logits_NV.log_softmax(-1)[:, 3].sum().backward()
        for mine, other in zip(gradients(model), gradients(plain), strict=True):
            assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-9


@pytest.mark.parametrize("make", ["sft", "cft", "opd", "block_rl"])
def test_a_stages_loss_is_the_same_over_joined_rows(make: str) -> None:
    """To 1e-5, and gradients to 1e-4 of their size, against the way that CPUs train."""
    task, model, _ = getattr(tiny_stages, f"make_{make}")()
    micros = task.micros(1, model)
    found = []
    for way in range(2):
        if way:
            joined.use(model)
        model.zero_grad()
        total = torch.stack([task.loss(model, micro).total for micro in micros]).sum()
        total.backward()
        found.append((float(total.detach()), torch.cat([g.flatten() for g in gradients(model)])))
    (plain, wanted), (packed, mine) = found
    assert packed == pytest.approx(plain, rel=1e-5, abs=1e-5)  # RL starts at a loss of 0
    assert (mine - wanted).norm() <= 1e-4 * wanted.norm()


def test_the_kernel_is_tried_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What raises, and what gives other numbers, is told in a line; what agrees in none."""
    assert joined.trusted(16, 1, 2, "cpu") == ""
    real = joined._attention

    def off(module: Any, q: Any, k: Any, v: Any, mask: Any, **how: Any) -> Any:
        mixed, nothing = real(module, q, k, v, mask, **how)
        return (mixed + 0.1, nothing) if isinstance(mask, BlockMask) else (mixed, nothing)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler\nmore of it")

    for attention, told in ((off, "it differs from dense attention"), (broken, "no compiler")):
        monkeypatch.setattr(joined, "_attention", attention)
        assert joined.trusted.__wrapped__(16, 1, 2, "cpu") == told
