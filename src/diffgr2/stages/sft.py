"""SFT: imitate the teacher's traces, reasoning and answer weighted apart (GR2 §SFT).

Contract: L = −λ_r Σ log p(reasoning) − λ_o Σ log p(answer), λ_r < λ_o, on response tokens only;
strengths are answers, and a target between two levels is both to its share. With soft targets a
list's strengths are learned together: KL between the teacher's ranking and that of the expected
strengths, in the units of the teacher's score, weighs `soft_weight` times what they weigh by
themselves, and these `level_weight` times as much as without; it asks how the list ranks, they what
is written. Lists are shown at all
lengths, some with shuffled candidates (against position bias) or without part of their evidence; a
share of rows asks for the answer without reasoning, so that one model serves both. All of it is
drawn from the row's own stream. Not here: making traces (`traces`), the loop (`train`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from diffgr2.config import SftConfig
from diffgr2.model.load import device, open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.stages.batches import (
    Strengths,
    Text,
    WeightedMicro,
    chunks,
    epoch_order,
    imitation,
)
from diffgr2.stages.common import answer_to_learn, by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.effort import chosen
from diffgr2.streams import generator
from diffgr2.train.loop import Loss
from diffgr2.train.parallel import micro_rows


@dataclass(frozen=True)
class SftMicro(WeightedMicro):
    """One forward, and the lists whose strengths it states."""

    strengths: Strengths


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

    def micros(self, step: int, model: nn.Module) -> list[SftMicro]:
        config, corpus = self.config, self.corpus
        picks = epoch_order(len(corpus.examples), config.rows, step, self.seed, self.name)
        texts = [self.text(n, step, place) for place, n in enumerate(picks)]
        return [self.micro(part) for part in chunks(texts, micro_rows(config, model))]

    def micro(self, texts: Sequence[Text]) -> SftMicro:
        """These texts in one forward."""
        config, vocab = self.config, self.corpus.vocab
        plain = imitation(texts, (config.reasoning_weight, config.answer_weight), vocab.pad_id)
        strengths = Strengths.of(plain, plain.index_N // plain.batch.width, vocab)
        if config.soft_weight:
            lower_N = torch.ones_like(plain.weight_N)
            lower_N[strengths.at_M] = config.level_weight
            plain = replace(plain, weight_N=plain.weight_N * lower_N)
        return SftMicro(**vars(plain), strengths=strengths)

    def loss(self, model: nn.Module, micro: SftMicro) -> Loss:
        micro, vocab = micro.to(device()), self.corpus.vocab
        logits_NV = micro.logits(model, vocab.mask_id)
        nll_N, right_N = micro.nll(logits_NV), micro.right(logits_NV)
        total = (nll_N * micro.weight_N).sum()
        parts = {"reasoning": micro.kind_N == REASONING, "answer": micro.kind_N == ANSWER}
        metrics = by_part("loss", nll_N.detach(), parts) | by_part("accuracy", right_N, parts)
        if self.config.soft_weight and len(micro.strengths.at_M):
            kl_Q, weight_Q = micro.strengths.kl(logits_NV, vocab, self.corpus.step)
            total = total + self.config.soft_weight * (kl_Q * weight_Q).sum()
            metrics["ranking/kl"] = (kl_Q.detach().sum(), len(kl_Q))
        return Loss(total, metrics)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, source = open_corpus(ctx.inputs, ctx.recipe), ctx.inputs["midtrain"]
    lists, words = len(corpus.examples), corpus.vocab.spec.size
    config = chosen(ctx.recipe.sft, ctx.name, lists, words, ctx.progress)
    task = SftTask(corpus, config, ctx.seed)
    return train_stage(ctx, task, open_model(source), config, source)
