"""The report: saved outputs in, `report.json` out (the schema of DESIGN §7).

Contract: `build_report` adds the rows `floor`, `random` and `oracle`, measures every row on both
populations (hit: target among the candidates; all: a miss counts 0) and compares pairs on exactly
the users that both decoded, with one set of resamples per population. A system that left out
lists with a target has no row over all users, for its sample would not be one of users. Values are
rounded to 6 digits on the way out, never before. Nothing here re-ranks, decodes or trains.

Rows hold: name, population, n, metrics, ci, vs_floor, vs_ar, raw_valid, failures, identity, tokens,
reasoning_tokens, tpf, tokens_per_s, batch, ms_per_output, speedup, evidence_true, same_as_ar,
same_text, gap_closed, steps, meta. What does not apply is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffgr2.errors import ConfigError, DataError
from diffgr2.evaluate.baselines import floor_order, oracle_order, random_values
from diffgr2.evaluate.metrics import METRICS, mean_metrics, ranks_of, values_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.significance import bootstrap_means, holm, interval, mcnemar, verdict
from diffgr2.evaluate.validity import accounting
from diffgr2.types import MISS, CandidateLists

BASELINES = ("floor", "random", "oracle")
ROWS = (
    *BASELINES,
    *("evidence", "ar_direct", "ar_sft", "ar"),
    *("naive", "cft", "cft_opd", "cft_opd_rl", "cft_rl", "verify"),
)
"""The order of rows; other names follow in the order given, `_raw` rows beside their own."""

STEPS = (
    ("floor", "evidence"),
    ("floor", "ar"),
    ("evidence", "ar"),
    ("ar_direct", "ar"),
    ("ar_sft", "ar"),
    ("naive", "cft"),
    ("cft", "cft_opd"),
    ("cft_opd", "cft_opd_rl"),
    ("cft", "cft_rl"),
    ("cft_rl", "cft_opd_rl"),
    ("ar", "cft_opd_rl"),
    ("ar", "verify"),
)
"""What each stage is compared with; pairs whose rows are both there form one Holm family."""

META = ("recipe", "data", "tie_order", "commit", "command")


@dataclass(frozen=True)
class Row:
    """A system measured on all L lists; `decoded_L` says where its values are real."""

    name: str
    values_LM: np.ndarray
    decoded_L: np.ndarray
    outputs: SystemOutputs | None  # None for `random`, which is an expectation


@dataclass(frozen=True)
class Population:
    """One population's rows, the users each covers, and the shared resamples."""

    name: str
    rows: dict[str, Row]
    users_L: dict[str, np.ndarray]  # row name -> mask
    resamples: int
    key: tuple[str | int, ...]
    cache: dict[bytes, tuple[list[str], np.ndarray]]

    def resampled(self, mask_L: np.ndarray) -> dict[str, np.ndarray]:
        """`means_BM` of every row that covers these users."""
        mark = mask_L.tobytes()
        if mark not in self.cache:
            names = [n for n in self.rows if not (mask_L & ~self.users_L[n]).any()]
            values_UC = np.concatenate([self.rows[n].values_LM[mask_L] for n in names], axis=1)
            means_BC = bootstrap_means(values_UC, self.resamples, *self.key)
            self.cache[mark] = (names, means_BC)
        names, means_BC = self.cache[mark]
        parts = np.split(means_BC, len(names), axis=1)
        return dict(zip(names, parts, strict=True))

    def differences(self, before: str, after: str) -> dict[str, dict[str, Any]]:
        """after − before on the users both cover: per metric its value, interval, verdict."""
        mask_L = self.users_L[before] & self.users_L[after]
        boot = self.resampled(mask_L)
        diff_LM = self.rows[after].values_LM[mask_L] - self.rows[before].values_LM[mask_L]
        result = {}
        for m, metric in enumerate(METRICS):
            low, high = interval(boot[after][:, m] - boot[before][:, m])
            value = float(diff_LM[:, m].mean())
            result[metric] = {"diff": value, "ci": [low, high], "verdict": verdict(low, high)}
        return result


def measure(lists: CandidateLists, outputs: SystemOutputs) -> Row:
    """A system's values on all lists; lists it did not decode stay 0 and are marked."""
    if (outputs.n_lists, outputs.split) != (len(lists), lists.split):
        raise DataError(
            f"outputs {outputs.name}: made for {outputs.n_lists} {outputs.split} lists, "
            f"not these {len(lists)} {lists.split} lists"
        )
    if outputs.order_LK.shape[1] != lists.k:
        raise DataError(f"outputs {outputs.name}: K is {outputs.order_LK.shape[1]}, not {lists.k}")
    decoded_L = np.zeros(len(lists), dtype=bool)
    decoded_L[outputs.rows] = True
    values_LM = np.zeros((len(lists), len(METRICS)))
    rank_l = ranks_of(outputs.order_LK, lists.hit_L[outputs.rows])
    values_LM[outputs.rows] = values_of(rank_l, lists.k)
    return Row(outputs.name, values_LM, decoded_L, outputs)


