"""Two runs compared: which lists are paired, on what figures, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.cli import run
from diffgr2.cli.compare import conclusion, recipes_of, rows_to_compare
from diffgr2.errors import ConfigError, Diffgr2Error
from diffgr2.evaluate.metrics import METRICS
from diffgr2.evaluate.significance import sign_flips
from diffgr2.evaluate.versus import RANKS, RECIPE, REPORT, Side, compare, read_side

MISS, UNDECODED = -1, -2


def side(ranks: list[int], name: str = "a", **more: Any) -> Side:
    """A run whose row `ar` puts targets there; the floor has them at the second place."""
    n = len(ranks)
    rank_L = np.array(ranks, np.int16)
    floor_L = np.where(rank_L == MISS, MISS, 1).astype(np.int16)
    arrays = {
        "list": np.array(more.get("lists", range(n)), np.int64),
        "candidates": np.array(more.get("candidates", [7] * n), np.int64),
        "hit": floor_L,
        "rank.floor": floor_L,
        "rank.ar": rank_L,
        **more.get("arrays", {}),
    }
    report = {"recipe": "toy", "seed": 0, "rows": [{"name": "floor"}, {"name": "ar"}]}
    return Side(name, {**report, **more.get("report", {})}, more.get("recipe", {}), arrays)


def metric_of(
    found: dict[str, Any], metric: str = "r@1", population: str = "same"
) -> dict[str, Any]:
    (entry,) = (one for one in found["rows"] if one["population"] == population)
    return {**entry["metrics"][metric], "n": entry["n"]}


def test_by_hand() -> None:
    """Of ten lists A has two first and B five, the rest at the second place."""
    found = compare(side([0] * 2 + [1] * 8), side([0] * 5 + [1] * 5, "b"), ["ar"], resamples=500)
    test = metric_of(found)
    assert (test["a"], test["b"], test["diff"], test["n"]) == (0.2, 0.5, 0.3, 10)
    assert test["ci"][0] <= 0.3 <= test["ci"][1]
    assert test["p"] == pytest.approx(2 / 2**3, abs=0.06)  # three lists, all one way
    assert test["verdict"] == "none"
    assert metric_of(found, "ndcg@10")["diff"] == pytest.approx(
        0.3 * (1 - 1 / np.log2(3)), abs=1e-6
    )
    assert metric_of(found, "r@3")["diff"] == 0.0
    assert found["tests"] == len(METRICS)


def test_a_difference_that_is_sure_is_told_with_its_side() -> None:
    found = compare(side([1] * 40), side([0] * 40, "b"), ["ar"], resamples=500)
    assert metric_of(found)["verdict"] == "gain"
    assert conclusion(found).startswith(
        "B (b) is better than A (a) in `ar`: NDCG@10 .6309 → 1.0000"
    )
    turned = compare(side([0] * 40), side([1] * 40, "b"), ["ar"], resamples=500)
    assert conclusion(turned).startswith("A (a) is better than B (b)")


@given(st.lists(st.integers(UNDECODED, 9), min_size=1, max_size=40), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_a_run_is_level_with_itself(ranks: list[int], seed: int) -> None:
    one = side(ranks)
    if not any(rank >= 0 for rank in ranks):
        with pytest.raises(ConfigError, match="no shared list was decoded by both"):
            compare(one, one, ["ar"], resamples=100, seed=seed)
        return
    found = compare(one, one, ["ar"], resamples=100, seed=seed)
    assert found["shared"]["same_candidates"] == len(ranks)
    for entry in found["rows"]:
        for test in entry["metrics"].values():
            assert (test["diff"], test["ci"]) == (0.0, [0.0, 0.0])
            assert test["p"] == test["p_holm"] == 1.0
            assert test["verdict"] == "none"
    assert conclusion(found).startswith("No difference shown")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=40, deadline=None)
def test_turned_round_every_difference_changes_its_sign(pairs: list[tuple[int, int]]) -> None:
    a, b = (
        side(list(ranks), name) for ranks, name in zip(zip(*pairs, strict=True), "ab", strict=True)
    )
    there, back = (compare(*both, ["ar"], resamples=100) for both in ((a, b), (b, a)))
    for metric in METRICS:
        one, two = metric_of(there, metric), metric_of(back, metric)
        assert one["diff"] == pytest.approx(-two["diff"])
        assert one["p"] == two["p"]
        assert one["ci"] == pytest.approx([-end for end in reversed(two["ci"])], abs=2e-6)
        assert metric_of(there, metric)["b"] - one["a"] == pytest.approx(one["diff"], abs=2e-6)


def test_lists_are_paired_by_request_and_not_by_place() -> None:
    a = side([0, 1, 2, 3], lists=[10, 20, 30, 40])
    b = side([3, 2, 1, 0], "b", lists=[40, 30, 20, 10])
    found = compare(a, b, ["ar"], resamples=100)
    assert all(test["diff"] == 0 for test in found["rows"][0]["metrics"].values())
    fewer = compare(a, side([0, 5], "b", lists=[20, 99]), ["ar"], resamples=100)
    assert fewer["shared"] == {
        **{"lists": 1, "same_candidates": 1, "twice": 0},
        **{"only_a": 3, "only_b": 1},
    }
    assert metric_of(fewer)["diff"] == 1.0


def test_other_candidates_are_compared_over_all_and_said() -> None:
    """B's retriever misses the target of the third list; the second has other candidates."""
    a = side([0, 1, 1, 1], candidates=[1, 2, 3, 4])
    b = side([0, 0, MISS, 1], "b", candidates=[1, 9, 9, 4])
    found = compare(a, b, ["ar"], resamples=100)
    assert found["shared"]["same_candidates"] == 2
    assert metric_of(found)["n"] == 2
    assert metric_of(found, population="all")["n"] == 4
    assert metric_of(found, "r@3", "all")["diff"] == -0.25
    assert metric_of(found, "r@3")["diff"] == 0.0


