"""What probes of the models found, for people: list lengths, views, faithfulness, reliability.

Contract: pure functions from the content of `probes.json` ({lengths, views, faithfulness,
reliability}, every part may be absent) to figures and to sections of the report; every number
printed stands there. Not here: probing, and rows of the results (`results`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from diffgr2.evaluate.metrics import MAIN
from diffgr2.evaluate.plots import (
    COLOURS,
    DARK,
    GREY,
    LOOKS,
    PAIRED,
    heading,
    legend_below,
    new_figure,
    of_lists,
    states,
)
from diffgr2.evaluate.significance import wilson
from diffgr2.evaluate.tables import Columns, at, interval_at, markdown_table, number, span

Probes = Mapping[str, Any]
Points = Sequence[dict[str, Any]]


def by_row(points: Points, key: str) -> dict[str, list[dict[str, Any]]]:
    """The points of each row, by rising `key`."""
    names = dict.fromkeys(point["row"] for point in points)
    return {n: sorted((p for p in points if p["row"] == n), key=lambda p: p[key]) for n in names}


def lengths_figure(points: Points) -> Figure:
    """NDCG@3 and R@1 against the length of the list, a line per row."""
    figure, axes = new_figure(8.5, 3.8, 1, len(MAIN))
    ticks: list[int] = []
    for length in sorted({point["length"] for point in points}):
        if not ticks or length >= 1.15 * ticks[-1]:  # room for the number
            ticks.append(length)
    series = by_row(points, "length")
    for ax, metric in zip(axes[0], reversed(MAIN), strict=True):
        for place, own in enumerate(series.values()):
            kept, look = [p for p in own if metric in p], LOOKS[place % len(LOOKS)]
            xs = [p["length"] for p in kept]
            ax.plot(xs, [p[metric] for p in kept], ms=5.5, lw=1.5, **look)
            for p in kept:
                if found := p.get(f"{metric.partition('@')[0]}_ci"):
                    ax.plot([p["length"]] * 2, found, color=look["color"], lw=1.1, alpha=0.6)
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
        ax.minorticks_off()
        ax.set_ylim(0, 1.03)
        ax.set(xlabel="candidates in the list", ylabel=metric.upper())
    _legend(figure, axes[0, 0], list(series))
    heading(axes[0, 0], "Quality against list length")
    n = max(point["n"] for point in points)
    return states(
        figure, of_lists(n) + " at most", "95 % bootstrap intervals of each row by itself"
    )


def views_figure(points: Points) -> Figure:
    """What more views gain over one (paired intervals), and what they cost."""
    figure, axes = new_figure(9, 3.4, 1, len(MAIN) + 1)
    series = by_row(points, "views")
    for place, own in enumerate(series.values()):
        look, xs = LOOKS[place % len(LOOKS)], [p["views"] for p in own]
        base = {metric: next((p[metric] for p in own if p["views"] == 1), None) for metric in MAIN}
        for ax, metric in zip(axes[0, :-1], MAIN, strict=True):
            ys = [p[metric] - (base[metric] or 0.0) for p in own]
            ax.plot(xs, ys, ms=6, lw=1.5, **look)
            for p in own:
                if found := p.get(f"diff_{metric}_ci"):
                    ax.plot([p["views"]] * 2, found, color=look["color"], lw=1.2, alpha=0.6)
            against = " over one view" if base[metric] is not None else ""
            ax.set(xlabel="views", ylabel=f"{metric.upper()}{against}")
        kept = [p for p in own if p.get("ms_per_list") is not None]
        costs = [p["ms_per_list"] for p in kept]
        axes[0, -1].plot([p["views"] for p in kept], costs, ms=6, lw=1.5, **look)
    for ax in axes[0]:
        ax.set_xticks(sorted({point["views"] for point in points}))
    for ax in axes[0, :-1]:
        ax.axhline(0.0, color=GREY, ls=":", lw=1.2)
    axes[0, -1].set(xlabel="views", ylabel="ms per list")
    axes[0, -1].set_ylim(bottom=0)
    _legend(figure, axes[0, 0], list(series))
    heading(axes[0, 0], "Views: gain and cost")
    n = of_lists(max(point["n"] for point in points))
    return states(figure, n, f"{PAIRED} of the gain over one view; times in batches")


def faithfulness_figure(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """In how many cases a strength moves as cited when the field is taken away."""
    figure, [[ax]] = new_figure(6.4, 1.5 + 0.55 * len(found))
    for y, entry in enumerate(found.values()):
        ax.barh(y, entry["moved"], color=COLOURS[y % len(COLOURS)], height=0.55)
        if ends := entry.get("ci"):
            ax.plot(ends, [y, y], color=DARK, lw=1.6)
        ax.text(0.01, y, f"{entry['moved']:.3f}", va="center", fontsize=9, color="white")
    ax.set_yticks(range(len(found)), [f"{name} (n={e['n']:,})" for name, e in found.items()])
    ax.set_ylim(len(found) - 0.5, -0.5)
    ax.set_xlim(0, 1)
    ax.set_xlabel("share whose strength moves in the cited direction", fontsize=9)
    ax.grid(visible=False, axis="y")
    heading(ax, "One field hidden from the prompt")
    return states(figure, "n: fields taken away", "95 % bootstrap intervals")


def bins_told(bins: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Of every bin the mean chance, the share right with its Wilson interval, the candidates."""
    return [
        {"said": said, "right": right, "n": int(n), "ci": wilson(round(right * n), int(n))}
        for said, right, n in bins
    ]


