"""Verified block diffusion: check a draft causally and draft on in parallel, in one forward.

Contract: greedy output equals AR greedy output by construction, sampled output follows AR's
distribution exactly (speculative rejection sampling), both under the same grammar: a token is
committed only as the AR head's own choice given the committed prefix. The span of every forward is
what is known and new, the draft so far (causal: the AR head checks it) and masks up to the canvas's
end (they see all before them: they draft what comes next; what the grammar has settled stands among
them in clear). The longest agreeing prefix commits, plus one AR token; what the forward predicted
behind it, wrong context or not, is the next draft, chosen under the grammar. Not here: batching.
"""

import numpy as np

from diffgr2.decode.choice import Choice, among
from diffgr2.decode.grammar import Guide, row_of_places
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.decode.writer import Writer
from diffgr2.errors import DecodeError
from diffgr2.model.backend import NOTHING_BANNED, Span, View
from diffgr2.model.sampling import inverse_transform, log_normalised


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
        self._fed = -1  # the first position that no forward has seen; −1: the prompt's last token
        self._draft_T = np.empty(0, dtype=np.int64)  # proposed for the positions from `length` on
        self._known: dict[int, tuple[int, Choice]] = {}
        self._odds: list[tuple[np.ndarray, np.ndarray]] = []  # when sampling: what from, how likely
        self.advance()

    def plan(self) -> Span:
        prompt, length, drafted = len(self.prompt), self.length, len(self._draft_T)
        canvas = min(self.settings.canvas, self.limit - length)
        ids = [self.token(at) for at in range(self._fed, length)]
        self._first = length
        logits_from = len(ids) - 1
        ids += self._draft_T.tolist()
        start = prompt + self._fed
        hi = [start + i + 1 for i in range(len(ids))]
        ahead_T = self.tokens_T[length + drafted : length + canvas]
        ids += np.where(ahead_T == UNKNOWN, self.settings.mask_id, ahead_T).tolist()
        return Span(ids, start, hi + [prompt + length + canvas] * len(ahead_T), logits_from)

    def update(self, view: View) -> None:
        """View row i is the AR head's word on position i ahead, as long as the draft has held."""
        drafted = len(self._draft_T)
        self._foresee(view, drafted)
        while not self.done and (at := self.length - self._first) <= drafted:
            self._check(view, at)
            written_T = self.tokens_T[self._first + at : self.length]
            if not np.array_equal(written_T, self._draft_T[at : at + len(written_T)]):
                break
        self.nfe += 1
        self._fed = self._first
        if not self.done:
            self._propose(view, drafted)

    def question(self) -> tuple[np.ndarray, np.ndarray] | None:
        asked = self._ahead(len(self._draft_T)) if self.foreseeable else None
        return asked if asked is not None and len(asked[1]) > 1 else None

    def _ahead(self, drafted: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows of the view, positions) of the open places that the draft is held against."""
        end = min(self._first + drafted + 1, self.limit)
        row_N = np.flatnonzero(self.tokens_T[self._first : end] == UNKNOWN)
        return row_N, self._first + row_N

    def _foresee(self, view: View, drafted: int) -> None:
        """What the AR head chooses at all drafted positions, each as long as its options last."""
        guide, self._known = self.guide, {}
        if guide is None or self.settings.temperature > 0.0:
            return
        row_N, at_N = self._ahead(drafted)
        if len(at_N) > 1 and guide.sets(at_N) is not None:
            found = self.told or self.wanted(view, row_N, at_N, None)
            self.told = None
            columns = (found.token_N, found.logp_N, found.sure_N, found.level_N)
            choices = map(Choice, *(column.tolist() for column in columns))
            for at, choice in zip(at_N.tolist(), choices, strict=True):
                self._known[at] = (guide.left(at), choice)

    def _foreseen(self, at: int) -> Choice | None:
        """What was foreseen for a position, None once it has fewer options than then."""
        if self.guide is None or at not in self._known:
            return None
        left, choice = self._known[at]
        return choice if left == self.guide.left(at) else None

    def _check(self, view: View, i: int) -> None:
        """Commit the AR head's choice at the first open position, from row i."""
        at, heat = self._first + i, self.settings.temperature
        if heat == 0.0 or i >= len(self._draft_T):
            found = self._foreseen(at) or self.wants(view, i, at)
            token, logp, level = found.token, found.logp, found.level
        else:
            tokens_A, hot_A, level = self._distribution(view, i, at, self.guide)
            token, logp = self._settled(i, tokens_A, hot_A)
        self.commit(at, token, self.nfe, logp, level)
        self.advance()

    def _distribution(
        self, view: View, row: int, at: int, guide: Guide | None
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """(tokens, log-probabilities at the temperature, expected level) of one position."""
        heat, rows = self.settings.temperature, np.array([row])
        allowed = guide.allowed(at) if guide is not None else None
        if allowed is None:
            logp_V = view.rows(rows)[0].copy()
            logp_V[guide.without(at) if guide is not None else NOTHING_BANNED] = -np.inf
            return np.arange(len(logp_V)), log_normalised(logp_V[None] / heat)[0], np.nan
        tokens_1A = row_of_places([allowed])
        raw_1A, scale = view.among(rows, tokens_1A), guide is not None and guide.scale(at)
        found = among(raw_1A, tokens_1A, np.array([scale]))
        assert found.probability_NA is not None
        with np.errstate(divide="ignore"):
            logp_1A = np.log(found.probability_NA)
        return tokens_1A[0], log_normalised(logp_1A / heat)[0], float(found.level_N[0])

    def _settled(self, i: int, tokens_A: np.ndarray, hot_A: np.ndarray) -> tuple[int, float]:
        """Speculative sampling of the draft's token i: (token, its log-probability)."""
        drafted, (own_A, odds_A) = int(self._draft_T[i]), self._odds[i]
        every = np.union1d(tokens_A, own_A)
        p_V, q_V = np.zeros(len(every)), np.zeros(len(every))
        p_V[np.searchsorted(every, tokens_A)] = np.exp(hot_A)
        q_V[np.searchsorted(every, own_A)] = odds_A
        at, _ = speculative(p_V, q_V, int(np.searchsorted(every, drafted)), self.rng.random(2))
        return int(every[at]), float(np.log(p_V[at]))

    def _propose(self, view: View, drafted: int) -> None:
        """Draft the positions ahead, each under what the draft says before it."""
        end = min(self._first + self.settings.canvas, self.limit)
        at_N = np.arange(self.length, end)
        # The AR head predicts up to one behind the draft. A mask predicts its own position, so the
        # first one's word is superfluous; with shifted logits it predicts the next, and the last
        # one's position is not on the canvas.
        row_N = at_N - self._first
        if self.settings.alignment != "shifted":
            row_N = row_N + (row_N > drafted)
        there_N = row_N < len(view)
        at_N, row_N = at_N[there_N], row_N[there_N]
        tokens_T = self.tokens_T.copy()
        guide = self.guide.copy(tokens_T) if self.guide is not None else None
        try:
            draw = self._greedy if self.settings.temperature == 0.0 else self._sampled
            draw(view, row_N, at_N, tokens_T, guide)
        except DecodeError:  # ahead nothing that may stand has a probability: no word on it yet
            self._draft_T, self._odds = np.empty(0, dtype=np.int64), []
            return
        end = at_N[-1] + 1 if len(at_N) else self.length
        if guide is not None and guide.end is not None:
            end = min(end, guide.end)
        self._draft_T = tokens_T[self.length : end].copy()

    def _greedy(
        self,
        view: View,
        row_N: np.ndarray,
        at_N: np.ndarray,
        tokens_T: np.ndarray,
        guide: Guide | None,
    ) -> None:
        """What each position wants first, or once that is excluded, what it wants of the rest."""
        open_N = tokens_T[at_N] == UNKNOWN
        row_N, at_N = row_N[open_N], at_N[open_N]
        if not len(at_N):
            return
        first_N = self.wanted(view, row_N, at_N, None).token_N
        for row, at, token in zip(row_N.tolist(), at_N.tolist(), first_N.tolist(), strict=True):
            if guide is None:
                tokens_T[at] = token
                continue
            if tokens_T[at] != UNKNOWN or (guide.end is not None and at >= guide.end):
                continue
            if not guide.may(at, token):
                again = self.wanted(view, np.array([row]), np.array([at]), None, guide)
                token = int(again.token_N[0])
            guide.commit(at, token)

    def _sampled(
        self,
        view: View,
        row_N: np.ndarray,
        at_N: np.ndarray,
        tokens_T: np.ndarray,
        guide: Guide | None,
    ) -> None:
        """Draw one after the other, and remember what from."""
        self._odds = []
        for row, at in zip(row_N.tolist(), at_N.tolist(), strict=True):
            if guide is not None and guide.end is not None and at >= guide.end:
                return
            if tokens_T[at] != UNKNOWN:
                self._odds.append((tokens_T[at : at + 1].copy(), np.ones(1)))
                continue
            tokens_A, hot_A, _ = self._distribution(view, row, at, guide)
            pick = int(inverse_transform(hot_A[None], self.rng.random(1))[0])
            self._odds.append((tokens_A, np.exp(hot_A)))
            if guide is None:
                tokens_T[at] = tokens_A[pick]
            else:
                guide.commit(at, int(tokens_A[pick]))
