"""The report's figures: tables over rows, curves, and pictures of single things.

Contract: pure functions from plain data, of which there is some, to a `Figure`; `save_figure`
writes a PNG, SVG or PDF without dates, so the same data gives the same bytes. Colours are the
Okabe–Ito set, and every series also has its own marker, so no figure needs colour to be read. No
global pyplot state. Not here: which figures a report has (`stages.report`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffgr2.evaluate.metrics import MAIN
from diffgr2.types import FAILURES, MISS

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
CURVES = ("loss", "grad_norm", "reward", "kl", "entropy", "rank/valid_rate", "rank/r@1")
UNDATED: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None},
    ".pdf": {"CreationDate": None},
}
"""Kinds of pictures, each with what it would say of when or by what it was made."""
TEXTS = 64  # more tokens than this are drawn without their texts


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


def heading(ax: Axes, text: str, size: float = 11) -> None:
    """An axes' title at the left."""
    ax.set_title(text, loc="left", fontsize=size, fontweight="bold")


def stage_ladder(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Every row's metric with its 95 % interval; dotted lines at the floor and at AR."""
    n = max(row["n"] for row in rows)
    title = f"Stages, {rows[0]['population']} users (n = {n:,})"
    return _ladder(rows, title, "95 % bootstrap interval of the row itself")


def seeds_ladder(summary: Sequence[Mapping[str, Any]]) -> Figure:
    """The same over several seeds (`pooled`)."""
    rows = [
        {**row, "metrics": {m: v["mean"] for m, v in row["metrics"].items()}} for row in summary
    ]
    title = f"Stages, {summary[0]['population']} users, {summary[0]['seeds']} seeds"
    return _ladder(rows, title, "mean over seeds, 95 % interval over people")


def _ladder(every: Sequence[Mapping[str, Any]], title: str, meaning: str) -> Figure:
    """Rows downwards, a panel per metric; random and oracle would squash the scale, so they are
    named in the subtitle."""
    apart = [row for row in every if row["name"] in ("random", "oracle")]
    rows = [row for row in every if row not in apart]
    figure, axes = new_figure(9.5, 1.6 + 0.32 * len(rows), 1, len(MAIN))
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
    text: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 7.5, "bbox": box}
    for ax, metric in zip(axes[0], MAIN, strict=True):
        for y, row in enumerate(rows):
            name, value, interval = row["name"], row["metrics"][metric], row["ci"][metric]
            anchor = name in ("floor", "ar")
            colour = COLOURS[1] if anchor else COLOURS[0]
            face = "white" if name.endswith("_raw") else colour
            ax.plot(interval, [y, y], color=colour, lw=1.8, solid_capstyle="round")
            ax.plot(value, y, "o", color=colour, markerfacecolor=face, ms=6.5)
            ax.text(value, y - 0.2, f"{value:.3f}", **text)
            if anchor:
                ax.axvline(value, color=COLOURS[1], ls=":", lw=1, zorder=0)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.85)
        ax.locator_params(axis="x", nbins=6)
        ax.set_xlabel(f"{metric.upper()}, {meaning}", fontsize=9)
        ax.grid(visible=False, axis="y")
    for ax in axes[0, 1:]:
        ax.tick_params(labelleft=False)
    parts = ["hollow: raw rule"] if any(row["name"].endswith("_raw") for row in rows) else []
    parts += [f"{r['name']} (off the scale): R@1 {r['metrics']['r@1']:.3f}" for r in apart]
    figure.suptitle(f"{title}\n", x=0.01, ha="left", fontsize=12, fontweight="bold")
    y = 0.985 - 0.27 / figure.get_figheight()
    figure.text(0.01, y, " · ".join(parts), fontsize=9, va="top")
    return figure


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
    heading(ax, "Raw answers: share valid, and share with each failure (one can have several)")
    return figure


