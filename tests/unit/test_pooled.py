"""Runs under several seeds as one table: means over runs, intervals over people, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.artifacts import read_json, save_arrays, write_json
from diffgr2.cli import run as command
from diffgr2.cli.pooling import mixtures, rival_of, summary_of, text_of, with_beside
from diffgr2.errors import ConfigError
from diffgr2.evaluate.pooled import beside, pooled, pooled_table
from diffgr2.evaluate.significance import wilson
from diffgr2.evaluate.versus import RANKS, RECIPE, REPORT, Side

MISS, UNDECODED = -1, -2
RECIPE_OF = {"name": "toy", "seed": 0, "data": {"interactions": "/a/x.csv", "tie_seed": 0}}


def side(ranks: list[int], seed: int = 0, **more: Any) -> Side:
    """A run whose row `ar` puts targets there; the floor has them at the second place."""
    n, rank_L = len(ranks), np.array(ranks, np.int16)
    floor_L = np.where(rank_L == MISS, MISS, 1).astype(np.int16)
    arrays = {
        "list": np.arange(n, dtype=np.int64),
        "candidates": np.zeros(n, np.int64),
        "person": np.array(more.get("persons", range(n)), np.int64),
        "hit": floor_L,
        "rank.floor": floor_L,
        "rank.ar": rank_L,
        **more.get("arrays", {}),
    }
    report = {"recipe": "toy", "data": "d", "tie_order": f"shuffle({seed})", "seed": seed}
    report |= {"commit": "c", "commits": ["c"], "command": f"run {seed}"}
    report |= {"rows": [{"name": "floor"}, {"name": "ar"}]}
    recipe = RECIPE_OF | {"seed": seed} | more.get("recipe", {})
    return Side(f"r{seed}", {**report, **more.get("report", {})}, recipe, arrays)


def row(rows: list[dict[str, Any]], name: str = "ar", population: str = "hit") -> dict[str, Any]:
    (found,) = (r for r in rows if (r["name"], r["population"]) == (name, population))
    return found


def test_a_value_is_the_mean_of_the_runs_means_by_hand() -> None:
    """2 of 4 and 1 of 2 hits first in one run, 3 of 3 in the other: (1/2 + 1) / 2 = .75."""
    one = side([0, 0, 1, 1, MISS])
    two = side([0, 0, 0, MISS, MISS], 1)
    found = pooled([one, two], resamples=500)
    ar = row(found)
    assert ar["metrics"]["r@1"] == {"mean": 0.75, "sd": round(0.125**0.5, 6)}
    assert (ar["n"], ar["seeds"]) == (7, 2)
    assert ar["over_floor"]["r@1"] == 0.75
    assert row(found, population="all")["metrics"]["r@1"]["mean"] == pytest.approx(0.5)  # 2/5, 3/5
    assert ar["steps"][0]["mcnemar"]["gained"] == 5


def test_one_person_in_three_runs_is_no_three_people() -> None:
    """The same 40 answers three times: as 40 people the interval is that of one run; as 120 people
    it would be √3 narrower."""
    ranks = [0] * 20 + [1] * 20
    width = {}
    for name, persons in (("same", [range(40)] * 3), ("others", np.arange(120).reshape(3, 40))):
        sides = [side(ranks, seed, persons=list(p)) for seed, p in enumerate(persons)]
        low, high = row(pooled(sides, resamples=4_000))["ci"]["r@1"]
        width[name] = high - low
    low, high = row(pooled([side(ranks), side(ranks, 1)], resamples=4_000))["ci"]["r@1"]
    assert width["same"] == pytest.approx(high - low, rel=0.1)
    assert width["same"] / width["others"] == pytest.approx(3**0.5, rel=0.12)


def test_differences_are_tested_over_people() -> None:
    """Six people gain in all three runs: p is near 2 / 2^6, not 2 / 2^18."""
    sides = [side([0] * 6 + [1] * 30, seed) for seed in range(3)]
    (step,) = row(pooled(sides, resamples=200))["steps"]
    assert step["metrics"]["r@1"]["p"] == pytest.approx(2 / 2**6, abs=0.006)
    assert step["metrics"]["r@1"]["verdict"] == "none"  # two metrics, adjusted


@given(st.lists(st.integers(MISS, 5), min_size=3, max_size=25), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_twice_the_same_run_is_that_run(ranks: list[int], seed: int) -> None:
    if not any(rank >= 0 for rank in ranks):
        return
    once, twice = (
        pooled([side(ranks, n) for n in range(runs)], resamples=200, seed=seed) for runs in (1, 2)
    )
    for population in ("hit", "all"):
        one, two = (row(found, population=population) for found in (once, twice))
        for metric, value in one["metrics"].items():
            assert two["metrics"][metric]["mean"] == pytest.approx(value["mean"], abs=1e-6)
            low, high = two["ci"][metric]
            assert 0 <= low <= value["mean"] + 1e-6
            assert value["mean"] <= high + 1e-6


def test_what_outputs_are_worth_has_intervals_over_people() -> None:
    arrays = {"valid.ar": [1, 1, 0, 1], "coherent.ar": [1] * 4, "tokens.ar": [10, 20, 30, 40]}
    arrays |= {"forwards.ar": [1, 2, 3, 4], "cited.ar": [0, 2, 2, 2], "right.ar": [0, 2, 1, 2]}
    given_arrays = {name: np.array(values, np.int32) for name, values in arrays.items()}
    found = row(pooled([side([0, 1, 0, 1], n, arrays=given_arrays) for n in (0, 1)], resamples=300))
    assert found["raw_valid"] == {"mean": 0.75, "sd": 0.0}
    assert (found["tpf"]["mean"], found["forwards"]["mean"]) == (10.0, 2.5)
    assert found["evidence_true"]["mean"] == pytest.approx(5 / 6, abs=1e-6)
    assert found["ci"]["coherent"] == [round(end, 6) for end in wilson(4, 4)]  # four people
    low, high = found["ci"]["raw_valid"]
    assert low < 0.75 < high
    assert found["ci"]["tpf"] == [10.0, 10.0]
    assert "| .750 |" in pooled_table([found])


def test_days_are_told_apart_where_all_runs_tell_them() -> None:
    days = {"same_day": np.array([1, 0, 1, 0], np.int8)}
    sides = [side([0, 1, 0, 0], seed, arrays=days) for seed in (0, 1)]
    found = pooled(sides, resamples=200)
    assert row(found, population="same_day")["metrics"]["r@1"]["mean"] == 1.0
    assert row(found, population="other_days")["metrics"]["r@1"]["mean"] == 0.5
    assert "R@1 over the floor, other days" in text_of(summary_of(sides, mixed=False, resamples=99))
    some = pooled([sides[0], side([0, 1, 0, 0], 1)], resamples=200)
    assert {r["population"] for r in some} == {"hit", "all"}


def test_only_lists_that_every_row_decoded_count() -> None:
    sides = [side([0, UNDECODED, 1], seed) for seed in (0, 1)]
    for one in sides:
        one.arrays["hit"][:] = 1
        one.arrays["rank.floor"][:] = 1
    found = pooled(sides, resamples=100)
    assert {(r["population"], r["name"]): r["n"] for r in found} == {
        **{("hit", "floor"): 4, ("hit", "ar"): 4},
        ("all", "floor"): 6,  # `ar` left out a list that holds its target
    }


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"report": {"commits": ["c", "d"]}}, "made by several commits (c, d)"),
        ({"report": {"commit": "c+dirty"}}, "c+dirty: the source was not as committed"),
        (
            {"recipe": {"sft": {"steps": 9}}},
            "r1: its recipe is another than that of r0 (sft.steps)",
        ),
    ],
)
def test_runs_that_are_no_one_experiment_are_refused_and_told(more: dict, told: str) -> None:
    sides = [side([0, 1]), side([0, 1], 1, **more)]
    assert told in mixtures(sides)
    with pytest.raises(ConfigError, match="--mixed pools them all the same"):
        summary_of(sides, mixed=False, resamples=100)
    summary = summary_of(sides, mixed=True, resamples=100)
    assert told in summary["mixed"]
    assert f"Mixed: {told}." in text_of(summary)


def test_seeds_ties_and_where_files_lie_may_differ() -> None:
    moved = {"data": {"interactions": "/elsewhere/x.csv", "tie_seed": 1}}
    sides = [side([0, 1]), side([0, 1], 1, recipe=moved)]
    assert mixtures(sides) == []
    summary = summary_of(sides, mixed=False, resamples=100)
    assert (summary["tie_order"], summary["seeds"]) == ("shuffle(0), shuffle(1)", [0, 1])
    assert "mixed" not in summary


def test_what_can_never_be_pooled() -> None:
    with pytest.raises(ConfigError, match="r1: data is 'e', not 'd'"):
        summary_of([side([0]), side([0], 1, report={"data": "e"})], mixed=True, resamples=100)
    with pytest.raises(ConfigError, match="one stands twice"):
        summary_of([side([0]), side([0])], mixed=True, resamples=100)
    old = side([0], 1)
    del old.arrays["person"]
    with pytest.raises(ConfigError, match="made by another version"):
        summary_of([side([0]), old], mixed=True, resamples=100)


def test_the_rival_is_the_best_over_all_runs() -> None:
    """linear .3 and .3, mlp .1 and .6, which no single run's choice would tell."""
    rivals = [{"linear": 0.3, "mlp": 0.1, "floor": 0.9}, {"linear": 0.3, "mlp": 0.6}]
    rows = {"linear": "evidence", "mlp": "evidence_mlp"}
    sides = [
        side([0], n, report={"rival": {"row": "x", "values": values, "rows": rows}})
        for n, values in enumerate(rivals)
    ]
    assert rival_of(sides) == "evidence_mlp"
    assert rival_of([side([0]), sides[0]]) is None


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for seed in (0, 1):
        one, folder = side([0, 1, 0, MISS], seed), tmp_path / f"r{seed}" / "report"
        folder.mkdir(parents=True)
        save_arrays(folder / RANKS, **one.arrays)
        write_json(folder / REPORT, one.report)
        write_json(folder / RECIPE, one.recipe)
    runs = [str(tmp_path / f"r{seed}") for seed in (0, 1)]
    files = ["--save", str(tmp_path / "s.json"), "--plot", str(tmp_path / "s.png")]
    assert command(["seeds", *runs, *files, "--resamples", "100"]) == 0
    printed = capsys.readouterr().out
    summary = read_json(tmp_path / "s.json")
    assert pooled_table(summary["rows"]) in printed
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert command(["seeds", runs[0]]) == 2
    assert "at least two runs" in capsys.readouterr().err


