"""What the outputs were worth: validity, coherence, truth, copying, length, calibration, speed.

Contract: shares are over the decoded lists given by `keep_L` (a population); what the system did
not record is absent, nothing is filled in. Identity compares with the floor's order. Totals are
ratios of sums (tokens per forward over all outputs, not a mean of ratios). `intervals` says how
sure each is: Wilson for shares of outputs, a bootstrap over lists for ratios.
Not here: parsing answers and finding contradictions.
"""

from typing import Any

import numpy as np

from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.significance import ratio_interval, wilson
from diffgr2.types import FAILURES

LENGTHS = {"tokens": "n_tokens_L", "reasoning_tokens": "reasoning_tokens_L"}
RATIOS = {
    "tpf": ("n_tokens_L", "nfe_L"),
    "evidence_true": ("cited_right_L", "cited_total_L"),
    "forced": ("forced_L", "n_tokens_L"),
}
BINS = 10


def accounting(outputs: SystemOutputs, keep_L: np.ndarray) -> dict[str, Any]:
    """Everything of this page for one population but intervals and calibration."""
    if not keep_L.any():
        return {}
    kept = {name: array[keep_L] for name, array in outputs.arrays().items()}
    order_LK = kept["order_LK"]
    entries: dict[str, Any] = {
        "n_decoded": len(order_LK),
        "identity": float(
            ((order_LK == np.arange(order_LK.shape[1])) | (order_LK < 0)).all(1).mean()
        ),
    }
    entries |= {name: float(good_L.mean()) for name, good_L in _shares(kept).items()}
    if "contradictions_L" in kept:
        entries["contradictions"] = int(kept["contradictions_L"].sum())
    if "failures_LX" in kept:  # one output can fail in several ways
        shares = kept["failures_LX"].mean(0).tolist()
        entries["failures"] = dict(zip(FAILURES, shares, strict=True))
    for name, source in LENGTHS.items():
        if source in kept:
            p5, p50, p95 = np.percentile(kept[source], [5, 50, 95]).tolist()
            mean = float(kept[source].mean())
            entries[name] = {"mean": mean, "p5": p5, "p50": p50, "p95": p95}
    if "nfe_L" in kept:
        entries["forwards"] = float(kept["nfe_L"].mean())
    for name, (top, bottom) in RATIOS.items():
        if {top, bottom} <= kept.keys() and kept[bottom].any():
            entries[name] = float(kept[top].sum(dtype=np.int64) / kept[bottom].sum(dtype=np.int64))
    return entries | outputs.timing


def _shares(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Per output: was it a permutation before any repair, is it without contradiction."""
    result = {}
    if "raw_valid_L" in kept:
        result["raw_valid"] = kept["raw_valid_L"].astype(bool)
    if "contradictions_L" in kept:
        result["coherent"] = kept["contradictions_L"] == 0
    return result


def intervals(
    outputs: SystemOutputs, keep_L: np.ndarray, resamples: int, *key: str | int
) -> dict[str, list[float]]:
    """95 % intervals of what `accounting` says of the same lists."""
    if not keep_L.any():
        return {}
    kept = {name: array[keep_L] for name, array in outputs.arrays().items()}
    result = {
        name: list(wilson(int(good_L.sum()), len(good_L))) for name, good_L in _shares(kept).items()
    }
    if "nfe_L" in kept:
        ones_L = np.ones(len(kept["nfe_L"]))
        if found := ratio_interval(kept["nfe_L"], ones_L, resamples, *key):
            result["forwards"] = list(found)
    for name, (top, bottom) in RATIOS.items():
        if not ({top, bottom} <= kept.keys() and kept[bottom].any()):
            continue
        right, total = (int(kept[part].sum(dtype=np.int64)) for part in (top, bottom))
        if name == "evidence_true" and right in (0, total):  # no resample differs: count lists
            n = int((kept[bottom] > 0).sum())
            result[name] = list(wilson(n if right else 0, n))
        elif found := ratio_interval(kept[top], kept[bottom], resamples, *key):
            result[name] = list(found)
    return result


def calibration(outputs: SystemOutputs, keep_L: np.ndarray, hit_L: np.ndarray) -> dict[str, float]:
    """How far the stated probabilities are from what happens: expected calibration error over all
    candidates and over the first places, and of these the mean chance and the share right.

    `hit_L` is the target's position of every decoded list, which has to be there.
    """
    if outputs.chance_LK is None or not keep_L.any():
        return {}
    chance_LK, first_L = outputs.chance_LK[keep_L], outputs.order_LK[keep_L, 0]
    right_LK = np.arange(chance_LK.shape[1]) == hit_L[keep_L, None]
    lists_L = np.arange(len(chance_LK))
    chance_L, right_L = chance_LK[lists_L, first_L], right_LK[lists_L, first_L]
    said_LK = ~np.isnan(chance_LK)  # behind the end of a shorter list there is nothing to say
    return {
        "all": calibration_error(chance_LK[said_LK], right_LK[said_LK]),
        "first": calibration_error(chance_L, right_L),
        "first_chance": float(chance_L.mean(dtype=np.float64)),
        "first_right": float(right_L.mean()),
    }


def reliability(chance_N: np.ndarray, right_N: np.ndarray) -> list[tuple[float, float, int]]:
    """Of up to ten bins of nearly equal count, by rising chance: mean chance, share right, n."""
    order_N = np.argsort(chance_N, kind="stable")
    bins = np.array_split(order_N, min(BINS, len(order_N)))
    return [
        (float(chance_N[b].mean(dtype=np.float64)), float(right_N[b].mean()), len(b)) for b in bins
    ]


def calibration_error(chance_N: np.ndarray, right_N: np.ndarray) -> float:
    """Expected calibration error: the bins' |mean chance − share right|, weighted by count."""
    gaps = [n * abs(chance - right) for chance, right, n in reliability(chance_N, right_N)]
    return sum(gaps) / len(chance_N)
