"""TREC run and qrels files, so that anyone can re-score the orders with trec_eval or ranx.

Contract: one query per list, strictly decreasing scores (K, K−1, …), so no tool's tie rule matters;
qrels name the target even where it is not among the candidates, so that a scorer which counts
missing documents reaches the same mean over all users. Ids must hold no white space.
Not here: metrics.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffgr2.errors import DataError
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.types import CandidateLists


def _id(ids: Sequence[str], number: int, kind: str) -> str:
    text = ids[number]
    if not text or any(c.isspace() for c in text):
        raise DataError(f"{kind} {number}: id {text!r} cannot stand in a TREC file")
    return text


def write_run(
    path: Path,
    lists: CandidateLists,
    outputs: SystemOutputs,
    users: Sequence[str],
    items: Sequence[str],
) -> None:
    """`user Q0 item rank score tag` per candidate of the decoded lists; the tag is the name."""
    with path.open("w") as file:
        for row, order_K in zip(outputs.rows, outputs.order_LK, strict=True):
            user = _id(users, int(lists.user_L[row]), "user")
            for place, position in enumerate(order_K[order_K >= 0]):
                item = _id(items, int(lists.items_LK[row, position]), "item")
                file.write(f"{user} Q0 {item} {place + 1} {lists.k - place} {outputs.name}\n")


def write_qrels(
    path: Path, lists: CandidateLists, users: Sequence[str], items: Sequence[str]
) -> None:
    """`user 0 target 1` per list, or a line per outcome with its gain as a whole number from 1."""
    with path.open("w") as file:
        for row, user in enumerate(lists.user_L.tolist()):
            worth = {int(lists.target_L[row]): 1} if lists.target_L[row] >= 0 else {}
            if lists.gains is not None:
                won_K = np.flatnonzero(lists.gains[row] > 0)
                gains = np.maximum(np.rint(lists.gains[row, won_K]), 1).astype(int)
                worth |= dict(zip(lists.items_LK[row, won_K].tolist(), gains.tolist(), strict=True))
            for item, gain in worth.items():
                file.write(f"{_id(users, user, 'user')} 0 {_id(items, item, 'item')} {gain}\n")