def reliability_figure(points: Points) -> Figure:
    """Share right against stated probability; on the diagonal a number means what it says."""
    figure, axes = new_figure(8.5, 4.3, 1, len(points))
    for place, (ax, point) in enumerate(zip(axes[0], points, strict=True)):
        told, look = bins_told(point["bins"]), LOOKS[place % len(LOOKS)]
        ax.plot([0, 1], [0, 1], color=GREY, ls=":", lw=1.2)
        for one in told:
            ax.plot([one["said"]] * 2, one["ci"], color=look["color"], lw=1.6, alpha=0.7)
        ax.plot([one["said"] for one in told], [one["right"] for one in told], ms=6, lw=1.2, **look)
        reach = 1.05 * max(max(one["said"], one["ci"][1]) for one in told)
        ax.set(xlim=(0, min(1.02, reach)), ylim=(0, min(1.02, reach)))
        ax.set(xlabel="stated probability (mean of the bin)", ylabel="share right")
        heading(ax, f"{point['row']}: error {number(point.get('ece'), 3)}")
    n = sum(int(n) for _, _, n in points[0]["bins"])
    facts = "bins of equal count, 95 % Wilson intervals; dotted: what is said is so"
    return states(figure, f"n = {n:,} candidates of test lists that hold their target", facts)


def _legend(figure: Figure, ax: Any, names: list[str]) -> None:
    """One line below the panels, the same in all of them; one row per name is drawn first."""
    lines = [line for line in ax.lines if line.get_marker() not in ("", "None", None)]
    legend_below(figure, lines[: len(names)], names, ncols=len(names))


FIGURES = {
    "lengths": lengths_figure,
    "views": views_figure,
    "faithfulness": faithfulness_figure,
    "reliability": reliability_figure,
}


def figures(probes: Probes) -> dict[str, Figure]:
    """A figure for every part that is there."""
    return {name: draw(probes[name]) for name, draw in FIGURES.items() if probes.get(name)}


def _difference(key: str) -> Any:
    """A paired interval with signs, or a dash."""
    return lambda row: span(row[key]) if row.get(key) else "–"


LENGTHS: Columns = (
    ("row", at("row")),
    ("candidates", at("length")),
    ("lists", at("n")),
    ("NDCG@3", at("ndcg@3")),
    ("95 %", interval_at("ndcg_ci", 4)),
    ("R@1", at("r@1")),
    ("answered", at("answered", 3)),
)
VIEWS: Columns = (
    ("row", at("row")),
    ("views", at("views")),
    ("lists", at("n")),
    ("R@1", at("r@1")),
    ("against one view, 95 %", _difference("diff_r@1_ci")),
    ("NDCG@3", at("ndcg@3")),
    ("against one view, 95 %", _difference("diff_ndcg@3_ci")),
    ("ms per list", at("ms_per_list", 1)),
)
FAITHFUL: Columns = (
    ("field", at("row")),
    ("cases", at("n")),
    ("moved as cited", at("moved", 3)),
    ("95 %", interval_at("ci")),
    ("mean change, levels", at("mean_levels", 3)),
)
RELIABLE: Columns = (("row", at("row")), ("calibration error", at("ece")))

TEXTS: dict[str, tuple[str, str, Columns]] = {
    "lengths": (
        "List length",
        "The same users, lists of other lengths; longer ones than a prompt holds go through "
        "windows. *Answered* is the share that the model ranked itself.",
        LENGTHS,
    ),
    "views": (
        "Views",
        "One request shown several times with its candidates shuffled, strengths averaged.",
        VIEWS,
    ),
    "faithfulness": (
        "Faithfulness",
        "One field is hidden from the prompt and the list decoded again: how often the strength "
        "moves in the direction in which the field was cited, against fields that were not.",
        FAITHFUL,
    ),
    "reliability": (
        "Calibration",
        "Bins of equal count over the stated probabilities of all candidates; the error is the "
        "mean distance from the diagonal.",
        RELIABLE,
    ),
}


def sections(probes: Probes) -> str:
    """A section of the report, with its figure, for every part that is there."""
    lines: list[str] = []
    for name, (title, text, columns) in TEXTS.items():
        part = probes.get(name)
        if not part:
            continue
        named = part.items() if isinstance(part, Mapping) else ()
        rows = [{"row": row, **entry} for row, entry in named] or list(part)
        lines += ["", f"## {title}", "", text, "", markdown_table(rows, columns)]
        lines += ["", f"![{title.lower()}]({name}.png)"]
    return "\n".join([*lines, ""]) if lines else ""
