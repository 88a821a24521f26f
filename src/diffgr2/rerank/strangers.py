"""Seats in the evidence index for items that the catalogue does not know.

Contract: `Seats(index, catalogue, spare)` is the same index with `spare` more item numbers that
nobody ever bought; `seat(strangers)` returns an index in which the first of them carry the given
attributes and text vectors, so that brand, category and text evidence are computed by the one
implementation and every count is zero. Evidence of known items does not change by a bit. Not here:
where a stranger's vector comes from (`items.encode`), semantic IDs, prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffgr2.candidates.index import EvidenceIndex
from diffgr2.types import Catalogue

NEW_PATH = 1 << 30
"""Numbers of category paths that no catalogue item has begin here."""


@dataclass(frozen=True)
class Stranger:
    """An item by its words: what may be known of it without any purchase."""

    title: str
    brand: str = ""
    categories: tuple[str, ...] = ()
    description: str = ""


def with_room(index: EvidenceIndex, spare: int) -> EvidenceIndex:
    """The same index over `n_items + spare` items; keys are re-made, their order stays."""
    pairs, n = index.pairs, index.pairs.n_items
    wide = n + spare

    def rekeyed(key_X: np.ndarray) -> np.ndarray:
        return key_X // n * wide + key_X % n

    def longer(array: np.ndarray, fill: int) -> np.ndarray:
        tail = np.full((spare, *array.shape[1:]), fill, array.dtype)
        return np.concatenate([array, tail])

    return replace(
        index,
        pairs=replace(
            pairs,
            n_items=wide,
            pair_P=rekeyed(pairs.pair_P),
            key_M=rekeyed(pairs.key_M),
            buyers_I=longer(pairs.buyers_I, 0),
        ),
        brand_I=longer(index.brand_I, -1),
        category_ID=longer(index.category_ID, -1),
        vectors_IE=longer(index.vectors_IE, 0),
    )


class Seats:
    """See the module's docstring."""

    def __init__(self, index: EvidenceIndex, catalogue: Catalogue, spare: int) -> None:
        self.n_items, self.spare = len(catalogue), spare
        self.index = with_room(index, spare)
        self._brand = dict(zip(catalogue.brands, index.brand_I.tolist(), strict=True))
        self._path: dict[tuple[str, ...], int] = {}
        for path, number_D in zip(catalogue.categories, index.category_ID.tolist(), strict=True):
            for depth in range(len(path)):
                self._path[tuple(path[: depth + 1])] = number_D[depth]

    def seat(self, strangers: Sequence[Stranger], vectors_SE: np.ndarray) -> EvidenceIndex:
        """The index with these strangers as items `n_items`, `n_items + 1`, …"""
        if not strangers:
            return self.index
        assert len(strangers) <= self.spare, "more strangers than seats"
        seats = slice(self.n_items, self.n_items + len(strangers))
        brand_I, category_ID = self.index.brand_I.copy(), self.index.category_ID.copy()
        vectors_IE = self.index.vectors_IE.copy()
        norm_S1 = np.linalg.norm(vectors_SE, axis=1, keepdims=True)
        vectors_IE[seats] = vectors_SE / np.maximum(norm_S1, 1e-9)
        brand_I[seats] = [self._brand.get(s.brand, -1) if s.brand else -1 for s in strangers]
        depth = category_ID.shape[1]
        fresh: dict[tuple[str, ...], int] = {}
        for row, stranger in enumerate(strangers, start=self.n_items):
            for level in range(min(len(stranger.categories), depth)):
                # A path nobody has gets a number of its own, so that its length still counts.
                path = stranger.categories[: level + 1]
                other = fresh.setdefault(path, NEW_PATH + len(fresh))
                category_ID[row, level] = self._path.get(path, other)
        return replace(self.index, brand_I=brand_I, category_ID=category_ID, vectors_IE=vectors_IE)
