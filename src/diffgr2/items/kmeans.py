"""k-means on a few tens of thousands of rows, deterministic and without empty clusters.

Contract: `kmeans(x_ND, k, rng)` returns k centres (k-means++ seeds, Lloyd steps, an empty cluster
moves to the row that is worst served). Fewer rows than centres is fine: the rows themselves and
slightly shifted copies. Not here: residual levels (`items.quantize`).
"""

import numpy as np

MAX_ROWS = 65_536  # that Lloyd steps look at; a random sample stands for larger catalogues
SEED_ROWS = 16_384  # that k-means++ draws its seeds from
MAX_CAREFUL_SEEDS = 4_096  # above, they are drawn uniformly: k-means++ is one pass per centre


def distances(x_ND: np.ndarray, centres_CD: np.ndarray) -> np.ndarray:
    """Squared distances up to the constant |x|^2 per row (enough to compare centres)."""
    norms_C = np.einsum("cd,cd->c", centres_CD, centres_CD)
    return norms_C - 2.0 * (x_ND @ centres_CD.T)


def nearest(x_ND: np.ndarray, centres_CD: np.ndarray) -> np.ndarray:
    """Index of the nearest centre per row, the lowest on ties; in chunks of bounded memory."""
    step = max(1, 2**22 // len(centres_CD))
    label_N = np.empty(len(x_ND), np.int32)
    for start in range(0, len(x_ND), step):
        chunk = slice(start, start + step)
        label_N[chunk] = distances(x_ND[chunk], centres_CD).argmin(axis=1)
    return label_N


def _seeds(x_ND: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    if len(x_ND) > max(SEED_ROWS, k):
        x_ND = x_ND[rng.permutation(len(x_ND))[: max(SEED_ROWS, k)]]
    if k > MAX_CAREFUL_SEEDS:
        return x_ND[rng.permutation(len(x_ND))[:k]].copy()
    chosen = [int(rng.integers(len(x_ND)))]
    gap_N = np.full(len(x_ND), np.inf)
    for _ in range(k - 1):
        gap_N = np.minimum(gap_N, ((x_ND - x_ND[chosen[-1]]) ** 2).sum(axis=1))
        total_N = np.cumsum(gap_N)
        if total_N[-1] <= 0.0:  # all rows are seeds already (duplicates)
            chosen.append(int(rng.integers(len(x_ND))))
            continue
        drawn = int(np.searchsorted(total_N, rng.random() * total_N[-1], side="right"))
        chosen.append(min(drawn, len(x_ND) - 1))
    return x_ND[chosen].copy()


def kmeans(x_ND: np.ndarray, k: int, rng: np.random.Generator, iterations: int = 20) -> np.ndarray:
    """k centres of the rows, float32."""
    if len(x_ND) > max(MAX_ROWS, 4 * k):
        x_ND = x_ND[np.sort(rng.permutation(len(x_ND))[: max(MAX_ROWS, 4 * k)])]
    if len(x_ND) <= k:
        # Every row is its own centre; the rest are near copies, so that they can serve as
        # alternatives for rows that would otherwise share a code.
        copies_D = x_ND[np.arange(k) % len(x_ND)].astype(np.float32)
        shift_D = rng.standard_normal(copies_D.shape).astype(np.float32)
        scale = 1e-2 * float(np.abs(x_ND).mean() + 1e-6)
        shift_D[: len(x_ND)] = 0.0
        return copies_D + scale * shift_D
    centres_CD = _seeds(x_ND, k, rng)
    squares_N = np.einsum("nd,nd->n", x_ND, x_ND)
    for _ in range(iterations):
        label_N = nearest(x_ND, centres_CD)
        order_N = np.argsort(label_N, kind="stable")
        count_C = np.bincount(label_N, minlength=k)
        used_C = count_C > 0
        starts_C = np.concatenate([[0], np.cumsum(count_C)[:-1]])[used_C]
        before_CD = centres_CD.copy()
        sums_CD = np.add.reduceat(x_ND[order_N].astype(np.float64), starts_C, axis=0)
        centres_CD[used_C] = sums_CD / count_C[used_C, None]
        if not used_C.all():
            error_N = squares_N + np.einsum(
                "nd,nd->n", centres_CD[label_N], centres_CD[label_N] - 2.0 * x_ND
            )
            worst_N = np.argsort(-error_N, kind="stable")
            centres_CD[~used_C] = x_ND[worst_N[: int((~used_C).sum())]]
        if np.array_equal(before_CD, centres_CD):
            break
    return centres_CD.astype(np.float32)
