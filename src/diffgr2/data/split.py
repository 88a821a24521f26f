"""From raw interactions to histories: repeats, k-core, order, leave-one-out, random numbers.

Contract: `build(raw, policy)` turns `RawData` into a `Dataset`. Repeats are dropped, the iterative
k-core is taken, every user's interactions are ordered by (time, file order) with ties left as they
stand or shuffled, users with fewer than three interactions go (leave-one-out needs three), and
users and items get random dense numbers, so that neither the order of first appearance nor the
raw ids leak into a model. All of it is a function of the rows, the policy and the seeds: ids are
taken in sorted order before they are permuted, and each user's ties are shuffled by a stream of
its own, so one user's rows never change another's order. Not here: files (`data.records`) and the
masks of the split itself (`types.Histories` defines train, validation and test by position).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

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


@dataclass(frozen=True)
class Policy:
    """How rows become histories."""

    k_core: int = 5
    tie_order: str = "file"  # or shuffle
    tie_seed: int = 0
    seed: int = 0
    keep_earliest: bool = False  # one interaction per (user, item): the first


def drop_repeats(raw: RawData, keep_earliest: bool) -> np.ndarray:
    """Mask of rows to keep.

    `keep_earliest` keeps a user's first interaction with each item; otherwise only rows that agree
    in user, item and time go, and without a clock none (the same item twice is then two events).
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
    """Rows left when users and items with fewer than `k` (users: also `shortest`) go, repeatedly.

    The result is the largest set of rows in which every user and item keeps that many; it does not
    depend on the order in which they go.
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


def ordered(raw: RawData, rows: np.ndarray, policy: Policy) -> np.ndarray:
    """The rows sorted by (user, time, order within ties)."""
    user, time, item = raw.user_N[rows], raw.time_N[rows], raw.item_N[rows]
    if policy.tie_order == "file":
        return rows[np.lexsort((rows, raw.position_N[rows], time, user))]
    # Before the shuffle ties stand by item id, so the result does not depend on the file's order.
    rows = rows[np.lexsort((raw.position_N[rows], item, time, user))]
    user, time = raw.user_N[rows], raw.time_N[rows]
    stream, current = None, -1
    for start, end in tie_spans(user, time):
        if user[start] != current or stream is None:
            current = int(user[start])
            stream = generator(policy.tie_seed, "data", "ties", raw.users[current])
        rows[start:end] = rows[start:end][stream.permutation(end - start)]
    return rows


def build(raw: RawData, policy: Policy, report: dict[str, Any]) -> Dataset:
    """Repeats, k-core, order, numbers; `report` is what the importer already counted."""
    if policy.tie_order == "shuffle" and not raw.timed:
        raise DataError(
            f"{raw.source}: tie_order shuffle needs timestamps; without them it would shuffle "
            "whole histories"
        )
    rows = np.flatnonzero(drop_repeats(raw, policy.keep_earliest))
    core = rows[k_core_mask(raw.user_N[rows], raw.item_N[rows], policy.k_core)]
    kept = rows[k_core_mask(raw.user_N[rows], raw.item_N[rows], policy.k_core, SHORTEST)]
    users_core, users_kept = np.unique(raw.user_N[core]), np.unique(raw.user_N[kept])
    if len(kept) == 0:
        raise DataError(
            f"{raw.source}: nothing is left of {len(rows)} interactions after the "
            f"{policy.k_core}-core and users with fewer than {SHORTEST} interactions"
        )
    kept = ordered(raw, kept, policy)
    dataset = _number(raw, kept, users_kept, policy.seed)
    report = {
        **report,
        "interactions_in": len(raw.user_N),
        "duplicates_dropped": len(raw.user_N) - len(rows),
        "interactions_used": len(rows),
        "users_before_core": len(np.unique(raw.user_N[rows])),
        "items_before_core": len(np.unique(raw.item_N[rows])),
        "interactions_outside_core": len(rows) - len(kept),
        "short_users_dropped": len(users_core) - len(users_kept),
        "k_core": policy.k_core,
        "tie_order": policy.tie_order,
        "tie_seed": policy.tie_seed,
        "repeats": "earliest per item" if policy.keep_earliest else "kept at distinct times",
        "split_sha256": split_digest(raw, kept),
        **statistics(dataset.histories),
        **_ties(raw, kept),
        **_coverage(dataset.catalogue),
    }
    return Dataset(dataset.histories, dataset.catalogue, dataset.raw_users, report)


def _number(raw: RawData, rows: np.ndarray, users: np.ndarray, seed: int) -> Dataset:
    """Random dense numbers for the users and items of the ordered rows."""
    items = np.unique(raw.item_N[rows])
    old_user = users[permutation(len(users), seed, "data", "users")]  # new number -> index
    old_item = items[permutation(len(items), seed, "data", "items")]
    new_user = np.full(len(raw.users), -1, dtype=np.int64)
    new_item = np.full(len(raw.items), -1, dtype=np.int64)
    new_user[old_user] = np.arange(len(users))
    new_item[old_item] = np.arange(len(items))
    rows = rows[np.argsort(new_user[raw.user_N[rows]], kind="stable")]
    lengths_U = np.bincount(new_user[raw.user_N[rows]], minlength=len(users))
    histories = Histories(
        np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64),
        new_item[raw.item_N[rows]].astype(np.int32),
        raw.time_N[rows] // 1000,
        len(items),
    )
    raw_items = [raw.items[i] for i in old_item]
    nothing = ItemText()
    texts = [raw.texts.get(item, nothing) for item in raw_items]
    catalogue = Catalogue(
        raw_ids=raw_items,
        titles=[text.title for text in texts],
        brands=[text.brand for text in texts],
        categories=[list(text.categories) for text in texts],
        prices=np.array([text.price for text in texts], dtype=np.float64),
        descriptions=[text.description for text in texts],
    )
    return Dataset(histories, catalogue, [raw.users[i] for i in old_user], {})


def split_digest(raw: RawData, rows: np.ndarray) -> str:
    """sha256 over `user item item ...` lines of raw ids, users sorted: the same for every seed."""
    sha = hashlib.sha256()
    user_N = raw.user_N[rows]
    starts = np.flatnonzero(np.concatenate([[True], user_N[1:] != user_N[:-1]]))
    for start, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        words = [raw.users[user_N[start]], *(raw.items[i] for i in raw.item_N[rows[start:end]])]
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


def _ties(raw: RawData, rows: np.ndarray) -> dict[str, Any]:
    """Groups of equal times and the users whose last two items share one."""
    if not raw.timed:
        return {"timed": False, "tie_groups": 0, "same_time_users": 0}
    user_N, time_N = raw.user_N[rows], raw.time_N[rows]
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
