"""What is ranked in a benchmark of speed, and what a way to rank it has to offer.

Contract: a `Contest` is a run's recipe, lists and models; a `Way` ranks a group of its lists as one
batch, from the request on (its prompt is made within the time), and returns the tokens it wrote. A
way that writes the same text as another names what its tokens have to equal; a way's `work` is what
it asks of the machine. Not here: who takes part (`peers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from machine import Shape, Work

from diffgr2.decode.batch import decode
from diffgr2.model.backend import Backend
from diffgr2.model.backends import NAMES, open_backend
from diffgr2.model.contract import contract_of
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import Corpus
from diffgr2.stages.score import prompts_for

Texts = list[list[int]]


class Way(Protocol):
    """One way to rank, opened for a size of batch and a number of threads."""

    equals: str  # whose tokens its tokens are: "teacher", "student", or "" for nobody's

    def rank(self, requests: Sequence[Request]) -> Texts:
        """Rank these lists in one batch; the tokens written for each, none where none are."""
        ...

    def work(self, requests: Sequence[Request]) -> Work | None:
        """What that asks of the machine at least, where it can be counted."""
        ...


@dataclass(frozen=True)
class Contest:
    """See the module's docstring."""

    corpus: Corpus
    requests: Sequence[Request]
    teacher: Path
    direct: Path  # the teacher that answers without reasoning
    student: Path
    scratch: Path  # where a rival may write its model

    def prompts(self, requests: Sequence[Request]) -> Texts:
        return [self.corpus.template.prompt(request) for request in requests]

    @cached_property
    def tokens(self) -> int:
        """How many tokens our `ar` writes for a list: no rival writes more or fewer."""
        grammars = [self.corpus.template.grammar(r, answer="said") for r in self.requests]
        lengths = {grammar.longest for grammar in grammars}
        assert len(lengths) == 1, "all lists are of one length"
        return lengths.pop()

    @cached_property
    def shape(self) -> Shape:
        return Shape.of(self.teacher)

    @cached_property
    def texts(self) -> dict[str, Texts]:
        """The greedy texts to equal: the teacher's own, held to nothing, and the student's."""
        corpus, found = self.corpus, {}
        for name, directory, how in (
            ("teacher", self.teacher, "ar_raw"),
            ("student", self.student, "ar"),
        ):
            settings = corpus.settings(contract_of(directory), how)
            asked = prompts_for(corpus, self.requests, "said")
            texts = decode(BACKENDS["torch"](directory), asked, settings)
            found[name] = [text.tokens_T[: self.tokens].tolist() for text in texts]
        return found

    def same(self, way: Way, texts: Texts) -> float | None:
        """The share of the first lists for which a way wrote what it has to."""
        if not way.equals:
            return None
        expected = self.texts[way.equals]
        return float(np.mean([text == expected[n] for n, text in enumerate(texts)]))


Open = Callable[[Contest, int, int], Way]
"""A way for this contest, size of batch and number of threads; ImportError if not installed."""

OpenBackend = Callable[[Path], Backend]
"""A model directory's backend; its threads are the process's (`machine.pinned`)."""


BACKENDS: dict[str, OpenBackend] = {name: partial(open_backend, name=name) for name in NAMES}
"""Engines of our own decoders."""
