"""What training on a sample of the catalogue needs: the draw, and steps of the rows it touched.

Contract: `Proposal` draws a step's negatives, distinct items that all positions of a batch share:
an item is in with the chance π, more often where it was bought more often, certainly where it is
popular enough, and the chances add up to the sample's size; counted 1/π times, the sum over the
sample is right on average. A draw is a function of (seed, epoch, step). `RowAdam` steps the rows
that a batch touched. Not here: the losses (`softmax`), and when which of them is taken (`fitting`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffgr2.streams import generator

POWER = 0.75  # of an item's purchases in its chance
EVEN = 0.25  # share of the sample that is drawn from all items alike
BETAS, EPS = (0.9, 0.999), 1e-8


def chances(count_I: np.ndarray, size: int, power: float = POWER, even: float = EVEN) -> np.ndarray:
    """How likely each item is in a sample: proportional to its weight, at most 1, `size` in all."""
    n = len(count_I)
    if size >= n:
        return np.ones(n)
    weight_I = np.power(np.maximum(count_I, 0).astype(np.float64), power)
    total = weight_I.sum()
    weight_I = even / n + (1.0 - even) * (weight_I / total if total > 0 else np.full(n, 1 / n))
    chance_I, free_I = np.ones(n), np.ones(n, dtype=bool)
    while True:
        # What would be drawn more than once is always in; the others share the places left.
        left = size - (n - int(free_I.sum()))
        chance_I[free_I] = left * weight_I[free_I] / weight_I[free_I].sum()
        over_I = free_I & (chance_I >= 1.0)
        if not over_I.any():
            return chance_I
        chance_I[over_I] = 1.0
        free_I &= ~over_I


class Proposal:
    """Draws the negatives of every step."""

    def __init__(self, count_I: np.ndarray, size: int, seed: int) -> None:
        self.chance_I, self.seed = chances(count_I, size), seed
        self.epoch, self.order_I, self.upto_I = -1, np.empty(0, np.int64), np.empty(0)

    def draw(self, epoch: int, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(items, ascending; log of how often each counts): systematic sampling, so none twice.

        The items stand in a line, each as long as its chance; every point at a random offset plus a
        whole number takes the item that it falls into. The line is shuffled once an epoch.
        """
        if epoch != self.epoch:
            source = generator(self.seed, "sasrec", "negatives", epoch)
            self.epoch, self.order_I = epoch, source.permutation(len(self.chance_I))
            self.upto_I = np.cumsum(self.chance_I[self.order_I])
        start = generator(self.seed, "sasrec", "negatives", epoch, step).random()
        points = start + np.arange(round(float(self.upto_I[-1])))
        place_M = np.minimum(self.upto_I.searchsorted(points, "right"), len(self.order_I) - 1)
        items_M = np.unique(self.order_I[place_M])
        return items_M, -np.log(self.chance_I[items_M]).astype(np.float32)


class RowAdam:
    """Adam on the rows of a table that a step touched; the others stand still, moments too.

    A row's moments are corrected by its own number of steps. Weight decay reaches touched rows.
    """

    def __init__(self, table_IC: Tensor, lr: float, weight_decay: float) -> None:
        self.table_IC, self.lr, self.decay = table_IC.detach(), lr, weight_decay
        self.state = {
            "first": torch.zeros_like(self.table_IC),
            "second": torch.zeros_like(self.table_IC),
            "steps": torch.zeros(len(table_IC), device=table_IC.device),
        }

    def step(self, rows_R: Tensor, grad_RC: Tensor) -> None:
        """One step of these rows (each once)."""
        first_IC, second_IC, steps_I = (self.state[name] for name in ("first", "second", "steps"))
        steps_R1 = (steps_I[rows_R] + 1.0)[:, None]
        first_RC = first_IC[rows_R].lerp_(grad_RC, 1.0 - BETAS[0])
        second_RC = second_IC[rows_R].mul_(BETAS[1]).addcmul_(grad_RC, grad_RC, value=1 - BETAS[1])
        steps_I[rows_R], first_IC[rows_R], second_IC[rows_R] = steps_R1[:, 0], first_RC, second_RC
        spread_RC = (second_RC / (1.0 - BETAS[1] ** steps_R1)).sqrt_().add_(EPS)
        change_RC = first_RC / (1.0 - BETAS[0] ** steps_R1) / spread_RC
        table_RC = self.table_IC[rows_R].mul_(1.0 - self.lr * self.decay)
        self.table_IC[rows_R] = table_RC.sub_(change_RC, alpha=self.lr)
