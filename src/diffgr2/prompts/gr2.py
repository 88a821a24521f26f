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

import json
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import numpy as np

from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import Grammar as AnswerGrammar
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.chat import Chat, Piece, Sid, UserText, one_line, pieces_of, places_of, sids_of
from diffgr2.prompts.compact import ANSWER, REASONING
from diffgr2.prompts.request import Request, Trace
from diffgr2.prompts.vocab import BEGIN, END, FINISH, Vocabulary
from diffgr2.types import Answer

OPEN = '{"explanation": "'
SHUT = '", '
BARE = "{"  # opens an answer without reasoning
MARKER = '"recommendations": ["'
BETWEEN = '", "'
CLOSE = '"]}'

# Stand in a rendered response for semantic IDs; the model's own text cannot spell them.
LEFT, RIGHT, STRANGE = "\ue000", "\ue001", "\ufffd"


def escaped(text: str) -> str:
    """Text as it stands inside a JSON string; a blank at either end stays, others follow it."""
    lead = " " if text[:1].isspace() else ""
    tail = " " if text[-1:].isspace() and text.strip() else ""
    return json.dumps(lead + one_line(text) + tail, ensure_ascii=False)[1:-1]


def recommendations(text: str) -> list[str]:
    """What a response's JSON object recommends; ValueError for any other text."""
    pairs = json.loads(text, strict=False, object_pairs_hook=list)
    if text.lstrip()[:1] != "{" or len(dict(pairs)) < len(pairs):  # a key that stands twice
        raise ValueError("not one object")
    found = dict(pairs).get("recommendations")
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise ValueError("no list of recommendations")
    return found


