"""The report: saved outputs in, `report.json` out.

Contract: `build_report` adds the rows `floor`, `random` and `oracle` and measures every row on both
populations (hit: target among the candidates; all: a miss counts 0) and on named parts of the
first, each with one n (`population`). Values are rounded to 6 digits on the way out, never before.
Nothing here re-ranks, decodes or trains.

Rows hold: name, population, n, metrics, ci (of the metrics, raw_valid, coherent, evidence_true,
tpf, forwards, forced), vs_floor, vs_ar, vs_rival, p_holm (of these, adjusted), raw_valid, failures,
coherent, contradictions, identity, tokens, reasoning_tokens, tpf, forwards, forced, ms_per_list,
low_ms, high_ms, prefill_ms, tokens_per_s, batch, speedup, speedup_decoding, evidence_true,
calibration, same_as_ar, same_text, gap_closed, reasoning_share, steps, meta. Those of a part hold
metrics and differences alone. What does not apply is absent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffgr2.evaluate.baselines import random_values
from diffgr2.evaluate.claims import add_adjusted, add_reasoning, add_steps
from diffgr2.evaluate.metrics import METRICS, ranks_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.population import (
    BASELINES,
    Population,
    Row,
    measure,
    populations,
    with_baselines,
)
from diffgr2.evaluate.significance import interval
from diffgr2.evaluate.validity import accounting, calibration, intervals
from diffgr2.types import CandidateLists

WHOLE = ("hit", "all")
"""Populations whose rows say everything; parts of them say where a row gains."""


def _gains(population: Population, row: Row, rival: str | None) -> dict[str, Any]:
    """A row's metrics, how sure they are, and what it gains over others."""
    values_UM, boot_BM = population.values(row.name), population.means[row.name]
    result: dict[str, Any] = {
        "name": row.name,
        "population": population.name,
        "n": population.n,
        "metrics": dict(zip(METRICS, values_UM.mean(0).tolist(), strict=True)),
        "ci": {metric: list(interval(boot_BM[:, m])) for m, metric in enumerate(METRICS)},
    }
    for word, other in (("floor", "floor"), ("ar", "ar"), ("rival", rival or "")):
        if population.holds(other) and other != row.name:
            differences = population.differences(other, row.name)
            result[f"vs_{word}"] = {metric: d["ci"] for metric, d in differences.items()}
    return result


def _account(population: Population, row: Row) -> dict[str, Any]:
    """What a row's outputs are worth besides their order."""
    outputs, mask_L = row.outputs, population.mask_L
    if outputs is None:
        return {}
    kept_L = mask_L[outputs.rows]
    accounts = accounting(outputs, kept_L)
    if row.name in BASELINES:
        return {"identity": accounts["identity"]}
    given = (outputs, kept_L, population.resamples, *population.key)
    result = accounts | {"ci": intervals(*given, "outputs")}
    if population.name == "hit" and (
        found := calibration(outputs, kept_L, row.hit_L[outputs.rows])
    ):
        result["calibration"] = found
    rows = population.rows
    if row.name != "ar":
        result |= _agreement("same_as_ar", "order_LK", outputs, rows.get("ar"), mask_L)
    if row.name == "verify":  # token for token its own model's greedy text?
        result |= _agreement("same_text", "text_L", outputs, rows.get("student_ar"), mask_L)
    return result | ({"meta": outputs.meta} if outputs.meta else {})


def _gap_closed(population: Population, row: Row) -> dict[str, float]:
    """(row − floor) / (oracle − floor), where the oracle is above the floor."""
    value_M, floor_M, oracle_M = (
        population.values(name).mean(0) for name in (row.name, "floor", "oracle")
    )
    gap_M = oracle_M - floor_M
    return {
        metric: float((value_M[m] - floor_M[m]) / gap_M[m])
        for m, metric in enumerate(METRICS)
        if gap_M[m] > 1e-9
    }


def _agreement(
    name: str, field: str, mine: SystemOutputs, other: Row | None, mask_L: np.ndarray
) -> dict[str, float]:
    """The share of lists of this population, decoded by both, on which `field` is equal."""
    theirs = other.outputs if other else None
    if theirs is None or field not in mine.arrays() or field not in theirs.arrays():
        return {}
    common, at, at_theirs = np.intersect1d(
        mine.rows, theirs.rows, assume_unique=True, return_indices=True
    )
    equal = getattr(mine, field)[at] == getattr(theirs, field)[at_theirs]
    same_l = (equal if equal.ndim == 1 else equal.all(1))[mask_L[common]]
    return {name: float(same_l.mean())} if len(same_l) else {}


