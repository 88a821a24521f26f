"""What came after a bundle was made: new purchases and items, joined to those it holds.

Contract: `read_purchases` and `read_records` read tables (csv, tsv, jsonl, parquet; RecBole's
`.inter` and `.item`) as an import does, malformed lines set aside up to `max_bad_share`. `join`
gives the grown shop: known items and users keep their numbers, new ones follow; a purchase that is
known already (the same user, item and second; without a clock: the same user and item) is dropped;
the others take their place by time, behind what stands at the same second. The same arrivals again
change nothing. Not here: what is counted of it (`candidates.recount`), first imports (`records`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.config import TEXT_WORDS
from diffgr2.data.columns import Source, gathered, read_texts
from diffgr2.data.gather import ItemText
from diffgr2.data.lines import Intake
from diffgr2.errors import DataError
from diffgr2.streams import permutation
from diffgr2.types import Catalogue, Histories

TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".parquet": "parquet"}
LATEST = 1 << 38  # seconds: beyond the year 9999
ATOMIC = {".inter": "atomic", ".item": "atomic"}


@dataclass(frozen=True)
class Shop:
    """A bundle's items, shoppers and histories."""

    histories: Histories
    catalogue: Catalogue
    raw_users: list[str]


@dataclass(frozen=True)
class Purchases:
    """Purchases of a file under raw ids."""

    users: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    user_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # into `users`
    item_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # into `items`
    time_N: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # seconds
    timed: bool = True


@dataclass(frozen=True)
class Joined:
    """The grown shop and what is new in it."""

    shop: Shop
    new_N: np.ndarray  # bool: which purchases were not known
    added: int  # so many
    known: int  # purchases that were known already
    described: list[int]  # known items that have words now
    differing: int  # known items that the file describes otherwise, and that stayed as they were

    n_new_items: int
    n_new_users: int

    @property
    def changed(self) -> bool:
        """Whether anything is new at all."""
        return bool(self.added or self.described or self.n_new_items)


# ------------------------------------------------------------------------------------- reading


