"""The data behind the answer, the time, the slices and the curves, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from test_evaluate_report import first, lists_with_hits

from diffgr2.evaluate.answer_plot import answer_figure, answers
from diffgr2.evaluate.curves import curve_of, smoothed, training_curves
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.pace_plot import quality_speed, room, timed_points, view_points
from diffgr2.evaluate.plots import captioned, save_figure
from diffgr2.evaluate.slices import bin_told, bins_of, by_lengths, sliced, slices_figure
from diffgr2.evaluate.verdict import DECIDES

CI = {"r@1": [0.1, 0.2], "ndcg@3": [0.3, 0.4], "ndcg@10": [0.4, 0.5]}


def report_row(name: str, value: float, **more: object) -> dict:
    metrics = {"r@1": value, "ndcg@3": value + 0.1, "ndcg@10": value + 0.2}
    return {"name": name, "n": 90, "metrics": metrics, "ci": CI, **more}


ROWS = [
    report_row("floor", 0.2),
    report_row("evidence", 0.3, vs_floor={"r@1": [0.05, 0.15], "ndcg@10": [-0.01, 0.2]}),
    report_row(
        "cft_opd_rl",
        0.25,
        vs_floor={"r@1": [0.01, 0.09], "ndcg@10": [0.02, 0.08]},
        vs_rival={"r@1": [-0.1, 0.0], "ndcg@10": [-0.09, -0.01]},
    ),
    report_row("cft_opd_rl_raw", 0.1, vs_floor={"r@1": [-0.2, -0.1], "ndcg@10": [-0.2, -0.1]}),
]


def test_answers_are_differences_of_the_reports_rows_with_its_intervals() -> None:
    found = answers(ROWS, "cft_opd_rl", "evidence")
    assert [(one.row, one.other, one.metric) for one in found] == [
        *(("evidence", "floor", metric) for metric in (DECIDES, "r@1")),
        *(("cft_opd_rl", other, m) for other in ("floor", "rival") for m in (DECIDES, "r@1")),
    ]
    assert found[2].diff == pytest.approx(0.05)
    assert (found[4].diff, found[4].ci) == (pytest.approx(-0.05), (-0.09, -0.01))
    assert [one.stance for one in found] == ["none", "gain", "gain", "gain", "loss", "none"]
    judged = answers(ROWS, "cft_opd_rl_raw", "evidence")
    assert "cft_opd_rl_raw" in {one.row for one in judged}, "the judged row under any name"


def test_the_answer_has_a_panel_per_opponent_and_says_n_and_command(tmp_path) -> None:
    figure = answer_figure(answers(ROWS, "cft_opd_rl", "evidence"), "cft_opd_rl", "evidence", 90)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["minus the floor", "minus the strongest rival, evidence"]
    captioned(figure, "diffgr2 run demo")
    text = " ".join(figure.texts[-1].get_text().split())
    assert text.startswith("n = 90 test lists that hold their target · paired 95 %")
    assert text.endswith("diffgr2 run demo")
    save_figure(figure, tmp_path / "answer.png")
    alone = answer_figure(answers(ROWS, "cft_opd_rl", None)[:2], "cft_opd_rl", None, 90)
    assert len(alone.axes) == 1


TIMES = [
    {"row": row, "batch": batch, "ms_per_list": ms, "low_ms": ms - 1, "high_ms": ms + 1}
    for row, ms in (("evidence", 2.0), ("cft_opd_rl", 20.0))
    for batch in (1, 32)
]
VIEWS = [
    {"row": "cft_opd_rl", "views": 1, "n": 40, "r@1": 0.2, "ndcg@3": 0.3, "ms_per_list": 10.0},
    {"row": "cft_opd_rl", "views": 3, "n": 40, "r@1": 0.22, "ndcg@3": 0.33, "ms_per_list": 30.0}
    | {"diff_r@1_ci": [-0.01, 0.05], "diff_ndcg@3_ci": [0.0, 0.06]},
    {"row": "ar", "views": 2, "n": 40, "r@1": 0.2, "ndcg@3": 0.3, "ms_per_list": 10.0},
]


def test_rows_take_their_times_of_one_batch_size() -> None:
    found = timed_points(ROWS, [*TIMES, {**TIMES[0], "batch": 32, "ms_per_list": 0.5}], 32)
    assert [(p["name"], p["ms_per_list"]) for p in found] == [
        ("evidence", 0.5),
        ("cft_opd_rl", 20.0),
    ]


def test_views_carry_the_interval_of_their_gain_over_one_view() -> None:
    one, three = view_points(VIEWS)
    assert (one["views"], one["ci"]["r@1"]) == (1, [0.2, 0.2])
    assert three["ci"]["r@1"] == pytest.approx([0.19, 0.25])


def test_time_has_a_lower_row_with_every_view_count_where_batches_are_timed() -> None:
    rows = [
        row
        | next(
            (
                {k: v for k, v in t.items() if k != "batch"}
                for t in TIMES
                if t["row"] == row["name"]
            ),
            {},
        )
        for row in ROWS
    ]
    assert len(quality_speed(rows).axes) == 2
    figure = quality_speed(rows, timed_points(ROWS, TIMES, 32), view_points(VIEWS))
    assert len(figure.axes) == 4
    assert {"1", "3"} <= {text.get_text() for text in figure.axes[2].texts}
    assert "40 of these lists" in str(figure.get_label())


def test_what_was_timed_sets_the_scale_and_the_floor_off_it_is_told_in_words() -> None:
    timed = timed_points(ROWS, TIMES, 1)
    low, high = room([*timed, ROWS[0]], "r@1")
    assert (low, high) == (pytest.approx(0.08), pytest.approx(0.32))
    far = report_row("floor", 0.02)
    left, _ = quality_speed([far, *timed]).axes
    assert left.get_ylim() == pytest.approx((low, high))
    assert "floor 0.020, below ↓" in [text.get_text() for text in left.texts]
    near, _ = quality_speed([report_row("floor", 0.15), *timed]).axes
    assert [text.get_text() for text in near.texts] == ["floor"]


# ---------------------------------------------------------------------------------------- slices


def test_bins_are_of_about_equal_count_and_part_no_value() -> None:
    masks = bins_of(np.arange(100))
    assert [int(mask.sum()) for mask in masks] == [20] * 5
    values_U = np.array([1] * 70 + [2] * 5 + [9] * 25)
    parts = [set(values_U[mask].tolist()) for mask in bins_of(values_U)]
    assert sum(map(len, parts)) == len(set().union(*parts))
    assert sum(int(mask.sum()) for mask in bins_of(values_U)) == 100
    assert bins_of(np.full(50, 3)) == []


def test_slices_say_where_the_gain_is_on_lists_that_count() -> None:
    """Lists with a short history are all won, those with a long one kept as they came."""
    hits = [1] * 40 + [-1] * 5
    lists, history_L = lists_with_hits(hits), np.array([2] * 20 + [8] * 20 + [99] * 5)
    n = len(hits)
    row = SystemOutputs("ar", first([1] * 20 + [0] * 20 + [2] * 5), n)
    others = {"floor": SystemOutputs("floor", first([0] * n), n)}
    found = sliced(lists, row, others, {"history": history_L, "same": np.ones(n)}, 200, 0)
    assert found.keys() == {"history"}, "one value makes no bins"
    short, long = found["history"]
    assert (short["low"], short["n"], long["low"], long["n"]) == (2, 20, 8, 20)
    assert short["vs"]["floor"]["diff"] == pytest.approx(1 - 1 / np.log2(3))
    assert short["vs"]["floor"]["ci"][0] > 0
    assert long["vs"]["floor"] == {"diff": 0.0, "ci": [0.0, 0.0]}
    figure = slices_figure(found, "ar", {"floor": "the floor"})
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["2\nn=20", "8\nn=20"]
    assert "n = 40 test lists" in str(figure.get_label())


def test_probed_lengths_are_bins_of_one_length_and_the_scorecard_a_rival_only_if_it_is() -> None:
    vs = {"floor": {"diff": 0.1, "ci": [0, 0.2]}, "evidence": {"diff": 0.0, "ci": [0, 0]}}
    points = [{"row": "x", "length": n, "n": 9, "vs": vs} for n in (10, 1, 2)]
    points.append({"row": "floor", "length": 2, "n": 9})
    found = by_lengths(points, "x", "evidence")
    assert [(entry["low"], [*entry["vs"]]) for entry in found] == [
        (2, ["floor", "rival"]), (10, ["floor", "rival"]),
    ]  # fmt: skip
    assert [*by_lengths(points, "x", "lambdamart")[0]["vs"]] == ["floor"]
    assert bin_told(found[0]) == "2\nn=9"


# ---------------------------------------------------------------------------------------- curves


def test_a_running_mean_is_centred_and_cut_at_its_ends() -> None:
    assert smoothed(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4], "few steps stay as they are"
    assert smoothed(np.arange(8.0)).tolist() == [0.5, 1, 2, 3, 4, 5, 6, 6.5]
    value_S = np.zeros(40)
    value_S[20] = 5.0
    assert smoothed(value_S, 10).tolist() == [0] * 18 + [1.0] * 5 + [0] * 17
    assert smoothed(np.full(100, 3.0)).tolist() == pytest.approx([3.0] * 100)


def test_a_stage_shows_what_drove_it_and_no_spike_sets_its_scale() -> None:
    lines = [{"step": i, "loss": 1.0, "reward": 0.1} for i in range(3)]
    found = curve_of(lines)
    assert found is not None
    assert found.key == "reward"
    noisy = [
        {"step": i, "loss": 1.0 + (i == 50) * 1000, "rank/valid_rate": i / 99} for i in range(100)
    ]
    curve = curve_of(noisy)
    assert curve is not None
    assert curve.room[1] < 200
    assert curve.valid == pytest.approx(np.arange(80, 100).mean() / 99)
    assert curve_of([{"step": 1, "lr": 1.0}]) is None


def test_training_has_a_panel_per_stage_that_logged_something() -> None:
    log = {"sft": [{"step": i, "loss": 1 / (i + 1)} for i in range(30)], "x": [{"step": 1}]}
    log["rl"] = [{"step": 1, "reward": 0.5}]
    log["retriever"] = [{"step": 1, "loss": 7.0, "validation_ndcg@10": 0.1}]
    figure = training_curves(log)
    assert [ax.get_title(loc="left") for ax in figure.axes if ax.lines] == [
        "sft: loss",
        "rl: reward",
        "retriever: validation_ndcg@10",
    ]
    assert "n = 32 steps" in str(figure.get_label())
