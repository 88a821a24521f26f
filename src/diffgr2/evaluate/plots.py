"""Figures of a report: stage ladder, frontier, throughput, validity, training curves.

Contract: pure functions from plain data to a `Figure`; `save_figure` writes a PNG without dates,
so the same data gives the same bytes. Colours are the Okabe–Ito set, and every series also has its
own marker, so no figure needs colour to be read. No global pyplot state.
Not here: pictures of one output or one model part (`pictures`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffgr2.errors import ArtifactError
from diffgr2.types import FAILURES

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DECODERS = {"ar": 0, "block": 1, "verify": 2}
GREY, DARK = "#8A8A8A", "#222222"
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": DARK,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 130,
}


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """A figure with the house style and its axes as a 2-D array."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG (no time stamp inside)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    return path


def nothing(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axes = new_figure(6, 1.6)
    axes[0, 0].axis("off")
    axes[0, 0].text(0.5, 0.5, message, ha="center", va="center", color=DARK)
    return figure


def series(name: str, place: int) -> dict[str, Any]:
    """Colour and marker; decoders always have the same."""
    index = DECODERS.get(name, place) % len(COLOURS)
    return {"color": COLOURS[index], "marker": MARKERS[index]}


def stage_ladder(
    report: Mapping[str, Any],
    population: str = "hit",
    metrics: Sequence[str] = ("r@1", "ndcg@3"),
) -> Figure:
    """Every row's metric with its 95 % interval; dotted lines at the floor and at AR."""
    every = [row for row in report["rows"] if row["population"] == population]
    entries = [
        (row["name"], {m: (row["metrics"][m], *row["ci"][m]) for m in metrics}) for row in every
    ]
    n = max((row["n"] for row in every), default=0)
    title = f"Stages, {population} users (n = {n:,})"
    return _ladder(entries, metrics, title, "95 % bootstrap interval of the row itself")


def seeds_ladder(
    summary: Sequence[Mapping[str, Any]],
    population: str = "hit",
    metrics: Sequence[str] = ("r@1", "ndcg@3"),
) -> Figure:
    """The same over several seeds (`tables.over_seeds`): mean and sample deviation."""
    entries, seeds = [], 0
    for row in summary:
        if row["population"] != population:
            continue
        seeds = row["seeds"]
        triples = {}
        for metric in metrics:
            mean, sd = row["metrics"][metric]["mean"], row["metrics"][metric]["sd"] or 0.0
            triples[metric] = (mean, mean - sd, mean + sd)
        entries.append((row["name"], triples))
    title = f"Stages, {population} users, {seeds} seeds"
    return _ladder(entries, metrics, title, "mean ± standard deviation over seeds")


def _ladder(
    every: Sequence[tuple[str, Mapping[str, tuple[float, float, float]]]],
    metrics: Sequence[str],
    title: str,
    meaning: str,
) -> Figure:
    """Rows downwards, a panel per metric; random and oracle would squash the scale, so they are
    named in the subtitle."""
    entries = [entry for entry in every if entry[0] not in ("random", "oracle")]
    if not entries:
        return nothing("no rows to draw")
    figure, axes = new_figure(9.5, 1.6 + 0.32 * len(entries), 1, len(metrics))
    for ax, metric in zip(axes[0], metrics, strict=True):
        for y, (name, triples) in enumerate(entries):
            value, low, high = triples[metric]
            anchor = name in ("floor", "ar")
            colour = COLOURS[1] if anchor else COLOURS[0]
            ax.plot([low, high], [y, y], color=colour, lw=1.8, solid_capstyle="round")
            face = "white" if name.endswith("_raw") else colour
            ax.plot(value, y, "o", color=colour, markerfacecolor=face, ms=6.5)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
            ax.text(
                value, y - 0.2, f"{value:.3f}", ha="center", va="bottom", fontsize=7.5, bbox=box
            )
            if anchor:
                ax.axvline(value, color=COLOURS[1], ls=":", lw=1, zorder=0)
        ax.set_yticks(range(len(entries)), [name for name, _ in entries])
        ax.set_ylim(len(entries) - 0.5, -0.85)
        ax.locator_params(axis="x", nbins=6)
        ax.set_xlabel(f"{metric.upper()}, {meaning}")
        ax.xaxis.label.set_fontsize(9)
        ax.grid(visible=False, axis="y")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    parts = []
    if any(name.endswith("_raw") for name, _ in entries):
        parts.append("hollow: raw rule")
    parts += [
        f"{name} (off the scale): {metrics[0].upper()} {triples[metrics[0]][0]:.3f}"
        for name, triples in every
        if name in ("random", "oracle")
    ]
    _title(figure, title, " · ".join(parts))
    return figure


def _title(figure: Figure, main: str, small: str) -> None:
    """A title and a smaller line under it, both at the left."""
    figure.suptitle(f"{main}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.01, 0.985 - 0.27 / figure.get_figheight(), small, fontsize=9, va="top")


def heading(ax: Axes, text: str, size: float = 11) -> None:
    """An axes' title at the left."""
    ax.set_title(text, loc="left", fontsize=size, fontweight="bold")


def frontier(
    points: Sequence[Mapping[str, Any]],
    lines: Mapping[str, float] | None = None,
    metric: str = "r@1",
    x: str = "tpf",
) -> Figure:
    """Quality against speed. A point: {series, threshold, tpf or speedup, value, ci}; `lines` are
    named levels such as AR and floor."""
    usable = [point for point in points if point.get(x) is not None]
    if not usable:
        return nothing("no thresholds were measured")
    figure, axes = new_figure(7.5, 4.6)
    ax = axes[0, 0]
    names = list(dict.fromkeys(point["series"] for point in usable))
    reach = max(point[x] for point in usable) - min(point[x] for point in usable)
    for place, name in enumerate(names):
        own = sorted((p for p in usable if p["series"] == name), key=lambda p: p[x])
        xs, ys = [p[x] for p in own], [p["value"] for p in own]
        look = series(name, place + 1)
        ax.plot(xs, ys, ms=6, lw=1.5, label=name, **look)
        for point in own:
            if point.get("ci"):
                ax.plot([point[x]] * 2, point["ci"], color=look["color"], lw=1, alpha=0.5)
        last = -np.inf
        for point in own:
            if point.get("threshold") is None or point[x] - last < 0.05 * reach:
                continue  # no room: the series is in order of τ, so its neighbours tell
            last = point[x]
            ax.annotate(
                f"τ {point['threshold']:g}",
                (point[x], point["value"]),
                xytext=(4, 6) if place % 2 == 0 else (-4, -13),
                ha="left" if place % 2 == 0 else "right",
                textcoords="offset points",
                fontsize=7.5,
                color=look["color"],
            )
    for name, level in (lines or {}).items():
        ax.axhline(level, color=GREY, ls=":", lw=1.2)
        ax.annotate(
            f"{name} {level:.3f}",
            (1, level),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=DARK,
        )
    words = {"tpf": "tokens per forward (TPF)", "speedup": "tokens/s ÷ AR, batch 1"}
    ax.set_xlabel(words.get(x, x))
    banded = any(point.get("ci") for point in usable)
    ax.set_ylabel(f"{metric.upper()}, 95 % interval" if banded else metric.upper())
    ax.margins(x=0.08)
    heading(ax, "Quality against speed over the threshold τ")
    figure.legend(loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def throughput(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Tokens/s against output length, a panel per batch size. A point: {decoder, batch, tokens,
    tokens_per_s}."""
    if not points:
        return nothing("throughput was not measured")
    batches = sorted({point["batch"] for point in points})
    figure, axes = new_figure(1.5 + 4.2 * len(batches), 3.9, 1, len(batches))
    lengths = sorted({point["tokens"] for point in points})
    decoders = list(dict.fromkeys(point["decoder"] for point in points))
    for ax, batch in zip(axes[0], batches, strict=True):
        for place, name in enumerate(decoders):
            own = [p for p in points if p["batch"] == batch and p["decoder"] == name]
            own.sort(key=lambda p: p["tokens"])
            xs, ys = [p["tokens"] for p in own], [p["tokens_per_s"] for p in own]
            ax.plot(xs, ys, ms=6, lw=1.5, label=name, **series(name, place))
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{length:,}" for length in lengths])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel("output length, tokens")
        ax.yaxis.set_major_formatter("{x:,.0f}")
        heading(ax, f"Batch {batch}")
    axes[0, 0].set_ylabel("tokens/s")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(decoders), frameon=False)
    return figure


def validity(report: Mapping[str, Any], population: str = "hit") -> Figure:
    """Raw validity and failure kinds of every row, as an annotated table."""
    rows = [r for r in report["rows"] if r["population"] == population and "raw_valid" in r]
    if not rows:
        return nothing("no row has raw answers")
    share_RX = np.array(
        [
            [row["raw_valid"], *(row.get("failures", {}).get(kind, np.nan) for kind in FAILURES)]
            for row in rows
        ]
    )
    colour_RX = share_RX.copy()
    colour_RX[:, 0] = 1.0 - colour_RX[:, 0]  # dark is bad everywhere
    figure, axes = new_figure(8.5, 1.3 + 0.34 * len(rows))
    ax = axes[0, 0]
    image = ax.imshow(np.sqrt(colour_RX), cmap="Oranges", vmin=0, vmax=1, aspect="auto")
    image.set_clim(0, 1.15)
    for (r, c), share in np.ndenumerate(share_RX):
        text = "–" if np.isnan(share) else f"{100 * share:.1f} %"
        colour = "white" if np.sqrt(colour_RX[r, c]) > 0.8 else DARK
        weight = "bold" if c == 0 else "normal"
        ax.text(c, r, text, ha="center", va="center", color=colour, fontsize=9, fontweight=weight)
    ax.set_xticks(range(share_RX.shape[1]), ["valid", *(k.replace("_", " ") for k in FAILURES)])
    ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
    ax.tick_params(length=0, labelbottom=False, labeltop=True, bottom=False)
    ax.grid(visible=False)
    ax.axvline(0.5, color="white", lw=4)
    ax.spines[:].set_visible(False)
    heading(ax, "Raw answers: share valid, and share with each failure (one can have several)")
    return figure


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl file; a last line that was cut off is left out."""
    records = []
    lines = path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ArtifactError(f"{path}: line {number} is not JSON") from None
    return records


CURVES = ("loss", "grad_norm", "reward", "kl", "entropy", "completions/mean_length", "raw_valid")


def training_curves(
    stages: Mapping[str, Sequence[Mapping[str, Any]]], keys: Sequence[str] = CURVES
) -> Figure:
    """A row per stage, a column per metric that any stage logged: faint raw, solid running mean."""
    used = [k for k in keys if any(_points(records, k)[1] for records in stages.values())]
    stages = {s: r for s, r in stages.items() if any(_points(r, k)[1] for k in used)}
    if not used or not stages:
        return nothing("no training metrics were logged")
    figure, axes = new_figure(1 + 2.7 * len(used), 0.7 + 1.75 * len(stages), len(stages), len(used))
    for row, (stage, records) in enumerate(stages.items()):
        for column, key in enumerate(used):
            ax: Axes = axes[row, column]
            xs, ys = _points(records, key)
            if not ys:
                ax.axis("off")
                if column == 0:
                    ax.text(0, 0.5, stage, fontweight="bold", transform=ax.transAxes)
                continue
            width = max(1, len(ys) // 20)
            mark = "o" if len(ys) == 1 else ""
            faint = 0.25 if width > 1 else 1
            ax.plot(xs, ys, color=COLOURS[0], alpha=faint, lw=1, marker=mark, ms=4)
            if width > 1:
                smooth = np.convolve(ys, np.ones(width) / width, mode="valid")
                centre = (width - 1) // 2
                ax.plot(xs[centre : centre + len(smooth)], smooth, color=COLOURS[0], lw=1.8)
            heading(ax, f"{stage}: {key}", 9)
            ax.tick_params(labelsize=8)
            if row == len(stages) - 1:
                ax.set_xlabel("step")
    return figure


def _points(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of a key."""
    pairs = [
        (record.get("step", number), record[key])
        for number, record in enumerate(records)
        if isinstance(record.get(key), int | float) and np.isfinite(record[key])
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]
