"""A backend without a model, in numpy: distributions are looked up by what a token sees.

Contract: `model.backend.Backend`. What a row of logits is depends on the token's position and on
all ids that it sees, and on nothing else, so every decoder that shows the same gets the same. It
serves as `decode.reference.SlowModel` too. Not here: keys and values that remember what they saw.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffgr2.model.backend import NO_TOKEN, NOTHING_BANNED, Chosen, Session, Span, View
from diffgr2.model.sampling import inverse_transform, log_normalised

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


class RandomView:
    def __init__(self, logp_TV: np.ndarray) -> None:
        self.logp_TV = logp_TV

    def __len__(self) -> int:
        return len(self.logp_TV)

    def among(self, row_N: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
        return np.where(
            tokens_NA == NO_TOKEN, -np.inf, self.logp_TV[np.asarray(row_N)[:, None], tokens_NA]
        )

    def best(self, row_N: np.ndarray, banned: np.ndarray = NOTHING_BANNED) -> Chosen:
        raw_NV, allowed_NV = self._allowed(row_N, banned)
        token_N = allowed_NV.argmax(-1)
        every = np.arange(len(token_N))
        return token_N, log_normalised(allowed_NV)[every, token_N], raw_NV[every, token_N]

    def drawn(
        self,
        row_N: np.ndarray,
        temperature: float,
        uniform_N: np.ndarray,
        banned: np.ndarray = NOTHING_BANNED,
    ) -> Chosen:
        raw_NV, allowed_NV = self._allowed(row_N, banned)
        hot_NV = log_normalised(allowed_NV.astype(np.float64) / temperature)
        token_N = inverse_transform(hot_NV, uniform_N)
        every = np.arange(len(token_N))
        return token_N, hot_NV[every, token_N], raw_NV[every, token_N]

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        return self.logp_TV[row_N]

    def _allowed(self, row_N: np.ndarray, banned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        allowed_NV = self.logp_TV[row_N].copy()
        allowed_NV[:, banned] = -np.inf
        return self.logp_TV[row_N], allowed_NV


class RandomModel:
    """Tables of log-probabilities, and the session over them."""

    max_positions = 512

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

    def _one(self, b: int, span: Span) -> RandomView:
        text, stop = self.texts[b], span.start + len(span.ids)
        assert 0 <= span.start <= len(text), "a gap in the cache"
        assert stop <= self.slots[b]
        assert len(span.hi) == len(span.ids) > span.logits_from >= 0
        assert max(span.hi) <= stop
        text[span.start :] = span.ids
        logged = range(span.logits_from, len(span.ids))
        rows = [self.model.row(text[: span.hi[t]], span.start + t) for t in logged]
        return RandomView(self.model.logp_RV[rows])

    def keep(self, rows: Sequence[int]) -> None:
        self.texts = [self.texts[b] for b in rows]
        self.slots = [self.slots[b] for b in rows]
