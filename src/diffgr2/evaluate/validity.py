"""What the raw answers were worth: validity, failure kinds, copying, length, truth, speed.

Contract: shares are over the decoded lists given by `keep_L` (a population); what the system did
not record is absent, nothing is filled in. Identity compares with the floor's order. Totals are
ratios of sums (tokens per forward over all outputs, not a mean of ratios).
Not here: parsing of answers (`prompts`).
"""

from typing import Any

import numpy as np

from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.types import FAILURES

LENGTHS = {"tokens": "n_tokens_L", "reasoning_tokens": "reasoning_tokens_L"}
RATIOS = {"tpf": ("n_tokens_L", "nfe_L"), "evidence_true": ("cited_right_L", "cited_total_L")}


def accounting(outputs: SystemOutputs, keep_L: np.ndarray) -> dict[str, Any]:
    """Everything of this page for one population."""
    if not keep_L.any():
        return {}
    kept = {name: array[keep_L] for name, array in outputs.arrays().items()}
    order_LK = kept["order_LK"]
    entries: dict[str, Any] = {
        "n_decoded": len(order_LK),
        "identity": float((order_LK == np.arange(order_LK.shape[1])).all(1).mean()),
    }
    if "raw_valid_L" in kept:
        entries["raw_valid"] = float(kept["raw_valid_L"].mean())
    if "failures_LX" in kept:  # one output can fail in several ways
        shares = kept["failures_LX"].mean(0).tolist()
        entries["failures"] = dict(zip(FAILURES, shares, strict=True))
    for name, source in LENGTHS.items():
        if source in kept:
            p5, p50, p95 = np.percentile(kept[source], [5, 50, 95]).tolist()
            mean = float(kept[source].mean())
            entries[name] = {"mean": mean, "p5": p5, "p50": p50, "p95": p95}
    for name, (top, bottom) in RATIOS.items():
        if top in kept and kept[bottom].any():
            entries[name] = float(kept[top].sum(dtype=np.int64) / kept[bottom].sum(dtype=np.int64))
    if timing := outputs.timing:
        entries["tokens_per_s"] = timing["tokens"] / timing["seconds"]
        entries["ms_per_output"] = 1000.0 * timing["seconds"] / timing["outputs"]
        entries["batch"] = timing["batch"]
    return entries
