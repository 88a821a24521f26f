"""Rollouts: sampled outputs of the current model, with rewards and group advantages.

Contract: `Roller.collect` samples G outputs for each of P prompts whose target is known, grades
them, drops groups without variance and refills from further prompts, for a bounded number of
rounds. Everything is a function of (seed, stage, step, weights), whatever the number of processes:
each decodes its share. The same code rolls out the AR and the diffusion policy; only the decode
settings differ. Not here: scoring trajectories under the training forward (`rl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from diffgr2.config import Answering, OpdConfig, RlConfig
from diffgr2.decode.batch import DecodeRequest
from diffgr2.decode.grammar import Grammar
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.backend import Backend
from diffgr2.model.contract import BlockContract
from diffgr2.objectives.policy import INVALID, advantages, overlong_penalty, reward
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import Corpus
from diffgr2.streams import generator, permutation
from diffgr2.train.lending import policy
from diffgr2.train.shares import decode_in_shares
from diffgr2.types import Answer, Trajectory

DECODE_BATCH = 64


@dataclass(frozen=True)
class Asked:
    """A prompt whose target is known."""

    prompt: list[int]
    grammar: Grammar | None  # None: rolled out without one
    request: Request
    target: int  # position of the best outcome among the shown candidates
    gains: list[float] | None = None  # of each of them, where the whole list's NDCG is rewarded


@dataclass(frozen=True)
class Rollout:
    """One graded output."""

    asked: Asked
    trajectory: Trajectory
    answer: Answer
    reward: float
    advantage: float


@dataclass
class Roller:
    """Samples and grades; see the module's docstring."""

    name: str
    corpus: Corpus
    config: RlConfig
    settings: DecodeSettings
    seed: int
    reasoning: bool

    @property
    def answer(self) -> Answering:
        """The read-out that is rewarded: the recipe's, where the model is trained for it."""
        known, wanted = self.corpus.answers, self.config.answer
        return wanted if wanted in known else known[-1]

    @property
    def by_gains(self) -> bool:
        """Whether the list's NDCG is rewarded, and not the rank of its best outcome."""
        own = any(lists.gains is not None for lists in self.corpus.lists.values())
        return self.config.reward == "ndcg" or (self.config.reward is None and own)

    def prompts(self, step: int, round_: int) -> list[Asked]:
        """One round's prompts."""
        corpus, need, prompts = self.corpus, self.config.prompts, []
        at = ((step - 1) * (1 + self.config.refill) + round_) * need
        epoch, first = divmod(at, len(corpus.hits))
        order = permutation(len(corpus.hits), self.seed, self.name, "prompts", epoch)
        how: dict[str, Any] = {"reasoning": self.reasoning}
        for place in range(need):
            split, row = corpus.hits[order[(first + place) % len(order)]]
            rng = generator(self.seed, self.name, "shown", step, round_, place)
            shown = corpus.shown(split, row, self.config, rng, keep_target=True)
            ids, grammar = corpus.template.prompt(shown.request, **how), None
            if self.settings.rule == "grammar":
                grammar = corpus.template.grammar(shown.request, answer=self.answer, **how)
            gains = None
            if self.by_gains:
                gains = corpus.lists[split].gains_LK[row][shown.places].tolist()
            prompts.append(Asked(ids, grammar, shown.request, shown.target, gains))
        return prompts

    def grade(self, trajectory: Trajectory, asked: Asked) -> tuple[Answer, float]:
        """Read and reward one output (invalid or over-long: −1).

        A said order is read from the levels that were drawn: they are what the sample decided.
        """
        reading = self.corpus.template.read(trajectory.tokens_T.tolist(), asked.request)
        answer, k = reading.answer(self.answer), asked.request.k
        given = (answer.order, answer.failures, asked.target, k, self.config.alpha)
        value = reward(*given, asked.gains)
        length, limit = len(trajectory.tokens_T), self.settings.max_tokens
        if answer.valid:  # however long, it is never worse than an invalid one
            shaped = value + overlong_penalty(length, limit, self.config.overlong_cache)
            value = max(INVALID, shaped)
        return answer, value

    def collect(self, step: int, model: nn.Module) -> tuple[list[Rollout], dict[str, float]]:
        """Groups with variance, at most `prompts` of them, and the metrics of all sampled ones."""
        every: list[list[Rollout]] = []
        kept: list[list[Rollout]] = []
        with policy(model) as backend:
            for round_ in range(1 + self.config.refill):
                every += self._round(step, round_, backend)
                kept = [group for group in every if any(each.advantage for each in group)]
                if len(kept) >= self.config.prompts:
                    break
        metrics = rollout_metrics([each for group in every for each in group])
        metrics["frac_reward_zero_std"] = (len(every) - len(kept)) / len(every)
        kept = kept[: self.config.prompts]
        metrics["groups"] = float(len(kept))
        return [each for group in kept for each in group], metrics

    def _round(self, step: int, round_: int, backend: Backend) -> list[list[Rollout]]:
        """A group of samples per prompt; one without variance has advantages of 0."""
        prompts, size = self.prompts(step, round_), self.config.group
        stream = (self.seed, self.name, "rollout", step, round_)
        requests = [
            DecodeRequest(asked.prompt, asked.grammar, (*stream, place, g))
            for place, asked in enumerate(prompts)
            for g in range(size)
        ]
        trajectories, _ = decode_in_shares(backend, requests, self.settings, batch=DECODE_BATCH)
        graded = [self.grade(t, prompts[i // size]) for i, t in enumerate(trajectories)]
        reward_PG = np.array([value for _, value in graded]).reshape(len(prompts), size)
        advantage_N = advantages(reward_PG)[0].ravel().tolist()
        rollouts = [
            Rollout(prompts[i // size], trajectory, *graded[i], advantage_N[i])
            for i, trajectory in enumerate(trajectories)
        ]
        return [rollouts[at : at + size] for at in range(0, len(rollouts), size)]


def rollout_metrics(rollouts: list[Rollout]) -> dict[str, float]:
    """What shows reward hacking first: identity, validity, length; and the reward itself."""
    rewards = [r.reward for r in rollouts]
    valid = [r for r in rollouts if r.answer.valid]
    n_valid = max(len(valid), 1)
    identity = [r.answer.order == tuple(range(r.asked.request.k)) for r in valid]
    moves = [r.asked.target - r.answer.order.index(r.asked.target) for r in valid]
    return {
        "reward": float(np.mean(rewards)),
        "reward_std": float(np.std(rewards)),
        "rank/identity_rate": sum(identity) / n_valid,
        "rank/r@1": sum(r.answer.order[0] == r.asked.target for r in valid) / len(rollouts),
        "rank/promote": sum(move > 0 for move in moves) / n_valid,
        "rank/demote": sum(move < 0 for move in moves) / n_valid,
        **text_metrics([r.trajectory for r in rollouts], [r.answer.valid for r in rollouts]),
    }


def text_metrics(trajectories: list[Trajectory], valid: list[bool]) -> dict[str, float]:
    """What every stage that samples its own texts logs of them."""
    return {
        "rank/valid_rate": float(np.mean(valid)),
        "completions/mean_length": float(np.mean([len(t.tokens_T) for t in trajectories])),
        "decode/tokens_per_forward": float(np.mean([t.tpf for t in trajectories])),
    }


def rollout_settings(
    corpus: Corpus, contract: BlockContract | None, config: OpdConfig | RlConfig
) -> DecodeSettings:
    """The decoder whose rollouts are trained on: autoregressive, or the plain block decoder."""
    given = config.model_dump(include={"temperature", "threshold", "rule"})
    return corpus.settings(contract, "raw" if "threshold" in given else "ar", max_tokens=0, **given)