def coherence(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """What every row's outputs are worth: a panel per share, each with its 95 % interval."""
    named = {"raw_valid": "raw valid", "coherent": "coherent", "evidence_true": "evidence true"}
    shown = [key for key in named if any(key in row for row in rows)]
    figure, axes = new_figure(1.7 + 2.7 * len(shown), 1.3 + 0.28 * len(rows), 1, len(shown))
    for place, (ax, key) in enumerate(zip(axes[0], shown, strict=True)):
        look = LOOKS[place]
        for y, row in enumerate(rows):
            if key in row:
                value = row[key]
                ax.plot(row["ci"].get(key, (value, value)), [y, y], color=look["color"], lw=1.8)
                ax.plot(value, y, ms=6, **look)
        ax.set_yticks(range(len(rows)), [row["name"] for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlim(-0.04, 1.04)
        ax.tick_params(labelleft=place == 0)
        ax.grid(visible=False, axis="y")
        heading(ax, named[key])
    figure.supxlabel("share of outputs (evidence: of citations), 95 % interval", fontsize=9)
    return figure


def rank_moves(floor_rank_L: np.ndarray, final_rank_L: np.ndarray, k: int, name: str) -> Figure:
    """Where the target stood and where it ended: row shares with counts, diagonal outlined."""
    keep_L = (floor_rank_L != MISS) & (final_rank_L >= 0)
    count_KK = np.zeros((k, k), dtype=np.int64)
    np.add.at(count_KK, (floor_rank_L[keep_L], final_rank_L[keep_L]), 1)
    share_KK = count_KK / np.maximum(count_KK.sum(1, keepdims=True), 1)
    figure, [[ax]] = new_figure(1.9 + 0.56 * k, 1.4 + 0.46 * k)
    limit = max(0.5, float(share_KK.max()))
    image = ax.imshow(share_KK, cmap="Blues", vmin=0, vmax=limit, aspect="auto")
    for (r, c), count in np.ndenumerate(count_KK):
        if count:
            colour = "white" if share_KK[r, c] > 0.55 * limit else DARK
            ax.text(c, r, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    for r in range(k):
        ax.add_patch(Rectangle((r - 0.5, r - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.3))
    totals = count_KK.sum(1)
    ax.set_xticks(range(k), [str(r + 1) for r in range(k)])
    ax.set_yticks(range(k), [f"{r + 1}  (n={totals[r]:,})" for r in range(k)])
    ax.set(xlabel=f"target's rank after {name}", ylabel="target's rank in the floor")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    up, down = np.tril(count_KK, -1).sum(), np.triu(count_KK, 1).sum()
    heading(ax, f"Targets moved: {up:,} up, {np.trace(count_KK):,} kept, {down:,} down")
    figure.colorbar(image, ax=ax, label="share of the floor rank's users")
    return figure


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
    return figure


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
        text: dict[str, Any] = {"xytext": (4, -13 if place else 6), "textcoords": "offset points"}
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
    heading(ax, f"Quality against speed over τ ({points[0]['n']:,} lists of selection users)")
    figure.legend(loc="outside lower center", ncols=len(rules), frameon=False)
    return figure


RIVALS = ("evidence", "evidence_mlp", "tutor", "lambdamart")
RIVAL_MARKS = "PshX"
OURS = ("ar_direct", "block_direct", "ar", "cft_opd_rl", "verify")


def quality_speed(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Quality against milliseconds per list, both with their spread: 95 % intervals upwards, least
    and most of the rounds sideways; dotted levels are rows that nobody timed, the floor first."""
    figure, axes = new_figure(10.5, 4.8, 1, len(MAIN))
    for ax, metric in zip(axes[0], MAIN, strict=True):
        for row in rows:
            name, value = row["name"], row["metrics"][metric]
            ours, low_high = name in OURS, row["ci"][metric]
            if not (ours or name in RIVALS or name == "floor"):
                continue
            if name == "floor" or "ms_per_list" not in row:
                ax.axhline(value, color=GREY, ls=":", lw=1.2)
                place = ax.get_yaxis_transform()
                ax.text(0.01, value, name, transform=place, va="bottom", fontsize=8)
                continue
            look = LOOKS[OURS.index(name) if ours else len(OURS)]
            line = {"ls": "none"} | ({} if ours else {"marker": RIVAL_MARKS[RIVALS.index(name)]})
            x, ends = row["ms_per_list"], [row["low_ms"], row["high_ms"]]
            ax.plot([x, x], low_high, color=look["color"], lw=1.6, solid_capstyle="round")
            ax.plot(ends, [value, value], color=look["color"], lw=1.6, solid_capstyle="round")
            face = look["color"] if ours else "white"
            ax.plot(x, value, ms=7, markerfacecolor=face, label=name, **look | line)
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.margins(x=0.22)
        ax.set_xlabel("milliseconds per list, one at a time, from the request on", fontsize=9)
        ax.set_ylabel(metric.upper())
    heading(axes[0, 0], f"Quality against time (n = {rows[0]['n']:,} lists; hollow: rivals)")
    marks, names = axes[0, 0].get_legend_handles_labels()  # beside the marks names would overlap
    figure.legend(marks, names, loc="outside lower center", ncols=len(names) or 1, frameon=False)
    return figure


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
    heading(ax, "Batch 1")
    figure.legend(loc="outside lower center", ncols=len(decoders), frameon=False)
    return figure


def trajectory(
    step_of_T: np.ndarray, texts: Sequence[str], block_size: int, first_border: int
) -> Figure:
    """Position × forward: a filled cell is the commit, the tint above it is waiting masked, the
    shade below it is done (a whole column of it: given before the first forward). Blocks of
    `block_size` have dashed borders, from `first_border` on."""
    n, steps = len(step_of_T), max(int(step_of_T.max()) + 1, 1)
    shown = n <= TEXTS
    width = min(16.0, max(7.0, 1.2 + n * (0.2 if shown else 0.12)))
    height = min(9.0, max(2.6, 1.6 + 0.2 * steps)) + (1.0 if shown else 0.0)
    figure, [[ax]] = new_figure(width, height)
    step_S1 = np.arange(steps)[:, None]
    state_ST = np.where(step_S1 < step_of_T, 0.0, np.where(step_S1 == step_of_T, 2.0, 1.0))
    commit_ST = np.where(state_ST == 2, step_S1, np.nan)
    look: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
    ax.imshow(state_ST, cmap="Greys", vmin=0, vmax=6, **look)
    image = ax.imshow(commit_ST, cmap="viridis", norm=Normalize(0, max(1, steps - 1)), **look)
    for border in range(first_border, n, block_size):
        ax.axvline(border - 0.5, color=COLOURS[1], lw=1.2, ls="--")
    if shown:
        ax.set_xticks(range(n), [_clip(text) for text in texts], rotation=90, fontsize=7)
    ax.set(xlabel="token" if shown else "position in the output", ylabel="forward")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(visible=False)
    bar = figure.colorbar(image, ax=ax, label="committed by forward", pad=0.01)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)
    facts = f"{n} tokens, {steps} forwards, {n / steps:.1f} per forward"
    facts += f"; white: still masked, grey: done, dashed: blocks of {block_size}"
    heading(ax, f"One output: which forward committed which position\n{facts}", 10)
    return figure


def _clip(text: str, length: int = 14) -> str:
    """A token's text for a tick: visible white space, no mathtext, not too long."""
    text = text.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def training_curves(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A row per stage, a column per metric that any stage logged: faint raw, solid running mean."""
    used = [k for k in CURVES if any(k in line for lines in stages.values() for line in lines)]
    figure, axes = new_figure(1 + 2.7 * len(used), 0.7 + 1.75 * len(stages), len(stages), len(used))
    for ax_C, (stage, lines) in zip(axes, stages.items(), strict=True):
        for ax, key in zip(ax_C, used, strict=True):
            own = [line for line in lines if key in line]
            if not own:
                ax.axis("off")
                continue
            xs, ys = [line["step"] for line in own], [line[key] for line in own]
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
    for ax in axes[-1]:
        ax.set_xlabel("step")
    return figure


def sid_usage(codes_IL: np.ndarray, size: int) -> Figure:
    """Per level, how many items each code has, most used first, against an even split."""
    figure, [[ax]] = new_figure(8, 4)
    for level in range(codes_IL.shape[1]):
        count_C = np.bincount(codes_IL[:, level], minlength=size)
        count_C = np.sort(count_C[count_C > 0])[::-1]
        share_C = count_C / count_C.sum()
        perplexity = float(np.exp(-(share_C * np.log(share_C)).sum()))
        label = f"level {level + 1}: {len(share_C)}/{size} used, perplexity {perplexity:.0f}"
        look = {"markevery": max(1, size // 12), "ms": 5, "lw": 1.5, **LOOKS[level % len(LOOKS)]}
        ax.plot(np.arange(1, len(share_C) + 1), count_C, label=label, **look)
    ax.axhline(len(codes_IL) / size, color=GREY, ls=":", lw=1.2, label="even split")
    ax.set(yscale="log", xlabel="code, most used first", ylabel="items with this code")
    heading(ax, f"Semantic-ID usage of {len(codes_IL):,} items")
    ax.legend(loc="lower left", fontsize=9, frameon=False)
    return figure
