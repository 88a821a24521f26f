"""How long a stage learns where the recipe leaves it open, and about how long that takes.

Contract: `steps_of` is a pure function of how much there is to learn from; `chosen` gives a stage's
config with its steps, and says them. `work_of` and `minutes` estimate the time of a recipe's
stages from the size of its data, in arithmetic, over the speed that a short probe finds.
Estimates are for planning: within a factor of two where nothing else runs. Not here: what a stage
does.

The steps were measured on the simulated shop (12,000 lists, of which 2,500 are distilled): with
Muon 700 steps of SFT and 400 of CFT learn to read and copy the evidence. Here are some more of the
first, since the tutor is reached from below. What is learned, a scorecard's reading, grows slowly
with the data: a fourth root. AdamW needs 2.6 and 3.5 times as many.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from diffgr2.config import Recipe, RlConfig, TrainConfig
from diffgr2.progress import Progress

WORDS = 1_100  # tokens of the simulated shop's vocabulary
OPEN = {"rl": 10, "direct_rl": 10, "opd": 20, "block_rl": 10, "cft_rl": 10}
"""Steps of stages that polish: more of them never helped (docs/lab.md)."""

GROWING = {"sft": (12_000, 900, 600, 1_500), "cft": (2_500, 400, 300, 1_000)}
"""Lists to learn from and steps on the shop; least and most steps."""

SLOWER = {"sft": 2.6, "cft": 3.5}  # with AdamW

C = TypeVar("C", bound=TrainConfig)


def steps_of(stage: str, lists: int, words: int, optimizer: str = "muon") -> int:
    """Steps of a stage that learns from so many lists, or texts of so large a vocabulary."""
    if stage in OPEN:
        return OPEN[stage]
    if stage == "midtrain":  # semantic IDs are what it learns
        return int(np.clip(round(100 * (words / WORDS) ** 0.5, -1), 60, 400))
    usual, base, least, most = GROWING[stage]
    steps = np.clip(base * (max(lists, 1) / usual) ** 0.25, least, most)
    return int(round(float(steps) * (SLOWER[stage] if optimizer == "adamw" else 1.0), -1))


def chosen(config: C, stage: str, lists: int, words: int, progress: Progress) -> C:
    """The config with its steps: the recipe's, or as many as the data asks for."""
    if config.steps is not None:
        return config
    steps = steps_of(stage, lists, words, config.optimizer)
    of = f"{lists:,} lists" if stage in GROWING else f"a vocabulary of {words:,}"
    why = "polish" if stage in OPEN else f"from {of}"
    progress.line(f"{stage}: {steps:,} steps ({why}; {stage}.steps in the recipe says otherwise)")
    return config.model_copy(update={"steps": steps})


# ------------------------------------------------------------------------------------- how long


@dataclass(frozen=True)
class Size:
    """How much data there is."""

    users: int
    items: int
    interactions: int
    fields: int = 10
    lists: int | None = None  # that train; None = as many as the retriever makes

    def training_lists(self, recipe: Recipe) -> int:
        if self.lists is not None:
            return self.lists
        # A user's last `prefixes` train positions but the first, two of its purchases kept apart.
        each = min(recipe.candidates.prefixes, max(self.interactions / self.users - 3.0, 1.0))
        return int(0.9 * self.users * each)


LIST_S = 0.013  # a batched AR list of the shop on one core that makes 67 GFLOP/s, beside arithmetic
HIT_SHARE = 0.25  # of test lists that hold their target, at most
EPOCHS = 15  # of a training of the retriever, which stops by itself


