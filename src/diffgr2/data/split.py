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
from typing import Any

import numpy as np
import polars as pl

from diffgr2.config import DataConfig
from diffgr2.data.gather import ItemText, RawData
from diffgr2.data.shuffles import shuffled
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError
from diffgr2.streams import permutation
from diffgr2.types import Catalogue, Histories

USERS = 1 << 16  # whose ids are texts at a time
SHORTEST = 3  # leave-one-out needs a test item, a validation item and something before them


def drop_repeats(raw: RawData, keep_earliest: bool) -> pl.DataFrame:
    """The interactions without repeats.

    `keep_earliest` keeps a user's first with each item; otherwise only those that agree in user,
    item and time go; without a clock the same item twice is two events, unless the reader says that
    the very line stood before.
    """
    if not (raw.timed or keep_earliest):
        return raw.events if raw.again is None else raw.events.filter(~raw.again)
    user_N, item_N, time_N, position_N = columns_of(raw.events)
    order_N = sorted_by(user_N, item_N, time_N, position_N)
    keep_N, same = np.ones(len(order_N), bool), np.ones(max(len(order_N) - 1, 0), bool)
    for column_N in (user_N, item_N) if keep_earliest else (user_N, item_N, time_N):
        sorted_N = column_N[order_N]
        same &= sorted_N[1:] == sorted_N[:-1]
    keep_N[order_N[1:][same]] = False
    return raw.events.filter(keep_N)


def sorted_by(*column_N: np.ndarray) -> np.ndarray:
    """The rows' order by these whole numbers, the first column first; equal rows as they stand.

    Neighbouring columns that fit a number together are one, and a last one that already ascends
    says nothing. The first is sorted whole, each further one among the rows that are still equal.
    """
    columns = list(column_N)
    if len(columns) > 1 and (columns[-1][1:] >= columns[-1][:-1]).all():
        columns.pop()
    packed: list[tuple[np.ndarray, int]] = []
    for column in columns:
        low = int(column.min()) if len(column) else 0
        span = int(column.max(initial=low)) - low + 1
        if packed and packed[-1][1] * span < 1 << 63:
            first, before = packed[-1]
            packed[-1] = first * span + (column.astype(np.int64) - low), before * span
        else:
            packed.append((column.astype(np.int64) - low, span))
    first, *rest = (column for column, _ in packed)
    order_N = np.argsort(first, kind="stable")
    same = np.append(False, first[order_N[1:]] == first[order_N[:-1]])  # as the row before
    for column in rest:
        at = np.flatnonzero(same | np.append(same[1:], False))
        rows = order_N[at]
        order_N[at] = rows[np.lexsort([column[rows], np.cumsum(~same[at])])]
        same[1:] &= column[order_N[1:]] == column[order_N[:-1]]
    return order_N


def columns_of(events: pl.DataFrame) -> tuple[np.ndarray, ...]:
    """(user, item, time, position) as numbers; those of ids are in the order of the ids."""
    ids = (events[kind].to_physical().to_numpy() for kind in ("user", "item"))
    return (*ids, events["time"].to_numpy(), events["position"].to_numpy())


def k_core(events: pl.DataFrame, k: int, shortest: int = 0) -> pl.DataFrame:
    """What is left when users and items with fewer than `k` (users: also `shortest`) go, again and
    again: the largest part in which every user and item keeps that many, whatever the order."""
    user_N, item_N, *_ = columns_of(events)
    keep_N, left = np.ones(len(events), bool), len(events) + 1
    while keep_N.sum() < left:
        left = int(keep_N.sum())
        for code_N, least in ((user_N, max(k, shortest)), (item_N, k)):
            count = np.bincount(code_N[keep_N], minlength=int(code_N.max(initial=0)) + 1)
            keep_N &= (count >= least)[code_N]
    return events.filter(keep_N)


def smaller_core(events: pl.DataFrame, k: int) -> str:
    """What a k-core that empties could be instead, or why none can help."""
    for less in range(k - 1, -1, -1):
        if users := k_core(events, less, SHORTEST)["user"].n_unique():
            return f" (k_core: {less} would keep {users} users)"
    each = len(events) / events["user"].n_unique()
    return f" (users have {each:.1f} each: is `user` the right column?)"


