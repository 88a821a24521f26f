"""The gr2 template: the papers' chat in tokens; answers are semantic IDs inside JSON.

Prompt    system, user and assistant turns in Qwen's chat format; history and candidates as semantic
          ID and text, each candidate with its evidence in words
Response  {"explanation": "...", "recommendations": ["<sid>", "<sid>", ...]} <|im_end|>
          (without `explanation` where no reasoning is asked for)

Contract: `prompt`, `response`, `parse`, `citations` and `english` agree with each other, as those
of `compact` do. Control tokens and semantic IDs are placed by id; everything else
is text with special tokens off, so a reserved token that a title spells stays text. The pieces of
the answer are tokenized one by one, so its entries lie at fixed distances. Wording is in
`gr2.yaml`, sentences and text answers in `chat`. Not here: decoding, and where traces come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.chat import (
    BEGIN,
    FINISH,
    Chat,
    Piece,
    Sid,
    UserText,
    pieces_of,
    places_of,
    sids_of,
)
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import END, Vocabulary
from diffgr2.types import Answer

OPEN = '{"explanation": "'
SHUT = '", '
BARE = "{"  # opens an answer without reasoning
MARKER = '"recommendations": ["'
BETWEEN = '", "'
CLOSE = '"]}'

# Stand in a rendered response for semantic IDs; the model's own text cannot spell them.
LEFT, RIGHT, STRANGE = "\ue000", "\ue001", "\ufffd"


def one_line(text: str) -> str:
    """User text without line breaks and broken characters."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def escaped(text: str) -> str:
    """Text as it stands inside a JSON string; a blank at either end stays, others follow it."""
    lead = " " if text[:1].isspace() else ""
    tail = " " if text[-1:].isspace() and text.strip() else ""
    return json.dumps(lead + one_line(text) + tail, ensure_ascii=False)[1:-1]


