"""The picture that answers "is it better?": rows minus the floor, and minus the strongest rival.

Contract: `answers` is what is drawn, straight from the report's rows: per row and opponent both
metrics' difference with its paired 95 % interval and what that interval allows; `answer_figure`
draws it, the judged row on a band. Filled is surely above or below 0, hollow is not. Not here:
which row is judged (`stages.judge`), the same in words (`closing`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from diffgr2.evaluate.plots import (
    COLOURS,
    DARK,
    GREY,
    PAIRED,
    heading,
    legend_below,
    new_figure,
    of_lists,
    signed_tick,
    states,
)
from diffgr2.evaluate.significance import verdict
from diffgr2.evaluate.verdict import BESIDE, DECIDES

ASKED = (
    *("evidence", "tutor", "lambdamart", "ar_direct", "block_direct", "ar_sft", "ar"),
    *("cft", "cft_opd", "cft_opd_rl", "cft_rl", "verify"),
)
"""Rows of the picture, as far as they stand; the judged one joins them under any name."""

LOOK = {"gain": COLOURS[0], "loss": COLOURS[1], "none": "#6B6B6B"}
MARKS = {DECIDES: "o", BESIDE: "s"}


@dataclass(frozen=True)
class Difference:
    """Of one row, opponent and metric."""

    row: str
    other: str  # floor or rival
    metric: str
    diff: float
    ci: tuple[float, float]

    @property
    def stance(self) -> str:
        return verdict(*self.ci)


def answers(rows: Sequence[Mapping[str, Any]], judged: str, rival: str | None) -> list[Difference]:
    """Every difference of the picture, in the order of the rows."""
    by_name = {row["name"]: row for row in rows}
    found = []
    for name, row in by_name.items():
        if name not in ASKED and name != judged:
            continue
        for other, against in (("floor", "floor"), ("rival", rival)):
            if f"vs_{other}" not in row or against not in by_name:
                continue
            for metric in MARKS:
                diff = row["metrics"][metric] - by_name[against]["metrics"][metric]
                ends = row[f"vs_{other}"][metric]
                found.append(Difference(name, other, metric, diff, (ends[0], ends[1])))
    return found


def answer_figure(found: Sequence[Difference], judged: str, rival: str | None, n: int) -> Figure:
    """A panel per opponent; NDCG@10, which decides, above R@1 in each row."""
    names = list(dict.fromkeys(one.row for one in found))
    others = list(dict.fromkeys(one.other for one in found))
    figure, axes = new_figure(8.5, 1.1 + 0.4 * len(names), 1, len(others))
    titles = {"floor": "minus the floor", "rival": f"minus the strongest rival, {rival}"}
    for ax, other in zip(axes[0], others, strict=True):
        for one in found:
            if one.other == other:
                _mark(ax, one, names.index(one.row))
        ax.axvline(0.0, color=DARK, lw=1, zorder=1)
        if judged in names:
            place = names.index(judged)
            ax.axhspan(place - 0.5, place + 0.5, color="#FFF3C4", zorder=0, lw=0)
        if other == "rival" and rival in names:
            look = {"fontsize": 8.5, "va": "center", "ha": "right", "color": DARK}
            ax.text(0, names.index(rival), "the rival itself ", **look)
        ax.set_yticks(range(len(names)), names)
        for label in ax.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == judged else "normal")
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.margins(x=0.04)
        ax.locator_params(axis="x", nbins=6)
        ax.xaxis.set_major_formatter(signed_tick)
        ax.tick_params(labelleft=ax is axes[0, 0], left=False)
        ax.grid(visible=False, axis="y")
        heading(ax, titles[other], 10)
    first = axes[0, 0]
    for metric, mark in MARKS.items():
        decides = metric == DECIDES
        look = {"marker": mark, "ms": 7 if decides else 4.5, "color": GREY, "ls": "none"}
        first.plot([], [], label=metric.upper() + (", decides" if decides else ""), **look)
    legend_below(figure, *first.get_legend_handles_labels(), ncols=2)
    figure.suptitle(f"Is {judged} better?", x=0.01, ha="left", fontsize=13, fontweight="bold")
    note = "filled blue: better, filled orange: worse, hollow grey: no difference shown"
    return states(figure, of_lists(n), PAIRED, note)


def _mark(ax: Any, one: Difference, place: int) -> None:
    """One difference: its interval and its middle."""
    decides, colour = one.metric == DECIDES, LOOK[one.stance]
    y = place + (-0.16 if decides else 0.2)
    face = colour if one.stance != "none" else "white"
    ax.plot(one.ci, [y, y], color=colour, lw=2.4 if decides else 1.2, solid_capstyle="butt")
    look = {"marker": MARKS[one.metric], "ms": 7 if decides else 4.5, "zorder": 3}
    ax.plot(one.diff, y, color=colour, markerfacecolor=face, **look)
