"""Serve a bundle with several replicas on Ray Serve (extra `ray`).

Each replica holds its own model and takes requests one batch at a time; Ray spreads them. The
HTTP shape is that of one `diffgr2 serve`: POST a JSON body with `history` and `candidates`.

    python examples/ray_serve.py runs/demo/bundle --replicas 2
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from diffgr2 import Reranker, strict_json
from diffgr2.cli.rerank import answer_of
from diffgr2.errors import ConfigError, DataError
from diffgr2.rerank.query import arguments_of


@serve.deployment
class Ranker:
    """One replica."""

    def __init__(self, model: str, batch: int) -> None:
        import torch

        torch.set_num_threads(1)
        self.reranker, self.batch = Reranker.from_pretrained(model), batch
        self.rank_batch.set_max_batch_size(batch)  # type: ignore[attr-defined]

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def rank_batch(self, tasks: list[Any]) -> list[dict[str, Any]]:
        """Requests that arrive together share forwards."""
        await asyncio.to_thread(self.reranker.run, tasks, batch=self.batch)
        return [answer_of(task.result(return_reasoning=True)) for task in tasks]

    async def rank(self, request: dict[str, Any]) -> dict[str, Any]:
        """For callers within Ray."""
        return await self.rank_batch(self.reranker.prepare(**arguments_of(request)))

    async def __call__(self, request: Request) -> JSONResponse:
        try:
            return JSONResponse(await self.rank(strict_json.loads(await request.body())))
        except (DataError, ConfigError) as error:
            return JSONResponse({"message": str(error)}, status_code=422)


def application(model: str, replicas: int = 2, batch: int = 16) -> Any:
    """The Serve application."""
    options = {"num_cpus": 1}
    deployment = Ranker.options(num_replicas=replicas, ray_actor_options=options)
    return deployment.bind(model, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    serve.run(application(given.model, given.replicas, given.batch), blocking=True)


if __name__ == "__main__":
    main()
