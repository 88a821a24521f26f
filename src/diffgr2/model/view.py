"""A row's distributions as a NumPy array: the view of every backend whose answers lie in memory.

Contract: see `backend.View`. Not here: where the log-probabilities come from.
"""

import numpy as np

from diffgr2.model.backend import NO_TOKEN, NOTHING_BANNED, Chosen
from diffgr2.model.sampling import inverse_transform, log_normalised


class NumpyView:
    """See `backend.View`."""

    def __init__(self, logp_TV: np.ndarray) -> None:
        self._logp_TV = logp_TV

    def __len__(self) -> int:
        return len(self._logp_TV)

    def among(self, row_N: np.ndarray, tokens_NA: np.ndarray) -> np.ndarray:
        logp_NA = self._logp_TV[row_N[:, None], tokens_NA]
        return np.where(tokens_NA == NO_TOKEN, -np.inf, logp_NA)

    def some(self, row: int, tokens: list[int]) -> list[float]:
        return self._logp_TV[row][tokens].tolist()

    def best(self, row_N: np.ndarray, banned: np.ndarray = NOTHING_BANNED) -> Chosen:
        logp_NV, every = self._logp_TV[row_N], np.arange(len(row_N))
        if not len(banned):
            token_N = logp_NV.argmax(-1)  # the lowest id of equals
            raw_N = logp_NV[every, token_N]
            return token_N, raw_N, raw_N
        allowed_NV = logp_NV.copy()
        allowed_NV[:, banned] = -np.inf
        token_N = allowed_NV.argmax(-1)
        logp_N = log_normalised(allowed_NV)[every, token_N]
        return token_N, logp_N, logp_NV[every, token_N]

    def drawn(
        self,
        row_N: np.ndarray,
        temperature: float,
        uniform_N: np.ndarray,
        banned: np.ndarray = NOTHING_BANNED,
    ) -> Chosen:
        return drawn(self._logp_TV[row_N], temperature, uniform_N, banned)

    def rows(self, row_N: np.ndarray) -> np.ndarray:
        return self._logp_TV[row_N]


def drawn(
    raw_NV: np.ndarray, temperature: float, uniform_N: np.ndarray, banned: np.ndarray
) -> Chosen:
    """One token of each distribution, by inverse transform."""
    allowed_NV = raw_NV.copy()
    allowed_NV[:, banned] = -np.inf
    hot_NV = log_normalised(allowed_NV / temperature)
    token_N = inverse_transform(hot_NV, uniform_N)
    every = np.arange(len(token_N))
    return token_N, hot_NV[every, token_N], raw_NV[every, token_N]
