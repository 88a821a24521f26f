"""The stage `retriever` says what an approximate search of its lists will miss."""

import json
from pathlib import Path

import numpy as np
import pytest

from diffgr2.candidates import cells, kinds, search
from diffgr2.candidates.retrieval import ragged
from diffgr2.config import Recipe
from diffgr2.data.store import Dataset, read_dataset, write_dataset
from diffgr2.evaluate.curves import curve_of
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.stages import report, retriever
from diffgr2.streams import key_of
from diffgr2.types import Catalogue

ITEMS = 400


def context(place: Path, wanted: str) -> StageContext:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, ITEMS, 60)
    walks = [(start + rng.integers(0, 9, 6).cumsum()) % ITEMS for start in starts]
    names = [str(n) for n in range(ITEMS)]
    texts = {"titles": names, "brands": names, "categories": [[]] * ITEMS, "descriptions": names}
    catalogue = Catalogue(raw_ids=names, prices=np.ones(ITEMS), **texts)
    for name in ("data", "out", "work"):
        (place / name).mkdir(parents=True)
    dataset = Dataset(ragged(walks, ITEMS), catalogue, [str(n) for n in range(60)], {})
    write_dataset(place / "data", dataset)
    keys = {"dim": 8, "heads": 1, "epochs": 1, "search": wanted}
    recipe = Recipe.model_validate({"name": "walks", "retriever": keys})
    inputs = {"data": place / "data"}
    return StageContext("retriever", recipe, inputs, place / "out", place / "work", Progress())


def test_an_approximate_search_is_judged_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "ITEMS_PER_CELL", 20)
    monkeypatch.setattr(search, "ASKED", 0.2)
    monkeypatch.setattr(search, "FEWEST", 1)
    ctx = context(tmp_path, "approximate")
    metrics = retriever.run(ctx)
    model, histories = kinds.load(ctx.out), read_dataset(tmp_path / "data").histories
    asked = (histories, ctx.recipe.retriever, key_of(ctx.seed, "candidates"))
    facts = search.searched(model, *asked)[1]  # as the stage `candidates` asks
    assert {key: metrics[key] for key in facts} == facts
    assert (facts["search"], facts["search_cells"]) == ("approximate", 20)
    assert 0.2 < facts["search_recall@10"] < 1.0
    told = report.searched_told(metrics)
    assert f"{facts['search_probes']} of 20 parts" in told
    assert f"{facts['search_recall@10']:.2%} of the exact best 10" in told


def test_an_exact_search_misses_nothing_and_says_nothing(tmp_path: Path) -> None:
    ctx = context(tmp_path, "exact")
    metrics = retriever.run(ctx)
    assert not [key for key in metrics if key.startswith("search")]
    assert not report.searched_told(metrics)
    (line,) = map(json.loads, (ctx.out / retriever.METRICS).read_text().splitlines())
    assert (line["step"], line["loss"]) == (1, metrics["loss"])
    curve = curve_of([line])
    assert curve is not None
    assert curve.key == "validation_ndcg@10"
