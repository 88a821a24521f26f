"""What items are, whoever bought them: brand, category path, text vector.

Contract: `Attributes` holds them by item number; equal numbers mean equal brands, and equal paths
down to a level. `category_match` says how much of two paths is shared. Not here: words of titles
(`titles`), what of it speaks for a candidate (`measures`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffgr2.types import Catalogue


@dataclass(frozen=True)
class Attributes:
    """By item number, or in the shape of the items that were asked for."""

    brand_I: np.ndarray  # int32, -1 unknown
    category_ID: np.ndarray  # int32, number of each path prefix, -1 beyond the path's end
    vectors_IE: np.ndarray  # float32, unit rows or zero

    @staticmethod
    def build(catalogue: Catalogue, vectors_IE: np.ndarray) -> Attributes:
        """Of a catalogue; `vectors_IE` are unit rows or zero."""
        names = sorted({brand for brand in catalogue.brands if brand})
        number = {name: i for i, name in enumerate(names)}
        brand_I = np.array([number.get(brand, -1) for brand in catalogue.brands], np.int32)
        return Attributes(brand_I, category_numbers(catalogue.categories), vectors_IE)

    def of(self, items: np.ndarray) -> Attributes:
        """Those of these items, in the shape of `items`; copies."""
        return Attributes(self.brand_I[items], self.category_ID[items], self.vectors_IE[items])

    @cached_property
    def brand_sizes(self) -> np.ndarray:
        """Items of each brand, float32, by its number; the last is that of none."""
        known_I = self.brand_I[self.brand_I >= 0]
        size_B = np.bincount(known_I, minlength=int(known_I.max(initial=-1)) + 1)
        return np.append(size_B, 0).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is stored, by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def category_numbers(categories: list[list[str]]) -> np.ndarray:
    """Each path prefix gets a number, so equal numbers at a depth mean equal paths up to it."""
    depth = max([1, *(len(path) for path in categories)])
    numbers: dict[tuple[str, ...], int] = {}
    result_ID = np.full((len(categories), depth), -1, np.int32)
    for item, path in enumerate(categories):
        for level in range(len(path)):
            key = tuple(path[: level + 1])
            result_ID[item, level] = numbers.setdefault(key, len(numbers))
    return result_ID


def category_match(past: Attributes, items: Attributes) -> np.ndarray:
    """Length of the shared path over the longer path, float32 (L, H, K)."""
    one_LH1D, two_L1KD = past.category_ID[:, :, None], items.category_ID[:, None]
    shared_LHK = ((one_LH1D == two_L1KD) & (one_LH1D >= 0)).sum(-1, dtype=np.float32)
    longest_LHK = np.maximum((one_LH1D >= 0).sum(-1), (two_L1KD >= 0).sum(-1))
    return shared_LHK / np.maximum(longest_LHK, 1)
