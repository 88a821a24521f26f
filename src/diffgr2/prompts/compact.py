"""The compact template: semantic IDs, evidence buckets, index tokens; short enough for small models.

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
from pathlib import Path

import numpy as np
import yaml

from diffgr2.config import PromptConfig
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.grammar import AnswerGrammar
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.types import Answer

REASONING, ANSWER = 0, 1
"""Kinds of response tokens (decoupled loss weights)."""

HABIT_ITEMS = 3


class Compact:
    """See the module's docstring."""

    name = "compact"
    shows_text = False

    def __init__(self, vocab: Vocabulary, config: PromptConfig) -> None:
        self.vocab, self.config = vocab, config
        self._ids = vocab.control
        self._wording = yaml.safe_load((Path(__file__).parent / "compact.yaml").read_text())

    # --------------------------------------------------------------------------- writing

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]:
        """Token ids of the prompt."""
        vocab, ids = self.vocab, self._ids
        sids_KL = vocab.sid_ids(request.codes_KL)
        evidence_KF = vocab.evidence_ids(request.buckets_KF)
        out = [ids["<history>"], *vocab.sid_ids(request.history_HL).ravel().tolist()]
        out.append(ids["<candidates>"])
        for i in range(request.k):
            out.append(vocab.index_id(i))
            out.extend(sids_KL[i].tolist())
            out.extend(evidence_KF[i].tolist())
        out.append(ids["<reason>" if reasoning else "<direct>"])
        return out

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
            out.append(vocab.index_id(i))
            out.append(ids["<for>"])
            out.extend(evidence_KF[i, trace.for_KC[i]].tolist())
            out.append(ids["<against>"])
            out.extend(evidence_KF[i, trace.against_KA[i]].tolist())
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
        newest = [int(self.vocab.sid_ids(request.history_HL)[-1 - i, 0]) for i in range(
            min(HABIT_ITEMS, len(codes_H)))]
        newest += [self._ids["<none>"]] * (HABIT_ITEMS - len(newest))
        share = np.unique(codes_H, return_counts=True)[1].max() / len(codes_H) if len(codes_H) else 0
        return [*newest, self._ids[f"<focus_{min(int(share * 4), 3)}>"]]

    def max_response(self, k: int) -> int:
        """Length of a full response to k candidates."""
        cites = 2 * self.config.cites - 1  # for + against
        verdict = 4 + min(2, self.config.cites) + min(2, max(self.config.cites - 1, 1))
        per_candidate = 4 + max(cites, 2)
        return 2 + HABIT_ITEMS + k * per_candidate + verdict + k + 2

    def grammar(self, k: int) -> AnswerGrammar:
        """What the permutation rule may know of an answer to k candidates."""
        choices_KN = np.array([[self.vocab.index_id(i)] for i in range(k)])
        return AnswerGrammar((self._ids["<answer>"],), 0, 1, choices_KN)

    # --------------------------------------------------------------------------- reading

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """(reasoning, answer without marker and end), the latter None where there is no marker."""
        body = list(tokens)
        if body and body[-1] == self.vocab.end_id:
            body.pop()
        marker = self._ids["<answer>"]
        if marker not in body:
            return body, None
        at = body.index(marker)
        return body[:at], body[at + 1 :]

    def answer_start(self, tokens: Sequence[int]) -> int:
        """Index of the answer's marker, or the length where there is none."""
        marker = self._ids["<answer>"]
        return list(tokens).index(marker) if marker in tokens else len(tokens)

    def parse(self, tokens: Sequence[int], request: Request) -> Answer:
        """Read a response; failures are classified, never raised."""
        if not len(tokens) or tokens[-1] != self.vocab.end_id:
            return Answer((), ("overlong",))
        _, answer = self.split(tokens)
        if not answer:
            return Answer((), ("unparseable",))
        order = []
        for token in answer:
            position = self.vocab.index_of(token)
            if position is None:
                return Answer((), ("unparseable",))
            order.append(position if position < request.k else OUT_OF_SET)
        return make_answer(order, request.k)

    def citations(self, tokens: Sequence[int], request: Request) -> tuple[int, int]:
        """(right, all) pieces of evidence that the reasoning cites about a candidate."""
        right = total = 0
        candidate: int | None = None
        for token in self.split(tokens)[0]:
            position = self.vocab.index_of(token)
            if position is not None:
                candidate = position
                continue
            cited = self.vocab.evidence_of(token)
            if cited is None:
                continue
            total += 1
            if candidate is not None and candidate < request.k:
                right += int(request.buckets_KF[candidate, cited[0]] == cited[1])
        return right, total

    # --------------------------------------------------------------------------- English

    def english(
        self, tokens: Sequence[int], names: Sequence[str], labels: Sequence[str] = ()
    ) -> str:
        """The reasoning in plain English; `names` are the candidates, `labels` first codes."""
        lines: list[str] = []
        side = ""
        clauses: dict[str, list[str]] = {}
        subject = ""

        def flush(verdict: str = "") -> None:
            if subject and (clauses or verdict):
                lines.append(self._sentence(subject, clauses, verdict))
            clauses.clear()

        reasoning, _ = self.split(tokens)
        control = {value: name for name, value in self._ids.items()}
        for token in reasoning:
            name = control.get(token, "")
            position = self.vocab.index_of(token)
            cited = self.vocab.evidence_of(token)
            level = self.vocab.strength_of(token)
            if name in ("<for>", "<against>"):
                side = name.strip("<>")
            elif name == "<verdict>":
                flush()
                subject, side = "", "verdict"
            elif name == "<over>":
                flush()
                side = "over"
            elif position is not None:
                flush()
                subject = names[position] if position < len(names) else f"#{position + 1}"
                if side in ("verdict", "over"):
                    subject = self._wording[side].format(name=subject)
            elif cited is not None:
                clauses.setdefault(side, []).append(self._phrase(*cited))
            elif level is not None:
                flush(self._strength(level))
                subject = ""
        flush()
        return "\n".join([self._habit_english(reasoning, labels), *lines]).strip()

    def _sentence(self, subject: str, clauses: dict[str, list[str]], verdict: str) -> str:
        parts = [f"{self._wording['sides'][side]} {', '.join(texts)}" if side in (
            "for", "against") else ", ".join(texts) for side, texts in clauses.items()]
        return f"{subject}: {'; '.join(parts)}{f'; {verdict}' if verdict else ''}."

    def _phrase(self, field: int, bucket: int) -> str:
        name = self.vocab.spec.fields[field]
        words = self._wording["fields"].get(name, name)
        top = self.vocab.spec.buckets - 1
        grades = self._wording["grades"]
        if isinstance(words, dict):  # a field may word its own grades
            grades, words = words["grades"], words["phrase"]
        grade = grades[round(bucket / top * (len(grades) - 1))]
        return words.format(grade=grade)

    def _strength(self, level: int) -> str:
        grades = self._wording["strengths"]
        share = level / (self.vocab.spec.strengths - 1)
        return grades[min(int(share * len(grades)), len(grades) - 1)]

    def _habit_english(self, reasoning: Sequence[int], labels: Sequence[str]) -> str:
        codes = [sid[1] for sid in map(self.vocab.sid_of, reasoning[: 1 + HABIT_ITEMS]) if sid]
        if not codes:
            return self._wording["habit_none"]
        shown = [labels[c] if c < len(labels) else f"group {c}" for c in codes]
        return self._wording["habit"].format(groups=", ".join(dict.fromkeys(shown)))
