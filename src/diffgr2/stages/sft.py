"""SFT: imitate the teacher's traces, reasoning and answer weighted apart (GR2 §SFT; DESIGN §3).

Contract: L = −λ_r Σ log p(reasoning) − λ_o Σ log p(answer), λ_r < λ_o, on response tokens only. A
share of rows shows shuffled candidates (against position bias), a share asks for the answer without
reasoning, so that one model serves both. Not here: making traces (`traces`), the loop (`train`).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from diffgr2.config import SftConfig
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp, logits_at
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import CausalBatch, chunks, epoch_order, example
from diffgr2.stages.common import train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.train.loop import Loss


class SftTask:
    """See the module's docstring."""

    round_steps = 1

    def __init__(self, name: str, corpus: Corpus, config: SftConfig, seed: int) -> None:
        self.name, self.corpus, self.config, self.seed = name, corpus, config, seed

    def epoch(self, step: int) -> float:
        return step * self.config.rows / len(self.corpus.examples)

    def micros(self, step: int, model: nn.Module) -> list[CausalBatch]:
        config, corpus = self.config, self.corpus
        picks, _ = epoch_order(len(corpus.examples), config.rows, step, self.seed, self.name)
        rows = [
            example(
                corpus,
                *corpus.examples[n],
                shuffle=config.shuffle,
                direct=config.direct,
                key=(self.seed, self.name, "example", step, place),
            )
            for place, n in enumerate(picks)
        ]
        weight = {REASONING: config.reasoning_weight, ANSWER: config.answer_weight}
        return [
            CausalBatch.pack(
                [row.prompt for row in part],
                [row.response for row in part],
                [[weight[kind] for kind in row.kind] for row in part],
                [row.kind for row in part],
                corpus.vocab.pad_id,
            )
            for part in chunks(rows, config.micro_rows)
        ]

    def loss(self, model: nn.Module, micro: CausalBatch) -> Loss:
        where = device()
        logits_NV = logits_at(
            model, micro.ids_BT.to(where), micro.index_N.to(where), self.corpus.vocab.mask_id
        )
        target_N, kind_N = micro.target_N.to(where), micro.kind_N.to(where)
        nll_N = -chosen_logp(logits_NV, target_N)
        right_N = (logits_NV.argmax(-1) == target_N).float()
        metrics = {}
        for name, kind in (("reasoning", REASONING), ("answer", ANSWER)):
            part_N = kind_N == kind
            metrics[f"{name}/loss"] = (nll_N.detach()[part_N].sum(), part_N.sum())
            metrics[f"{name}/accuracy"] = (right_N[part_N].sum(), part_N.sum())
        return Loss((nll_N * micro.weight_N.to(where)).sum(), metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    """Train from the mid-trained model."""
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    source = ctx.inputs["midtrain"]
    config = ctx.recipe.sft
    task = SftTask("sft", corpus, config, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
