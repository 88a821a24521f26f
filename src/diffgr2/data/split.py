"""From raw interactions to histories: repeats, k-core, order, leave-one-out, random numbers.

Contract: `build(raw, config, seed, report)` turns `RawData` into a `Dataset`. Repeats are dropped,
the iterative k-core is taken, every user's interactions are ordered by (time, file order) with ties
left as they stand or shuffled, users with fewer than three interactions go (leave-one-out needs
three), and users and items get random dense numbers, so that neither the order of first appearance
nor the raw ids leak into a model. All of it is a function of the interactions, the configuration
and the seeds: ids are taken in sorted order before they are permuted, and each user's ties are
shuffled by a stream of its own, so one user's interactions never change another's order. Not here:
files (`data.records`) and the masks of the split itself (`types.Histories` defines train,
validation and test by position).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffgr2.config import DataConfig
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError
from diffgr2.streams import generator, permutation
from diffgr2.types import Catalogue, Histories

SHORTEST = 3
"""Leave-one-out needs a test item, a validation item and something before them."""


@dataclass(frozen=True)
class ItemText:
    """What a metadata file says about one item."""

    title: str = ""
    brand: str = ""
    categories: tuple[str, ...] = ()
    price: float = float("nan")
    description: str = ""


@dataclass(frozen=True)
class RawData:
    """Well-formed interactions in file order, with raw ids sorted and numbered.

    Times are milliseconds, so that sources with finer clocks than seconds keep their order; without
    a clock (`timed` false) they are all 0 and the file order alone counts.
    """

    source: str  # the file's name, for messages
    users: list[str]  # sorted
    items: list[str]  # sorted
    user_N: np.ndarray  # int64, index into users
    item_N: np.ndarray  # int64, index into items
    time_N: np.ndarray  # int64, milliseconds
    position_N: np.ndarray  # int64, the source's own order among equal times
    timed: bool
    texts: dict[str, ItemText] = field(default_factory=dict)  # by raw item id


def drop_repeats(raw: RawData, keep_earliest: bool) -> np.ndarray:
    """Mask of interactions to keep.

    `keep_earliest` keeps a user's first with each item; otherwise only those that agree in user,
    item and time go, and without a clock none (the same item twice is then two events).
    """
    n = len(raw.user_N)
    keep_N = np.ones(n, dtype=bool)
    if n == 0 or not (raw.timed or keep_earliest):
        return keep_N
    order = np.lexsort((np.arange(n), raw.position_N, raw.time_N, raw.item_N, raw.user_N))
    user, item, time = raw.user_N[order], raw.item_N[order], raw.time_N[order]
    same = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    if not keep_earliest:
        same &= time[1:] == time[:-1]
    keep_N[order[1:][same]] = False
    return keep_N


def k_core_mask(user_N: np.ndarray, item_N: np.ndarray, k: int, shortest: int = 0) -> np.ndarray:
    """Interactions left when users and items with fewer than `k` (users: also `shortest`) go, again
    and again: the largest set in which every user and item keeps that many, whatever the order.
    """
    keep_N = np.ones(len(user_N), dtype=bool)
    n_users = int(user_N.max(initial=-1)) + 1
    n_items = int(item_N.max(initial=-1)) + 1
    while True:
        per_user = np.bincount(user_N[keep_N], minlength=n_users)
        per_item = np.bincount(item_N[keep_N], minlength=n_items)
        bad_N = keep_N & ((per_user[user_N] < max(k, shortest)) | (per_item[item_N] < k))
        if not bad_N.any():
            return keep_N
        keep_N &= ~bad_N


def tie_spans(user_N: np.ndarray, time_N: np.ndarray) -> list[tuple[int, int]]:
    """Spans [start, end) of two and more neighbours with the same user and time."""
    if len(user_N) == 0:
        return []
    new_N = np.concatenate(
        [[True], (user_N[1:] != user_N[:-1]) | (time_N[1:] != time_N[:-1]), [True]]
    )
    edges = np.flatnonzero(new_N)
    long = np.flatnonzero(np.diff(edges) > 1)
    return [(int(edges[i]), int(edges[i + 1])) for i in long]


def ordered(raw: RawData, picked: np.ndarray, config: DataConfig) -> np.ndarray:
    """The picked interactions sorted by (user, time, order within ties)."""
    user, time, item = raw.user_N[picked], raw.time_N[picked], raw.item_N[picked]
    if config.tie_order == "file":
        return picked[np.lexsort((picked, raw.position_N[picked], time, user))]
    # Before the shuffle ties stand by item id, so the result does not depend on the file's order.
    picked = picked[np.lexsort((raw.position_N[picked], item, time, user))]
    user, time = raw.user_N[picked], raw.time_N[picked]
    stream, current = None, -1
    for start, end in tie_spans(user, time):
        if user[start] != current or stream is None:
            current = int(user[start])
            stream = generator(config.tie_seed, "data", "ties", raw.users[current])
        picked[start:end] = picked[start:end][stream.permutation(end - start)]
    return picked


def build(raw: RawData, config: DataConfig, seed: int, report: dict[str, Any]) -> Dataset:
    """Repeats, k-core, order, numbers; `report` is what the importer already counted."""
    if config.tie_order == "shuffle" and not raw.timed:
        raise DataError(
            f"{raw.source}: tie_order shuffle needs timestamps; without them it would shuffle "
            "whole histories"
        )
    k, keep_earliest = config.k_core, config.source == "amazon2023"
    used = np.flatnonzero(drop_repeats(raw, keep_earliest))
    user_N, item_N = raw.user_N[used], raw.item_N[used]
    core_N = k_core_mask(user_N, item_N, k)
    kept_N = k_core_mask(user_N, item_N, k, SHORTEST)
    users_core, users_kept = np.unique(user_N[core_N]), np.unique(user_N[kept_N])
    if len(users_kept) == 0:
        raise DataError(
            f"{raw.source}: nothing is left of {len(used)} interactions after the "
            f"{k}-core and users with fewer than {SHORTEST} interactions"
        )
    kept = ordered(raw, used[kept_N], config)
    histories, raw_items, raw_users = _number(raw, kept, seed)
    texts = [raw.texts.get(item, ItemText()) for item in raw_items]
    catalogue = Catalogue(
        raw_ids=raw_items,
        titles=[text.title for text in texts],
        brands=[text.brand for text in texts],
        categories=[list(text.categories) for text in texts],
        prices=np.array([text.price for text in texts], dtype=np.float64),
        descriptions=[text.description for text in texts],
    )
    report = {
        **report,
        "interactions_in": len(raw.user_N),
        "duplicates_dropped": len(raw.user_N) - len(used),
        "interactions_used": len(used),
        "users_before_core": len(np.unique(user_N)),
        "items_before_core": len(np.unique(item_N)),
        "interactions_outside_core": len(used) - len(kept),
        "short_users_dropped": len(users_core) - len(users_kept),
        "k_core": k,
        "tie_order": config.tie_order,
        "tie_seed": config.tie_seed,
        "repeats": "earliest per item" if keep_earliest else "kept at distinct times",
        "split_sha256": split_digest(raw, kept),
        **statistics(histories),
        **_ties(raw, kept),
        **_coverage(catalogue),
    }
    return Dataset(histories, catalogue, raw_users, report)


def _number(raw: RawData, kept: np.ndarray, seed: int) -> tuple[Histories, list[str], list[str]]:
    """(histories, raw items, raw users) under random dense numbers; `kept` is in order."""
    users, user_N = np.unique(raw.user_N[kept], return_inverse=True)
    items, item_N = np.unique(raw.item_N[kept], return_inverse=True)
    old_user = permutation(len(users), seed, "data", "users")  # new number -> place in `users`
    old_item = permutation(len(items), seed, "data", "items")
    user_N, item_N = np.argsort(old_user)[user_N], np.argsort(old_item)[item_N]
    by_user = np.argsort(user_N, kind="stable")
    histories = Histories(
        np.concatenate([[0], np.cumsum(np.bincount(user_N))]).astype(np.int64),
        item_N[by_user].astype(np.int32),
        raw.time_N[kept][by_user] // 1000,
        len(items),
    )
    return (
        histories,
        [raw.items[i] for i in items[old_item]],
        [raw.users[u] for u in users[old_user]],
    )


def split_digest(raw: RawData, kept: np.ndarray) -> str:
    """sha256 over `user item item ...` lines of raw ids, users sorted: the same for every seed."""
    sha = hashlib.sha256()
    user_N = raw.user_N[kept]
    starts = np.flatnonzero(np.concatenate([[True], user_N[1:] != user_N[:-1]]))
    for start, end in zip(starts, [*starts[1:], len(kept)], strict=True):
        words = [raw.users[user_N[start]], *(raw.items[i] for i in raw.item_N[kept[start:end]])]
        sha.update((" ".join(words) + "\n").encode())
    return sha.hexdigest()


def statistics(histories: Histories) -> dict[str, Any]:
    """What every table should say about its data; works for the simulated shop as well."""
    lengths_U, ends_U = histories.lengths_U, histories.offsets_U1[1:]
    test_U = histories.items_N[ends_U - 1]
    seen_I = np.zeros(histories.n_items, dtype=bool)
    seen_I[histories.train_part().items_N] = True
    return {
        "users": histories.n_users,
        "items": histories.n_items,
        "interactions": len(histories.items_N),
        "mean_length": round(float(lengths_U.mean()), 6),
        "median_length": float(np.median(lengths_U)),
        "longest": int(lengths_U.max()),
        "unseen_test_targets": int((~seen_I[test_U]).sum()),
    }


def _ties(raw: RawData, kept: np.ndarray) -> dict[str, Any]:
    """Groups of equal times and the users whose last two items share one."""
    if not raw.timed:
        return {"timed": False, "tie_groups": 0, "same_time_users": 0}
    user_N, time_N = raw.user_N[kept], raw.time_N[kept]
    last = np.flatnonzero(np.concatenate([user_N[1:] != user_N[:-1], [True]]))
    return {
        "timed": True,
        "tie_groups": len(tie_spans(user_N, time_N)),
        "same_time_users": int((time_N[last] == time_N[last - 1]).sum()),
    }


def _coverage(catalogue: Catalogue) -> dict[str, Any]:
    """Share of items with each piece of text."""
    n = len(catalogue)

    def share(known: Any) -> float:
        return round(sum(bool(value) for value in known) / n, 6)

    return {
        "share_title": share(catalogue.titles),
        "share_brand": share(catalogue.brands),
        "share_categories": share(catalogue.categories),
        "share_price": share(~np.isnan(catalogue.prices)),
        "share_description": share(catalogue.descriptions),
    }
