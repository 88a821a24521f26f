"""A batch on Ray: actors that take shares, here or all over a cluster.

Contract: `run` is `processes.run` with Ray's machines: each actor takes the next share when it has
done one, so that none has two; an actor or a machine that is lost costs the share that it had,
which Ray tries again in its successor. Part files, ledger and promises are the same, as the same
`Worker` writes them. `brought` takes whatever Ray Data can read. Model, input and output must be
where every machine finds them: a shared folder, or URIs. Not here: what a share is (`job`), how it
is ranked (`work`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from diffgr2.bulk.cluster import cause_of, joined, part
from diffgr2.bulk.job import Share
from diffgr2.bulk.places import Place
from diffgr2.bulk.processes import DEATHS, Done
from diffgr2.errors import ConfigError

TOGETHER_S = 60  # until all actors of a batch are there; who comes later joins the others


def workers_of(ray: Any, gpus: float) -> int:
    """As many as the cluster has room for."""
    has = ray.cluster_resources()
    return max(1, int(has.get("GPU", 0) / gpus) if gpus else int(has.get("CPU", 1)))


class RankShares:
    """One actor."""

    def __init__(self, output: str, threads: int) -> None:
        from diffgr2.bulk.work import Worker
        from diffgr2.model import backends

        backends.use(threads=threads)
        self.worker = Worker(output, f"actor-{part('ray').get_runtime_context().get_actor_id()}")

    def ready(self) -> None:
        """Answered once it can work."""

    def do(self, share: Share) -> dict[str, Any]:
        return self.worker.do(share)


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
    # Ray Data's map over actors deals as its budgets allow: of 600 short rows one of two got 89 %.
    ray = joined()
    options: dict[str, Any] = {"num_cpus": cpus, **({"num_gpus": gpus} if gpus else {})}
    made = ray.remote(max_restarts=-1, max_task_retries=DEATHS, **options)(RankShares)
    threads = max(1, int(cpus))
    crew = [made.remote(output, threads) for _ in range(min(workers, len(shares)))]
    left, missing = deque(shares), len(shares)
    asked = {one.ready.remote(): one for one in crew}
    try:
        ray.wait(list(asked), num_returns=len(asked), timeout=TOGETHER_S)
        while missing:
            (answer,), _ = ray.wait(list(asked))
            actor, entry = asked.pop(answer), ray.get(answer)
            if left:
                asked[actor.do.remote(left.popleft())] = actor
            if entry is not None:
                missing -= 1
                done(entry)
    except ray.exceptions.RayError as error:
        raise ConfigError(f"Ray ended the batch: {cause_of(error)}") from None
    finally:
        for one in crew:
            ray.kill(one)


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
