"""The report's figures over rows, and what all figures share: style, caption, file.

Contract: pure functions from plain data, of which there is some, to a `Figure` that `states` its n,
its lists and its intervals; `captioned` writes that and the run's command below the picture,
`save_figure` a PNG, SVG or PDF without dates, so the same data gives the same bytes. Colours are
the Okabe–Ito set, and every series also has its own marker, so no figure needs colour to be read.
No global pyplot state. Not here: which figures a report has (`stages.report`), the answer
(`answer_plot`), time (`pace_plot`), parts of the lists (`slices`), training (`curves`), single
things (`pictures`).
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from diffgr2.evaluate.metrics import MAIN
from diffgr2.evaluate.significance import wilson
from diffgr2.types import FAILURES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LOOKS = [{"color": c, "marker": m} for c, m in zip(COLOURS, "os^DvPX", strict=True)]
GREY, DARK = "#8A8A8A", "#222222"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "figure.dpi": 130,
}
PAIRED = "paired 95 % bootstrap intervals"
LETTERS = 16.5  # of a caption to an inch
UNDATED: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Kinds of pictures, each with what it would say of when or by what it was made."""


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """A figure with the house style and its axes as a 2-D array."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write it as its name says (no time stamp inside)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "diffgr2"}):  # otherwise ids are drawn at random
        figure.savefig(path, metadata=UNDATED[path.suffix])
    return path


def states(figure: Figure, *facts: str) -> Figure:
    """The figure with what it says of itself: n, whose lists, which intervals."""
    figure.set_label(" · ".join(fact for fact in facts if fact))
    return figure


def legend_below(figure: Figure, marks: Iterable[Any], names: Sequence[str], ncols: int) -> None:
    """One legend for all axes, in a strip of its own below them."""
    look: dict[str, Any] = {"loc": "lower center", "frameon": False, "fontsize": 9.5}
    figure.legend(marks, names, ncols=max(1, min(ncols, len(names))), **look)
    _strip(figure, 0.1 + 0.22 * -(-len(names) // max(1, ncols)))


def _strip(figure: Figure, inches: float) -> float:
    """The share of the figure, made higher by this much, that lies below its axes now."""
    engine, (width, height) = figure.get_layout_engine(), figure.get_size_inches()
    assert isinstance(engine, ConstrainedLayoutEngine), "made by new_figure"
    before = engine.get()["rect"][1] * height
    whole = height + inches
    figure.set_size_inches(width, whole)
    share = (before + inches) / whole
    engine.set(rect=(0.0, share, 1.0, 1.0 - share))
    return inches / whole


def captioned(figure: Figure, command: str) -> Figure:
    """The figure with a strip below: what it states, and the command that makes it again."""
    text = " · ".join(part for part in (str(figure.get_label()), command) if part)
    width = figure.get_size_inches()[0]
    lines = textwrap.wrap(text, int(width * LETTERS), break_on_hyphens=False)
    share = _strip(figure, 0.1 + 0.15 * len(lines))
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0.0, share, 1.0, 1.0 - share))
    look: dict[str, Any] = {"fontsize": 8, "color": "#555555", "va": "bottom", "parse_math": False}
    figure.text(0.07 / width, 0.05 / figure.get_size_inches()[1], "\n".join(lines), **look)
    return figure


def signed_tick(value: float, _: int) -> str:
    """A tick of an axis of differences."""
    return f"{value:+.2f}".replace("-", "−") if abs(value) > 1e-9 else "0"


def heading(ax: Axes, text: str, size: float = 11) -> None:
    """An axes' title at the left."""
    ax.set_title(text, loc="left", fontsize=size, fontweight="bold")


def of_lists(n: int, population: str = "hit", split: str = "test") -> str:
    """How many lists, and which."""
    which = {"hit": f"{split} lists that hold their target", "all": f"{split} lists, misses as 0"}
    return f"n = {n:,} {which.get(population, population)}"


