"""How alike the titles of items are, by their words.

Contract: `TitleWords.of(titles)` weighs every distinct word of a title by how rare it is among all
(idf), a title's weights being of length 1; `alike` gives the cosine of every (history item,
candidate), 0 where either has no title. `worded` says other titles in the same words: known ones
keep their weight, new ones are as rare as any, so that no title changes by what comes later.
`newcomers` are the items from `n_items` on. Only a title's first LONGEST distinct words count,
which bounds what a request can ask for. Not here: vectors of all an item's texts
(`items.vectors`), fields (`measures`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from diffgr2.items.vectors import WORD

LONGEST = 32
LISTS_AT_ONCE = 128


def words_of(title: str) -> list[str]:
    """The words of a title that count, in their order.

    >>> words_of("Soap, the red soap")
    ['soap', 'the', 'red']
    """
    return list(dict.fromkeys(WORD.findall(title.lower())))[:LONGEST]


def mark_of(word: str) -> int:
    """A word as a number, the same everywhere."""
    digest = blake2b(word.encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class TitleWords:
    """Items by the words of their titles: item i has `word_T[start_I1[i] : start_I1[i + 1]]`."""

    mark_W: np.ndarray  # int64, what each word is, by its number
    idf_W: np.ndarray  # float32
    start_I1: np.ndarray  # int64
    word_T: np.ndarray  # int32, numbers of words
    newcomers: TitleWords | None = None  # of the item numbers from n_items on

    @property
    def n_items(self) -> int:
        return len(self.start_I1) - 1

    @staticmethod
    def of(titles: Sequence[str]) -> TitleWords:
        """Of a whole catalogue."""
        rows = [words_of(title) for title in titles]
        number: dict[str, int] = {}
        numbers = [number.setdefault(word, len(number)) for row in rows for word in row]
        word_T = np.array(numbers, np.int32)
        seen_W = np.bincount(word_T, minlength=len(number))
        idf_W = 1.0 + np.log((1.0 + len(titles)) / (1.0 + seen_W))
        mark_W = np.array([mark_of(word) for word in number], np.int64)
        return TitleWords(mark_W, idf_W.astype(np.float32), _starts(rows), word_T)

    @cached_property
    def _number(self) -> dict[int, int]:
        return {mark: number for number, mark in enumerate(self.mark_W.tolist())}

    @cached_property
    def weight_T(self) -> np.ndarray:  # noqa: N802
        """float64; a title's squares sum to 1."""
        weight_T = self.idf_W[self.word_T].astype(np.float64)
        title_T = np.repeat(np.arange(self.n_items), np.diff(self.start_I1))
        length_I = np.sqrt(np.bincount(title_T, weight_T**2, self.n_items))
        return weight_T / length_I[title_T]

    def worded(self, titles: Iterable[str]) -> TitleWords:
        """Other titles, whose new words are numbered on."""
        number, fresh, rows = self._number, dict[int, int](), []
        for title in titles:
            marks = [mark_of(word) for word in words_of(title)]
            rows.append(
                [
                    number[mark]
                    if mark in number
                    else fresh.setdefault(mark, len(number) + len(fresh))
                    for mark in marks
                ]
            )
        rare = 1.0 + np.log((1.0 + self.n_items) / 2.0)
        return TitleWords(
            np.concatenate([self.mark_W, np.array([*fresh], np.int64)]),
            np.concatenate([self.idf_W, np.full(len(fresh), rare, np.float32)]),
            _starts(rows),
            np.array([word for row in rows for word in row], np.int32),
        )

    def alike(self, history_LH: np.ndarray, items_LK: np.ndarray) -> np.ndarray:
        """Cosines of titles, float32 (L, H, K)."""
        width = history_LH.shape[1]
        items_LX = np.concatenate([history_LH, items_LK], 1, dtype=np.int64)
        found_LHK = np.empty((*history_LH.shape, items_LK.shape[1]), np.float32)
        for begin in range(0, len(items_LX), LISTS_AT_ONCE):
            at = slice(begin, begin + LISTS_AT_ONCE)
            weight_LXV = self._table(items_LX[at])
            past_LHV, items_LKV = weight_LXV[:, :width], weight_LXV[:, width:]
            found_LHK[at] = past_LHV @ items_LKV.transpose(0, 2, 1)
        return found_LHK

    def _table(self, items_LX: np.ndarray) -> np.ndarray:
        """Weights of words by list and item, float64 (L, X, V); each list has a V of its own."""
        place_X, item_X = np.arange(items_LX.size), items_LX.ravel()
        parts = [self._entries(place_X, item_X)]
        if self.newcomers is not None:
            parts.append(self.newcomers._entries(place_X, item_X - self.n_items))
        place_T, word_T, weight_T = map(np.concatenate, zip(*parts, strict=True))
        list_T = place_T // items_LX.shape[1]
        most = int(word_T.max(initial=0)) + 1
        key_V, column_T = np.unique(list_T * most + word_T, return_inverse=True)
        first_L = key_V.searchsorted(np.arange(len(items_LX) + 1) * most)
        table_XV = np.zeros((items_LX.size, int(np.diff(first_L).max(initial=0))))
        table_XV[place_T, column_T - first_L[list_T]] = weight_T
        return table_XV.reshape(*items_LX.shape, -1)

    def _entries(self, place_X: np.ndarray, item_X: np.ndarray) -> tuple[np.ndarray, ...]:
        """(place, word, weight) of every word of the items that are here."""
        here_X = (item_X >= 0) & (item_X < self.n_items)
        place_X, item_X = place_X[here_X], item_X[here_X]
        length_X = self.start_I1[item_X + 1] - self.start_I1[item_X]
        skip_X = self.start_I1[item_X] - (np.cumsum(length_X) - length_X)
        at_T = np.arange(int(length_X.sum())) + np.repeat(skip_X, length_X)
        return np.repeat(place_X, length_X), self.word_T[at_T], self.weight_T[at_T]


def _starts(rows: Sequence[Sequence[int]] | Sequence[Sequence[str]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
