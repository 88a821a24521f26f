"""One vector per item from its words: TF-IDF + SVD by default, sentence-transformers on request.

Contract: `fit_vectors(texts, config, seed)` returns the L2-normalised float32 vectors and a
`TextVectors` that maps new texts into the same space; `save`/`load` keep it without pickling. The
same texts, seed and thread count give the same bits. A text without a known word has the zero
vector. Not here: quantization (`items.quantize`), or any use of interactions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.config import ItemsConfig
from diffgr2.errors import ConfigError, DataError, MissingExtraError, first_line
from diffgr2.streams import key_of
from diffgr2.types import Catalogue

MAX_TERMS = 60_000  # most frequent 1- and 2-grams kept; bounds the size of the saved encoder
SENTENCE_PREFIX = "sentence-transformers:"
FIELD_BREAK = "\n"  # separates the fields of one item's text; a 2-gram never reaches over it
WORD = re.compile(r"\w+")


def item_text(title: str, brand: str, categories: Sequence[str], description: str) -> str:
    """The fields of one item as one text, a line each (empty fields leave no line)."""
    fields = [title, brand, *categories, description]
    lines = (" ".join(field.split()) for field in fields)
    return FIELD_BREAK.join(line for line in lines if line)


def catalogue_texts(catalogue: Catalogue) -> list[str]:
    """`item_text` of every item, in item order."""
    c = catalogue
    columns = (c.titles, c.brands, c.categories, c.descriptions)
    return [item_text(*fields) for fields in zip(*columns, strict=True)]


def terms(text: str) -> list[str]:
    """Lower-cased words and pairs of neighbouring words, field by field."""
    result: list[str] = []
    for line in text.lower().split(FIELD_BREAK):
        words = WORD.findall(line)
        result.extend(words)
        result.extend(f"{a} {b}" for a, b in pairwise(words))
    return result


def unit_rows(vectors_ID: np.ndarray, least: float = 1e-12) -> np.ndarray:
    """Rows scaled to length 1 as float32; those shorter than `least` stay (next to) zero."""
    norms_I1 = np.linalg.norm(vectors_ID, axis=1, keepdims=True)
    return (vectors_ID / np.maximum(norms_I1, least)).astype(np.float32)


@dataclass(frozen=True)
class TextVectors:
    """A fitted text-to-vector map. `sentence_model` set: the other fields are empty."""

    vocabulary: list[str]  # term of each column
    idf_V: np.ndarray  # float32
    components_DV: np.ndarray  # float32; rows beyond the data's rank are zero
    sentence_model: str | None = None

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of new texts, one row each."""
        if not texts:
            return np.zeros((0, len(self.components_DV)), np.float32)
        if self.sentence_model is not None:
            return _sentence_vectors(self.sentence_model, texts)
        return unit_rows(np.stack([self._vector(text) for text in texts]))

    @cached_property
    def _column(self) -> dict[str, int]:
        return {term: column for column, term in enumerate(self.vocabulary)}

    def _vector(self, text: str) -> np.ndarray:
        """What `fit_vectors` computes for a text of the catalogue, term by term in the same order.

        It needs no scikit-learn, which a server does without.
        """
        found = Counter(self._column[term] for term in terms(text) if term in self._column)
        columns_T = np.array(sorted(found), np.int64)
        count_T = np.array([found[column] for column in columns_T.tolist()], np.float32)
        weight_T = (1.0 + np.log(count_T)) * self.idf_V[columns_T]
        length = np.sqrt((weight_T * weight_T).sum(dtype=np.float64))
        weight_T = (weight_T / (length or 1.0)).astype(np.float32)
        return (weight_T[:, None] * self.components_DV.T[columns_T]).sum(0)

    def save(self, directory: Path) -> None:
        """Write `vectorizer.json` and `vectorizer.safetensors`."""
        header = {"sentence_model": self.sentence_model, "vocabulary": self.vocabulary}
        write_json(directory / "vectorizer.json", header)
        arrays = {"idf_V": self.idf_V, "components_DV": self.components_DV}
        save_arrays(directory / "vectorizer.safetensors", **arrays)

    @classmethod
    def load(cls, directory: Path) -> TextVectors:
        """Read what `save` wrote."""
        header: dict[str, Any] = read_json(directory / "vectorizer.json")
        arrays: dict[str, Any] = load_arrays(directory / "vectorizer.safetensors")
        return cls(**header, **arrays)


