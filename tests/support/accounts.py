"""Small requests with every field of evidence, a compact template for them, and their texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import PromptConfig
from diffgr2.evaluate.coherence import Shown, contradictions
from diffgr2.prompts.account import account
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import NEITHER
from diffgr2.prompts.request import NONE, Request, Trace
from diffgr2.prompts.said import Reading
from diffgr2.prompts.vocab import Vocabulary, train_bpe

NAMES = names_of(COUNTED[:10])

BUCKETS, STRENGTHS, K_MAX, CITES = 8, 16, 20, 3


@cache
def template() -> Compact:
    """The compact template over all fields, eight buckets and sixteen strengths."""
    vocab = Vocabulary.extend(
        train_bpe(["rose soap"] * 3, 300),
        levels=2,
        codes=32,
        k=K_MAX,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )
    return Compact(vocab, PromptConfig(cites=CITES, strengths=STRENGTHS))


@dataclass(frozen=True)
class Case:
    """What one output is made of."""

    request: Request
    reading: Reading
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    newest: tuple[str, ...]

    def order(self) -> list[int]:
        return self.reading.said_order().tolist()

    def text(self, order: list[int] | None = None, *, markdown: bool = False) -> str:
        order = self.order() if order is None else order
        given = (self.request, self.reading, order, STRENGTHS, self.names, self.kinds, self.newest)
        compact = template()
        return account(compact.words, compact.phrases, *given, markdown=markdown)

    def tokens(self) -> list[int]:
        """The response that says this, as greedy decoding writes it."""
        cites_KC = np.full((self.request.k, CITES), NONE)
        for i, fields in enumerate(self.reading.cites):
            cites_KC[i, : len(fields)] = fields
        trace = Trace(np.round(np.nan_to_num(self.reading.levels_K)), cites_KC)
        return template().response(self.request, trace, answer="said").tokens

    def shown(self, text: str | None = None, **changes: object) -> Shown:
        values = {
            "order": self.order(),
            "text": self.text() if text is None else text,
            "tokens": changes["tokens"] if "tokens" in changes else self.tokens(),
            "reading": self.reading,
            **changes,
        }
        facts = (self.names, self.kinds, self.newest)
        named = dict(zip(("names", "kinds", "newest"), facts, strict=True))
        return Shown(self.request, **{**named, **values})  # type: ignore[arg-type]

    def kinds_found(self, text: str | None = None, **changes: object) -> tuple[str, ...]:
        return contradictions(template(), self.shown(text, **changes))


def request_of(buckets: list[list[int]], history: int = 0) -> Request:
    """A request with this evidence; codes tell its candidates apart."""
    k = len(buckets)
    codes_KL = np.stack([np.arange(k) % 32, np.arange(k) // 32], -1)
    return Request(np.zeros((history, 2), int), codes_KL, np.array(buckets, dtype=np.uint8))


def drawn(rng: np.random.Generator, k: int) -> Case:
    """Anything that a response under the grammar may say; names may be equal, odd or missing."""
    buckets_KF = rng.integers(0, BUCKETS, (k, len(NAMES)))
    buckets_KF[:, 0] = np.minimum(np.arange(k), BUCKETS - 1)
    buckets_KF[0, 1] = 0
    buckets_KF[rng.random(buckets_KF.shape) < 0.1] = 255
    history = int(rng.integers(0, 7))
    request = request_of(buckets_KF.tolist(), history)
    sides_KF = template().phrases.sides(request.buckets_KF)
    cites = tuple(
        tuple(rng.permutation(np.flatnonzero(side_F != NEITHER))[: rng.integers(0, CITES + 1)])
        for side_F in sides_KF
    )
    levels_K = rng.random(k) * (STRENGTHS - 1)
    if rng.random() < 0.5:
        levels_K = np.round(levels_K)
    levels_K[rng.random(k) < 0.05] = np.nan
    goods = ["Soap", "Hair, Skin and Nails", "Care (men's)", "<b>Creams</b>", "Oils * 2", ""]
    names = [
        "rose soap",
        "rose soap: large",
        "rose",
        "a, ahead of b.",
        "*stars* [x]",
        "",
        "lip  oil",
    ]
    return Case(
        request,
        Reading(levels_K, tuple(tuple(map(int, fields)) for fields in cites)),
        tuple(rng.choice(names) + rng.choice(["", " I", " II"]) for _ in range(k)),
        tuple(rng.choice(goods, history).tolist()) if rng.random() < 0.8 else ("",) * history,
        tuple(rng.choice(names, history).tolist()),
    )