P = ("p", "p_holm")


def rounded(value: Any) -> Any:
    """The value with every float rounded; p-values keep significant digits instead."""
    if isinstance(value, dict):
        return {
            key: float(f"{entry:.4g}") if key in P and isinstance(entry, float) else rounded(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) + 0.0  # no -0.0
    return value


def build_report(
    meta: Mapping[str, Any],
    lists: CandidateLists,
    systems: Sequence[SystemOutputs],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    truth_LK: np.ndarray | None = None,
    rival: str | None = None,
    parts: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Measure everything. `meta` holds recipe, data, tie_order, commit, command; `truth_LK` the
    true next-item probabilities of the candidates where a simulated shop knows them; `rival` is
    the row to beat, which was chosen on other lists; `parts` are named masks over the lists."""
    rows = [measure(lists, outputs) for outputs in with_baselines(lists, systems, truth_LK)]
    random_LM = random_values(lists.gains_LK, lists.length_L)
    rows.insert(1, Row("random", random_LM, np.ones(len(lists), dtype=bool), lists.hit_L, None))
    report_rows = []
    for population in populations(lists, rows, resamples, seed, parts):
        entries = {n: _gains(population, row, rival) for n, row in population.rows.items()}
        add_adjusted(population, entries, rival)
        if population.name in WHOLE:
            for name, row in population.rows.items():
                entry, account = entries[name], _account(population, row)
                entry["ci"] |= account.pop("ci", {})
                entry |= account
                if truth_LK is not None and (closed := _gap_closed(population, row)):
                    entry["gap_closed"] = closed
            _add_speedups(entries)
            add_steps(population, entries)
            add_reasoning(population, entries)
        report_rows += entries.values()
    return rounded({**meta, "seed": seed, "rows": report_rows})


def _add_speedups(entries: dict[str, dict[str, Any]]) -> None:
    """How many times a list is faster than AR's at the same batch size, with and without what the
    prompt takes by itself."""
    base = entries.get("ar", {})
    for entry in entries.values():
        if "batch" not in entry or entry["batch"] != base.get("batch"):
            continue
        entry["speedup"] = base["ms_per_list"] / entry["ms_per_list"]
        left, base_left = (e["ms_per_list"] - e.get("prefill_ms", np.nan) for e in (entry, base))
        if left > 0 and base_left > 0:
            entry["speedup_decoding"] = base_left / left


def ranks_by_system(
    lists: CandidateLists, systems: Sequence[SystemOutputs], truth_LK: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Per-list arrays to save: user, floor hit, and each row's rank (MISS; −2 = not decoded) of the
    target, or of the best of several outcomes."""
    result = {"user": lists.user_L, "hit": lists.hit_L}
    for outputs in with_baselines(lists, systems, truth_LK):
        rank_L = np.full(len(lists), -2, dtype=np.int16)
        rank_L[outputs.rows] = ranks_of(outputs.order_LK, lists.hit_L[outputs.rows])
        result[f"rank.{outputs.name}"] = rank_L
    return result


def values_by_system(
    lists: CandidateLists, systems: Sequence[SystemOutputs], truth_LK: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Every row's metrics per list, where its ranks do not tell them: with gains of their own."""
    if lists.gains is None:
        return {}
    rows = [measure(lists, outputs) for outputs in with_baselines(lists, systems, truth_LK)]
    return {f"value.{row.name}": row.values_LM.astype(np.float32) for row in rows}


KEPT = {
    "tokens": "n_tokens_L",
    "forwards": "nfe_L",
    "right": "cited_right_L",
    "cited": "cited_total_L",
}


def accounts_by_system(systems: Sequence[SystemOutputs]) -> dict[str, np.ndarray]:
    """Per list and row what its output was worth (`valid.<row>`, `coherent.<row>`, …), as far as
    it was recorded; 0 where nothing was decoded, which its rank says."""
    result = {}
    for outputs in systems:
        arrays = outputs.arrays()
        told = {name: arrays[source] for name, source in KEPT.items() if source in arrays}
        if outputs.raw_valid_L is not None:
            told["valid"] = outputs.raw_valid_L
        if outputs.contradictions_L is not None:
            told["coherent"] = outputs.contradictions_L == 0
        for name, values_l in told.items():
            whole_L = np.zeros(outputs.n_lists, np.int32)
            whole_L[outputs.rows] = values_l
            result[f"{name}.{outputs.name}"] = whole_L
    return result
