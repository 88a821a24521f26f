"""Quality against milliseconds: every decoder, its rivals, and what more views cost and bring.

Contract: `timed_points` joins rows with their times at one batch size, `view_points` adds what
probes found of several views; both are plain data from reports. `quality_speed` draws rows one list
at a time and, where times in batches are given, those below, with views, which are decoded in
batches too. Not here: measuring (`stages.pace`, `stages.probes`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffgr2.evaluate.metrics import MAIN
from diffgr2.evaluate.plots import (
    DARK,
    GREY,
    LOOKS,
    heading,
    legend_below,
    new_figure,
    of_lists,
    states,
)

RIVALS = ("evidence", "tutor", "lambdamart")
RIVAL_MARKS = "PhX"
LEVELS = ("floor", *RIVALS)
OURS = ("ar_direct", "block_direct", "ar", "cft_opd_rl", "verify", "student_ar")
TIMES = ("ms_per_list", "low_ms", "high_ms")

Points = Sequence[Mapping[str, Any]]


def timed_points(rows: Points, times: Points, batch: int) -> list[dict[str, Any]]:
    """Rows with their times at this batch size: {name, n, metrics, ci, ms_per_list, low_ms, …}."""
    spent = {one["row"]: one for one in times if one["batch"] == batch}
    return [
        {**{key: row[key] for key in ("name", "n", "metrics", "ci")}}
        | {key: spent[row["name"]][key] for key in TIMES}
        for row in rows
        if row["name"] in spent
    ]


def view_points(views: Points) -> list[dict[str, Any]]:
    """By row and number of views: what more views gain over one, with its paired interval."""
    base = {p["row"]: p for p in views if p["views"] == 1}
    found = []
    for p in views:
        if p["row"] not in base or p.get("ms_per_list") is None:
            continue
        one = base[p["row"]]
        ends = {m: [one[m] + end for end in p.get(f"diff_{m}_ci", (0.0, 0.0))] for m in MAIN}
        metrics = {m: p[m] for m in MAIN}
        point = {"name": p["row"], "views": p["views"], "n": p["n"], "metrics": metrics}
        found.append(point | {"ci": ends, "ms_per_list": p["ms_per_list"]})
    return found


def quality_speed(rows: Points, batched: Points = (), views: Points = ()) -> Figure:
    """95 % intervals upwards, least and most of the rounds sideways; dotted levels are the floor
    and rivals that nobody timed."""
    lower = bool(batched or views)
    figure, axes = new_figure(8.5, 6.9 if lower else 4.0, 1 + lower, len(MAIN))
    panels: list[tuple[Points, Points, str]] = [(rows, (), "one at a time")]
    panels += [(batched, views, "in batches")] if lower else []
    for axes_C, (own, more, how) in zip(axes, panels, strict=True):
        for ax, metric in zip(axes_C, MAIN, strict=True):
            for row in own:
                _row(ax, row, metric)
            _views(ax, more, metric)
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.margins(x=0.1)
            ax.set_ylabel(metric.upper())
            ax.set_xlabel(f"milliseconds per list, {how}", fontsize=9)
            low, high = room([*own, *more], metric)
            ax.set_ylim(low, high)
            for row in rows:
                if row["name"] in LEVELS and (how == "one at a time" or row["name"] == "floor"):
                    _level(ax, row, metric)
    heading(axes[0, 0], "Quality against time")
    found: dict[str, Any] = {}
    for ax in axes.flat:
        found |= {name: mark for mark, name in zip(*ax.get_legend_handles_labels(), strict=True)}
    legend_below(figure, found.values(), list(found), ncols=5)
    n = of_lists(max(row["n"] for row in rows))
    facts = "95 % bootstrap intervals of each row by itself; sideways least and most of the rounds"
    more = ""
    if views:
        more = f"views (numbers): {views[0]['n']:,} of these lists, intervals of the gain over one"
    return states(figure, n, facts, "hollow: without a language model", more)


def _look(name: str) -> dict[str, Any]:
    """A row's marks; rivals are hollow."""
    if name in OURS:
        return LOOKS[OURS.index(name)] | {"ls": "none"}
    return LOOKS[len(OURS)] | {"marker": RIVAL_MARKS[RIVALS.index(name)], "ls": "none"}


def room(points: Points, metric: str) -> tuple[float, float]:
    """The scale: all intervals of what was timed; levels do not set it."""
    known = [p for p in points if "ms_per_list" in p and p["name"] in (*OURS, *RIVALS)]
    ends = [end for p in known for end in (*p["ci"][metric], p["metrics"][metric])] or [0.0, 1.0]
    margin = 0.1 * (max(ends) - min(ends)) or 0.05
    return max(0.0, min(ends) - margin), max(ends) + margin


def _level(ax: Axes, row: Mapping[str, Any], metric: str) -> None:
    """A row that nobody timed: a dotted line, or in words which way it lies off the scale."""
    value, (low, high) = row["metrics"][metric], ax.get_ylim()
    look: dict[str, Any] = {"transform": ax.get_yaxis_transform(), "fontsize": 8.5, "ha": "right"}
    if "ms_per_list" in row:
        return
    if low <= value <= high:
        ax.axhline(value, color=GREY, ls=":", lw=1.2)
        ax.text(0.99, value, row["name"], va="bottom", **look)
        return
    look["transform"] = ax.transAxes
    way, y = ("below ↓", 0.02) if value < low else ("above ↑", 0.98)
    ax.text(0.99, y, f"{row['name']} {value:.3f}, {way}", va="bottom" if y < 0.5 else "top", **look)


def _row(ax: Axes, row: Mapping[str, Any], metric: str) -> None:
    """One row that was timed, with both its spreads."""
    name, value = row["name"], row["metrics"][metric]
    if not ((name in OURS or name in RIVALS) and "ms_per_list" in row):
        return
    look, x = _look(name), row["ms_per_list"]
    line = {"color": look["color"], "lw": 1.4, "solid_capstyle": "round"}
    ax.plot([x, x], row["ci"][metric], **line)
    ax.plot([row["low_ms"], row["high_ms"]], [value, value], **line)
    face = look["color"] if name in OURS else "white"
    ax.plot(x, value, ms=7, markerfacecolor=face, label=name, **look)


def _views(ax: Axes, views: Points, metric: str) -> None:
    """A line per row through its view counts, each count beside its mark."""
    for name in dict.fromkeys(point["name"] for point in views):
        own = sorted((p for p in views if p["name"] == name), key=lambda p: p["views"])
        look: dict[str, Any] = {"color": DARK, "marker": "o", "ls": "--"}
        look |= {**_look(name), "ls": "--"} if name in OURS else {}
        xs, ys = [p["ms_per_list"] for p in own], [p["metrics"][metric] for p in own]
        ax.plot(xs, ys, ms=4.5, lw=1.1, markerfacecolor="white", label=f"{name}, views", **look)
        for point, x, y in zip(own, xs, ys, strict=True):
            ax.plot([x, x], point["ci"][metric], color=look["color"], lw=0.9, alpha=0.6)
            text: dict[str, Any] = {"xytext": (4, 4), "textcoords": "offset points"}
            text["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 0.3, "alpha": 0.8}
            ax.annotate(str(point["views"]), (x, y), fontsize=8.5, color=look["color"], **text)
