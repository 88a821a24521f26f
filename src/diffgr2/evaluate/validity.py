"""What the raw answers were worth: validity, failure kinds, copying, length, truth, speed.

Contract: shares are over the decoded lists given by `keep_L` (a population), None where the system
did not record what is needed; nothing is filled in. Identity compares with the order the model was
shown. Totals are ratios of sums (tokens per forward over all outputs, not a mean of ratios).
Not here: parsing of answers (`prompts`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.types import FAILURES


def identity_rate(outputs: SystemOutputs, keep_L: np.ndarray) -> float:
    """Share of outputs equal to the order that was shown."""
    order_LK = outputs.order_LK[keep_L]
    shown = np.arange(order_LK.shape[1])
    shown_LK = shown if outputs.shown_LK is None else outputs.shown_LK[keep_L]
    return float((order_LK == shown_LK).all(1).mean())


def failure_shares(outputs: SystemOutputs, keep_L: np.ndarray) -> dict[str, float] | None:
    """Share of outputs with each failure kind; one output can fail in several ways."""
    if outputs.failures_LX is None:
        return None
    share_X = outputs.failures_LX[keep_L].mean(0)
    return dict(zip(FAILURES, share_X.tolist(), strict=True))


def length_summary(tokens_L: np.ndarray | None, keep_L: np.ndarray) -> dict[str, float] | None:
    """Mean and percentiles of a length."""
    if tokens_L is None:
        return None
    kept_L = tokens_L[keep_L]
    p5, p50, p95 = np.percentile(kept_L, [5, 50, 95]).tolist()
    return {"mean": float(kept_L.mean()), "p5": p5, "p50": p50, "p95": p95}


def ratio(
    top_L: np.ndarray | None, bottom_L: np.ndarray | None, keep_L: np.ndarray
) -> float | None:
    """Sum over sum; None where either is unknown or there is nothing to divide by."""
    if top_L is None or bottom_L is None:
        return None
    bottom = int(bottom_L[keep_L].sum(dtype=np.int64))
    return float(top_L[keep_L].sum(dtype=np.int64) / bottom) if bottom else None


def tokens_per_s(outputs: SystemOutputs) -> float | None:
    """Measured speed, if it was measured."""
    seconds = outputs.timing.get("seconds")
    return float(outputs.timing["tokens"] / seconds) if seconds else None


def accounting(outputs: SystemOutputs, keep_L: np.ndarray) -> dict[str, Any]:
    """Everything of this page for one population, without the entries that do not apply."""
    if not keep_L.any():
        return {}
    timing = outputs.timing
    per_output = None
    if timing.get("outputs") and timing.get("seconds"):
        per_output = 1000.0 * timing["seconds"] / timing["outputs"]
    entries = {
        "n_decoded": int(keep_L.sum()),
        "raw_valid": None
        if outputs.raw_valid_L is None
        else float(outputs.raw_valid_L[keep_L].mean()),
        "failures": failure_shares(outputs, keep_L),
        "identity": identity_rate(outputs, keep_L),
        "tokens": length_summary(outputs.n_tokens_L, keep_L),
        "reasoning_tokens": length_summary(outputs.reasoning_tokens_L, keep_L),
        "tpf": ratio(outputs.n_tokens_L, outputs.nfe_L, keep_L),
        "evidence_true": ratio(outputs.cited_right_L, outputs.cited_total_L, keep_L),
        "tokens_per_s": tokens_per_s(outputs),
        "batch": timing.get("batch"),
        "ms_per_output": per_output,
    }
    return {name: value for name, value in entries.items() if value is not None}
