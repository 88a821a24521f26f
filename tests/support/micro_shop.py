"""A tiny shop, trained just enough to write rankings that are sometimes valid, and its bundles."""

from __future__ import annotations

import fcntl
import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffgr2.config import Recipe
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.plan import STAGES

PASS = {"steps": 0}


def recipe() -> Recipe:
    return validate(
        {
            "name": "micro-shop",
            "data": {"shop": {"n_items": 200, "n_users": 400}},
            "items": {
                "codes": 24,
                "levels": 2,
                "vector_dim": 16,
                "min_unique": 0.3,
            },
            "retriever": {"dim": 16, "epochs": 2, "layers": 1},
            "candidates": {"prefixes": 3, "k": 4, "k_max": 6},
            "evidence": {"history": 6, "buckets": 4},
            "prompt": {"history": 3, "text_vocab": 256, "cites": 1, "strengths": 8},
            "model": {
                "dim": 48,
                "layers": 2,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 24,
                "ffn": 96,
            },
            "midtrain": PASS,
            "sft": {"steps": 200, "rows": 16, "lr": 1e-2, "warmup": 10},
            "rl": PASS,
            "direct_rl": PASS,
            "distill": {"lists": 128, "keep": "all"},
            "cft": {"steps": 100, "rows": 16, "lr": 3e-3, "warmup": 5},
            "opd": PASS,
            "block_rl": PASS,
            "cft_rl": PASS,
            "decode": {"max_tokens": 96},
        },
        "micro-shop",
    )


def build(root: Path) -> Path:
    """The run's directory with both bundles; processes that ask at once share one run."""
    torch.set_num_threads(1)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        quiet = Progress(io.StringIO())
        Runner(recipe(), root, STAGES, quiet).run(["bundle", "bundle_ar"])
    return root


def shared(factory: pytest.TempPathFactory) -> Path:
    """The same of one test run."""
    return of_all_workers(factory, "micro-shop", "DIFFGR2_MICRO_SHOP", build)


def of_all_workers(
    factory: pytest.TempPathFactory, name: str, variable: str, make: Callable[[Path], Path]
) -> Path:
    """What is made once in a test run, or stands where the environment says and outlives it."""
    if kept := os.environ.get(variable):
        return make(Path(kept))
    base = factory.getbasetemp()
    return make((base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name)
