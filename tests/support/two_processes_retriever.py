"""Child of test_retriever_two_processes: a retriever that two processes train and search with.

Run: torchrun --nproc-per-node 2 two_processes_retriever.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from diffgr2.artifacts import save_arrays, write_json
from diffgr2.candidates import fitting
from diffgr2.candidates.ranks import Ranks
from diffgr2.candidates.retrieval import ragged, top_k
from diffgr2.config import RetrieverConfig
from diffgr2.stages.sharing import together
from diffgr2.train import dist
from diffgr2.types import Histories

CONFIG = RetrieverConfig(dim=16, max_len=6, batch_users=17, epochs=2, patience=9, dropout=0.3)
LOSSES = {"full": CONFIG, "sampled": CONFIG.model_copy(update={"loss": "sampled", "negatives": 40})}


def walkers(users: int = 103, items: int = 150) -> Histories:
    """Users who walk on from a random start; a last batch is of one user, so one rank has none."""
    rng = np.random.default_rng(0)
    steps = [rng.integers(0, 3, int(rng.integers(4, 10))).cumsum() for _ in range(users)]
    return ragged([(rng.integers(items) + step) % items for step in steps], items)


def train(folder: Path, name: str, ranks: Ranks) -> None:
    histories = walkers()
    users = np.arange(histories.n_users)
    model, curve = fitting.train(
        histories, users, LOSSES[name], 4, work=folder, name=name, ranks=ranks
    )
    items_LK, scores_LK = top_k(model, histories, 5, ranks)
    if ranks.first:
        arrays = {key: value.numpy() for key, value in model.state_dict().items()}
        save_arrays(folder / f"{name}.found", items_LK=items_LK, scores_LK=scores_LK, **arrays)
        write_json(folder / f"{name}.json", curve)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.start()

    def shared(ranks: Ranks) -> int:
        for name in LOSSES:
            train(folder, name, ranks)
        return ranks.size

    assert together(True, shared) == 2
    assert together(False, lambda ranks: ranks.size) == 1
    dist.leave()


if __name__ == "__main__":
    main()
