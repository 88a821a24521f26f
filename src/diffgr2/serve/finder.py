"""Items of a catalogue by the words that are typed into the page.

Contract: `Finder(catalogue).find(text, most)` gives the first `most` items that have every word of
the text, whatever its case, somewhere in id, title, brand or category. What is compared is made
once: the different words of the catalogue in one row of bytes, and which items have which; so a
search costs by how many different words there are, and by how many items have the rarest of those
that were typed. Not here: what is shown of an item (`page`).
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import islice

import numpy as np

from diffgr2.types import Catalogue

FEW = 512
"""Items that are looked at one by one: the first ones, which have what is common, and the last."""


class Finder:
    """See the module's docstring."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue, number = catalogue, defaultdict[str, int]()
        number.default_factory = number.__len__
        words_P, counts_I = list[int](), list[int]()
        for item in range(len(catalogue)):
            told = self._told(item).split()
            counts_I.append(len(told))
            words_P.extend(map(number.__getitem__, told))
        word_P = np.array(words_P, np.int32)
        by_word_P = np.argsort(word_P, kind="stable")
        self.item_P = np.repeat(np.arange(len(catalogue), dtype=np.int32), counts_I)[by_word_P]
        counts_W = np.bincount(word_P, minlength=len(number))
        self.offsets_W1 = np.concatenate([[0], np.cumsum(counts_W)])
        spelled = ["", *number, ""]  # a blank before and behind each
        self.text_B = np.frombuffer(_bytes(" ".join(spelled)), np.uint8)
        self.blanks = np.flatnonzero(self.text_B == ord(" "))

    def _told(self, item: int) -> str:
        """What an item is found by."""
        known = self.catalogue
        columns = (known.raw_ids, known.titles, known.brands)
        return " ".join([*(column[item] for column in columns), *known.categories[item]]).casefold()

    def find(self, text: str, most: int) -> list[int]:
        """See the module's docstring."""
        typed, n = sorted({*text.casefold().split()}, key=len, reverse=True), len(self.catalogue)
        found, left_I = self._checked(range(min(FEW, n)), typed, most), np.arange(n) >= FEW
        if len(found) == most:
            return found
        for word in typed:  # the longest is the rarest, mostly
            if left_I.sum() > FEW:
                left_I &= self._having(word)
        return found + self._checked(map(int, np.flatnonzero(left_I)), typed, most - len(found))

    def _checked(self, items: Iterable[int], typed: list[str], most: int) -> list[int]:
        """Those that have every word, one by one."""
        having = (i for i in items if all(word in self._told(i) for word in typed))
        return list(islice(having, most))

    def _having(self, typed: str) -> np.ndarray:
        """Which items have a word that holds this one."""
        has_I, wanted = np.zeros(len(self.catalogue), bool), _bytes(typed)
        at = np.flatnonzero(self.text_B[: len(self.text_B) - len(wanted)] == wanted[0])
        for offset, byte in enumerate(wanted[1:], 1):
            at = at[self.text_B[at + offset] == byte]
        words = np.searchsorted(self.blanks, at, "right") - 1
        words = words[np.diff(words, prepend=-1) > 0]
        starts, ends = self.offsets_W1[words], self.offsets_W1[words + 1]
        before = np.cumsum(ends - starts) - (ends - starts)
        places = np.arange((ends - starts).sum()) + np.repeat(starts - before, ends - starts)
        has_I[self.item_P[places]] = True
        return has_I


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # a catalogue may hold half a character
