"""A fitted residual quantizer: vector -> latent -> one code per level.

Contract: `Quantizer` is plain arrays: codebooks; for RQ-VAE the encoder's and decoder's weights;
for a blend the map from text to co-purchases. `codes` takes each level's nearest code of what the
levels before left over, which a `unit` quantizer scales to length 1 first: small differences
between like items then still count at the last level. `fit_blend` (items.blend), `fit_rqvae`
(items.rqvae) and `fit_rkmeans` (here) return one. An `Encoder` is the fitted text vectors plus the
quantizer; after `save` and `load` it gives the same bits. Not here: uniqueness
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
from diffgr2.items.vectors import TextVectors, unit_rows
from diffgr2.streams import generator

DUST = 1e-6  # shorter residuals are what rounding left; they are not scaled up


@dataclass(frozen=True)
class Quantizer:
    """Codebooks in latent space; without weights, the latent is the vector itself."""

    codebooks_LCD: np.ndarray  # float32
    weights: dict[str, np.ndarray] = field(default_factory=dict)  # encoder.0.weight, ...
    unit: bool = False  # residuals have length 1

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
        """What is quantized; a blend expects of an item what is bought with such texts."""
        if "text_DT" in self.weights:
            text_IT = unit_rows(vectors_ID @ self.weights["text_DT"])
            return np.hstack([text_IT, self.mlp("bought", vectors_ID)])
        return self.mlp("encoder", vectors_ID)

    def codes(self, vectors_ID: np.ndarray) -> np.ndarray:
        """Nearest codes per level, int32 (items, levels)."""
        return self.walk(self.latent(vectors_ID))[0]

    def walk(self, latents_IE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nearest codes per level, and each latent's squared error after the last."""
        rest_IE, columns = latents_IE.astype(np.float32), []
        error_I = np.square(rest_IE).sum(axis=1)
        for level, codes_CE in enumerate(self.codebooks_LCD):
            columns.append(nearest(rest_IE, codes_CE))
            gap_I = np.square(rest_IE - codes_CE[columns[-1]]).sum(axis=1)
            error_I *= gap_I / np.maximum(np.square(rest_IE).sum(axis=1), DUST**2)
            rest_IE = self.left(rest_IE, level, columns[-1])
        return np.stack(columns, axis=1), error_I

    def left(self, rest_IE: np.ndarray, level: int, code_I: np.ndarray) -> np.ndarray:
        """What the next level sees of what one level's codes leave over."""
        return left_over(rest_IE, self.codebooks_LCD[level], code_I, unit=self.unit)

    def save(self, path: Path) -> None:
        """Write one safetensors file."""
        unit = {"unit": np.ones(1, np.int32)} if self.unit else {}
        save_arrays(path, codebooks_LCD=self.codebooks_LCD, **unit, **self.weights)

    @classmethod
    def load(cls, path: Path) -> Quantizer:
        """Read what `save` wrote."""
        arrays = load_arrays(path)
        unit = bool(arrays.pop("unit", np.zeros(1))[0])
        return cls(arrays.pop("codebooks_LCD"), arrays, unit)


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


def left_over(
    rest_IE: np.ndarray, codes_CE: np.ndarray, code_I: np.ndarray, *, unit: bool
) -> np.ndarray:
    """What a level's codes leave of its residuals, at length 1 where that is asked for."""
    gap_IE = rest_IE - codes_CE[code_I]
    return unit_rows(gap_IE, DUST) if unit else gap_IE


def fit_codebooks(
    latents_IE: np.ndarray, levels: int, codes: int, *purpose: str | int, unit: bool = False
) -> np.ndarray:
    """k-means on the residuals of each level in turn."""
    rest_IE = latents_IE.astype(np.float32, copy=True)
    books = []
    for level in range(levels):
        books.append(kmeans(rest_IE, codes, generator(*purpose, "kmeans", level)))
        rest_IE = left_over(rest_IE, books[-1], nearest(rest_IE, books[-1]), unit=unit)
    return np.stack(books)


def fit_rkmeans(vectors_ID: np.ndarray, config: ItemsConfig, seed: int) -> Quantizer:
    """Residual k-means on the vectors as they are."""
    books_LCD = fit_codebooks(vectors_ID, config.levels, config.codes, seed, "items", "rkmeans")
    return Quantizer(books_LCD)
