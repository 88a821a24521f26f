"""Who a table is about: its lists, the same ones in every row, and their shared resamples.

Contract: `populations` yields `hit` (lists that hold what was chosen, of which every system decoded
its own order), `all` (every list, a miss counting 0 whatever a re-ranker says; a system that left
out lists with a target has no row there, for its sample would not be one of users) and the parts
of `hit` that are named. So a table has one n, and any two of its rows are compared on all of it
with one set of resamples. Not here: what is said of a row (`results`), which rows are compared
(`claims`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from diffgr2.errors import DataError
from diffgr2.evaluate.baselines import floor_order, oracle_order
from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.significance import bootstrap_means, interval, mcnemar
from diffgr2.types import MISS, CandidateLists

BASELINES = ("floor", "random", "oracle")
ROWS = (
    *BASELINES,
    *("id_above", "evidence", "evidence_before", "tutor", "lambdamart"),
    *("ar_direct", "block_direct", "ar_sft", "ar"),
    *("naive", "cft", "cft_opd", "cft_opd_rl", "cft_rl", "verify"),
)
"""The order of rows; other names follow in the order given."""

WAYS = ("", "_written", "_raw")
"""Endings of a row's name, which stand beside their own in this order."""


@dataclass(frozen=True)
class Row:
    """A system measured on all L lists; `decoded_L` says where its values are real."""

    name: str
    values_LM: np.ndarray
    decoded_L: np.ndarray
    hit_L: np.ndarray  # where the target stands in the floor
    outputs: SystemOutputs | None  # None for `random`, which is an expectation


class Compared(Protocol):
    """Rows measured on the same lists, of one run or of several."""

    @property
    def name(self) -> str: ...
    @property
    def key(self) -> tuple[str | int, ...]: ...
    @property
    def n(self) -> int: ...
    @property
    def means(self) -> Mapping[str, np.ndarray]:
        """`means_BM` of every row over the same resamples."""
        ...

    def holds(self, *names: str) -> bool: ...
    def values(self, name: str) -> np.ndarray:
        """`values_UM`: what each unit that is resampled adds to a row's mean."""
        ...

    def moved(self, before: str, after: str) -> tuple[int, int]:
        """Lists that gained a right first place, and lists that lost it."""
        ...

    def differences(self, before: str, after: str) -> dict[str, dict]:
        """after − before: per metric its value and its interval."""
        ...


@dataclass(frozen=True)
class Population:
    """One population's rows and lists; see the module's docstring."""

    name: str
    rows: dict[str, Row]
    mask_L: np.ndarray
    resamples: int
    key: tuple[str | int, ...]

    @property
    def n(self) -> int:
        return int(self.mask_L.sum())

    def values(self, name: str) -> np.ndarray:
        """`values_UM`: a row's metrics on this population's lists."""
        return self.rows[name].values_LM[self.mask_L]

    @property
    def means(self) -> dict[str, np.ndarray]:
        return self._means

    @cached_property
    def _means(self) -> dict[str, np.ndarray]:
        """`means_BM` of every row over the same resamples."""
        values_UC = np.concatenate([self.values(name) for name in self.rows], axis=1)
        means_BC = bootstrap_means(values_UC, self.resamples, *self.key)
        parts = np.split(means_BC, len(self.rows), axis=1)
        return dict(zip(self.rows, parts, strict=True))

    def holds(self, *names: str) -> bool:
        return {*names} <= self.rows.keys()

    def moved(self, before: str, after: str) -> tuple[int, int]:
        """Lists that gained a right first place, and lists that lost it."""
        r1 = METRICS.index("r@1")
        gained, lost, _ = mcnemar(*(self.values(name)[:, r1] for name in (before, after)))
        return gained, lost

    def differences(self, before: str, after: str) -> dict[str, dict]:
        """after − before: per metric its value and its interval."""
        diff_M = (self.values(after) - self.values(before)).mean(0)
        boot_BM = self.means[after] - self.means[before]
        return {
            metric: {"diff": float(diff_M[m]), "ci": list(interval(boot_BM[:, m]))}
            for m, metric in enumerate(METRICS)
        }


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
    lists: CandidateLists,
    rows: Sequence[Row],
    resamples: int,
    seed: int,
    parts: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Population]:
    """hit and all, then the named parts of hit (masks over all lists)."""
    hit_L = lists.hit_L != MISS
    shared_L = np.logical_and.reduce([hit_L, *(row.decoded_L for row in rows)])
    if hit_L.any() and not shared_L.any():
        names = ", ".join(row.name for row in rows if not row.decoded_L.all())
        raise DataError(f"rows {names}: no list that holds its target was decoded for all of them")
    complete = [row for row in rows if not (hit_L & ~row.decoded_L).any()]
    everyone_L = np.ones(len(lists), dtype=bool)  # a miss is 0 in any order
    asked = {"hit": (rows, shared_L), "all": (complete, everyone_L)}
    asked |= {name: (rows, shared_L & part_L) for name, part_L in (parts or {}).items()}
    for name, (kept, mask_L) in asked.items():
        named = {row.name: row for row in kept} if mask_L.any() else {}
        yield Population(name, named, mask_L, resamples, (seed, "evaluate", "bootstrap", name))
