"""A recipe with a shop's own lists, from its files to a report and a bundle."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffgr2.artifacts import load_arrays, read_json, read_manifest
from diffgr2.candidates.lists import load_lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.recipe import validate
from diffgr2.rerank.reranker import Reranker
from diffgr2.stages.examples import worked_examples
from diffgr2.stages.plan import stages_of
from diffgr2.stages.report import make_report, write_trec
from diffgr2.stages.standing import Standing
from support import shop_lists

GOALS = ["score_ar", "score_cft_opd_rl", "score_verify", "bundle", "speed", "pace", "probes"]


def run(root: Path, goals: list[str], **changes: Any) -> Runner:
    torch.set_num_threads(1)
    paths = shop_lists.write(root / "files")
    recipe = validate(shop_lists.values(paths, **changes), "x")
    runner = Runner(recipe, root / "run", stages_of(recipe), Progress(io.StringIO()))
    runner.run(goals)
    return runner


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return run(tmp_path_factory.mktemp("own"), GOALS)


def test_the_shops_order_is_the_floor_of_every_table(shop: Runner) -> None:
    found = Standing.of(shop)
    report, _ = make_report(found, "x")
    rows = {row["name"]: row for row in report["rows"] if row["population"] == "all"}
    assert {"floor", "random", "oracle", "evidence"} <= rows.keys()
    lists = load_lists(shop.root / "candidates", "test")
    assert len(set(lists.length_L.tolist())) > 2, "the lists must differ in length"
    assert rows["floor"]["n"] == len(lists)
    assert rows["floor"]["metrics"]["r@1"] == pytest.approx(
        (lists.gains_LK[:, 0] > 0).mean(), abs=1e-6
    )
    hits = {row["name"]: row for row in report["rows"] if row["population"] == "hit"}
    assert hits["oracle"]["metrics"]["ndcg@10"] == 1.0
    assert hits["ar"]["n"] == int((lists.gains_LK > 0).any(1).sum())
    text = (shop.root / "report" / "report.md").read_text()
    assert "The lists are the shop's own (lists.parquet), split by list" in text
    assert "click 1, purchase 3" in text
    assert "Milliseconds per list are those of one list at a time" in text


def test_features_reach_the_evidence_and_say_what_they_are_worth(shop: Runner) -> None:
    fields = read_manifest(shop.root / "evidence")["metrics"]["fields"].split()
    assert fields[-4:] == shop_lists.FEATURES
    index = read_json(shop.root / "evidence" / "index.json")["fields"]
    kinds = {field["name"]: field["kind"] for field in index}
    assert (kinds["price"], kinds["stock"], kinds["kind"]) == ("number", "flag", "category")
    weight_FV = LinearScorer.load(shop.root / "evidence" / "linear.safetensors").weight_FV
    spread = {name: np.ptp(row) for name, row in zip(fields, weight_FV, strict=True)}
    assert spread["ctr"] > spread["price"], "ctr decides and price is noise"


def test_padding_is_in_no_prompt_no_trace_and_no_answer(shop: Runner) -> None:
    lists = load_lists(shop.root / "candidates", "train")
    traces = load_arrays(shop.root / "traces" / "train.safetensors")
    for row, level_K in zip(traces["row_N"], traces["level_NK"], strict=True):
        assert (np.isnan(level_K) == ~lists.there_LK[row]).all()
    order_LK = load_arrays(shop.root / "score_ar" / "ar.safetensors")["order_LK"]
    rows = np.flatnonzero(load_lists(shop.root / "candidates", "test").hit_L >= 0)
    length_L = load_lists(shop.root / "candidates", "test").length_L[rows]
    assert ((order_LK >= 0).sum(1) == length_L).all()


def test_lists_go_by_their_names_in_trec_files_and_examples_show_no_padding(
    shop: Runner, tmp_path: Path
) -> None:
    found = Standing.of(shop)
    write_trec(found, tmp_path)
    queries = {line.split()[0] for line in (tmp_path / "qrels.txt").read_text().splitlines()}
    assert queries
    assert all(name.startswith("r") for name in queries)
    text = worked_examples(found, 3)
    assert len(re.findall(r"^Wanted most: .* \(worth [13]\), place ", text, re.MULTILINE)) == 3
    assert "Bought next" not in text
    for example in text.split("## Example")[1:]:
        numbers = [line for line in example.splitlines() if line[:1].isdigit()]
        assert len(numbers) % 2 == 0, "as many in the ranking as came"


def test_a_bundle_ranks_the_shops_lists(shop: Runner) -> None:
    reranker = Reranker.from_pretrained(shop.root / "bundle")
    result = reranker.rank(["i1", "i2"], ["i5", "i7", "i9"])
    assert sorted(result.items) == ["i5", "i7", "i9"]


def test_a_changed_split_runs_what_depends_on_it_and_no_import(shop: Runner) -> None:
    paths = {
        name: shop.root.parent / "files" / f"{name}.parquet"
        for name in ("interactions", "items", "lists")
    }
    recipe = validate(shop_lists.values(paths, test=0.3), "x")
    states = Runner(recipe, shop.root, stages_of(recipe)).survey(["evidence"])
    assert states["data"] == "stands"
    assert states["candidates"] == states["evidence"] == "outdated"


def test_counts_of_the_moment_say_what_they_change(tmp_path: Path) -> None:
    runner = run(tmp_path, ["evidence"], point_in_time=True, split="time")
    metrics = read_manifest(runner.root / "evidence")["metrics"]
    assert isinstance(runner.progress.stream, io.StringIO)
    told = f"evidence: {metrics['validation_buckets_moved']:.1%} of the values stand in another"
    assert told in runner.progress.stream.getvalue()
    assert 0 < metrics["validation_buckets_moved"] < 1
    assert "validation_untimed_linear_ndcg@3" in metrics
    make_report(Standing.of(runner), "x")
    text = (runner.root / "report" / "report.md").read_text()
    assert "strictly before each list's moment" in text


def test_histories_may_come_with_the_lists_alone(tmp_path: Path) -> None:
    """No interactions at all: what goes together is told by the histories."""
    paths = shop_lists.write(tmp_path / "files", "csv", lists=80)
    head, *body = paths["lists"].read_text().splitlines()
    numbers = [int(line.split(",")[0].removeprefix("r")) for line in body]
    lines = [f"{line},i{n % 9}|i{n % 5}" for n, line in zip(numbers, body, strict=True)]
    paths["lists"].write_text("\n".join([f"{head},history", *lines]) + "\n")
    values = shop_lists.values(paths)
    values["data"] = {"items": str(paths["items"]), "columns": {"item": "item_id"}}
    recipe = validate(values, "x")
    runner = Runner(recipe, tmp_path / "run", stages_of(recipe), Progress(io.StringIO()))
    runner.run(["sft", "retriever"])
    facts = json.loads((tmp_path / "run" / "data" / "report.json").read_text())
    assert facts["inline_histories"] == facts["lists"]
    assert facts["share_title"] > 0.9
    assert read_manifest(tmp_path / "run" / "retriever")["metrics"]["kind"] == "itemknn"
