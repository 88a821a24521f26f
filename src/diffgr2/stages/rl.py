"""RL on the AR policy: DAPO against the re-ranking reward (GR2 §RL; DESIGN §6, RL).

Contract: token-level clipped objective with clip-higher over groups that vary; log-probabilities at
the rollout's temperature, checked against the rollout's own on the first batch of every run. The
same task with `reasoning=False` is the no-CoT ablation: direct answers after their own short RL.
Not here: sampling and grading (`rollouts`), the objective (`objectives.policy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffgr2.config import RlConfig
from diffgr2.errors import DecodeError
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, entropy_of, logits_at
from diffgr2.objectives.policy import clipped_objective
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import CausalBatch, chunks
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.rollouts import Roller, Rollout
from diffgr2.train.loop import Loss

REPLAY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class PolicyBatch:
    """Rollouts as one causal batch, with old log-probabilities and advantages per token."""

    batch: CausalBatch
    old_logp_N: Tensor
    advantage_N: Tensor

    @property
    def count(self) -> float:
        return self.batch.count

    @property
    def tokens(self) -> int:
        return self.batch.tokens


def policy_batch(rows: list[Rollout], pad_id: int) -> PolicyBatch:
    """Pack rollouts; every token weighs 1."""
    tokens = [row.trajectory.tokens_T.tolist() for row in rows]
    ones = [[1.0] * len(t) for t in tokens]
    zeros = [[0] * len(t) for t in tokens]
    return PolicyBatch(
        CausalBatch.pack([row.prompt for row in rows], tokens, ones, zeros, pad_id),
        torch.cat([torch.from_numpy(row.trajectory.logprob_T) for row in rows]),
        torch.cat(
            [torch.full((len(t),), row.advantage) for row, t in zip(rows, tokens, strict=True)]
        ),
    )


class RlTask:
    """See the module's docstring."""

    def __init__(self, name: str, roller: Roller, config: RlConfig, *, strict: bool) -> None:
        self.name, self.roller, self.config = name, roller, config
        self.round_steps = config.epochs
        self._strict = strict  # fp32: replay must match the rollout
        self._round = -1
        self._rows: list[Rollout] = []
        self._metrics: dict[str, float] = {}
        self._checked = False

    def micros(self, step: int, model: nn.Module) -> list[PolicyBatch]:
        round_ = (step - 1) // self.config.epochs
        if round_ != self._round:
            rollouts = self.roller.collect(round_ + 1, model)
            self._rows, self._metrics, self._round = rollouts.rows, rollouts.metrics, round_
        pad_id = self.roller.corpus.vocab.pad_id
        micros = [policy_batch(list(p), pad_id) for p in chunks(self._rows, self.config.micro_rows)]
        if micros and not self._checked and self._strict:
            self._check(model, micros[0])
            self._checked = True
        return micros

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    def _logits(self, model: nn.Module, micro: PolicyBatch) -> Tensor:
        where = device()
        batch = micro.batch
        mask_id = self.roller.corpus.vocab.mask_id
        return logits_at(model, batch.ids_BT.to(where), batch.index_N.to(where), mask_id)

    @torch.no_grad()
    def _check(self, model: nn.Module, micro: PolicyBatch) -> None:
        """|logp_rollout − logp_replay| < 1e-4 on the first batch of every run (DESIGN §5)."""
        logits_NV = self._logits(model, micro)
        target_N = micro.batch.target_N.to(logits_NV.device)
        replay_N = chosen_logp(logits_NV, target_N, self.config.temperature)
        worst = float((replay_N.cpu() - micro.old_logp_N).abs().max())
        if worst > REPLAY_TOLERANCE:
            raise DecodeError(f"{self.name}: replay differs from the rollout by {worst:.2e}")

    def loss(self, model: nn.Module, micro: PolicyBatch) -> Loss:
        config, logits_NV = self.config, self._logits(model, micro)
        where = logits_NV.device
        logp_N = chosen_logp(logits_NV, micro.batch.target_N.to(where), config.temperature)
        loss_N, low_N, high_N = clipped_objective(
            logp_N,
            micro.old_logp_N.to(where),
            micro.advantage_N.to(where),
            config.clip_low,
            config.clip_high,
        )
        n = len(loss_N)
        metrics = {
            "clip_ratio/low_mean": (low_N.sum(), n),
            "clip_ratio/high_mean": (high_N.sum(), n),
            "entropy": (entropy_of(logits_NV.detach()).sum(), n),
        }
        return Loss(loss_N.sum(), metrics)


def run(ctx: StageContext, *, reasoning: bool = True) -> dict[str, Any]:
    """DAPO from the SFT model."""
    recipe = ctx.recipe
    config = recipe.rl if reasoning else recipe.direct_rl
    corpus = open_corpus(ctx.inputs, recipe)
    settings = corpus.settings(None, "ar", temperature=config.temperature, max_tokens=0)
    roller = Roller(ctx.name, corpus, config, settings, ctx.seed, reasoning=reasoning)
    source = ctx.inputs["sft"]
    task = RlTask(ctx.name, roller, config, strict=config.precision == "fp32")
    return train_stage(ctx, task, open_model(source), config, source)


def run_direct(ctx: StageContext) -> dict[str, Any]:
    """The no-CoT ablation: the same, answering without reasoning."""
    return run(ctx, reasoning=False)