def test_where_not_every_hit_was_decoded_nothing_is_said_of_all() -> None:
    a, b = side([0, UNDECODED, 1]), side([0, 1, 1], "b", candidates=[7, 7, 8])
    found = compare(a, b, ["ar"], resamples=100)
    assert [entry["population"] for entry in found["rows"]] == ["same"]
    assert metric_of(found)["n"] == 1


def test_a_request_that_stands_twice_is_left_out_and_counted() -> None:
    found = compare(side([0, 1, 2], lists=[5, 5, 6]), side([0], "b", lists=[6]), ["ar"])
    assert (found["shared"]["lists"], found["shared"]["twice"]) == (1, 1)


def test_values_of_several_outcomes_are_read_where_they_stand() -> None:
    value_LM = np.full((2, len(METRICS)), 0.25, np.float32)
    b = side([0, 0], "b", arrays={"value.ar": value_LM})
    assert metric_of(compare(side([0, 0]), b, ["ar"], resamples=100))["b"] == 0.25


def test_the_family_of_holm_is_all_that_is_asked() -> None:
    a, b = side([1] * 12), side([0] * 6 + [1] * 6, "b")
    one = metric_of(compare(a, b, ["ar"], resamples=2000))
    both = compare(a, b, ["floor", "ar"], resamples=2000)
    assert both["tests"] == 2 * len(METRICS)
    other = both["rows"][1]["metrics"]["r@1"]
    assert one["p"] == other["p"]
    assert other["p_holm"] > one["p_holm"] > one["p"]


def test_a_row_of_one_run_is_compared_with_another_row_of_the_other() -> None:
    a, b = side([0] * 2 + [1] * 8), side([0] * 5 + [1] * 5, "b")
    test = metric_of(compare(a, b, ["floor=ar"], resamples=200))
    assert (test["a"], test["b"], test["n"]) == (0.0, 0.5, 10)
    test = metric_of(compare(a, b, ["ar=floor"], resamples=200))
    assert (test["a"], test["b"]) == (0.2, 0.0)
    with pytest.raises(ConfigError, match=r"--row ar=cft: not in b \(both have: floor, ar\)"):
        compare(a, b, ["ar=cft"], resamples=200)


