"""RL against the re-ranking reward: DAPO on the AR policy, exact replay on the diffusion policy.

Contract: rollouts are collected once per round and scored under the training forward, decision by
decision, at the rollout's temperature and among what the grammar allowed; in fp32 the first batch
of every run must give the rollout's own log-probabilities back. The objective is token-level and
clipped, over groups that vary. The policies differ in how rollouts are laid out for scoring. AR:
one causal row each (GR2 §RL). Diffusion (TraceRL; paper §3.6): every decision is scored in the
state in which it was committed. The r-th step of each block goes into the r-th noisy copy of the
row, blocks in parallel, so one forward of `[prompt | x0 | xt_1 … xt_R]` scores a whole trajectory;
the selection of positions is a deterministic function of the sampled tokens' confidences and is not
scored. With `objective: preference` the diffusion policy learns from pairs instead (`preferring`).
Not here: sampling and grading (`rollouts`), the objective (`objectives.policy`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from diffgr2.config import BlockRlConfig
from diffgr2.decode.grammar import row_of_places
from diffgr2.decode.replay import Decisions, decisions
from diffgr2.errors import DecodeError
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import allowed_logp, entropy_of
from diffgr2.objectives.policy import clipped_objective
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import Micro, TokenBatch, causal_batch, chunks, columns
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import open_corpus
from diffgr2.stages.effort import chosen
from diffgr2.stages.noisy import NoisyRow, noisy_batch, realised
from diffgr2.stages.preferring import PreferenceTask
from diffgr2.stages.rollouts import Roller, Rollout, rollout_settings
from diffgr2.train.loop import Loss
from diffgr2.train.working import prepare

REPLAY_TOLERANCE = 1e-4
"""Between log-probabilities of a rollout and of its replay, in fp32."""

HALF_TOLERANCE = 2**-5
"""The same in bf16, for logits of size 1: it keeps eight bits, so a logit is off by 2^-9 of itself
after one rounding; these are the few that a layer's sums do not average away."""

STARTS = {"rl": "sft", "direct_rl": "sft", "block_rl": "opd", "cft_rl": "cft"}
"""The model that each stage trains. `direct_rl` is the no-CoT ablation: direct answers after their
own short RL; `cft_rl` is `block_rl` without OPD before it."""


@dataclass(frozen=True)
class PolicyMicro(Micro):
    """Rollouts laid out for one forward."""

    old_logp_N: Tensor
    advantage_N: Tensor
    allowed_NA: Tensor  # among which tokens each was drawn (`objectives.likelihood.allowed_logp`)
    banned_NB: Tensor


@dataclass(frozen=True)
class Ids:
    """Reserved tokens that batches are filled up with."""

    pad: int
    mask: int


def policy_micro(
    rollouts: Sequence[Rollout],
    batch: TokenBatch,
    scored: Sequence[tuple[Decisions, np.ndarray]],
    ids: Ids,
) -> PolicyMicro:
    """A batch with one row per rollout; `scored` are its decisions and where they are predicted."""
    row_N, place_N, target_N, old_N, advantage_N = columns(
        (b, place_D, r.trajectory.tokens_T[d.at_D], r.trajectory.logprob_T[d.at_D], r.advantage)
        for b, (r, (d, place_D)) in enumerate(zip(rollouts, scored, strict=True))
    )
    sets = [row for d, _ in scored for row in d.allowed_DA]
    allowed_NA = torch.from_numpy(row_of_places(sets))
    nothing = np.empty(0, dtype=np.int64)
    bans = [torch.from_numpy(nothing if b is None else b) for d, _ in scored for b in d.banned_D]
    banned_NB = pad_sequence(bans, batch_first=True, padding_value=ids.mask)
    index_N, advantage_N = batch.flat(row_N, place_N), advantage_N.float()
    return PolicyMicro(batch, index_N, target_N, old_N, advantage_N, allowed_NA, banned_NB)


def causal_micro(rollouts: Sequence[Rollout], ids: Ids) -> PolicyMicro:
    """Rollouts of the AR policy: response token t is predicted at t − 1."""
    texts = [r.asked.prompt + r.trajectory.tokens_T.tolist() for r in rollouts]
    made = [(r, decisions(r.trajectory, r.asked.grammar)) for r in rollouts]
    scored = [(d, len(r.asked.prompt) - 1 + d.at_D) for r, d in made]
    return policy_micro(rollouts, causal_batch(texts, ids.pad), scored, ids)