def tie_spans(events: pl.DataFrame) -> np.ndarray:
    """Spans [start, end) of two and more with the same user and time, in ordered events."""
    user_N, _, time_N, _ = columns_of(events)
    changes = (user_N[1:] != user_N[:-1]) | (time_N[1:] != time_N[:-1])
    start = np.flatnonzero(np.append(True, changes)) if len(events) else np.empty(0, np.int64)
    spans_S2 = np.stack([start, np.append(start[1:], len(events))[: len(start)]], 1)
    return spans_S2[np.diff(spans_S2)[:, 0] > 1]


def ordered(events: pl.DataFrame, config: DataConfig) -> pl.DataFrame:
    """The interactions sorted by (user, time, order within ties)."""
    user_N, item_N, time_N, position_N = columns_of(events)
    if config.tie_order == "file":
        return events[sorted_by(user_N, time_N, position_N)]
    # Before the shuffle ties stand by item id, so the result does not depend on the file's order.
    events = events[sorted_by(user_N, time_N, item_N, position_N)]
    spans_S2 = tie_spans(events)
    users = events["user"][spans_S2[:, 0]].cast(pl.String).to_list()
    return events[shuffled(len(events), spans_S2, users, config.tie_seed, "data", "ties")]


def build(raw: RawData, config: DataConfig, seed: int, report: dict[str, Any]) -> Dataset:
    """Repeats, k-core, order, numbers; `report` is what the importer already counted."""
    if config.tie_order == "shuffle" and not raw.timed:
        raise DataError(
            f"{raw.source}: tie_order shuffle needs timestamps; without them it would shuffle "
            "whole histories"
        )
    k, keep_earliest = config.k_core, config.source == "amazon2023"
    used = drop_repeats(raw, keep_earliest)
    kept = k_core(used, k, SHORTEST)
    core = kept if k >= SHORTEST else k_core(used, k)
    if not len(kept):
        raise DataError(
            f"{raw.source}: nothing is left of {len(used)} interactions after the "
            f"{k}-core and users with fewer than {SHORTEST} interactions{smaller_core(used, k)}"
        )
    kept = ordered(kept, config)
    histories, raw_items, raw_users = number(kept, seed)
    catalogue = catalogue_of(raw_items, raw.texts)
    user_N, _, time_N, _ = columns_of(kept)
    last_N = np.append(user_N[1:] != user_N[:-1], True)  # whether it is its user's last
    last_two = int((last_N[1:] & (time_N[1:] == time_N[:-1])).sum())
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
        "same_time_users": last_two if raw.timed else 0,
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
        known = kept[kind].unique()
        named = pl.concat([known.cast(pl.String), pl.Series(kind, list(more), pl.String)])
        raw = named.unique().sort()
        old = permutation(len(raw), seed, "data", f"{kind}s")  # new number -> place in `raw`
        ids[kind] = raw.gather(old).to_list()
        code_N = kept[kind].to_physical().to_numpy()
        number_C = np.zeros(int(code_N.max(initial=0)) + 1, np.int64)
        if len(known):
            place = raw.search_sorted(known.cast(pl.String)).to_numpy()
            number_C[known.to_physical().to_numpy()] = np.argsort(old)[place]
        numbers[kind] = number_C[code_N]
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
    ends = kept.select(pl.col("user").rle().struct.field("len"))["len"].cum_sum().to_list()
    for begin in range(0, len(ends), USERS):
        start = ends[begin - 1] if begin else 0
        part = kept.slice(start, ends[min(begin + USERS, len(ends)) - 1] - start)
        part = part.select(pl.col("user", "item").cast(pl.String))
        items = part.group_by("user", maintain_order=True).agg(pl.col("item").str.join(" "))
        lines = items.select(pl.concat_str("user", pl.lit(" "), "item", pl.lit("\n")))
        sha.update("".join(lines[:, 0].to_list()).encode())
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
