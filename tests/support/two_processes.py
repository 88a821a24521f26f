"""Child of test_train_two_processes: everything one launch of several ranks has to show.

Run: torchrun --nproc-per-node 2 two_processes.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from diffgr2.errors import CheckpointError, ConfigError, NonFiniteError
from diffgr2.progress import Progress
from diffgr2.train import dist
from diffgr2.train.lending import lent
from diffgr2.train.loop import fit
from support import battery, toy


def train(folder: Path, **update: object) -> dict[str, torch.Tensor]:
    config = toy.config_of(**update)
    model = toy.ToyModel()
    fit(toy.ToyTask(config), model, config, folder, 0, Progress())
    assert dist.is_sharded(model)
    return dist.full_tensors(model)


def rollout_is_free_of_collectives() -> None:
    """Ranks run unequal numbers of forwards; a collective inside would hang or mismatch."""
    model = toy.ToyModel()
    wanted = model(torch.ones(1, 2, dtype=torch.long))
    dist.shard(model)
    with lent(model) as (policy, whole), whole(policy):
        for _ in range(1 + 3 * dist.world().rank):
            found = policy(torch.ones(1, 2, dtype=torch.long))
    assert torch.equal(found, wanted)
    assert all(p.numel() == 0 for p in dist.twin(model).parameters())  # the copy is freed


def non_finite_stops_all(folder: Path) -> None:
    """Only the second rank's micro is bad (row 1 of micros of one row)."""
    config = toy.config_of(rows=2, micro_rows=1)
    task, model = toy.ToyTask(config, poison=("data", 1)), toy.ToyModel()
    before = {name: tensor.clone() for name, tensor in dist.full_tensors(model).items()}
    try:
        fit(task, model, config, folder, 0, Progress())
    except NonFiniteError:
        after = dist.full_tensors(model)
        assert all(torch.equal(before[name], after[name]) for name in before)
        return
    raise AssertionError("no rank may go on")


def muon_is_refused(folder: Path) -> None:
    """It turns whole matrices, of which each rank has a part."""
    said = ""
    try:
        train(folder, steps=1, optimizer="muon")
    except ConfigError as error:
        said = str(error)
    assert said.startswith("optimizer: muon works in one process, several need adamw")


def write_error_stops_all(folder: Path) -> None:
    (folder / "checkpoints").parent.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints").write_text("a file stands where the directory should be")
    try:
        train(folder, steps=1)
    except CheckpointError:
        return
    raise AssertionError("every rank must hear of the error")


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    here = dist.start()
    weights = train(folder / "two", steps=10)
    # 9 micros do not divide by 2: one rank repeats a micro with weight 0
    odd = train(folder / "odd", steps=10, rows=9, micro_rows=1)
    train(folder / "one-then-two", steps=10)  # the parent left a checkpoint of one process there
    tied = toy.ToyModel(tied=True)
    config = toy.config_of(steps=4)
    fit(toy.ToyTask(config, rounds=2), tied, config, folder / "tied", 0, Progress())
    rollout_is_free_of_collectives()
    non_finite_stops_all(folder / "bad")
    write_error_stops_all(folder / "blocked")
    muon_is_refused(folder / "refused")
    if here.first:
        digest = {name: float(tensor.double().norm()) for name, tensor in weights.items()}
        (folder / "two.json").write_text(json.dumps({"norms": digest, "odd": len(odd)}))
    assert battery.weights_digest(toy.ToyModel())
    dist.leave()


if __name__ == "__main__":
    main()
