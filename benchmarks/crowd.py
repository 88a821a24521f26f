"""Synthetic interactions of any size, from which a retriever and co-purchase counts can learn.

Usage: `python benchmarks/crowd.py OUT --interactions 10000000 --items 300000 --seed 0`. Writes
`interactions.parquet` (user, item, timestamp in seconds, rating), in the order of their times, and
`items.parquet` (item, title, brand, categories): the columns that a recipe with `source: table`
reads by itself. The same arguments give the same tables. There is one user for eight interactions.

The crowd: items fall into circles of CIRCLE; their popularity is Zipf's. A user has a few circles.
A purchase follows the user's one before by one of its item's few successors (the share FOLLOWS),
is drawn from one of the user's circles (FAVOURITE), or from everything, always by popularity. One
in four is made in the second of the one before; some rows stand twice, some users are too short for
a k-core. Users are made in batches with streams of their own, so memory holds a few bytes a row and
one batch: 30 M interactions need less than 2 GB. Not here: outcomes, lists, a truth to compare a
ranking with (`data.shop` has one).
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

PER_USER = 8  # interactions per user
CIRCLE, SUCCESSORS = 100, 4
FOLLOWS, FAVOURITE = 0.45, 0.35  # the rest is drawn from everything
SAME_SECOND, TWICE = 0.25, 0.005
SHORT, LEAST = 0.05, 5  # share of users that may have one row only; rows of the others
BATCH, ROWS = 1 << 16, 1 << 20  # users made, and rows written, at a time
BEGIN, SPAN = 1_577_836_800, 4 * 365 * 86_400  # 2020 to 2024

KINDS = "soap oil cream brush candle towel lamp mug kettle scarf glove bag pen ink paper"
ADJECTIVES = "red blue green soft bright small large plain fine warm light dark round old"
STUFFS = "lavender cedar linen cotton copper glass clay wool silk amber rose mint salt"


class Crowd:
    """What the purchases are drawn from."""

    def __init__(self, items: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        self.items, self.seed = items, seed
        weight_I = (np.arange(items) + 10.0) ** -0.9
        # In the order of circles; which item is how popular is drawn.
        self.item_I = rng.permutation(items).astype(np.int32)
        self.until_I = np.cumsum(rng.permutation(weight_I))
        self.until_I /= self.until_I[-1]
        self.circles = -(-items // CIRCLE)
        place_I = np.arange(items)
        drawn_IS = rng.random((items, SUCCESSORS))
        self.next_IS = self.within(np.repeat(place_I[:, None] // CIRCLE, SUCCESSORS, 1), drawn_IS)

    def within(self, circle: np.ndarray, drawn: np.ndarray) -> np.ndarray:
        """A place in each of these circles, by popularity; `drawn` is uniform."""
        first = circle * CIRCLE
        last = np.minimum(first + CIRCLE, self.items) - 1
        low = np.where(first > 0, self.until_I[first - 1], 0.0)
        found = self.until_I.searchsorted(low + drawn * (self.until_I[last] - low), side="right")
        return np.clip(found, first, last).astype(np.int32)

    def lengths(self, interactions: int) -> np.ndarray:
        """Rows per user, long ones rare; their sum is what was asked for."""
        rng = np.random.default_rng([self.seed, 1])
        users = max(interactions // PER_USER, 1)
        length_U = np.where(rng.random(users) < SHORT, 1, LEAST)
        until_U = np.cumsum(rng.lognormal(0.0, 1.0, users))
        more = max(interactions - int(length_U.sum()), 0)
        for begin in range(0, more, BATCH * PER_USER):
            drawn = rng.random(min(BATCH * PER_USER, more - begin)) * until_U[-1]
            at = np.minimum(until_U.searchsorted(drawn, side="right"), users - 1)
            length_U += np.bincount(at, minlength=users)
        return length_U

    def batch(self, number: int, length_U: np.ndarray) -> tuple[np.ndarray, ...]:
        """(user within the batch, item, seconds) of every row of these users, int32 each."""
        rng = np.random.default_rng([self.seed, 2, number])
        users, most = len(length_U), int(length_U.max())
        order_U = np.argsort(-length_U, kind="stable")
        user_N = np.repeat(np.arange(users, dtype=np.int32), length_U)
        first_U = np.cumsum(length_U) - length_U
        place_N = np.empty(len(user_N), np.int32)
        favourite_U3 = rng.integers(0, self.circles, (users, 3))
        last_U = np.zeros(users, np.int32)
        for step in range(most):
            left = order_U[: int((length_U > step).sum())]  # users who buy once more
            how, drawn = rng.random(len(left)), rng.random(len(left))
            circle = favourite_U3[left, rng.integers(0, 3, len(left))]
            found = self.within(circle, drawn)
            away = self.until_I.searchsorted(drawn, side="right").clip(max=self.items - 1)
            found = np.where(how > FOLLOWS + FAVOURITE, away, found)
            if step:
                after = self.next_IS[last_U[left], rng.integers(0, SUCCESSORS, len(left))]
                found = np.where(how < FOLLOWS, after, found)
            last_U[left] = place_N[first_U[left] + step] = found
        gap_N = rng.exponential(7 * 86_400, len(user_N)) * (rng.random(len(user_N)) > SAME_SECOND)
        gap_N[first_U] = rng.random(users) * SPAN
        total_N = np.cumsum(gap_N)
        seconds_N = total_N - np.repeat(total_N[first_U] - gap_N[first_U], length_U)
        item_N, seconds_N = self.item_I[place_N], (seconds_N + BEGIN).astype(np.int32)
        again = np.flatnonzero((rng.random(len(user_N)) < TWICE)[1:] & (np.diff(user_N) == 0))
        item_N[again + 1], seconds_N[again + 1] = item_N[again], seconds_N[again]
        return user_N, item_N, seconds_N


def interactions(crowd: Crowd, count: int) -> Iterator[pl.DataFrame]:
    """All rows in the order of their times, so many at a time."""
    length_U = crowd.lengths(count)
    rows = int(length_U.sum())
    user_N, item_N, seconds_N = (np.empty(rows, np.int32) for _ in range(3))
    done = 0
    for number, begin in enumerate(range(0, len(length_U), BATCH)):
        made = crowd.batch(number, length_U[begin : begin + BATCH])
        at = slice(done, done := done + len(made[0]))
        user_N[at], item_N[at], seconds_N[at] = made[0] + begin, made[1], made[2]
    order_N = np.argsort(seconds_N, kind="stable")
    rng = np.random.default_rng([crowd.seed, 3])
    name_U = np.random.default_rng([crowd.seed, 4]).permutation(len(length_U))  # ids tell nothing
    for begin in range(0, rows, ROWS):
        at = order_N[begin : begin + ROWS]
        yield pl.DataFrame(
            {
                "user": named("u", name_U[user_N[at]]),
                "item": named("i", item_N[at]),
                "timestamp": pl.Series(seconds_N[at], dtype=pl.Int64),
                "rating": pl.Series(rng.integers(1, 6, len(at)), dtype=pl.Int8),
            }
        )


def named(letter: str, number_N: np.ndarray) -> pl.Series:
    """Numbers as ids."""
    return letter + pl.Series(number_N).cast(pl.String).str.zfill(8)


def catalogue(crowd: Crowd) -> pl.DataFrame:
    """One row per item; the words of a title, the brand and the categories are its circle's."""
    rng = np.random.default_rng([crowd.seed, 5])
    place_I = np.argsort(crowd.item_I)  # of item i
    circle_I = place_I // CIRCLE
    word_CW = rng.integers(0, 1 << 16, (crowd.circles, 4))
    draw_I2 = rng.integers(0, 1 << 16, (crowd.items, 2))
    rows = zip(circle_I.tolist(), word_CW[circle_I].tolist(), draw_I2.tolist(), strict=True)
    kinds, adjectives, stuffs = (words.split() for words in (KINDS, ADJECTIVES, STUFFS))
    titles, brands, paths = [], [], []
    for item, (circle, (kind, stuff, brand, _), (one, two)) in enumerate(rows):
        kind_word, stuff_word = kinds[kind % len(kinds)], stuffs[stuff % len(stuffs)]
        adjective = adjectives[one % len(adjectives)]
        titles.append(f"{adjective} {stuff_word} {kind_word} line {circle} no {item}")
        brands.append(f"brand {brand % (crowd.circles + 1)}" if two % 5 else None)
        paths.append(["home", kind_word, f"{stuff_word} {kind_word}"])
    columns = {"title": titles, "brand": brands, "categories": paths}
    return pl.DataFrame({"item": named("i", np.arange(crowd.items)), **columns})


def write(out: Path, count: int, items: int, seed: int) -> None:
    """Both tables."""
    crowd, parts = Crowd(items, seed), out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    catalogue(crowd).write_parquet(out / "items.parquet")
    for number, rows in enumerate(interactions(crowd, count)):
        rows.write_parquet(parts / f"{number:05d}.parquet")
    pl.scan_parquet(sorted(parts.glob("*.parquet"))).sink_parquet(out / "interactions.parquet")
    shutil.rmtree(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--interactions", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.interactions, args.items, args.seed)


if __name__ == "__main__":
    main()