def replay_row(
    rollout: Rollout, contract: BlockContract, pad_id: int, *, clean_causal: bool
) -> tuple[NoisyRow, Decisions, np.ndarray]:
    """(row, decisions, the copy [D] that scores each); what follows the end is context only."""
    asked, trajectory = rollout.asked, rollout.trajectory
    text = realised(asked.prompt, trajectory, contract, pad_id, asked.grammar)
    rounds, made = text.rounds, decisions(trajectory, asked.grammar)
    copies = max((len(steps) for steps in rounds.values()), default=1)
    states = [
        text.state({b: int(steps[copy]) for b, steps in rounds.items() if copy < len(steps)})
        for copy in range(copies)
    ]
    masked_CR, there_CR = (np.stack(part) for part in zip(*states, strict=True))
    copy_D = np.array(
        [np.searchsorted(rounds[int(text.block_R[at])], text.step_R[at]) for at in made.at_D],
        dtype=np.int64,
    )
    given = (asked.prompt, text.tokens_R, masked_CR, text.shift, clean_causal, contract, there_CR)
    return NoisyRow(*given), made, copy_D


def replay_micro(
    rollouts: Sequence[Rollout], contract: BlockContract, ids: Ids, *, clean_causal: bool
) -> PolicyMicro:
    """Rollouts of the diffusion policy, for exact replay."""
    made = [replay_row(r, contract, ids.pad, clean_causal=clean_causal) for r in rollouts]
    batch = noisy_batch([row for row, _, _ in made], ids.pad)
    scored = [(d, row.noisy_places(copy_D, d.at_D)) for row, d, copy_D in made]
    return policy_micro(rollouts, batch, scored, ids)


class RlTask:
    """RL on the AR policy, or under a block contract on the diffusion policy."""

    def __init__(self, roller: Roller, contract: BlockContract | None) -> None:
        self.name, self.roller, self.contract = roller.name, roller, contract
        self.config = roller.config
        self.round_steps = self.config.epochs
        self._unchecked = self.config.precision == "fp32"  # autocast's could not be the same
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
        vocab = self.roller.corpus.vocab
        ids = Ids(vocab.pad_id, vocab.mask_id)
        if self.contract is None:
            return causal_micro(rollouts, ids)
        causal = self.roller.settings.clean_kv == "causal"
        return replay_micro(rollouts, self.contract, ids, clean_causal=causal)

    def _scored(self, model: nn.Module, micro: PolicyMicro) -> tuple[Tensor, Tensor]:
        """(logits [N, V], log-probability [N] of each token)."""
        logits_NV = micro.logits(model, self.roller.corpus.vocab.mask_id)
        sets = (micro.allowed_NA, micro.banned_NB)
        return logits_NV, allowed_logp(logits_NV, micro.target_N, *sets, self.config.temperature)

    @torch.no_grad()
    def _check(self, model: nn.Module, micro: PolicyMicro) -> None:
        """|logp_rollout − logp_replay| within what the weights' precision allows."""
        logits_NV, logp_N = self._scored(model, micro.to(device()))
        worst, allowed = float((logp_N.cpu() - micro.old_logp_N).abs().max()), REPLAY_TOLERANCE
        if self.config.weights == "bf16":
            largest = float(logits_NV.masked_fill(logits_NV.isinf(), 0.0).abs().max())
            allowed = HALF_TOLERANCE * max(largest, 1.0)
        if worst > allowed:
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
    source, given = ctx.inputs[STARTS[ctx.name]], getattr(ctx.recipe, ctx.name)
    config = chosen(given, ctx.name, 0, corpus.vocab.spec.size, ctx.progress)
    contract = contract_of(source)
    settings = rollout_settings(corpus, contract, config)
    reasoning = ctx.name != "direct_rl"
    roller = Roller(ctx.name, corpus, config, settings, ctx.seed, reasoning=reasoning)
    task: RlTask | PreferenceTask = RlTask(roller, contract)
    if isinstance(config, BlockRlConfig) and config.objective == "preference":
        assert contract is not None  # `convert` wrote it
        frozen = open_model(source).eval().requires_grad_(False)
        prepare(frozen, config)  # it computes as the policy does
        task = PreferenceTask(roller, contract, frozen)
    return train_stage(ctx, task, open_model(source), config, source)
