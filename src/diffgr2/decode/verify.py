"""Verified block diffusion: draft a canvas in parallel, check it causally, keep what agrees.

Contract: greedy output equals AR greedy output by construction, sampled output follows AR's
distribution exactly (speculative rejection sampling): a token is committed only as the AR head's
own choice given the committed prefix. One denoising forward drafts a canvas and, on its clean part,
commits one AR token; one causal forward checks the draft, commits the longest agreeing prefix plus
one AR token. What the check predicted behind a disagreement is the next draft, so most corrections
cost no new denoising. Not here: batching.
"""

from __future__ import annotations

import numpy as np
import torch

from diffgr2.decode.draw import draw, tempered
from diffgr2.decode.row import Record, View, Window
from diffgr2.decode.settings import DecodeSettings
from diffgr2.grammar import AnswerGrammar
from diffgr2.types import Trajectory


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


class VerifyRow:
    """See the module's docstring; fields as in `row.Row`."""

    def __init__(
        self,
        key: int,
        prompt: list[int],
        settings: DecodeSettings,
        rng: np.random.Generator,
        grammar: AnswerGrammar | None = None,
    ) -> None:
        self.key, self.prompt, self.settings, self.rng = key, prompt, settings, rng
        self.prefill = len(prompt) - 1
        self.slots = len(prompt) + settings.max_tokens + settings.canvas
        self.record = Record(settings.max_tokens)
        self.length = self.nfe = 0  # committed tokens
        self.done = self.finished = False
        self._cached = self.prefill  # document positions with final keys and values
        self._draft: list[int] = []  # tokens proposed for the positions after the committed ones
        self._draft_logq_TV: torch.Tensor | None = None  # their distributions, when sampling

    def prefill_hi(self) -> list[int]:
        return list(range(1, self.prefill + 1))

    def plan(self) -> Window:
        prompt = len(self.prompt)
        known = [self._token(at) for at in range(self._cached - prompt, self.length)]
        hi = [self._cached + i + 1 for i in range(len(known))]
        self._known = len(known)
        if self._draft:
            ids = known + self._draft
            hi = [self._cached + i + 1 for i in range(len(ids))]
        else:
            room = self.settings.max_tokens - self.length
            canvas = min(self.settings.canvas, room)
            ids = known + [self.settings.mask_id] * canvas
            hi += [prompt + self.length + canvas] * canvas
        return Window(ids, self._cached, hi, self._known - 1)

    def _token(self, at: int) -> int:
        return int(self.record.tokens_T[at]) if at >= 0 else self.prompt[at]

    def update(self, view: View) -> None:
        """View row i predicts the i-th position after the committed ones (row 0: the AR head)."""
        if self._draft:
            self._check(view)
        else:
            self._take_draft(view)
        self.nfe += 1

    def _commit(self, token: int, logp: float) -> None:
        self.record.commit(self.length, token, self.nfe, logp)
        self.length += 1
        self.finished = token == self.settings.end_id
        self.done = self.finished or self.length == self.settings.max_tokens

    def _take_draft(self, view: View) -> None:
        token_T, logp_T, _ = view.choose(slice(0, 1), self.settings.temperature, self.rng)
        self._cached = len(self.prompt) + self.length
        self._commit(int(token_T[0]), float(logp_T[0]))
        # Row 0 is the AR head; mask i stands at row 1 + i and predicts its own position, or with
        # shifted logits the one after it. The canvas begins at the position just committed.
        shifted = self.settings.alignment == "shifted"
        rows = slice(1, len(view.top_T) - 1) if shifted else slice(2, len(view.top_T))
        self._propose(view, rows)

    def _propose(self, view: View, rows: slice) -> None:
        room = self.settings.max_tokens - self.length
        rows = slice(rows.start, min(rows.stop, rows.start + room))
        if self.settings.temperature == 0.0:
            self._draft = view.top_T[rows].tolist()
            return
        logq_TV = tempered(view.logp_TV[rows], self.settings.temperature)
        self._draft = draw(logq_TV, self.rng.random(len(logq_TV))).tolist()
        self._draft_logq_TV = logq_TV

    def _check(self, view: View) -> None:
        draft, agreed = self._draft, 0
        first = self.length
        for i in range(len(draft) + 1):
            token, logp, kept = self._choose(view, i)
            self._commit(token, logp)
            if self.done or not kept:
                break
            agreed += 1
        self._cached = len(self.prompt) + first + min(agreed, len(draft))
        self._draft = []
        if not self.done and agreed < len(draft):
            # Rows behind the disagreement saw one wrong token; mostly they are right all the same.
            self._propose(view, slice(agreed + 1, len(draft) + 1))

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

    def fresh(self) -> list[tuple[int, int]]:
        return self.record.take_fresh()

    def result(self) -> Trajectory:
        return self.record.trajectory(self.length, self.nfe, finished=self.finished)