class Gr2:
    shows_text = True

    def __init__(self, vocab: Vocabulary, config: PromptConfig) -> None:
        self.vocab = vocab
        self.chat = Chat(vocab.spec.fields, vocab.spec.buckets)
        self._open, self._shut, self._bare, self._marker, self._between, self._close = map(
            vocab.text_ids, (OPEN, SHUT, BARE, MARKER, BETWEEN, CLOSE)
        )
        self._begin, self._finish = vocab.control[BEGIN], vocab.control[FINISH]
        self._reserved = frozenset(vocab.tokenizer.get_added_tokens_decoder())

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
                text = one_line(piece.text)
                out += self._cut(text, cap) if quoted else self.vocab.text_ids(text)[:cap]
            else:
                out += self.vocab.text_ids(escaped(piece) if quoted else piece)
        return out

    def _cut(self, text: str, cap: int) -> list[int]:
        """At most `cap` tokens inside a JSON string: whole words, so that no escape is cut."""
        lead, words = " " * text[:1].isspace(), one_line(text).split(" ")
        while words:
            ids = self.vocab.text_ids(escaped(lead + " ".join(words)))
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
        if not reasoning:
            head = self._bare
        elif trace.explanation:
            head = [*self._open, *self._told(request, trace.explanation), *self._shut]
        else:
            thought = self._tokens(self.chat.explanation(request, trace), quoted=True)
            head = [*self._open, *thought, *self._shut]
        sids, answer = sids_of(request.codes_KL), [*self._marker]
        for j, position in enumerate(trace.order_K.tolist()):
            answer += (self._between if j else []) + self._sid(sids[position])
        answer += [*self._close, self.vocab.end_id]
        # The opening of a direct answer is part of it: there is no reasoning to weigh.
        kind = REASONING if reasoning else ANSWER
        return head + answer, [kind] * len(head) + [ANSWER] * len(answer)

    def _told(self, request: Request, explanation: str) -> list[int]:
        """An explanation in a teacher's own words; semantic IDs of no item here stay text."""
        known = {*sids_of(request.codes_KL), *sids_of(request.history_HL)}
        thought: list[int] = []
        for piece in pieces_of(explanation):
            if isinstance(piece, Sid) and piece not in known:
                piece = piece.text
            room = self.chat.words["explanation_tokens"] - len(thought)
            ids = self._tokens([piece], quoted=True)
            if len(ids) > room and isinstance(piece, str):
                ids = self._cut(piece, room)
            if len(ids) > room:
                break
            thought += ids
        return thought

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
        fixed = {name: len(text(pattern)) for name, pattern in words["steps"].items()}
        phrase = max(len(text(" " + p)) for p in self.chat.phrases.all()) + 2
        sid = self.vocab.spec.levels + 2
        opening = max(fixed["habit"], fixed["newest"], fixed["nothing"])
        each = fixed["candidate"] + sid + phrase * (words["points"] + 1)
        verdict = fixed["verdict"] + 2 * (sid + phrase)
        return opening + words["kind_tokens"] + sid + words["cited"] * each + verdict

    def grammar(self, request: Request) -> AnswerGrammar:
        """What the permutation rule may know of the answer."""
        stride = self.vocab.spec.levels + 2 + len(self._between)
        return AnswerGrammar(tuple(self._marker), 1, stride, self.vocab.sid_ids(request.codes_KL))

    def answer_start(self, tokens: list[int]) -> int:
        """Index of the answer's marker, or the length where there is none."""
        width = len(self._marker)
        for at in range(len(tokens) - width + 1):
            if tokens[at : at + width] == self._marker:
                return at
        return len(tokens)

    def thought(self, tokens: list[int]) -> list[int]:
        """All before the answer's marker; without one, all before the end."""
        body = tokens[:-1] if tokens[-1:] == [self.vocab.end_id] else tokens
        return body[: self.answer_start(body)]

    def _segments(self, tokens: list[int]) -> list[str | Sid]:
        """Tokens as text and whole semantic IDs; what is neither becomes STRANGE."""
        parts: list[int | str | Sid] = []
        at, width = 0, self.vocab.spec.levels + 2
        while at < len(tokens):
            sid, token = self._whole_sid(tokens[at : at + width]), tokens[at]
            plain = 0 <= token < self.vocab.spec.size and token not in self._reserved
            parts.append(sid or (token if plain else STRANGE))
            at += width if sid else 1
        out: list[str | Sid] = []
        for kind, run in groupby(parts, type):
            if kind is int:
                text = self.vocab.decode(list(run))  # type: ignore[arg-type]
                out.append(text.replace(LEFT, STRANGE).replace(RIGHT, STRANGE))
            else:
                out += run  # type: ignore[arg-type]
        return out

    def _whole_sid(self, tokens: list[int]) -> Sid | None:
        """The semantic ID that these tokens are, brackets included."""
        found = [self.vocab.sid_of(token) for token in tokens[1:-1]]
        codes = [pair[1] for level, pair in enumerate(found) if pair and pair[0] == level]
        whole = [tokens[0], *tokens[-1:]] == [self._begin, self._finish]
        return Sid(tuple(codes)) if whole and len(codes) == self.vocab.spec.levels else None

    def parse(self, tokens: list[int], request: Request) -> Answer:
        """Read a response; failures are classified, never raised."""
        if tokens[-1:] != [self.vocab.end_id]:
            return Answer((), ("overlong",))
        places = places_of(request)
        # The response as JSON text, its semantic IDs numbered between LEFT and RIGHT.
        text, numbered = "", {}
        for segment in self._segments(tokens[:-1]):
            if isinstance(segment, Sid):
                name = f"{LEFT}{len(numbered)}{RIGHT}"
                numbered[name] = places.get(segment, OUT_OF_SET)
                text += name
            else:
                text += segment
        try:
            order = [numbered[entry] for entry in recommendations(text)]
        except (ValueError, RecursionError, LookupError):
            order = []
        return make_answer(order, request.k) if order else Answer((), ("unparseable",))

    def citations(self, tokens: list[int], request: Request) -> tuple[int, int]:
        """(right, all) phrases of evidence that the explanation says of a candidate."""
        places = places_of(request)
        subject: int | None = None
        right = total = 0
        for segment in self._segments(self.thought(tokens)):
            if isinstance(segment, Sid):
                subject = places.get(segment)
                continue
            for field, buckets in self.chat.phrases.find(segment):
                total += 1
                if subject is not None:
                    right += int(request.buckets_KF[subject, field]) in buckets
        return right, total

    def english(
        self, tokens: list[int], request: Request, names: Sequence[str], labels: Sequence[str] = ()
    ) -> str:
        """The explanation with items by name; history items by their texts."""
        titles = (text.rsplit(" (", 1)[0] for text in request.history_texts)
        called = dict(zip(sids_of(request.history_HL), titles, strict=False))
        called |= dict(zip(sids_of(request.codes_KL), names, strict=False))
        text = ""
        for segment in self._segments(self.thought(tokens)):
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
