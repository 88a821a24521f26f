"""Child of test_size_two_processes: what training at size uses, sharded over the ranks.

Run: torchrun --nproc-per-node 2 two_processes_size.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffgr2.progress import Progress
from diffgr2.streams import torch_generator
from diffgr2.train import dist
from diffgr2.train.loop import fit
from support import tiny_stages

STEPS = 5
AGAIN = {"checkpoint_activations": True}
CASES: dict[str, tuple[dict[str, Any], bool]] = {  # keys, whether only low-rank additions train
    "again": (AGAIN, False),
    "joined": ({"attention": "flex", **AGAIN}, False),
    "low-rank": ({"attention": "flex", **AGAIN}, True),
    "autocast": ({"attention": "flex", "precision": "bf16", **AGAIN}, False),
    "halves": ({"attention": "flex", "weights": "bf16", **AGAIN}, False),
    "halves-low-rank": ({"attention": "flex", "weights": "bf16", **AGAIN}, True),
}


class LowRank(nn.Module):
    """A frozen matrix and a trained addition of low rank."""

    def __init__(self, base: nn.Linear, draws: torch.Generator, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Parameter(0.2 * torch.randn(rank, base.in_features, generator=draws))
        self.up = nn.Parameter(0.2 * torch.randn(base.out_features, rank, generator=draws))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def with_low_rank(net: Any) -> Any:
    """Only what is added to queries, values and the feed-forward's end trains."""
    net.requires_grad_(False)
    draws = torch_generator(0, "low rank")
    for layer in net.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.q_proj = LowRank(attention.q_proj, draws)
        attention.v_proj = LowRank(attention.v_proj, draws)
        mlp.down_proj = LowRank(mlp.down_proj, draws)
    return net


def made(name: str) -> tuple[Any, Any, Any]:
    """CFT, 5 micros a step, so that the ranks' turns do not come out even."""
    changes, few = CASES[name]
    task, config = tiny_stages.cft_task(steps=STEPS, rows=5, micro_rows=1, **changes)
    net = tiny_stages.fresh(4, tied=not few)
    return task, with_low_rank(net) if few else net, config


def train(name: str, folder: Path) -> None:
    task, net, config = made(name)
    fit(task, net, config, folder / name, 0, Progress())
    assert dist.is_sharded(net)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    assert all(p.grad is None for n, p in net.named_parameters() if n not in trained)
    weights = dist.full_tensors(net)
    if dist.world().first:
        kept = {n: t.float().contiguous() for n, t in weights.items()}
        save_file(kept, folder / f"{name}.safetensors")


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.start()
    for name in CASES:
        train(name, folder)
    dist.leave()


if __name__ == "__main__":
    main()
