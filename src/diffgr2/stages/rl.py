"""RL against the re-ranking reward: DAPO on the AR policy, exact replay on the diffusion policy.

Contract: rollouts are collected once per round and scored under the training forward, token by
token, at the rollout's temperature; in fp32 the first batch of every run must give the rollout's
own log-probabilities back. The objective is token-level and clipped, over groups that vary. The
policies differ in how rollouts are laid out for scoring. AR: one causal row each (GR2 §RL).
Diffusion (TraceRL; paper §3.6): every token is scored in the state in which it was committed. The
r-th step of each block goes into the r-th noisy copy of the row, blocks in parallel, so one forward
of `[prompt | x0 | xt_1 … xt_R]` scores a whole trajectory; the selection of positions is a
deterministic function of the sampled tokens' confidences and is not scored. Not here: sampling and
grading (`rollouts`), the objective (`objectives.policy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.errors import DecodeError
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, entropy_of
from diffgr2.objectives.noise import replay_state
from diffgr2.objectives.policy import clipped_objective
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import Micro, TokenBatch, causal_batch, chunks, columns
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.noisy import NoisyRow, noisy_batch, realised, rounds_of
from diffgr2.stages.rollouts import Roller, Rollout, rollout_settings
from diffgr2.train.loop import Loss

REPLAY_TOLERANCE = 1e-4

STARTS = {"rl": "sft", "direct_rl": "sft", "block_rl": "opd", "cft_rl": "cft"}
"""The model that each stage trains. `direct_rl` is the no-CoT ablation: direct answers after their
own short RL; `cft_rl` is `block_rl` without OPD before it."""


@dataclass(frozen=True)
class PolicyMicro(Micro):
    """Rollouts laid out for one forward."""

    old_logp_N: Tensor
    advantage_N: Tensor


def policy_micro(
    rollouts: Sequence[Rollout], batch: TokenBatch, places: Sequence[tuple[np.ndarray, np.ndarray]]
) -> PolicyMicro:
    """A batch with one row per rollout; `places` are its tokens and where they are predicted."""
    row_N, place_N, target_N, old_N, advantage_N = columns(
        (b, place_N, r.trajectory.tokens_T[at_N], r.trajectory.logprob_T[at_N], r.advantage)
        for b, (r, (at_N, place_N)) in enumerate(zip(rollouts, places, strict=True))
    )
    return PolicyMicro(batch, batch.flat(row_N, place_N), target_N, old_N, advantage_N.float())


def causal_micro(rollouts: Sequence[Rollout], pad_id: int) -> PolicyMicro:
    """Rollouts of the AR policy: response token t is predicted at t − 1."""
    batch = causal_batch([r.prompt + r.trajectory.tokens_T.tolist() for r in rollouts], pad_id)
    tokens = [(r, np.arange(len(r.trajectory.tokens_T))) for r in rollouts]
    return policy_micro(rollouts, batch, [(at_N, len(r.prompt) - 1 + at_N) for r, at_N in tokens])


def replay_row(
    rollout: Rollout, contract: BlockContract, pad_id: int, *, clean_causal: bool
) -> tuple[NoisyRow, np.ndarray]:
    """(row, response tokens [C, R] that each copy scores); what follows the end is context only."""
    prompt, trajectory = rollout.prompt, rollout.trajectory
    tokens_R, step_R, block_R, shift = realised(prompt, trajectory, contract, pad_id)
    rounds = rounds_of(step_R, block_R)
    copies = max(len(steps) for steps in rounds.values())
    masked_CR = np.zeros((copies, len(tokens_R)), dtype=bool)
    scored_CR = np.zeros_like(masked_CR)
    for block, steps in rounds.items():
        members_R = block_R == block
        for copy, step in enumerate(steps):
            masked_CR[copy] |= members_R & replay_state(step_R, int(step))
            scored_CR[copy] |= members_R & (step_R == step)
    scored_CR[:, len(trajectory.tokens_T) :] = False
    return NoisyRow(prompt, tokens_R, masked_CR, shift, clean_causal, contract), scored_CR


def replay_micro(
    rollouts: Sequence[Rollout], contract: BlockContract, pad_id: int, *, clean_causal: bool
) -> PolicyMicro:
    """Rollouts of the diffusion policy, for exact replay."""
    made = [replay_row(r, contract, pad_id, clean_causal=clean_causal) for r in rollouts]
    batch = noisy_batch([row for row, _ in made], pad_id)
    scored = [(row, *np.nonzero(scored_CR)) for row, scored_CR in made]
    places = [(at_N, row.noisy_places(copy_N, at_N)) for row, copy_N, at_N in scored]
    return policy_micro(rollouts, batch, places)


class RlTask:
    """RL on the AR policy, or under a block contract on the diffusion policy."""

    def __init__(self, roller: Roller, contract: BlockContract | None) -> None:
        self.name, self.roller, self.contract = roller.name, roller, contract
        self.config = roller.config
        self.round_steps = self.config.epochs
        # Under another precision, or a rule that reorders, they could not be the same.
        self._unchecked = self.config.precision == "fp32" and roller.settings.rule == "raw"
        self._round = -1
        self._rollouts: list[Rollout] = []
        self._metrics: dict[str, float] = {}

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    def micros(self, step: int, model: nn.Module) -> list[PolicyMicro]:
        round_ = (step - 1) // self.config.epochs
        if round_ != self._round:
            self._rollouts, self._metrics = self.roller.collect(round_ + 1, model)
            self._round = round_
            if self.contract:  # like copy counts together: a batch is as wide as its widest row
                self._rollouts.sort(key=lambda rollout: rollout.trajectory.nfe)
        micros = [self._micro(part) for part in chunks(self._rollouts, self.config.micro_rows)]
        if micros and self._unchecked:
            self._check(model, micros[0])
            self._unchecked = False
        return micros

    def _micro(self, rollouts: Sequence[Rollout]) -> PolicyMicro:
        pad_id = self.roller.corpus.vocab.pad_id
        if self.contract is None:
            return causal_micro(rollouts, pad_id)
        causal = self.roller.settings.clean_kv == "causal"
        return replay_micro(rollouts, self.contract, pad_id, clean_causal=causal)

    def _scored(self, model: nn.Module, micro: PolicyMicro) -> tuple[Tensor, Tensor]:
        """(logits [N, V], log-probability [N] of each token)."""
        logits_NV = micro.logits(model, self.roller.corpus.vocab.mask_id)
        return logits_NV, chosen_logp(logits_NV, micro.target_N, self.config.temperature)

    @torch.no_grad()
    def _check(self, model: nn.Module, micro: PolicyMicro) -> None:
        """|logp_rollout − logp_replay| < 1e-4."""
        _, logp_N = self._scored(model, micro.to(device()))
        worst = float((logp_N.cpu() - micro.old_logp_N).abs().max())
        if worst > REPLAY_TOLERANCE:
            raise DecodeError(f"{self.name}: replay differs from the rollout by {worst:.2e}")

    def loss(self, model: nn.Module, micro: PolicyMicro) -> Loss:
        config, micro = self.config, micro.to(device())
        logits_NV, logp_N = self._scored(model, micro)
        loss_N, low_N, high_N = clipped_objective(
            logp_N, micro.old_logp_N, micro.advantage_N, config.clip_low, config.clip_high
        )
        n = micro.tokens
        metrics = {
            "clip_ratio/low_mean": (low_N.sum(), n),
            "clip_ratio/high_mean": (high_N.sum(), n),
            "entropy": (entropy_of(logits_NV.detach()).sum(), n),
        }
        return Loss(loss_N.sum(), metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    """The stages of `STARTS`; each has a recipe section of its name."""
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    source, config = ctx.inputs[STARTS[ctx.name]], getattr(ctx.recipe, ctx.name)
    contract = contract_of(source)
    settings = rollout_settings(corpus, contract, config)
    reasoning = ctx.name != "direct_rl"
    roller = Roller(ctx.name, corpus, config, settings, ctx.seed, reasoning=reasoning)
    return train_stage(ctx, RlTask(roller, contract), open_model(source), config, source)