def test_signs_flipped_by_hand() -> None:
    """All of five one way: 2 of 32 draws are as large. Nothing differs: every draw is."""
    diff_UC = np.array([[1.0, 0.0, 1.0]] * 5 + [[0.0, 0.0, -5.0]])
    all_one_way, none, even = sign_flips(diff_UC, 20_000, "hand").tolist()
    assert all_one_way == pytest.approx(2 / 32, abs=0.006)
    assert none == even == 1.0


def test_which_row_is_compared_where_none_is_named() -> None:
    a, b = side([0]), side([1], "b")
    assert rows_to_compare(a, b, None) == ["ar"]
    assert rows_to_compare(a, b, ["floor", "ar", "floor"]) == ["floor", "ar"]
    assert rows_to_compare(a, b, ["all"]) == ["floor", "ar"]
    bare = {"rank.floor": np.zeros(1, np.int16)}
    with pytest.raises(ConfigError, match="no row of a model in common"):
        rows_to_compare(a, Side("b", a.report, {}, bare), None)
    with pytest.raises(ConfigError, match=r"--row cft: not in a and b \(both have: floor, ar\)"):
        compare(a, b, ["cft"])
    with pytest.raises(ConfigError, match="share no list"):
        compare(a, side([0], "b", lists=[9]), ["ar"])


def test_recipes_are_compared_key_by_key() -> None:
    a, b = (
        {"seed": 1, "sft": {"steps": 10, "lr": 0.1}},
        {"seed": 1, "sft": {"steps": 20, "lr": 0.1}},
    )
    assert recipes_of(side([0], recipe=a), side([0], recipe=b)) == ["sft.steps: 10 → 20"]
    assert recipes_of(side([0], recipe=a), side([0], recipe=a)) == []
    assert recipes_of(side([0], recipe=a), side([0])) is None


# ------------------------------------------------------------------------------ on the disk


def written(folder: Path, one: Side) -> Path:
    """A run with this report."""
    report = folder / "report"
    report.mkdir(parents=True)
    write_json(report / REPORT, one.report)
    save_arrays(report / RANKS, **one.arrays)
    write_json(report / RECIPE, one.recipe or {"name": "toy"})
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    a = written(tmp_path / "a", side([1] * 20, recipe={"sft": {"steps": 1}}))
    return a, written(tmp_path / "b", side([0] * 20, recipe={"sft": {"steps": 2}}))


def test_the_verb_says_all_of_it(pair, tmp_path: Path, capsys) -> None:
    a, b = map(str, pair)
    picture = tmp_path / "out" / "diff.png"
    assert run(["compare", a, b, "--plot", str(picture), "--resamples", "200"]) == 0
    out = capsys.readouterr().out
    for told in ("20 lists are shared", "sft.steps: 1 → 2", "| NDCG@10 | .6309 | 1.0000 |"):
        assert told in out
    assert out.splitlines()[-2].startswith(f"B ({b}) is better than A ({a}) in `ar`")
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert run(["compare", f"{a}/report", b, "--json", "--resamples", "200"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["metrics"]["r@1"]["diff"] == 1.0
    assert found["recipes"] == ["sft.steps: 1 → 2"]
    assert found["shared"]["same_candidates"] == 20
    assert run(["compare", a, b, "--row", "all", "--resamples", "200"]) == 0
    assert "`floor`, 20 shared lists" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "written", "start"),
    [
        ("d.svg", "d.svg", b"<?xml"),
        ("d.pdf", "d.pdf", b"%PDF"),
        ("d", "d.png", b"\x89PNG"),
        ("d.txt", "", b""),
        ("d.jpg", "", b""),
    ],
)
def test_a_picture_is_of_the_kind_that_its_name_says(
    pair, tmp_path: Path, capsys, name: str, written: str, start: bytes
) -> None:
    a, b = map(str, pair)
    drawn = []
    for _ in range(2):
        code = run(["compare", a, b, "--plot", str(tmp_path / name), "--resamples", "200"])
        out, err = capsys.readouterr()
        assert (code, bool(out)) == ((0, True) if written else (2, False))
        if not written:
            told = f"--plot {tmp_path / name}: expected a name that ends in .png, .svg, .pdf"
            assert err == f"error: {told}\n"  # before anything is counted
            return
        drawn.append((tmp_path / written).read_bytes())
    assert drawn[0].startswith(start)
    assert drawn[0] == drawn[1]


