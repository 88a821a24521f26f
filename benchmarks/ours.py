"""Our decoders as ways to rank, over any backend.

Contract: `entries` names them; each ranks as a server does, from the request over prompt, grammar,
decoding and reading to the order. The work is counted by a backend that only takes notes of what
the decoder asks of it. Not here: rivals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from contest import Contest, OpenBackend, Texts, Way
from machine import Shape, Work

from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest
from diffgr2.model.backend import Backend, Session, Span, View
from diffgr2.model.contract import contract_of
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import mean_reading
from diffgr2.rerank.readout import view_of
from diffgr2.stages.batches import chunks
from diffgr2.stages.score import prompts_for

VIEWS = 3


@dataclass
class Noting:
    """A backend that counts what is asked of another; its own session, for it opens one."""

    inner: Backend
    shape: Shape
    total: Work = field(default_factory=Work)
    _session: Session | None = None
    lanes = 1  # it counts one session's work

    def __post_init__(self) -> None:
        self.name = self.inner.name

    @property
    def max_positions(self) -> int:
        return self.inner.max_positions

    def session(self, mask_id: int) -> Session:
        self._session = self.inner.session(mask_id)
        return self

    def add(self, prompts: Sequence[Span], slots: int) -> None:
        assert self._session is not None
        prefill = self.shape.forward([(span.hi, 0) for span in prompts])
        self.total += replace(prefill, forwards=0)  # a prompt alone writes nothing
        self._session.add(prompts, slots)

    def forward(self, spans: Sequence[Span]) -> list[View]:
        assert self._session is not None
        asked = [(span.hi, len(span.ids) - span.logits_from) for span in spans]
        self.total += self.shape.forward(asked)
        return self._session.forward(spans)

    def keep(self, rows: Sequence[int]) -> None:
        assert self._session is not None
        self._session.keep(rows)


class Decoded:
    """See `contest.Way`."""

    def __init__(
        self,
        contest: Contest,
        backend: Backend,
        directory: Path,
        how: str,
        *,
        reasoning: bool = True,
        views: int = 1,
        **given: Any,
    ) -> None:
        self.contest, self.backend = contest, backend
        self.reasoning, self.views = reasoning, views
        self.settings = contest.corpus.settings(contract_of(directory), how, **given)
        self.shape = Shape.of(directory)
        exact = how == "verify" and backend.name != "onnx-int8"  # eight bits write their own text
        self.equals = "student" if exact else ""

    def rank(self, requests: Sequence[Request]) -> Texts:
        return self._ranked(self.backend, requests)

    def work(self, requests: Sequence[Request]) -> Work:
        noting = Noting(self.backend, self.shape)
        self._ranked(noting, requests)
        return noting.total

    def _ranked(self, backend: Backend, requests: Sequence[Request]) -> Texts:
        corpus, template = self.contest.corpus, self.contest.corpus.template
        shown, orders = list(requests), None
        if self.views > 1:
            orders = [view_of(r.k, n, ("decode",)) for r in requests for n in range(self.views)]
            shown = [requests[n // self.views].taken(order) for n, order in enumerate(orders)]
        asked: list[DecodeRequest] = prompts_for(corpus, shown, "said", reasoning=self.reasoning)
        texts = decode(backend, asked, self.settings, batch=len(asked))
        tokens = [text.tokens_T.tolist() for text in texts]
        readings = [
            template.read(text, request, one.level_T)
            for text, request, one in zip(tokens, shown, texts, strict=True)
        ]
        if orders is not None:
            pairs = zip(readings, orders, strict=True)
            whole = [reading.restored(order) for reading, order in pairs]
            readings = [mean_reading(part) for part in chunks(whole, self.views)]
        for reading in readings:
            reading.said_order()
        return [[token for text in part for token in text] for part in chunks(tokens, self.views)]


ENTRIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ar": ("teacher", "ar", {}),
    "direct": ("direct", "ar", {"reasoning": False}),
    "block": ("student", "recommended", {"decoder": "block"}),
    "block, direct": ("student", "recommended", {"decoder": "block", "reasoning": False}),
    f"block, {VIEWS} views": ("student", "recommended", {"decoder": "block", "views": VIEWS}),
    "verify": ("student", "verify", {}),
}
"""Name: whose model, which preset of decode settings, what else."""


def opened(
    open_backend: OpenBackend, entry: str, contest: Contest, batch: int, threads: int
) -> Way:
    """See `contest.Open`; a size of batch or a number of threads is nothing to prepare for."""
    whose, how, given = ENTRIES[entry]
    directory = getattr(contest, whose)
    return Decoded(contest, open_backend(directory), directory, how, **given)


def entries(engine: str, open_backend: OpenBackend) -> dict[str, Any]:
    """Our ways on this engine, by name."""
    return {f"{name} ({engine})": partial(opened, open_backend, name) for name in ENTRIES}
