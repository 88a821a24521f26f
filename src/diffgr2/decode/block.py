"""Block-diffusion decoding: denoise a canvas, commit by confidence, move on (paper §3.3).

Contract: per block, every forward commits at least one position and as many as the accept rule
allows, until the block is full; its clean tokens then enter the cache, causally or block-causally.
With `fused` that commit shares the forward of the next block's first denoising step, which changes
no token. Decoding ends at an end token whose predecessors in the block are all committed; the last
block is never committed to the cache. Not here: batching, and the rules themselves (`accept`,
`answer_rule`).
"""

from dataclasses import replace

import numpy as np
import torch

from diffgr2.decode import accept, answer_rule
from diffgr2.decode.answer_rule import UNKNOWN, AnswerState
from diffgr2.decode.draw import among, draw, entropy, tempered
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import Span, View, Writer
from diffgr2.model.layout import block_bounds, response_shift
from diffgr2.types import Trajectory

MARKER_GUESS = 0.5
"""Above this probability a marker that is not committed yet already says where the answer lies."""


class BlockWriter(Writer):
    def __init__(self, key: int, request: DecodeRequest, settings: DecodeSettings) -> None:
        super().__init__(key, request, settings, spare=settings.block_size)
        self.prefill = len(self.prompt)
        self._shift = response_shift(self.prefill, settings.block_size, settings.origin)
        self._clean = (0, 0)  # a full block whose keys and values are not in the cache yet
        self._saving = False  # unfused: the next forward only commits
        self._enter(0)

    def _enter(self, start: int) -> None:
        """Begin the block at response position `start`."""
        prompt = len(self.prompt)
        _, end = block_bounds(prompt + start, self.settings.block_size, self._shift)
        self.start, self.end = start, end - prompt

    def prefill_hi(self) -> list[int]:
        prompt = len(self.prompt)
        if self.settings.clean_kv == "causal":
            return list(range(1, prompt + 1))
        size = self.settings.block_size
        return [min(block_bounds(p, size, self._shift)[1], prompt) for p in range(prompt)]

    def plan(self) -> Span:
        prompt, clean = len(self.prompt), self._clean
        if clean[0] == clean[1] and self.settings.alignment == "shifted":
            clean = (self.start - 1, self.start)  # its hidden state predicts the block's first
        ids = [self.token(at) for at in range(*clean)]
        if self.settings.clean_kv == "causal":
            hi = [prompt + at + 1 for at in range(*clean)]
        else:
            hi = [prompt + clean[1]] * len(ids)
        self._canvas_row = len(ids) - (self.settings.alignment == "shifted")
        if not self._saving:
            canvas_T = self.tokens_T[self.start : self.end]
            ids += np.where(canvas_T == UNKNOWN, self.settings.mask_id, canvas_T).tolist()
            hi += [prompt + self.end] * len(canvas_T)
        logits_from = len(ids) - 1 if self._saving else max(self._canvas_row, 0)
        self._canvas_row -= logits_from
        start = prompt + (clean[0] if clean[0] != clean[1] else self.start)
        return Span(ids, start, hi, logits_from)

    def update(self, view: View) -> None:
        step, self.nfe = self.nfe, self.nfe + 1
        self._clean = (self.start, self.start)
        if self._saving:
            self._saving = False
            return
        width = self.end - self.start
        rows = slice(self._canvas_row, self._canvas_row + width)
        token_T, logp_T, confidence_T = (
            np.array(a) for a in view.choose(rows, self.settings.temperature, self.rng)
        )
        masked_T = self.tokens_T[self.start : self.end] == UNKNOWN
        commit_T = self._accept(confidence_T, masked_T, view.logp_TV[rows])
        state = self._answer(view.logp_TV[rows], masked_T, token_T, commit_T)
        if state is not None:
            self._restrict(state, view.logp_TV[rows], masked_T, token_T, logp_T, confidence_T)
            marker_T = commit_T & self._marker(state.start)
            commit_T = self._accept(confidence_T, masked_T, view.logp_TV[rows])
            commit_T = self._settle(state, commit_T, token_T, confidence_T) | marker_T
            found = self._found(token_T, commit_T)
            if found is not None and found != state.start:  # an earlier marker: it commits alone
                commit_T &= self._marker(found)
        for t in np.flatnonzero(commit_T):
            self.commit(self.start + int(t), int(token_T[t]), step, float(logp_T[t]))
        self._advance()

    def _accept(
        self, confidence_T: np.ndarray, masked_T: np.ndarray, logp_TV: torch.Tensor
    ) -> np.ndarray:
        settings = self.settings
        if settings.accept == "threshold":
            return accept.threshold(confidence_T, masked_T, settings.threshold)
        if settings.accept == "static":
            return accept.static(confidence_T, masked_T, settings.per_step)
        entropy_T = entropy(logp_TV).cpu().numpy()
        return accept.entropy_bounded(confidence_T, masked_T, entropy_T, settings.entropy_bound)

    def _advance(self) -> None:
        """Stop, or move to the next block if this one is full."""
        canvas_T = self.tokens_T[self.start : self.end]
        known = [*canvas_T.tolist(), UNKNOWN].index(UNKNOWN)
        ends = np.flatnonzero(canvas_T[:known] == self.settings.end_id)
        limit = self.settings.max_tokens
        if len(ends) and self.start + int(ends[0]) < limit:
            self.length, self.finished = self.start + int(ends[0]) + 1, True
        elif self.start + known >= limit:
            self.length = limit
        elif known == len(canvas_T):
            self._clean = (self.start, self.end)
            self._saving = not self.settings.fused
            self._enter(self.end)
            return
        else:
            return
        self.done = True

    def _answer(
        self, logp_TV: torch.Tensor, masked_T: np.ndarray, token_T: np.ndarray, commit_T: np.ndarray
    ) -> AnswerState | None:
        """The answer as far as it is committed, if the rule applies and its place is known.

        A marker that is about to commit counts already: entries could commit in the same step.
        """
        if self.settings.rule == "raw" or self.grammar is None:
            return None
        start = self._found(token_T, commit_T)
        if start is None and len(self.grammar.marker) == 1:
            marker_T = logp_TV[:, self.grammar.marker[0]].exp().cpu().numpy() * masked_T
            best = int(marker_T.argmax())
            if marker_T[best] > MARKER_GUESS:
                start = self.start + best + 1
        if start is None:
            return None
        return answer_rule.answer_state(self.grammar, start, self.tokens_T[: self.end])

    def _found(self, token_T: np.ndarray, commit_T: np.ndarray) -> int | None:
        """Where the answer begins once these commits are made."""
        assert self.grammar is not None
        tokens_T = self.tokens_T[: self.end]
        if not set(self.grammar.marker).isdisjoint(token_T[commit_T].tolist()):
            tokens_T = tokens_T.copy()
            tokens_T[self.start :][commit_T] = token_T[commit_T]
        return self.grammar.find(tokens_T)

    def _marker(self, start: int) -> np.ndarray:
        """Which canvas positions hold the marker of an answer that begins at `start`."""
        assert self.grammar is not None
        at_T = np.arange(self.start, self.end)
        return (at_T < start) & (at_T >= start - len(self.grammar.marker))

    def _slots(self, state: AnswerState) -> list[tuple[int, int, int]]:
        """(canvas position, entry, position in entry) of the answer's tokens in this canvas."""
        local_KN = state.grammar.slots(state.start) - self.start
        inside_KN = (local_KN >= 0) & (local_KN < self.end - self.start)
        return [(int(local_KN[j, n]), int(j), int(n)) for j, n in np.argwhere(inside_KN)]

    def _restrict(
        self,
        state: AnswerState,
        logp_TV: torch.Tensor,
        masked_T: np.ndarray,
        token_T: np.ndarray,
        logp_T: np.ndarray,
        confidence_T: np.ndarray,
    ) -> None:
        """Let masked answer positions choose among the remaining candidates only (in place)."""
        may_KC = answer_rule.allowed_choices(state)
        alike: dict[tuple[bytes, int], list[tuple[int, int]]] = {}
        for t, j, n in self._slots(state):
            if masked_T[t]:
                alike.setdefault((may_KC[j].tobytes(), n), []).append((t, j))
        for (_, n), slots in alike.items():  # one draw for all that may become the same
            allowed = answer_rule.allowed_tokens(state, may_KC, slots[0][1], n)
            if not len(allowed):  # a stranger got there before the rule: no candidate fits
                continue
            at_S = [t for t, _ in slots]
            raw_SA = logp_TV[at_S][:, torch.from_numpy(allowed).to(logp_TV.device)]
            hot_SA = tempered(among(raw_SA), self.settings.temperature)
            sampled = self.settings.temperature > 0.0
            pick_S1 = draw(hot_SA, self.rng.random(len(at_S)) if sampled else None)[:, None]
            token_T[at_S] = allowed[pick_S1[:, 0].cpu().numpy()]
            logp_T[at_S] = hot_SA.gather(1, pick_S1)[:, 0].cpu().numpy()
            confidence_T[at_S] = raw_SA.gather(1, pick_S1)[:, 0].exp().cpu().numpy()

    def _settle(
        self,
        state: AnswerState,
        commit_T: np.ndarray,
        token_T: np.ndarray,
        confidence_T: np.ndarray,
    ) -> np.ndarray:
        """Drop the commits that would leave no permutation; always keep at least one."""
        slots = [slot for slot in self._slots(state) if commit_T[slot[0]]]
        wanted = [(float(confidence_T[t]), j, n, int(token_T[t])) for t, j, n in slots]
        kept = set(answer_rule.settle(state, wanted))
        out_T = commit_T.copy()
        for t, j, n in slots:
            out_T[t] = (j, n) in kept
        if not out_T.any():  # two candidates spelled alike: the raw token, reported as invalid
            out_T[max(slots, key=lambda slot: confidence_T[slot[0]])[0]] = True
        return out_T

    def result(self) -> Trajectory:
        """With the terminal block as a whole, for replay."""
        canvas_T, step_T = (a[: self.end].copy() for a in (self.tokens_T, self.step_T))
        return replace(super().result(), canvas_T=canvas_T, canvas_step_T=step_T)
