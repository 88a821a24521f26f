"""Two runs held against each other: paired differences on the lists that both were measured on.

Contract: a `Side` is the report of a run (`ranks.safetensors`, `report.json`, and the recipe where
it is known). Two lists are the same request where user, moment and outcome are; whether the
candidates are the same, in the same order, is looked at besides. A row is compared in two
populations: `same`, lists with the same candidates that hold their target and that both decoded,
where only the ranking differs; and `all`, every shared list, a miss counting 0, where candidates
differ and both decoded all that hold their target: the retriever's share is in it. Intervals are
paired bootstraps, p-values sign flips, adjusted by Holm over all that is asked at once; a
difference is called one where the adjusted p is below .05. Not here: which rows are asked for and
how it is shown (`cli.compare`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_json
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.evaluate.metrics import METRICS, values_of
from diffgr2.evaluate.results import rounded
from diffgr2.evaluate.significance import SURE, bootstrap_means, holm, interval, sign_flips
from diffgr2.types import MISS

RANKS, REPORT, RECIPE = "ranks.safetensors", "report.json", "recipe.json"
UNDECODED = -2
KEYS = ("list", "candidates", "hit")
ASKED = {
    "same": "shared lists with the same candidates that hold their target",
    "all": "shared lists, whatever their candidates (a miss counts 0)",
}


@dataclass(frozen=True)
class Side:
    """One run as its report left it."""

    where: str  # as it was given
    report: dict[str, Any]
    recipe: dict[str, Any]  # {} where it is not known
    arrays: dict[str, np.ndarray]

    @property
    def rows(self) -> list[str]:
        """Names of the measured rows, in the report's order."""
        return [name.removeprefix("rank.") for name in self.arrays if name.startswith("rank.")]

    @property
    def judged(self) -> str | None:
        """The row that the run was judged by."""
        return self.report["verdict"]["row"] if "verdict" in self.report else None

    def values(self, row: str, lists: np.ndarray) -> np.ndarray:
        """`values_LM` of these lists."""
        if f"value.{row}" in self.arrays:
            return self.arrays[f"value.{row}"][lists].astype(np.float64)
        rank_L = self.arrays[f"rank.{row}"][lists].astype(np.int64)
        return values_of(np.maximum(rank_L, MISS), int(rank_L.max(initial=0)) + 1)

    def decoded(self, row: str) -> np.ndarray:
        return self.arrays[f"rank.{row}"] != UNDECODED


def read_side(given: Path) -> Side:
    """A run's directory, or its report's; whatever is wrong with it is one line."""
    folder = given / "report" if (given / "report" / RANKS).is_file() else given
    if not given.is_dir():
        raise ArtifactError(f"{given}: no such directory")
    if not (folder / RANKS).is_file():
        above = given.absolute().parent
        if (above / "report" / RANKS).is_file():  # one of a run's stages, its bundle as a rule
            raise ArtifactError(f"{given}: no run's directory (do you mean {given.parent}?)")
        raise ArtifactError(f"{given}: no report stands there (run: diffgr2 report {given})")
    report, arrays = read_json(folder / REPORT), load_arrays(folder / RANKS)
    if not _is_report(report):
        raise ArtifactError(f"{folder / REPORT}: not a report")
    _check(arrays, folder / RANKS)
    known = folder / RECIPE
    recipe = read_json(known) if known.is_file() else {}
    if not isinstance(recipe, dict):
        raise ArtifactError(f"{known}: not a recipe")
    return Side(str(given), report, recipe, _in_order(arrays, report))


def _check(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    """What `report` writes, by this version."""
    if not arrays.keys() >= set(KEYS):
        told = "made by another version: make the report again with `diffgr2 report`"
        raise ArtifactError(f"{path}: {told}")
    n = len(arrays["list"]) if arrays["list"].ndim else -1
    for name, array in arrays.items():
        whole = np.issubdtype(array.dtype, np.integer)
        if name.startswith("value."):
            good = array.shape == (n, len(METRICS)) and np.isfinite(array).all()
        else:
            good = whole and array.shape == (n,)
        if not good or (name.startswith("rank.") and (array < UNDECODED).any()):
            raise ArtifactError(f"{path}: {name[:80]}: not what a report holds")


def _is_report(value: Any) -> bool:
    match value:
        case {"recipe": str(), "seed": int(), "rows": list(rows)}:
            named = all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows)
            judged = value.get("verdict", {"row": ""})
            return named and isinstance(judged, dict) and isinstance(judged.get("row"), str)
    return False


