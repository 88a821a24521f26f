"""Several runs of one recipe under several seeds as one table, with intervals over people.

Contract: a value is the mean over the runs of each run's own mean. A person's lists in several runs
are not independent, so people are what is resampled (a bootstrap of clusters) and whose signs are
flipped: a user of a file is one person in all runs, a shopper of a simulated shop one in each, for
every seed is another shop. A row of other runs on the same lists may stand `beside`. Rows are those
that every run holds; `hit` are lists that hold their target and that every row decoded. Comparisons
are those of a single report (`claims`). Besides means stand deviations over the runs (`sd`), which
say what training and ties add. Not here: whether the runs may be pooled (`cli.pooling`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from diffgr2.artifacts import digest
from diffgr2.errors import ConfigError
from diffgr2.evaluate.claims import add_adjusted, add_reasoning, add_steps
from diffgr2.evaluate.metrics import MAIN, METRICS
from diffgr2.evaluate.results import rounded
from diffgr2.evaluate.significance import bootstrap_means, interval, wilson
from diffgr2.evaluate.tables import against, at, interval_at, markdown_table, spread
from diffgr2.evaluate.versus import Side, places_of
from diffgr2.types import MISS

PARTS = {"same_day": 1, "other_days": 0}
ONE, TINY = "", 1e-12
TOLD = ("valid", "coherent", "tokens", "forwards", "right", "cited")
RATIOS = {
    "raw_valid": ("valid", ONE),
    "coherent": ("coherent", ONE),
    "tpf": ("tokens", "forwards"),
    "forwards": ("forwards", ONE),
    "evidence_true": ("right", "cited"),
}
"""What outputs are worth: sums over lists of one array of the reports, over another's or over how
many lists there are."""
BESIDE = "beside"
SHARES = ("raw_valid", "coherent", "evidence_true")


@dataclass(frozen=True)
class Share:
    """One run's part: its lists that count here, and whose they are."""

    side: Side
    lists: np.ndarray
    person_l: np.ndarray  # place of each list's person in the pool

    def sums(self, values_lC: np.ndarray, people: int) -> np.ndarray:
        """(U, C): sums over each person's lists."""
        sums_UC = np.zeros((people, values_lC.shape[1]))
        np.add.at(sums_UC, self.person_l, values_lC)
        return sums_UC


