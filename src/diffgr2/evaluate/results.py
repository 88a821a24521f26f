"""The report: saved outputs in, `report.json` out.

Contract: `build_report` adds the rows `floor`, `random` and `oracle`, measures every row on both
populations (hit: target among the candidates; all: a miss counts 0) and compares pairs on exactly
the users that both decoded, with one set of resamples per population. A system that left out
lists with a target has no row over all users, for its sample would not be one of users. Values are
rounded to 6 digits on the way out, never before. Nothing here re-ranks, decodes or trains.

Rows hold: name, population, n, metrics, ci (of the metrics, raw_valid, coherent, evidence_true,
tpf, forwards, forced), vs_floor, vs_ar, vs_rival, raw_valid, failures, coherent, contradictions,
identity, tokens, reasoning_tokens, tpf, forwards, forced, tokens_per_s, batch, ms_per_output,
speedup, evidence_true, calibration, same_as_ar, same_text, gap_closed, steps, meta. What does not
apply is absent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffgr2.evaluate.baselines import floor_order, oracle_order, random_values
from diffgr2.evaluate.metrics import MAIN, METRICS, metrics_of, ranks_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.significance import (
    MARGIN,
    bootstrap_means,
    equivalence,
    holm,
    interval,
    mcnemar,
    verdict,
)
from diffgr2.evaluate.validity import accounting, calibration, intervals
from diffgr2.types import MISS, CandidateLists

BASELINES = ("floor", "random", "oracle")
ROWS = (
    *BASELINES,
    *("evidence", "lambdamart", "ar_direct", "block_direct", "ar_sft", "ar"),
    *("naive", "cft", "cft_opd", "cft_opd_rl", "cft_rl", "verify"),
)
"""The order of rows; other names follow in the order given."""

WAYS = ("", "_written", "_raw")
"""Endings of a row's name, which stand beside their own in this order."""

STEPS = (
    ("floor", "evidence"),
    ("evidence", "lambdamart"),
    ("floor", "ar"),
    ("evidence", "ar"),
    ("ar_direct", "ar"),
    ("ar_written", "ar"),
    ("ar_sft", "ar"),
    ("naive", "cft"),
    ("cft", "cft_opd"),
    ("cft_opd", "cft_opd_rl"),
    ("cft", "cft_rl"),
    ("cft_rl", "cft_opd_rl"),
    ("cft_opd_rl_written", "cft_opd_rl"),
    ("block_direct", "cft_opd_rl"),
    ("evidence", "cft_opd_rl"),
    ("lambdamart", "cft_opd_rl"),
    ("ar", "cft_opd_rl"),
    ("ar", "verify"),
)
"""What each stage is compared with; pairs whose rows are both there form one Holm family."""

LEVEL = (("ar", "cft_opd_rl"), ("ar", "verify"))
"""Steps that are to lose nothing: whether they are level is said, at a margin set beforehand, of
hit users alone (misses, which are 0 in any row, would make everything level)."""


@dataclass(frozen=True)
class Row:
    """A system measured on all L lists; `decoded_L` says where its values are real."""

    name: str
    values_LM: np.ndarray
    decoded_L: np.ndarray
    hit_L: np.ndarray  # where the target stands in the floor
    outputs: SystemOutputs | None  # None for `random`, which is an expectation


