"""The blend: an item's text beside what is bought together with it, quantised at unit length.

Contract: `bought_vectors(train, dim, seed)` counts, for every two items that one user bought within
`WINDOW` purchases of each other, how often that was; keeps how far the count exceeds what the two
items' own frequencies let expect (positive pointwise mutual information); and returns the leading
singular vectors, rows of length 1, zero for items that were bought with nothing. It sees what it is
given and nothing else: the stage gives it the train part. `fit_blend` puts these vectors beside
the texts' and returns a `Quantizer` of both, which for items that nobody has bought yet (a server's
strangers, a refresh's newcomers) expects by `ridge` from the text what would be bought with them.
Few dimensions of each tell items apart better than many: of many, no level leaves much less behind
than it met, and what is small between like items stays small to the last code. Not here:
uniqueness (`items.uniqueness`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffgr2.config import ItemsConfig
from diffgr2.items.quantize import Quantizer, fit_codebooks
from diffgr2.items.vectors import unit_rows
from diffgr2.streams import key_of
from diffgr2.types import Histories

if TYPE_CHECKING:
    from scipy import sparse

WINDOW = 5  # purchases apart; bounds the pairs of a long history
PENALTY = 1.0  # of the ridge, beside rows of length 1


def together(train: Histories) -> sparse.csr_array:
    """How often two items stood within the window of each other, symmetric, nothing with itself."""
    from scipy import sparse

    n = train.n_items
    user_N = np.repeat(np.arange(train.n_users), train.lengths_U)
    count_II = sparse.csr_array((n, n), dtype=np.float64)
    for distance in range(1, WINDOW + 1):
        early_N, late_N = train.items_N[:-distance], train.items_N[distance:]
        near_N = (user_N[:-distance] == user_N[distance:]) & (early_N != late_N)
        if not near_N.any():
            continue
        pair = (early_N[near_N], late_N[near_N])
        count_II += sparse.csr_array((np.ones(int(near_N.sum())), pair), shape=(n, n))
    return sparse.csr_array(count_II + count_II.T)


def ppmi(count_II: sparse.csr_array) -> sparse.csr_array:
    """log(count * total / (row sum * column sum)) where that is above 0."""
    from scipy import sparse

    sum_I = np.asarray(count_II.sum(axis=1)).ravel()
    pairs = count_II.tocoo()
    expected = sum_I[pairs.row] * sum_I[pairs.col] / max(float(sum_I.sum()), 1.0)
    value = np.log(pairs.data / expected)
    kept = value > 0
    place = (pairs.row[kept], pairs.col[kept])
    return sparse.csr_array((value[kept], place), shape=count_II.shape)


def bought_vectors(train: Histories, dim: int, seed: int) -> np.ndarray:
    """See the module's docstring; float32 (items, dim)."""
    from sklearn.utils.extmath import randomized_svd

    vectors_ID = np.zeros((train.n_items, dim), np.float32)
    matrix_II = ppmi(together(train))
    if not matrix_II.nnz:
        return vectors_ID
    rank = min(dim, train.n_items)
    svd: Any = randomized_svd  # its stubs want n_iter to be text
    state = key_of(seed, "items", "ppmi") % 2**32
    left_IR, value_R, _ = svd(matrix_II, rank, n_iter=4, random_state=state)
    vectors_ID[:, :rank] = unit_rows(left_IR * np.sqrt(value_R), least=1e-6)  # dust stays dust
    return vectors_ID


def ridge(from_ID: np.ndarray, to_IE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(weight_ED, bias_E) of the linear map with the least squared error and `PENALTY` on weights;
    zeros where there is nothing to learn from."""
    if not len(from_ID):
        shape = (to_IE.shape[1], from_ID.shape[1])
        return np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)
    x_ID, y_IE = from_ID.astype(np.float64), to_IE.astype(np.float64)
    centre_D, mean_E = x_ID.mean(0), y_IE.mean(0)
    x_ID -= centre_D
    square_DD = x_ID.T @ x_ID + PENALTY * np.eye(x_ID.shape[1])
    weight_DE = np.linalg.solve(square_DD, x_ID.T @ (y_IE - mean_E))
    return weight_DE.T.astype(np.float32), (mean_E - centre_D @ weight_DE).astype(np.float32)


def leading(vectors_ID: np.ndarray, dim: int) -> np.ndarray:
    """(D, T) the T directions in which vectors extend most, each one's largest entry positive."""
    square_DD = vectors_ID.T.astype(np.float64) @ vectors_ID
    ways_DT = np.linalg.eigh(square_DD)[1][:, ::-1][:, :dim]
    peak_T = ways_DT[np.abs(ways_DT).argmax(axis=0), np.arange(ways_DT.shape[1])]
    return (ways_DT * np.where(peak_T < 0, -1.0, 1.0)).astype(np.float32)


def blended(
    vectors_ID: np.ndarray, bought_IE: np.ndarray, text_dim: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(latents, weights): text beside co-purchases, and what makes such a latent of a text alone.

    Items that were bought with nothing get what is expected of their texts, as new ones will.
    """
    lived_I = bought_IE.any(axis=1)
    weight_ED, bias_E = ridge(vectors_ID[lived_I], bought_IE[lived_I])
    weights = {
        "text_DT": leading(vectors_ID, text_dim),
        "bought.0.weight": weight_ED,
        "bought.0.bias": bias_E,
    }
    nothing_LCX = np.zeros((0, 0, 0), np.float32)
    latents_IX = Quantizer(nothing_LCX, weights).latent(vectors_ID)
    latents_IX[lived_I, -bought_IE.shape[1] :] = bought_IE[lived_I]
    return latents_IX, weights


def fit_blend(
    vectors_ID: np.ndarray, bought_IE: np.ndarray, config: ItemsConfig, seed: int
) -> tuple[Quantizer, np.ndarray]:
    """Residual k-means at unit length on both kinds of vectors; the catalogue's latents, too."""
    bought_IE = np.float32(config.bought_weight) * bought_IE
    latents_IX, weights = blended(vectors_ID, bought_IE, config.text_dim)
    given = (latents_IX, config.levels, config.codes, seed, "items", "blend")
    return Quantizer(fit_codebooks(*given, unit=True), weights, unit=True), latents_IX
