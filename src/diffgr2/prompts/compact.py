"""The compact template: semantic IDs, evidence buckets, index tokens; for small models.

Prompt    <history> sid* <candidates> (<c_i> sid evidence*)* <reason>      (or <direct>)
          of every field that is known; `sparse`: unless it counts none, and what is missing is said
Response  (<c_i> e e e <v>)*               per candidate the evidence that counts, and a strength
          <answer> <c>* <|im_end|>         where the permutation is written out, too

Contract: the model writes only what it decides. Of each candidate up to `cites` pieces of its own
evidence, each field once, only with a grade that a person calls good or bad (`english`), `<none>`
behind the last one; then how strong it is. The ranking follows from the strengths, so the first
line of the response is all that a said answer needs; history, verdict and order are rendered
(`account`). A direct response leaves the evidence out, or is the permutation alone. `grammar` says
all of this to the decoders; `response`, `read` and `parse` agree with it. All lengths are fixed by
the request. Not here: decoding, and where traces come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffgr2.candidates.fields import Field, counted_named
from diffgr2.config import Answering, PromptConfig
from diffgr2.decode.grammar import NO_PLACES, NOTHING, Grammar, Group, Places
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.english import NEITHER, Phrases, wording
from diffgr2.prompts.request import MISSING, NONE, Request, TextOf, Trace
from diffgr2.prompts.said import Reading
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.types import Answer

REASONING, ANSWER = 0, 1
"""Kinds of response tokens (decoupled loss weights); strengths are answers."""


@dataclass(frozen=True)
class Written:
    """A response to learn from: its tokens, their kinds, and targets between two tokens.

    Token t's target is `tokens[t]`, to the share `share[t]` `other[t]` instead: a strength lies
    between two levels.
    """

    tokens: list[int]
    kinds: list[int]
    other: list[int]
    share: list[float]


class Compact:
    item_text: TextOf | None = None
    answers: tuple[Answering, ...] = ("said", "written")

    def __init__(
        self, vocab: Vocabulary, config: PromptConfig, fields: Sequence[Field] | None = None
    ) -> None:
        """`fields` are the evidence's; None: counted ones, of the vocabulary's names."""
        self.vocab, self.config = vocab, config
        self._ids = vocab.control
        spec = vocab.spec
        self.words = wording("compact")
        self.fields = counted_named(spec.fields) if fields is None else tuple(fields)
        self.phrases = Phrases(self.words, self.fields, spec.buckets)
        # Fields of which bucket 0 means that there is no such evidence.
        self._none_F = np.array([field.counted and field.zero_is_none for field in self.fields])
        self._levels = vocab.strength_ids.tolist()
        self._indices = vocab.index_ids

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]:
        """Token ids of the prompt."""
        vocab, ids = self.vocab, self._ids
        sids_KL, evidence_KF = vocab.sid_ids(request.codes_KL), request.buckets_KF
        told_KF = evidence_KF != MISSING
        evidence_KF = np.where(told_KF, vocab.evidence_ids(evidence_KF), vocab.missing_ids)
        if self.config.sparse:
            told_KF = ~(self._none_F & (request.buckets_KF == 0))
        history = vocab.sid_ids(request.history_HL).ravel().tolist()
        out = [ids["<history>"], *history, ids["<candidates>"]]
        for i in range(request.k):
            shown = evidence_KF[i][told_KF[i]].tolist()
            out += [vocab.index_id(i), *sids_KL[i].tolist(), *shown]
        return [*out, ids["<reason>" if reasoning else "<direct>"]]

    def response(
        self,
        request: Request,
        trace: Trace,
        *,
        reasoning: bool = True,
        answer: Answering = "written",
    ) -> Written:
        """The response that says this trace; see `Written`."""
        out = Written([], [], [], [])
        if reasoning or answer == "said":
            self._judge(out, request, trace, reasoning=reasoning)
        final = [self.vocab.end_id]
        if answer == "written":
            order = [self.vocab.index_id(int(i)) for i in trace.order_K]
            final = [self._ids["<answer>"], *order, *final]
        _put(out, final, ANSWER)
        return out

    def _judge(self, out: Written, request: Request, trace: Trace, *, reasoning: bool) -> None:
        """Evidence and strength of every candidate."""
        vocab, most = self.vocab, len(self._levels) - 1
        evidence_KF, citable_KF = vocab.evidence_ids(request.buckets_KF), self.citable(request)
        for i in range(request.k):
            _put(out, [vocab.index_id(i)], REASONING)
            if reasoning:
                fields = [f for f in trace.cites_KC[i].tolist() if f != NONE and citable_KF[i, f]]
                cited = evidence_KF[i, fields[: self.config.cites]].tolist()
                cited += [self._ids["<none>"]] * (self.config.cites - len(cited))
                _put(out, cited, REASONING)
            level = float(np.clip(trace.level_K[i], 0, most))
            low = int(level)
            _put(out, [self._levels[low]], ANSWER)
            out.other[-1], out.share[-1] = self._levels[min(low + 1, most)], level - low

    def max_response(self, k: int) -> int:
        """Length of a full response to k candidates."""
        return k * (2 + self.config.cites) + k + 2

    def citable(self, request: Request) -> np.ndarray:
        """Which fields [K, F] may be cited of each candidate; without a history, the list's own."""
        citable_KF = self.phrases.sides(request.buckets_KF) != NEITHER
        return citable_KF if len(request.history_HL) else citable_KF & self.phrases.alone_F

    def untold(self, request: Request) -> np.ndarray:
        """Which fields [K, F] the prompt says nothing of, so that no trace can cite them."""
        return request.buckets_KF == MISSING

    def cited(self, token: int, request: Request, at: int) -> tuple[int, int] | None:
        """(field, bucket) of a token that cites evidence of candidate `at`, else None."""
        return self.vocab.evidence_of(token)

    def grammar(
        self, request: Request, *, reasoning: bool = True, answer: Answering = "said"
    ) -> Grammar:
        """What may stand where in a response to this request."""
        judged = reasoning or answer == "said"
        cites, k = self.config.cites if reasoning else 0, request.k
        each = 2 + cites if judged else 0  # places of a candidate
        length = k * each + (k + 2 if answer == "written" else 0)
        own_KA, counts = self._own(request) if cites else (np.empty((k, 1), np.int64), [])
        widths = [own_KA.shape[1], len(self._levels) if judged else 1, *([k] * (length > k * each))]
        allowed_TA = np.full((length, max(widths)), NOTHING, dtype=np.int64)
        scale_T, groups = np.zeros(length, dtype=bool), []
        if judged:
            of_KEA = allowed_TA[: k * each].reshape(k, each, -1)
            of_KEA[:, 0, 0] = self._indices[:k]
            of_KEA[:, 1:-1, : own_KA.shape[1]] = own_KA[:, None]
            of_KEA[:, -1, : len(self._levels)] = self._levels
            scale_T[each - 1 : k * each : each] = True
            groups = [
                Group(at_C1, own_A[:n, None], self._ids["<none>"])
                for at_C1, own_A, n in zip(self._cited_at(k), own_KA, counts, strict=False)
            ]
        if answer == "written":
            start, choices = k * each + 1, self._indices[:k]
            allowed_TA[start - 1, 0], allowed_TA[-1, 0] = self._ids["<answer>"], self.vocab.end_id
            allowed_TA[start:-1, :k] = choices
            groups.append(Group(np.arange(start, start + k)[:, None], choices[:, None]))
        return Grammar(Places(allowed_TA, tuple(groups), scale_T), None, NO_PLACES)

    def _own(self, request: Request) -> tuple[np.ndarray, list[int]]:
        """The evidence that each candidate may be told by, `<none>` behind it; how much it is."""
        citable_KF = self.citable(request)
        number_KF = citable_KF.cumsum(1)
        counts = number_KF[:, -1].tolist()
        own_KA = np.full((request.k, max(counts) + 1), NOTHING, dtype=np.int64)
        at_N, field_N = np.nonzero(citable_KF)
        evidence_KF = self.vocab.evidence_ids(request.buckets_KF)
        own_KA[at_N, number_KF[at_N, field_N] - 1] = evidence_KF[at_N, field_N]
        own_KA[np.arange(request.k), counts] = self._ids["<none>"]
        return own_KA, counts

    def _cited_at(self, k: int) -> np.ndarray:
        """Where the cited evidence of each of k candidates stands, (K, C, 1)."""
        cites = self.config.cites
        return np.arange(k)[:, None, None] * (2 + cites) + 1 + np.arange(cites)[:, None]

    def thought(self, tokens: list[int]) -> list[int]:
        """All before the answer's marker; without one, all before the end."""
        body = tokens[:-1] if tokens[-1:] == [self.vocab.end_id] else tokens
        return body[: self.answer_start(body)]

    def answer_start(self, tokens: list[int]) -> int:
        """Index of the answer's marker, or the length where there is none."""
        marker = self._ids["<answer>"]
        return tokens.index(marker) if marker in tokens else len(tokens)

    def kinds(self, tokens: list[int]) -> np.ndarray:
        """REASONING or ANSWER of each token of a response."""
        start = self.answer_start(tokens)
        end, strength = self.vocab.end_id, self.vocab.strength_of
        said = [strength(token) is not None or token == end for token in tokens]
        answers_T = (np.arange(len(tokens)) >= start) | np.array(said, dtype=bool)
        return np.where(answers_T, ANSWER, REASONING)

    def parse(self, tokens: list[int], request: Request) -> Answer:
        """The written permutation; failures are classified, never raised."""
        if tokens[-1:] != [self.vocab.end_id]:
            return Answer((), ("overlong",))
        found = [self.vocab.index_of(t) for t in tokens[self.answer_start(tokens) + 1 : -1]]
        order = [p if p < request.k else OUT_OF_SET for p in found if p is not None]
        if not order or len(order) < len(found):
            return Answer((), ("unparseable",))
        return make_answer(order, request.k)

    def read(
        self, tokens: list[int], request: Request, level_T: np.ndarray | None = None
    ) -> Reading:
        """What a response says, whatever it is; `level_T` are a trajectory's expected levels.

        The first strength after a candidate's index is its own; evidence between the two is cited.
        """
        levels_K = np.full(request.k, np.nan)
        cites: list[list[int]] = [[] for _ in range(request.k)]
        at = request.k  # none of them yet
        thought = self.thought(tokens)
        for t, token in enumerate(thought):
            position = self.vocab.index_of(token)
            level = self.vocab.strength_of(token)
            if position is not None:
                at = position
            elif at < request.k and np.isnan(levels_K[at]):
                if (cited := self.cited(token, request, at)) is not None:
                    cites[at].append(cited[0])
                elif level is not None:
                    known = level_T is not None and np.isfinite(level_T[t])
                    levels_K[at] = level_T[t] if known and level_T is not None else level
        written = self.parse(tokens, request) if self._ids["<answer>"] in tokens else None
        return Reading(levels_K, tuple(map(tuple, cites)), written)

    def citations(self, tokens: list[int], request: Request) -> tuple[int, int]:
        """(right, all) pieces of evidence that the reasoning cites about a candidate."""
        right = total = 0
        candidate = request.k  # none of them yet
        for token in self.thought(tokens):
            position, cited = self.vocab.index_of(token), self.vocab.evidence_of(token)
            if position is not None:
                candidate = position
            elif cited is not None:
                total += 1
                if candidate < request.k:
                    right += int(request.buckets_KF[candidate, cited[0]] == cited[1])
        return right, total


def _put(out: Written, tokens: Sequence[int], kind: int) -> None:
    """Append tokens that are their own targets."""
    out.tokens.extend(tokens)
    out.kinds.extend([kind] * len(tokens))
    out.other.extend(tokens)
    out.share.extend([0.0] * len(tokens))
