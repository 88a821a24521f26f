"""Metrics with gains, several positives and shorter lists, against ir_measures and brute force."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.evaluate.baselines import (
    floor_order,
    oracle_order,
    order_from_scores,
    random_values,
)
from diffgr2.evaluate.metrics import (
    METRICS,
    metrics_of,
    ranks_of,
    rows_are_permutations,
    values_of,
)
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.trec import write_qrels, write_run
from diffgr2.types import MISS, PADDING, CandidateLists

META = {"recipe": "r", "data": "d", "tie_order": "file", "commit": "c", "command": "x"}


def by_hand(order: list[int], gains: list[float]) -> list[float]:
    """Every metric of one list, from its definition."""
    worth, best = [gains[at] for at in order], sorted(gains, reverse=True)
    wanted = sum(gain > 0 for gain in gains)
    values = []
    for name in METRICS:
        kind, _, depth = name.partition("@")
        n = int(depth or 0)
        if not wanted:
            values.append(0.0)
        elif kind == "mrr":
            values.append(1.0 / (1 + next(i for i, gain in enumerate(worth) if gain > 0)))
        elif kind == "r":
            values.append(sum(gain > 0 for gain in worth[:n]) / min(n, wanted))
        else:
            made, ideal = (
                sum(gain / np.log2(i + 2) for i, gain in enumerate(part[:n]))
                for part in (worth, best)
            )
            values.append(made / ideal)
    return values


@st.composite
def short_lists(draw: st.DrawFn) -> tuple[CandidateLists, np.ndarray]:
    """Lists of any length with any gains, and an order for each."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    items_LK = np.stack([rng.permutation(50)[:k] for _ in range(n)]).astype(np.int32)
    length_L = rng.integers(1, k + 1, n)
    items_LK[np.arange(k) >= length_L[:, None]] = PADDING
    gains_LK = rng.choice([0.0, 0.0, 1.0, 2.5, 3.0], (n, k)).astype(np.float32)
    gains_LK[items_LK == PADDING] = 0.0
    gains_LK[0, 0] = 1.0  # something came of one list
    user_L, target_L = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    lists = CandidateLists(
        "test", user_L, user_L, target_L, items_LK, np.zeros((n, k), np.float32), gains_LK
    )
    return lists, order_from_scores(rng.random((n, k)), "random", length_L)


@settings(deadline=None)
@given(short_lists())
def test_metrics_are_those_of_their_definitions(case) -> None:
    lists, order_LK = case
    values_LM = metrics_of(order_LK, lists.gains_LK)
    for row, n in enumerate(lists.length_L.tolist()):
        wanted = by_hand(order_LK[row, :n].tolist(), lists.gains_LK[row, :n].tolist())
        np.testing.assert_allclose(values_LM[row], wanted, atol=1e-9)


@settings(deadline=None)
@given(short_lists())
def test_a_single_target_has_the_values_of_its_rank_bit_for_bit(case) -> None:
    lists, order_LK = case
    target_L = lists.items_LK[np.arange(len(lists)), lists.length_L // 2]
    target_L[lists.length_L // 2 >= lists.k] = MISS
    single = CandidateLists(
        "test", lists.user_L, lists.end_L, target_L, lists.items_LK, lists.scores_LK
    )
    values_LM = values_of(ranks_of(order_LK, single.hit_L), lists.k)
    assert metrics_of(order_LK, single.gains_LK).tobytes() == values_LM.tobytes()


@settings(deadline=None)
@given(short_lists())
def test_the_oracle_is_never_beaten_and_orders_are_whole(case) -> None:
    lists, order_LK = case
    best_LK = oracle_order(lists.gains_LK, length_L=lists.length_L)
    floor_LK = floor_order(len(lists), lists.k, lists.length_L)
    for orders_LK in (best_LK, floor_LK, order_LK):
        assert rows_are_permutations(orders_LK).all()
        assert ((orders_LK >= 0).sum(1) == lists.length_L).all()
    best_LM = metrics_of(best_LK, lists.gains_LK)
    assert (best_LM >= metrics_of(order_LK, lists.gains_LK) - 1e-12).all()
    won_L = (lists.gains_LK > 0).any(1)
    np.testing.assert_allclose(best_LM[won_L], 1.0)
    assert (best_LM[~won_L] == 0).all()


@settings(deadline=None, max_examples=25)
@given(short_lists())
def test_the_random_row_is_the_mean_over_every_order(case) -> None:
    lists, _ = case
    values_LM = random_values(lists.gains_LK, lists.length_L)
    for row, n in enumerate(lists.length_L.tolist()):
        if n > 6:
            continue
        gains = lists.gains_LK[row, :n].tolist()
        every = [by_hand(list(order), gains) for order in permutations(range(n))]
        np.testing.assert_allclose(values_LM[row], np.mean(every, axis=0), atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(short_lists(), st.integers(0, 100))
def test_a_report_of_shorter_lists_holds_both_populations(case, seed) -> None:
    lists, order_LK = case
    report = build_report(
        META, lists, [SystemOutputs("ar", order_LK, len(lists))], resamples=30, seed=seed
    )
    won_L = (lists.gains_LK > 0).any(1)
    for row in report["rows"]:
        assert row["n"] == (won_L.sum() if row["population"] == "hit" else len(lists))
        if row["name"] == "floor":
            assert row["identity"] == 1.0
        if row["name"] == "oracle" and row["population"] == "hit":
            assert set(row["metrics"].values()) == {1.0}


def test_metrics_equal_ir_measures_on_exported_files(tmp_path) -> None:
    ir_measures = pytest.importorskip("ir_measures")
    rng = np.random.default_rng(0)
    n, k = 200, 12
    items_LK = np.stack([rng.permutation(50)[:k] for _ in range(n)]).astype(np.int32)
    length_L = rng.integers(3, k + 1, n)
    items_LK[np.arange(k) >= length_L[:, None]] = PADDING
    gains_LK = rng.choice([0.0, 0.0, 0.0, 1.0, 3.0], (n, k)).astype(np.float32)
    gains_LK[items_LK == PADDING] = 0.0
    user_L, target_L = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    scores_LK = np.zeros((n, k), np.float32)
    lists = CandidateLists("test", user_L, user_L, target_L, items_LK, scores_LK, gains_LK)
    order_LK = order_from_scores(rng.random((n, k)), "random", length_L)
    ids = [str(number) for number in range(n)]
    write_run(tmp_path / "run", lists, SystemOutputs("x", order_LK, n), ids, ids)
    write_qrels(tmp_path / "qrels", lists, ids, ids)
    names = {f"nDCG@{d}": f"ndcg@{d}" for d in (3, 5, 10)} | {"RR": "mrr"}
    measures = {ir_measures.parse_measure(name): metric for name, metric in names.items()}
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels")))
    run = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    values_LM, seen = metrics_of(order_LK, lists.gains_LK), 0
    for entry in ir_measures.iter_calc(list(measures), qrels, run):
        mine = values_LM[int(entry.query_id), METRICS.index(measures[entry.measure])]
        assert entry.value == pytest.approx(mine, abs=1e-9)
        seen += 1
    assert seen > 4 * n * 0.8
