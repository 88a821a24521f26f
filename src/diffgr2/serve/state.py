"""What the routes share: the served bundles, slots, budget, keys, metrics; and their exchange.

Contract: a `Served` is one opened bundle with its engine; requests hold it from their first step to
their last, so each is answered by one bundle. `State.reload` opens keys and every bundle anew
beside the old ones and puts them in their place, all at once, only when all answer and none was
judged worse than its floor; the old ones end with their last request. Whatever is refused leaves
everything as it was. Not here: routes (`app`), decoding (`engine`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from diffgr2.candidates.fields import names_of
from diffgr2.decode.settings import DecodeRequest
from diffgr2.errors import ArtifactError, DecodeError, Diffgr2Error
from diffgr2.rerank.bundle import refuse_worse
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.engine import Engine
from diffgr2.serve.keys import Keys
from diffgr2.serve.lanes import Lanes, engine_of
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Budget, Limits, Slots
from diffgr2.serve.post import Post
from diffgr2.serve.schema import Problem
from diffgr2.serve.telemetry import Metrics

if TYPE_CHECKING:
    from diffgr2.serve.tracing import Traces

T = TypeVar("T")
AnyEngine = Engine | Lanes

log = logging.getLogger("diffgr2.serve")

ALIASES = ("diffgr2", "default", "default/not-specified")
"""Model names that always mean the first bundle."""

PROBE_EVERY_S = 5.0
READERS = 4  # threads that parse bodies, resolve items and write prompts


class Served:
    """One opened bundle, its engine, and how many requests hold it."""

    def __init__(self, name: str, reranker: Reranker, limits: Limits, metrics: Metrics) -> None:
        self.name, self.reranker, self.created = name, reranker, int(time.time())
        self.description: dict[str, Any] = {}  # OpenAPI's, once it was asked for
        probe = DecodeRequest([reranker.vocab.end_id])
        tiny = reranker.ways({"decoder": "ar", "max_tokens": 1}).settings
        self.engine = engine_of(reranker.model, (probe, tiny), limits, metrics)
        metrics.backend.labels(reranker.model.name).inc()
        self.holders, self.retired, self.ended = 0, False, False

    @property
    def simulated(self) -> bool:
        """Whether its shoppers are invented, so that anybody may see them."""
        return self.reranker.simulated

    def hold(self) -> Served:
        self.holders += 1
        return self

    def let_go(self) -> None:
        self.holders -= 1
        self._end()

    def retire(self) -> None:
        """End with the last request."""
        self.retired = True
        self._end()

    def _end(self) -> None:
        if self.retired and self.holders == 0:
            self.ended = True
            self.engine.end()


class State:
    """See the module's docstring."""

    relays = False  # True where others rank, so that no engine stands here

    def __init__(
        self,
        rerankers: Mapping[str, Reranker],
        limits: Limits,
        keys: Keys,
        names: tuple[str, ...],
        log_to: LogTo | None = None,
    ) -> None:
        self.limits, self.keys, self.names = limits, keys, names
        self.metrics = Metrics()
        self.slots = Slots(limits.in_flight)
        self.bodies = Budget(limits.bodies_bytes)
        self.served = {
            name: Served(name, reranker, limits, self.metrics)
            for name, reranker in rerankers.items()
        }
        self.draining = self.started = False
        self.any_worth = True  # False: bundles that are worse than their floor are not taken in
        self.traces: Traces | None = None
        self.ledger = None if log_to is None else log_to.opened(self.metrics)
        self.readers = ThreadPoolExecutor(READERS, "diffgr2-reader")
        self._probing: asyncio.Task[bool] | None = None
        self._exchange = asyncio.Lock()
        self._reloading: set[asyncio.Task[None]] = set()  # asked for by signals
        self._retired = WeakSet[Served]()  # requests that began before an exchange hold them
        metrics = self.metrics
        # Asked when the metrics are read, so that they never lag behind the last answer.
        metrics.running.set_function(lambda: sum(e.running for e in self.every_engine))
        metrics.waiting.set_function(lambda: sum(e.waiting for e in self.every_engine))
        metrics.slots_used.set_function(lambda: sum(e.slots_used for e in self.every_engine))

    # ------------------------------------------------------------------------------ bundles

    @property
    def engines(self) -> list[AnyEngine]:
        return [served.engine for served in self.served.values()]

    @property
    def every_engine(self) -> list[AnyEngine]:
        """Those of old bundles that still answer too."""
        old = [served.engine for served in self._retired if not served.ended]
        return [*self.engines, *old]

    @property
    def first(self) -> Served:
        """The bundle that answers where no model is named."""
        return next(iter(self.served.values()))

    @property
    def engine(self) -> AnyEngine:
        """The first bundle's."""
        return self.first.engine

    @property
    def reranker(self) -> Reranker:
        """The first bundle's."""
        return self.first.reranker

    def find(self, name: str | None) -> Served | None:
        """The bundle of a model name; every name of old for the first one."""
        if name is None:
            return self.first
        other = self.first if name in (*self.names, *ALIASES) else None
        return self.served.get(name, other)

    async def reload(self) -> list[str]:
        """Open keys and bundles anew and put them in place; returns the bundles' names."""
        async with self._exchange:
            keys = await asyncio.to_thread(self.keys.reread)
            fresh = await self.opened_anew()
            # From here on nothing waits and nothing fails.
            self.keys.replace(keys)
            self.exchange(fresh)
            return list(fresh)

    async def opened_anew(self) -> dict[str, Served]:
        """Every bundle as it now stands on the disk, beside the old ones."""
        fresh: dict[str, Served] = {}
        try:
            for name, old in self.served.items():
                fresh[name] = await asyncio.to_thread(self._open, name, old.reranker)
            if self.draining:
                raise ArtifactError("the server is shutting down")
        except BaseException:
            for served in fresh.values():
                served.retire()
            raise
        return fresh

    def exchange(self, fresh: dict[str, Served]) -> None:
        """Put these in the place of what is served."""
        old = list(self.served.values())
        self.served = fresh
        self._retired.update(old)
        for served in old:
            served.retire()
        self.metrics.reloads.inc()

    def _open(self, name: str, old: Reranker) -> Served:
        """A bundle that has shown that it decodes, opened as the old one was."""
        directory = old.directory
        if not self.any_worth:
            refuse_worse(directory)
        fresh = Reranker.from_pretrained(directory, mapped=old.mapped)
        served = Served(name, fresh, self.limits, self.metrics)
        served.engine.start(self.post.wake)
        if not served.engine.probe(self.limits.stall_s):
            served.engine.end()
            raise DecodeError(f"{directory}: the model does not decode")
        return served

    def reload_soon(self) -> None:
        """For a signal: reload in the background, say how it went."""
        if len(self._reloading) > 1:
            return  # one reads the disk now, the other will: that is as new as it gets

        async def work() -> None:
            try:
                log.warning("reloaded %s", ", ".join(await self.reload()))
            except Diffgr2Error as error:
                log.warning("not reloaded: %s", " ".join(str(error).split()))
            except Exception:
                log.exception("not reloaded")

        task = asyncio.ensure_future(work())
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    def features(self) -> set[str]:
        """The names of the models' own features."""
        return {n for one in self.served.values() for n in names_of(one.reranker.seats.index.own)}

    # ------------------------------------------------------------------------------ service

    async def told(self) -> bytes:
        """The metrics, as text."""
        return self.metrics.text()

    def start(self) -> None:
        """On the event loop that will serve."""
        self.post = Post(asyncio.get_running_loop())
        for engine in self.engines:
            engine.start(self.post.wake)
        self.started = True

    def stop(self) -> None:
        """End all engines; open requests fail."""
        for engine in self.every_engine:
            engine.stop()
        self.readers.shutdown(wait=False, cancel_futures=True)
        if self.ledger is not None:
            self.ledger.close()

    async def ready(self) -> bool:
        """Whether a request sent now would be answered: judged by a real forward."""
        engines = self.engines
        if self.draining or not self.started:
            return False
        if any(not engine.alive or engine.stalled for engine in engines):
            return False
        since = time.monotonic() - PROBE_EVERY_S
        if all(not engine.bad and engine.good_at > since for engine in engines):
            return True
        if self._probing is None or self._probing.done():
            self._probing = asyncio.create_task(asyncio.to_thread(self._probe, engines))
        return await asyncio.shield(self._probing)

    def _probe(self, engines: list[AnyEngine]) -> bool:
        return all(engine.probe(self.limits.stall_s) for engine in engines)

    async def aside(self, deadline: float, work: Callable[..., T], *given: Any) -> T:
        """Work off the event loop, at most until the deadline."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await loop.run_in_executor(self.readers, work, *given)
        except TimeoutError:
            raise Problem(504, "the deadline has passed") from None

    def busy(self, told: str, *, after_s: int | None = None) -> Problem:
        """A 429 that says when to come again."""
        wait = self.slots.retry_after_s() if after_s is None else after_s
        return Problem(429, told, headers={"retry-after": str(wait)})

    def full(self) -> Problem:
        """What is told while no slot is free."""
        return self.busy(f"{self.slots.limit} requests are in flight already")