def sort_key(name: str) -> tuple[int, bool]:
    """Place of a row in the table."""
    base = name.removesuffix("_raw")
    return (ROWS.index(base) if base in ROWS else len(ROWS), name != base)


def measure_all(
    lists: CandidateLists, systems: Sequence[SystemOutputs], truth_LK: np.ndarray | None
) -> dict[str, Row]:
    """Baselines and systems, in the table's order."""
    n, k, hit_L = len(lists), lists.k, lists.hit_L
    rows = {
        "floor": measure(lists, SystemOutputs("floor", floor_order(n, k), n, lists.split)),
        "random": Row("random", random_values(hit_L, k), np.ones(n, dtype=bool), None),
        "oracle": measure(
            lists, SystemOutputs("oracle", oracle_order(hit_L, k, truth_LK), n, lists.split)
        ),
    }
    for outputs in systems:
        if outputs.name in rows:
            raise ConfigError(f"row {outputs.name}: stands twice (baselines are added here)")
        rows[outputs.name] = measure(lists, outputs)
    return {name: rows[name] for name in sorted(rows, key=sort_key)}


def populations(
    lists: CandidateLists, rows: dict[str, Row], resamples: int, seed: int
) -> list[Population]:
    """hit and all, each with the rows that can stand in it."""
    hit_L = lists.hit_L != MISS
    result = []
    for name in ("hit", "all"):
        users_L: dict[str, np.ndarray] = {}
        for row in rows.values():
            if name == "hit":
                users_L[row.name] = row.decoded_L & hit_L
            elif not (hit_L & ~row.decoded_L).any():
                users_L[row.name] = np.ones(len(lists), dtype=bool)  # a miss is 0 in any order
        kept = {n: row for n, row in rows.items() if n in users_L and users_L[n].any()}
        key = (seed, "evaluate", "bootstrap", name)
        result.append(Population(name, kept, users_L, resamples, key, {}))
    return result


def _row(population: Population, row: Row, gap: bool) -> dict[str, Any]:
    """One row of the report but its steps."""
    mask_L = population.users_L[row.name]
    boot_BM = population.resampled(mask_L)[row.name]
    result: dict[str, Any] = {
        "name": row.name,
        "population": population.name,
        "n": int(mask_L.sum()),
        "metrics": mean_metrics(row.values_LM[mask_L]),
        "ci": {metric: list(interval(boot_BM[:, m])) for m, metric in enumerate(METRICS)},
    }
    for other in ("floor", "ar"):
        if other not in population.rows or other == row.name:
            continue
        if not (mask_L & population.users_L[other]).any():
            continue
        differences = population.differences(other, row.name)
        result[f"vs_{other}"] = {metric: d["ci"] for metric, d in differences.items()}
    if gap:
        closed = _gap_closed(population, row, mask_L)
        if closed:
            result["gap_closed"] = closed
    if row.outputs is not None and row.name not in BASELINES:
        outputs = row.outputs
        result |= accounting(outputs, mask_L[outputs.rows])
        result |= _against_ar(population, row, mask_L)
        result |= _same_text(population, row, mask_L)
        if outputs.meta:
            result["meta"] = outputs.meta
    elif row.outputs is not None:
        result["identity"] = accounting(row.outputs, mask_L)["identity"]
    return result


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


def _against_ar(population: Population, row: Row, mask_L: np.ndarray) -> dict[str, float]:
    """Speed-up at the same batch size, and the share of lists ordered as AR orders them."""
    ar = population.rows.get("ar")
    if ar is None or ar.outputs is None or row.outputs is None:
        return {}
    result: dict[str, float] = {}
    own = accounting(row.outputs, mask_L[row.outputs.rows])
    base = accounting(ar.outputs, population.users_L["ar"][ar.outputs.rows])
    if "tokens_per_s" in own and "tokens_per_s" in base and own.get("batch") == base.get("batch"):
        result["speedup"] = own["tokens_per_s"] / base["tokens_per_s"]
    if row.name != "ar":
        orders = (row.outputs.order_LK, ar.outputs.order_LK)
        result |= _agreement("same_as_ar", row.outputs, ar.outputs, orders, mask_L)
    return result