def _counter(**options: Any) -> Any:
    """scikit-learn's counter over `terms` (imported late: it is slow to load)."""
    from sklearn.feature_extraction import text

    kind: Any = text.CountVectorizer  # its stubs know no callable analyzer
    return kind(analyzer=terms, dtype=np.float32, **options)


def _weigh(counts_IV: Any, idf_V: np.ndarray) -> Any:
    """Sublinear term frequency times idf, rows normalised (in place, sparse)."""
    from sklearn.preprocessing import normalize

    counts_IV = counts_IV.tocsr()
    counts_IV.sort_indices()  # sums run in one order, whether the row was fitted or read later
    counts_IV.data = 1.0 + np.log(counts_IV.data)
    counts_IV.data *= idf_V[counts_IV.indices]
    return normalize(counts_IV, copy=False)


def _count(texts: Sequence[str]) -> tuple[Any, list[str]]:
    """Term counts and the vocabulary kept, in alphabetical order."""
    # A term of one item only tells nothing about its likeness to others; small catalogues and
    # catalogues without any shared word keep all they have.
    for least in (2, 1) if len(texts) >= 1_000 else (1,):
        counter = _counter(min_df=least, max_features=MAX_TERMS)
        try:
            counts_IV = counter.fit_transform(texts)
        except ValueError:  # no term is left
            continue
        return counts_IV, counter.get_feature_names_out().tolist()
    raise DataError("items: no item has any word in title, brand, categories or description")


def _components(weighted_IV: Any, dim: int, seed: int) -> np.ndarray:
    """The leading right singular vectors; each one's largest entry is positive."""
    from sklearn.decomposition import TruncatedSVD

    rank = min(dim, *weighted_IV.shape)
    components_DV = np.zeros((dim, weighted_IV.shape[1]), dtype=np.float32)
    if rank == weighted_IV.shape[1]:  # no more terms than dimensions: nothing to reduce
        components_DV[:rank] = np.eye(rank, dtype=np.float32)
        return components_DV
    state = key_of(seed, "items", "svd") % 2**32
    with np.errstate(invalid="ignore"):  # explained variance of a single row is 0/0
        svd: Any = TruncatedSVD(rank, n_iter=5, random_state=state).fit(weighted_IV)
    found_DV = svd.components_.astype(np.float32)
    peaks_D = found_DV[np.arange(rank), np.abs(found_DV).argmax(axis=1)]
    components_DV[:rank] = found_DV * np.where(peaks_D < 0, -1.0, 1.0)[:, None]
    return components_DV


def _sentence_vectors(model: str, texts: Sequence[str]) -> np.ndarray:
    try:
        from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found]
    except ImportError:
        raise MissingExtraError(
            f"items.vectors {SENTENCE_PREFIX}{model} needs the extra `text`: "
            "pip install 'diffgr2[text]'"
        ) from None
    try:
        encoder = SentenceTransformer(model, device="cpu")
    except Exception as error:  # a hub, a path, a config: many ways to fail, one line for all
        reason = first_line(error)
        raise ConfigError(f"items.vectors: model {model} cannot be loaded ({reason})") from None
    return unit_rows(encoder.encode(list(texts), convert_to_numpy=True, show_progress_bar=False))


def fit_vectors(
    texts: Sequence[str], config: ItemsConfig, seed: int
) -> tuple[np.ndarray, TextVectors]:
    """Vectors of all items and the map for items to come."""
    if config.vectors.startswith(SENTENCE_PREFIX):
        nothing_V, nothing_DV = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)
        name = config.vectors.removeprefix(SENTENCE_PREFIX)
        model = TextVectors([], nothing_V, nothing_DV, name)
        return model(texts), model
    counts_IV, vocabulary = _count(texts)
    seen_V = np.bincount(counts_IV.indices, minlength=len(vocabulary))
    idf_V = (1.0 + np.log((1.0 + len(texts)) / (1.0 + seen_V))).astype(np.float32)
    weighted_IV = _weigh(counts_IV, idf_V)
    components_DV = _components(weighted_IV, config.vector_dim, seed)
    fitted = TextVectors(vocabulary, idf_V, components_DV)
    return unit_rows(weighted_IV @ components_DV.T), fitted
