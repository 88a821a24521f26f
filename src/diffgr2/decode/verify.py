"""Verified block diffusion: check a draft causally and draft on in parallel, in one forward.

Contract: greedy output equals AR greedy output by construction, sampled output follows AR's
distribution exactly (speculative rejection sampling): a token is committed only as the AR head's
own choice given the committed prefix. The window of every forward is the newest committed token,
the draft so far (causal: the AR head checks it) and masks up to the canvas's end (they see all
before them: they draft what comes next). The longest agreeing prefix commits, plus one AR token;
what the forward predicted behind it, wrong context or not, is the next draft. Not here: batching.
"""

import numpy as np
import torch

from diffgr2.decode.draw import draw, tempered
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import Span, View, Writer


def speculative(
    p_V: np.ndarray, q_V: np.ndarray, draft: int, uniforms: np.ndarray
) -> tuple[int, bool]:
    """One step of speculative rejection sampling: (token distributed as p, draft was kept).

    `draft` must have been drawn from q. Kept with probability min(1, p/q), else replaced by a draw
    from the normalised positive part of p − q.

    >>> p = np.array([.5, .5]); q = np.array([1., 0.])
    >>> speculative(p, q, 0, np.array([.4, .0])), speculative(p, q, 0, np.array([.6, .0]))
    ((0, True), (1, False))
    """
    if uniforms[0] * q_V[draft] < p_V[draft]:
        return draft, True
    rest_V = np.maximum(p_V - q_V, 0.0)
    total = rest_V.sum()
    if total <= 0.0:  # p equals q up to rounding
        return draft, True
    token = int(np.searchsorted(np.cumsum(rest_V), uniforms[1] * total, side="right"))
    return min(token, int(np.flatnonzero(rest_V)[-1])), False


class VerifyWriter(Writer):
    def __init__(self, key: int, request: DecodeRequest, settings: DecodeSettings) -> None:
        super().__init__(key, request, settings, spare=settings.canvas)
        self._draft: list[int] = []  # tokens proposed for the positions after the committed ones
        self._draft_logq_TV: torch.Tensor | None = None  # their distributions, when sampling

    def plan(self) -> Span:
        start = len(self.prompt) + self.length - 1  # of the newest token, which has no keys yet
        canvas = min(self.settings.canvas, self.settings.max_tokens - self.length)
        masks = canvas - len(self._draft)
        ids = [self.token(self.length - 1), *self._draft, *[self.settings.mask_id] * masks]
        hi = [start + i + 1 for i in range(len(ids) - masks)]
        return Span(ids, start, hi + [start + 1 + canvas] * masks, 0)

    def update(self, view: View) -> None:
        """View row i is the AR head's word on position i ahead, as long as the draft has held."""
        drafted, first = len(self._draft), self.length
        for i in range(drafted + 1):
            token, logp, kept = self._choose(view, i)
            self.commit_next(token, logp)
            if self.done or not kept:
                break
        self.nfe += 1
        if not self.done:
            self._propose(view, self._ahead(drafted, len(view.top_T))[self.length - first :])

    def _ahead(self, drafted: int, rows: int) -> list[int]:
        """Which view rows predict the positions ahead.

        The AR head predicts up to one behind the draft. A mask predicts its own position, so the
        first one's word is superfluous; with shifted logits it predicts the next, and the last
        one's position is not on the canvas.
        """
        ar = list(range(drafted + 1))
        if self.settings.alignment == "shifted":
            return [*ar, *range(drafted + 1, rows - 1)]
        return [*ar, *range(drafted + 2, rows)]

    def _propose(self, view: View, rows: list[int]) -> None:
        """Draft the positions ahead from these rows."""
        rows = rows[: self.settings.max_tokens - self.length]
        if self.settings.temperature == 0.0:
            self._draft = view.top_T[rows].tolist()
            return
        logq_TV = tempered(view.logp_TV[rows], self.settings.temperature)
        self._draft = draw(logq_TV, self.rng.random(len(logq_TV))).tolist()
        self._draft_logq_TV = logq_TV

    def _choose(self, view: View, i: int) -> tuple[int, float, bool]:
        """(token, its log-probability, whether it confirms draft token i) at check row i."""
        drafted = self._draft[i] if i < len(self._draft) else None
        if self.settings.temperature == 0.0:
            token = int(view.top_T[i])
            return token, float(view.top_logp_T[i]), token == drafted
        if drafted is None:
            token_T, logp_T, _ = view.choose(slice(i, i + 1), self.settings.temperature, self.rng)
            return int(token_T[0]), float(logp_T[0]), False
        assert self._draft_logq_TV is not None
        logp_V = tempered(view.logp_TV[i : i + 1], self.settings.temperature)[0]
        p_V, q_V = (x.double().exp().cpu().numpy() for x in (logp_V, self._draft_logq_TV[i]))
        token, kept = speculative(p_V, q_V, drafted, self.rng.random(2))
        return token, float(logp_V[token]), kept
