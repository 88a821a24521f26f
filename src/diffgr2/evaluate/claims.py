"""What a table may claim: which rows are compared, and when a difference is called one.

Contract: three families of comparisons per population (every row against the floor, against AR and
against the rival) and one of steps from stage to stage (`STEPS`). Each is adjusted by Holm over all
its pairs and both claimed metrics together: p is McNemar's exact one where a list is right or
wrong, of sign flips elsewhere. A gain or a loss needs an adjusted p below .05 and an interval that
leaves out 0; two rows are level where the margin, set beforehand, holds the whole interval; of the
rest no difference is shown. Not here: intervals of single rows (`results`), words (`tables`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffgr2.evaluate.metrics import MAIN, METRICS
from diffgr2.evaluate.population import BASELINES, Compared
from diffgr2.evaluate.significance import (
    MARGIN,
    equivalence,
    holm,
    interval,
    sign_flips,
    split_p,
    verdict,
)

CLAIMED = MAIN
FLIPS = 10_000

STEPS = (
    ("floor", "id_above"),
    ("floor", "evidence"),
    ("evidence", "evidence_before"),
    ("evidence", "tutor"),
    ("evidence", "lambdamart"),
    ("tutor", "lambdamart"),
    ("floor", "ar"),
    ("evidence", "ar"),
    ("tutor", "ar"),
    ("ar_direct", "ar"),
    ("ar_direct", "block_direct"),
    ("ar_written", "ar"),
    ("ar_sft", "ar"),
    ("naive", "cft"),
    ("cft", "cft_opd"),
    ("cft_opd", "cft_opd_rl"),
    ("cft", "cft_rl"),
    ("cft_rl", "cft_opd_rl"),
    ("cft_opd_rl_written", "cft_opd_rl"),
    ("ar_raw", "cft_opd_rl_raw"),
    ("ar_direct", "cft_opd_rl"),
    ("block_direct", "cft_opd_rl"),
    ("evidence", "cft_opd_rl"),
    ("tutor", "cft_opd_rl"),
    ("lambdamart", "cft_opd_rl"),
    ("ar", "cft_opd_rl"),
    ("ar", "verify"),
)
"""What each stage is compared with; pairs whose rows are both there form one Holm family."""

REASONED = (("ar", "ar_direct"), ("cft_opd_rl", "block_direct"))
"""Rows with the reasoning, and the same without."""

Pairs = Sequence[tuple[str, str]]


def p_values(population: Compared, pairs: Pairs) -> list[dict[str, float]]:
    """Of every pair (before, after): p of each claimed metric, not adjusted."""
    columns = [METRICS.index(metric) for metric in CLAIMED]
    diffs = [
        (population.values(after) - population.values(before))[:, columns]
        for before, after in pairs
    ]
    if not diffs:
        return []
    p_C = sign_flips(np.concatenate(diffs, axis=1), FLIPS, *population.key, "flips")
    found = []
    for diff_UC, drawn_C in zip(diffs, p_C.reshape(len(diffs), -1), strict=True):
        exact = [np.isin(diff_U, (-1.0, 0.0, 1.0)).all() for diff_U in diff_UC.T]
        both = zip(CLAIMED, diff_UC.T, drawn_C.tolist(), exact, strict=True)
        found.append({m: split_p(d) if whole else p for m, d, p, whole in both})
    return found


def adjusted(found: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """The same, by Holm over all of them."""
    flat = iter(holm([p for entry in found for p in entry.values()]))
    return [{metric: next(flat) for metric in entry} for entry in found]


def add_adjusted(
    population: Compared, entries: dict[str, dict[str, Any]], rival: str | None
) -> None:
    """Each row's differences to floor, AR and rival get their adjusted p."""
    for word, other in (("floor", "floor"), ("ar", "ar"), ("rival", rival or "")):
        if not population.holds(other):
            continue
        names = [name for name in entries if name != other and name not in BASELINES]
        pairs = [(other, name) for name in names]
        for name, p in zip(names, adjusted(p_values(population, pairs)), strict=True):
            entries[name].setdefault("p_holm", {})[word] = p


def add_steps(population: Compared, entries: dict[str, dict[str, Any]]) -> None:
    """What each row is compared with."""
    pairs = [pair for pair in STEPS if population.holds(*pair)]
    found = p_values(population, pairs)
    for (before, after), p, p_holm in zip(pairs, found, adjusted(found), strict=True):
        metrics = population.differences(before, after)
        for metric in CLAIMED:
            entry, sure = metrics[metric], {"p": p[metric], "p_holm": p_holm[metric]}
            low, high = entry["ci"]
            metrics[metric] = {**entry, **sure, "verdict": verdict(low, high, p_holm[metric])}
        gained, lost = population.moved(before, after)
        step: dict[str, Any] = {"from": before, "n": population.n, "metrics": metrics}
        step["mcnemar"] = {"gained": gained, "lost": lost, "p": p["r@1"], "p_holm": p_holm["r@1"]}
        if population.name != "all":  # misses, which are 0 in any row, would make everything level
            ends = {m: metrics[m]["ci"] for m in CLAIMED}
            stances = {m: equivalence(ends[m][0], ends[m][1], p_holm[m]) for m in CLAIMED}
            step["equivalence"] = {"margin": MARGIN, **stances}
        entries[after].setdefault("steps", []).append(step)


def add_reasoning(population: Compared, entries: dict[str, dict[str, Any]]) -> None:
    """The share of a row's gain over the floor that its reasoning carries, where there is one."""
    for name, direct in REASONED:
        if not population.holds(name, direct, "floor"):
            continue
        gain = population.differences("floor", name)
        for m, metric in enumerate(METRICS):
            if metric not in CLAIMED or gain[metric]["ci"][0] <= 0:
                continue
            row_B, direct_B, floor_B = (
                population.means[one][:, m] for one in (name, direct, "floor")
            )
            share_B = (row_B - direct_B)[row_B > floor_B] / (row_B - floor_B)[row_B > floor_B]
            value = population.differences(direct, name)[metric]["diff"] / gain[metric]["diff"]
            shares = entries[name].setdefault("reasoning_share", {})
            shares[metric] = {"value": value, "ci": list(interval(share_B))}
