"""What training on a sample of the catalogue needs: the draw, and steps of the rows it touched.

Contract: `Proposal` draws a step's negatives, distinct items that all positions of a batch share:
an item is in with the chance π, more often where it was bought more often, certainly where it is
popular enough, and the chances add up to the sample's size; counted 1/π times, the sum over the
sample is right on average. A draw is a function of (seed, epoch, step). `RowAdam` is AdamW of the
whole table by steps of the rows that a batch touched. Not here: the losses (`softmax`), and when
which of them is taken (`fitting`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffgr2.errors import ConfigError
from diffgr2.streams import generator

POWER = 0.75  # of an item's purchases in its chance
EVEN = 0.25  # share of the sample that is drawn from all items alike
BETAS, EPS = (0.9, 0.999), 1e-8
SETTLED = 20_000  # steps after which AdamW no longer corrects its moments, to nine digits


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
    """AdamW of a whole table by steps that see a few of its rows.

    The others have no gradient, and what AdamW does to a row without one, be it a thousand steps
    long, is a sum that is known: its moments fade, and it moves on by what is left of them. A row
    is brought up to date when it is asked for, and all are in the end.
    """

    def __init__(self, table_IC: Tensor, lr: float, weight_decay: float) -> None:
        self.table_IC, self.lr, self.kept = table_IC.detach(), lr, 1.0 - lr * weight_decay
        self.fades = BETAS[0] / BETAS[1] ** 0.5 / self.kept  # of a change, from step to step
        if not 0.0 < self.fades < 1.0:
            raise ConfigError(
                "retriever.weight_decay: with retriever.loss sampled, at most 0.09 / retriever.lr"
            )
        device = table_IC.device
        self.state = {
            "first": torch.zeros_like(self.table_IC),
            "second": torch.zeros_like(self.table_IC),
            "upto": torch.zeros(len(table_IC), dtype=torch.int64, device=device),
            "steps": torch.zeros((), dtype=torch.int64, device=device),
        }
        # tail[t]: the sum over j >= 1 of fades^j * correction[t + j]; a constant in the end.
        step_T = np.arange(1, SETTLED + 1)
        correction_T = np.sqrt(1.0 - BETAS[1] ** step_T) / (1.0 - BETAS[0] ** step_T)
        tail_T = np.full(SETTLED + 1, self.fades / (1.0 - self.fades))
        for t in range(SETTLED - 1, -1, -1):
            tail_T[t] = self.fades * (correction_T[t] + tail_T[t + 1])
        self.tail_T = torch.from_numpy(tail_T).to(device)

    def current(self, rows_R: Tensor) -> Tensor:
        """These rows (each once) where AdamW would have them now."""
        first_IC, second_IC, upto_I = (self.state[name] for name in ("first", "second", "upto"))
        before_R, now = upto_I[rows_R], self.state["steps"]
        lag_R = (now - before_R).double()
        tail_R = self.tail_T[before_R.clamp_max(SETTLED)]
        tail_R = tail_R - self.fades**lag_R * self.tail_T[now.clamp_max(SETTLED)]
        kept_R1, moved_R1, fade_R1, spread_R1 = (
            factor_R.to(self.table_IC.dtype)[:, None]
            for factor_R in (
                self.kept**lag_R,
                self.kept**lag_R * tail_R * self.lr,
                BETAS[0] ** lag_R,
                BETAS[1] ** lag_R,
            )
        )
        first_RC, second_RC = first_IC[rows_R], second_IC[rows_R]
        table_RC = self.table_IC[rows_R].mul_(kept_R1)
        table_RC -= moved_R1 * first_RC / second_RC.sqrt().add_(EPS)
        first_IC[rows_R], second_IC[rows_R] = first_RC * fade_R1, second_RC * spread_R1
        upto_I[rows_R], self.table_IC[rows_R] = now, table_RC
        return table_RC

    def step(self, rows_R: Tensor, grad_RC: Tensor) -> None:
        """One step, in which these rows have a gradient; `current` has just been asked for them."""
        first_IC, second_IC, upto_I = (self.state[name] for name in ("first", "second", "upto"))
        self.state["steps"] += 1
        upto_I[rows_R], now = self.state["steps"], int(self.state["steps"])
        first_RC = first_IC[rows_R].lerp_(grad_RC, 1.0 - BETAS[0])
        second_RC = second_IC[rows_R].mul_(BETAS[1]).addcmul_(grad_RC, grad_RC, value=1 - BETAS[1])
        first_IC[rows_R], second_IC[rows_R] = first_RC, second_RC
        spread_RC = (second_RC / (1.0 - BETAS[1] ** now)).sqrt_().add_(EPS)
        change_RC = first_RC / (1.0 - BETAS[0] ** now) / spread_RC
        table_RC = self.table_IC[rows_R].mul_(self.kept)
        self.table_IC[rows_R] = table_RC.sub_(change_RC, alpha=self.lr)

    def settle(self) -> None:
        """All rows."""
        for rows_R in torch.arange(len(self.table_IC), device=self.table_IC.device).split(1 << 16):
            self.current(rows_R)