def _in_order(arrays: dict[str, np.ndarray], report: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Rows as the report lists them; a file of arrays knows names by the alphabet alone."""
    order = {row["name"]: at for at, row in enumerate(report["rows"])}
    names = sorted(arrays, key=lambda name: order.get(name.partition(".")[2], len(order)))
    return {name: arrays[name] for name in names}


@dataclass(frozen=True)
class Shared:
    """The requests that both sides hold, as places in each; once each."""

    a_S: np.ndarray
    b_S: np.ndarray
    alike_S: np.ndarray  # bool: the same candidates in the same order
    twice: int  # requests that one side holds more than once, so that nobody can pair them

    @staticmethod
    def of(a: Side, b: Side) -> Shared:
        kept, twice = [], 0
        for side in (a, b):
            key_N, count_N = np.unique(side.arrays["list"], return_counts=True)
            kept.append(key_N[count_N == 1])
            twice += int((count_N > 1).sum())
        both = np.intersect1d(*kept, assume_unique=True)
        a_S, b_S = (places_of(side.arrays["list"], both) for side in (a, b))
        alike_S = a.arrays["candidates"][a_S] == b.arrays["candidates"][b_S]
        return Shared(a_S, b_S, alike_S, twice)

    def about(self, a: Side, b: Side) -> dict[str, int]:
        return {
            "lists": len(self.a_S),
            "same_candidates": int(self.alike_S.sum()),
            "only_a": len(a.arrays["list"]) - len(self.a_S),
            "only_b": len(b.arrays["list"]) - len(self.b_S),
            "twice": self.twice,
        }


def places_of(key_L: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    order = np.argsort(key_L, kind="stable")
    return order[np.searchsorted(key_L, wanted, sorter=order)]


def names_in(row: str) -> tuple[str, str]:
    """What a row is called in A and in B: `evidence=ar` is A's scorecard against B's teacher.

    >>> names_in("ar"), names_in("evidence=ar")
    (('ar', 'ar'), ('evidence', 'ar'))
    """
    a_row, _, b_row = row.partition("=")
    return a_row, b_row or a_row


def populations(a: Side, b: Side, row: str, shared: Shared) -> dict[str, np.ndarray]:
    """The shared lists (places in `Shared`) that a row is compared on."""
    sides = zip((a, b), (shared.a_S, shared.b_S), names_in(row), strict=True)
    hit_S = np.ones(len(shared.a_S), dtype=bool)
    decoded_S, complete = hit_S.copy(), True
    for side, at_S, name in sides:
        own_S, done_S = side.arrays["hit"][at_S] != MISS, side.decoded(name)[at_S]
        hit_S, decoded_S = hit_S & own_S, decoded_S & done_S
        complete &= bool(done_S[own_S].all())
    found = {"same": np.flatnonzero(shared.alike_S & hit_S & decoded_S)}
    if complete and not shared.alike_S.all():
        found["all"] = np.arange(len(hit_S))
    return {name: places for name, places in found.items() if len(places)}


def rows_of_both(a: Side, b: Side) -> list[str]:
    return [name for name in a.rows if name in b.rows]


def compare(
    a: Side, b: Side, rows: Sequence[str], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """b − a for each row in each population it has, every metric."""
    shared, common = Shared.of(a, b), rows_of_both(a, b)
    if not len(shared.a_S):
        told = "share no list (the same user, moment and outcome)"
        raise ConfigError(f"{a.where} and {b.where} {told}: nothing to compare")
    for row in rows:
        named = list(zip((a, b), names_in(row), strict=True))
        lacks = " and ".join(side.where for side, name in named if name not in side.rows)
        if lacks:
            raise ConfigError(f"--row {row}: not in {lacks} (both have: {', '.join(common)})")
    entries = []
    for row in rows:
        for name, places in populations(a, b, row, shared).items():
            a_row, b_row = names_in(row)
            pair = (a.values(a_row, shared.a_S[places]), b.values(b_row, shared.b_S[places]))
            entries.append({"row": row, "population": name, "n": len(places)})
            key = (seed, "versus", name)
            entries[-1]["metrics"] = _differences(pair[0], pair[1], resamples, *key)
    if not entries:
        told = "no shared list was decoded by both and holds its target"
        raise ConfigError(f"{a.where} and {b.where}, {', '.join(rows)}: {told}")
    tests = [test for entry in entries for test in entry["metrics"].values()]
    for test, p_holm in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = p_holm
        sure = p_holm < SURE and test["diff"] != 0
        test["verdict"] = ("gain" if test["diff"] > 0 else "loss") if sure else "none"
    head = [{"where": side.where, **_about(side)} for side in (a, b)]
    result = {"runs": head, "shared": shared.about(a, b), "tests": len(tests), "rows": entries}
    return rounded(result)


def _about(side: Side) -> dict[str, Any]:
    kept = ("recipe", "data", "seed", "commit", "command")
    return {key: side.report[key] for key in kept if key in side.report}


def _differences(
    a_LM: np.ndarray, b_LM: np.ndarray, resamples: int, *key: str | int
) -> dict[str, dict[str, Any]]:
    """Per metric: both values, b − a with its interval, and p."""
    diff_LM = b_LM - a_LM
    boot_BM = bootstrap_means(diff_LM, resamples, *key, "bootstrap")
    p_M = sign_flips(diff_LM, resamples, *key, "flips")
    result = {}
    for m, metric in enumerate(METRICS):
        means = [float(side[:, m].mean()) for side in (a_LM, b_LM)]
        diff, ci = float(diff_LM[:, m].mean()), list(interval(boot_BM[:, m]))
        result[metric] = {"a": means[0], "b": means[1], "diff": diff, "ci": ci, "p": float(p_M[m])}
    return result
