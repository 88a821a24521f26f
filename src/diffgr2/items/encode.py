"""Text -> vector -> codes, for the catalogue and for items that it does not know yet.

Contract: an `Encoder` is the fitted text vectors plus the fitted quantizer; after `save` and `load`
(JSON and safetensors) it gives the same bits. Codes are natural ones: the ID of an unknown item
may be that of a catalogue item, which says that the two are alike. Not here: the catalogue's own
unique IDs (`items.sids`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffgr2.items.quantize import Quantizer
from diffgr2.items.vectors import TextVectors

QUANTIZER_FILE = "quantizer.safetensors"


@dataclass(frozen=True)
class Encoder:
    """What turns an item's text (`vectors.item_text`) into codes."""

    vectors: TextVectors
    quantizer: Quantizer

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (float32) and natural codes (int32), one row per text."""
        vectors_ND = self.vectors(texts)
        return vectors_ND, self.quantizer.codes(vectors_ND)

    def save(self, directory: Path) -> None:
        """Write `vectorizer.json`, `vectorizer.safetensors`, `quantizer.safetensors`."""
        self.vectors.save(directory)
        self.quantizer.save(directory / QUANTIZER_FILE)

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """Read what `save` wrote."""
        return cls(TextVectors.load(directory), Quantizer.load(directory / QUANTIZER_FILE))
