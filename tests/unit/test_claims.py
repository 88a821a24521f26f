"""What a table claims: adjusted tests, margins, parts of the users, the papers' rows apart."""

from __future__ import annotations

import numpy as np

from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.tables import differences_table, render_markdown, rows_of, step_sentences
from support.measured import META, K, first, lists_with_hits, row


def test_a_step_is_level_or_not_and_of_all_users_neither():
    hits = [i % K for i in range(40)]
    same = {name: SystemOutputs(name, first(hits), 40) for name in ("ar", "ar_written", "verify")}
    worse = SystemOutputs("cft_opd_rl", first([0] * 20 + hits[20:]), 40)
    report = build_report(META, lists_with_hits(hits), [*same.values(), worse], resamples=200)
    (verify,) = row(report, "verify")["steps"]
    assert verify["equivalence"] == {"margin": 0.01, "r@1": "level", "ndcg@3": "level"}
    assert "[+.0000, +.0000], p = 1.000 **level**" in step_sentences([row(report, "verify")])[0]
    steps = {step["from"]: step for step in row(report, "cft_opd_rl")["steps"]}
    assert steps["ar"]["equivalence"]["r@1"] == "loss"
    assert "equivalence" not in row(report, "verify", "all")["steps"][0]  # misses are level anyway
    assert {step["from"] for step in row(report, "ar")["steps"]} == {"floor", "ar_written"}
    rows = rows_of(report, "hit")
    assert "| verify | [+.0000, +.0000] | 1.000 | level |" in differences_table(rows, "ar")
    told = differences_table(rows_of(report, "all"), "ar")
    assert "| verify | [+.0000, +.0000] | 1.000 | no difference shown |" in told


def test_many_comparisons_ask_more_of_each():
    """6 gained of 6 have an exact p of 2 / 2^6 = .031: enough alone, not beside others. The same
    interval leaves out 0 either way."""
    hits = [1] * 6 + [0] * 60
    good = SystemOutputs("ar", first([1] * 6 + [0] * 60), 66)
    idle = [SystemOutputs(f"x{n}", first([0] * 66), 66) for n in range(4)]
    report = build_report(META, lists_with_hits(hits), [good, *idle], resamples=2_000)
    ar = row(report, "ar")
    assert ar["vs_floor"]["r@1"][0] > 0
    assert ar["steps"][0]["metrics"]["r@1"]["p"] == 0.03125
    assert ar["steps"][0]["metrics"]["r@1"]["p_holm"] == 0.0625  # two metrics of one step
    assert ar["steps"][0]["metrics"]["r@1"]["verdict"] == "none"
    assert ar["p_holm"]["floor"]["r@1"] > 0.25  # five rows, two metrics
    assert "p_holm" not in row(report, "random")
    assert "| ar | [+" in (told := differences_table(rows_of(report, "hit"), "floor"))
    assert "| gain |" not in told


def test_parts_of_the_hits_have_rows_of_their_own():
    """Lists 0 and 2 are of one part; AR lifts the target of list 2 and drops that of list 0."""
    lists = lists_with_hits([0, 1, 3, -1])
    same = np.array([True, False, True, True])
    parts = {"same_day": same, "other_days": ~same}
    ar = SystemOutputs("ar", first([1, 1, 3, 0]), 4)
    report = build_report(META, lists, [ar], resamples=99, parts=parts)
    assert {r["n"] for r in rows_of(report, "same_day")} == {2}
    assert {r["n"] for r in rows_of(report, "other_days")} == {1}
    found = row(report, "ar", "same_day")
    assert found["metrics"]["r@1"] == row(report, "floor", "same_day")["metrics"]["r@1"] == 0.5
    assert found["vs_floor"]["r@1"][0] < 0 < found["vs_floor"]["r@1"][1]
    assert "raw_valid" not in found
    assert row(report, "ar", "other_days")["vs_floor"]["r@1"] == [1.0, 1.0]
    text = render_markdown(report)
    assert "## Same day and other days" in text
    assert "R@1, same day (n = 2) | over the floor, 95 %" in text
    assert "R@1, other days (n = 1)" in text
    whole = rows_of(report, "hit")
    assert whole == rows_of(build_report(META, lists, [ar], resamples=99), "hit")


def test_the_papers_rows_have_a_table_of_their_own():
    valid_L = np.array([True, False, True])
    systems = [SystemOutputs("ar", first([0, 1, 0]), 3)]
    systems += [SystemOutputs("cft_opd_rl_raw", first([0, 0, 0]), 3, raw_valid_L=valid_L)]
    text = render_markdown(build_report(META, lists_with_hits([0, 1, 3]), systems, resamples=50))
    table = text.split("### As the papers decode and read\n\n")[1].split("\n\n")[0]
    assert "| cft_opd_rl_raw | .6667 |" in table
    assert "| ar |" not in table


def test_reasoning_carries_the_share_of_the_gain_that_goes_without_it():
    """The floor has 20 of 80 first, AR 60, direct answers 50: 10 of 40 are the reasoning's."""
    hits = [i % K for i in range(80)]
    right = {"ar": 60, "ar_direct": 50}
    systems = []
    for name, n in right.items():
        wanted, left = [], n - 20
        for hit in hits:
            lift = hit != 0 and left > 0
            left -= lift
            wanted.append(hit if hit == 0 or lift else 0)
        systems.append(SystemOutputs(name, first(wanted), 80))
    report = build_report(META, lists_with_hits(hits), systems, resamples=500)
    share = row(report, "ar")["reasoning_share"]["r@1"]
    assert share["value"] == 0.25
    assert share["ci"][0] < 0.25 < share["ci"][1]
    assert "reasoning carries .25 [" in render_markdown(report)
