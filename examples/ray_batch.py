"""Re-rank a parquet file offline on Ray Data (extra `ray`).

The file has columns `history` and `candidates` (lists of item ids), and optionally `user`; the
output has the same rows with `ranked`, `valid` and `error` (a row that cannot be ranked keeps its
place and says why). One actor per worker holds one model.

    python examples/ray_batch.py runs/demo/bundle lists.parquet ranked/ --workers 2
"""

from __future__ import annotations

import argparse

import pyarrow as pa
import ray

from diffgr2 import Reranker
from diffgr2.errors import Diffgr2Error


class RankRows:
    """One worker: a batch of rows in, the same rows with their ranking out."""

    def __init__(self, model: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.reranker = Reranker.from_pretrained(model)

    def __call__(self, rows: pa.Table) -> pa.Table:
        lists, histories = rows["candidates"].to_pylist(), rows["history"].to_pylist()
        users = rows["user"].to_pylist() if "user" in rows.column_names else [None] * len(lists)
        ranked: list[list[str]] = [[] for _ in lists]
        valid, error, tasks = [False] * len(lists), [""] * len(lists), []
        for number, candidates in enumerate(lists):
            try:
                task = self.reranker.prepare(histories[number], candidates, user=users[number])
                tasks.append((number, task))
            except Diffgr2Error as problem:
                error[number] = str(problem)
        self.reranker.run([task for _, task in tasks])
        for number, task in tasks:
            result = task.result()
            ranked[number], valid[number] = list(result.items), result.valid
        # Arrow arrays with their types named: lists that are empty or all of one length would
        # otherwise be guessed to be something else.
        return (
            rows.append_column("ranked", pa.array(ranked, pa.list_(pa.string())))
            .append_column("valid", pa.array(valid, pa.bool_()))
            .append_column("error", pa.array(error, pa.string()))
        )


def rank_file(model: str, source: str, output: str, *, workers: int, batch: int = 64) -> None:
    """Read, rank on `workers` actors, write."""
    pool = ray.data.ActorPoolStrategy(size=workers)
    options = {"batch_size": batch, "batch_format": "pyarrow", "num_cpus": 1, "compute": pool}
    rows = ray.data.read_parquet(source)
    rows = rows.map_batches(RankRows, fn_constructor_args=(model,), **options)
    rows.write_parquet(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    given = parser.parse_args()
    rank_file(given.model, given.source, given.output, workers=given.workers, batch=given.batch)


if __name__ == "__main__":
    main()
