"""Every figure draws data, says when there is none, and has the same bytes twice."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread

from diffgr2.errors import ArtifactError
from diffgr2.evaluate import pictures, plots

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
        ("ar", 0.34, {"raw_valid": 0.99, "failures": {"duplicate": 0.01}}),
        ("cft_raw", 0.33, {"raw_valid": 0.88, "failures": {"duplicate": 0.1, "missing": 0.12}}),
    )
]
POINTS = [
    {"series": rule, "threshold": t, "tpf": 1 + 10 * (1 - t), "value": 0.3, "ci": [0.28, 0.32]}
    for rule in ("permutation", "raw")
    for t in (1.0, 0.9, 0.4)
]
SPEED = [
    {"decoder": d, "batch": b, "tokens": n, "tokens_per_s": 1000.0 * b}
    for d in ("ar", "block", "verify")
    for b in (1, 32)
    for n in (64, 256, 1024)
]
LOG = {"sft": [{"step": i, "loss": 1 / (i + 1), "lr": "x"} for i in range(50)], "none": []}
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
    "ladder": lambda: plots.stage_ladder({"rows": ROWS}),
    "seeds": lambda: plots.seeds_ladder(SEEDS),
    "frontier": lambda: plots.frontier(POINTS, {"ar": 0.31}),
    "throughput": lambda: plots.throughput(SPEED),
    "validity": lambda: plots.validity({"rows": ROWS}),
    "curves": lambda: plots.training_curves(LOG),
    "trajectory": lambda: pictures.trajectory(np.array([0, 1, 0, 2]), ["a", "$x", "\n", " b"], 2),
    "trajectory_long": lambda: pictures.trajectory(np.arange(150) // 4, block_size=32),
    "moves": lambda: pictures.rank_moves(np.array([0, 2, -1]), np.array([0, 0, -1]), 3, "ar"),
    "sids": lambda: pictures.sid_usage(CODES_IL, 16),
}
EMPTY = {
    "ladder": lambda: plots.stage_ladder({"rows": []}),
    "seeds": lambda: plots.seeds_ladder([]),
    "frontier": lambda: plots.frontier([]),
    "throughput": lambda: plots.throughput([]),
    "validity": lambda: plots.validity({"rows": ROWS[:1]}),
    "curves": lambda: plots.training_curves({"sft": []}),
    "trajectory": lambda: pictures.trajectory(np.array([], dtype=int)),
    "moves": lambda: pictures.rank_moves(np.array([-1]), np.array([-1]), 3),
    "sids": lambda: pictures.sid_usage(np.zeros((0, 3), dtype=int), 16),
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


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_to_draw_is_said_in_the_figure(name):
    texts = [text.get_text() for ax in EMPTY[name]().axes for text in ax.texts]
    assert len(texts) == 1
    assert texts[0]


def test_ladder_shows_each_row_but_random_and_oracle_at_its_value():
    ax = plots.stage_ladder({"rows": ROWS}).axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["floor", "ar", "cft_raw"]
    assert [text.get_text() for text in ax.texts] == ["0.280", "0.340", "0.330"]


def test_rank_moves_count_targets_up_kept_and_down():
    figure = pictures.rank_moves(np.array([0, 2, 1, 1, -1]), np.array([0, 0, 1, 2, -1]), 3)
    assert figure.axes[0].get_title(loc="left") == "Targets moved: 1 up, 2 kept, 1 down"


def test_trajectory_names_tokens_forwards_and_rate():
    title = pictures.trajectory(np.array([0, 0, 1, 1, 1, 1])).axes[0].get_title(loc="left")
    assert "6 tokens, 2 forwards, 3.0 per forward" in title


def test_curves_leave_out_what_is_not_a_finite_number():
    log = {"rl": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": float("nan")}, {"step": 3}]}
    (line,) = plots.training_curves(log).axes[0].lines
    assert line.get_xdata().tolist() == [1]


def test_metrics_file_with_a_cut_last_line_is_read_and_a_broken_middle_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps({"step": 1, "loss": 2.0})
    path.write_text(f"{good}\n{good}\n" + '{"step": 3, "lo')
    assert plots.read_metrics(path) == [{"step": 1, "loss": 2.0}] * 2
    path.write_text(f"{good}\n{{broken\n{good}\n")
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: line 2 is not JSON$"):
        plots.read_metrics(path)
