"""CFT: conversion fine-tuning on the AR teacher's own outputs (paper §3.4).

Contract: one checkpoint, three decoders. Each row is `[prompt | x0 | xt (| xt')]`; noisy copies are
trained at masked positions only, the clean half keeps its AR head by an AR loss wherever it is
attended causally (block-causal rows would see the answer). A row is what a decoder under the
grammar meets: the canvas ends with the response, and what the grammar gives stands in clear; a
share of rows (`free`) is what the plain rule meets: everything masked at times, padding to the
block's end, and always the answer in full, for nothing but the prompt says what is asked. In a
share of those (`displaced`) one candidate of the permutation stands in clear where it does not
belong: that is no target, and the others go on without it, as they must beside a wrong early
commit. Clean attention and noise are drawn per row, block boundaries too if asked; with a
complementary pair every token is supervised once per draw. Several draws share one clean half,
which is most of a row's cost. Where diffusion lives in an adapter, clean positions are the
teacher's and do not train: there is no AR loss, whatever `ar_weight` says. Not here: the outputs
themselves (`distill`), the layout (`noisy`, `model.masks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from diffgr2.config import CftConfig
from diffgr2.decode.grammar import Guide
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.layout import block_bounds, response_shift
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import entropy_of
from diffgr2.objectives.noise import complement, displaced, noise_mask
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.stages.batches import WeightedMicro, chunks, columns, epoch_order
from diffgr2.stages.common import by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.distill import Outputs
from diffgr2.stages.effort import chosen
from diffgr2.stages.noisy import NoisyRow, noisy_batch, response_blocks
from diffgr2.streams import generator
from diffgr2.train.loop import Loss
from diffgr2.train.parallel import micro_rows

NOISY, CLEAN = 0, 1
NOWHERE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class CftMicro(WeightedMicro):
    """One forward; `kind_N` says REASONING or ANSWER."""

    half_N: Tensor  # NOISY or CLEAN


@dataclass(frozen=True)
class Taught:
    """One output as a row teaches it; R tokens, of which the first `length` are response."""

    tokens_R: np.ndarray
    kinds_R: np.ndarray
    known_R: np.ndarray  # given by the grammar: never masked
    levels_R: np.ndarray  # expected levels of strengths, NaN elsewhere
    order_K: np.ndarray  # where a free row's permutation stands, a token each
    free: bool
    wrong: int | None = None  # where a candidate stands that does not belong there: no target
    padding: int = 0

    @property
    def length(self) -> int:
        return len(self.tokens_R) - self.padding

    def padded(self, n: int, pad_id: int) -> Taught:
        """With n padding tokens behind it."""
        return replace(
            self,
            tokens_R=np.pad(self.tokens_R, (0, n), constant_values=pad_id),
            kinds_R=np.pad(self.kinds_R, (0, n), constant_values=ANSWER),
            known_R=np.pad(self.known_R, (0, n)),
            levels_R=np.pad(self.levels_R, (0, n), constant_values=np.nan),
            padding=n,
        )

    def weights(self, by_kind: np.ndarray) -> np.ndarray:
        """Weight [R] of each token as a target."""
        weight_R = by_kind[self.kinds_R]
        if self.wrong is not None:
            weight_R[self.wrong] = 0.0
        return weight_R

    def hesitant(
        self, masked_CR: np.ndarray, most: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place, who stands next to it, share [C, N]) of the permutation's targets that waver.

        They do to the share of the strengths that a copy does not show yet: an order is not sure
        before what it follows from.
        """
        at_N = self.order_K[self.order_K != (-1 if self.wrong is None else self.wrong)]
        said_R = np.isfinite(self.levels_R)
        if len(at_N) < 2 or not said_R.any():
            return NOWHERE, NOWHERE, np.empty((len(masked_CR), 0))
        next_N = self.tokens_R[np.append(at_N[1:], at_N[-2])]
        hidden_C = masked_CR[:, said_R].mean(1)
        return at_N, next_N, np.repeat(most * hidden_C[:, None], len(at_N), axis=1)

    def targets(self, vocab: Vocabulary) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(token, other token, the other's share) [R]: a strength lies between two levels."""
        low_R, share_R = self.tokens_R.copy(), np.zeros(len(self.tokens_R))
        other_R = low_R.copy()
        at = np.flatnonzero(np.isfinite(self.levels_R))
        most = vocab.spec.strengths - 1
        level = np.clip(self.levels_R[at], 0, most)
        base = np.minimum(np.floor(level).astype(np.int64), max(most - 1, 0))
        low_R[at], other_R[at] = vocab.strength_ids[base], vocab.strength_ids[base + 1]
        share_R[at] = level - base
        return low_R, other_R, share_R


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
        parts = chunks(list(enumerate(picks)), micro_rows(config, model))
        return [self._micro(step, part) for part in parts]

    def text(self, n: int, rng: np.random.Generator) -> Taught:
        """Output n as this row teaches it."""
        corpus, outputs, vocab = self.corpus, self.outputs, self.corpus.vocab
        tokens, answer = outputs.response(n), outputs.answer(n)
        free = bool(rng.random() < self.config.free) and answer == corpus.answers[-1]
        reasoning, start = not outputs.direct_N[n], corpus.template.answer_start(tokens.tolist())
        both = answer == "written" and "said" in corpus.template.answers and reasoning
        if both and not free and rng.random() < 0.5:
            # Decoding of a said answer ends with the last strength: half of the canvases do, too.
            answer, tokens = "said", tokens[:start]
        request = outputs.request(corpus, n)
        grammar = corpus.template.grammar(request, reasoning=reasoning, answer=answer)
        if free and tokens[-1] != vocab.end_id:
            tokens = np.append(tokens, vocab.end_id)
        known_T = np.zeros(len(tokens), dtype=bool)
        if not free:
            given_T = np.full(max(grammar.longest, len(tokens)), UNKNOWN)
            Guide(grammar, given_T)
            known_T = given_T[: len(tokens)] != UNKNOWN
        levels_T = np.full(len(tokens), np.nan)
        levels_T[: len(outputs.levels(n))] = outputs.levels(n)[: len(tokens)]
        order_K, wrong = NOWHERE, None
        if free and answer == "written" and start + request.k + 2 == len(tokens):
            order_K = start + 1 + np.arange(request.k)
            if request.k > 1 and rng.random() < self.config.displaced:
                tokens[order_K], put = displaced(tokens[order_K], rng)
                wrong = int(order_K[put])
                known_T[wrong] = True
        kinds_T = corpus.template.kinds(tokens.tolist())
        return Taught(tokens, kinds_T, known_T, levels_T, order_K, free, wrong)

    def row(self, n: int, rng: np.random.Generator) -> tuple[NoisyRow, np.ndarray, Taught]:
        """(row, level [C, R], text) of output n."""
        config, contract, vocab = self.config, self.contract, self.corpus.vocab
        prompt, text = self.outputs.prompt(self.corpus, n), self.text(n, rng)
        size = contract.block_size
        if config.random_origin:
            shift = int(rng.integers(size))
        else:
            shift = response_shift(len(prompt), size, contract.origin)
        if text.free:
            # What fills the last block belongs to the answer: the decoder meets it there.
            length = len(prompt) + len(text.tokens_R)
            text = text.padded(block_bounds(length - 1, size, shift)[1] - length, vocab.pad_id)
        block_R = response_blocks(len(prompt), len(text.tokens_R), size, shift)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        settled = len(text.order_K) > 0 and rng.random() < config.settled
        for _ in range(config.draws):
            masked_R, level_R = noise_mask(block_R, config.fully_masked, rng)
            if settled:  # what comes first stands already; the pair's other half shows the reverse
                masked_R[: text.order_K[0]] = False
            drawn.append((masked_R, level_R))
            if config.complementary:
                drawn.append(complement(*drawn[-1]))
        masked_CR, level_CR = (np.stack(part) for part in zip(*drawn, strict=True))
        masked_CR = masked_CR & ~text.known_R
        causal = contract.clean_attention == "causal"
        if contract.clean_attention == "either":
            causal = bool(rng.random() < config.causal_share)
        row = NoisyRow(prompt, text.tokens_R, masked_CR, shift, causal, contract)
        return row, level_CR, text

    def _micro(self, step: int, part: Sequence[tuple[int, int]]) -> CftMicro:
        config = self.config
        weights = np.array([config.reasoning_weight, config.answer_weight])
        rows, supervised = [], []
        for b, (place, n) in enumerate(part):
            row, level_CR, text = self.row(n, generator(self.seed, self.name, step, place))
            rows.append(row)
            low_R, other_R, share_R = text.targets(self.corpus.vocab)
            weight_R = text.weights(weights)
            copy_N, at_N = np.nonzero(row.masked_CR)
            level = level_CR[copy_N, at_N] if config.loss_scale == "inverse_t" else 1.0
            other_CR = np.tile(other_R, (len(row.masked_CR), 1))
            share_CR = np.tile(share_R, (len(row.masked_CR), 1))
            wavers_M, next_M, part_CM = text.hesitant(row.masked_CR, config.hesitate)
            other_CR[:, wavers_M], share_CR[:, wavers_M] = next_M, part_CM
            mixed = (other_CR[copy_N, at_N], share_CR[copy_N, at_N])
            halves = [(NOISY, at_N, row.noisy_places(copy_N, at_N), weight_R[at_N] / level, *mixed)]
            if row.clean_causal and config.ar_weight and self.contract.adapter is None:
                at_N = np.arange(text.length)
                weight_N = config.ar_weight * weight_R[at_N]
                halves.append(
                    (CLEAN, at_N, row.clean_places(at_N), weight_N, other_R[at_N], share_R[at_N])
                )
            supervised += [
                (b, place_N, low_R[at], w_N, text.kinds_R[at], other_N, share_N, half)
                for half, at, place_N, w_N, other_N, share_N in halves
            ]
        batch = noisy_batch(rows, self.corpus.vocab.pad_id)
        row_N, place_N, target_N, weight_N, kind_N, other_N, share_N, half_N = columns(supervised)
        index_N, weight_N = batch.flat(row_N, place_N), weight_N.float()
        mixed = (other_N, share_N.float())
        return CftMicro(batch, index_N, target_N, weight_N, kind_N, *mixed, half_N)

    def loss(self, model: nn.Module, micro: CftMicro) -> Loss:
        micro = micro.to(device())
        logits_NV = micro.logits(model, self.corpus.vocab.mask_id)
        nll_N, right_N = micro.nll(logits_NV), micro.right(logits_NV.detach())
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
    words = corpus.vocab.spec.size
    config = chosen(ctx.recipe.cft, ctx.name, len(outputs), words, ctx.progress)
    task = CftTask(corpus, outputs, contract, config, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
