"""What holds for any orders, scores and reports."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from readme_table import rewrite

from diffgr2.artifacts import write_json
from diffgr2.evaluate.baselines import oracle_order, order_from_scores
from diffgr2.evaluate.metrics import MAIN, METRICS, ranks_of, rows_are_permutations, values_of
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs, save_outputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.significance import bootstrap_means, holm, verdict
from diffgr2.types import FAILURES, MISS, CandidateLists

META = {"recipe": "r", "data": "d", "tie_order": "file", "commit": "c", "command": "x"}


@st.composite
def cases(draw: st.DrawFn) -> tuple[CandidateLists, np.ndarray]:
    """Lists with and without their targets, and an order for each."""
    n, k = draw(st.integers(1, 30)), draw(st.integers(2, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items_LK = np.stack([rng.permutation(3 * k)[:k] for _ in range(n)]).astype(np.int32)
    target_L = rng.integers(0, 3 * k, n).astype(np.int32)
    target_L[0] = items_LK[0, -1]  # at least one hit
    user_L = np.arange(n, dtype=np.int32)
    scores_LK = np.tile(np.linspace(1, 0, k, dtype=np.float32), (n, 1))
    lists = CandidateLists("test", user_L, user_L, target_L, items_LK, scores_LK)
    return lists, np.stack([rng.permutation(k) for _ in range(n)]).astype(np.int16)


@settings(deadline=None)
@given(cases())
def test_metrics_follow_their_definitions(case):
    lists, order_LK = case
    rank_L = ranks_of(order_LK, lists.hit_L)
    values_LM = values_of(rank_L, lists.k)
    for row in range(len(lists)):
        final = lists.items_LK[row][order_LK[row]].tolist()
        target = int(lists.target_L[row])
        place = final.index(target) + 1 if target in final else None
        assert rank_L[row] == (MISS if place is None else place - 1)
        for value, name in zip(values_LM[row], METRICS, strict=True):
            depth = int(name.partition("@")[2] or 10**6)
            if place is None or place > depth:
                expected = 0.0
            else:
                expected = {"r": 1.0, "mrr": 1 / place, "ndcg": 1 / np.log2(place + 1)}[
                    name.partition("@")[0]
                ]
            assert abs(value - expected) < 1e-12


@settings(deadline=None)
@given(cases())
def test_target_oracle_is_never_beaten_and_keeps_the_rest_in_order(case):
    lists, order_LK = case
    best_LK = oracle_order(lists.gains_LK)
    best_LM = values_of(ranks_of(best_LK, lists.hit_L), lists.k)
    assert (best_LM >= values_of(ranks_of(order_LK, lists.hit_L), lists.k)).all()
    for row, hit in enumerate(lists.hit_L):
        rest = [p for p in best_LK[row] if p != hit]
        assert rest == sorted(rest)


@settings(deadline=None)
@given(arrays.arrays(np.float32, (5, 6), elements=st.sampled_from([0.0, 1.0, -2.0, np.inf])))
def test_equal_scores_keep_the_floors_order(score_LK):
    order_LK = order_from_scores(score_LK, "scores")
    assert rows_are_permutations(order_LK).all()
    for score_K, order_K in zip(score_LK, order_LK, strict=True):
        expected = sorted(range(6), key=lambda p: (-score_K[p], p))
        assert order_K.tolist() == expected


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 100))
def test_a_report_holds_both_populations_exactly(case, seed):
    lists, order_LK = case
    system = SystemOutputs("ar", order_LK, len(lists))
    report = build_report(META, lists, [system], resamples=50, seed=seed)
    assert set(report) == {*META, "seed", "rows"}
    n_hit = int((lists.items_LK == lists.target_L[:, None]).any(1).sum())
    for row in report["rows"]:
        assert row["n"] == (n_hit if row["population"] == "hit" else len(lists))
    by = {(row["population"], row["name"]): row for row in report["rows"]}
    for name in ("floor", "random", "oracle", "ar"):
        for metric in METRICS:  # misses count 0, so the two means differ by the hit share only
            hit, everyone = (by[p, name]["metrics"][metric] for p in ("hit", "all"))
            assert abs(everyone - hit * n_hit / len(lists)) < 2e-6


@settings(max_examples=20, deadline=None)
@given(cases())
def test_a_copy_of_ar_is_never_a_gain_or_a_loss(case):
    lists, order_LK = case
    systems = [SystemOutputs(name, order_LK, len(lists)) for name in ("ar", "verify")]
    report = build_report(META, lists, systems, resamples=40)
    for row in report["rows"]:
        if row["name"] != "verify":
            continue
        assert all(ci == [0.0, 0.0] for ci in row["vs_ar"].values())
        assert row["same_as_ar"] == 1.0
        (step,) = row["steps"]
        assert {step["metrics"][metric]["verdict"] for metric in MAIN} == {"none"}
        assert {step["metrics"][metric]["p_holm"] for metric in MAIN} == {1.0}
        assert step["mcnemar"]["p"] == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_only_raises(p_values):
    adjusted = holm(p_values)
    assert all(p - 1e-15 <= a <= 1 for p, a in zip(p_values, adjusted, strict=True))
    pairs = sorted(zip(p_values, adjusted, strict=True))
    assert [a for _, a in pairs] == sorted(adjusted)


@settings(deadline=None)
@given(st.floats(-1, 1), st.floats(0, 1))
def test_an_interval_that_holds_zero_is_called_none(low, width):
    high = low + width
    assert (verdict(low, high) == "none") == (low <= 0 <= high)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**31))
def test_users_of_zeros_change_the_spread_but_not_the_pairing(n, seed):
    rng = np.random.default_rng(seed)
    values_UC = (rng.random((n, 3)) < 0.2).astype(float)
    values_UC[:, 2] = values_UC[:, 0] + values_UC[:, 1]
    means_BC = bootstrap_means(values_UC, 40, seed, "p")
    np.testing.assert_allclose(means_BC[:, 0] + means_BC[:, 1], means_BC[:, 2], atol=1e-12)
    assert (means_BC >= 0).all()
    assert (means_BC <= 2).all()
    assert np.array_equal(means_BC, bootstrap_means(values_UC, 40, seed, "p"))


@settings(max_examples=30, deadline=None)
@given(cases(), st.data())
def test_outputs_survive_saving(case, data):
    lists, order_LK = case
    n = len(lists)
    rows_L = np.flatnonzero(data.draw(arrays.arrays(np.bool_, n)))
    rng = np.random.default_rng(0)
    outputs = SystemOutputs(
        "cft_raw",
        order_LK[rows_L],
        n,
        rows_L=rows_L,
        raw_valid_L=rng.random(len(rows_L)) < 0.5,
        failures_LX=rng.random((len(rows_L), len(FAILURES))) < 0.5,
        nfe_L=rng.integers(1, 9, len(rows_L)),
        levels_LK=np.full((len(rows_L), lists.k), np.nan, dtype=np.float32),
        contradictions_L=rng.integers(0, 3, len(rows_L)),
        timing={"tokens": 10, "seconds": 0.5, "batch": 1},
        meta={"rule": "raw", "threshold": 0.9},
    )
    with tempfile.TemporaryDirectory() as name:
        save_outputs(Path(name), outputs)
        again = load_outputs(Path(name), "cft_raw")
    assert (again.timing, again.meta) == (outputs.timing, outputs.meta)
    assert again.n_tokens_L is None
    saved = ("order_LK", "rows_L", "raw_valid_L", "failures_LX", "nfe_L")
    for field in (*saved, "levels_LK", "contradictions_L"):
        mine, theirs = getattr(outputs, field), getattr(again, field)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)  # NaN stays NaN


@settings(max_examples=30, deadline=None)
@given(cases(), st.integers(0, 2**31))
def test_every_share_lies_in_its_interval_and_no_interval_is_a_point(case, seed):
    lists, order_LK = case
    n, rng = len(lists), np.random.default_rng(seed)
    total_L = rng.integers(0, 4, n)
    outputs = SystemOutputs(
        "ar",
        order_LK,
        n,
        raw_valid_L=rng.random(n) < rng.choice([0.0, 0.5, 1.0]),
        contradictions_L=rng.integers(0, 2, n),
        cited_right_L=np.minimum(total_L, rng.integers(0, 5, n)),
        cited_total_L=total_L,
        chance_LK=rng.dirichlet(np.ones(lists.k), n).astype(np.float32),
    )
    for row in build_report(META, lists, [outputs], resamples=60)["rows"]:
        for name in {"raw_valid", "coherent"} & row.keys():
            low, high = row["ci"][name]
            assert 0 <= low <= row[name] <= high <= 1
            assert high - low > 0.01
        low, high = row["ci"].get("evidence_true", (0, 1))
        assert 0 <= low <= high <= 1
        for error in row.get("calibration", {}).values():
            assert 0 <= error <= 1


@settings(max_examples=12, deadline=None)
@given(cases(), st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r")))
def test_rewriting_a_readme_twice_changes_nothing(case, around):
    lists, order_LK = case
    report = build_report(META, lists, [SystemOutputs("ar", order_LK, len(lists))], resamples=20)
    around = around.replace("<!--", "")
    text = f"{around}\n<!-- results:demo -->\nold\n<!-- /results:demo -->\n{around}"
    with tempfile.TemporaryDirectory() as name:
        write_json(Path(name) / "demo.json", report)
        once = rewrite(text, Path(name))
        assert rewrite(once, Path(name)) == once
    assert once.startswith(f"{around}\n<!-- results:demo -->\n| row |")
    assert once.endswith(f"\n<!-- /results:demo -->\n{around}")
    assert "old" not in once.removeprefix(around).removesuffix(around)
