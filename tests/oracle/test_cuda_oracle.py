"""What only a GPU computes, against what every device does: flex attention and training in bf16.

Contract: skipped without CUDA. The compiled kernel, its backward, and a step over joined rows with
weights in bf16 and recomputed layers are held against dense attention in fp32; CUDA graphs that
come and go, against the same model on the CPU. Not here: what one session's graphs answer
(`tests/contract/test_backends.py`).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffgr2.config import SftConfig
from diffgr2.model import joined
from diffgr2.model.backend import Span
from diffgr2.model.forward import LeanModel
from diffgr2.model.masks import Marks, row_marks, stack_marks
from diffgr2.objectives.likelihood import logits_at
from diffgr2.train.working import Working, prepare
from support.tiny_qwen import VOCAB, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

MASK = VOCAB - 1


def document() -> Marks:
    """Three rows end to end, filled up to whole strips, on the device."""
    shapes = [(310, 40, 2, 16, 3), (420, 75, 1, 16, 0), (350, 64, 3, 16, 9)]
    rows = [row_marks(*shape, clean_causal=bool(n % 2)) for n, shape in enumerate(shapes)]
    named = [
        Marks(torch.full_like(row.own, n), row.place, row.reach, row.own)
        for n, row in enumerate(rows)
    ]
    names = ("document", "place", "reach", "own")
    whole = Marks(*(torch.cat([getattr(part, name) for part in named]) for name in names))
    filled = joined.padded(whole, -len(whole.own) % joined.STRIP)
    return filled.map(lambda part: part.cuda())


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
def test_the_compiled_kernel_and_its_backward_equal_dense(dtype: torch.dtype, close: float) -> None:
    mask = joined.block_mask(document())
    size, draws = mask.seq_lengths[0], torch.Generator("cuda").manual_seed(0)
    given = [torch.randn(1, heads, size, 64, device="cuda", generator=draws) for heads in (4, 2, 2)]
    found, wanted = [], []
    for flex, results in ((True, found), (False, wanted)):
        how = dtype if flex else torch.float32
        q, k, v = (one.to(how).detach().requires_grad_() for one in given)
        if flex:
            out = joined._compiled()(q, k, v, block_mask=mask, enable_gqa=True)
        else:
            dense = joined.dense(mask)
            out = F.scaled_dot_product_attention(q, k, v, dense, enable_gqa=True)
        out.float().square().sum().backward()
        results += [out.float(), *(one.grad.float() for one in (q, k, v) if one.grad is not None)]
    assert len(found) == len(wanted) == 4
    for mine, other in zip(found, wanted, strict=True):
        assert (mine - other).norm() <= close * other.norm()


def loss_of(net: Any) -> torch.Tensor:
    """Of three rows with copies under block-causal marks; it learns to write the next token."""
    shapes = [(40, 32, 2, 16, 3), (0, 48, 1, 16, 0), (70, 24, 0, 16, 1)]
    rows = [row_marks(*shape, clean_causal=True) for shape in shapes]
    lengths = [len(row.own) for row in rows]
    width, draws = max(lengths), torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, MASK, (3, width), generator=draws).cuda()
    position_BT = torch.arange(width).expand(3, -1).cuda()
    index_N = torch.tensor([b * width + t for b, n in enumerate(lengths) for t in range(0, n, 3)])
    length_B = torch.tensor(lengths).cuda()
    marks_BT = stack_marks(rows, width).map(lambda part: part.cuda())
    layout = {"marks_BT": marks_BT, "position_BT": position_BT}
    logits_NV = logits_at(net, ids_BT, index_N.cuda(), MASK, length_B=length_B, **layout)
    return F.cross_entropy(logits_NV.float(), ids_BT.flatten()[index_N.cuda()])


def test_steps_in_bf16_with_recomputed_layers_follow_those_in_fp32() -> None:
    # Flex attention on GPUs knows no heads narrower than 16.
    start, losses = torch.nn.Module.to(tiny(3, head_dim=16), "cuda"), []
    half = {"weights": "bf16", "precision": "bf16", "checkpoint_activations": True}
    for keys in ({}, half):
        config, master = SftConfig(**keys), copy.deepcopy(start).train()
        prepare(master, config)
        assert joined.chosen(master), "without joined rows this shows little"
        working = Working(master, config)
        optimizer, own = torch.optim.SGD(master.parameters(), lr=0.05), []
        for _ in range(3):
            loss = loss_of(working.net)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            working.refresh()
            own.append(float(loss.detach()))
        losses.append(own)
    plain, rounded = losses
    assert plain[2] < plain[0]
    assert rounded == pytest.approx(plain, rel=2e-2)
    assert rounded != plain, "both ways computed in fp32"


def answers(model: LeanModel, rows: int, *, graphs: bool) -> np.ndarray:
    """Of one session's last of five equal forwards; on a GPU the last ones are replayed."""
    session: Any = model.session(MASK)
    session.add([Span([3 + b, 5, 7], 0, [1, 2, 3], 2) for b in range(rows)], 20)
    for _ in range(5):
        views = session.forward([Span([2, 4 + b], 3, [4, 5], 0) for b in range(rows)])
    if graphs:
        assert any(shape.graph is not None for shape in session._slab.shapes.values())
    found = np.stack([view.rows(np.arange(2)) for view in views])
    session.keep([])
    return found


@pytest.mark.parametrize("freed", [True, False])
def test_sessions_of_other_shapes_record_after_earlier_graphs_went(freed: bool) -> None:
    module = tiny(4)
    plain = LeanModel(module)
    model = LeanModel(torch.nn.Module.to(copy.deepcopy(module), "cuda"))
    for rows in (1, 8, 1):
        found = answers(model, rows, graphs=True)
        np.testing.assert_allclose(found, answers(plain, rows, graphs=False), atol=2e-5, rtol=0)
        if freed:
            model.spare.clear()  # the last graph is gone, and torch's pool with it