@dataclass(frozen=True)
class Population:
    """One population's rows, the users each covers, and the shared resamples."""

    name: str
    rows: dict[str, Row]
    users_L: dict[str, np.ndarray]  # row name -> mask
    resamples: int
    key: tuple[str | int, ...]
    cache: dict[bytes, dict[str, np.ndarray]] = field(default_factory=dict)

    def resampled(self, mask_L: np.ndarray) -> dict[str, np.ndarray]:
        """`means_BM` of every row that covers these users."""
        mark = mask_L.tobytes()
        if mark not in self.cache:
            names = [n for n in self.rows if not (mask_L & ~self.users_L[n]).any()]
            values_UC = np.concatenate([self.rows[n].values_LM[mask_L] for n in names], axis=1)
            means_BC = bootstrap_means(values_UC, self.resamples, *self.key)
            parts = np.split(means_BC, len(names), axis=1)
            self.cache[mark] = dict(zip(names, parts, strict=True))
        return self.cache[mark]

    def common(self, before: str, after: str) -> np.ndarray | None:
        """The users that both rows cover; None if there are none, or one row is not there."""
        if not {before, after} <= self.rows.keys():
            return None
        mask_L = self.users_L[before] & self.users_L[after]
        return mask_L if mask_L.any() else None

    def differences(self, before: str, after: str, mask_L: np.ndarray) -> dict[str, dict]:
        """after − before on these users: per metric its value, interval, verdict."""
        boot = self.resampled(mask_L)
        diff_LM = self.rows[after].values_LM[mask_L] - self.rows[before].values_LM[mask_L]
        result = {}
        for m, metric in enumerate(METRICS):
            low, high = interval(boot[after][:, m] - boot[before][:, m])
            value = float(diff_LM[:, m].mean())
            result[metric] = {"diff": value, "ci": [low, high], "verdict": verdict(low, high)}
        return result


def with_baselines(
    lists: CandidateLists, systems: Sequence[SystemOutputs], truth_LK: np.ndarray | None
) -> list[SystemOutputs]:
    """The systems with floor and oracle, in the table's order."""
    n, k = len(lists), lists.k
    every = [
        SystemOutputs("floor", floor_order(n, k, lists.length_L), n),
        SystemOutputs("oracle", oracle_order(lists.gains_LK, truth_LK, lists.length_L), n),
        *systems,
    ]

    def place(outputs: SystemOutputs) -> tuple[int, int]:
        way = next((way for way in WAYS[1:] if outputs.name.endswith(way)), "")
        base = outputs.name.removesuffix(way)
        return (ROWS.index(base) if base in ROWS else len(ROWS), WAYS.index(way))

    return sorted(every, key=place)


def measure(lists: CandidateLists, outputs: SystemOutputs) -> Row:
    """A system's values on all lists; lists it did not decode stay 0 and are marked."""
    decoded_L = np.zeros(len(lists), dtype=bool)
    decoded_L[outputs.rows] = True
    values_LM = np.zeros((len(lists), len(METRICS)))
    values_LM[outputs.rows] = metrics_of(outputs.order_LK, lists.gains_LK[outputs.rows])
    return Row(outputs.name, values_LM, decoded_L, lists.hit_L, outputs)


def populations(
    lists: CandidateLists, rows: Sequence[Row], resamples: int, seed: int
) -> Iterator[Population]:
    """hit and all, each with the rows that can stand in it."""
    hit_L = lists.hit_L != MISS
    everyone_L = np.ones(len(lists), dtype=bool)  # a miss is 0 in any order
    covered = {
        "hit": {row.name: row.decoded_L & hit_L for row in rows},
        "all": {row.name: everyone_L for row in rows if not (hit_L & ~row.decoded_L).any()},
    }
    for name, users_L in covered.items():
        kept = {r.name: r for r in rows if r.name in users_L and users_L[r.name].any()}
        key = (seed, "evaluate", "bootstrap", name)
        yield Population(name, kept, users_L, resamples, key)


