"""Pictures of single things: one decode's trajectory, rank moves, semantic-ID usage.

Contract: as `plots`: plain arrays in, a `Figure` out, nothing global. Not here: tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from diffgr2.evaluate.plots import COLOURS, DARK, GREY, MARKERS, heading, new_figure, nothing
from diffgr2.types import MISS

TEXTS = 64  # more tokens than this are drawn without their texts


def trajectory(
    step_of_T: np.ndarray,
    texts: Sequence[str] | None = None,
    block_size: int | None = None,
    title: str = "One output: which forward committed which position",
    *,
    first_border: int | None = None,
) -> Figure:
    """Position × forward: a filled cell is the commit, the tint above it is waiting masked, the
    shade below it is done. `block_size` draws the borders of blocks, the first one at
    `first_border` (blocks are counted from position 0 without it)."""
    n = len(step_of_T)
    if n == 0:
        return nothing("the output is empty")
    steps = int(step_of_T.max()) + 1
    shown = texts is not None and n <= TEXTS
    width = min(16.0, max(7.0, 1.2 + n * (0.2 if shown else 0.12)))
    height = min(9.0, max(2.6, 1.6 + 0.2 * steps)) + (1.0 if shown else 0.0)
    figure, axes = new_figure(width, height)
    ax = axes[0, 0]
    step_S1 = np.arange(steps)[:, None]
    state_ST = np.where(step_S1 < step_of_T, 0.0, np.where(step_S1 == step_of_T, 2.0, 1.0))
    ax.imshow(state_ST, cmap="Greys", vmin=0, vmax=6, aspect="auto", interpolation="nearest")
    commit_ST = np.where(state_ST == 2, np.broadcast_to(step_S1, state_ST.shape), np.nan)
    image = ax.imshow(
        commit_ST,
        cmap="viridis",
        norm=Normalize(0, max(1, steps - 1)),
        aspect="auto",
        interpolation="nearest",
    )
    if block_size:
        for border in range(first_border or block_size, n, block_size):
            ax.axvline(border - 0.5, color=COLOURS[1], lw=1.2, ls="--")
    if shown and texts is not None:
        ax.set_xticks(range(n), [_clip(text) for text in texts], rotation=90, fontsize=7)
        ax.set_xlabel("token")
    else:
        ax.set_xlabel("position in the output")
    ax.set_ylabel("forward")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(visible=False)
    bar = figure.colorbar(image, ax=ax, label="committed by forward", pad=0.01)
    bar.ax.yaxis.get_major_locator().set_params(integer=True)
    borders = f", dashed: blocks of {block_size}" if block_size else ""
    facts = f"{n} tokens, {steps} forwards, {n / steps:.1f} per forward"
    heading(ax, f"{title}\n{facts}; white: still masked, grey: done{borders}", 10)
    return figure


def _clip(text: str, length: int = 14) -> str:
    """A token's text for a tick: visible white space, no mathtext, not too long."""
    text = text.replace("\n", "⏎").replace(" ", "·").replace("$", r"\$")
    return text if len(text) <= length else text[: length - 1] + "…"


def rank_moves(
    floor_rank_L: np.ndarray, final_rank_L: np.ndarray, k: int, name: str = "the model"
) -> Figure:
    """Where the target stood and where it ended: row shares with counts, diagonal outlined."""
    keep_L = (floor_rank_L != MISS) & (final_rank_L >= 0)
    if not keep_L.any():
        return nothing("no target is among its candidates")
    count_KK = np.zeros((k, k), dtype=np.int64)
    np.add.at(count_KK, (floor_rank_L[keep_L], final_rank_L[keep_L]), 1)
    share_KK = count_KK / np.maximum(count_KK.sum(1, keepdims=True), 1)
    figure, axes = new_figure(1.9 + 0.56 * k, 1.4 + 0.46 * k)
    ax = axes[0, 0]
    image = ax.imshow(share_KK, cmap="Blues", vmin=0, vmax=max(0.5, float(share_KK.max())))
    ax.set_aspect("auto")
    limit = image.get_clim()[1]
    for (r, c), count in np.ndenumerate(count_KK):
        if count:
            colour = "white" if share_KK[r, c] > 0.55 * limit else DARK
            ax.text(c, r, f"{count:,}", ha="center", va="center", fontsize=8, color=colour)
    for r in range(k):
        ax.add_patch(Rectangle((r - 0.5, r - 0.5), 1, 1, fill=False, ec=COLOURS[1], lw=1.3))
    totals = count_KK.sum(1)
    ax.set_xticks(range(k), [str(r + 1) for r in range(k)])
    ax.set_yticks(range(k), [f"{r + 1}  (n={totals[r]:,})" for r in range(k)])
    ax.set_xlabel(f"target's rank after {name}")
    ax.set_ylabel("target's rank in the floor")
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    up = int(np.tril(count_KK, -1).sum())
    down = int(np.triu(count_KK, 1).sum())
    heading(ax, f"Targets moved: {up:,} up, {int(np.trace(count_KK)):,} kept, {down:,} down")
    figure.colorbar(image, ax=ax, label="share of the floor rank's users")
    return figure


def sid_usage(codes_IL: np.ndarray, size: int) -> Figure:
    """Per level, how many items each code has, most used first, against an even split."""
    if not len(codes_IL):
        return nothing("there are no semantic IDs")
    figure, axes = new_figure(8, 4)
    ax = axes[0, 0]
    for level in range(codes_IL.shape[1]):
        count_C = np.bincount(codes_IL[:, level], minlength=size)
        share_C = count_C[count_C > 0] / count_C.sum()
        perplexity = float(np.exp(-(share_C * np.log(share_C)).sum()))
        look = level % len(COLOURS)
        ax.plot(
            np.arange(1, len(share_C) + 1),
            np.sort(count_C[count_C > 0])[::-1],
            color=COLOURS[look],
            marker=MARKERS[look],
            markevery=max(1, size // 12),
            ms=5,
            lw=1.5,
            label=f"level {level + 1}: {len(share_C)}/{size} used, perplexity {perplexity:.0f}",
        )
    ax.axhline(len(codes_IL) / size, color=GREY, ls=":", lw=1.2, label="even split")
    ax.set_yscale("log")
    ax.set_xlabel("code, most used first")
    ax.set_ylabel("items with this code")
    heading(ax, f"Semantic-ID usage of {len(codes_IL):,} items")
    ax.legend(loc="lower left", fontsize=9, frameon=False)
    return figure
