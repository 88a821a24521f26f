"""A server on a real socket: in this process on a thread, or as a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.app import make_app
from diffgr2.serve.keys import Keys
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.limits import Limits
from diffgr2.serve.relay import make_relay
from diffgr2.serve.state import State
from diffgr2.serve.wire import make_server

DOOR = "DIFFGR2_TEST_DOOR"


def door() -> str:
    """What stands before the models: nothing, `relay` or `ray`."""
    return os.environ.get(DOOR, "")


def app_of(reranker: Reranker, limits: Limits, keys: Keys | None, log_to: LogTo | None) -> FastAPI:
    """The server's application or, where DIFFGR2_TEST_DOOR says so, the door before replicas of it:
    `relay` in this process, `ray` on Ray Serve."""
    if not door():
        return make_app(reranker, limits=limits, keys=keys, log_to=log_to)
    from support.replicated import InProcess, on_ray

    fleet = (
        on_ray(reranker, limits, log_to) if door() == "ray" else InProcess(reranker, limits, log_to)
    )
    return make_relay(fleet, limits=limits, keys=keys, log_to=log_to)


class Live:
    """uvicorn on a thread; `state` is the app's."""

    def __init__(
        self,
        reranker: Reranker,
        *,
        limits: Limits | None = None,
        keys: Keys | None = None,
        log_to: LogTo | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.reranker = reranker
        self.replace(app_of(reranker, self.limits, keys, log_to))

    def replace(self, app: FastAPI) -> None:
        """Serve this one, before the server is begun."""
        self.app = app
        self._server = make_server(self.app, self.limits, host="127.0.0.1", port=0)
        self._thread = threading.Thread(target=lambda: self._server.run(), daemon=True)

    @property
    def state(self) -> State:
        shared = self.app.state.shared
        if shared.relays:  # its bundles and engines are elsewhere
            told = "looks into the engine, which replicas have here"
            type(shared).first = property(lambda _: pytest.skip(told))
        return shared

    @property
    def routes(self) -> list[Any]:
        """What is served, by whomever: a door passes on all that it does not know."""
        return make_app(self.reranker, limits=self.limits).routes if door() else self.app.routes

    @property
    def connections(self) -> list[Any]:
        """Those that are open."""
        return list(self._server.server_state.connections)

    def __enter__(self) -> Live:
        self._thread.start()
        for _ in range(30_000):  # replicas on a busy machine take minutes
            if self._server.started or not self._thread.is_alive():
                break
            time.sleep(0.01)
        assert self._server.started, "the server did not start"
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "the server did not stop"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)


def idle(state: State, timeout_s: float = 30.0) -> bool:
    """Wait until nothing is in flight, in the app or in the engine."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        busy = any(engine.running or engine.waiting for engine in state.every_engine)
        if state.slots.taken == 0 and not busy:
            return True
        time.sleep(0.005)
    return False


ON_RAY = ("--engine", "ray", "--replicas", "2", "--replica-cpus", "0.1")


class Process:
    """`diffgr2 serve` as its own process; on Ray where DIFFGR2_TEST_DOOR says so."""

    def __init__(self, bundle: Path, *options: str, env: dict[str, str] | None = None) -> None:
        source = Path(__file__).parents[2] / "src"
        given = {
            **os.environ,
            "PYTHONPATH": str(source),
            "OMP_NUM_THREADS": "1",
            **(env or {}),
        }
        if door() == "ray" and "--engine" not in options:
            options = (*options, *ON_RAY)
        command = [sys.executable, "-m", "diffgr2.cli", "serve", "--model", str(bundle)]
        # The micro shop's model is hardly trained, and worse than its scorer.
        self.process = subprocess.Popen(
            [*command, "--force", "--port", "0", "--threads", "1", *options],
            env=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        match = re.fullmatch(r"listening on (http://\S+)\n", line)
        if match is None:
            self.process.kill()
            raise AssertionError(f"no server: {line!r} {self.process.communicate()[1][-2000:]}")
        self.url = match[1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def ids(reranker: Reranker, *numbers: int) -> list[str]:
    """Raw ids of dense item numbers."""
    return [reranker.catalogue.raw_ids[number] for number in numbers]


def body_of(reranker: Reranker, seed: int, **more: Any) -> dict[str, Any]:
    """A request that differs with the seed."""
    n = len(reranker.catalogue)
    history = ids(reranker, *((seed * 7 + i * 3) % n for i in range(1 + seed % 4)))
    documents = ids(reranker, *((seed * 11 + 50 + i) % n for i in range(4)))
    return {"history": history, "documents": documents, **more}
