"""Every figure draws its data, states what it is about, and has the same bytes twice."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.image import imread

from diffgr2.evaluate import pictures, plots, probed
from diffgr2.evaluate.curves import training_curves
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
SURE = [
    {**row, "coherent": 1.0, "ci": {**row["ci"], "coherent": [0.996, 1.0], "raw_valid": [0.8, 1.0]}}
    for row in ROWS[2:]
] + [{"name": "naive", "raw_valid": 0.0, "ci": {}}]
PROBES = {
    "lengths": [
        {"length": n, "row": r, "n": 90, "ndcg@3": 1 / n, "ndcg_ci": [0.9 / n, 1 / n], **more}
        for r, more in (("floor", {"r@1": 0.3}), ("cft_opd_rl", {"answered": 1.0}))
        for n in (1, 2, 10, 11, 100)
    ],
    "views": [
        {"views": v, "row": r, "n": 90, "r@1": 0.3 + v / 100, "ndcg@3": 0.5, "ms_per_list": 5.0 * v}
        | {f"diff_{m}_ci": [-0.01, 0.02] for m in ("r@1", "ndcg@3") if v > 1}
        for r in ("ar", "cft_opd_rl")
        for v in (1, 2, 4)
    ],
    "faithfulness": {
        "cited": {"n": 1200, "moved": 0.91, "ci": [0.89, 0.93], "mean_levels": 1.4},
        "uncited": {"n": 1200, "moved": 0.31, "ci": [0.28, 0.34], "mean_levels": 0.02},
    },
    "reliability": [
        {"row": "ar", "bins": [[0.1, 0.08, 50], [0.5, 0.55, 50]], "ece": 0.035},
        {"row": "cft_opd_rl", "bins": [[0.2, 0.2, 50]], "ece": 0.0},
    ],
}
POINTS = [
    {"rule": rule, "n": 200, "tau": t, "tpf": 1 + 10 * (1 - t), "speedup": 3.0 - t, "r@1": 0.3}
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
        "ci": {"r@1": [0.28, 0.32], "ndcg@3": [0.37, 0.44]},
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
    "coherence": lambda: plots.coherence(SURE),
    **{f"probed {name}": lambda n=name: probed.figures(PROBES)[n] for name in PROBES},
    "curves": lambda: training_curves(LOG),
    "trajectory": lambda: pictures.trajectory(
        np.array([0, 1, 0, 2]), ["a", "$x", "\n", " b"], 2, 2
    ),
    "trajectory_given": lambda: pictures.trajectory(np.array([-1, 0, -1, 1]), ["a"] * 4, 4, 4),
    "trajectory_long": lambda: pictures.trajectory(np.arange(150) // 4, ["a"] * 150, 32, 8),
    "moves": lambda: pictures.rank_moves(np.array([0, 2, -1]), np.array([0, 0, -1]), 3, "ar"),
    "sids": lambda: pictures.sid_usage(CODES_IL, 16),
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


@pytest.mark.parametrize("name", DRAW)
def test_every_picture_says_what_it_is_about_and_how_to_make_it_again(name):
    figure = DRAW[name]()
    stated, height = str(figure.get_label()), figure.get_size_inches()[1]
    assert stated
    plots.captioned(figure, "diffgr2 run x; diffgr2 report runs/x")
    caption = " ".join(figure.texts[-1].get_text().split())
    assert caption.startswith(stated)
    assert caption.endswith("diffgr2 run x; diffgr2 report runs/x")
    assert figure.get_size_inches()[1] > height, "the strip is added, nothing is covered"


@pytest.mark.parametrize("name", [*DRAW])
def test_no_text_of_the_strips_covers_an_axes(name):
    figure = plots.captioned(DRAW[name](), "diffgr2 run x")
    figure.draw_without_rendering()
    lowest = min(box.y0 for ax in figure.axes if (box := ax.get_tightbbox()) is not None)
    strips = [*figure.texts, *figure.legends]
    assert all(strip.get_window_extent().y1 <= lowest + 2 for strip in strips)


def test_rank_moves_count_targets_up_kept_and_down():
    figure = pictures.rank_moves(np.array([0, 2, 1, 1, -1]), np.array([0, 0, 1, 2, -1]), 3, "ar")
    assert figure.axes[0].get_title(loc="left") == "Targets moved: 1 up, 2 kept, 1 down"


def test_trajectory_names_tokens_forwards_and_rate():
    title = (
        pictures.trajectory(np.array([0, 0, 1, 1, 1, 1]), ["a"] * 6, 4, 4)
        .axes[0]
        .get_title(loc="left")
    )
    assert "6 tokens, 2 forwards, 3.0 per forward" in title


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


def test_coherence_has_a_panel_per_share_that_some_row_has():
    figure = plots.coherence(SURE)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["valid", "coherent"]
    ends = [line.get_xdata() for line in figure.axes[1].lines if len(line.get_xdata()) == 2]
    assert [list(pair) for pair in ends] == [[0.996, 1.0]] * 2  # `naive` recorded none


def test_only_probes_that_are_there_are_drawn_and_told():
    assert probed.figures({}) == {}
    assert probed.sections({}) == ""
    some = {"views": PROBES["views"], "lengths": []}
    assert list(probed.figures(some)) == ["views"]
    assert probed.sections(some).count("## ") == 1


def test_lengths_draw_each_row_in_both_metrics_that_it_has():
    left, right = probed.figures(PROBES)["lengths"].axes
    drawn = [list(ax.lines[0].get_ydata()) for ax in (left, right)]
    assert drawn == [[1.0, 0.5, 0.1, 1 / 11, 0.01], [0.3] * 5]
    assert (left.get_ylabel(), right.get_ylabel()) == ("NDCG@3", "R@1")
    assert [label.get_text() for label in left.get_xticklabels()] == ["1", "2", "10", "100"]


def test_views_are_drawn_over_one_view_and_by_cost():
    gain, _, cost = probed.figures(PROBES)["views"].axes
    (first, *_) = [line for line in gain.lines if line.get_marker() == "o"]
    assert np.allclose(first.get_ydata(), [0.0, 0.01, 0.03])
    assert list(cost.lines[0].get_ydata()) == [5.0, 10.0, 20.0]


def test_sections_print_every_number_of_the_probes():
    text = probed.sections(PROBES)
    assert "| cft_opd_rl | 2 | 90 | .5000 | [.4500, .5000] | – | 1.000 |" in text
    assert "| ar | 2 | 90 | .3200 | [−.0100, +.0200] | .5000 | [−.0100, +.0200] | 10.0 |" in text
    assert "| cited | 1,200 | .910 | [.890, .930] | 1.400 |" in text
    assert "| ar | .0350 |" in text
    assert text.count("](") == 4
