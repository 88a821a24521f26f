"""What nothing is known of: evidence that a request's strangers, or want of history, leave open.

Contract: `unknown(recent, shown, names)` says which of these fields have no value for which
candidates, so that the prompt passes over them instead of saying "never": counts of an item that
nobody could buy here yet, brand, kind or words that nobody knows, and all that a history would have
to tell where there is none. Catalogue items among catalogue purchases have every counted field, as
in training. Not here: the values (`candidates.index`), a shop's own fields, which a request gives.
"""

from collections.abc import Sequence

import numpy as np

from diffgr2.candidates.fields import OF_NEWEST, PAIRED, SOLD
from diffgr2.rerank.names import Item


def unknown(recent: Sequence[Item], shown: Sequence[Item], names: Sequence[str]) -> np.ndarray:
    """Booleans [K, F]; `recent` are the purchases that evidence looks at, the newest last."""
    past = [_told(item) for item in recent]
    lost_KF = np.zeros((len(shown), len(names)), dtype=bool)
    for k, item in enumerate(shown):
        own = _told(item)
        for f, name in enumerate(names):
            if (part := _PART.get(name)) is not None:
                lost_KF[k, f] = not (own[part] and _spoken(name, part, past))
    return lost_KF


def _spoken(name: str, part: str, past: Sequence[dict[str, bool]]) -> bool:
    """Whether the history tells what a field needs of it."""
    if name in ALONE:
        return True
    return any(one[part] for one in (past[-1:] if name in NEWEST else past))


_PART = dict.fromkeys((*PAIRED, *SOLD), "counts") | {
    **{"brand": "brand", "category": "kind", "text": "words"},
    **{"title": "title", "title_last": "title", "range": "brand"},
}
ALONE = ("buyers", "range", "buyers_now", "fresh_now", "trend_now")
"""What a candidate has by itself, whatever the history."""
NEWEST = (*OF_NEWEST, "title_last", "fresh", "trend")
"""What looks at the newest purchase alone."""


def _told(item: Item) -> dict[str, bool]:
    """What is known of an item."""
    stranger = item.stranger
    return {
        "counts": stranger is None,
        "brand": stranger is None or bool(stranger.brand),
        "kind": stranger is None or bool(stranger.categories),
        "title": stranger is None or bool(stranger.title),
        "words": stranger is None or item.vector_E is None or bool(item.vector_E.any()),
    }
