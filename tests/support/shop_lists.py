"""Files of a small shop that has lists of its own: interactions, items, lists.

Contract: `write(folder, ...)` draws shoppers, what they bought, and lists of their shop's ranker
with scores, features and outcomes; `price` says nothing, `ctr` says much, `stock` is a flag and
`kind` a category, each missing here and there. Everything follows from the seed. Not here: the
recipe around them (`values`) beyond what a test changes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

START, DAY = 1_700_000_000, 86_400
FEATURES = ["price", "ctr", "stock", "kind"]


def tables(
    users: int = 80, items: int = 60, lists: int = 240, longest: int = 6, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """(interactions, items, lists)."""
    rng = np.random.default_rng(seed)
    bought, time = [], rng.integers(0, 200, users) * DAY + START
    for user in range(users):
        for step in range(int(rng.integers(3, 9))):
            time[user] += int(rng.integers(1, 20)) * DAY
            bought.append((f"u{user}", f"i{int(rng.zipf(1.5)) % items}", int(time[user]), step))
    interactions = pl.DataFrame(
        bought, schema=["user_id", "item_id", "timestamp", "position"], orient="row"
    )
    about = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(items)],
            "title": [f"Soap number {i} of {'rose' if i % 3 else 'mint'}" for i in range(items)],
            "brand": [f"Brand{i % 7}" for i in range(items)],
            "categories": [f"Bath > {'Soap' if i % 2 else 'Oil'}" for i in range(items)],
        }
    )
    rows = []
    for number in range(lists):
        user = int(rng.integers(users))
        k = int(rng.integers(2, longest + 1))
        chosen = rng.permutation(items)[:k]
        moment = int(rng.integers(START + 5 * DAY, START + 300 * DAY))
        ctr = rng.random(k)
        won = int(np.argmax(3 * ctr + rng.gumbel(size=k))) if rng.random() < 0.8 else -1
        for place, item in enumerate(chosen.tolist()):
            rows.append(
                {
                    "list": f"r{number}",
                    "user": f"u{user}",
                    "moment": moment,
                    "item": f"i{item}",
                    "place": place + 1,
                    "score": round(1.0 - place / 10, 4),
                    "click": int(place == won or (won >= 0 and rng.random() < 0.1)),
                    "purchase": int(place == won and number % 2 == 0),
                    "price": round(float(rng.lognormal(2)), 2) if rng.random() < 0.9 else None,
                    "ctr": round(float(ctr[place]), 4) if rng.random() < 0.95 else None,
                    "stock": bool(rng.random() < 0.7),
                    "kind": str(rng.choice(["new", "sale", "plain"])),
                }
            )
    return interactions, about, pl.DataFrame(rows)


def write(folder: Path, kind: str = "parquet", **given: Any) -> dict[str, Path]:
    """The three files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, table in zip(("interactions", "items", "lists"), tables(**given), strict=True):
        paths[name] = folder / f"{name}.{kind}"
        save(table, paths[name])
    return paths


def save(table: pl.DataFrame, path: Path) -> None:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".jsonl":
        table.write_ndjson(path)
    else:
        table.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")


def values(paths: dict[str, Path], **lists: Any) -> dict[str, Any]:
    """A recipe that trains in seconds."""
    none = {"steps": 0}
    return {
        "name": "own-shop",
        "data": {
            "source": "table",
            "interactions": str(paths["interactions"]),
            "items": str(paths["items"]),
            "columns": {"user": "user_id", "item": "item_id"},
        },
        "lists": {
            "file": str(paths["lists"]),
            "gains": {"click": 1.0, "purchase": 3.0},
            "features": FEATURES,
            **lists,
        },
        "items": {
            **{"codes": 24, "levels": 2, "vector_dim": 16, "min_unique": 0.3},
        },
        "retriever": {"kind": "itemknn"},
        "candidates": {"k_max": 6},
        "evidence": {"history": 6, "buckets": 4},
        "prompt": {"history": 3, "text_vocab": 256, "cites": 1, "strengths": 8},
        "model": {
            **{"dim": 48, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 24, "ffn": 96},
        },
        "midtrain": {"steps": 2, "rows": 8},
        "sft": {"steps": 60, "rows": 16, "lr": 1e-2, "warmup": 10},
        "rl": {"steps": 1, "prompts": 2, "group": 4, "refill": 0},
        "direct_rl": none,
        "distill": {"lists": 64, "keep": "all"},
        "cft": {"steps": 20, "rows": 8, "lr": 3e-3, "warmup": 5},
        "opd": {"steps": 1, "rows": 4},
        "block_rl": {"steps": 1, "prompts": 2, "group": 4, "refill": 0},
        "cft_rl": none,
        "decode": {"max_tokens": 96},
        "evaluate": {
            **{"bootstrap": 100, "speed_lists": 2, "rounds": 1, "frontier_lists": 8},
            **{"lengths": [64], "list_lengths": [1, 2, 4], "views": [1, 2]},
        },
    }
