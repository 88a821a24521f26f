"""Child of test_stages_two_processes: the stages' own tasks, sharded over the ranks.

Run: torchrun --nproc-per-node 2 two_processes_stages.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffgr2.progress import Progress
from diffgr2.train import dist
from diffgr2.train.loop import fit
from support import tiny_stages

STEPS = 5
# Tied weights make the model one unit; untied, trunk and head are units of their own.
CASES = {
    "sft-tied": ("sft", True),
    "sft-untied": ("sft", False),
    "cft-tied": ("cft", True),
    "cft-untied": ("cft", False),
    "opd-tied": ("opd", True),
    "rl-tied": ("rl", True),
    "block_rl-tied": ("block_rl", True),
}


def made(stage: str, tied: bool) -> tuple[Any, Any, Any]:
    """5 micros of one or two rows, so that the ranks' turns do not come out even."""
    if stage == "sft":
        task, config = tiny_stages.sft_task(steps=STEPS, rows=9, micro_rows=2)
    elif stage == "cft":
        task, config = tiny_stages.cft_task(steps=STEPS, rows=5, micro_rows=1)
    elif stage == "opd":
        teacher = tiny_stages.model("ar").eval().requires_grad_(False)
        task, config = tiny_stages.opd_task(
            teacher, steps=STEPS, rows=6, micro_rows=2, positions="all", threshold=0.5
        )
    else:
        make = tiny_stages.rl_task if stage == "rl" else tiny_stages.block_rl_task
        task, config = make(steps=STEPS, prompts=3, group=6, micro_rows=4)
    kind = {"opd": "block", "block_rl": "block", "rl": "ar"}.get(stage)
    return task, tiny_stages.model(kind) if kind else tiny_stages.fresh(4, tied=tied), config


def train(name: str, folder: Path) -> None:
    stage, tied = CASES[name]
    task, net, config = made(stage, tied)
    fit(task, net, config, folder / name, 0, Progress())
    assert dist.is_sharded(net) == (dist.world().size > 1)
    weights = dist.full_tensors(net)
    if dist.world().first:
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / f"{name}.safetensors")


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.start()
    for name in CASES:
        train(name, folder)
    dist.leave()


if __name__ == "__main__":
    main()
