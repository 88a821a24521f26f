"""CFT: conversion fine-tuning on the AR teacher's own outputs (paper §3.4; DESIGN §6).

Contract: one checkpoint, three decoders. Each row is `[prompt | x0 | xt (| xt')]`; noisy copies are
trained at masked positions only, the clean half keeps its AR head by an AR loss wherever it is
attended causally (block-causal rows would see the answer). Clean attention, block boundaries and
noise are drawn per row; with a complementary pair every token is supervised once per draw. Several
draws share one clean half, which is most of a row's cost. Not here: the outputs themselves
(`distill`), the layout (`noisy`, `model.layout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffgr2.config import CftConfig
from diffgr2.model.contract import BlockContract, read_config, read_contract
from diffgr2.model.layout import response_shift
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, entropy_of, logits_at
from diffgr2.objectives.noise import complement, noise_mask
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import chunks, epoch_order
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.distill import Outputs
from diffgr2.stages.noisy import NoisyBatch, NoisyRow, fill_block, response_blocks
from diffgr2.streams import generator
from diffgr2.train.loop import Loss

NOISY, CLEAN = 0, 1


@dataclass(frozen=True)
class CftMicro:
    """One forward: the batch and its N supervised predictions."""

    batch: NoisyBatch
    index_N: Tensor
    target_N: Tensor
    weight_N: Tensor
    half_N: Tensor  # NOISY or CLEAN
    kind_N: Tensor  # REASONING or ANSWER
    count: float
    tokens: int


class CftTask:
    """See the module's docstring."""

    name = "cft"
    round_steps = 1

    def __init__(
        self,
        corpus: Corpus,
        outputs: Outputs,
        contract: BlockContract,
        config: CftConfig,
        seed: int,
    ) -> None:
        self.corpus, self.outputs, self.contract = corpus, outputs, contract
        self.config, self.seed = config, seed

    def epoch(self, step: int) -> float:
        return step * self.config.rows / len(self.outputs)

    def micros(self, step: int, model: nn.Module) -> list[CftMicro]:
        config = self.config
        picks, _ = epoch_order(len(self.outputs), config.rows, step, self.seed, self.name)
        numbered = list(enumerate(picks.tolist()))
        return [self._micro(step, part) for part in chunks(numbered, config.micro_rows)]

    def row(self, n: int, rng: np.random.Generator) -> tuple[NoisyRow, np.ndarray, np.ndarray]:
        """(row, level [C, R], kind [R]) of output n."""
        config, contract, vocab = self.config, self.contract, self.corpus.vocab
        prompt, response = self.outputs.prompt(self.corpus, n), self.outputs.response(n)
        size = contract.block_size
        if config.random_origin:
            shift = int(rng.integers(size))
        else:
            shift = response_shift(len(prompt), size, contract.origin)
        full_R = fill_block(response, len(prompt), size, shift, vocab.pad_id)
        # What fills the last block belongs to the answer: the decoder meets it there.
        kind_R = np.ones(len(full_R), dtype=np.int64)
        kind_R[: len(response)] = self.outputs.kinds(self.corpus, n)
        block_R = response_blocks(len(prompt), len(full_R), size, shift)
        masks, levels = [], []
        for _ in range(config.draws):
            drawn = noise_mask(block_R, config.fully_masked, rng)
            for masked_R, level_R in [drawn, complement(*drawn)][: 1 + config.complementary]:
                masks.append(masked_R)
                levels.append(level_R)
        causal = {
            "causal": True,
            "block_causal": False,
            "either": bool(rng.random() < config.causal_share),
        }[contract.clean_attention]
        row = NoisyRow(prompt, full_R, np.stack(masks), shift, causal)
        return row, np.stack(levels), kind_R

    def _micro(self, step: int, part: Sequence[tuple[int, int]]) -> CftMicro:
        config, vocab = self.config, self.corpus.vocab
        kind_weight = np.array([config.reasoning_weight, config.answer_weight])
        rows, parts = [], []
        for place, n in part:
            row, level_CR, kind_R = self.row(n, generator(self.seed, self.name, step, place))
            length = int(self.outputs.length_N[n])
            for copy, masked_R in enumerate(row.masked_CR):
                at_N = np.flatnonzero(masked_R)
                weight_N = kind_weight[kind_R[at_N]]
                if config.loss_scale == "inverse_t":
                    weight_N = weight_N / level_CR[copy, at_N]
                places = row.noisy_places(copy, at_N, self.contract)
                parts.append(
                    (len(rows), places, row.response_R[at_N], weight_N, NOISY, kind_R[at_N])
                )
            if row.clean_causal and config.ar_weight:
                at_N = np.arange(length)
                weight_N = config.ar_weight * kind_weight[kind_R[at_N]]
                places = row.clean_places(at_N)
                parts.append(
                    (len(rows), places, row.response_R[at_N], weight_N, CLEAN, kind_R[at_N])
                )
            rows.append(row)
        batch = NoisyBatch.pack(rows, vocab.mask_id, vocab.pad_id, self.contract.block_size)
        index = np.concatenate([b * batch.width + places for b, places, *_ in parts])
        weight_N = np.concatenate([p[3] for p in parts]).astype(np.float32)
        return CftMicro(
            batch,
            torch.from_numpy(index),
            torch.from_numpy(np.concatenate([p[2] for p in parts])),
            torch.from_numpy(weight_N),
            torch.from_numpy(np.concatenate([np.full(len(p[1]), p[4]) for p in parts])),
            torch.from_numpy(np.concatenate([p[5] for p in parts])),
            float(weight_N.sum()),
            len(weight_N),
        )

    def loss(self, model: nn.Module, micro: CftMicro) -> Loss:
        where = device()
        logits_NV = logits_at(
            model,
            micro.batch.ids_BT.to(where),
            micro.index_N.to(where),
            self.corpus.vocab.mask_id,
            attends_B1TT=micro.batch.attends_B1TT.to(where),
            position_BT=micro.batch.position_BT.to(where),
        )
        target_N, weight_N = micro.target_N.to(where), micro.weight_N.to(where)
        half_N, kind_N = micro.half_N.to(where), micro.kind_N.to(where)
        nll_N = -chosen_logp(logits_NV, target_N)
        right_N = logits_NV.detach().argmax(-1) == target_N
        total = (nll_N * weight_N).sum()
        if self.config.sharpen:
            # Confidence where the prediction is already right: more commits per step.
            sure_N = (right_N & (half_N == NOISY)).float()
            total = total + self.config.sharpen * (entropy_of(logits_NV) * sure_N * weight_N).sum()
        metrics = {}
        for name, part_N in (
            ("reasoning", (half_N == NOISY) & (kind_N == 0)),
            ("answer", (half_N == NOISY) & (kind_N == 1)),
            ("ar", half_N == CLEAN),
        ):
            metrics[f"{name}/loss"] = (nll_N.detach()[part_N].sum(), part_N.sum())
            metrics[f"{name}/accuracy"] = (right_N[part_N].sum(), part_N.sum())
        return Loss(total, metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    source = ctx.inputs["convert"]
    model = open_model(source)
    contract = read_contract(read_config(source), model.config.vocab_size, str(source))
    outputs = Outputs.load(ctx.inputs["distill"] / "outputs.safetensors")
    task = CftTask(corpus, outputs, contract, ctx.recipe.cft, ctx.seed)
    return train_stage(ctx, task, model, ctx.recipe.cft, source)
