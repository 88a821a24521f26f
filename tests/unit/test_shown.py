"""What a terminal says of a ranking: what went otherwise first, in words, and 80 columns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffgr2.cli.shown import FAILED, SHOWN_WARNINGS, cautions, show
from diffgr2.rerank.result import RankResult
from diffgr2.types import FAILURES

COST = {"decoder": "block", "tokens": 18, "forwards": 3, "tokens_per_forward": 6.0, "windows": 1}
PLAIN = RankResult(
    order=(2, 0, 1),
    items=("c", "a", "b"),
    scores=(0.5, 0.3, 0.2),
    levels=(12.5, 7.0, None),
    sure=0.5,
    valid=True,
    repaired=False,
    fallback=False,
    identity=False,
    failures=(),
    reasoning="Because.",
    raw=(),
    trajectories=(),
    decode=COST,
    placed=(None, None, None),
)
LONG = [f"[{name}] " + "a title without an end " * 9 for name in "abc"]


def test_a_ranking_as_asked_needs_no_words() -> None:
    assert cautions(PLAIN, blank=False) == []


def test_every_failure_has_words() -> None:
    assert FAILED.keys() >= {*FAILURES}


@pytest.mark.parametrize(
    ("change", "blank", "said"),
    [
        ({}, True, "No history is known"),
        ({"fallback": True, "failures": ("unparseable",)}, False, "keeps the order it came in"),
        ({"repaired": True, "failures": ("missing",)}, False, "candidates are missing) and was"),
        ({"decode": COST | {"windows": 4}}, False, "dealt into 4 windows"),
        ({"warnings": ("candidates[0]: 'x' keeps its place",)}, False, "'x' keeps its place"),
    ],
)
def test_what_went_otherwise_stands_before_the_ranking(change, blank, said, capsys) -> None:
    result = replace(PLAIN, **change)
    (line,) = cautions(result, blank=blank)
    assert said in line
    show(result, ["A", "B", "C"], blank=blank)
    out = " ".join(capsys.readouterr().out.split())
    assert out.index(said) < out.index("place was")


def test_a_fallback_comes_before_windows_and_these_before_warnings() -> None:
    warnings = tuple(f"candidates[{at}]: unknown" for at in range(SHOWN_WARNINGS + 2))
    grave = {"fallback": True, "failures": ("overlong",), "warnings": warnings}
    lines = cautions(replace(PLAIN, decode=COST | {"windows": 2}, **grave), blank=False)
    assert [line.split()[0] for line in lines[:3]] == ["An", "The", "candidates[0]:"]
    assert lines[-1].startswith("… and 2 more")
    assert len(lines) == 2 + SHOWN_WARNINGS + 1


@pytest.mark.parametrize("placed", [(None, None, None), ("pinned", None, "limited")])
def test_the_table_fits_80_columns_with_a_line_per_item(placed, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(replace(PLAIN, placed=placed), LONG)
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(table) == 4
    assert max(map(len, table)) <= 80
    assert [line.split()[0] for line in table[1:]] == ["1", "2", "3"]
    assert ["[c]" in table[1], "▲2" in table[1], "▼1" in table[2]] == [True] * 3
    assert "12.5" in table[1]
    assert "–" in table[3]
    assert ("pinned" in table[1]) == any(placed)
