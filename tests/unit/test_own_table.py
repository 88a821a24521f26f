"""Folds put together, and their table: every list judged once, against its order and the rival."""

from __future__ import annotations

import numpy as np
import pytest
from games_folds import RIVAL, joined_lists, joined_outputs
from readme_table import rewrite

from diffgr2.artifacts import write_json
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.metrics import METRICS, metrics_of
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.results import build_report
from diffgr2.types import PADDING, CandidateLists

K = 6
META = {"recipe": "games", "data": "table: lists", "tie_order": "file", "commit": "c"}


def fold(seed: int, lists: int = 30) -> tuple[CandidateLists, dict[str, SystemOutputs]]:
    """Lists of several lengths, half of them with outcomes, ranked by three."""
    rng = np.random.default_rng(seed)
    length_L = rng.integers(2, K + 1, lists)
    there_LK = np.arange(K) < length_L[:, None]
    items_LK = np.where(there_LK, rng.integers(0, 50, (lists, K)), PADDING).astype(np.int32)
    gains_LK = (rng.choice([0.0, 1.0, 3.0], (lists, K), p=[0.8, 0.1, 0.1]) * there_LK).astype(
        np.float32
    )
    user_L = np.arange(lists, dtype=np.int32)
    given = (user_L, user_L * 0 + 2, user_L * 0 + PADDING, items_LK, there_LK.astype(np.float32))
    made = CandidateLists("test", *given, gains_LK)
    rows = {}
    for name, skill in (("evidence", 1.0), (RIVAL, 1.5), ("ar", 2.0)):
        score_LK = np.where(there_LK, skill * gains_LK + rng.normal(size=(lists, K)), -np.inf)
        order_LK = np.where(there_LK, np.argsort(-score_LK, axis=1), -1).astype(np.int16)
        rows[name] = SystemOutputs(name, order_LK, lists)
    hit = np.flatnonzero(made.hit_L >= 0)
    rows["ar"] = SystemOutputs("ar", rows["ar"].order_LK[hit], lists, rows_L=hit.astype(np.int32))
    return made, rows


def test_every_list_of_every_fold_counts_once(tmp_path) -> None:
    folds = [fold(seed, 20 + seed) for seed in range(4)]
    lists = joined_lists([own for own, _ in folds])
    names = ("evidence", RIVAL, "ar")
    systems = [joined_outputs(name, [rows[name] for _, rows in folds]) for name in names]
    assert len(lists) == sum(20 + seed for seed in range(4))
    report = build_report({**META, "command": "x"}, lists, systems, resamples=300, rival=RIVAL)
    write_json(tmp_path / "games.json", {**report, "folds": 4})

    at = METRICS.index("ndcg@10")
    value, n = dict.fromkeys(("floor", *names), 0.0), 0
    for own, rows in folds:
        hit = np.flatnonzero(own.hit_L >= 0)
        n += len(hit)
        orders = {name: rows[name].order_LK for name in names}
        orders |= {"floor": floor_order(len(own), K, own.length_L)}
        for name, order_LK in orders.items():
            order_HK = order_LK if name == "ar" else order_LK[hit]
            value[name] += metrics_of(order_HK, own.gains_LK[hit])[:, at].sum()
    text = rewrite("<!-- lists:games -->\n<!-- /lists:games -->", tmp_path)
    assert f"{n} lists with an outcome of 86, every one a test list once in 4 folds" in text
    lines = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert [*lines] == ["floor", "evidence", RIVAL, "ar"]
    for name, line in lines.items():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[1].split()[0]) == pytest.approx(value[name] / n, abs=6e-5)
        if name == "floor":
            assert cells[2] == "–"
        else:
            more = float(cells[2].split()[0].replace("−", "-"))
            assert more == pytest.approx((value[name] - value["floor"]) / n, abs=6e-5)
        assert (cells[3] == "–") == (name == RIVAL)
