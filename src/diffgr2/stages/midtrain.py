"""Mid-training: give semantic IDs a meaning (GR2 §mid-training; OneRec-Think's four tasks).

Contract: next-token prediction on a mix of sequential preference (histories of the train part),
captioning (semantic ID → text), persona grounding (history → what the shopper likes, in words) and
general text (the catalogue's own). Starts from a fresh model, from the recipe's base checkpoint
with the vocabulary's embeddings added, or from a bundle's weights (`warm`). Not here: re-ranking.
"""

from collections import Counter
from typing import Any

import numpy as np
from torch import nn

from diffgr2.config import MidtrainConfig
from diffgr2.model.load import build, device, to_device
from diffgr2.pipeline import StageContext
from diffgr2.prompts.brief import words_of
from diffgr2.prompts.english import wording
from diffgr2.prompts.request import item_text, item_title
from diffgr2.stages import warm
from diffgr2.stages.batches import Text, WeightedMicro, chunks, imitation
from diffgr2.stages.common import by_part, train_stage
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.effort import chosen
from diffgr2.stages.known import known_part
from diffgr2.streams import generator
from diffgr2.train.loop import Loss
from diffgr2.train.parallel import micro_rows
from diffgr2.types import Histories

TASKS = ("sequential", "caption", "persona", "general")
LEADS = {
    "sequential": "<task_next>",
    "caption": "<task_caption>",
    "persona": "<task_persona>",
    "general": "<task_text>",
}
OF_HISTORIES = ("sequential", "persona")
LONGEST_TEXT = 64  # tokens of a caption


class MidtrainTask:
    name = "midtrain"
    round_steps = 1

    def __init__(self, corpus: Corpus, config: MidtrainConfig, seed: int, known: Histories) -> None:
        self.corpus, self.config, self.seed = corpus, config, seed
        self.known, self.able = known, np.flatnonzero(known.lengths_U)
        shares = np.array([getattr(config, task) for task in TASKS])
        if not len(self.able):  # nobody bought anything: texts alone
            shares *= [task not in OF_HISTORIES for task in TASKS]
        self.shares = shares / shares.sum()

    def text(self, rng: np.random.Generator) -> Text:
        """One row; its tokens' kind is the number of its task."""
        task = int(rng.choice(len(TASKS), p=self.shares))
        prompt, response = self._words(rng, TASKS[task])
        return Text(prompt, response, [task] * len(response))

    def _words(self, rng: np.random.Generator, task: str) -> tuple[list[int], list[int]]:
        """(prompt, response)."""
        vocab, catalogue = self.corpus.vocab, self.corpus.dataset.catalogue
        if task in ("caption", "general"):
            item = int(rng.integers(len(catalogue)))
            words = [*vocab.text_ids(item_text(catalogue, item))[:LONGEST_TEXT], vocab.end_id]
            return [*self._lead(task), *(self._items([item]) if task == "caption" else ())], words
        history = self.known.of(int(self.able[rng.integers(len(self.able))]))
        history = history[-self.corpus.recipe.prompt.history - 1 :]
        shown = self._items(history.tolist())
        if task == "sequential":
            return self._lead(task), [*shown, vocab.end_id]
        likes = Counter(
            word
            for item in history
            for word in (catalogue.brands[item], *catalogue.categories[item][-1:])
            if word
        )
        words = vocab.text_ids("likes " + ", ".join(word for word, _ in likes.most_common(3)))
        return [*self._lead(task), *shown], [*words[:LONGEST_TEXT], vocab.end_id]

    def _lead(self, task: str) -> list[int]:
        """What says which task it is: a token, or words where the vocabulary has no such token."""
        vocab = self.corpus.vocab
        if vocab.spec.words:
            return vocab.text_ids(wording("brief")["tasks"][task])
        return [vocab.control[LEADS[task]]]

    def _items(self, items: list[int]) -> list[int]:
        """Items as the template shows them: semantic IDs, or short titles."""
        vocab, catalogue = self.corpus.vocab, self.corpus.dataset.catalogue
        if not vocab.spec.words:
            return vocab.sid_ids(self.corpus.sids.codes_IL[items]).ravel().tolist()
        room, end = wording("brief")["history_tokens"], vocab.text_ids(";")
        titles = (" " + " ".join(words_of(item_title(catalogue, item))) for item in items)
        return [token for title in titles for token in (*vocab.text_ids(title)[:room], *end)]

    def micros(self, step: int, model: nn.Module) -> list[WeightedMicro]:
        config, ones, pad_id = self.config, [1.0] * len(TASKS), self.corpus.vocab.pad_id
        rngs = [generator(self.seed, self.name, step, place) for place in range(config.rows)]
        texts = [self.text(rng) for rng in rngs]
        return [imitation(part, ones, pad_id) for part in chunks(texts, micro_rows(config, model))]

    def loss(self, model: nn.Module, micro: WeightedMicro) -> Loss:
        micro = micro.to(device())
        logits_NV = micro.logits(model, self.corpus.vocab.mask_id)
        nll_N = micro.nll(logits_NV)
        parts = {task: micro.kind_N == number for number, task in enumerate(TASKS)}
        return Loss(nll_N.sum(), by_part("loss", nll_N.detach(), parts))


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    size, start = corpus.vocab.spec.size, ctx.recipe.start
    model = to_device(warm.weights(start) if start else build(ctx.recipe.model, size, ctx.seed))
    config = chosen(ctx.recipe.midtrain, ctx.name, 0, size, ctx.progress)
    known = known_part(ctx.recipe, ctx.inputs["data"], corpus.dataset)
    task = MidtrainTask(corpus, config, ctx.seed, known)
    result = train_stage(ctx, task, model, config, ctx.inputs["vocabulary"])
    return {**result, "parameters": sum(p.numel() for p in model.parameters())}