def _row(population: Population, row: Row, gap: bool, rival: str | None) -> dict[str, Any]:
    """One row of the report but what needs other rows' entries."""
    mask_L = population.users_L[row.name]
    boot_BM = population.resampled(mask_L)[row.name]
    means = row.values_LM[mask_L].mean(0).tolist()
    result: dict[str, Any] = {
        "name": row.name,
        "population": population.name,
        "n": int(mask_L.sum()),
        "metrics": dict(zip(METRICS, means, strict=True)),
        "ci": {metric: list(interval(boot_BM[:, m])) for m, metric in enumerate(METRICS)},
    }
    for word, other in (("floor", "floor"), ("ar", "ar"), ("rival", rival or "")):
        common_L = population.common(other, row.name)
        if common_L is not None and other != row.name:
            differences = population.differences(other, row.name, common_L)
            result[f"vs_{word}"] = {metric: d["ci"] for metric, d in differences.items()}
    if gap and (closed := _gap_closed(population, row, mask_L)):
        result["gap_closed"] = closed
    outputs = row.outputs
    if outputs is None:
        return result
    accounts = accounting(outputs, mask_L[outputs.rows])
    if row.name in BASELINES:
        return result | {"identity": accounts["identity"]}
    result |= accounts
    kept_L = mask_L[outputs.rows]
    result["ci"] |= intervals(outputs, kept_L, population.resamples, *population.key, "outputs")
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


def _gap_closed(population: Population, row: Row, mask_L: np.ndarray) -> dict[str, float]:
    """(row − floor) / (oracle − floor) on this row's users, where the oracle is above the floor."""
    value_M, floor_M, oracle_M = (
        population.rows[name].values_LM[mask_L].mean(0) for name in (row.name, "floor", "oracle")
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


def _add_steps(population: Population, entries: dict[str, dict[str, Any]]) -> None:
    """What each row is compared with; McNemar on r@1, Holm over all steps here."""
    found = []
    for before, after in STEPS:
        mask_L = population.common(before, after)
        if mask_L is None:
            continue
        r1 = METRICS.index("r@1")
        pair = (population.rows[name].values_LM[mask_L, r1] for name in (before, after))
        gained, lost, p = mcnemar(*pair)
        step = {
            "from": before,
            "n": int(mask_L.sum()),
            "metrics": population.differences(before, after, mask_L),
            "mcnemar": {"gained": gained, "lost": lost, "p": p},
        }
        if population.name == "hit" and (before, after) in LEVEL:
            cis = {metric: step["metrics"][metric]["ci"] for metric in MAIN}
            stances = {metric: equivalence(*ci) for metric, ci in cis.items()}
            step["equivalence"] = {"margin": MARGIN, **stances}
        entries[after].setdefault("steps", []).append(step)
        found.append(step["mcnemar"])
    for test, p_holm in zip(found, holm([test["p"] for test in found]), strict=True):
        test["p_holm"] = p_holm


def rounded(value: Any) -> Any:
    """The value with every float rounded; p-values keep significant digits instead."""
    if isinstance(value, dict):
        return {
            key: float(f"{entry:.4g}") if key in ("p", "p_holm") else rounded(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 6) + 0.0  # no -0.0
    return value


def build_report(
    meta: dict[str, str],
    lists: CandidateLists,
    systems: Sequence[SystemOutputs],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    truth_LK: np.ndarray | None = None,
    rival: str | None = None,
) -> dict[str, Any]:
    """Measure everything. `meta` holds recipe, data, tie_order, commit, command; `truth_LK` the
    true next-item probabilities of the candidates where a simulated shop knows them; `rival` is
    the row to beat, which was chosen on other lists."""
    rows = [measure(lists, outputs) for outputs in with_baselines(lists, systems, truth_LK)]
    random_LM = random_values(lists.gains_LK, lists.length_L)
    rows.insert(1, Row("random", random_LM, np.ones(len(lists), dtype=bool), lists.hit_L, None))
    report_rows = []
    for population in populations(lists, rows, resamples, seed):
        entries = {
            row.name: _row(population, row, truth_LK is not None, rival)
            for row in population.rows.values()
        }
        base = entries.get("ar", {})
        for entry in entries.values():  # speed against AR's at the same batch size
            if "batch" in entry and entry["batch"] == base.get("batch"):
                entry["speedup"] = entry["tokens_per_s"] / base["tokens_per_s"]
        _add_steps(population, entries)
        report_rows += entries.values()
    return rounded({**meta, "seed": seed, "rows": report_rows})


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