@dataclass(frozen=True)
class Pool:
    """One population of several runs; see the module's docstring and `population.Compared`."""

    name: str
    rows: tuple[str, ...]
    shares: tuple[Share, ...]
    people: int
    resamples: int
    key: tuple[str | int, ...]

    @property
    def n(self) -> int:
        return sum(len(share.lists) for share in self.shares)

    def holds(self, *names: str) -> bool:
        return {*names} <= {*self.rows}

    def each(self, name: str) -> np.ndarray:
        """(R, M): a row's means in every run."""
        return np.stack([share.side.values(name, share.lists).mean(0) for share in self.shares])

    def _sums(self, share: Share, name: str) -> np.ndarray:
        return share.sums(share.side.values(name, share.lists), self.people)

    def values(self, name: str) -> np.ndarray:
        """`values_UM`: what each person adds, so that the mean over people is the pooled one."""
        parts = [self._sums(share, name) / len(share.lists) for share in self.shares]
        return np.sum(parts, axis=0) * self.people / len(parts)

    @cached_property
    def _counts(self) -> np.ndarray:
        """(U, R): how many lists each person has in every run."""
        ones = [share.sums(np.ones((len(share.lists), 1)), self.people) for share in self.shares]
        return np.concatenate(ones, 1)

    def _resampled(self, sums_UC: np.ndarray, *key: str) -> tuple[np.ndarray, np.ndarray]:
        """Over resamples of people: lists of every run (B, R), and these sums (B, C), both per
        person."""
        counts_UR = self._counts
        if (counts_UR == counts_UR[0]).all():  # everybody has as many: nothing to draw
            means_BC = bootstrap_means(sums_UC, self.resamples, *self.key, *key)
            return np.broadcast_to(counts_UR[0], (self.resamples, len(self.shares))), means_BC
        both_UC = np.concatenate([counts_UR, sums_UC], 1)
        means_BC = bootstrap_means(both_UC, self.resamples, *self.key, *key)
        return means_BC[:, : counts_UR.shape[1]], means_BC[:, counts_UR.shape[1] :]

    @property
    def means(self) -> dict[str, np.ndarray]:
        return self._means

    @cached_property
    def _means(self) -> dict[str, np.ndarray]:
        """`means_BM` of every row over the same resamples of people."""
        sums = [self._sums(share, name) for name in self.rows for share in self.shares]
        count_BR, sums_BC = self._resampled(np.concatenate(sums, 1))
        shape = (len(sums_BC), len(self.rows), len(self.shares), len(METRICS))
        mean_BNRM = sums_BC.reshape(shape) / np.maximum(count_BR, TINY)[:, None, :, None]
        return dict(zip(self.rows, np.moveaxis(mean_BNRM.mean(2), 1, 0), strict=True))

    def differences(self, before: str, after: str) -> dict[str, dict]:
        """after − before: per metric its value and its interval."""
        diff_M = (self.each(after) - self.each(before)).mean(0)
        boot_BM = self.means[after] - self.means[before]
        return {
            metric: {"diff": float(diff_M[m]), "ci": list(interval(boot_BM[:, m]))}
            for m, metric in enumerate(METRICS)
        }

    def moved(self, before: str, after: str) -> tuple[int, int]:
        """Lists of all runs that gained a right first place, and that lost it."""
        gained = lost = 0
        for share in self.shares:
            one, two = (
                share.side.values(name, share.lists)[:, METRICS.index("r@1")] > 0
                for name in (before, after)
            )
            gained, lost = gained + int((two & ~one).sum()), lost + int((one & ~two).sum())
        return gained, lost

    @cached_property
    def _told(self) -> dict[tuple[str, str], np.ndarray]:
        """(U, R) of every row's arrays that all runs have: sums over each person's lists."""
        found = {}
        for row, name in product(self.rows, TOLD):
            if all(f"{name}.{row}" in share.side.arrays for share in self.shares):
                columns = [
                    share.sums(share.side.arrays[f"{name}.{row}"][share.lists, None], self.people)
                    for share in self.shares
                ]
                found[row, name] = np.concatenate(columns, 1)
        return found

    @cached_property
    def worth(self) -> dict[str, dict[str, Any]]:
        """What rows' outputs are worth, as mean and deviation over runs, and how sure."""
        told, runs = self._told, len(self.shares)
        result: dict[str, dict[str, Any]] = {row: {"ci": {}} for row in self.rows}
        if not told:
            return result
        count_BR, sums_BC = self._resampled(np.concatenate([*told.values()], 1), "outputs")
        drawn = dict(zip(told, np.split(sums_BC, len(sums_BC.T) // runs, axis=1), strict=True))
        for row, (name, (top, bottom)) in product(self.rows, RATIOS.items()):
            if (row, top) not in told or (bottom != ONE and (row, bottom) not in told):
                continue
            under_UR = self._counts if bottom == ONE else told[row, bottom]
            under_BR = count_BR if bottom == ONE else drawn[row, bottom]
            if not under_UR.any(0).all():
                continue
            each = (told[row, top].sum(0) / under_UR.sum(0)).tolist()
            result[row][name] = spread(each)
            if name in SHARES and (each == [0.0] * runs or each == [1.0] * runs):
                n = int(under_UR.any(1).sum())  # no resample differs: as many trials as people
                result[row]["ci"][name] = list(wilson(n if each[0] else 0, n))
                continue
            ratio_BR = drawn[row, top] / np.maximum(under_BR, TINY)
            result[row]["ci"][name] = list(interval(ratio_BR.mean(1)))
        return result


def person_keys(side: Side) -> np.ndarray:
    """Who each list is about, the same number in every run for one person."""
    return side.arrays["person"]


def beside(side: Side, other: Side, row: str) -> Side:
    """The side with another run's row on the same lists, named `<row>_beside`."""
    own_N, other_N = side.arrays["list"], other.arrays["list"]
    if not np.array_equal(np.sort(own_N), np.sort(other_N)):
        raise ConfigError(f"{other.where}: its lists are not those of {side.where}")
    at_N = places_of(other_N, own_N)
    if not np.array_equal(side.arrays["candidates"], other.arrays["candidates"][at_N]):
        raise ConfigError(f"{other.where}: its candidates are not those of {side.where}")
    if row not in other.rows:
        raise ConfigError(f"{other.where}: no row {row} (it has: {', '.join(other.rows)})")
    taken = {
        f"{kind}.{row}_{BESIDE}": other.arrays[f"{kind}.{row}"][at_N]
        for kind in ("rank", "value")
        if f"{kind}.{row}" in other.arrays
    }
    return replace(side, arrays={**side.arrays, **taken})


def pools(sides: Sequence[Side], resamples: int, seed: int) -> list[Pool]:
    """hit and all, then the parts of hit that every run tells apart."""
    common = [row for row in sides[0].rows if all(row in side.rows for side in sides)]
    people, place_N = np.unique(
        np.concatenate([person_keys(side) for side in sides]), return_inverse=True
    )
    places = np.split(place_N, np.cumsum([len(side.arrays["list"]) for side in sides])[:-1])
    hits, whole = [], set(common)
    for side in sides:
        hit_L = side.arrays["hit"] != MISS
        done = {row: side.decoded(row) for row in common}
        hits.append(np.logical_and.reduce([hit_L, *done.values()]))
        whole -= {row for row, done_L in done.items() if (hit_L & ~done_L).any()}
    masks = {"hit": (common, hits)}
    everyone = [np.ones(len(side.arrays["list"]), dtype=bool) for side in sides]
    masks["all"] = ([row for row in common if row in whole], everyone)
    if all("same_day" in side.arrays for side in sides):
        for name, value in PARTS.items():
            own = [h & (s.arrays["same_day"] == value) for h, s in zip(hits, sides, strict=True)]
            masks[name] = (common, own)
    found = []
    for name, (rows, mask_RL) in masks.items():
        if rows and all(mask_L.any() for mask_L in mask_RL):
            shares = tuple(
                Share(side, np.flatnonzero(mask_L), place_L[mask_L])
                for side, mask_L, place_L in zip(sides, mask_RL, places, strict=True)
            )
            key = (seed, "pooled", name, digest([side.report["seed"] for side in sides]))
            found.append(Pool(name, tuple(rows), shares, len(people), resamples, key))
    return found


def pooled(
    sides: Sequence[Side], *, rival: str | None = None, resamples: int = 10_000, seed: int = 0
) -> list[dict[str, Any]]:
    """The rows of a report about all these runs together."""
    result = []
    for pool in pools(sides, resamples, seed):
        entries = {row: _entry(pool, row, rival, len(sides)) for row in pool.rows}
        add_adjusted(pool, entries, rival)
        if pool.name in ("hit", "all"):
            for row, entry in entries.items():
                worth = pool.worth[row] if pool.name == "hit" else {}
                entry |= {**worth, "ci": entry["ci"] | worth.get("ci", {})}
            add_steps(pool, entries)
            add_reasoning(pool, entries)
        result += entries.values()
    return rounded(result)


def _entry(pool: Pool, row: str, rival: str | None, runs: int) -> dict[str, Any]:
    """A row's metrics, their intervals and its differences."""
    each_RM, boot_BM = pool.each(row), pool.means[row]
    entry: dict[str, Any] = {"name": row, "population": pool.name, "n": pool.n, "seeds": runs}
    entry["metrics"] = {m: spread(each_RM[:, at].tolist()) for at, m in enumerate(METRICS)}
    entry["ci"] = {m: list(interval(boot_BM[:, at])) for at, m in enumerate(METRICS)}
    strange = next((name for name in pool.rows if name.endswith(f"_{BESIDE}")), "")
    others = {"floor": "floor", "ar": "ar", "rival": rival or "", BESIDE: strange}
    for word, other in others.items():
        if pool.holds(other) and other != row:
            found = pool.differences(other, row)
            entry[f"vs_{word}"] = {metric: d["ci"] for metric, d in found.items()}
            entry[f"over_{word}"] = {metric: d["diff"] for metric, d in found.items()}
    return entry


def pooled_table(rows: Sequence[dict[str, Any]]) -> str:
    """`mean ± deviation over runs` of hit users, and how sure the mean is; what an older summary
    does not hold is a dash."""

    def cell(path: str, digits: int) -> Any:
        mean, sd = at(f"{path}.mean", digits), at(f"{path}.sd", digits)
        return lambda row: mean(row) if sd(row) == "–" else f"{mean(row)} ± {sd(row)}"

    kept = [row for row in rows if row["population"] == "hit"]
    columns: list[Any] = [("row", lambda row: f"`{row['name']}`"), ("lists", at("n"))]
    for metric in MAIN:
        columns += [(metric.upper(), cell(f"metrics.{metric}", 4))]
        columns += [("95 %", interval_at(f"ci.{metric}", 4))]
    columns += [("R@1 over the floor, 95 %", against("floor"))]
    for metric in MAIN:
        columns += [(f"{metric.upper()} against AR, 95 %", against("ar", metric))]
    if any("vs_rival" in row for row in kept):
        columns += [("R@1 against the rival, 95 %", against("rival"))]
    if any(f"vs_{BESIDE}" in row for row in kept):
        for metric in MAIN:
            head = f"{metric.upper()} against the one beside, 95 %"
            columns += [(head, against(BESIDE, metric))]
    columns += [("raw valid", at("raw_valid.mean", 3)), ("95 %", interval_at("ci.raw_valid"))]
    columns += [("coherent", at("coherent.mean", 3)), ("95 %", interval_at("ci.coherent"))]
    columns += [("TPF", at("tpf.mean", 1)), ("95 %", interval_at("ci.tpf", 1))]
    return markdown_table(kept, columns)


def parts_by_seed(rows: Sequence[dict[str, Any]]) -> str:
    """What each row gains over the floor on every part of the hit users."""
    named = {name: {r["name"]: r for r in rows if r["population"] == name} for name in PARTS}
    columns: list[Any] = [("row", lambda row: f"`{row['name']}`")]
    for name, own in named.items():
        n = max((row["n"] for row in own.values()), default=0)
        for metric in MAIN:
            head = f"{metric.upper()} over the floor, {name.replace('_', ' ')} (n = {n:,}), 95 %"
            columns.append(
                (
                    head,
                    lambda row, own=own, m=metric: against("floor", m)(own.get(row["name"], {})),
                )
            )
    first = next((own for own in named.values() if own), {})
    return markdown_table([{"name": name} for name in first if name != "floor"], columns)
