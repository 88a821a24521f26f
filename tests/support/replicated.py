"""Replicas behind the door: in this process, or on Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import count, cycle
from typing import Any

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.app import make_app
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Limits
from diffgr2.serve.relay import Fleet, ReplicaLostError
from diffgr2.serve.replica import Believed, Call, End, Gathered, Headers, Replica, Reply

APPS = count(1)


class InProcess:
    """A fleet of `n` replicas on the door's own event loop, of which some may be `cut`."""

    def __init__(
        self, reranker: Reranker, limits: Limits, log_to: LogTo | None = None, n: int = 2
    ) -> None:
        given: dict[str, Any] = {"limits": replace(limits, hosts=()), "keys": Believed()}
        given["log_to"] = Gathered() if log_to is not None else None
        self.every = [Replica(make_app(reranker, **given), f"replica-{i}") for i in range(n)]
        self.there = list(self.every)
        self.asked: list[str] = []  # who was, in order
        self._turn = cycle(range(n))
        self._under_way: dict[str, set[asyncio.Task[Any]]] = {one.name: set() for one in self.every}

    async def start(self) -> None:
        for one in self.every:
            await one.start()

    async def stop(self) -> None:
        for one in self.every:
            await one.stop()

    async def running(self) -> int:
        return len(self.there)

    def cut(self, replica: Replica) -> None:
        """It has gone, and so has what it had under way."""
        self.there.remove(replica)
        for task in self._under_way[replica.name]:
            task.cancel()

    def _next(self) -> Replica:
        if not self.there:
            raise ReplicaLostError
        found = self.there[next(self._turn) % len(self.there)]
        self.asked.append(found.name)
        return found

    async def _of(self, replica: Replica, work: Any) -> Any:
        """What becomes of it while the replica is there."""
        task = asyncio.ensure_future(work)
        self._under_way[replica.name].add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if replica not in self.there:
                raise ReplicaLostError from None
            task.cancel()
            raise
        finally:
            self._under_way[replica.name].discard(task)

    async def ask(self, call: Call) -> Reply:
        replica = self._next()
        return await self._of(replica, replica.ask(call))

    async def stream(self, call: Call) -> AsyncGenerator[tuple[int, Headers] | bytes | End]:
        replica = self._next()
        parts = replica.stream(call)
        try:
            while True:
                try:
                    yield await self._of(replica, anext(parts))
                except StopAsyncIteration:
                    return
        finally:
            await parts.aclose()

    async def everyone(self, what: str, timeout_s: float) -> list[Any]:
        return [await getattr(one, what)() for one in list(self.there)]


def on_ray(reranker: Reranker, limits: Limits, log_to: LogTo | None) -> Fleet:
    """Two replicas on a Ray of this machine."""
    from diffgr2.serve.on_serve import Crew, RayFleet

    class Ours(RayFleet):
        """Its replicas end with the test, wherever Ray runs."""

        async def stop(self) -> None:
            await asyncio.to_thread(self.end)

    bundles = ((reranker.name, str(reranker.directory)),)
    # Several may run in one test: each has an application of its own.
    more: dict[str, Any] = {"keeps": log_to is not None, "least": 2, "most": 2, "cpus": 0.1}
    crew = Crew(bundles=bundles, limits=limits, app=f"test-{next(APPS)}", **more)
    return Ours(crew)
