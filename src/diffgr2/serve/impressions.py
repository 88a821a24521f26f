"""What the log of impressions keeps of a ranking that was answered.

Contract: `impression_of` gives one line as plain values: ids, numbers and the names of features, no
text of documents or prompts, no words that somebody searched for. What is no id (an item told in
words alone) stands as null, so that places still count. Scores that the ranking passed over as of
another scale stand as null: lists are made of the log, and would learn from them. Not here: who
writes it (`ledger`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from diffgr2.rerank.names import ID_LIKE, Item
from diffgr2.rerank.result import RankResult
from diffgr2.rerank.task import RankTask
from diffgr2.serve.schema import Ask


def impression_of(
    list_id: str, ask: Ask, task: RankTask, result: RankResult, *, model: str, took_s: float
) -> dict[str, Any]:
    """See the module's docstring; `order` holds places in `items`, best first, as returned."""
    raw, query = task.world.catalogue.raw_ids, task.query
    features = [
        entry.get("features") if isinstance(entry, Mapping) else None for entry in ask.documents
    ]
    return {
        "id": list_id,
        "time": round(time.time(), 3),
        "model": model,
        "user": ask.user,
        "history": [_id(item, None, raw) for item in query.history],
        "items": [_id(*pair, raw) for pair in zip(query.candidates, query.named, strict=True)],
        "given": None if np.isnan(query.scores_N).all() else ask.scores,
        "order": list(result.order),
        "scores": [round(score, 6) for score in result.scores],
        "placed": list(result.placed) if any(result.placed) else None,
        "features": features if any(features) else None,
        "decoder": result.decode["decoder"],
        "ms": round(took_s * 1e3, 1),
    }


def _id(item: Item, named: Any, raw_ids: list[str]) -> str | None:
    """The item's id, or what the client gave as one."""
    if item.number is not None:
        return raw_ids[item.number]
    if isinstance(named, Mapping):
        return named.get("id")
    return named if isinstance(named, str) and ID_LIKE.fullmatch(named) else None
