"""Preference optimisation of the diffusion policy: another objective of `block_rl` and `cft_rl`.

Contract: with `objective: preference` a step samples groups as RL does (`rollouts`), takes of each
the outputs with the highest and the lowest reward, and raises the first over the second, measured
by likelihood bounds under the policy and under the frozen model that the stage began with. `noise`
says how the bounds are estimated from `draws` masks of each text: `plain` draws for each model by
itself, `shared` the same masks for both, `antithetic` shared and in pairs that cover all tokens.
Nothing is replayed: how an output was decoded plays no part. Not here: bounds and loss
(`objectives.preference`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.config import BlockRlConfig
from diffgr2.model.contract import BlockContract
from diffgr2.model.load import device
from diffgr2.objectives.likelihood import chosen_logp
from diffgr2.objectives.preference import bound_masks, bounds, preference_loss
from diffgr2.stages.batches import Tensors, TokenBatch, chunks, columns
from diffgr2.stages.noisy import NoisyRow, noisy_batch, realised
from diffgr2.stages.rollouts import Roller, Rollout
from diffgr2.streams import generator
from diffgr2.train.loop import Loss
from diffgr2.types import NEVER

Pair = tuple[Rollout, Rollout]


@dataclass(frozen=True)
class Bounded(Tensors):
    """Texts under one set of draws: where masked tokens are predicted, and what they weigh."""

    batch: TokenBatch
    index_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    text_N: Tensor

    def bound(self, model: nn.Module, mask_id: int, n_texts: int) -> Tensor:
        logits_NV = self.batch.logits(model, self.index_N, mask_id)
        logp_N = chosen_logp(logits_NV, self.target_N)
        return bounds(logp_N, self.weight_N, self.text_N, n_texts)


@dataclass(frozen=True)
class PreferenceMicro(Tensors):
    """Pairs, their texts one behind the other, under the policy's draws and the reference's."""

    policy: Bounded
    reference: Bounded
    pair_P: Tensor

    @property
    def count(self) -> float:
        return float(len(self.pair_P))

    @property
    def tokens(self) -> int:
        return len(self.policy.target_N)


def pairs_of(rollouts: Sequence[Rollout], group: int) -> list[Pair]:
    """Of each group the best and the worst output, the first of equals; groups without a difference
    have none."""
    found = []
    for at in range(0, len(rollouts), group):
        own = rollouts[at : at + group]
        best, worst = (pick(own, key=lambda each: each.reward) for pick in (max, min))
        if best.reward > worst.reward:
            found.append((best, worst))
    return found


class PreferenceTask:
    """See the module's docstring."""

    def __init__(self, roller: Roller, contract: BlockContract, reference: nn.Module) -> None:
        assert isinstance(roller.config, BlockRlConfig)
        self.name, self.roller, self.contract = roller.name, roller, contract
        self.config, self.reference = roller.config, reference
        self.round_steps = self.config.epochs
        self._round = -1
        self._pairs: list[Pair] = []
        self._metrics: dict[str, float] = {}

    def metrics(self, step: int) -> dict[str, float]:
        return self._metrics

    def micros(self, step: int, model: nn.Module) -> list[PreferenceMicro]:
        round_ = (step - 1) // self.config.epochs
        if round_ != self._round:
            rollouts, self._metrics = self.roller.collect(round_ + 1, model)
            self._pairs = pairs_of(rollouts, self.config.group)
            self._round = round_
        parts = chunks(self._pairs, max(self.config.micro_rows // 2, 1))
        return [self.micro(pairs, (step, number)) for number, pairs in enumerate(parts)]

    def micro(self, pairs: Sequence[Pair], key: tuple[int, ...]) -> PreferenceMicro:
        """These pairs under fresh draws; who shares them is the recipe's to say."""
        texts = [each for pair in pairs for each in pair]
        policy = self._bounded(texts, (*key, 0))
        shared = self.config.noise != "plain"
        reference = policy if shared else self._bounded(texts, (*key, 1))
        return PreferenceMicro(policy, reference, torch.arange(len(pairs)))

    def _bounded(self, texts: Sequence[Rollout], key: tuple[int, ...]) -> Bounded:
        rows, scored = [], []
        for b, rollout in enumerate(texts):
            rng = generator(self.roller.seed, self.name, "bound", *key, b)
            row, weight_CR = self.row(rollout, rng)
            rows.append(row)
            copy_N, at_N = np.nonzero(row.masked_CR)
            place_N = row.noisy_places(copy_N, at_N)
            scored.append((b, place_N, row.response_R[at_N], weight_CR[copy_N, at_N]))
        batch = noisy_batch(rows, self.roller.corpus.vocab.pad_id)
        row_N, place_N, target_N, weight_N = columns(scored)
        return Bounded(batch, batch.flat(row_N, place_N), target_N, weight_N.float(), row_N)

    def row(self, rollout: Rollout, rng: np.random.Generator) -> tuple[NoisyRow, np.ndarray]:
        """(row, weight [C, R]): an output with what was decided in it masked, draw by draw."""
        config, contract, pad_id = self.config, self.contract, self.roller.corpus.vocab.pad_id
        asked, trajectory = rollout.asked, rollout.trajectory
        text = realised(asked.prompt, trajectory, contract, pad_id, asked.grammar)
        open_R = (text.step_R >= 0) & (text.step_R != NEVER)
        open_R[len(trajectory.tokens_T) :] = False  # behind the end nothing is said
        if trajectory.forced_T is not None:
            open_R[: len(trajectory.forced_T)] &= ~trajectory.forced_T
        antithetic = config.noise == "antithetic"
        masked_CR, weight_CR = bound_masks(text.block_R, open_R, config.draws, rng, antithetic)
        causal = self.roller.settings.clean_kv == "causal"
        given = (asked.prompt, text.tokens_R, masked_CR, text.shift, causal, contract)
        return NoisyRow(*given), weight_CR

    def loss(self, model: nn.Module, micro: PreferenceMicro) -> Loss:
        micro, mask_id = micro.to(device()), self.roller.corpus.vocab.mask_id
        n = 2 * len(micro.pair_P)
        policy_P2 = micro.policy.bound(model, mask_id, n).view(-1, 2)
        with torch.no_grad():
            reference_P2 = micro.reference.bound(self.reference, mask_id, n).view(-1, 2)
        loss_P, margin_P = preference_loss(policy_P2, reference_P2, self.config.beta)
        pairs = len(loss_P)
        metrics: dict[str, Any] = {
            "preference/margin": (margin_P.sum(), pairs),
            "preference/right": ((margin_P > 0).float().sum(), pairs),
        }
        return Loss(loss_P.sum(), metrics)
