"""A run's verdict: its words, its numbers, and what the bundle and the server make of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluate_report import META, first, lists_with_hits, row

from diffgr2.choices import FAILING
from diffgr2.cli.serve import judged
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.tables import number, render_markdown, signed
from diffgr2.evaluate.verdict import (
    DECIDES,
    NO_RIVAL,
    PARTS,
    STANCES,
    called,
    judge,
)
from diffgr2.rerank.bundle import VERDICT, read_verdict, refuse_worse

K = 4
OTHERS = {"rival": "lambdamart", "scorer": "evidence"}


def verdict(hits, *, own, scorer=None, rival=None, rows=None, others=None, **how):
    """The verdict on `ar`, each given by the position it puts first in each list."""
    lists, n = lists_with_hits(hits), len(hits)
    systems = [SystemOutputs("ar", first(own), n, rows_L=rows)]
    for name, other in (("evidence", scorer), ("lambdamart", rival)):
        if other is not None:
            systems.append(SystemOutputs(name, first(other), n))
    others = OTHERS if others is None else others
    return judge(lists, systems, "ar", others, **{"taught": True, **how}, resamples=200, seed=3)


def stances(found) -> dict[str, str]:
    return {one["part"]: one["stance"] for one in found["against"]}


HITS = [1] * 60


def test_better_worse_and_neither_by_hand() -> None:
    """Targets at the second place: the row has 40 of 60 first, its scorer all, its rival 40."""
    own, rival = [1] * 40 + [0] * 20, [0] * 20 + [1] * 40
    found = verdict(HITS, own=own, scorer=HITS, rival=rival)
    assert stances(found) == {
        "floor": "better",
        "rival": "no difference shown",
        "scorer": "worse",
    }
    assert found["worse_than"] == ["scorer"]
    floor = found["against"][0]["metrics"]
    assert floor["r@1"]["diff"] == pytest.approx(40 / 60, abs=1e-6)
    assert floor[DECIDES]["other"] == pytest.approx(1 / np.log2(3), abs=1e-6)
    assert [line.split(": NDCG")[0] for line in found["lines"]] == [
        "`ar`: better than the floor (the order as it came)",
        "No difference shown from the strongest rival without a language model, `lambdamart`",
        "Worse than the scorer that taught it, `evidence`",
    ]
    assert all("60 test lists" in line for line in found["lines"])


def test_worse_than_the_floor_is_said_of_the_row_itself() -> None:
    found = verdict([0] * 50, own=[1] * 50)
    assert found["worse_than"] == ["floor"]
    assert found["lines"][0].startswith("`ar`: worse than the floor")
    assert stances(found) == {"floor": "worse"}


def test_a_rival_alone_does_not_make_a_run_fail() -> None:
    found = verdict(HITS, own=[0] * 60, rival=HITS, scorer=[0] * 60)
    assert stances(found)["rival"] == "worse"
    assert found["worse_than"] == []


def test_a_scorer_that_did_not_teach_is_not_said_to_have() -> None:
    found = verdict(HITS, own=HITS, scorer=HITS, taught=False)
    assert not any("that taught it" in line for line in found["lines"])
    assert called(found, "scorer") in found["lines"][-1]


def test_without_a_rival_a_line_says_how_to_get_one() -> None:
    found = verdict(HITS, own=HITS, scorer=[0] * 60, others={"scorer": "evidence"})
    assert len(found["lines"]) == 3
    assert found["lines"][1] == NO_RIVAL


def test_the_best_but_the_scorer_is_not_called_the_strongest() -> None:
    found = verdict(HITS, own=HITS, scorer=HITS, rival=HITS, strongest=False)
    assert "without a language model" not in found["lines"][1]
    assert f"{called(found, 'rival')}, `lambdamart`" in found["lines"][1]


def test_own_lists_have_outcomes_and_no_target() -> None:
    lists = replace(lists_with_hits(HITS), gains=lists_with_hits(HITS).gains_LK)
    systems = [SystemOutputs(name, first(HITS), len(HITS)) for name in ("ar", "evidence")]
    found = judge(lists, systems, "ar", OTHERS, taught=True, resamples=100, seed=0)
    assert found is not None
    assert all("60 test lists that have an outcome" in found["lines"][at] for at in (0, 2))
    assert found["lines"][0].startswith("`ar`: better than the floor (the shop's own order): ")


def test_only_lists_that_were_decoded_and_hold_their_target_count() -> None:
    found = verdict([1, 1, -1, 1], own=[1, 1], scorer=[0] * 4, rows=np.array([0, 2], np.int32))
    assert [one["n"] for one in found["against"]] == [1, 1]
    assert (found["n"], found["n_lists"]) == (1, 4)
    assert verdict([-1, -1], own=[0, 0], scorer=[0, 0]) is None


PLACES = st.lists(st.tuples(*[st.integers(0, K - 1)] * 4), min_size=1, max_size=40)


@given(PLACES)
@settings(max_examples=40, deadline=None)
def test_words_and_numbers_agree_and_are_those_of_the_report(places) -> None:
    hits, own, scorer, rival = (list(column) for column in zip(*places, strict=True))
    found = verdict(hits, own=own, scorer=scorer, rival=rival)
    named = {"ar": own, "evidence": scorer, "lambdamart": rival}
    systems = [SystemOutputs(name, first(of), len(hits)) for name, of in named.items()]
    report = build_report(
        META, lists_with_hits(hits), systems, resamples=200, seed=3, rival="lambdamart"
    )
    assert [one["part"] for one in found["against"]] == list(PARTS)
    for one, line in zip(found["against"], found["lines"], strict=True):
        entry = one["metrics"][DECIDES]
        low, high = entry["ci"]
        assert (one["stance"] == "worse") == (high < 0)
        assert (one["stance"] == "better") == (low > 0)
        assert one["stance"] in line.lower()
        others = set(STANCES.values()) - {one["stance"]}
        assert not any(re.search(rf"\b{word}\b", line.lower()) for word in others)
        for text in (number(entry["value"]), number(entry["other"]), signed(entry["diff"])):
            assert text in line
        assert entry["diff"] == pytest.approx(entry["value"] - entry["other"], abs=2e-6)
        mine = row(report, "ar")
        assert mine["metrics"][DECIDES] == entry["value"]
        assert row(report, one["row"])["metrics"][DECIDES] == entry["other"]
        if one["part"] in ("floor", "rival"):
            assert mine[f"vs_{one['part']}"][DECIDES] == entry["ci"]
    failed = {one["part"] for one in found["against"] if one["stance"] == "worse"}
    assert set(found["worse_than"]) == failed & set(FAILING)
    json.dumps(found, allow_nan=False)


def test_the_report_begins_with_it() -> None:
    report = build_report(META, lists_with_hits(HITS), [], resamples=20)
    found = verdict(HITS, own=HITS)
    text = render_markdown({**report, "verdict": found})
    assert found["lines"][0] in text.split("## Hit users")[0]
    assert "## Verdict" not in render_markdown(report)


# ---------------------------------------------------------------------------------- the bundle


def bundle(tmp_path: Path, **values) -> Path:
    if values:
        (tmp_path / VERDICT).write_text(json.dumps(values))
    return tmp_path


def test_a_bundle_that_is_worse_is_refused_in_one_line_and_served_by_force(tmp_path: Path) -> None:
    path = bundle(tmp_path, lines=["`x` is worse than the floor."], worse_than=["floor", "scorer"])
    with pytest.raises(
        ConfigError, match=r"worse than its floor and its scorer.*--force"
    ) as caught:
        judged([path], force=False)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    (line,) = judged([path], force=True)
    assert line.startswith("warning:")
    assert "--force" in line


def test_what_nobody_judged_is_said_and_what_is_good_is_not(tmp_path: Path) -> None:
    (line,) = judged([bundle(tmp_path)], force=False)
    assert "not judged" in line
    refuse_worse(tmp_path)
    assert judged([bundle(tmp_path, lines=["Better."], worse_than=[])], force=False) == []
    found = read_verdict(tmp_path)
    assert found is not None
    assert (found.lines, found.worse_than) == (("Better.",), ())


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "null", "3", '"worse"', '{"lines": ["a"]}', '{"worse_than": []}'),
        *('{"lines": [], "worse_than": []}', '{"lines": [1], "worse_than": []}'),
        *('{"lines": ["a", 1], "worse_than": []}', '{"lines": ["a"], "worse_than": "floor"}'),
        *(
            '{"lines": ["a"], "worse_than": ["rival"]}',
            '{"lines": ["a"], "worse_than": [["floor"]]}',
        ),
        *('{"lines": ["a"], "worse_than": [], "worse_than": ["floor"]}', '{"lines": ["a"], '),
    ],
)
def test_a_file_that_is_no_verdict_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / VERDICT).write_text(text)
    with pytest.raises(ArtifactError, match=re.escape(VERDICT)) as caught:
        judged([tmp_path], force=True)
    assert "\n" not in str(caught.value)
