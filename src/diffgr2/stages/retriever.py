"""Stage `retriever`: the full first-stage ranker, trained on every user's train part.

Reads data; writes model.safetensors and config.json. Its metrics hold R@10 and NDCG@10 over all
users for validation (which stops the training early) and test (which decides nothing).
Run: `diffgr2 retriever RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.candidates import kinds
from diffgr2.candidates.retrieval import evaluate, prefixes
from diffgr2.data.store import read_dataset
from diffgr2.pipeline import StageContext
from diffgr2.streams import key_of


def run(ctx: StageContext) -> dict[str, Any]:
    histories = read_dataset(ctx.inputs["data"]).histories
    users = np.arange(histories.n_users)
    seed = key_of(ctx.seed, "retriever")
    place: dict[str, Any] = {"work": ctx.work, "name": "retriever", "progress": ctx.progress}
    model, metrics = kinds.fit(histories, users, ctx.recipe.retriever, seed, **place)
    model.save(ctx.out)
    for split, hidden in (("validation", 2), ("test", 1)):
        end_U = histories.lengths_U - hidden
        target_U = histories.items_N[histories.offsets_U1[:-1] + end_U]
        scores = evaluate(model, prefixes(histories, users, end_U), target_U)
        metrics |= {f"{split}_{name}": value for name, value in scores.items()}
    return metrics
