"""Where the judged row gains: by list length, by history, by how popular the target is.

Contract: `sliced` splits the lists that both rows decoded and that hold their target into at most
five bins of about equal count of a property, never one value into two bins, and gives each bin's
difference with its paired 95 % interval; a property with one value makes no bins. `slices_figure`
draws that, a panel per property and a series per opponent. The intervals are not adjusted for how
many bins there are. Not here: which properties lists have (`stages.report`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffgr2.evaluate.metrics import METRICS
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.plots import (
    COLOURS,
    DARK,
    PAIRED,
    heading,
    legend_below,
    new_figure,
    of_lists,
    signed_tick,
    states,
)
from diffgr2.evaluate.population import measure
from diffgr2.evaluate.significance import bootstrap_means, interval
from diffgr2.evaluate.verdict import DECIDES
from diffgr2.types import MISS, CandidateLists

BINS = 5
TITLES = {
    "length": "candidates in the list",
    "history": "items in the history",
    "popularity": "purchases of the target",
}


def bins_of(value_U: np.ndarray, bins: int = BINS) -> list[np.ndarray]:
    """Masks of at most so many bins of about equal count, by rising value; equal values stay
    together, one value makes none."""
    ends = np.unique(np.quantile(value_U, np.arange(1, bins + 1) / bins, method="inverted_cdf"))
    which_U = np.searchsorted(ends, value_U)
    return [which_U == place for place in range(len(ends))] if len(ends) > 1 else []


def sliced(
    lists: CandidateLists,
    row: SystemOutputs,
    others: Mapping[str, SystemOutputs],
    properties: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, list[dict[str, Any]]]:
    """Per property its bins: {low, high, n, vs: {opponent: {diff, ci}}} of the deciding metric."""
    mine = measure(lists, row)
    theirs = {name: measure(lists, outputs) for name, outputs in others.items()}
    shared_L = np.logical_and.reduce(
        [lists.hit_L != MISS, mine.decoded_L, *(other.decoded_L for other in theirs.values())]
    )
    column = METRICS.index(DECIDES)
    gain_US = np.stack(
        [(mine.values_LM - other.values_LM)[shared_L, column] for other in theirs.values()], axis=1
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for name, value_L in properties.items():
        value_U, entries = value_L[shared_L], []
        for number, mask_U in enumerate(bins_of(value_U) if len(value_U) else []):
            inside, own = gain_US[mask_U], value_U[mask_U]
            boot_BS = bootstrap_means(inside, resamples, seed, "evaluate", "slices", name, number)
            vs = {
                other: {"diff": float(inside[:, at].mean()), "ci": list(interval(boot_BS[:, at]))}
                for at, other in enumerate(theirs)
            }
            entry = {"low": int(own.min()), "high": int(own.max()), "n": int(mask_U.sum())}
            entries.append(entry | {"vs": vs})
        if entries:
            found[name] = entries
    return found


def by_lengths(points: Sequence[Mapping[str, Any]], row: str, rival: str) -> list[dict[str, Any]]:
    """The same of probes, which cut one user's list to several lengths; lists of one candidate,
    where nothing can be gained, are left out. Of scorers they hold the scorecard alone."""
    names = {"floor": "floor", rival: "rival"}
    kept = [p for p in points if p["row"] == row and p["length"] > 1 and "vs" in p]
    return [
        {"low": p["length"], "high": p["length"], "n": p["n"]}
        | {"vs": {names[other]: one for other, one in p["vs"].items() if other in names}}
        for p in sorted(kept, key=lambda p: p["length"])
    ]


def slices_figure(
    found: Mapping[str, Sequence[Mapping[str, Any]]], row: str, names: Mapping[str, str]
) -> Figure:
    """A panel per property on one scale; `names` says who an opponent is, in their order."""
    figure, axes = new_figure(8.5, 3.7, 1, len(found))
    there = {other for entries in found.values() for other in entries[0]["vs"]}
    present = [other for other in names if other in there]
    for ax, (name, entries) in zip(axes[0], found.items(), strict=True):
        for place, other in enumerate(present):
            if other not in entries[0]["vs"]:
                continue
            look = {"color": COLOURS[place], "marker": "os^D"[place % 4]}
            shift = 0.22 * (place - (len(present) - 1) / 2)
            for x, entry in enumerate(entries):
                one = entry["vs"][other]
                ax.plot([x + shift] * 2, one["ci"], color=look["color"], lw=1.8)
                ax.plot(x + shift, one["diff"], ms=6.5, ls="none", **look)
        ax.axhline(0.0, color=DARK, lw=1, zorder=1)
        ax.set_xticks(range(len(entries)), [bin_told(entry) for entry in entries], fontsize=8)
        ax.set_xlim(-0.6, len(entries) - 0.4)
        ax.set_xlabel(TITLES.get(name, name), fontsize=9)
        ax.yaxis.set_major_formatter(signed_tick)
        ax.grid(visible=False, axis="x")
    heading(axes[0, 0], f"Where {row} gains")
    axes[0, 0].set_ylabel(f"{DECIDES.upper()}, difference")
    for place, other in enumerate(present):
        look = {"color": COLOURS[place], "marker": "os^D"[place % 4], "ls": "none", "ms": 6.5}
        axes[0, 0].plot([], [], label=f"minus {names[other]}", **look)
    legend_below(figure, *axes[0, 0].get_legend_handles_labels(), ncols=len(present))
    limits = [end for ax in axes[0] for end in ax.get_ylim()]
    for ax in axes[0]:
        ax.set_ylim(min(limits), max(limits))
        ax.tick_params(labelleft=ax is axes[0, 0])
    n = max(sum(entry["n"] for entry in entries) for entries in found.values())
    return states(figure, of_lists(n), f"{PAIRED}, not adjusted for the number of bins")


def bin_told(entry: Mapping[str, Any]) -> str:
    """A bin's ends and how many lists it has."""
    ends = f"{entry['low']}" if entry["low"] == entry["high"] else f"{entry['low']}–{entry['high']}"
    return f"{ends}\nn={entry['n']:,}"
