"""The retrievers by name: fit one, load one.

Contract: `fit` builds the kind that the recipe names from some users' train parts (validation items
are used for SASRec's early stop only); `load` reads any retriever directory. SASRec and torch are
imported where one is fitted or loaded. Not here: how any of them works (`sasrec`, `neighbours`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffgr2.artifacts import read_json
from diffgr2.candidates.neighbours import ItemKnn, Popularity
from diffgr2.candidates.retrieval import prefixes
from diffgr2.config import RetrieverConfig
from diffgr2.progress import Progress
from diffgr2.types import Histories

if TYPE_CHECKING:
    from diffgr2.candidates.sasrec import SasRec

type Fitted = SasRec | ItemKnn | Popularity

COUNTED = {"itemknn": ItemKnn, "popularity": Popularity}


def fit(
    histories: Histories,
    users: np.ndarray,
    config: RetrieverConfig,
    seed: int,
    *,
    work: Path,
    name: str,
    progress: Progress,
) -> tuple[Fitted, dict[str, Any]]:
    """A retriever that knows these users' train parts, and metrics of its training."""
    if config.kind in COUNTED:
        train = prefixes(histories, users, histories.lengths_U[users] - 2)
        return COUNTED[config.kind].build(train), {}
    from diffgr2.candidates import sasrec

    model, curve = sasrec.train(
        histories, users, config, seed, work=work, name=name, progress=progress
    )
    best = max(curve, key=lambda entry: entry["ndcg@10"])
    return model, {"epochs": len(curve), "best_epoch": curve.index(best) + 1, "loss": best["loss"]}


def load(directory: Path) -> Fitted:
    """The retriever in a directory, whatever its kind."""
    kind = read_json(directory / "config.json")["kind"]
    if kind in COUNTED:
        return COUNTED[kind].load(directory)
    from diffgr2.candidates.sasrec import SasRec

    return SasRec.load(directory)