class Gr2:
    """See the module's docstring."""

    name = "gr2"
    shows_text = True

    def __init__(self, vocab: Vocabulary, config: PromptConfig) -> None:
        self.vocab = vocab
        self.chat = Chat(vocab.spec.fields, vocab.spec.buckets)
        self._open, self._shut, self._bare, self._marker, self._between, self._close = map(
            vocab.text_ids, (OPEN, SHUT, BARE, MARKER, BETWEEN, CLOSE)
        )
        self._begin, self._finish = vocab.control[BEGIN], vocab.control[FINISH]
        added = json.loads(vocab.tokenizer.to_str())["added_tokens"]
        self._reserved = frozenset(entry["id"] for entry in added)

    # --------------------------------------------------------------------------- writing

    def _sid(self, sid: Sid) -> list[int]:
        codes = self.vocab.sid_ids(np.array(sid.codes)).tolist()
        return [self._begin, *codes, self._finish]

    def _tokens(self, pieces: Sequence[Piece], *, quoted: bool) -> list[int]:
        """Token ids of pieces; `quoted` inside a JSON string."""
        cap = self.chat.words["kind_tokens" if quoted else "text_tokens"]
        out: list[int] = []
        for piece in pieces:
            if isinstance(piece, Sid):
                out += self._sid(piece)
            elif isinstance(piece, UserText):
                out += self._user_text(piece.text, cap, quoted)
            else:
                out += self.vocab.text_ids(escaped(piece) if quoted else piece)
        return out

    def _user_text(self, text: str, cap: int, quoted: bool) -> list[int]:
        """At most `cap` tokens; inside JSON whole words only, so that no escape is cut."""
        text = one_line(text)
        if not quoted:
            return self.vocab.text_ids(text)[:cap]
        words = text.split(" ")
        while words:
            ids = self.vocab.text_ids(escaped(" ".join(words)))
            if len(ids) <= cap:
                return ids
            words.pop()
        return []

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]:
        """Token ids of the prompt, up to where the assistant's turn begins."""
        start = self.vocab.control["<|im_start|>"]
        text, end = self.vocab.text_ids, [self.vocab.control[END], *self.vocab.text_ids("\n")]
        return [
            *(start, *text("system\n"), *text(self.chat.words["system"]), *end),
            *(start, *text("user\n")),
            *self._tokens(self.chat.user(request, reasoning=reasoning), quoted=False),
            *(*end, start, *text("assistant\n")),
        ]

    def response(
        self, request: Request, trace: Trace, *, reasoning: bool = True
    ) -> tuple[list[int], list[int]]:
        """Token ids of the response, and each token's kind (REASONING or ANSWER)."""
        if trace.explanation and reasoning:
            return self.response_from_text(request, trace.explanation, trace.order_K)
        thought = None
        if reasoning:
            thought = self._tokens(self.chat.explanation(request, trace), quoted=True)
        return self._response(request, thought, trace.order_K)

    def response_from_text(
        self, request: Request, explanation: str, order: Sequence[int] | np.ndarray
    ) -> tuple[list[int], list[int]]:
        """As `response`, from a teacher's own words; semantic IDs of no item here stay text."""
        known = {*sids_of(request.codes_KL), *sids_of(request.history_HL)}
        thought: list[int] = []
        for piece in pieces_of(explanation):
            if isinstance(piece, Sid) and piece not in known:
                piece = piece.text
            room = self.chat.words["explanation_tokens"] - len(thought)
            ids = self._tokens([piece], quoted=True)
            if len(ids) > room and isinstance(piece, str):
                ids = self._user_text(piece, room, quoted=True)
            if len(ids) > room:
                break
            thought += ids
        return self._response(request, thought, order)

    def _response(
        self, request: Request, thought: list[int] | None, order: Sequence[int] | np.ndarray
    ) -> tuple[list[int], list[int]]:
        head = self._bare if thought is None else [*self._open, *thought, *self._shut]
        sids = sids_of(request.codes_KL)
        answer = [*self._marker]
        for j, position in enumerate(order):
            answer += (self._between if j else []) + self._sid(sids[int(position)])
        answer += [*self._close, self.vocab.end_id]
        # The opening of a direct answer is part of it: there is no reasoning to weigh.
        kind = ANSWER if thought is None else REASONING
        return head + answer, [kind] * len(head) + [ANSWER] * len(answer)

    def max_response(self, k: int) -> int:
        """Most tokens of a response to k candidates."""
        frame = len(self._open) + len(self._shut) + len(self._marker) + len(self._close) + 1
        entry = self.vocab.spec.levels + 2
        answer = k * entry + (k - 1) * len(self._between)
        return frame + answer + max(self._longest_own, self.chat.words["explanation_tokens"])

    @cached_property
    def _longest_own(self) -> int:
        """A bound on the explanations of `Chat.explanation`."""
        words, text = self.chat.words, self.vocab.text_ids
        steps = words["steps"]
        fixed = {name: len(text(pattern)) for name, pattern in steps.items()}
        phrase = max(len(text(" " + p)) for p in self.chat.phrases.all()) + 2
        sid = self.vocab.spec.levels + 2
        opening = (
            max(fixed["habit"], fixed["newest"], fixed["nothing"]) + words["kind_tokens"] + sid
        )
        each = fixed["candidate"] + sid + phrase * (words["points"] + 1)
        return opening + words["cited"] * each + fixed["verdict"] + 2 * (sid + phrase)

    def grammar(self, request: Request) -> AnswerGrammar:
        """What the permutation rule may know of the answer."""
        stride = self.vocab.spec.levels + 2 + len(self._between)
        return AnswerGrammar(tuple(self._marker), 1, stride, self.vocab.sid_ids(request.codes_KL))

    # --------------------------------------------------------------------------- reading

    def _body(self, tokens: Sequence[int]) -> list[int]:
        body = [int(token) for token in tokens]
        return body[:-1] if body and body[-1] == self.vocab.end_id else body

    def answer_start(self, tokens: Sequence[int]) -> int:
        """Index of the answer's marker, or the length where there is none."""
        ids, width = [int(token) for token in tokens], len(self._marker)
        for at in range(len(ids) - width + 1):
            if ids[at : at + width] == self._marker:
                return at
        return len(ids)

    def split(self, tokens: Sequence[int]) -> tuple[list[int], list[int] | None]:
        """(all before the marker, all after it without the end), the latter None without one."""
        body = self._body(tokens)
        at = self.answer_start(body)
        return body[:at], body[at + len(self._marker) :] if at < len(body) else None

    def _segments(self, tokens: Sequence[int]) -> list[str | Sid]:
        """Tokens as text and whole semantic IDs; what is neither becomes STRANGE."""
        out: list[str | Sid] = []
        run: list[int] = []

        def flush() -> None:
            if run:
                text = self.vocab.decode(list(run))
                out.append(text.replace(LEFT, STRANGE).replace(RIGHT, STRANGE))
                run.clear()

        at, width = 0, self.vocab.spec.levels + 2
        while at < len(tokens):
            token = tokens[at]
            group = [self.vocab.sid_of(t) for t in tokens[at + 1 : at + width - 1]]
            whole = token == self._begin and tokens[at + width - 1 : at + width] == [self._finish]
            codes = [found[1] for lv, found in enumerate(group) if found and found[0] == lv]
            if whole and len(codes) == width - 2:
                flush()
                out.append(Sid(tuple(codes)))
                at += width
                continue
            if token in self._reserved or not 0 <= token < self.vocab.spec.size:
                flush()
                out.append(STRANGE)
            else:
                run.append(token)
            at += 1
        flush()
        return out

    def _json(self, tokens: Sequence[int]) -> tuple[dict[str, Any], list[Sid]] | None:
        """The response's JSON object, its semantic IDs numbered between LEFT and RIGHT."""
        sids: list[Sid] = []
        text = ""
        for segment in self._segments(self._body(tokens)):
            if isinstance(segment, Sid):
                text += f"{LEFT}{len(sids)}{RIGHT}"
                sids.append(segment)
            else:
                text += segment
        try:
            pairs = json.loads(text, strict=False, object_pairs_hook=list)
        except (ValueError, RecursionError):
            return None
        names = [pair[0] for pair in pairs] if text.lstrip()[:1] == "{" else []
        return (dict(pairs), sids) if names and len(set(names)) == len(names) else None

    def parse(self, tokens: Sequence[int], request: Request) -> Answer:
        """Read a response; failures are classified, never raised."""
        if not len(tokens) or tokens[-1] != self.vocab.end_id:
            return Answer((), ("overlong",))
        read = self._json(tokens)
        if read is None or not isinstance(read[0].get("recommendations"), list):
            return Answer((), ("unparseable",))
        values, sids = read
        places = places_of(request)
        numbers = {f"{LEFT}{n}{RIGHT}": sid for n, sid in enumerate(sids)}
        order = []
        for entry in values["recommendations"]:
            if not isinstance(entry, str) or entry not in numbers:
                return Answer((), ("unparseable",))
            order.append(places.get(numbers[entry], OUT_OF_SET))
        return make_answer(order, request.k) if order else Answer((), ("unparseable",))

    def citations(self, tokens: Sequence[int], request: Request) -> tuple[int, int]:
        """(right, all) phrases of evidence that the explanation says of a candidate."""
        places = places_of(request)
        subject: int | None = None
        right = total = 0
        for segment in self._segments(self.split(tokens)[0]):
            if isinstance(segment, Sid):
                subject = places.get(segment)
                continue
            for field, buckets in self.chat.phrases.find(segment):
                total += 1
                if subject is not None:
                    right += int(request.buckets_KF[subject, field]) in buckets
        return right, total

    # --------------------------------------------------------------------------- English

    def english(
        self,
        tokens: Sequence[int],
        request: Request,
        names: Sequence[str],
        labels: Sequence[str] = (),
    ) -> str:
        """The explanation with items by name; history items by their texts."""
        titles = (text.rsplit(" (", 1)[0] for text in request.history_texts)
        called = dict(zip(sids_of(request.history_HL), titles, strict=False))
        called |= dict(zip(sids_of(request.codes_KL), names, strict=False))
        text = ""
        for segment in self._segments(self.split(tokens)[0]):
            if isinstance(segment, Sid):
                name = called.get(segment, "an item not in the list")
                text += json.dumps(name, ensure_ascii=False)[1:-1]
            else:
                text += segment
        text = text.removeprefix(OPEN).removesuffix(SHUT)
        try:
            return str(json.loads(f'"{text}"', strict=False)).strip()
        except ValueError:  # a broken explanation is shown as it stands
            return text.strip()