def test_a_row_of_other_runs_stands_beside_on_the_same_lists() -> None:
    """Paired by request: the other runs hold the lists in another order."""
    own = [side([0, 1, 0, MISS], seed) for seed in (0, 1)]
    turned = {"list": np.arange(4)[::-1].copy()}
    others = [side([MISS, 0, 0, 0], seed, arrays=turned) for seed in (2, 3)]
    both = [beside(one, other, "ar") for one, other in zip(own, others, strict=True)]
    found = row(pooled(both, resamples=200), "ar")
    assert found["over_beside"]["r@1"] == pytest.approx(-1 / 3, abs=1e-6)
    assert row(pooled(both, resamples=200), "ar_beside")["metrics"]["r@1"]["mean"] == 1.0
    with pytest.raises(ConfigError, match="r2: its lists are not those of r0"):
        beside(own[0], side([0, 1, 0], 2), "ar")
    with pytest.raises(ConfigError, match="r2: its candidates are not those of r0"):
        beside(own[0], side([0] * 4, 2, arrays={"candidates": np.ones(4, np.int64)}), "ar")
    with pytest.raises(ConfigError, match="r2: no row cft"):
        beside(own[0], side([0] * 4, 2), "cft")
    with pytest.raises(ConfigError, match="expected ROW@RUN,RUN,… with 2 runs"):
        with_beside(own, "ar@one")
