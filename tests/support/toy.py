"""A tiny next-token task for the training battery: real gradients, milliseconds a step.

The functions `make…` are factories as `battery` wants them. `ToyTask` can be told to
spoil a step (`poison`), which stands for NaN in data, loss, gradient or a metric.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgr2.config import TrainConfig
from diffgr2.streams import generator, torch_generator
from diffgr2.train.lending import lent
from diffgr2.train.loop import Loss

VOCAB, DIM, LENGTH = 17, 8, 6


class ToyModel(nn.Module):
    """Embedding, two residual layers, head; a vector parameter so that decay groups matter."""

    def __init__(self, seed: int = 0, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, DIM)
        self.layers = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(2))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VOCAB, bias=False)
        draws = torch_generator(seed, "toy", "init")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draws))
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embed(tokens_BT)
        for layer in self.layers:
            x_BTD = x_BTD + torch.tanh(layer(x_BTD))
        return self.head(self.norm(x_BTD))


@dataclass
class ToyMicro:
    tokens_BT: Tensor
    weight_BT: Tensor
    count: float
    tokens: int
    step: int


class ToyTask:
    """Rows of random length; `rounds` > 1 rolls out once per round and keeps the rows in memory."""

    name = "toy"

    def __init__(
        self,
        config: TrainConfig,
        seed: int = 0,
        rounds: int = 1,
        poison: tuple[str, int] | None = None,
    ) -> None:
        self.config, self.seed, self.round_steps, self.poison = config, seed, rounds, poison
        self._round: tuple[int, Tensor] | None = None

    def _row(self, step: int, row: int) -> tuple[Tensor, Tensor]:
        draws = generator(self.seed, "toy", "row", step, row)
        tokens_T = torch.from_numpy(draws.integers(1, VOCAB, LENGTH))
        weight_T = (torch.arange(LENGTH) < int(draws.integers(2, LENGTH + 1))).float()
        return tokens_T, weight_T

    def _rolled(self, step: int, model: nn.Module) -> Tensor:
        """First tokens that the model itself chose at the start of this round."""
        number = (step - 1) // self.round_steps
        if self._round is None or self._round[0] != number:
            with lent(model) as (policy, whole), whole(policy):
                starts = torch.from_numpy(
                    generator(self.seed, "toy", "round", number).integers(1, VOCAB, (64, 1))
                )
                self._round = (number, policy(starts)[:, -1].argmax(-1))
        return self._round[1]

    def micros(self, step: int, model: nn.Module) -> list[ToyMicro]:
        rows = [self._row(step, row) for row in range(self.config.rows)]
        tokens_BT = torch.stack([tokens for tokens, _ in rows])
        weight_BT = torch.stack([weight for _, weight in rows])
        if self.round_steps > 1:
            tokens_BT[:, 0] = self._rolled(step, model)[: len(tokens_BT)]
        if self.poison == ("data", step):
            weight_BT[1, 0] = float("nan")
        result = []
        for start in range(0, len(tokens_BT), self.config.micro_rows):
            part = slice(start, start + self.config.micro_rows)
            weight = weight_BT[part, 1:]
            count = float(weight.nan_to_num().sum())
            if self.poison == ("count", step):
                count = float("nan")
            result.append(ToyMicro(tokens_BT[part], weight_BT[part], count, weight.numel(), step))
        return result

    def loss(self, model: nn.Module, micro: ToyMicro) -> Loss:
        logits_BTV = model(micro.tokens_BT[:, :-1]).float()
        target_BT = micro.tokens_BT[:, 1:]
        each_BT = F.cross_entropy(logits_BTV.transpose(1, 2), target_BT, reduction="none")
        weight_BT = micro.weight_BT[:, :-1] if self.poison else micro.weight_BT[:, 1:]
        total = (each_BT * weight_BT).sum()
        if self.poison == ("loss", micro.step):
            total = total * float("inf")
        if self.poison == ("grad", micro.step):  # finite value, infinite slope
            total = total + torch.sqrt(logits_BTV.sum() * 0.0)
        right_BT = (logits_BTV.argmax(-1) == target_BT) * micro.weight_BT[:, 1:]
        metric = float("nan") if self.poison == ("metric", micro.step) else right_BT.sum()
        return Loss(total, {"accuracy": (metric, micro.count)})


def config_of(**changes: object) -> TrainConfig:
    values = {
        "steps": 12,
        "rows": 8,
        "micro_rows": 4,
        "lr": 1e-2,
        "warmup": 3,
        "weight_decay": 0.1,
        "checkpoint_every": 2,
        "keep": 2,
    }
    return TrainConfig.model_validate({**values, **changes})


def make() -> tuple[ToyTask, nn.Module, TrainConfig]:
    config = config_of()
    return ToyTask(config), ToyModel(), config


def make_rounds() -> tuple[ToyTask, nn.Module, TrainConfig]:
    config = config_of()
    return ToyTask(config, rounds=3), ToyModel(tied=True), config


def make_bf16() -> tuple[ToyTask, nn.Module, TrainConfig]:
    config = config_of(precision="bf16")
    return ToyTask(config), ToyModel(), config


def make_muon() -> tuple[ToyTask, nn.Module, TrainConfig]:
    config = config_of(optimizer="muon", muon_lr=0.03)
    return ToyTask(config), ToyModel(tied=True), config


class SigtermTask(ToyTask):
    """Sends SIGTERM to its own process in the middle of step 5."""

    sent = False

    def loss(self, model: nn.Module, micro: ToyMicro) -> Loss:
        if micro.step == 5 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, micro)


def make_sigterm() -> tuple[ToyTask, nn.Module, TrainConfig]:
    config = config_of()
    return SigtermTask(config), ToyModel(), config
