"""A shop that has never heard of us: its orders, its catalogue, the requests its ranker answered.

Contract: `write(folder, requests)` leaves three csv files in the shop's own words. The ranker knows
what sells and what is clicked; what shoppers want also knows price, margin, stock and what goes
with what they have. `wanted` is that truth, so that a test can answer requests as a shopper would.
Everything follows from the seed. Not here: a recipe, or anything of the package.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

START, DAY = 1_735_689_600, 86_400
FEATURES = ("price", "ctr", "margin", "stock")
TYPES = ("kettle", "teapot", "mug", "strainer", "tray", "spoon", "tin", "scale", "filter", "towel")
WORDS = ("blue", "steel", "small", "oak", "double", "travel", "classic", "round", "matt", "tall")


@dataclass(frozen=True)
class Shop:
    """Items I, groups of what goes together, shoppers with their orders."""

    group_I: np.ndarray
    price_I: np.ndarray
    ctr_I: np.ndarray
    margin_I: np.ndarray
    stock_I: np.ndarray
    popularity_I: np.ndarray
    orders: list[list[tuple[int, int]]]  # (day's second, item) of each shopper, oldest first
    rng: np.random.Generator


def open_shop(items: int = 400, shoppers: int = 600, seed: int = 0) -> Shop:
    rng = np.random.default_rng(seed)
    group_I = rng.integers(0, 20, items)
    popularity_I = rng.lognormal(0, 1, items)
    orders = []
    for _ in range(shoppers):
        tastes, moment, mine = rng.choice(20, 2, replace=False), START, []
        for _ in range(int(rng.integers(4, 13))):
            moment += int(rng.integers(1, 20 * DAY))
            weight_I = popularity_I * np.where(np.isin(group_I, tastes), 30.0, 0.5)
            mine.append((moment, int(rng.choice(items, p=weight_I / weight_I.sum()))))
        orders.append(mine)
    return Shop(
        group_I=group_I,
        price_I=rng.lognormal(3, 0.6, items).round(2),
        ctr_I=rng.beta(2, 40, items).round(4),
        margin_I=rng.uniform(0.05, 0.6, items).round(3),
        stock_I=rng.random(items) < 0.85,
        popularity_I=popularity_I,
        orders=orders,
        rng=rng,
    )


def wanted(shop: Shop, had: list[int], items_K: np.ndarray) -> np.ndarray:
    """How much a shopper who has `had` wants each candidate."""
    goes = np.isin(shop.group_I[items_K], shop.group_I[had]) if had else np.zeros(len(items_K))
    ctr, price = shop.ctr_I[items_K], np.log(shop.price_I[items_K])
    margin = shop.margin_I[items_K]  # what the shop earns most on, it shows best
    want_K = 25 * ctr - 1.2 * (price - 3) + 3 * margin + 2.0 * goes
    return want_K - 3.0 * ~shop.stock_I[items_K]


def candidates(shop: Shop, had: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """What the shop's ranker puts forward: items, best first, and its scores."""
    near_I = np.isin(shop.group_I, shop.group_I[had]) if had else np.zeros(len(shop.group_I))
    weight_I = shop.popularity_I * (1 + 6 * near_I)
    items_K = shop.rng.choice(len(weight_I), k, replace=False, p=weight_I / weight_I.sum())
    score_K = 0.5 * np.log(shop.popularity_I[items_K]) + 20 * shop.ctr_I[items_K]
    best_K = np.argsort(-score_K, kind="stable")
    return items_K[best_K], score_K[best_K].round(4)


def features(shop: Shop, item: int) -> dict[str, float | bool | None]:
    """As the shop would send them with a request; a sixth of the prices is not known."""
    price = None if item % 6 == 0 else float(shop.price_I[item])
    rest = {"ctr": float(shop.ctr_I[item]), "margin": float(shop.margin_I[item])}
    return {"price": price, **rest, "stock": bool(shop.stock_I[item])}


def outcomes(shop: Shop, had: list[int], items_K: np.ndarray) -> tuple[np.ndarray, int]:
    """What is clicked, and the column that is bought (-1: none)."""
    want_K = wanted(shop, had, items_K) + shop.rng.gumbel(size=len(items_K))
    bought = int(want_K.argmax()) if shop.rng.random() < 0.6 else -1
    looked = np.argsort(-want_K)[: int(shop.rng.integers(1, 3))]
    click_K = np.zeros(len(items_K), int)
    click_K[looked] = 1
    return click_K, bought


def had_by(shop: Shop, shopper: int, moment: int) -> list[int]:
    return [item for when, item in shop.orders[shopper] if when < moment]


def moment_for(shop: Shop, shopper: int) -> int:
    """Some time after the shopper's second order."""
    first, last = shop.orders[shopper][1][0], shop.orders[shopper][-1][0]
    return int(shop.rng.integers(first + 1, last + 5 * DAY))


def write(folder: Path, requests: int, seed: int = 0) -> Shop:
    """orders.csv, products.csv, requests.csv."""
    shop = open_shop(seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(
        [(f"c{s}", name(i), t) for s, mine in enumerate(shop.orders) for t, i in mine],
        schema=["customer", "sku", "ordered_at"],
        orient="row",
    ).write_csv(folder / "orders.csv")
    pl.DataFrame([about(shop, i) for i in range(len(shop.group_I))]).write_csv(
        folder / "products.csv"
    )
    rows = []
    for number in range(requests):
        shopper = int(shop.rng.integers(len(shop.orders)))
        moment = moment_for(shop, shopper)
        had = had_by(shop, shopper, moment)
        items_K, score_K = candidates(shop, had, int(shop.rng.integers(8, 17)))
        click_K, bought = outcomes(shop, had, items_K)
        for k, item in enumerate(items_K.tolist()):
            request = {"request_id": f"q{number}", "customer": f"c{shopper}", "shown_at": moment}
            seen = {"sku": name(item), "rank": k + 1, "score": float(score_K[k])}
            told = {"click": int(click_K[k]), "purchase": int(k == bought)}
            rows.append({**request, **seen, **features(shop, item), **told})
    pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / "requests.csv")
    return shop


def name(item: int) -> str:
    return f"T{item:04d}"


def about(shop: Shop, item: int) -> dict[str, str]:
    group = int(shop.group_I[item])
    kind = TYPES[group % 10]
    words = f"{WORDS[item % 10]} {WORDS[(item // 10) % 10]}"
    return {
        "sku": name(item),
        "product_name": f"{words} {kind} no {item}".capitalize(),
        "brand": f"Maker {group // 2}",
        "category": f"Tea > {'Kitchen' if group < 10 else 'Table'} > {kind.capitalize()}",
    }
