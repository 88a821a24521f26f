"""Block-diffusion decoding: denoise a canvas, commit by confidence, move on (paper §3.3).

Contract: per block, every forward commits at least one position and as many as the accept rule
allows, until the block is full; its clean tokens then enter the cache, causally or block-causally.
With `fused` that commit shares the forward of the next block's first denoising step, which changes
no token. Under a grammar the canvas ends with the response, what is settled stands in it in clear,
and of positions that exclude each other in one step the surest commits while the others look
again; a block without an open position needs no step. Without one, decoding ends at an end token
whose predecessors in the block are all committed. The last block is never committed to the cache.
Not here: batching, and the accept rules (`accept`).
"""

from dataclasses import replace

import numpy as np

from diffgr2.decode import accept
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.decode.writer import Writer
from diffgr2.model.backend import Span, View
from diffgr2.model.layout import block_bounds, response_shift
from diffgr2.model.sampling import entropy
from diffgr2.types import NEVER, Trajectory


class BlockWriter(Writer):
    def __init__(self, key: int, request: DecodeRequest, settings: DecodeSettings) -> None:
        super().__init__(key, request, settings, spare=settings.block_size)
        self.prefill = len(self.prompt)
        self._shift = response_shift(self.prefill, settings.block_size, settings.origin)
        self._fed = 0  # positions whose clean keys and values are in the cache
        self._saving = False  # unfused: the next forward only commits
        self.start = 0
        self._move()

    def _bounds(self, at: int) -> tuple[int, int]:
        """First and one-past-last response position of the block that holds `at`."""
        prompt = len(self.prompt)
        start, end = block_bounds(prompt + at, self.settings.block_size, self._shift)
        return max(start - prompt, 0), end - prompt

    @property
    def end(self) -> int:
        """Where the canvas ends: with its block, or with the response."""
        end = self._bounds(self.start)[1]
        return end if self.guide is None else min(end, self.limit)

    def _sees(self, at: int) -> int:
        """How far a clean token sees, in document positions."""
        prompt = len(self.prompt)
        if self.settings.clean_kv == "causal":
            return prompt + at + 1
        return prompt + self._bounds(at)[1]

    def prefill_hi(self) -> list[int]:
        prompt, size = len(self.prompt), self.settings.block_size
        if self.settings.clean_kv == "causal":
            return list(range(1, prompt + 1))
        return [min(block_bounds(p, size, self._shift)[1], prompt) for p in range(prompt)]

    def plan(self) -> Span:
        prompt, start = len(self.prompt), self.start
        first = self._fed
        if first == start and self.settings.alignment == "shifted":
            first = start - 1  # its hidden state predicts the block's first
        clean = range(first, start)
        ids = [self.token(at) for at in clean]
        hi = [self._sees(at) if at >= 0 else prompt for at in clean]
        self._canvas_row = len(ids) - (self.settings.alignment == "shifted")
        if not self._saving:
            canvas_T = self.tokens_T[start : self.end]
            ids += np.where(canvas_T == UNKNOWN, self.settings.mask_id, canvas_T).tolist()
            hi += [prompt + self.end] * len(canvas_T)
        logits_from = len(ids) - 1 if self._saving else max(self._canvas_row, 0)
        self._canvas_row -= logits_from
        return Span(ids, prompt + first, hi, logits_from)

    def question(self) -> tuple[np.ndarray, np.ndarray] | None:
        return self._open() if self.foreseeable and not self._saving else None

    def _open(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the view, positions) of the canvas's open places."""
        end = self.end if self.guide is None else min(self.end, self.guide.stop)
        at_N = self.start + np.flatnonzero(self.tokens_T[self.start : end] == UNKNOWN)
        return self._canvas_row + at_N - self.start, at_N

    def update(self, view: View) -> None:
        step, self.nfe = self.nfe, self.nfe + 1
        self._fed = self.start
        if self._saving:
            self._saving = False
            return
        row_N, at_N = self._open()
        found = self.told or self.wanted(view, row_N, at_N, self.uniforms(len(at_N)))
        self.told = None
        commit_N = self._accept(found.sure_N, view, row_N)
        if self.guide is not None:
            early_N = self.guide.too_early(at_N, found.token_N)
            commit_N &= ~early_N
            if not commit_N.any():
                commit_N[np.where(early_N, -np.inf, found.sure_N).argmax()] = True
        surest = np.argsort(-np.where(commit_N, found.sure_N, -np.inf), kind="stable")
        for n in surest[: commit_N.sum()].tolist():
            at, token = int(at_N[n]), int(found.token_N[n])
            if self.guide is None or self.guide.may(at, token):
                self.commit(at, token, step, float(found.logp_N[n]), float(found.level_N[n]))
        self._move()

    def _accept(self, sure_N: np.ndarray, view: View, row_N: np.ndarray) -> np.ndarray:
        settings, open_N = self.settings, np.ones(len(sure_N), dtype=bool)
        if settings.accept == "threshold":
            return accept.threshold(sure_N, open_N, settings.threshold)
        if settings.accept == "static":
            return accept.static(sure_N, open_N, settings.per_step)
        return accept.entropy_bounded(
            sure_N, open_N, entropy(view.rows(row_N)), settings.entropy_bound
        )

    def _move(self) -> None:
        """Stop, or move on while the block is full."""
        moved = False
        self.advance()
        while not self.done and self.length >= self.end:
            self.start, moved = self.end, True
            self.advance()
        self._saving = moved and self.nfe > 0 and not self.settings.fused

    def result(self) -> Trajectory:
        """With the terminal block as a whole, for replay."""
        end = max(self.end, self.length)  # blocks without an open position were never entered
        canvas_T, step_T = (a[:end].copy() for a in (self.tokens_T, self.step_T))
        step_T[canvas_T == UNKNOWN] = NEVER
        return replace(super().result(), canvas_T=canvas_T, canvas_step_T=step_T)
