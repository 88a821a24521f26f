"""The gr2 template: the papers' chat in tokens; answers are semantic IDs inside JSON.

Prompt    system, user and assistant turns in Qwen's chat format; history and candidates as semantic
          ID and text, each candidate with its evidence in words
Response  {"explanation": "...", "recommendations": ["<sid>", "<sid>", ...]} <|im_end|>
          (without `explanation` where no reasoning is asked for)

Contract: what `response` writes `grammar` allows and `parse` reads back, as in `compact`; there are
no strengths, so the only answer is the written one. The grammar forces the JSON around the
explanation and lets the entries spell each candidate once; the explanation is free but for what
would break its JSON string, and ends with the one token that closes it. Control tokens and semantic
IDs are placed by id; everything else is text with special tokens off, so a reserved token that a
title spells stays text. Wording is in `gr2.yaml`, sentences and text answers in `chat`. Not here:
decoding, and where traces come from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain, groupby

import numpy as np

from diffgr2.candidates.fields import Field, counted_named
from diffgr2.config import Answering, PromptConfig
from diffgr2.decode.grammar import Free, Grammar, Group, Places, row_of_places
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.prompts.answers import OUT_OF_SET, make_answer
from diffgr2.prompts.chat import Chat, Piece, Sid, UserText, one_line, pieces_of, places_of, sids_of
from diffgr2.prompts.compact import ANSWER, REASONING, Written
from diffgr2.prompts.english import wording
from diffgr2.prompts.request import MISSING, Request, TextOf, Trace, item_text
from diffgr2.prompts.said import Reading
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


# What may stand in a JSON string, token by token: no bare quote, no control character, and only
# escapes that one token completes.
HARMLESS = re.compile(r"(?:[^\"\\\x00-\x1f]|\\[\"\\/nt])+")
_OPENING = re.compile(r"(^|[\s(\[])\"")
_CONTROL = re.compile(r"[\x00-\x1f]+")


def quotable(text: str) -> str:
    """Text as it stands inside a JSON string without escapes: quotes are curly, slashes lean right.

    A blank at either end stays, others follow it.

    >>> quotable('a 12" brush, "Pro"')
    'a 12” brush, “Pro”'
    """
    lead = " " if text[:1].isspace() else ""
    tail = " " if text[-1:].isspace() and text.strip() else ""
    line = one_line(_CONTROL.sub(" ", text))
    return lead + _OPENING.sub(r"\1“", line).replace('"', "”").replace("\\", "/") + tail


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
    item_text: TextOf | None = staticmethod(item_text)
    answers: tuple[Answering, ...] = ("written",)

    def __init__(
        self, vocab: Vocabulary, config: PromptConfig, fields: Sequence[Field] | None = None
    ) -> None:
        """`fields` are the evidence's; None: counted ones, of the vocabulary's names."""
        self.vocab, self.config = vocab, config
        self.fields = counted_named(vocab.spec.fields) if fields is None else tuple(fields)
        self.chat = Chat(self.fields, vocab.spec.buckets)
        self.words, self.phrases = wording("compact"), self.chat.phrases  # for `account`
        self._open, self._bare, self._marker, self._between, self._close = map(
            vocab.text_ids, (OPEN, BARE, MARKER, BETWEEN, CLOSE)
        )
        self._shut = vocab.text_ids(SHUT)
        if not vocab.decode(self._shut[:1]).startswith(SHUT[0]):  # a quote that nothing precedes
            quote = vocab.tokenizer.token_to_id(SHUT[0])
            if quote is None:
                raise ArtifactError("tokenizer: no token begins with a quote")
            self._shut = [quote, *vocab.text_ids(SHUT[1:])]
        self._begin, self._finish = vocab.control[BEGIN], vocab.control[FINISH]
        self._reserved = frozenset(vocab.tokenizer.get_added_tokens_decoder())

    def _sid(self, sid: Sid) -> list[int]:
        codes = self.vocab.sid_ids(np.array(sid.codes)).tolist()
        return [self._begin, *codes, self._finish]

    @cached_property
    def _banned(self) -> np.ndarray:
        """Tokens that no explanation may hold; of what is not text only semantic IDs may stand."""
        ids = [[token] for token in range(self.vocab.spec.size)]
        texts = self.vocab.tokenizer.decode_batch(ids, skip_special_tokens=False)
        banned_V = np.array([HARMLESS.fullmatch(text) is None for text in texts])
        banned_V[list(self._reserved)] = True
        spec = self.vocab.spec
        sids = spec.bases["sid"] + np.arange(spec.levels * spec.codes)
        banned_V[[*sids, self._begin, self._finish]] = False
        banned_V[self._shut[0]] = False  # ends the explanation: allowed once, by being the closer
        return np.flatnonzero(banned_V)

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
                out += self.vocab.text_ids(quotable(piece) if quoted else piece)
        return out

    def _cut(self, text: str, cap: int) -> list[int]:
        """At most `cap` tokens inside a JSON string: whole words from the beginning."""
        lead, words = " " * text[:1].isspace(), one_line(text).split(" ")
        while words:
            ids = self.vocab.text_ids(quotable(lead + " ".join(words)))
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
        self,
        request: Request,
        trace: Trace,
        *,
        reasoning: bool = True,
        answer: Answering = "written",
    ) -> Written:
        """The response that says this trace; every token is its own target."""
        if answer not in self.answers:
            raise ConfigError(f"prompt.answer: template gr2 has no answer {answer!r}")
        head = self._bare
        if reasoning:
            told = trace.explanation
            thought = self._told(request, told) if told else self._own(request, trace)
            head = [*self._open, *thought, *self._shut]
        sids = self._entries(request)[trace.order_K]
        tokens = [*head, *self._marker]
        for j, sid_E in enumerate(sids.tolist()):
            tokens += (self._between if j else []) + sid_E
        tokens += [*self._close, self.vocab.end_id]
        kinds = self.kinds(tokens).tolist()
        return Written(tokens, kinds, list(tokens), [0.0] * len(tokens))

    def _entries(self, request: Request) -> np.ndarray:
        """Each candidate's entry [K, levels + 2]: its semantic ID between the brackets."""
        sids_KL = self.vocab.sid_ids(request.codes_KL)
        return np.pad(
            sids_KL, ((0, 0), (1, 1)), constant_values=((0, 0), (self._begin, self._finish))
        )

    def _own(self, request: Request, trace: Trace) -> list[int]:
        """The explanation of a trace; what has no room, from the second sentence, is left out."""
        sentences = [
            self._tokens(pieces, quoted=True) for pieces in self.chat.explanation(request, trace)
        ]
        while len(sentences) > 1 and sum(map(len, sentences)) > self._room:
            sentences.pop(-2)
        return list(chain.from_iterable(sentences))[: self._room]

    def _told(self, request: Request, explanation: str) -> list[int]:
        """An explanation in a teacher's own words; semantic IDs of no item here stay text."""
        known = {*sids_of(request.codes_KL), *sids_of(request.history_HL)}
        thought: list[int] = []
        for piece in pieces_of(explanation):
            if isinstance(piece, Sid) and piece not in known:
                piece = piece.text
            room = self._room - len(thought)
            ids = self._tokens([piece], quoted=True)
            if len(ids) > room and isinstance(piece, str):
                ids = self._cut(piece, room)
            if len(ids) > room:
                break
            thought += ids
        return thought

    @property
    def _room(self) -> int:
        """Most tokens of an explanation."""
        return self.chat.words["explanation_tokens"]

    def max_response(self, k: int) -> int:
        """Most tokens of a response to k candidates."""
        frame = len(self._open) + len(self._shut) + len(self._marker) + len(self._close) + 1
        entry = self.vocab.spec.levels + 2
        return frame + self._room + k * entry + (k - 1) * len(self._between)

    def grammar(
        self, request: Request, *, reasoning: bool = True, answer: Answering = "written"
    ) -> Grammar:
        """What may stand where in a response to this request."""
        if answer not in self.answers:
            raise ConfigError(f"prompt.answer: template gr2 has no answer {answer!r}")
        before = [*(self._shut[1:] if reasoning else self._bare), *self._marker]
        rest = self._places(before, self._entries(request))
        if not reasoning:
            return Grammar(rest)
        free = Free(self._shut[0], self._room + 1, self._banned)
        return Grammar(Places(row_of_places([[token] for token in self._open])), free, rest)

    def _places(self, before: list[int], entries_KE: np.ndarray) -> Places:
        """The list of recommendations, with what stands before and behind it."""
        k, width = entries_KE.shape
        own = [np.unique(column).tolist() for column in entries_KE.T]
        sets = [[token] for token in before]
        starts = len(sets) + np.arange(k) * (width + len(self._between))
        for j in range(k):
            sets += [[token] for token in (self._between if j else [])] + own
        sets += [[token] for token in (*self._close, self.vocab.end_id)]
        group = Group(starts[:, None] + np.arange(1, width - 1), entries_KE[:, 1:-1])
        return Places(row_of_places(sets), (group,))

    def cited(self, token: int, request: Request, at: int) -> tuple[int, int] | None:
        """No token of free text is a piece of evidence by itself."""
        return None

    def untold(self, request: Request) -> np.ndarray:
        """Which fields [K, F] are not known."""
        return request.buckets_KF == MISSING

    def kinds(self, tokens: list[int]) -> np.ndarray:
        """REASONING or ANSWER of each token of a response."""
        start = self.answer_start(tokens)
        # The opening of a direct answer is part of it: there is no reasoning to weigh.
        start = 0 if tokens[:start] == self._bare else start
        return np.where(np.arange(len(tokens)) >= start, ANSWER, REASONING)

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
            order = [numbered[entry.strip()] for entry in recommendations(text)]
        except (ValueError, RecursionError, LookupError):
            order = []
        return make_answer(order, request.k) if order else Answer((), ("unparseable",))

    def _cited(self, tokens: list[int], request: Request) -> list[tuple[int | None, int, bool]]:
        """(candidate, field, whether that is so) of each phrase of evidence that is told."""
        places, out = places_of(request), []
        subject: int | None = None
        for segment in self._segments(self.thought(tokens)):
            if isinstance(segment, Sid):
                subject = places.get(segment)
                continue
            for field, buckets in self.phrases.find(segment):
                right = subject is not None and int(request.buckets_KF[subject, field]) in buckets
                out.append((subject, field, right))
        return out

    def citations(self, tokens: list[int], request: Request) -> tuple[int, int]:
        """(right, all) phrases of evidence that the explanation says of a candidate."""
        cited = self._cited(tokens, request)
        return sum(right for _, _, right in cited), len(cited)

    def read(
        self, tokens: list[int], request: Request, level_T: np.ndarray | None = None
    ) -> Reading:
        """What a response says, whatever it is: no strengths, so `level_T` counts for nothing."""
        cites: list[dict[int, None]] = [{} for _ in range(request.k)]
        for subject, field, _ in self._cited(tokens, request):
            if subject is not None:
                cites[subject][field] = None
        levels_K = np.full(request.k, np.nan)
        told = self._text(tokens, lambda sid: sid.text)
        return Reading(levels_K, tuple(map(tuple, cites)), self.parse(tokens, request), told)

    def english(self, tokens: list[int], request: Request, names: Sequence[str]) -> str:
        """The explanation with items by name; history items by their texts."""
        titles = (text.rsplit(" (", 1)[0] for text in request.history_texts)
        called = dict(zip(sids_of(request.history_HL), titles, strict=False))
        called |= dict(zip(sids_of(request.codes_KL), names, strict=False))
        return self._text(tokens, lambda sid: called.get(sid, "an item not in the list"))

    def _text(self, tokens: list[int], name: Callable[[Sid], str]) -> str:
        """The explanation as text; a broken one is given as it stands."""
        text = ""
        for segment in self._segments(self.thought(tokens)):
            if isinstance(segment, Sid):
                text += json.dumps(name(segment), ensure_ascii=False)[1:-1]
            else:
                text += segment
        text = "" if text == BARE else text.removeprefix(OPEN).removesuffix(SHUT)
        try:
            return str(json.loads(f'"{text}"', strict=False)).strip()
        except ValueError:
            return text.strip()