def work_of(recipe: Recipe, size: Size) -> dict[str, float]:
    """Arithmetic of each stage in GFLOP, the plain Python beside it counted at 67 GFLOP/s."""
    model, shown = recipe.model, recipe.prompt.history * recipe.items.levels
    wide = model.head_dim * (2 * model.heads + 2 * model.kv_heads) + 3 * model.ffn
    weights = model.layers * model.dim * wide
    mean_k = (recipe.candidates.k + recipe.candidates.k_max / 2) / 2 + 0.5
    row = shown + mean_k * (recipe.items.levels + size.fields + 6)  # tokens of a training row
    if recipe.prompt.template == "brief":
        row = 45 + 8 * recipe.prompt.history + mean_k * (17 + size.fields)
    lists, words = size.training_lists(recipe), recipe.items.levels * recipe.items.codes
    one = 6e-9 * weights * row  # of a row, forwards and back
    decoded = 67 * LIST_S * mean_k / 10.5 + one / 3  # of a list, written by `ar`

    taught = min(recipe.distill.lists or lists, lists)

    def steps(config: TrainConfig, stage: str) -> int:
        if config.steps is not None:
            return config.steps
        return steps_of(stage, taught if stage == "cft" else lists, words, config.optimizer)

    def rollouts(config: RlConfig, stage: str) -> float:
        texts = steps(config, stage) * config.prompts * config.group
        return texts * (1 + config.refill / 2) * (decoded + one)

    catalogue = 1e-9 * size.items * recipe.retriever.dim
    trainings = 1 if recipe.lists.file else 3  # own lists need no cross-fitting
    retrieved = size.interactions * (6 * EPOCHS * trainings * catalogue + 0.067)
    scored = min(HIT_SHARE * size.users, recipe.evaluate.max_users or np.inf) * decoded
    made = {
        "items": 67 * 15.0,
        "retriever and candidates": retrieved,
        "evidence": 67 * (5 + lists / 2_000),
        "midtrain": steps(recipe.midtrain, "midtrain") * recipe.midtrain.rows * one / 5,
        "sft": steps(recipe.sft, "sft") * recipe.sft.rows * one,
        "rl": rollouts(recipe.rl, "rl"),
        "direct_rl": rollouts(recipe.direct_rl, "direct_rl") / 3,
        "rows of the teacher": 3 * scored,
        "distill": taught * decoded,
        "cft": steps(recipe.cft, "cft") * recipe.cft.rows * (1 + recipe.cft.draws) * one,
        "opd": steps(recipe.opd, "opd") * recipe.opd.rows * (decoded + 2 * one),
        "block_rl": rollouts(recipe.block_rl, "block_rl"),
        "cft_rl": rollouts(recipe.cft_rl, "cft_rl"),
        "rows, speed, probes": 12 * scored + 67 * 60,
    }
    return {name: float(value) for name, value in made.items()}


TEACHER = ("sft", "rl", "direct_rl", "rows of the teacher", "midtrain")
BEFORE = ("items", "retriever and candidates", "evidence")


def speed(seconds: float = 0.5) -> float:
    """What training is likely to make here of GFLOP/s: two thirds of a product of matrices."""
    import torch

    a_NN = torch.ones(512, 512)
    start, done = time.perf_counter(), 0
    while (wall := time.perf_counter() - start) < seconds or not done:
        torch.mm(a_NN, a_NN)
        done += 1
    return 0.67 * done * 2 * 512**3 / wall / 1e9


def minutes(work: dict[str, float], gflops: float) -> tuple[float, float]:
    """(up to the AR teacher, all of it) in minutes."""
    teacher = sum(work.get(name, 0.0) for name in (*BEFORE, *TEACHER))
    return teacher / gflops / 60, sum(work.values()) / gflops / 60


def told(work: dict[str, float], gflops: float) -> str:
    """The estimate in words."""
    teacher, whole = (max(1, round(value)) for value in minutes(work, gflops))
    first = f"about {counted(teacher, 'minute')} to the AR teacher (--goal teacher)"
    return f"{first}, {whole:,} for all"


def counted(n: int, word: str) -> str:
    """`1 minute`, `2 minutes`."""
    return f"{n:,} {word}{'' if n == 1 else 's'}"
