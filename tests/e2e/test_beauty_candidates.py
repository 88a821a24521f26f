"""On the Beauty files: the retriever's accuracy, and what evidence adds to its order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diffgr2.candidates import kinds, scorers
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import held_out_lists
from diffgr2.candidates.retrieval import prefixes
from diffgr2.config import EvidenceConfig, ItemsConfig
from diffgr2.data.store import read_dataset
from diffgr2.items.vectors import catalogue_texts, fit_vectors
from diffgr2.pipeline import Runner
from diffgr2.recipe import load_recipe
from diffgr2.stages.plan import STAGES
from diffgr2.streams import generator
from diffgr2.types import MISS
from support.beauty import FILES, needs_beauty

pytestmark = [pytest.mark.slow, needs_beauty]


def test_retriever_reaches_its_level_and_evidence_improves_its_order(tmp_path: Path) -> None:
    # The levels asked for below are those of the files' own order.
    recipe = load_recipe("beauty", [*FILES, "data.tie_order=file"])
    manifests = Runner(recipe, tmp_path, STAGES).run(["retriever"])
    metrics = manifests["retriever"]["metrics"]
    assert metrics["test_r@10"] >= 0.078
    assert metrics["test_ndcg@10"] >= 0.045

    data = read_dataset(tmp_path / "data")
    assert data.histories.n_users == 22_363
    model = kinds.load(tmp_path / "retriever")
    vectors, _ = fit_vectors(catalogue_texts(data.catalogue), ItemsConfig(), 0)
    index = EvidenceIndex.build(
        data.histories.train_part(), data.catalogue, vectors, EvidenceConfig()
    )
    features, hits = {}, {}
    for split in ("validation", "test"):
        lists = held_out_lists(data.histories, model, split, 10)
        lists = lists.take(lists.hit_L != MISS)
        queries = prefixes(data.histories, lists.user_L, lists.end_L)
        features[split] = index.features(queries, lists.items_LK, lists.scores_LK, lists.user_L)
        hits[split] = lists.hit_L
    index = index.with_edges(features["validation"].reshape(-1, len(index.fields)))
    buckets = {split: index.buckets(features[split]) for split in features}
    scorer = scorers.fit(
        "linear", buckets["validation"], hits["validation"], index.n_buckets, l2=1e-3, seed=0
    )
    rank = scorers.rank_of_target(scorer.score(buckets["test"]), hits["test"])
    gain = (rank == 0).astype(float) - (hits["test"] == 0)
    draws = generator(0, "test", "bootstrap").integers(0, len(gain), (2_000, len(gain)))
    low = float(np.quantile(gain[draws].mean(1), 0.025))
    assert gain.mean() >= 0.03
    assert low > 0.0
