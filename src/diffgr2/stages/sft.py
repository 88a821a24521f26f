"""SFT: imitate the teacher's traces, reasoning and answer weighted apart (GR2 §SFT).

Contract: L = −λ_r Σ log p(reasoning) − λ_o Σ log p(answer), λ_r < λ_o, on response tokens only. A
share of rows shows shuffled candidates (against position bias), a share asks for the answer without
reasoning, so that one model serves both; both are drawn from the row's own stream. Not here: making
traces (`traces`), the loop (`train`).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from diffgr2.config import SftConfig
from diffgr2.model.load import device, open_model
from diffgr2.objectives.likelihood import chosen_logp
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import Text, WeightedMicro, chunks, epoch_order, imitation
from diffgr2.stages.common import by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.streams import generator
from diffgr2.train.loop import Loss


@dataclass
class SftTask:
    corpus: Corpus
    config: SftConfig
    seed: int

    name = "sft"
    round_steps = 1

    def epoch(self, step: int) -> float:
        return step * self.config.rows / len(self.corpus.examples)

    def text(self, n: int, *key: str | int) -> Text:
        """The training text of the corpus's n-th trace."""
        corpus, rng = self.corpus, generator(self.seed, self.name, "example", *key)
        split, at = corpus.examples[n]
        row = int(corpus.traces[split].row_N[at])
        request, order_K = corpus.shown(split, row, self.config.shuffle, rng)
        reasoning = bool(rng.random() >= self.config.direct)
        trace = corpus.trace(split, at).reordered(order_K)
        prompt = corpus.template.prompt(request, reasoning=reasoning)
        return Text(prompt, *corpus.template.response(request, trace, reasoning=reasoning))

    def micros(self, step: int, model: nn.Module) -> list[WeightedMicro]:
        config, corpus = self.config, self.corpus
        picks = epoch_order(len(corpus.examples), config.rows, step, self.seed, self.name)
        texts = [self.text(n, step, place) for place, n in enumerate(picks)]
        weights = (config.reasoning_weight, config.answer_weight)
        pad_id = corpus.vocab.pad_id
        return [imitation(part, weights, pad_id) for part in chunks(texts, config.micro_rows)]

    def loss(self, model: nn.Module, micro: WeightedMicro) -> Loss:
        micro = micro.to(device())
        logits_NV = micro.logits(model, self.corpus.vocab.mask_id)
        nll_N = -chosen_logp(logits_NV, micro.target_N)
        right_N = logits_NV.argmax(-1) == micro.target_N
        parts = {"reasoning": micro.kind_N == REASONING, "answer": micro.kind_N == ANSWER}
        metrics = by_part("loss", nll_N.detach(), parts) | by_part("accuracy", right_N, parts)
        return Loss((nll_N * micro.weight_N).sum(), metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, config = open_corpus(ctx.inputs, ctx.recipe), ctx.recipe.sft
    source = ctx.inputs["midtrain"]
    task = SftTask(corpus, config, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
