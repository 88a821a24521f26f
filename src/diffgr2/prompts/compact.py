"""The compact template: semantic IDs, evidence buckets, index tokens; for small models.

Prompt    <history> sid* <candidates> (<c_i> sid evidence*)* <reason>      (or <direct>)
Response  <habit> s_a s_a s_a <focus>                                     what the history says
          (<c_i> <for> e* <against> e* <v>)*                              for and against, cited
          <verdict> <c_best> e* <over> <c_next> e*                        verdict
          <answer> <c>* <|im_end|>                                        the permutation

Contract: `prompt`, `response`, `parse`, `citations` and `english` agree with each other: what
`response` writes, `parse` reads back and `citations` finds right. All lengths are fixed by the
request, which is what lets a block decoder fill many positions at once. Wording lives in
`compact.yaml`. Not here: decoding, and where traces come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.english import Phrases, listed, wording
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.types import Answer

REASONING, ANSWER = 0, 1
"""Kinds of response tokens (decoupled loss weights)."""

HABIT_ITEMS = 3


class Compact:
    shows_text = False

    def __init__(self, vocab: Vocabulary, config: PromptConfig) -> None:
        self.vocab, self.config = vocab, config
        self._ids = vocab.control
        words = self._wording = wording("compact")
        spec = vocab.spec
        self._phrases = Phrases(words["fields"], words["scales"], spec.fields, spec.buckets)

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]:
        """Token ids of the prompt."""
        vocab, ids = self.vocab, self._ids
        sids_KL = vocab.sid_ids(request.codes_KL)
        evidence_KF = vocab.evidence_ids(request.buckets_KF)
        history = vocab.sid_ids(request.history_HL).ravel().tolist()
        out = [ids["<history>"], *history, ids["<candidates>"]]
        for i in range(request.k):
            out += [vocab.index_id(i), *sids_KL[i].tolist(), *evidence_KF[i].tolist()]
        return [*out, ids["<reason>" if reasoning else "<direct>"]]

    def response(
        self, request: Request, trace: Trace, *, reasoning: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of the response, and each token's kind (REASONING or ANSWER)."""
        thought = self._thought(request, trace) if reasoning else []
        answer = [self._ids["<answer>"], *(self.vocab.index_id(int(i)) for i in trace.order_K)]
        answer.append(self.vocab.end_id)
        return thought + answer, [REASONING] * len(thought) + [ANSWER] * len(answer)

    def _thought(self, request: Request, trace: Trace) -> list[int]:
        ids, vocab = self._ids, self.vocab
        evidence_KF = vocab.evidence_ids(request.buckets_KF)
        out = [ids["<habit>"], *self._habit(request)]
        for i in range(request.k):
            out += [vocab.index_id(i), ids["<for>"], *evidence_KF[i, trace.for_KC[i]].tolist()]
            out += [ids["<against>"], *evidence_KF[i, trace.against_KA[i]].tolist()]
            out.append(vocab.strength_id(int(trace.strength_K[i])))
        best, second = int(trace.order_K[0]), int(trace.order_K[1])
        out += [ids["<verdict>"], vocab.index_id(best)]
        out += evidence_KF[best, trace.for_KC[best, :2]].tolist()
        out += [ids["<over>"], vocab.index_id(second)]
        out += evidence_KF[second, trace.against_KA[second, :2]].tolist()
        return out

    def _habit(self, request: Request) -> list[int]:
        """First codes of the newest items, newest first, and how much the history agrees."""
        codes_H = request.history_HL[:, 0]
        newest = self.vocab.sid_ids(request.history_HL)[::-1][:HABIT_ITEMS, 0].tolist()
        newest += [self._ids["<none>"]] * (HABIT_ITEMS - len(newest))
        share = np.bincount(codes_H).max() / len(codes_H) if len(codes_H) else 0
        return [*newest, self._ids[f"<focus_{min(int(share * 4), 3)}>"]]

    def max_response(self, k: int) -> int:
        """Length of a full response to k candidates."""
        cites = 2 * self.config.cites - 1  # for + against
        verdict = 4 + min(2, self.config.cites) + min(2, max(self.config.cites - 1, 1))
        per_candidate = 4 + max(cites, 2)
        return 2 + HABIT_ITEMS + k * per_candidate + verdict + k + 2

    def grammar(self, request: Request) -> AnswerGrammar:
        """What the permutation rule may know of an answer to this request."""
        choices_KN = np.array([[self.vocab.index_id(i)] for i in range(request.k)])
        return AnswerGrammar((self._ids["<answer>"],), 0, 1, choices_KN)

    def thought(self, tokens: list[int]) -> list[int]:
        """All before the answer's marker; without one, all before the end."""
        body = tokens[:-1] if tokens[-1:] == [self.vocab.end_id] else tokens
        return body[: self.answer_start(body)]

    def answer_start(self, tokens: list[int]) -> int:
        """Index of the answer's marker, or the length where there is none."""
        marker = self._ids["<answer>"]
        return tokens.index(marker) if marker in tokens else len(tokens)

    def parse(self, tokens: list[int], request: Request) -> Answer:
        """Read a response; failures are classified, never raised."""
        if tokens[-1:] != [self.vocab.end_id]:
            return Answer((), ("overlong",))
        found = [self.vocab.index_of(t) for t in tokens[self.answer_start(tokens) + 1 : -1]]
        order = [p if p < request.k else OUT_OF_SET for p in found if p is not None]
        if not order or len(order) < len(found):
            return Answer((), ("unparseable",))
        return make_answer(order, request.k)

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

    def english(
        self, tokens: list[int], request: Request, names: Sequence[str], labels: Sequence[str] = ()
    ) -> str:
        """The reasoning in plain English; `names` are the candidates, `labels` first codes.

        The most likely candidates get a line each, the others are only named.
        """
        reasoning, words = self.thought(tokens), self._wording
        said, verdict = self._statements(reasoning)
        # A later statement on the same candidate replaces an earlier one, as in a reader's mind.
        ranked = sorted({s.position: s for s in said}.values(), key=lambda s: -s.level)
        lines = [self._habit_english(reasoning, labels)]
        lines += [self._line(s, names) for s in ranked[: words["shown"]]]
        if (rest := len(ranked) - words["shown"]) > 0:
            lines.append(words["rest"].format(n=rest))
        lines.append(self._verdict(verdict, names))
        return "\n".join(line for line in lines if line)

    def _statements(self, reasoning: Sequence[int]) -> tuple[list[Statement], list[Statement]]:
        """What the reasoning says of candidates, before and in the verdict."""
        said: list[Statement] = []
        verdict: list[Statement] = []
        names = {value: name for name, value in self._ids.items()}
        into, side = said, ""
        for token in reasoning:
            name = names.get(token, "")
            position = self.vocab.index_of(token)
            cited, level = self.vocab.evidence_of(token), self.vocab.strength_of(token)
            if name in ("<for>", "<against>"):
                side = name.strip("<>")
            elif name == "<verdict>":
                into, side = verdict, "for"
            elif name == "<over>":
                into, side = verdict, "against"
            elif position is not None:
                into.append(Statement(position))
            elif into and cited is not None:
                into[-1].points.setdefault(side, []).append(self._phrases.say(*cited))
            elif into and level is not None:
                into[-1].level = level
        return said, verdict

    def _line(self, statement: Statement, names: Sequence[str]) -> str:
        words, name = self._wording, called(statement.position, names)
        strength, grades = words["unsaid"], words["strengths"]
        if statement.level >= 0:
            share = statement.level / (self.vocab.spec.strengths - 1)
            strength = grades[min(int(share * len(grades)), len(grades) - 1)]
        line = words["candidate"].format(name=name, strength=strength)
        for side, title in words["sides"].items():
            if phrases := statement.points.get(side):
                line += words["points"].format(side=title, phrases=listed(phrases))
        return line

    def _verdict(self, verdict: list[Statement], names: Sequence[str]) -> str:
        words, line = self._wording, ""
        parts = [("first", "because"), ("ahead", "weaker")]
        for s, (opening, reason) in zip(verdict, parts, strict=False):
            line += words[opening].format(name=called(s.position, names))
            if phrases := [phrase for side in s.points.values() for phrase in side]:
                line += words[reason].format(phrases=listed(phrases))
        return line and line + "."

    def _habit_english(self, reasoning: Sequence[int], labels: Sequence[str]) -> str:
        sids = map(self.vocab.sid_of, reasoning[: 1 + HABIT_ITEMS])
        codes = [sid[1] for sid in sids if sid and sid[0] == 0]
        words, focus = self._wording, ""
        if not codes:
            return words["habit_none"]
        shown = dict.fromkeys(labels[c] if c < len(labels) else f"group {c}" for c in codes)
        for i, text in enumerate(words["focus"]):
            if self._ids[f"<focus_{i}>"] in reasoning:
                focus = text
        return words["habit"].format(groups=listed(list(shown)), focus=focus)


@dataclass
class Statement:
    """What a reasoning says of one candidate."""

    position: int
    points: dict[str, list[str]] = field(default_factory=dict)  # side -> phrases
    level: int = -1  # strength, -1 = not said


def called(position: int, names: Sequence[str]) -> str:
    """A candidate's name, or its place where it has none."""
    return names[position] if position < len(names) else f"#{position + 1}"