def test_a_bundle_is_no_run(pair, capsys) -> None:
    (pair[0] / "bundle").mkdir()
    assert run(["compare", str(pair[0] / "bundle"), str(pair[1])]) == 3
    told = f"no run's directory (do you mean {pair[0]}?)"
    assert capsys.readouterr().err == f"error: {pair[0] / 'bundle'}: {told}\n"


def test_reading_gives_what_was_written(pair) -> None:
    one = read_side(pair[0])
    assert one.rows == ["floor", "ar"]
    assert one.arrays["rank.ar"].tolist() == [1] * 20


def arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    def changed(report: Path) -> None:
        found = load_arrays(report / RANKS)
        change(found)
        save_arrays(report / RANKS, **found)

    return changed


def text(name: str, said: str) -> Callable[[Path], object]:
    return lambda report: (report / name).write_text(said)


HEAD = '"recipe": "toy", "seed": 0'
BROKEN: dict[str, Callable[[Path], object]] = {
    "no ranks": lambda report: (report / RANKS).unlink(),
    "no report": lambda report: (report / REPORT).unlink(),
    "ranks that are text": text(RANKS, "ranks, once"),
    "a report that is text": text(REPORT, "a report, once"),
    "a report that is a list": text(REPORT, "[]"),
    "a report of nothing": text(REPORT, "{}"),
    "a report without a seed": text(REPORT, '{"recipe": "toy", "rows": []}'),
    "a verdict that is a number": text(REPORT, f'{{{HEAD}, "rows": [], "verdict": 3}}'),
    "a verdict without a row": text(REPORT, f'{{{HEAD}, "rows": [], "verdict": {{}}}}'),
    "rows that are a number": text(REPORT, f'{{{HEAD}, "rows": 3}}'),
    "rows that are texts": text(REPORT, f'{{{HEAD}, "rows": ["ar"]}}'),
    "a recipe that is a list": text(RECIPE, "[]"),
    "a recipe that is cut": text(RECIPE, "{"),
    "an older report": arrays(lambda found: found.pop("list")),
    "no candidates": arrays(lambda found: found.pop("candidates")),
    "a shorter row": arrays(lambda found: found.update({"rank.ar": np.zeros(3, np.int16)})),
    "a row of fractions": arrays(lambda found: found.update({"rank.ar": np.zeros(20)})),
    "a rank below all": arrays(lambda found: found.update({"rank.ar": np.full(20, -9)})),
    "a square row": arrays(lambda found: found.update({"rank.ar": np.zeros((20, 2), np.int16)})),
    "lists that are one number": arrays(lambda found: found.update(list=np.array(3))),
    "values that are none": arrays(
        lambda found: found.update({"value.ar": np.full((20, len(METRICS)), np.nan)})
    ),
    "too few values": arrays(lambda found: found.update({"value.ar": np.zeros((20, 2))})),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("which", [0, 1])
def test_a_broken_report_is_one_line(pair, change, which: int, capsys) -> None:
    change(pair[which] / "report")
    assert run(["compare", *map(str, pair)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {pair[which]}")
    assert err.count("\n") == 1


def test_what_is_no_run_is_one_line(pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "nowhere"):
        with pytest.raises(Diffgr2Error, match=name) as caught:
            read_side(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert read_json(pair[0] / "report" / REPORT)["recipe"] == "toy"
