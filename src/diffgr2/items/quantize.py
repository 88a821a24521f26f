"""A fitted residual quantizer: vector -> latent -> one code per level.

Contract: `Quantizer` is plain arrays (codebooks and, for RQ-VAE, the encoder's and decoder's
weights). `codes` takes each level's nearest code of what the levels before left over. Both
`fit_rqvae` (items.rqvae) and `fit_rkmeans` (here) return one. An `Encoder` is the fitted text
vectors plus the quantizer; after `save` and `load` it gives the same bits. Not here: uniqueness
(`items.uniqueness`); two items may get the same natural codes, which says that they are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.config import ItemsConfig
from diffgr2.items.kmeans import kmeans, nearest
from diffgr2.items.vectors import TextVectors
from diffgr2.streams import generator


@dataclass(frozen=True)
class Quantizer:
    """Codebooks in latent space; without weights, the latent is the vector itself."""

    codebooks_LCD: np.ndarray  # float32
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # encoder.0.weight, ...

    def mlp(self, part: str, x_ID: np.ndarray) -> np.ndarray:
        """One part of the network (`encoder`, `decoder`), ReLU between its layers."""
        depth = sum(name.startswith(part) for name in self.weights) // 2
        for layer in range(depth):
            weight_OD = self.weights[f"{part}.{layer}.weight"]
            x_ID = x_ID @ weight_OD.T + self.weights[f"{part}.{layer}.bias"]
            if layer < depth - 1:
                x_ID = np.maximum(x_ID, 0.0)
        return x_ID

    def latent(self, vectors_ID: np.ndarray) -> np.ndarray:
        """What is quantized."""
        return self.mlp("encoder", vectors_ID)

    def codes(self, vectors_ID: np.ndarray) -> np.ndarray:
        """Nearest codes per level, int32 (items, levels)."""
        return residual_codes(self.latent(vectors_ID), self.codebooks_LCD)

    def quantized(self, codes_IL: np.ndarray) -> np.ndarray:
        """Sum of the codes' vectors."""
        return self.codebooks_LCD[np.arange(codes_IL.shape[1]), codes_IL].sum(axis=1)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        save_arrays(path, codebooks_LCD=self.codebooks_LCD, **self.weights)

    @classmethod
    def load(cls, path: Path) -> Quantizer:
        """Read what `save` wrote."""
        arrays = load_arrays(path)
        return cls(arrays.pop("codebooks_LCD"), arrays)


@dataclass(frozen=True)
class Encoder:
    """What turns an item's text (`vectors.item_text`) into codes, known to the catalogue or not."""

    vectors: TextVectors
    quantizer: Quantizer

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (float32) and natural codes (int32), one row per text."""
        vectors_ND = self.vectors(texts)
        return vectors_ND, self.quantizer.codes(vectors_ND)

    def save(self, directory: Path) -> None:
        """Write `vectorizer.json`, `vectorizer.safetensors`, `quantizer.safetensors`."""
        self.vectors.save(directory)
        self.quantizer.save(directory / "quantizer.safetensors")

    @classmethod
    def load(cls, directory: Path) -> Encoder:
        """Read what `save` wrote."""
        quantizer = Quantizer.load(directory / "quantizer.safetensors")
        return cls(TextVectors.load(directory), quantizer)


def residual_codes(latents_IE: np.ndarray, codebooks_LCD: np.ndarray) -> np.ndarray:
    """Nearest code of the residual, level after level."""
    rest_IE = latents_IE.astype(np.float32, copy=True)
    columns = []
    for codes_CE in codebooks_LCD:
        columns.append(nearest(rest_IE, codes_CE))
        rest_IE -= codes_CE[columns[-1]]
    return np.stack(columns, axis=1)


def fit_codebooks(
    latents_IE: np.ndarray, levels: int, codes: int, *purpose: str | int
) -> np.ndarray:
    """k-means on the residuals of each level in turn."""
    rest_IE = latents_IE.astype(np.float32, copy=True)
    books = []
    for level in range(levels):
        books.append(kmeans(rest_IE, codes, generator(*purpose, "kmeans", level)))
        rest_IE -= books[-1][nearest(rest_IE, books[-1])]
    return np.stack(books)


def fit_rkmeans(vectors_ID: np.ndarray, config: ItemsConfig, seed: int) -> Quantizer:
    """Residual k-means on the vectors as they are."""
    books_LCD = fit_codebooks(vectors_ID, config.levels, config.codes, seed, "items", "rkmeans")
    return Quantizer(books_LCD)
