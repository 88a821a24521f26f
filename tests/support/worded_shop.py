"""The micro shop with another template: its bundle reads and writes words instead of own tokens."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path
from typing import Any

import torch

from diffgr2.config import Recipe
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.stages.plan import STAGES
from support import micro_shop

FIELDS = ["rank", "gap", "copurchase", "last", "next", "brand", "category"]
PROMPTS: dict[str, dict[str, Any]] = {
    "brief": {"text_vocab": 800, "answer": "written"},
    "gr2": {"text_vocab": 600, "cites": 1},
}


def recipe(template: str) -> Recipe:
    """Hardly trained: what it writes is of the right form, or nearly."""
    values = micro_shop.recipe().model_dump(mode="json")
    values["name"] = f"{template}-shop"
    values["prompt"] |= {"template": template, **PROMPTS[template]}
    values["evidence"]["fields"] = FIELDS
    values["decode"]["max_tokens"] = None
    values["sft"]["steps"], values["cft"]["steps"], values["distill"]["lists"] = 40, 20, 16
    return validate(values, values["name"])


def build(root: Path, template: str) -> Path:
    """The run's directory with its bundle; processes that ask at once share one run."""
    torch.set_num_threads(1)
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".building").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Runner(recipe(template), root, STAGES, Progress(io.StringIO())).run(["bundle"])
    return root
