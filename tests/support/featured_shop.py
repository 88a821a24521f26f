"""The micro shop with features of its own beside its lists, and its bundle."""

from __future__ import annotations

import fcntl
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgr2.candidates.lists import load_lists
from diffgr2.candidates.own_fields import Column, write_own
from diffgr2.config import Recipe
from diffgr2.pipeline import Runner, StageContext
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.plan import STAGES
from diffgr2.streams import generator
from support import micro_shop

WORDS = ("bestseller", "eco", "limited run", "new", "refill", "sale", "set (3 pieces)")
COLUMNS = {
    "price": Column("number"),
    "ctr": Column("number"),
    "badge": Column("category", WORDS),
    "in_stock": Column("flag"),
}
FEATURES: dict[str, Any] = {
    "price": {"good": "low"},
    "ctr": {"phrase": "clicked {often}"},
    "badge": {"good": ["bestseller"], "bad": ["refill"]},
    "in_stock": {},
}


def recipe() -> Recipe:
    values = micro_shop.recipe().model_dump(mode="json")
    values |= {"name": "featured-shop", "lists": {"features": FEATURES}}
    values["sft"]["steps"], values["cft"]["steps"] = 60, 40
    return validate(values, "featured-shop")


def features_of(split: str, directory: Path, scale: float = 1.0) -> np.ndarray:
    """Raw columns of a split's lists; `ctr` and `badge` know the target, now and then."""
    lists = load_lists(directory, split)
    rng, shape = generator(7, "own", split), lists.items_LK.shape
    right_LK = lists.items_LK == lists.target_L[:, None]
    price_LK = 1.0 + lists.items_LK % 50
    ctr_LK = rng.beta(2, 30, shape) + 0.1 * right_LK * (rng.random(shape) < 0.7)
    badge_LK = np.where(right_LK & (rng.random(shape) < 0.5), 0, rng.zipf(1.6, shape) % len(WORDS))
    own_LKG = np.stack([price_LK * scale, ctr_LK * scale, badge_LK, rng.random(shape) < 0.8], -1)
    own_LKG[rng.random(own_LKG.shape) < 0.1] = np.nan
    return own_LKG.astype(np.float32)


def with_features(ctx: StageContext) -> dict[str, Any]:
    """The stage `candidates`, and what a shop's ranker would have said beside it."""
    metrics = STAGES["candidates"].run(ctx)
    splits = ("train", "validation", "test")
    write_own(ctx.out, COLUMNS, {split: features_of(split, ctx.out) for split in splits})
    return metrics


def stages() -> dict[str, Any]:
    return {**STAGES, "candidates": replace(STAGES["candidates"], run=with_features)}


def build(root: Path) -> Path:
    """The run's directory with its bundle; processes that ask at once share one run."""
    torch.set_num_threads(1)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Runner(recipe(), root, stages(), Progress(io.StringIO())).run(["bundle"])
    return root