def stage_ladder(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Every row's metric with its 95 % interval; dotted lines at the floor and at AR."""
    counts = [row["n"] for row in rows]
    n = of_lists(max(counts), rows[0]["population"])
    some = f", {min(counts):,} at least" if min(counts) < max(counts) else ""
    figure = _ladder(rows, "Every row")
    said = f"{figure.get_label()}"
    return states(figure, n + some, "95 % bootstrap intervals of each row by itself", said)


def seeds_ladder(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The same over several seeds (`pooled`)."""
    rows = [
        {**row, "metrics": {m: v["mean"] for m, v in row["metrics"].items()}} for row in summary
    ]
    figure = _ladder(rows, f"Every row, {summary[0]['seeds']} seeds")
    whose = f"mean over {summary[0]['seeds']} seeds, {summary[0]['population']} users"
    return states(figure, whose, "95 % intervals over people", f"{figure.get_label()}")


def _ladder(every: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Rows downwards, a panel per metric; random and oracle would squash the scale, so they are
    only stated."""
    apart = [row for row in every if row["name"] in ("random", "oracle")]
    rows = [row for row in every if row not in apart]
    figure, axes = new_figure(8.5, 1.0 + 0.24 * len(rows), 1, len(MAIN))
    text: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 8.5}
    for ax, metric in zip(axes[0], MAIN, strict=True):
        for y, row in enumerate(rows):
            name, value, interval = row["name"], row["metrics"][metric], row["ci"][metric]
            anchor = name in ("floor", "ar")
            colour = COLOURS[1] if anchor else COLOURS[0]
            face = "white" if name.endswith("_raw") else colour
            ax.plot(interval, [y, y], color=colour, lw=1.8, solid_capstyle="round")
            ax.plot(value, y, "o", color=colour, markerfacecolor=face, ms=6.5)
            ax.text(1.01, y, f"{value:.3f}", transform=ax.get_yaxis_transform(), **text)
            if anchor:
                ax.axvline(value, color=COLOURS[1], ls=":", lw=1, zorder=0)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.6)
        ax.locator_params(axis="x", nbins=6)
        ax.set_xlabel(metric.upper())
        ax.grid(visible=False, axis="y")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    parts = (
        ["dotted: floor, ar", "hollow: raw rule"]
        if any(row["name"].endswith("_raw") for row in rows)
        else ["dotted: floor, ar"]
    )
    parts += [f"{r['name']} (off the scale): R@1 {r['metrics']['r@1']:.3f}" for r in apart]
    heading(axes[0, 0], title)
    return states(figure, *parts)


def validity(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Raw validity and failure kinds of every row, as an annotated table."""
    share_RX = np.array(
        [[row["raw_valid"], *(row["failures"][kind] for kind in FAILURES)] for row in rows]
    )
    colour_RX = share_RX.copy()
    colour_RX[:, 0] = 1.0 - colour_RX[:, 0]  # dark is bad everywhere
    figure, [[ax]] = new_figure(8.5, 1.3 + 0.34 * len(rows))
    ax.imshow(np.sqrt(colour_RX), cmap="Oranges", vmin=0, vmax=1.15, aspect="auto")
    for (r, c), share in np.ndenumerate(share_RX):
        colour = "white" if np.sqrt(colour_RX[r, c]) > 0.8 else DARK
        weight = "bold" if c == 0 else "normal"
        look = {"color": colour, "fontweight": weight, "fontsize": 9}
        ax.text(c, r, f"{100 * share:.1f} %", ha="center", va="center", **look)
    ax.set_xticks(range(share_RX.shape[1]), ["valid", *(k.replace("_", " ") for k in FAILURES)])
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.tick_params(length=0, labelbottom=False, labeltop=True, bottom=False)
    ax.grid(visible=False)
    ax.axvline(0.5, color="white", lw=4)
    ax.spines[:].set_visible(False)
    heading(ax, "Answers before any repair: valid, or with which failures")
    facts = "shares of outputs; an output can fail in several ways, dark is bad"
    return states(figure, of_lists(max(row["n"] for row in rows)), facts)


TRUST = {"raw_valid": "valid", "coherent": "coherent", "evidence_true": "evidence true"}


def coherence(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What every row's outputs are worth: a panel per share, each with its 95 % interval; the scale
    begins below the worst of them."""
    shown = [key for key in TRUST if any(key in row for row in rows)]
    figure, axes = new_figure(8.5, 0.9 + 0.24 * len(rows), 1, len(shown))
    text: dict[str, Any] = {"ha": "left", "va": "center", "fontsize": 8.5}
    for place, (ax, key) in enumerate(zip(axes[0], shown, strict=True)):
        look, low = LOOKS[place], 1.0
        for y, row in enumerate(rows):
            if key in row:
                value = row[key]
                ends = row["ci"].get(key, (value, value))
                low = min(low, ends[0])
                ax.plot(ends, [y, y], color=look["color"], lw=1.8)
                ax.plot(value, y, ms=6, **look)
                ax.text(1.02, y, f"{value:.3f}", transform=ax.get_yaxis_transform(), **text)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.6)
        begin = max(0.0, np.floor(10 * (low - 0.02)) / 10)
        ax.set_xlim(begin - 0.03 * (1 - begin), 1 + 0.03 * (1 - begin))
        ax.locator_params(axis="x", nbins=4)
        ax.tick_params(labelleft=place == 0)
        ax.grid(visible=False, axis="y")
        heading(ax, TRUST[key])
    facts = "shares of outputs before any repair, of citations for evidence; 95 % intervals"
    note = "valid: an answer as asked; coherent: no statement contradicts another or the ranking"
    return states(figure, of_lists(max(row.get("n", 0) for row in rows)), facts, note)


