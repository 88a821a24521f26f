"""Metrics against ir_measures; McNemar, Holm, Wilson and the bootstrap against scipy and brute
force."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, permutations, product
from math import comb

import numpy as np
import pytest
from scipy import stats

from diffgr2.evaluate.baselines import random_values
from diffgr2.evaluate.metrics import METRICS, ranks_of, value_table, values_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.significance import (
    bootstrap_means,
    holm,
    interval,
    mcnemar,
    ratio_interval,
    wilson,
)
from diffgr2.evaluate.trec import write_qrels, write_run
from diffgr2.evaluate.validity import calibration_error
from diffgr2.types import MISS, CandidateLists

ir_measures = pytest.importorskip("ir_measures")


def random_lists(n: int, k: int, seed: int, hit_share: float = 0.4) -> CandidateLists:
    rng = np.random.default_rng(seed)
    items_LK = np.stack([rng.permutation(5 * k)[:k] for _ in range(n)]).astype(np.int32)
    hit_L = rng.random(n) < hit_share
    target_L = np.where(hit_L, items_LK[np.arange(n), rng.integers(0, k, n)], 9_999)
    user_L = rng.permutation(10 * n)[:n].astype(np.int32)
    scores_LK = np.tile(np.linspace(1, 0, k, dtype=np.float32), (n, 1))
    end_L = np.full(n, 4, dtype=np.int32)
    return CandidateLists("test", user_L, end_L, target_L.astype(np.int32), items_LK, scores_LK)


@pytest.mark.parametrize(("k", "seed"), [(10, 0), (10, 1), (4, 2), (17, 3)])
def test_metrics_equal_ir_measures_on_exported_trec_files(tmp_path, k, seed):
    lists = random_lists(300, k, seed)
    rng = np.random.default_rng(seed + 100)
    order_LK = np.stack([rng.permutation(k) for _ in range(len(lists))]).astype(np.int16)
    ids = [str(number) for number in range(10_000)]
    outputs = SystemOutputs("test", order_LK, len(lists))
    write_run(tmp_path / "run.trec", lists, outputs, ids, ids)
    write_qrels(tmp_path / "qrels.trec", lists, ids, ids)
    names = {
        f"{'R' if m[0] == 'r' else 'nDCG'}@{m.partition('@')[2]}": m for m in METRICS if "@" in m
    }
    names["RR"] = "mrr"
    measures = {ir_measures.parse_measure(name): metric for name, metric in names.items()}
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    values_LM = values_of(ranks_of(order_LK, lists.hit_L), k)
    row_of = {str(user): row for row, user in enumerate(lists.user_L)}
    seen = 0
    for entry in ir_measures.iter_calc(list(measures), qrels, run):
        mine = values_LM[row_of[entry.query_id], METRICS.index(measures[entry.measure])]
        assert entry.value == pytest.approx(mine, abs=1e-9)
        seen += 1
    assert seen == len(lists) * len(METRICS)
    means = ir_measures.calc_aggregate(list(measures), qrels, run)
    for measure, metric in measures.items():
        assert means[measure] == pytest.approx(values_LM[:, METRICS.index(metric)].mean(), abs=1e-9)
    assert (lists.hit_L == MISS).sum() > 100, "the lists must hold misses to prove anything"


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_random_row_equals_the_mean_over_every_permutation(k):
    table_RM = value_table(k)
    for hit in range(k):
        every = [table_RM[order.index(hit)] for order in permutations(range(k))]
        gains_2K = (np.arange(k) == np.array([[hit], [MISS]])).astype(float)
        ours_M = random_values(gains_2K)
        np.testing.assert_allclose(ours_M[0], np.mean(every, axis=0), atol=1e-12)
        assert (ours_M[1] == 0).all()


def test_mcnemar_equals_scipy_and_exact_fractions():
    for gained in range(14):
        for lost in range(14):
            before = np.array([0] * gained + [1] * lost + [1, 1, 0])
            after = np.array([1] * gained + [0] * lost + [1, 1, 0])
            g, n_lost, p = mcnemar(before, after)
            assert (g, n_lost) == (gained, lost)
            n, tail = gained + lost, min(gained, lost)
            exact = min(Fraction(1), 2 * Fraction(sum(comb(n, i) for i in range(tail + 1)), 2**n))
            assert p == pytest.approx(float(exact), abs=1e-12)
            if n:
                assert p == pytest.approx(stats.binomtest(gained, n, 0.5).pvalue, abs=1e-12)


def test_holm_equals_the_closed_testing_of_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(60):
        p = rng.random(rng.integers(1, 7)) ** 3
        for i, ours in enumerate(holm(p.tolist())):
            others = [j for j in range(len(p)) if j != i]
            closed = max(
                min(1.0, (size + 1) * min(p[[*rest, i]]))
                for size in range(len(p))
                for rest in combinations(others, size)
            )
            assert ours == pytest.approx(closed, abs=1e-12)


def test_bootstrap_has_the_distribution_of_all_resamples():
    values_UC = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.5, 1.0], [0.0, 0.0]])
    every = np.array([values_UC[list(draw)].mean(0) for draw in product(range(5), repeat=5)])
    means_BC = bootstrap_means(values_UC, 200_000, 3, "oracle")
    for column in range(2):
        exact, exact_n = np.unique(np.round(every[:, column], 9), return_counts=True)
        ours, ours_n = np.unique(np.round(means_BC[:, column], 9), return_counts=True)
        assert set(ours) <= set(exact)
        share = dict(zip(ours, ours_n / len(means_BC), strict=True))
        for value, count in zip(exact, exact_n, strict=True):
            assert share.get(value, 0.0) == pytest.approx(count / len(every), abs=0.006)
    assert np.corrcoef(means_BC.T)[0, 1] == pytest.approx(np.corrcoef(every.T)[0, 1], abs=0.01)


def test_paired_interval_agrees_with_scipy_bootstrap():
    rng = np.random.default_rng(1)
    before = (rng.random(800) < 0.28).astype(float)
    after = np.where(rng.random(800) < 0.2, rng.random(800) < 0.4, before).astype(float)
    means_BC = bootstrap_means(np.stack([before, after], 1), 20_000, 0, "oracle")
    low, high = interval(means_BC[:, 1] - means_BC[:, 0])
    theirs = stats.bootstrap(
        (before, after),
        lambda b, a, axis: (a - b).mean(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    step = 1 / 800  # the statistic moves in steps of one user
    assert abs(low - theirs.low) <= 1.01 * step
    assert abs(high - theirs.high) <= 1.01 * step


@pytest.mark.parametrize("n", [1, 7, 100, 1_010])
def test_wilson_equals_scipy_at_every_share(n):
    for successes in {0, 1, n // 3, n - 1, n}:
        theirs = stats.binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_interval_of_a_ratio_agrees_with_scipy_bootstrap():
    rng = np.random.default_rng(4)
    bottom_L = rng.integers(1, 20, 500)
    top_L = rng.binomial(bottom_L * 4, 0.7)
    ours = ratio_interval(top_L, bottom_L, 20_000, 0, "oracle")
    theirs = stats.bootstrap(
        (top_L, bottom_L),
        lambda top, bottom, axis: top.sum(axis=axis) / bottom.sum(axis=axis),
        paired=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.004)


@pytest.mark.parametrize("n", [1, 9, 10, 137])
def test_calibration_error_equals_a_loop_over_bins(n):
    rng = np.random.default_rng(n)
    chance_N = rng.random(n)
    right_N = rng.random(n) < chance_N**2
    ranked = sorted(range(n), key=lambda i: chance_N[i])
    count = min(10, n)
    sizes = [n // count + (b < n % count) for b in range(count)]
    total, start = 0.0, 0
    for size in sizes:
        own = ranked[start : start + size]
        start += size
        total += abs(sum(chance_N[i] for i in own) - sum(right_N[i] for i in own))
    assert calibration_error(chance_N, right_N) == pytest.approx(total / n, abs=1e-12)
