"""The corpus: everything the language-model stages read, opened once from the stage directories.

Contract: `open_corpus(inputs, recipe)` loads histories, semantic IDs, candidate lists, evidence
buckets and (where given) traces; `request(split, row)` builds one request; `examples` enumerates
the lists whose traces train, `hits` those whose target is in the list and known (train and
validation, never test). Not here: token batches (`batches`) and training.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays
from diffgr2.candidates.lists import load_lists
from diffgr2.config import Recipe
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.decode.settings import DecodeSettings, settings_of
from diffgr2.items.sids import SemanticIds
from diffgr2.model.contract import BlockContract
from diffgr2.prompts.request import Request, Trace, request_at
from diffgr2.prompts.template import Template, frame_of, make_template
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.traces.decide import Traces
from diffgr2.traces.words import read_explanations
from diffgr2.types import CandidateLists

KNOWN = ("train", "validation")
"""Splits whose targets may be used for training; the test split's never are."""


@dataclass(frozen=True)
class Corpus:
    recipe: Recipe
    dataset: Dataset
    sids: SemanticIds
    vocab: Vocabulary
    template: Template
    lists: dict[str, CandidateLists]
    buckets: dict[str, np.ndarray]
    traces: dict[str, Traces]
    explanations: dict[str, list[str]]  # a teacher's own words per trace; empty if verbalised

    def request(self, split: str, row: int) -> Request:
        """The request of a split's list, candidates in floor order."""
        lists, buckets_KF, shown = (
            self.lists[split],
            self.buckets[split],
            self.recipe.prompt.history,
        )
        texts, codes_IL = self.template.shows_text, self.sids.codes_IL
        return request_at(lists, row, self.dataset, codes_IL, buckets_KF[row], shown, texts=texts)

    def shown(
        self, split: str, row: int, shuffle: float, rng: np.random.Generator
    ) -> tuple[Request, np.ndarray]:
        """A list's request, a share of them with shuffled candidates, and their order."""
        request = self.request(split, row)
        order_K = rng.permutation(request.k) if rng.random() < shuffle else np.arange(request.k)
        return request.reordered(order_K), order_K

    def settings(
        self, contract: BlockContract | None, how: str = "recommended", **given: Any
    ) -> DecodeSettings:
        """How a model with this contract is decoded (`decode.settings.settings_of`)."""
        return settings_of(self.recipe.decode, contract, frame_of(self.template), how, **given)

    def trace(self, split: str, n: int) -> Trace:
        """A split's n-th trace, with its teacher's words where it has some."""
        trace, words = self.traces[split].at(n), self.explanations.get(split)
        return replace(trace, explanation=words[n]) if words else trace

    @cached_property
    def examples(self) -> list[tuple[str, int]]:
        """(split, index into that split's traces) of every trace."""
        return [(split, n) for split in KNOWN for n in range(len(self.traces[split]))]

    @cached_property
    def hits(self) -> list[tuple[str, int]]:
        """(split, list) of every known list that holds its target."""
        return [
            (split, int(row))
            for split in KNOWN
            for row in np.flatnonzero(self.lists[split].hit_L >= 0)
        ]


def open_corpus(inputs: Mapping[str, Path], recipe: Recipe) -> Corpus:
    """Open what the given stage directories hold."""
    vocab, splits = Vocabulary.load(inputs["vocabulary"]), (*KNOWN, "test")
    taught = KNOWN if "traces" in inputs else ()
    traces = {s: Traces.load(inputs["traces"] / f"{s}.safetensors") for s in taught}
    return Corpus(
        recipe=recipe,
        dataset=read_dataset(inputs["data"]),
        sids=SemanticIds.load(inputs["items"]),
        vocab=vocab,
        template=make_template(vocab, recipe.prompt),
        lists={s: load_lists(inputs["candidates"], s) for s in splits},
        buckets={
            s: load_arrays(inputs["evidence"] / f"{s}.safetensors")["buckets_LKF"] for s in splits
        },
        traces=traces,
        explanations={s: read_explanations(inputs["traces"] / f"{s}.jsonl") for s in taught},
    )
