"""Child of test_size_two_processes: what training at size uses, sharded over the ranks.

Run: torchrun --nproc-per-node 2 two_processes_size.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from diffgr2.learning import TARGETS
from diffgr2.model.adapter import Adapter
from diffgr2.model.gated import attach
from diffgr2.progress import Progress
from diffgr2.train import dist
from diffgr2.train.loop import fit
from support import tiny_stages
from support.adapted import drawn

STEPS = 5
AGAIN = {"checkpoint_activations": True}
JOINED = {"attention": "flex", **AGAIN}
CASES: dict[str, tuple[dict[str, Any], str]] = {  # keys, which adapter trains alone
    "again": (AGAIN, ""),
    "joined": (JOINED, ""),
    "lora": (JOINED, "everywhere"),
    "gated": (JOINED, "gated"),
    "gated-padded": (AGAIN, "gated"),
    "autocast": ({"precision": "bf16", **JOINED}, ""),
    "halves": ({"weights": "bf16", **JOINED}, ""),
    "halves-gated": ({"weights": "bf16", **JOINED}, "gated"),
}


def with_adapter(net: Any, which: str) -> Any:
    """An adapter that adds something from the beginning."""
    mask_id = tiny_stages.vocabulary().mask_id if which == "gated" else None
    adapter = Adapter(2, 4.0, TARGETS, mask_id)
    return attach(net, adapter, drawn(net, adapter))


def made(name: str) -> tuple[Any, Any, Any]:
    """CFT, 5 micros a step, so that the ranks' turns do not come out even."""
    changes, which = CASES[name]
    task, config = tiny_stages.cft_task(steps=STEPS, rows=5, micro_rows=1, **changes)
    net = tiny_stages.fresh(4, tied=which != "everywhere")
    if which == "gated":
        task.contract = tiny_stages.contract_of(adapter="masks")
    return task, with_adapter(net, which) if which else net, config


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
