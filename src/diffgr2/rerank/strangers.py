"""Attributes of items that the catalogue does not know, for the evidence index.

Contract: `Seats(index, catalogue).seat(strangers, vectors)` is the same index, nothing copied, in
which the strangers are the items `n_items`, `n_items + 1`, …: brand, category and text evidence
come from the one implementation, every count is zero, and evidence of known items does not change
by a bit. Not here: where a stranger's vector comes from (`items.encode`), semantic IDs, prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffgr2.candidates.index import Attributes, EvidenceIndex
from diffgr2.items.vectors import unit_rows
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


class Seats:
    """See the module's docstring."""

    def __init__(self, index: EvidenceIndex, catalogue: Catalogue) -> None:
        self.index, self.n_items = index, len(catalogue)
        known = index.attributes
        self._brand = dict(zip(catalogue.brands, known.brand_I.tolist(), strict=True))
        self._path: dict[tuple[str, ...], int] = {}
        for path, number_D in zip(catalogue.categories, known.category_ID.tolist(), strict=True):
            for depth in range(len(path)):
                self._path[tuple(path[: depth + 1])] = number_D[depth]

    def seat(self, strangers: Sequence[Stranger], vectors_SE: np.ndarray) -> EvidenceIndex:
        """The index with these strangers, whose text vectors these are."""
        if not strangers:
            return self.index
        brand_S = np.array([self._brand.get(s.brand, -1) for s in strangers], np.int32)
        depth = self.index.attributes.category_ID.shape[1]
        category_SD = np.full((len(strangers), depth), -1, np.int32)
        fresh: dict[tuple[str, ...], int] = {}
        for number_D, stranger in zip(category_SD, strangers, strict=True):
            for level in range(min(len(stranger.categories), depth)):
                # A path nobody has gets a number of its own, so that its length still counts.
                path = stranger.categories[: level + 1]
                other = fresh.setdefault(path, NEW_PATH + len(fresh))
                number_D[level] = self._path.get(path, other)
        newcomers = Attributes(brand_S, category_SD, unit_rows(vectors_SE))
        return replace(self.index, newcomers=newcomers)
