"""The three lines that a run ends with say no more than their intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_verdict import HITS, K, verdict

from diffgr2.evaluate.closing import NO_RIVAL, NOT_TIMED, answered, closing, percent, price

TIMED = {"ms_per_list": 20.0, "low_ms": 19.0, "high_ms": 22.0}
SURE = {"raw_valid": 1.0, "coherent": 0.9, "ci": {"raw_valid": [0.96, 1.0], "coherent": [0.8, 1]}}


@pytest.mark.parametrize(
    ("ci", "said"),
    [
        ([0.01, 0.05], "yes: +.0300 [+.0100, +.0500]"),
        ([-0.05, -0.01], "no, worse: −.0300 [−.0500, −.0100]"),
        ([-0.004, 0.006], "level within ±.01: +.0010 [−.0040, +.0060]"),
        ([-0.02, 0.05], "not shown, from .020 worse to .050 better (+.0150)"),
        ([0.0, 0.05], "not shown, from .000 worse to .050 better (+.0250)"),
    ],
)
def test_an_answer_is_what_the_interval_allows(ci: list[float], said: str) -> None:
    assert answered({"diff": sum(ci) / 2, "ci": ci}) == said


def test_three_lines_ask_and_answer_about_floor_rivals_and_price() -> None:
    own, rival = [1] * 40 + [0] * 20, [0] * 20 + [1] * 40
    found = verdict(HITS, own=own, scorer=HITS, rival=rival)
    assert found is not None
    floor, rivals, cost = closing(found, TIMED | SURE)
    assert floor.startswith("`ar` better than the floor (the order as it came)? Yes: +")
    assert floor.endswith("60 test lists with their target, paired 95 %.")
    assert "The strongest rival without a language model, `lambdamart`: not shown" in rivals
    assert "the scorer that taught it, `evidence`: no, worse" in rivals
    assert cost == (
        "How fast, how valid? 20 ms a list, one at a time (19 to 22 over rounds); "
        "100 % valid before any repair (96 to 100); 90 % coherent (80 to 100)."
    )


def test_what_is_not_there_is_said_with_its_mend() -> None:
    found = verdict([0] * 50, own=[K - 1] * 50)
    assert found is not None
    floor, rivals, cost = closing(found, {})
    assert "? No, worse: −" in floor
    assert NO_RIVAL[1:] in rivals
    assert NOT_TIMED[1:] in cost


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ((19.0, 22.0), "2 times as fast as `ar`"),
        ((70.0, 90.0), "2 times as slow as `ar`"),
        ((30.0, 41.0), "as fast as `ar`, as far as the rounds tell"),
        ((20.0, 20.0), "one round does not tell it from `ar`"),
    ],
)
def test_faster_or_slower_only_where_rounds_lie_apart(own: tuple[float, float], said: str) -> None:
    low, high = own
    middle = {19.0: 20.0, 70.0: 80.0}.get(low, low)
    ar = {"ms_per_list": 40.0, "low_ms": 38.0, "high_ms": 44.0}
    line = price({"ms_per_list": middle, "low_ms": low, "high_ms": high, "ar": ar})
    assert f"; {said}." in line


@given(st.floats(0, 1))
def test_only_all_are_100_and_only_none_are_0_percent(share: float) -> None:
    assert (percent(share) == "100") == (share == 1)
    assert (percent(share) == "0") == (share == 0)
