"""How training went: a panel per stage, what it drove raw and thin behind its running mean.

Contract: `curve_of` is what of a stage's log is drawn, `smoothed` its running mean over a tenth of
the steps, centred, the ends over what there is; `training_curves` one panel per stage, on a scale
that single spikes do not set. Training lists alone, but for the retriever, whose steps are epochs
and which validation items stop: no other stage looks at them while it trains. Not here: all that a
stage logged, which stays in its metrics.jsonl.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffgr2.evaluate.plots import COLOURS, heading, new_figure, states

DRIVEN = ("validation_ndcg@10", "reward", "kl", "loss")
"""What a panel shows: the first that the stage logged."""
VALID = "rank/valid_rate"
COLUMNS = 3
SPIKES = (2.0, 98.0)


@dataclass(frozen=True)
class Curve:
    """One stage's; `valid` is the share of rollouts that were valid at the last steps."""

    key: str
    step_S: np.ndarray
    value_S: np.ndarray
    mean_S: np.ndarray
    valid: float | None = None

    @property
    def room(self) -> tuple[float, float]:
        """The scale: the whole mean, and of the raw values all but the outermost."""
        low, high = np.percentile(self.value_S, SPIKES)
        low, high = min(low, self.mean_S.min()), max(high, self.mean_S.max())
        margin = 0.06 * (high - low) or 0.05 * (abs(high) or 1.0)
        return float(low - margin), float(high + margin)


def smoothed(value_S: np.ndarray, share: int = 10) -> np.ndarray:
    """The mean over a window of a `share`-th of the steps around each, three at least where there
    are eight, cut at the ends."""
    reach = len(value_S) // (2 * share) or int(len(value_S) >= 8)
    total_S = np.concatenate([[0.0], np.cumsum(value_S, dtype=np.float64)])
    at_S = np.arange(len(value_S))
    first_S, last_S = np.maximum(at_S - reach, 0), np.minimum(at_S + reach + 1, len(value_S))
    return (total_S[last_S] - total_S[first_S]) / (last_S - first_S)


def curve_of(lines: Sequence[Mapping[str, Any]]) -> Curve | None:
    """What of a stage's log is drawn; None of a log without any of it."""
    key = next((key for key in DRIVEN if any(key in line for line in lines)), None)
    if key is None:
        return None
    own = [line for line in lines if key in line]
    value_S = np.array([line[key] for line in own], dtype=np.float64)
    step_S = np.array([line["step"] for line in own])
    rates = [line[VALID] for line in lines if VALID in line]
    valid = float(np.mean(rates[-max(1, len(rates) // 5) :])) if rates else None
    return Curve(key, step_S, value_S, smoothed(value_S), valid)


def training_curves(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A panel per stage that logged something to draw."""
    found = {name: curve for name, lines in stages.items() if (curve := curve_of(lines))}
    rows = max(1, -(-len(found) // COLUMNS))
    columns = min(COLUMNS, max(1, len(found)))
    figure, axes = new_figure(8.5, 0.3 + 2.1 * rows, rows, columns)
    for ax in axes.flat[len(found) :]:
        ax.axis("off")
    for ax, (name, curve) in zip(axes.flat, found.items(), strict=False):
        few = len(curve.value_S) < 20
        thin = {"color": COLOURS[0], "lw": 0.8, "alpha": 0.7 if few else 0.3}
        ax.plot(curve.step_S, curve.value_S, marker="o" if few else "", ms=3.5, **thin)
        ax.plot(curve.step_S, curve.mean_S, color=COLOURS[1], lw=2)
        ax.set_ylim(*curve.room)
        ax.locator_params(nbins=5)
        heading(ax, f"{name}: {curve.key}", 10)
        said = [f"{curve.mean_S[0]:.3g} → {curve.mean_S[-1]:.3g}".replace("-", "−")]
        said += [] if curve.valid is None else [f"{curve.valid:.0%} valid"]
        ax.set_xlabel(" · ".join(["step", *said]), fontsize=9)
        ax.tick_params(labelsize=8.5)
        ax.xaxis.get_major_locator().set_params(integer=True)
        if len(curve.step_S) == 1:
            ax.set_xticks(curve.step_S)
    steps = sum(len(curve.value_S) for curve in found.values())
    facts = "thin: every step, thick: mean of a tenth of them around, of three at least"
    facts += "; valid: rollouts at last"
    return states(figure, f"n = {steps:,} steps on training lists, none of validation", facts)
