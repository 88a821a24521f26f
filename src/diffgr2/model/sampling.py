"""Log-probabilities and draws over plain arrays: what views and decoders share.

Contract: pure numpy, in float64; randomness comes as uniforms, so that it stays with the caller.
Not here: what may be drawn (`decode.grammar`), the model (`session`).
"""

import numpy as np

from diffgr2.errors import DecodeError


def log_normalised(x_NA: np.ndarray) -> np.ndarray:
    """Log-probabilities along the last axis; a row without a finite entry is a DecodeError.

    >>> np.exp(log_normalised(np.log([[1.0, 3.0]]))).round(2).tolist()
    [[0.25, 0.75]]
    """
    top_N1 = x_NA.max(-1, keepdims=True)
    if not np.isfinite(top_N1).all():
        raise DecodeError("of the tokens that may stand here none has a probability")
    shifted_NA = x_NA.astype(np.float64) - top_N1
    return shifted_NA - np.log(np.exp(shifted_NA).sum(-1, keepdims=True))


def inverse_transform(logp_NA: np.ndarray, uniform_N: np.ndarray) -> np.ndarray:
    """One index each; what has probability zero is never drawn."""
    cumulative_NA = np.cumsum(np.exp(logp_NA), axis=-1)
    total_N = cumulative_NA[:, -1]
    target_N = np.minimum(uniform_N * total_N, np.nextafter(total_N, 0.0))  # never past the last
    return (cumulative_NA <= target_N[:, None]).sum(-1)


def entropy(logp_NA: np.ndarray) -> np.ndarray:
    """Entropy [N] in nats; −inf log-probabilities count 0."""
    return -(np.exp(logp_NA) * np.where(np.isneginf(logp_NA), 0.0, logp_NA)).sum(-1)
