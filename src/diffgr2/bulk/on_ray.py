"""A batch on Ray: Ray Data hands the shares to actors, here or all over a cluster.

Contract: `run` is `processes.run` with Ray's machines: each actor takes one share at a time, an
actor or a machine that is lost costs the shares that it had, which Ray gives to others. Part files,
ledger and promises are the same, as the same `Worker` writes them. `rank_dataset` takes whatever
Ray Data can read. Model, input and output must be where every machine finds them: a shared folder,
or URIs. Not here: what a share is (`job`), how it is ranked (`work`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffgr2.bulk.cluster import cause_of, joined, part
from diffgr2.bulk.job import Share
from diffgr2.bulk.places import Place
from diffgr2.bulk.processes import Done
from diffgr2.errors import ConfigError

AHEAD = 2  # shares that one actor holds: the next one waits while it works
START_S = 600  # until all actors of a batch are there, so that they begin together


def workers_of(ray: Any, gpus: float) -> int:
    """As many as the cluster has room for."""
    has = ray.cluster_resources()
    return max(1, int(has.get("GPU", 0) / gpus) if gpus else int(has.get("CPU", 1)))


class RankShares:
    """One actor; a row of its input is a share, a row of its output what became of it."""

    def __init__(self, output: str, threads: int) -> None:
        from diffgr2.bulk.work import Worker
        from diffgr2.model import backends

        backends.use(threads=threads)
        self.worker = Worker(output, f"actor-{part('ray').get_runtime_context().get_actor_id()}")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        entry = self.worker.do(Share(int(row["first"]), int(row["count"])))
        named = [f"{one['row']}: {one['reason']}" for one in entry["set_aside"]]
        return {"ranked": entry["ranked"], "set_aside": named}


def run(
    output: str,
    shares: Sequence[Share],
    workers: int,
    done: Done,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> None:
    """See the module's docstring."""
    ray, data = joined(), part("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = START_S
    rows = [{"first": share.first, "count": share.count} for share in shares]
    # A block a share: what Ray hands out, moves and tries again is one of them.
    given = data.from_items(rows, override_num_blocks=len(rows))
    size = min(workers, len(rows))
    pool = data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=AHEAD)
    more: dict[str, Any] = {"num_gpus": gpus} if gpus else {}
    made = given.map(
        RankShares,
        fn_constructor_args=(output, max(1, int(cpus))),
        compute=pool,
        num_cpus=cpus,
        **more,
    )
    try:
        for row in made.iter_rows():
            done({"ranked": row["ranked"], "set_aside": _named(row["set_aside"])})
    except ray.exceptions.RayError as error:
        raise ConfigError(f"Ray ended the batch: {cause_of(error)}") from None


def _named(lines: Sequence[str]) -> list[dict[str, Any]]:
    pairs = (str(line).partition(": ") for line in lines)
    return [{"row": int(row), "reason": reason} for row, _, reason in pairs]


def brought(dataset: Any, output: Place) -> str:
    """A Ray Dataset of any source as this batch's input: written once beside the output.

    Row numbers are of this copy; it is the input of every later command with the same output.
    """
    folder = f"{output.text}/_input"
    if output.read_json("_input/_whole.json") is None:
        for name in output.names("_input"):  # of a copy that was cut short
            output.remove(f"_input/{name.removeprefix('_input/')}")
        dataset.write_parquet(folder)
        output.write_json("_input/_whole.json", {"rows": dataset.count()})
    return folder
