"""The brief template: text that any base's tokenizer reads, for small language models.

Prompt    A shopper bought, oldest first: title; title; …
          Candidates:
          A title; rank first kind high …            a line each: name, title, evidence
          Name each, what counts, and how likely …
Response  A kind brand seven B rank - two …          name, up to `cites` fields, strength
          order B A … <|im_end|>                     where the permutation is written out, too

Contract: as `compact`, from which grammar and readers come, in words of one token that the base has
(`plain_words`): a field's word cites that piece of its candidate's evidence, whose grade stands in
the prompt. What may be cited is what is shown: evidence that is known, unless it counts none.
Titles are cut to what tells a list's candidates apart: words that most of them share go, then,
until the budget holds, the most shared ones from the end. Names and marks are placed by id, titles
are text without special tokens, line breaks and semicolons, so that no title can end its place.
Not here: decoding, English (`account`), and the wording (`brief.yaml`).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from diffgr2.candidates.fields import Field
from diffgr2.candidates.own_fields import spoken
from diffgr2.config import PromptConfig
from diffgr2.errors import ArtifactError
from diffgr2.prompts.chat import one_line
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import wording
from diffgr2.prompts.plain_words import grade_of
from diffgr2.prompts.request import MISSING, Request, TextOf, item_title
from diffgr2.prompts.vocab import END, Vocabulary

EDGES = " ,.:()[]{}\"'“”‘’-–—|/*"
"""What a word of a title loses at both ends."""

FILLERS = frozenset(
    {"a", "an", "and", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"}
)
"""Words that tell no title apart."""

FEW = 3
"""Titles below which nothing counts as shared."""


def words_of(title: str) -> list[str]:
    """A title's words without what would end its place, or says nothing.

    >>> words_of("ROSE Soap; (Pack of 2) -\\n 5 oz.")
    ['Rose', 'Soap', 'Pack', '2', '5', 'oz']
    """
    line = one_line(unicodedata.normalize("NFC", title)).replace(";", ",")
    kept = [word.strip(EDGES) for word in line.split()]
    # Each word once: titles repeat themselves and their brand.
    kept = list({word.casefold(): word for word in reversed(kept)}.values())[::-1]
    kept = [word for word in kept if any(map(str.isalnum, word))]
    kept = [word for word in kept if word.casefold() not in FILLERS] or kept
    return [word.capitalize() if len(word) > 3 and word.isupper() else word for word in kept]


def shared(titles: Sequence[Sequence[str]]) -> Counter[str]:
    """In how many titles each word stands."""
    return Counter(chain.from_iterable({word.casefold() for word in title} for title in titles))


class Brief(Compact):
    item_text: TextOf | None = staticmethod(item_title)

    def __init__(
        self, vocab: Vocabulary, config: PromptConfig, fields: Sequence[Field] | None = None
    ) -> None:
        if not vocab.spec.words:
            raise ArtifactError("vocabulary: made for another template (brief needs its words)")
        super().__init__(vocab, config, fields)
        self.brief = wording("brief")
        self._text = lru_cache(1 << 16)(lambda text: tuple(vocab.text_ids(text)))
        self._grades = [self._grades_of(field, vocab.spec.buckets) for field in self.fields]
        self._called = [self._name_of(f) for f in range(len(self.fields))]
        top = self.brief["levels"][vocab.spec.strengths - 1]
        self._asks = {True: self.brief["reason"], False: self.brief["direct"]}
        self._asks = {how: text.format(top=top) for how, text in self._asks.items()}

    def _name_of(self, f: int) -> tuple[int, ...]:
        """How the prompt calls a field: the word that cites it, and what else its name says."""
        word = self.vocab.spec.words["evidence"][f]
        if self.fields[f].counted:
            return (word,)
        own = spoken(self.fields[f].name)
        said = self.vocab.decode([word]).strip()
        rest = [part for part in own.split() if part.casefold() != said.casefold()]
        return (word, *chain.from_iterable(self._text(f" {part}") for part in rest))

    def _grades_of(self, field: Field, n: int) -> list[tuple[int, ...]]:
        """What each bucket of a field is called."""
        told = [grade_of(self.brief, field, bucket, n) for bucket in range(n)]
        return [self._text(f" {grade}")[: self.brief["label_tokens"]] for grade in told]

    # ------------------------------------------------------------------------------- prompt

    def shown(self, request: Request) -> np.ndarray:
        """Which evidence [K, F] the prompt shows: known, and not that there is none."""
        none_KF = self._none_F & (request.buckets_KF == 0)
        return (request.buckets_KF != MISSING) & ~none_KF

    def untold(self, request: Request) -> np.ndarray:
        """Which fields [K, F] cannot be cited: nothing is shown, or nothing that counts."""
        return ~self.citable(request)

    def citable(self, request: Request) -> np.ndarray:
        """Which fields [K, F] may be cited of each candidate: of what is shown, what has a side."""
        return super().citable(request) & self.shown(request)

    def cited(self, token: int, request: Request, at: int) -> tuple[int, int] | None:
        """(field, bucket) where a token is the word of a field that is shown of candidate `at`."""
        field = self.vocab.field_of(token)
        if field is None or at >= request.k or not self.shown(request)[at, field]:
            return None
        return field, int(request.buckets_KF[at, field])

    def citations(self, tokens: list[int], request: Request) -> tuple[int, int]:
        """(right, all) fields that the reasoning cites about a candidate."""
        right = total = 0
        at, shown_KF = request.k, self.shown(request)  # none of them yet
        for token in self.thought(tokens):
            position, field = self.vocab.index_of(token), self.vocab.field_of(token)
            if position is not None:
                at = position
            elif field is not None:
                total += 1
                right += int(at < request.k and bool(shown_KF[at, field]))
        return right, total

    def prompt(self, request: Request, *, reasoning: bool = True) -> list[int]:
        """Token ids of the prompt, up to where the assistant's turn begins."""
        words, start, text = self.brief, self.vocab.control["<|im_start|>"], self._text
        out = [start, *text("user\n"), *text(words["ask"])]
        history = [words_of(title) for title in request.history_texts]
        for n, title in enumerate(history):
            out += [*(text(";") if n else ()), *self._cut(title, Counter(), "history_tokens")]
        out += [*(() if history else text(words["nothing"])), *text(words["candidates"])]
        titles, shown_KF = self._apart(request.texts), self.shown(request)
        for i, title in enumerate(titles):
            out += [*text("\n"), self.vocab.index_id(i), *title, *text(";")]
            for f in np.flatnonzero(shown_KF[i]).tolist():
                out += [*self._called[f], *self._grades[f][request.buckets_KF[i, f]]]
        ends = [self.vocab.control[END], *text("\n")]
        return [*out, *text(self._asks[reasoning]), *ends, start, *text("assistant\n")]

    def _apart(self, texts: Sequence[str]) -> list[list[int]]:
        """Titles as tokens, cut to what tells them apart."""
        titles = [words_of(title) for title in texts]
        count = shared(titles)
        most = len(titles) * self.brief["common"] if len(titles) >= FEW else len(titles)
        kept = [[word for word in title if count[word.casefold()] <= most] for title in titles]
        pairs = zip(kept, titles, strict=True)
        return [self._cut(own or whole, count, "title_tokens") for own, whole in pairs]

    def _cut(self, title: list[str], count: Counter[str], budget: str) -> list[int]:
        """A title's tokens within a budget: the most shared word goes first, the last of them."""
        room, kept = self.brief[budget], [(word, self._text(f" {word}")) for word in title[:64]]
        while len(kept) > 1 and sum(len(ids) for _, ids in kept) > room:
            shares = [count[word.casefold()] for word, _ in kept]
            del kept[len(shares) - 1 - shares[::-1].index(max(shares))]
        return list(chain.from_iterable(ids for _, ids in kept))[:room]
