"""CFT: conversion fine-tuning on the AR teacher's own outputs (paper §3.4).

Contract: one checkpoint, three decoders. Each row is `[prompt | x0 | xt (| xt')]`; noisy copies are
trained at masked positions only, the clean half keeps its AR head by an AR loss wherever it is
attended causally (block-causal rows would see the answer). Clean attention, block boundaries and
noise are drawn per row; with a complementary pair every token is supervised once per draw. Several
draws share one clean half, which is most of a row's cost. Not here: the outputs themselves
(`distill`), the layout (`noisy`, `model.layout`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from diffgr2.config import CftConfig
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.layout import block_bounds, response_shift
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, entropy_of
from diffgr2.objectives.noise import complement, noise_mask
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import WeightedMicro, chunks, columns, epoch_order
from diffgr2.stages.common import by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.distill import Outputs
from diffgr2.stages.noisy import NoisyRow, noisy_batch, response_blocks
from diffgr2.streams import generator
from diffgr2.train.loop import Loss

NOISY, CLEAN = 0, 1


@dataclass(frozen=True)
class CftMicro(WeightedMicro):
    """One forward; `kind_N` says REASONING or ANSWER."""

    half_N: Tensor  # NOISY or CLEAN


@dataclass
class CftTask:
    corpus: Corpus
    outputs: Outputs
    contract: BlockContract
    config: CftConfig
    seed: int

    name = "cft"
    round_steps = 1

    def epoch(self, step: int) -> float:
        return step * self.config.rows / len(self.outputs)

    def micros(self, step: int, model: nn.Module) -> list[CftMicro]:
        config = self.config
        picks = epoch_order(len(self.outputs), config.rows, step, self.seed, self.name)
        parts = chunks(list(enumerate(picks)), config.micro_rows)
        return [self._micro(step, part) for part in parts]

    def row(self, n: int, rng: np.random.Generator) -> tuple[NoisyRow, np.ndarray, np.ndarray]:
        """(row, level [C, R], kind [R]) of output n."""
        config, contract = self.config, self.contract
        prompt, response = self.outputs.prompt(self.corpus, n), self.outputs.response(n)
        kinds, size = self.outputs.kinds(self.corpus, n), contract.block_size
        if config.random_origin:
            shift = int(rng.integers(size))
        else:
            shift = response_shift(len(prompt), size, contract.origin)
        # What fills the last block belongs to the answer: the decoder meets it there.
        length = len(prompt) + len(response)
        fill = (0, block_bounds(length - 1, size, shift)[1] - length)
        full_R = np.pad(response, fill, constant_values=self.corpus.vocab.pad_id)
        kind_R = np.pad(kinds, fill, constant_values=ANSWER)
        block_R = response_blocks(len(prompt), len(full_R), size, shift)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(config.draws):
            drawn.append(noise_mask(block_R, config.fully_masked, rng))
            if config.complementary:
                drawn.append(complement(*drawn[-1]))
        masked_CR, level_CR = (np.stack(part) for part in zip(*drawn, strict=True))
        causal = contract.clean_attention == "causal"
        if contract.clean_attention == "either":
            causal = bool(rng.random() < config.causal_share)
        return NoisyRow(prompt, full_R, masked_CR, shift, causal, contract), level_CR, kind_R

    def _micro(self, step: int, part: Sequence[tuple[int, int]]) -> CftMicro:
        config = self.config
        weights = np.array([config.reasoning_weight, config.answer_weight])
        rows, supervised = [], []
        for b, (place, n) in enumerate(part):
            row, level_CR, kind_R = self.row(n, generator(self.seed, self.name, step, place))
            rows.append(row)
            weight_R = weights[kind_R]
            copy_N, at_N = np.nonzero(row.masked_CR)
            level = level_CR[copy_N, at_N] if config.loss_scale == "inverse_t" else 1.0
            halves = [(NOISY, at_N, row.noisy_places(copy_N, at_N), weight_R[at_N] / level)]
            if row.clean_causal and config.ar_weight:
                at_N = np.arange(int(self.outputs.length_N[n]))
                weight_N = config.ar_weight * weight_R[at_N]
                halves.append((CLEAN, at_N, row.clean_places(at_N), weight_N))
            supervised += [
                (b, place_N, row.response_R[at_N], weight_N, kind_R[at_N], half)
                for half, at_N, place_N, weight_N in halves
            ]
        batch = noisy_batch(rows, self.corpus.vocab.pad_id)
        row_N, place_N, target_N, weight_N, kind_N, half_N = columns(supervised)
        index_N = batch.flat(row_N, place_N)
        return CftMicro(batch, index_N, target_N, weight_N.float(), kind_N, half_N)

    def loss(self, model: nn.Module, micro: CftMicro) -> Loss:
        micro = micro.to(device())
        logits_NV = micro.logits(model, self.corpus.vocab.mask_id)
        nll_N = -chosen_logp(logits_NV, micro.target_N)
        right_N = logits_NV.detach().argmax(-1) == micro.target_N
        noisy_N = micro.half_N == NOISY
        total = (nll_N * micro.weight_N).sum()
        if self.config.sharpen:
            # Confidence where the prediction is already right: more commits per step.
            sure_N = (right_N & noisy_N).float()
            unsure = (entropy_of(logits_NV) * sure_N * micro.weight_N).sum()
            total = total + self.config.sharpen * unsure
        parts = {
            "reasoning": noisy_N & (micro.kind_N == REASONING),
            "answer": noisy_N & (micro.kind_N == ANSWER),
            "ar": ~noisy_N,
        }
        metrics = by_part("loss", nll_N.detach(), parts) | by_part("accuracy", right_N, parts)
        return Loss(total, metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    source = ctx.inputs["convert"]
    contract, outputs = contract_of(source), Outputs.load(ctx.inputs["distill"])
    assert contract is not None  # `convert` wrote it
    task = CftTask(corpus, outputs, contract, ctx.recipe.cft, ctx.seed)
    return train_stage(ctx, task, open_model(source), ctx.recipe.cft, source)