def source_of(path: Path, columns: Mapping[str, str]) -> Source:
    """How a table is read, by its name."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix in ATOMIC:
        if columns:
            raise DataError(f"{path.name}: its columns have fixed names")
        return Source(ATOMIC[suffix], {})
    if suffix not in TABLES:
        raise DataError(
            f"{path.name}: unknown kind of table (expected .csv, .tsv, .jsonl, each also with .gz, "
            ".parquet, .inter or .item)"
        )
    return Source(TABLES[suffix], dict(columns))


def _intake(path: Path, max_bad_share: float) -> Intake:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return Intake(path.name, None, max_bad_share)


def read_purchases(
    path: Path, columns: Mapping[str, str], max_bad_share: float
) -> tuple[Purchases, Intake]:
    """The purchases of a file, in the order of their times and then of the file."""
    intake = _intake(path, max_bad_share)
    gatherer, timed = gathered(path, source_of(path, columns), intake)
    user_N, item_N, time_N, position_N = gatherer.arrays()
    if not len(user_N):
        raise DataError(f"{path.name}: holds no usable interactions")
    order_N = np.lexsort((position_N, time_N))
    ids = (list(gatherer.users), list(gatherer.items))
    arrays = (user_N[order_N], item_N[order_N], time_N[order_N] // 1000)
    return Purchases(*ids, *arrays, timed), intake


class _Everything:
    """Wants the record of every item."""

    def __contains__(self, _: Any) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_records(
    path: Path, columns: Mapping[str, str], max_bad_share: float
) -> tuple[dict[str, ItemText], Intake]:
    """What a file says of its items, by raw id."""
    intake = _intake(path, max_bad_share)
    source = replace(source_of(path, columns), own=("item", *TEXT_WORDS))
    return read_texts(path, source, intake, _Everything()), intake


# ------------------------------------------------------------------------------------- joining


def join(
    shop: Shop, purchases: Purchases, records: Mapping[str, ItemText], seed: int, *, anew: bool
) -> Joined:
    """See the module's docstring; `anew` takes the file's words for known items as well."""
    if len(purchases.user_N) and shop_is_timed(shop) and not purchases.timed:
        raise DataError(
            "interactions: timestamp is missing; the bundle's purchases have times, so where new "
            "ones belong cannot be told without"
        )
    known = {raw: item for item, raw in enumerate(shop.catalogue.raw_ids)}
    fresh = sorted({*records, *purchases.items} - known.keys())
    # In random order, so that numbers tell nothing of the ids.
    fresh = [fresh[at] for at in permutation(len(fresh), seed, "refresh", "items", len(known))]
    catalogue, described, differing = _described(shop.catalogue, known, records, anew=anew)
    catalogue = _longer(catalogue, fresh, records)
    known |= {raw: len(known) + n for n, raw in enumerate(fresh)}
    users = {raw: user for user, raw in enumerate(shop.raw_users)}
    newcomers = [raw for raw in purchases.users if raw not in users]
    users |= {raw: len(users) + n for n, raw in enumerate(newcomers)}

    user_N = np.array([users[raw] for raw in purchases.users], np.int64)[purchases.user_N]
    item_N = np.array([known[raw] for raw in purchases.items], np.int64)[purchases.item_N]
    time_N = purchases.time_N if shop_is_timed(shop) else np.zeros_like(purchases.time_N)
    new_N = _unknown(shop.histories, user_N, item_N, time_N)
    added = (user_N[new_N], item_N[new_N], time_N[new_N])
    histories, fresh_N = _merged(shop.histories, len(users), len(known), *added)
    return Joined(
        Shop(histories, catalogue, [*shop.raw_users, *newcomers]),
        fresh_N,
        int(new_N.sum()),
        int((~new_N).sum()),
        described,
        differing,
        len(fresh),
        len(newcomers),
    )


def shop_is_timed(shop: Shop) -> bool:
    """Whether the purchases have times; without a clock all of them are 0."""
    return bool(shop.histories.timestamps_N.any()) or not len(shop.histories.items_N)


def _unknown(
    histories: Histories, user_N: np.ndarray, item_N: np.ndarray, time_N: np.ndarray
) -> np.ndarray:
    """Which purchases (bool) are neither in the histories nor earlier in the file."""
    old = np.repeat(np.arange(histories.n_users), histories.lengths_U)
    columns = (
        np.concatenate([old, user_N]),
        np.concatenate([histories.items_N.astype(np.int64), item_N]),
        np.concatenate([histories.timestamps_N, time_N]),
    )
    order_N = np.lexsort(columns[::-1])  # stable: what stands comes before what is new
    same_N = np.zeros(len(order_N), dtype=bool)
    same_N[1:] = np.logical_and.reduce(
        [column[order_N[1:]] == column[order_N[:-1]] for column in columns]
    )
    again_N = np.zeros(len(order_N), dtype=bool)
    again_N[order_N] = same_N
    return ~again_N[len(old) :]


def _merged(
    histories: Histories,
    n_users: int,
    n_items: int,
    user_N: np.ndarray,
    item_N: np.ndarray,
    time_N: np.ndarray,
) -> tuple[Histories, np.ndarray]:
    """The histories with these purchases, which come by time, and where they stand (bool)."""
    old_N = np.repeat(np.arange(histories.n_users), histories.lengths_U)
    users_N = np.concatenate([old_N, user_N])
    items_N = np.concatenate([histories.items_N, item_N]).astype(np.int32)
    times_N = np.concatenate([histories.timestamps_N, time_N])
    # What stands keeps its order, whatever its times are; LATEST is beyond any time.
    key_N = users_N * LATEST + times_N
    np.maximum.accumulate(key_N[: len(old_N)], out=key_N[: len(old_N)])
    order_N = np.argsort(key_N, kind="stable")
    lengths_U = np.bincount(users_N, minlength=n_users)
    offsets_U1 = np.concatenate([[0], np.cumsum(lengths_U)]).astype(np.int64)
    histories = Histories(offsets_U1, items_N[order_N], times_N[order_N], n_items)
    return histories, order_N >= len(old_N)


def _described(
    catalogue: Catalogue, known: Mapping[str, int], records: Mapping[str, ItemText], *, anew: bool
) -> tuple[Catalogue, list[int], int]:
    """Known items get the file's words where they have none, or all of them with `anew`."""
    titles, brands = catalogue.titles.copy(), catalogue.brands.copy()
    categories, descriptions = catalogue.categories.copy(), catalogue.descriptions.copy()
    prices, described, differing = catalogue.prices.copy(), [], 0
    for raw, record in records.items():
        item = known.get(raw)
        if item is None:
            continue
        has = (titles[item], brands[item], tuple(categories[item]), descriptions[item])
        told = (record.title, record.brand, record.categories, record.description)
        if has == told:
            continue
        if not any(told) or (any(has) and not anew):
            differing += 1
            continue
        titles[item], brands[item], descriptions[item] = told[0], told[1], told[3]
        categories[item], prices[item] = list(told[2]), record.price
        described.append(item)
    changes = {"titles": titles, "brands": brands, "categories": categories, "prices": prices}
    return replace(catalogue, descriptions=descriptions, **changes), described, differing


def _longer(catalogue: Catalogue, fresh: list[str], records: Mapping[str, ItemText]) -> Catalogue:
    """The catalogue with these items behind its own."""
    texts = [records.get(raw, ItemText()) for raw in fresh]
    return Catalogue(
        [*catalogue.raw_ids, *fresh],
        [*catalogue.titles, *(text.title for text in texts)],
        [*catalogue.brands, *(text.brand for text in texts)],
        [*catalogue.categories, *(list(text.categories) for text in texts)],
        np.concatenate([catalogue.prices, np.array([text.price for text in texts], np.float64)]),
        [*catalogue.descriptions, *(text.description for text in texts)],
    )
