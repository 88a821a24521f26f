"""SFT: imitate the teacher's traces, reasoning and answer weighted apart (GR2 §SFT).

Contract: L = −λ_r Σ log p(reasoning) − λ_o Σ log p(answer), λ_r < λ_o, on response tokens only;
strengths are answers, and a target between two levels is both to its share. Lists are shown at all
lengths, some with shuffled candidates (against position bias) or without part of their evidence; a
share of rows asks for the answer without reasoning, so that one model serves both. All of it is
drawn from the row's own stream. Not here: making traces (`traces`), the loop (`train`).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from diffgr2.config import SftConfig
from diffgr2.model.load import device, open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import Text, WeightedMicro, chunks, epoch_order, imitation
from diffgr2.stages.common import answer_to_learn, by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.effort import chosen
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
        shown, trace = corpus.lesson(split, at, self.config, rng)
        reasoning = bool(rng.random() >= self.config.direct)
        answer = answer_to_learn(corpus, rng, reasoning=reasoning)
        prompt = corpus.template.prompt(shown.request, reasoning=reasoning)
        made = corpus.template.response(shown.request, trace, reasoning=reasoning, answer=answer)
        return Text(prompt, made.tokens, made.kinds, made.other, made.share)

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
        nll_N, right_N = micro.nll(logits_NV), micro.right(logits_NV)
        parts = {"reasoning": micro.kind_N == REASONING, "answer": micro.kind_N == ANSWER}
        metrics = by_part("loss", nll_N.detach(), parts) | by_part("accuracy", right_N, parts)
        return Loss((nll_N * micro.weight_N).sum(), metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, source = open_corpus(ctx.inputs, ctx.recipe), ctx.inputs["midtrain"]
    lists, words = len(corpus.examples), corpus.vocab.spec.size
    config = chosen(ctx.recipe.sft, ctx.name, lists, words, ctx.progress)
    task = SftTask(corpus, config, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
