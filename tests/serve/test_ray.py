"""The Ray examples on a local Ray of two workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from diffgr2.rerank.reranker import Reranker

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCE = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ray() -> Iterator:
    module = pytest.importorskip("ray", reason="needs the extra ray: pip install 'diffgr2[ray]'")
    paths = os.pathsep.join([str(SOURCE), str(EXAMPLES)])
    env = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    module.init(num_cpus=4, include_dashboard=False, runtime_env={"env_vars": env})
    sys.path.insert(0, str(EXAMPLES))
    yield module
    module.shutdown()


def test_a_parquet_file_is_ranked_row_by_row(ray, run_dir, reranker: Reranker, tmp_path) -> None:
    import ray_batch

    raw = reranker.catalogue.raw_ids
    rows = [(raw[i : i + 3], raw[30 + i : 34 + i]) for i in range(40)]
    rows[7] = (["zqxwv"], raw[:4])
    table = pl.DataFrame(
        {"history": [h for h, _ in rows], "candidates": [c for _, c in rows]},
    )
    source, output = tmp_path / "lists.parquet", tmp_path / "ranked"
    table.write_parquet(source)
    ray_batch.rank_file(str(run_dir / "bundle"), str(source), str(output), workers=2, batch=10)
    got = {
        (tuple(row["history"]), tuple(row["candidates"])): row
        for path in output.glob("*.parquet")
        for row in pl.read_parquet(path).to_dicts()
    }
    assert len(got) == len(rows)
    for number, (history, candidates) in enumerate(rows):
        row = got[tuple(history), tuple(candidates)]
        if number == 7:
            assert row["error"].startswith("history[0]")
        else:
            assert row["ranked"] == list(reranker.rank(history, candidates).items)


def test_two_replicas_answer_like_one_model(ray, run_dir, reranker: Reranker) -> None:
    import ray_serve

    serve = pytest.importorskip("ray.serve")
    handle = serve.run(ray_serve.application(str(run_dir / "bundle"), replicas=2, batch=4))
    raw = reranker.catalogue.raw_ids
    asked = [{"history": raw[i : i + 2], "candidates": raw[50 + i : 54 + i]} for i in range(24)]
    answers = [handle.rank.remote(body) for body in asked]
    for body, answer in zip(asked, answers, strict=True):
        wanted = reranker.rank(body["history"], body["candidates"])
        assert answer.result(timeout_s=120)["items"] == list(wanted.items)
    serve.shutdown()
