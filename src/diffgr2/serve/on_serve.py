"""Replicas on Ray Serve, and how the door reaches them.

Contract: a `Crew` says what each replica serves and how many there are; `RayFleet` deploys it (the
same again changes nothing), asks by Serve's handle, which sends a request to the less busy of two
replicas, and tells a lost replica from one that answered with an error. Serve begins a new replica
where one is lost or says that it is not healthy, and follows the load between `least` and `most`.
No port of Ray's is opened for requests: the door is ours (`relay`). Not here: the door, and what a
replica does (`replica`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from diffgr2.artifacts import digest, fingerprint, read_manifest
from diffgr2.bulk.cluster import cause_of, elsewhere, joined, part
from diffgr2.errors import ConfigError
from diffgr2.serve.app import Shown, make_app
from diffgr2.serve.limits import Limits
from diffgr2.serve.relay import ReplicaLostError
from diffgr2.serve.replica import Believed, Call, End, Gathered, Headers, Replica, Reply

APP, RANKER = "diffgr2", "Ranker"
MARGIN = 32  # calls besides rankings that a replica takes at once: health, metrics, the page
HEALTH_S, HEALTH_LATE_S = 5.0, 30.0
TRIES = 3


@dataclass(frozen=True)
class Crew:
    """What the replicas serve, and how many there are."""

    bundles: tuple[tuple[str, str], ...]  # (name, directory), the first one answers by default
    limits: Limits
    names: tuple[str, ...] = ()
    shown: Shown = field(default_factory=Shown)
    any_worth: bool = True  # False: a bundle that is worse than its floor is not taken in
    mapped: bool = False  # counts and histories stay in their files
    keeps: bool = False  # impressions go to the door
    backend: str = "auto"
    threads: int = 0  # of the model; 0: as many as CPUs were given
    least: int = 1
    most: int = 1
    load: float = (
        0.0  # requests of a replica that it should have; 0: half of what it decodes at once
    )
    cpus: float = 1.0  # of each
    gpus: float = 0.0
    app: str = APP  # what Serve calls it


class Ranker:
    """One replica, as Serve makes it."""

    async def __init__(self, crew: Crew, mark: str) -> None:  # type: ignore[misc]  # awaited
        self.mark = mark
        from diffgr2.model import backends
        from diffgr2.rerank.reranker import Reranker

        backends.use(crew.backend, crew.threads or max(1, int(crew.cpus)))
        opened = partial(Reranker.from_pretrained, mapped=crew.mapped)
        rerankers = {name: await asyncio.to_thread(opened, at) for name, at in crew.bundles}
        app = make_app(
            rerankers,
            limits=replace(crew.limits, hosts=()),
            keys=Believed(),
            names=crew.names,
            shown=replace(crew.shown, cors=()),
            log_to=Gathered() if crew.keeps else None,  # type: ignore[arg-type]
        )
        app.state.shared.any_worth = crew.any_worth
        self.replica = Replica(app, part("ray.serve").get_replica_context().replica_tag)
        await self.replica.start()

    async def ask(self, call: Call) -> Reply:
        return await self.replica.ask(call)

    async def stream(self, call: Call) -> AsyncGenerator[tuple[int, Headers] | bytes | End]:
        async for one in self.replica.stream(call):
            yield one

    async def told_mark(self) -> str:
        return self.mark

    async def everyone(self, what: str) -> Any:
        return await getattr(self.replica, what)()

    def check_health(self) -> None:
        if not self.replica.healthy:
            raise RuntimeError("an engine has stopped")


def deployment_of(crew: Crew) -> Any:
    """The deployment of a crew."""
    scaled: dict[str, Any] = {"num_replicas": crew.least}
    if crew.most > crew.least:
        load = crew.load or max(1.0, crew.limits.running / 2)
        bounds = {"min_replicas": crew.least, "max_replicas": crew.most}
        scaled = {"autoscaling_config": {**bounds, "target_ongoing_requests": load}}
    actor = {"num_cpus": crew.cpus, **({"num_gpus": crew.gpus} if crew.gpus else {})}
    made = part("ray.serve").deployment(
        Ranker,  # type: ignore[arg-type]
        name=RANKER,
        ray_actor_options=actor,
        # More than a batch, so that one is always full; what is more waits at the door.
        max_ongoing_requests=crew.limits.in_flight + MARGIN,
        health_check_period_s=HEALTH_S,
        health_check_timeout_s=HEALTH_LATE_S,
        graceful_shutdown_timeout_s=crew.limits.drain_s,
        **scaled,
    )
    return made.bind(crew, mark_of(crew))


def mark_of(crew: Crew) -> str:
    """What tells this crew from others: its options, and its bundles as they stand now."""
    bundles = [fingerprint(read_manifest(Path(directory))) for _, directory in crew.bundles]
    return digest([repr(crew), *bundles])


class RayFleet:
    """See the module's docstring."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew
        self._handle: Any = None
        self._lost: tuple[type[BaseException], ...] = ()

    # ------------------------------------------------------------------------ begin and end

    def deploy(self) -> None:
        """Until every replica answers; what keeps them from it is one line."""
        ray, serve = joined(), part("ray.serve")
        exceptions = part("ray.serve.exceptions")
        self._lost = (
            ray.exceptions.RayActorError,
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.ObjectLostError,
            exceptions.DeploymentUnavailableError,
            exceptions.ReplicaUnavailableError,
        )
        serve.start(proxy_location="Disabled")
        self._handle = self._standing()
        if self._handle is not None:
            return
        try:
            self._handle = serve.run(
                deployment_of(self.crew), name=self.crew.app, route_prefix=None
            )
        except RuntimeError as error:
            raise ConfigError(f"Ray Serve: {self._why() or cause_of(error)}") from None

    def _standing(self) -> Any:
        """What another door deployed, where it is the same: Serve would begin its replicas anew."""
        serve = part("ray.serve")
        if self.crew.app not in serve.status().applications:
            return None
        with suppress(Exception):  # who does not answer in time is replaced
            handle = serve.get_app_handle(self.crew.app)
            told = handle.told_mark.remote().result(timeout_s=HEALTH_LATE_S)
            return handle if told == mark_of(self.crew) else None
        return None

    def _why(self) -> str:
        """What Serve says of an application that it could not deploy: its last line."""
        told = part("ray.serve").status().applications[self.crew.app]
        lines = [one.message for one in told.deployments.values()] or [told.message]
        words = [line.strip() for text in lines for line in text.splitlines() if line.strip()]
        return words[-1][:300] if words else ""

    async def start(self) -> None:
        if self._handle is None:
            await asyncio.to_thread(self.deploy)

    async def stop(self) -> None:
        """Of a Ray that this process started; another one's replicas stay for other doors."""
        if not elsewhere():
            await asyncio.to_thread(self.end)

    def end(self) -> None:
        """Without the replicas nothing of Ray is needed."""
        with suppress(Exception):
            serve = part("ray.serve")
            serve.delete(self.crew.app)
            if serve.status().applications:
                return  # somebody else's, in this process
            serve.shutdown()
        part("ray").shutdown()
        self._handle = None

    async def running(self) -> int:
        return await asyncio.to_thread(self._running)

    def _running(self) -> int:
        told = part("ray.serve").status().applications.get(self.crew.app)
        found = told.deployments.get(RANKER) if told is not None else None
        return 0 if found is None else int(found.replica_states.get("RUNNING", 0))

    # ------------------------------------------------------------------------------- asking

    async def ask(self, call: Call) -> Reply:
        answer = self._handle.ask.remote(call)
        try:
            return await answer
        except self._lost:
            raise ReplicaLostError from None
        except asyncio.CancelledError:
            answer.cancel()  # the client has left
            raise

    async def stream(self, call: Call) -> AsyncGenerator[tuple[int, Headers] | bytes | End]:
        answer = self._handle.options(stream=True).stream.remote(call)
        ended = False
        try:
            async for one in answer:
                yield one
            ended = True
        except self._lost:
            ended = True
            raise ReplicaLostError from None
        finally:
            if not ended:
                answer.cancel()

    async def everyone(self, what: str, timeout_s: float) -> list[Any]:
        answer = self._handle.broadcast("everyone", what)
        said = await answer.results_async(timeout_s=timeout_s, return_exceptions=True)
        for one in said:
            if isinstance(one, BaseException) and not isinstance(one, self._lost):
                raise one
        return [one for one in said if not isinstance(one, BaseException)]
