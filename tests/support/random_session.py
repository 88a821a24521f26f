"""A backend without a model, in numpy: distributions are looked up by what a token sees.

Contract: `model.backend.Backend`. What a row of logits is depends on the token's position and on
all ids that it sees, and on nothing else, so every decoder that shows the same gets the same. It
serves as `decode.reference.SlowModel` too. Not here: keys and values that remember what they saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffgr2.model.backend import Session, Span, View
from diffgr2.model.sampling import log_normalised
from diffgr2.model.view import NumpyView

KINDS = ("normal", "peaked", "ties", "impossible", "huge")
ROWS = 1009


def arbitrary_logits(rng: np.random.Generator, kind: str, rows: int, vocabulary: int) -> np.ndarray:
    """Logits [rows, vocabulary] of a kind."""
    logits_TV = rng.normal(size=(rows, vocabulary)).astype(np.float32)
    if kind == "peaked":
        return logits_TV * 9
    if kind == "ties":
        return np.round(logits_TV)
    if kind == "impossible":
        logits_TV[rng.random(logits_TV.shape) < 0.7] = -np.inf
        logits_TV[np.arange(rows), rng.integers(1, vocabulary, rows)] = 0.0
        return logits_TV
    return logits_TV * np.float32(1e37) if kind == "huge" else logits_TV


class RandomModel:
    """Tables of log-probabilities, and the session over them."""

    name, lanes, max_positions = "random", 1, 512

    def __init__(self, seed: int, kind: str, vocabulary: int, mask_id: int) -> None:
        rng = np.random.default_rng((seed, KINDS.index(kind)))
        logits_RV = arbitrary_logits(rng, kind, ROWS, vocabulary)
        logits_RV[:, mask_id] = -np.inf
        self.logp_RV = log_normalised(logits_RV).astype(np.float32)
        self.mask_id = mask_id

    def row(self, seen: list[int], at: int) -> int:
        return hash((at, *seen)) % ROWS

    def logp(self, ids: list[int], sees: list[int]) -> np.ndarray:
        """As the slow reference asks."""
        rows = [self.row(ids[:seen], at) for at, seen in enumerate(sees)]
        return self.logp_RV[rows]

    def session(self, mask_id: int) -> Session:
        assert mask_id == self.mask_id
        return RandomSession(self)


class RandomSession:
    def __init__(self, model: RandomModel) -> None:
        self.model = model
        self.texts: list[list[int]] = []
        self.slots: list[int] = []

    def add(self, prompts: Sequence[Span], slots: int) -> None:
        self.texts += [list(span.ids) for span in prompts]
        self.slots += [slots] * len(prompts)

    def forward(self, spans: Sequence[Span]) -> list[View]:
        return [self._one(b, span) for b, span in enumerate(spans)]

    def _one(self, b: int, span: Span) -> View:
        text, stop = self.texts[b], span.start + len(span.ids)
        assert 0 <= span.start <= len(text), "a gap in the cache"
        assert stop <= self.slots[b]
        assert len(span.hi) == len(span.ids) > span.logits_from >= 0
        assert max(span.hi) <= stop
        text[span.start :] = span.ids
        logged = range(span.logits_from, len(span.ids))
        rows = [self.model.row(text[: span.hi[t]], span.start + t) for t in logged]
        return NumpyView(self.model.logp_RV[rows])

    def keep(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[b] for b in rows]
        self.slots = [self.slots[b] for b in rows]
