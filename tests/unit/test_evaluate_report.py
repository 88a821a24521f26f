"""The report by hand arithmetic: populations, subsets, speed-up, gap closed, steps, rendering."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import diffgr2.evaluate
from diffgr2.errors import DataError
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs, save_outputs
from diffgr2.evaluate.results import build_report, ranks_by_system, rounded
from diffgr2.evaluate.significance import Z, equivalence, mcnemar
from diffgr2.evaluate.tables import (
    at,
    calibration_table,
    markdown_table,
    render_markdown,
    render_table,
    rows_of,
    speed_table,
    spread,
    step_sentences,
    times,
    validity_table,
)
from diffgr2.evaluate.validity import calibration_error, reliability
from diffgr2.types import FAILURES
from support.measured import META, K, first, lists_with_hits, row


def speed(ms: float, prefill_ms: float, batch: int = 1) -> dict:
    return {"batch": batch, "ms_per_list": ms, "prefill_ms": prefill_ms}


def test_rows_by_hand():
    """Targets at 0, 1, 3 and one miss; AR puts 0, 1, 0, 0 first: it keeps the first, lifts the
    second to the front and leaves the third last."""
    lists = lists_with_hits([0, 1, 3, -1])
    report = build_report(META, lists, [SystemOutputs("ar", first([0, 1, 0, 0]), 4)], resamples=99)
    assert row(report, "floor")["metrics"]["r@1"] == round(1 / 3, 6)
    assert row(report, "ar")["metrics"]["r@1"] == round(2 / 3, 6)
    assert row(report, "ar", "all")["metrics"]["r@1"] == 0.5
    assert row(report, "ar")["metrics"]["mrr"] == round((1 + 1 + 1 / 4) / 3, 6)
    assert row(report, "floor")["metrics"]["ndcg@3"] == round((1 + 1 / np.log2(3)) / 3, 6)
    assert row(report, "random")["metrics"]["r@3"] == 0.75
    assert row(report, "oracle")["metrics"]["r@1"] == 1.0
    assert row(report, "ar")["identity"] == round(2 / 3, 6)  # over the hit users
    assert row(report, "ar", "all")["identity"] == 0.75
    assert [r["n"] for r in report["rows"]] == [3] * 4 + [4] * 4
    assert "vs_ar" not in row(report, "ar")
    assert "gap_closed" not in row(report, "ar")
    (step,) = row(report, "ar")["steps"]
    assert step["from"] == "floor"
    assert step["mcnemar"] == {"gained": 1, "lost": 0, "p": 1.0, "p_holm": 1.0}
    json.dumps(report, allow_nan=False)


def test_without_an_ar_row_there_is_no_comparison_with_it():
    report = build_report(META, lists_with_hits([0, 1, -1]), [], resamples=20)
    assert {r["name"] for r in report["rows"]} == {"floor", "random", "oracle"}
    assert not any("vs_ar" in r for r in report["rows"])
    assert "vs_floor" in row(report, "oracle")


def test_without_any_hit_only_all_users_have_rows():
    ar = SystemOutputs("ar", first([0, 1]), 2)
    report = build_report(META, lists_with_hits([-1, -1]), [ar], resamples=20)
    assert {r["population"] for r in report["rows"]} == {"all"}
    assert row(report, "ar", "all")["ci"]["mrr"] == [0.0, 0.0]
    assert "Hit users" not in render_markdown(report)


def test_a_known_truth_orders_the_oracle_and_gives_the_share_of_the_gap():
    """Targets 1, 1, 0, 2; true probabilities prefer 1 always. Floor r@1 .25, oracle .5; a system
    that lifts one of the two targets has closed (.5 − .25) / (.5 − .25) = 1 with its floor hit."""
    lists = lists_with_hits([1, 1, 0, 2])
    truth_LK = np.tile([0.2, 0.5, 0.2, 0.1], (4, 1))
    system = SystemOutputs("ar", first([1, 0, 0, 0]), 4)
    report = build_report(META, lists, [system], resamples=20, truth_LK=truth_LK)
    assert row(report, "oracle")["metrics"]["r@1"] == 0.5
    assert row(report, "ar")["gap_closed"]["r@1"] == 1.0
    assert row(report, "floor")["gap_closed"]["r@1"] == 0.0
    assert "r@3" not in row(report, "ar")["gap_closed"]  # the oracle is not above the floor there


def test_every_row_is_measured_on_the_lists_that_all_of_them_decoded():
    """Of the hits 0, 1, 2, 4 one row decoded 1 and 4 alone: the table is about these two."""
    lists = lists_with_hits([0, 1, 2, -1, 3])
    some = SystemOutputs("verify", first([1, 3]), 5, rows_L=np.array([1, 4]))
    ar = SystemOutputs("ar", first([0, 0, 2, 0]), 5, rows_L=np.array([0, 1, 2, 4]))
    report = build_report(META, lists, [some, ar], resamples=400)
    assert {r["n"] for r in rows_of(report, "hit")} == {2}
    assert {r["n"] for r in rows_of(report, "all")} == {5}
    verify = row(report, "verify")
    assert verify["metrics"]["r@1"] == 1.0
    assert row(report, "floor")["metrics"]["r@1"] == 0.0  # it has lists 0, which is not shared
    assert verify["vs_ar"]["r@1"] == [1.0, 1.0]  # AR has neither of these two users
    (step,) = verify["steps"]
    assert (step["n"], step["mcnemar"]["gained"]) == (2, 2)
    assert not any(r["name"] == "verify" and r["population"] == "all" for r in report["rows"])
    assert "No row over all users for `verify`" in render_markdown(report)
    assert verify["same_as_ar"] == 0.0


def test_rows_without_a_list_in_common_are_no_table():
    ar = SystemOutputs("ar", first([0]), 2, rows_L=np.array([0]))
    verify = SystemOutputs("verify", first([0]), 2, rows_L=np.array([1]))
    with pytest.raises(DataError, match="rows ar, verify: no list that holds its target"):
        build_report(META, lists_with_hits([0, 1]), [ar, verify], resamples=20)


def test_verify_is_held_against_its_own_models_greedy_text():
    """Lists 0, 1, 2 and 1, 2, 3: of the two common ones one has another text."""
    lists = lists_with_hits([0, 1, 2, 3])
    greedy = SystemOutputs(
        "student_ar", first([0, 0, 0]), 4, rows_L=np.array([0, 1, 2]), text_L=np.array([5, 6, 7])
    )
    mine = SystemOutputs(
        "verify", first([0, 0, 0]), 4, rows_L=np.array([1, 2, 3]), text_L=np.array([6, -7, 8])
    )
    report = build_report(META, lists, [greedy, mine], resamples=20)
    assert row(report, "verify")["same_text"] == 0.5
    assert "same_text" not in row(report, "student_ar")
    assert "own AR text" not in render_markdown(report)  # the table is of rows with validity


def test_subsets_that_only_overlap_are_compared_on_the_overlap():
    """AR decoded lists 0, 1; the other 1, 2. Only list 1 is common: AR misses it, the other has
    it."""
    lists = lists_with_hits([0, 1, 2])
    ar = SystemOutputs("ar", first([0, 0]), 3, rows_L=np.array([0, 1]))
    verify = SystemOutputs("verify", first([1, 0]), 3, rows_L=np.array([1, 2]))
    found = row(build_report(META, lists, [ar, verify], resamples=50), "verify")
    assert (found["n"], found["metrics"]["r@1"]) == (1, 1.0)
    assert found["vs_ar"]["r@1"] == [1.0, 1.0]
    entry = found["steps"][0]["metrics"]["r@1"]
    assert (found["steps"][0]["n"], entry["diff"], entry["ci"]) == (1, 1.0, [1.0, 1.0])
    assert (entry["p"], entry["verdict"]) == (1.0, "none")  # one list shows nothing


def test_validity_length_truth_and_speed_are_ratios_of_sums():
    lists = lists_with_hits([0, 1, -1])
    failures_LX = np.zeros((3, len(FAILURES)), dtype=bool)
    failures_LX[1, [FAILURES.index("duplicate"), FAILURES.index("missing")]] = True
    common = {"n_lists": 3, "raw_valid_L": np.array([True, False, True])}
    ar = SystemOutputs(
        "ar",
        first([0, 0, 0]),
        timing=speed(30.0, 6.0),
        **common,
    )
    block = SystemOutputs(
        "cft",
        first([0, 0, 0]),
        failures_LX=failures_LX,
        n_tokens_L=np.array([10, 30, 50]),
        nfe_L=np.array([5, 5, 5]),
        reasoning_tokens_L=np.array([8, 20, 40]),
        cited_right_L=np.array([3, 1, 0]),
        cited_total_L=np.array([3, 2, 0]),
        timing=speed(10.0, 6.0),
        meta={"rule": "permutation"},
        **common,
    )
    batched = SystemOutputs(
        "cft_opd",
        first([0, 0, 0]),
        3,
        timing=speed(1.0, 0.5, 32),
    )
    report = build_report(META, lists, [ar, block, batched], resamples=20)
    cft = row(report, "cft")
    assert cft["raw_valid"] == 0.5
    assert cft["failures"] == {k: 0.5 * (k in ("duplicate", "missing")) for k in FAILURES}
    assert cft["tpf"] == 4.0
    assert row(report, "cft", "all")["tpf"] == 6.0
    assert cft["evidence_true"] == 0.8
    assert cft["reasoning_tokens"] == {"mean": 14.0, "p5": 8.6, "p50": 14.0, "p95": 19.4}
    assert (cft["ms_per_list"], cft["speedup"], cft["speedup_decoding"]) == (10.0, 3.0, 6.0)
    assert row(report, "ar")["speedup"] == 1.0
    assert "speedup" not in row(report, "cft_opd")  # another batch size is another question
    assert cft["meta"] == {"rule": "permutation"}
    markdown = render_markdown(report, ["ladder.png"])
    assert "| cft | 2 | .5000 | [.095, .905] | – | – | .8000 | [.500, 1.000] | – |" in markdown
    assert markdown.endswith("![ladder](ladder.png)\n")


def test_outputs_of_the_new_design_are_accounted_for_with_intervals():
    """Three hit lists; one output contradicts itself twice, all citations are right."""
    full = np.array([3, 2, 4])
    outputs = SystemOutputs(
        "cft",
        first([0, 0, 0]),
        3,
        raw_valid_L=np.array([True, True, True]),
        contradictions_L=np.array([0, 2, 0]),
        n_tokens_L=np.array([10, 20, 30]),
        forced_L=np.array([5, 5, 5]),
        nfe_L=np.array([2, 2, 2]),
        cited_right_L=full,
        cited_total_L=full,
        levels_LK=np.full((3, K), np.nan, dtype=np.float32),
        chance_LK=np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (3, 1)),
    )
    cft = row(build_report(META, lists_with_hits([0, 1, 3]), [outputs], resamples=300), "cft")
    assert (cft["coherent"], cft["contradictions"]) == (round(2 / 3, 6), 2)
    assert (cft["forwards"], cft["tpf"], cft["forced"]) == (2.0, 10.0, 0.25)
    assert cft["ci"]["raw_valid"] == [round(3 / (3 + Z * Z), 6), 1.0]
    assert cft["ci"]["evidence_true"] == cft["ci"]["raw_valid"]  # three lists that cite
    assert cft["ci"]["forwards"] == [2.0, 2.0]
    low, high = cft["ci"]["tpf"]
    assert 5.0 <= low < 10.0 < high <= 15.0
    expected = {"first": 0.566667, "first_chance": 0.7, "first_right": 0.333333}  # .3, .7, .7
    assert {key: cft["calibration"][key] for key in expected} == expected
    json.dumps(cft, allow_nan=False)


def test_calibration_is_only_said_of_lists_that_hold_their_target():
    outputs = SystemOutputs(
        "ar", first([0, 0]), 2, chance_LK=np.full((2, K), 0.25, dtype=np.float32)
    )
    report = build_report(META, lists_with_hits([0, -1]), [outputs], resamples=20)
    assert row(report, "ar")["calibration"]["all"] == pytest.approx(0.375)  # |.25−1|/4 + 3·.25/4
    assert "calibration" not in row(report, "ar", "all")


def test_calibration_error_by_hand():
    """Twenty chances in ten bins of two: five bins of .2 (one right each: off by .3), five of .9
    (all right: off by .1)."""
    chance_N = np.array([0.2, 0.9] * 10)
    right_N = np.array([True, True, False, True] * 5)
    bins = reliability(chance_N, right_N)
    assert [n for *_, n in bins] == [2] * 10
    assert bins[0] == (pytest.approx(0.2), 0.5, 2)
    assert calibration_error(chance_N, right_N) == pytest.approx(0.2)


def test_rows_stand_beside_their_own():
    names = ["verify", "cft_raw", "cft_written", "ar_raw", "ar", "cft", "block_direct"]
    names += ["ar_direct_written", "ar_direct", "ar_written"]
    systems = [SystemOutputs(name, first([0]), 1) for name in names]
    report = build_report(META, lists_with_hits([1]), systems, resamples=5)
    assert [r["name"] for r in rows_of(report, "hit")] == [
        *("floor", "random", "oracle", "ar_direct", "ar_direct_written", "block_direct"),
        *("ar", "ar_written", "ar_raw", "cft", "cft_written", "cft_raw", "verify"),
    ]


def test_level_needs_the_whole_interval_within_the_margin():
    assert equivalence(-0.01, 0.01) == "level"
    assert equivalence(0.001, 0.009) == "level"
    assert equivalence(-0.011, 0.0) == "no difference shown"
    assert equivalence(0.002, 0.03) == "gain"
    assert equivalence(-0.03, -0.002) == "loss"


def test_tables_show_intervals_and_dashes_for_what_an_older_report_lacks():
    new = {"name": "ar", "n_decoded": 9, "raw_valid": 1.0, "coherent": 1.0, "forwards": 2.5}
    new |= {"ci": {"coherent": [0.7008, 1.0], "forwards": [2.0, 3.0]}, "tpf": 4.0}
    old = {"name": "cft", "n_decoded": 9, "raw_valid": 0.5, "tpf": 2.0}
    lines = validity_table([new, old]).splitlines()
    assert lines[2].startswith("| ar | 9 | 1.0000 | – | 1.0000 | [.701, 1.000] | – | – |")
    assert lines[3].startswith("| cft | 9 | .5000 | – | – | – | – | – |")
    fast = speed_table([new, old]).splitlines()
    assert "| 4.00 | – | 2.50 | [2.00, 3.00] |" in fast[2]
    assert "| 2.00 | – | – | – |" in fast[3]
    assert calibration_table([old]) == ""


def test_resamples_depend_on_the_seed_and_nothing_else():
    rng = np.random.default_rng(0)
    lists = lists_with_hits(rng.integers(-1, K, 200).tolist())
    ar = SystemOutputs("ar", first(rng.integers(0, K, 200).tolist()), 200)
    extra = SystemOutputs("cft", first(rng.integers(0, K, 200).tolist()), 200)
    one, again, other = (
        build_report(META, lists, systems, resamples=300, seed=seed)
        for systems, seed in (([ar], 0), ([ar, extra], 0), ([ar], 1))
    )
    assert row(one, "ar")["ci"] == row(again, "ar")["ci"]
    assert row(one, "ar")["ci"] != row(other, "ar")["ci"]


def test_step_sentences_name_interval_and_verdict():
    rng = np.random.default_rng(0)
    hits = rng.integers(0, K, 300)
    good = np.where(rng.random(300) < 0.8, hits, 0)
    systems = [
        SystemOutputs("ar", first(good.tolist()), 300),
        SystemOutputs("verify", first(good.tolist()), 300),
    ]
    report = build_report(META, lists_with_hits(hits.tolist()), systems, resamples=200)
    gain, none = step_sentences(rows_of(report, "hit"))
    assert gain.startswith("`floor` → `ar` (n = 300): R@1 +")
    assert "**gain**" in gain
    assert "p < .001 **gain**" in gain
    assert "R@1 +.0000 [+.0000, +.0000], p = 1.000 **level**" in none
    assert "first places gained 0, lost 0." in none


def test_saved_outputs_terminal_table_and_ranks(tmp_path):
    lists = lists_with_hits([0, 1, -1])
    ar = SystemOutputs("ar", first([0, 1, 0]), 3, rows_L=np.arange(3))
    save_outputs(tmp_path, ar)
    loaded = load_outputs(tmp_path, "ar")
    report = build_report(META, lists, [loaded], resamples=20)
    assert report == build_report(META, lists, [ar], resamples=20)
    ranks = ranks_by_system(lists, [loaded])
    assert ranks["rank.ar"].tolist() == [0, 0, -1]
    assert ranks["rank.floor"].tolist() == [0, 1, -1]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_table(report, "hit"))
    text = console.export_text()
    assert "n = 2" in text
    assert "1.0000" in text


def test_ranks_say_which_lists_were_not_decoded():
    ar = SystemOutputs("ar", first([0]), 3, rows_L=np.array([1]))
    ranks = ranks_by_system(lists_with_hits([0, 1, -1]), [ar])
    assert ranks["rank.ar"].tolist() == [-2, 1, -2]
    assert ranks["hit"].tolist() == [0, 1, -1]


def test_numbers_in_tables():
    row = {"name": "ar", "n": 1234, "metrics": {"r@1": 0.25}, "x": -0.5, "two": 2.5}
    cells = [at("name"), at("n"), at("metrics.r@1"), at("metrics.mrr"), at("none.at.all")]
    assert [cell(row) for cell in cells] == ["ar", "1,234", ".2500", "–", "–"]
    assert at("x", 1)(row) == "-.5"
    assert times("two")(row) == "2.50×"
    assert times("none")(row) == "–"
    table = markdown_table([row], [("row", at("name")), ("n", at("n"))])
    assert table.splitlines() == ["| row | n |", "| --- | ---: |", "| ar | 1,234 |"]
    assert markdown_table([], [("row", at("name"))]) == ""


def test_a_few_values_are_spread():
    assert spread([0.5, 1.0]) == {"mean": 0.75, "sd": round(0.125**0.5, 6)}
    assert spread([0.3]) == {"mean": 0.3, "sd": None}


def test_mcnemar_by_hand():
    """5 gained, 1 lost: p = 2 · (1 + 6) / 64 = .21875."""
    before = np.array([0] * 5 + [1] + [1] * 3)
    after = np.array([1] * 5 + [0] + [1] * 3)
    assert mcnemar(before, after) == (5, 1, pytest.approx(0.21875, abs=1e-12))


def test_rounding_keeps_small_p_values_and_drops_minus_zero():
    value = rounded({"p": 1.23456e-9, "diff": -1e-9, "n": 3, "list": [0.12345678]})
    assert value == {"p": 1.235e-9, "diff": 0.0, "n": 3, "list": [0.123457]}
    assert str(value["diff"]) == "0.0"


def test_evaluate_imports_no_stage_training_or_decoding():
    package = Path(diffgr2.evaluate.__file__).parent
    for path in package.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                part = (name or "").split(".")[1:2]
                assert part not in (["stages"], ["train"], ["decode"]), f"{path.name}: {name}"
