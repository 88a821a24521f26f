"""RL on the diffusion policy: exact replay of every recorded step (TraceRL; paper §3.6).

Contract: the reward, groups and refill are the AR stage's (`rollouts`); what differs is the
probability of a rollout: every token is scored in the state in which it was committed. The r-th
step of each block goes into the r-th noisy copy of the row, blocks in parallel, so one forward of
`[prompt | x0 | xt_1 … xt_R]` scores a whole trajectory. The selection of positions is a
deterministic function of the sampled tokens' confidences and is not scored. Not here: the objective
(`objectives.policy`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.config import BlockRlConfig
from diffgr2.errors import DecodeError
from diffgr2.model.contract import BlockContract, read_config, read_contract
from diffgr2.model.layout import response_shift
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, entropy_of, logits_at
from diffgr2.objectives.noise import replay_state
from diffgr2.objectives.policy import clipped_objective
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import chunks
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.noisy import NoisyBatch, NoisyRow, response_blocks
from diffgr2.stages.opd import terminal
from diffgr2.stages.rl import REPLAY_TOLERANCE
from diffgr2.stages.rollouts import Roller, Rollout, block_settings
from diffgr2.train.loop import Loss


@dataclass(frozen=True)
class Replay:
    """Rollouts laid out so that one forward scores every committed token in its own state."""

    batch: NoisyBatch
    index_N: Tensor
    target_N: Tensor
    old_logp_N: Tensor
    advantage_N: Tensor
    count: float
    tokens: int


def replay_row(
    rollout: Rollout, contract: BlockContract, pad_id: int, *, clean_causal: bool
) -> tuple[NoisyRow, list[np.ndarray]]:
    """(row, response positions that each copy scores); positions after the end are context only."""
    trajectory, prompt = rollout.trajectory, rollout.prompt
    tokens_R, step_R = terminal(trajectory, pad_id)
    size = contract.block_size
    shift = response_shift(len(prompt), size, contract.origin)
    block_R = response_blocks(len(prompt), len(tokens_R), size, shift)
    rounds = {b: np.unique(step_R[(block_R == b) & (step_R >= 0)]) for b in np.unique(block_R)}
    copies = max(len(steps) for steps in rounds.values())
    masked_CR = np.zeros((copies, len(tokens_R)), dtype=bool)
    scored: list[np.ndarray] = []
    scores_R = np.arange(len(tokens_R)) < len(trajectory.tokens_T)
    for copy in range(copies):
        here_R = np.zeros(len(tokens_R), dtype=bool)
        for block, steps in rounds.items():
            if copy < len(steps):
                members_R = block_R == block
                masked_CR[copy] |= members_R & replay_state(step_R, int(steps[copy]))
                here_R |= members_R & (step_R == steps[copy])
        scored.append(np.flatnonzero(here_R & scores_R))
    return NoisyRow(prompt, tokens_R, masked_CR, shift, clean_causal), scored


def replay_batch(
    rollouts: list[Rollout],
    contract: BlockContract,
    mask_id: int,
    pad_id: int,
    *,
    clean_causal: bool,
) -> Replay:
    """Pack trajectories for exact replay."""
    made = [replay_row(r, contract, pad_id, clean_causal=clean_causal) for r in rollouts]
    batch = NoisyBatch.pack([row for row, _ in made], mask_id, pad_id, contract.block_size)
    index, target, old, advantage = [], [], [], []
    for b, ((row, scored), rollout) in enumerate(zip(made, rollouts, strict=True)):
        for copy, at_N in enumerate(scored):
            index.append(b * batch.width + row.noisy_places(copy, at_N, contract))
            target.append(row.response_R[at_N])
            old.append(rollout.trajectory.logprob_T[at_N])
            advantage.append(np.full(len(at_N), rollout.advantage, dtype=np.float32))
    n = sum(len(part) for part in index)
    index_N, target_N, old_N, advantage_N = (
        torch.from_numpy(np.concatenate(part)) for part in (index, target, old, advantage)
    )
    return Replay(batch, index_N, target_N, old_N, advantage_N, float(n), n)


class BlockRlTask:
    """See the module's docstring."""

    def __init__(
        self,
        name: str,
        roller: Roller,
        contract: BlockContract,
        config: BlockRlConfig,
        *,
        strict: bool,
    ) -> None:
        self.name, self.roller, self.contract, self.config = name, roller, contract, config
        self.round_steps = config.epochs
        self._strict, self._checked = strict, False
        self._round = -1
        self._rows: list[Rollout] = []
        self._metrics: dict[str, float] = {}

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    def micros(self, step: int, model: nn.Module) -> list[Replay]:
        round_ = (step - 1) // self.config.epochs
        if round_ != self._round:
            rollouts = self.roller.collect(round_ + 1, model)
            self._rows, self._metrics, self._round = rollouts.rows, rollouts.metrics, round_
        # Rows of like copy counts together: a batch is as wide as its widest row.
        rows = sorted(self._rows, key=lambda row: row.trajectory.nfe)
        vocab = self.roller.corpus.vocab
        micros = [
            replay_batch(
                list(part),
                self.contract,
                vocab.mask_id,
                vocab.pad_id,
                clean_causal=self.roller.settings.clean_kv == "causal",
            )
            for part in chunks(rows, self.config.micro_rows)
        ]
        if micros and self._strict and not self._checked:
            self._check(model, micros[0])
            self._checked = True
        return micros

    def _logits(self, model: nn.Module, micro: Replay) -> Tensor:
        where = device()
        return logits_at(
            model,
            micro.batch.ids_BT.to(where),
            micro.index_N.to(where),
            self.roller.corpus.vocab.mask_id,
            attends_B1TT=micro.batch.attends_B1TT.to(where),
            position_BT=micro.batch.position_BT.to(where),
        )

    @torch.no_grad()
    def _check(self, model: nn.Module, micro: Replay) -> None:
        """|logp_rollout − logp_replay| < 1e-4 on the first batch of every run (DESIGN §5)."""
        logits_NV = self._logits(model, micro)
        replay_N = chosen_logp(
            logits_NV, micro.target_N.to(logits_NV.device), self.config.temperature
        )
        worst = float((replay_N.cpu() - micro.old_logp_N).abs().max())
        if worst > REPLAY_TOLERANCE:
            raise DecodeError(f"{self.name}: replay differs from the rollout by {worst:.2e}")

    def loss(self, model: nn.Module, micro: Replay) -> Loss:
        config, logits_NV = self.config, self._logits(model, micro)
        where = logits_NV.device
        loss_N, low_N, high_N = clipped_objective(
            chosen_logp(logits_NV, micro.target_N.to(where), config.temperature),
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


def run(ctx: StageContext, *, start: str = "opd") -> dict[str, Any]:
    """RL from the OPD model (`cft_rl`: straight from the CFT model)."""
    recipe = ctx.recipe
    config = recipe.block_rl if start == "opd" else recipe.cft_rl
    corpus = open_corpus(ctx.inputs, recipe)
    source = ctx.inputs[start]
    model = open_model(source)
    contract = read_contract(read_config(source), model.config.vocab_size, str(source))
    settings = block_settings(corpus, contract, config)
    roller = Roller(ctx.name, corpus, config, settings, ctx.seed, reasoning=True)
    strict = config.precision == "fp32" and config.rule == "raw"
    task = BlockRlTask(ctx.name, roller, contract, config, strict=strict)
    return train_stage(ctx, task, model, config, source)


def run_from_cft(ctx: StageContext) -> dict[str, Any]:
    return run(ctx, start="cft")
