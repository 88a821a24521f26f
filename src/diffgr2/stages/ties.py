"""What a table has to know of purchases at one time: where they are, and what their order tells.

Contract: `parts_of` tells test lists apart whose target was bought on the day of the last item that
the list's user had (there the order of equal times decides what is the target) from all others;
`id_above` ranks by nothing but the order of ids, which is the order of equal times in files that
are sorted by them. Lists of a retriever alone: a shop's own have no such target. Not here: how ties
are ordered (`data.split`), measuring (`evaluate`).
"""

import numpy as np

from diffgr2.candidates.pairs import DAY
from diffgr2.data.store import Dataset
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.types import CandidateLists

ID_ABOVE = "id_above"


def parts_of(dataset: Dataset, lists: CandidateLists) -> dict[str, np.ndarray]:
    """Masks over the lists, `same_day` and `other_days`; {} where nobody knows the days."""
    histories = dataset.histories
    if not histories.timestamps_N.any():
        return {}
    at_L = histories.offsets_U1[lists.user_L] + lists.end_L
    day_N = histories.timestamps_N // DAY
    same_L = (lists.end_L > 0) & (day_N[at_L] == day_N[np.maximum(at_L - 1, 0)])
    return {"same_day": same_L, "other_days": ~same_L}


def id_above(dataset: Dataset, lists: CandidateLists) -> SystemOutputs:
    """Candidates whose id sorts above the last bought item's first, both parts in floor order."""
    ids = np.array(dataset.catalogue.raw_ids)
    place_I = np.empty(len(ids), np.int64)
    place_I[np.argsort(ids, kind="stable")] = np.arange(len(ids))
    histories = dataset.histories
    last_L = histories.items_N[histories.offsets_U1[lists.user_L] + np.maximum(lists.end_L - 1, 0)]
    above_LK = place_I[np.maximum(lists.items_LK, 0)] > place_I[last_L][:, None]
    score_LK = (above_LK & (lists.end_L > 0)[:, None]).astype(np.float64)
    order_LK = order_from_scores(score_LK, ID_ABOVE, lists.length_L)
    return SystemOutputs(ID_ABOVE, order_LK, len(lists))
