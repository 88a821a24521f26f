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

import hashlib
from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any

import numpy as np
import polars as pl

from diffgr2.config import DataConfig
from diffgr2.data.gather import ItemText, RawData
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError
from diffgr2.streams import generator, permutation
from diffgr2.types import Catalogue, Histories

SHORTEST = 3  # leave-one-out needs a test item, a validation item and something before them


def drop_repeats(raw: RawData, keep_earliest: bool) -> pl.DataFrame:
    """The interactions without repeats.

    `keep_earliest` keeps a user's first with each item; otherwise only those that agree in user,
    item and time go; without a clock the same item twice is two events, unless the reader says that
    the very line stood before.
    """
    if not (raw.timed or keep_earliest):
        return raw.events if raw.again is None else raw.events.filter(~raw.again)
    same = ["user", "item"] if keep_earliest else ["user", "item", "time"]
    by_time = raw.events.sort("time", "position", maintain_order=True)
    return by_time.unique(same, keep="first", maintain_order=True)


def k_core(events: pl.DataFrame, k: int, shortest: int = 0) -> pl.DataFrame:
    """What is left when users and items with fewer than `k` (users: also `shortest`) go, again and
    again: the largest part in which every user and item keeps that many, whatever the order."""
    enough = (pl.len().over("user") >= max(k, shortest)) & (pl.len().over("item") >= k)
    while len(left := events.filter(enough)) < len(events):
        events = left
    return events


def smaller_core(events: pl.DataFrame, k: int) -> str:
    """What a k-core that empties could be instead, or why none can help."""
    for less in range(k - 1, -1, -1):
        if users := k_core(events, less, SHORTEST)["user"].n_unique():
            return f" (k_core: {less} would keep {users} users)"
    each = len(events) / events["user"].n_unique()
    return f" (users have {each:.1f} each: is `user` the right column?)"


def tie_spans(events: pl.DataFrame) -> list[tuple[int, int]]:
    """Spans [start, end) of two and more with the same user and time, in ordered events."""
    sizes = events.group_by("user", "time", maintain_order=True).len()["len"].to_list()
    return [(end - n, end) for n, end in zip(sizes, accumulate(sizes), strict=True) if n > 1]


def ordered(events: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """The interactions sorted by (user, time, order within ties)."""
    if config.tie_order == "file":
        return events.sort("user", "time", "position", maintain_order=True)
    # Before the shuffle ties stand by item id, so the result does not depend on the file's order.
    events = events.sort("user", "time", "item", "position", maintain_order=True)
    order, users = np.arange(len(events)), events["user"]
    stream, current = None, None
    for start, end in tie_spans(events):
        if stream is None or users[start] != current:
            current = users[start]
            stream = generator(config.tie_seed, "data", "ties", current)
        order[start:end] = order[start:end][stream.permutation(end - start)]
    return events[order]


def build(raw: RawData, config: DataConfig, seed: int, report: dict[str, Any]) -> Dataset:
    """Repeats, k-core, order, numbers; `report` is what the importer already counted."""
    if config.tie_order == "shuffle" and not raw.timed:
        raise DataError(
            f"{raw.source}: tie_order shuffle needs timestamps; without them it would shuffle "
            "whole histories"
        )
    k, keep_earliest = config.k_core, config.source == "amazon2023"
    used = drop_repeats(raw, keep_earliest)
    core, kept = k_core(used, k), k_core(used, k, SHORTEST)
    if not len(kept):
        raise DataError(
            f"{raw.source}: nothing is left of {len(used)} interactions after the "
            f"{k}-core and users with fewer than {SHORTEST} interactions{smaller_core(used, k)}"
        )
    kept = ordered(kept, config)
    histories, raw_items, raw_users = number(kept, seed)
    catalogue = catalogue_of(raw_items, raw.texts)
    last_two = kept.group_by("user").agg(pl.col("time").tail(2).n_unique())["time"]
    report = {
        **report,
        "interactions_in": len(raw.events),
        "duplicates_dropped": len(raw.events) - len(used),
        "interactions_used": len(used),
        "users_before_core": used["user"].n_unique(),
        "items_before_core": used["item"].n_unique(),
        "interactions_outside_core": len(used) - len(kept),
        "short_users_dropped": core["user"].n_unique() - len(raw_users),
        "k_core": k,
        "tie_order": config.tie_order,
        "tie_seed": config.tie_seed,
        "repeats": _repeats(raw, keep_earliest),
        "split_sha256": split_digest(kept),
        **statistics(histories),
        "timed": raw.timed,
        "tie_groups": len(tie_spans(kept)) if raw.timed else 0,
        "same_time_users": int((last_two == 1).sum()) if raw.timed else 0,
        **coverage(catalogue),
    }
    return Dataset(histories, catalogue, raw_users, report)


def _repeats(raw: RawData, keep_earliest: bool) -> str:
    """What became of repeats, in words."""
    if raw.again is not None and not keep_earliest:
        return "identical lines dropped"
    return "earliest per item" if keep_earliest else "kept at distinct times"


def catalogue_of(raw_items: list[str], texts: Mapping[str, ItemText]) -> Catalogue:
    """The catalogue of these items, in this order."""
    known = [texts.get(item, ItemText()) for item in raw_items]
    return Catalogue(
        raw_ids=raw_items,
        titles=[text.title for text in known],
        brands=[text.brand for text in known],
        categories=[list(text.categories) for text in known],
        prices=np.array([text.price for text in known], dtype=np.float64),
        descriptions=[text.description for text in known],
    )


def number(
    kept: pl.DataFrame,
    seed: int,
    more_users: Collection[str] = (),
    more_items: Collection[str] = (),
) -> tuple[Histories, list[str], list[str]]:
    """(histories, raw items, raw users) of ordered interactions, under random dense numbers.

    `more_users` and `more_items` have numbers too, whether they are in an interaction or not.
    """
    numbers, ids = {}, {}
    for kind, more in (("user", more_users), ("item", more_items)):
        raw = pl.concat([kept[kind], pl.Series(kind, list(more), pl.String)]).unique().sort()
        old = permutation(len(raw), seed, "data", f"{kind}s")  # new number -> place in `raw`
        ids[kind] = raw.gather(old).to_list()
        place = raw.search_sorted(kept[kind]).to_numpy() if len(kept) else np.empty(0, np.int64)
        numbers[kind] = np.argsort(old)[place]
    by_user = np.argsort(numbers["user"], kind="stable")
    count_U = np.bincount(numbers["user"], minlength=len(ids["user"]))
    histories = Histories(
        np.concatenate([[0], np.cumsum(count_U)]).astype(np.int64),
        numbers["item"][by_user].astype(np.int32),
        kept["time"].to_numpy()[by_user] // 1000,
        len(ids["item"]),
    )
    return histories, ids["item"], ids["user"]


def split_digest(kept: pl.DataFrame) -> str:
    """sha256 over `user item item ...` lines of raw ids, users sorted: the same for every seed."""
    sha = hashlib.sha256()
    for user, items in kept.group_by("user", maintain_order=True).agg("item").iter_rows():
        sha.update((" ".join([user, *items]) + "\n").encode())
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


def coverage(catalogue: Catalogue) -> dict[str, float]:
    """Share of items with each piece of text."""
    known = {
        "title": catalogue.titles,
        "brand": catalogue.brands,
        "categories": catalogue.categories,
        "price": ~np.isnan(catalogue.prices),
        "description": catalogue.descriptions,
    }
    n = len(catalogue)
    return {f"share_{word}": round(sum(map(bool, values)) / n, 6) for word, values in known.items()}