def paired_differences(rows: Sequence[Mapping[str, Any]], asked: Mapping[str, str]) -> Figure:
    """B − A of two runs: a panel per row and population, a line per metric with its 95 % interval;
    filled where the difference stands after Holm."""
    height = 1.2 + 0.3 * len(rows[0]["metrics"])
    figure, axes = new_figure(7.5, 0.5 + height * len(rows), len(rows))
    for ax, row in zip(axes[:, 0], rows, strict=True):
        for y, test in enumerate(row["metrics"].values()):
            look = LOOKS[{"gain": 2, "none": 0, "loss": 1}[test["verdict"]]]
            face = "white" if test["verdict"] == "none" else look["color"]
            ax.plot(test["ci"], [y, y], color=look["color"], lw=1.8, solid_capstyle="round")
            ax.plot(test["diff"], y, ms=6.5, markerfacecolor=face, **look)
        ax.axvline(0.0, color=GREY, ls=":", lw=1.2, zorder=0)
        ax.set_yticks(range(len(row["metrics"])), [metric.upper() for metric in row["metrics"]])
        ax.set_ylim(len(row["metrics"]) - 0.5, -0.5)
        ax.grid(visible=False, axis="y")
        heading(ax, f"{row['row']}, {row['n']:,} {asked[row['population']]}", 9)
    axes[-1, 0].set_xlabel("B − A, paired 95 % interval; filled: p < .05 after Holm", fontsize=9)
    return states(figure, PAIRED)


def frontier(points: Sequence[Mapping[str, Any]], lines: Mapping[str, float], x: str) -> Figure:
    """R@1 against speed over τ. A point: {rule, tau, r@1, tpf, speedup}; `x` is one of the latter
    two; `lines` are named levels such as AR and floor."""
    figure, [[ax]] = new_figure(7.5, 4.6)
    label: dict[str, Any] = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": DARK}
    rules = list(dict.fromkeys(point["rule"] for point in points))
    reach = max(point[x] for point in points) - min(point[x] for point in points)
    for place, rule in enumerate(rules):
        own = sorted((p for p in points if p["rule"] == rule), key=lambda p: p[x])
        look, last = LOOKS[place + 1], -np.inf
        xs, ys = [p[x] for p in own], [p["r@1"] for p in own]
        ax.plot(xs, ys, ms=6, lw=1.5, label=f"block, {rule}", **look)
        for point in own:
            ends = wilson(round(point["r@1"] * point["n"]), point["n"])
            ax.plot([point[x]] * 2, ends, color=look["color"], lw=1, alpha=0.5)
        above = np.mean(ys) >= np.mean([point["r@1"] for point in points])
        text: dict[str, Any] = {"xytext": (4, 6 if above else -13), "textcoords": "offset points"}
        text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
        for point in own:
            if point[x] - last < 0.05 * reach:
                continue  # no room: the series is in order of τ, so its neighbours tell
            last, tau = point[x], f"τ {point['tau']:g}"
            ax.annotate(tau, (last, point["r@1"]), fontsize=7.5, color=look["color"], **text)
    for name, level in lines.items():
        ax.axhline(level, color=GREY, ls=":", lw=1.2)
        place = ax.get_yaxis_transform()  # x of the axes, y of the data
        ax.text(0.995, level, f"{name} {level:.3f}", transform=place, **label)
    ax.set_xlabel({"tpf": "tokens per forward (TPF)", "speedup": "tokens/s ÷ AR, batch 1"}[x])
    ax.set_ylabel("R@1")
    ax.margins(x=0.08)
    heading(ax, "Block decoding: quality against speed over τ")
    legend_below(figure, *ax.get_legend_handles_labels(), ncols=len(rules))
    n = of_lists(points[0]["n"], split="selection")
    return states(figure, n, "one run; 95 % Wilson intervals of R@1")


def throughput(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Tokens/s against output length at batch 1. A point: {decoder, length, tokens_per_s}."""
    figure, [[ax]] = new_figure(5.7, 3.9)
    decoders = list(dict.fromkeys(point["decoder"] for point in points))
    for place, name in enumerate(decoders):
        own = sorted((p for p in points if p["decoder"] == name), key=lambda p: p["length"])
        xs, ys = [p["length"] for p in own], [p["tokens_per_s"] for p in own]
        ax.plot(xs, ys, ms=6, lw=1.5, label=name, **LOOKS[place])
    lengths = sorted({point["length"] for point in points})
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set(xlabel="output length, tokens", ylabel="tokens/s")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    heading(ax, "Tokens a second, one list at a time")
    legend_below(figure, *ax.get_legend_handles_labels(), ncols=len(decoders))
    return states(figure, "random texts of these lengths, decoders taking turns; medians of rounds")
