"""Every figure draws its data, and has the same bytes twice."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from diffgr2.evaluate import plots
from diffgr2.types import FAILURES

NONE = dict.fromkeys(FAILURES, 0.0)
ROWS = [
    {
        "name": name,
        "population": "hit",
        "n": 1_500,
        "metrics": {"r@1": value, "ndcg@3": value + 0.15},
        "ci": {"r@1": [value - 0.02, value + 0.02], "ndcg@3": [value + 0.13, value + 0.17]},
        **extra,
    }
    for name, value, extra in (
        ("floor", 0.28, {}),
        ("oracle", 1.0, {}),
        ("ar", 0.34, {"raw_valid": 0.99, "failures": {**NONE, "duplicate": 0.01}}),
        ("cft_raw", 0.33, {"raw_valid": 0.88, "failures": {**NONE, "missing": 0.12}}),
    )
]
POINTS = [
    {"rule": rule, "tau": t, "tpf": 1 + 10 * (1 - t), "speedup": 3.0 - t, "r@1": 0.3}
    for rule in ("permutation", "raw")
    for t in (1.0, 0.9, 0.4)
]
SPEED = [
    {"decoder": d, "length": n, "tokens_per_s": 1000.0 + n}
    for d in ("ar", "block", "verify")
    for n in (64, 256, 1024)
]
LOG = {
    "sft": [{"step": i, "loss": 1 / (i + 1), "lr": "x"} for i in range(50)],
    "opd": [{"step": 1, "kl": 0.5}],
}
SEEDS = [
    {
        "name": name,
        "population": "hit",
        "seeds": 3,
        "metrics": {"r@1": {"mean": 0.3, "sd": 0.01}, "ndcg@3": {"mean": 0.4, "sd": None}},
    }
    for name in ("floor", "ar")
]
CODES_IL = np.random.default_rng(0).integers(0, 16, (300, 3))
DRAW = {
    "ladder": lambda: plots.stage_ladder(ROWS),
    "seeds": lambda: plots.seeds_ladder(SEEDS),
    "frontier": lambda: plots.frontier(POINTS, {"ar": 0.31}, "speedup"),
    "throughput": lambda: plots.throughput(SPEED),
    "validity": lambda: plots.validity(ROWS[2:]),
    "curves": lambda: plots.training_curves(LOG),
    "trajectory": lambda: plots.trajectory(np.array([0, 1, 0, 2]), ["a", "$x", "\n", " b"], 2, 2),
    "trajectory_long": lambda: plots.trajectory(np.arange(150) // 4, ["a"] * 150, 32, 8),
    "moves": lambda: plots.rank_moves(np.array([0, 2, -1]), np.array([0, 0, -1]), 3, "ar"),
    "sids": lambda: plots.sid_usage(CODES_IL, 16),
}


@pytest.mark.parametrize("name", DRAW)
def test_figure_is_drawn(name, tmp_path):
    pixels = imread(plots.save_figure(DRAW[name](), tmp_path / "figure.png"))
    assert pixels.shape[1] > 400
    assert pixels[..., :3].std() > 0.02, "nearly blank"


@pytest.mark.parametrize("name", ["frontier", "trajectory"])
def test_the_same_data_gives_the_same_bytes(name, tmp_path):
    one, two = (plots.save_figure(DRAW[name](), tmp_path / f"{i}.png") for i in range(2))
    assert one.read_bytes() == two.read_bytes()


def test_ladder_shows_each_row_but_random_and_oracle_at_its_value():
    ax = plots.stage_ladder(ROWS).axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["floor", "ar", "cft_raw"]
    assert [text.get_text() for text in ax.texts] == ["0.280", "0.340", "0.330"]


def test_rank_moves_count_targets_up_kept_and_down():
    figure = plots.rank_moves(np.array([0, 2, 1, 1, -1]), np.array([0, 0, 1, 2, -1]), 3, "ar")
    assert figure.axes[0].get_title(loc="left") == "Targets moved: 1 up, 2 kept, 1 down"


def test_trajectory_names_tokens_forwards_and_rate():
    title = (
        plots.trajectory(np.array([0, 0, 1, 1, 1, 1]), ["a"] * 6, 4, 4)
        .axes[0]
        .get_title(loc="left")
    )
    assert "6 tokens, 2 forwards, 3.0 per forward" in title


def test_curves_have_a_row_per_stage_and_a_column_per_metric():
    log = {
        "sft": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}],
        "rl": [{"step": 1, "loss": 1.0, "reward": 0.1}, {"step": 2, "loss": 1.0}],
    }
    drawn = {
        ax.get_title(loc="left"): ax.lines[0].get_xdata().tolist()
        for ax in plots.training_curves(log).axes
        if ax.lines
    }
    assert drawn == {"sft: loss": [1, 2], "rl: loss": [1, 2], "rl: reward": [1]}


def test_frontier_names_its_levels_and_each_threshold_that_has_room():
    figure = plots.frontier(POINTS, {"ar": 0.31, "floor": 0.28}, "tpf")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("τ 0.4") == 2
    assert {"ar 0.310", "floor 0.280"} <= set(texts)
    assert figure.axes[0].get_xlabel() == "tokens per forward (TPF)"


def test_validity_prints_every_share():
    figure = plots.validity(ROWS[2:])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts[:3] == ["99.0 %", "0.0 %", "1.0 %"]
    assert len(texts) == 2 * (1 + len(FAILURES))