def _same_text(population: Population, row: Row, mask_L: np.ndarray) -> dict[str, float]:
    """For `verify`: the share of outputs that are, token for token, its own model's greedy text."""
    greedy = population.rows.get("student_ar")
    if row.name != "verify" or greedy is None or row.outputs is None or greedy.outputs is None:
        return {}
    mine_L, greedy_L = row.outputs.text_L, greedy.outputs.text_L
    if mine_L is None or greedy_L is None:
        return {}
    texts = (mine_L[:, None], greedy_L[:, None])
    return _agreement("same_text", row.outputs, greedy.outputs, texts, mask_L)


def _agreement(
    name: str,
    mine: SystemOutputs,
    theirs: SystemOutputs,
    answers: tuple[np.ndarray, np.ndarray],
    mask_L: np.ndarray,
) -> dict[str, float]:
    """The share of lists of this population, decoded by both, on which the answers are equal."""
    common, at, at_theirs = np.intersect1d(
        mine.rows, theirs.rows, assume_unique=True, return_indices=True
    )
    same_l = (answers[0][at] == answers[1][at_theirs]).all(1)[mask_L[common]]
    return {name: float(same_l.mean())} if len(same_l) else {}


def _steps(population: Population, steps: Sequence[tuple[str, str]]) -> dict[str, list[dict]]:
    """Row name -> what it was compared with; McNemar on r@1, Holm over all steps here."""
    found: list[tuple[str, dict[str, Any]]] = []
    for before, after in steps:
        if before not in population.rows or after not in population.rows:
            continue
        mask_L = population.users_L[before] & population.users_L[after]
        if not mask_L.any():
            continue
        first_U, second_U = (
            population.rows[name].values_LM[mask_L, METRICS.index("r@1")]
            for name in (before, after)
        )
        gained, lost, p = mcnemar(first_U, second_U)
        found.append(
            (
                after,
                {
                    "from": before,
                    "n": int(mask_L.sum()),
                    "metrics": population.differences(before, after),
                    "mcnemar": {"gained": gained, "lost": lost, "p": p},
                },
            )
        )
    adjusted = holm([step["mcnemar"]["p"] for _, step in found])
    result: dict[str, list[dict]] = {}
    for (after, step), p_holm in zip(found, adjusted, strict=True):
        step["mcnemar"]["p_holm"] = p_holm
        result.setdefault(after, []).append(step)
    return result


def rounded(value: Any, digits: int = 6) -> Any:
    """The value with every float rounded; p-values keep significant digits instead."""
    if isinstance(value, dict):
        return {
            key: float(f"{entry:.4g}") if key in ("p", "p_holm") else rounded(entry, digits)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [rounded(entry, digits) for entry in value]
    if isinstance(value, float):
        return round(value, digits) + 0.0  # no -0.0
    return value


def build_report(
    meta: dict[str, Any],
    lists: CandidateLists,
    systems: Sequence[SystemOutputs],
    *,
    resamples: int = 10_000,
    seed: int = 0,
    truth_LK: np.ndarray | None = None,
    steps: Sequence[tuple[str, str]] = STEPS,
) -> dict[str, Any]:
    """Measure everything. `meta` holds recipe, data, tie_order, commit, command; `truth_LK` the
    true next-item probabilities of the candidates where a simulated shop knows them."""
    if set(meta) != set(META):
        odd = sorted(set(meta) ^ set(META))[0]
        raise ConfigError(f"report: {odd}: {'unknown' if odd in meta else 'missing'} key")
    rows = measure_all(lists, systems, truth_LK)
    entries = []
    for population in populations(lists, rows, resamples, seed):
        compared = _steps(population, steps)
        for row in population.rows.values():
            entry = _row(population, row, gap=truth_LK is not None)
            if row.name in compared:
                entry["steps"] = compared[row.name]
            entries.append(entry)
    return rounded({**meta, "seed": seed, "rows": entries})


def ranks_by_system(
    lists: CandidateLists, systems: Sequence[SystemOutputs], truth_LK: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Per-user arrays to save: user, floor hit, and each row's rank (MISS; −2 = not decoded)."""
    result = {"user": lists.user_L, "hit": lists.hit_L}
    for name, row in measure_all(lists, systems, truth_LK).items():
        if row.outputs is None:
            continue
        rank_L = np.full(len(lists), -2, dtype=np.int16)
        rank_L[row.outputs.rows] = ranks_of(row.outputs.order_LK, lists.hit_L[row.outputs.rows])
        result[f"rank.{name}"] = rank_L
    return result
