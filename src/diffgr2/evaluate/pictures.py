"""Pictures of single things: where targets moved, one output step by step, which codes are used.

Contract: as `plots`, pure functions from arrays to a `Figure` that states what it is about. Not
here: rows of the results (`plots`), which list is drawn (`stages.report`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from diffgr2.evaluate.plots import COLOURS, DARK, GREY, LOOKS, heading, new_figure, of_lists, states
from diffgr2.types import MISS

TEXTS = 64  # more tokens than this are drawn without their texts


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
    figure.colorbar(image, ax=ax, label="share of the floor rank's lists")
    return states(figure, of_lists(int(count_KK.sum())), "counts of lists, outlined: not moved")


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
    heading(ax, f"One output: which forward committed which position\n{facts}", 10)
    note = f"white: still masked, grey: done, dashed: blocks of {block_size}"
    return states(figure, "n = 1 test list, the first that holds its target", note)


def _clip(text: str, length: int = 14) -> str:
    """A token's text for a tick: visible white space, no mathtext, not too long."""
    text = text.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


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
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())
    heading(ax, f"Semantic-ID usage of {len(codes_IL):,} items")
    ax.legend(loc="lower left", fontsize=9, frameon=False)
    return states(figure, f"n = {len(codes_IL):,} items, all of the catalogue")
