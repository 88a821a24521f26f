"""Accept rules: which masked positions commit in this step (paper §3.3).

Contract: each rule takes the confidence of every position's chosen token, which positions are still
masked, and returns a non-empty subset of the masked ones. Confidence is the *unfiltered* softmax
probability: after top-k filtering it would be 1 for everything. Pure NumPy functions of one row's
canvas. Not here: which token a position wants (`answer_rule`) and sampling (`draw`).
"""

import numpy as np


def _with_surest(
    commit_T: np.ndarray, confidence_T: np.ndarray, masked_T: np.ndarray
) -> np.ndarray:
    """Add the single surest masked position, so that every step makes progress."""
    score_T = np.where(masked_T, confidence_T, -np.inf)
    commit_T = commit_T & masked_T
    commit_T[int(score_T.argmax())] |= bool(masked_T.any())
    return commit_T & masked_T


def threshold(confidence_T: np.ndarray, masked_T: np.ndarray, tau: float) -> np.ndarray:
    """Everything surer than tau, plus the surest: tau = 1 is one token a step.

    >>> threshold(np.array([.95, .2, .91]), np.array([True, True, True]), .9).tolist()
    [True, False, True]
    """
    return _with_surest(confidence_T > tau, confidence_T, masked_T)


def static(confidence_T: np.ndarray, masked_T: np.ndarray, per_step: int) -> np.ndarray:
    """The `per_step` surest positions."""
    order_T = np.argsort(-np.where(masked_T, confidence_T, -np.inf), kind="stable")
    commit_T = np.zeros_like(masked_T)
    commit_T[order_T[:per_step]] = True
    return _with_surest(commit_T, confidence_T, masked_T)


def entropy_bounded(
    confidence_T: np.ndarray, masked_T: np.ndarray, entropy_T: np.ndarray, bound: float
) -> np.ndarray:
    """The most certain positions whose joint entropy in excess of the largest stays within `bound`.

    The excess bounds what independent commits can lose against the joint distribution.
    """
    order_M = np.argsort(np.where(masked_T, entropy_T, np.inf), kind="stable")[: masked_T.sum()]
    sorted_M = entropy_T[order_M]
    commit_T = np.zeros_like(masked_T)
    commit_T[order_M[np.cumsum(sorted_M) - sorted_M <= bound]] = True
    return _with_surest(commit_T, confidence_T, masked_T)
