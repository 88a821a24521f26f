"""Invented interactions of any size, for measuring what stages cost: `written`.

Contract: `written(out, interactions, items, seed)` writes two parquet tables, `interactions` (user,
item, timestamp) and `items` (item, title, brand, categories); users buy 8 things on average, three
at least, mostly within one of many groups of items, popular ones more. Whole columns at a time, so
tens of millions of rows are a matter of seconds. Not here: a shop whose truth is known
(`data.shop`): nobody can learn anything from these but what they cost.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from diffgr2.streams import generator

NAME = "capacity.synthetic"
LENGTH = 8  # purchases of a mean user
FEWEST = 3
GROUP = 200  # items of a group
WITHIN = 0.8  # share of purchases within the user's own group
WORDS = 4_000
DAY_S = 86_400


def written(out: Path, interactions: int, items: int, seed: int = 0) -> tuple[Path, Path]:
    """The two files."""
    import polars as pl

    draw = generator(seed, "capacity", "synthetic", interactions, items)
    users = max(1, interactions // LENGTH)
    length_U = FEWEST + draw.geometric(1 / (LENGTH - FEWEST + 1), users) - 1
    user_N = np.repeat(np.arange(users), length_U)
    n, groups = len(user_N), max(1, items // GROUP)
    # A square of a uniform number is small more often than not: first items sell best.
    inside_N = (draw.random(n) ** 2 * (items / groups)).astype(np.int64)
    anywhere_N = (draw.random(n) ** 2 * items).astype(np.int64)
    own_N = draw.integers(0, groups, users)[user_N] + groups * inside_N
    item_N = np.where(draw.random(n) < WITHIN, own_N, anywhere_N) % items
    start_U = draw.integers(0, 2_000 * DAY_S, users)
    time_N = start_U[user_N] + (np.arange(n) - np.repeat(np.cumsum(length_U) - length_U, length_U))
    bought = pl.DataFrame({"user": user_N, "item": item_N, "timestamp": time_N * 60})
    bought = bought.with_columns(
        pl.format("U{}", pl.col("user")).alias("user"),
        pl.format("P{}", pl.col("item")).alias("item"),
    )
    sold = pl.DataFrame({"number": np.arange(items)}).with_columns(
        pl.format("P{}", pl.col("number")).alias("item"),
        pl.format(
            "w{} w{} w{} group{}",
            *(pl.Series(draw.integers(0, WORDS, items)) for _ in range(3)),
            pl.col("number") % groups,
        ).alias("title"),
        pl.format("brand{}", pl.col("number") % (groups * 7)).alias("brand"),
        pl.format("kind{}", pl.col("number") % groups).alias("categories"),
    )
    paths = out / "interactions.parquet", out / "items.parquet"
    bought.write_parquet(paths[0])
    sold.drop("number").write_parquet(paths[1])
    return paths
