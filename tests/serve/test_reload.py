"""Bundles are exchanged under way: no request is lost, none is answered by two of them.

The bundles differ in their weights, so each request has exactly two right answers, and which one it
was says which bundle answered. Exchanging files on the disk is what an operator does; only a reload
makes them count.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.app import make_app
from diffgr2.serve.keys import Keys
from diffgr2.serve.limits import Limits
from diffgr2.serve.wire import make_server
from support import bundles
from support.live import Live, Process, body_of, idle, ids

OPS = "a-key-that-may-do-all"
KEYS = [f"{OPS} name=ops roles=rank,shoppers,admin"]
WITH = {"authorization": f"Bearer {OPS}"}
DECODE = {"decoder": "ar", "max_tokens": 48}


def alike(one: tuple[Any, ...], two: tuple[Any, ...], within: float) -> bool:
    """Whether two answers are one: order, reasoning, and strengths but for so much."""
    return one[:2] == two[:2] and np.allclose(one[2], two[2], rtol=0, atol=within)


class Pair:
    """Two bundles on the disk, and a place where one of them stands and is served."""

    def __init__(self, run_dir: Path, folder: Path) -> None:
        self.sources = [
            bundles.copy_of(run_dir / "bundle", folder / "one"),
            bundles.other_weights(run_dir / "bundle", folder / "two"),
        ]
        self.place = bundles.copy_of(self.sources[0], folder / "served")
        self.models = [Reranker.from_pretrained(path) for path in self.sources]
        self.bodies = [body_of(self.models[0], seed, decode=DECODE) for seed in range(16)]
        pairs = zip(*(self._answers(model) for model in self.models), strict=True)
        # Only requests that the two answer differently say which one answered.
        both = zip(self.bodies, pairs, strict=True)
        told = [(body, (one, two)) for body, (one, two) in both if not alike(one, two, 0.02)]
        assert len(told) >= 6
        self.bodies = [body for body, _ in told]
        self.answers = [pair for _, pair in told]

    def _answers(self, model: Reranker) -> list[tuple[Any, ...]]:
        found = []
        for body in self.bodies:
            wanted = {"history": body["history"], "candidates": body["documents"]}
            result = model.rank(**wanted, decode=DECODE, return_reasoning=True)
            found.append((list(result.order), result.reasoning, result.levels))
        return found

    def put(self, number: int) -> None:
        bundles.put_in_place(self.sources[number], self.place)

    def which(self, place: int, answer: httpx.Response) -> int:
        """Which bundle an answer is of."""
        assert answer.status_code == 200, answer.text
        value = answer.json()
        order = [entry["index"] for entry in value["results"]]
        levels = [entry["strength"] for entry in value["results"]]
        said = (order, value["reasoning"], levels)
        same = [alike(said, one, 0.001) for one in self.answers[place]]  # batches round otherwise
        assert sum(same) == 1, "an answer of neither"
        return same.index(True)


@pytest.fixture(scope="module")
def pair(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(run_dir, tmp_path_factory.mktemp("pair"))


@pytest.fixture
def server(pair: Pair) -> Iterator[Live]:
    pair.put(0)
    with Live(Reranker.from_pretrained(pair.place), keys=Keys(KEYS)) as live:
        yield live


def reload(client: httpx.Client) -> httpx.Response:
    return client.post("/admin/reload", headers=WITH)


class Load:
    """Clients that ask without a break until they are told to stop; every answer is kept."""

    def __init__(self, pair: Pair, url: str, clients: int) -> None:
        self.pair, self.url, self.clients = pair, url, clients
        self.seen: list[int] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(clients)

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=120, headers=WITH) as client:
            step = number
            while not self._stop.is_set():
                place = step % len(self.pair.bodies)
                body = {**self.pair.bodies[place], "return_reasoning": True}
                self.seen.append(self.pair.which(place, client.post("/rerank", json=body)))
                step += 1

    def __enter__(self) -> Load:
        self._futures = [self._pool.submit(self._ask, n) for n in range(self.clients)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for future in self._futures:
            future.result()  # a lost or a wrong answer is raised here
        self._pool.shutdown()

    def more(self, n: int) -> None:
        """Wait for so many further answers."""
        wanted = len(self.seen) + n
        while len(self.seen) < wanted and not any(future.done() for future in self._futures):
            time.sleep(0.005)


def under_load(pair: Pair, server: Live, reloads: int, clients: int) -> list[int]:
    with server.client() as client, Load(pair, server.url, clients) as load:
        for number in range(1, reloads + 1):
            pair.put(number % 2)
            assert reload(client).status_code == 200
            load.more(clients // 4)
    assert idle(server.state)
    assert server.state.every_engine == server.state.engines  # the old ones have ended
    assert server.state.metrics.registry.get_sample_value("diffgr2_reloads_total") == reloads
    for kind in ("failed", "rejected", "timeout", "gone"):
        lost = server.state.metrics.requests.labels(kind)._value.get()
        assert lost == 0, kind
    return load.seen


def test_10_reloads_under_8_clients_lose_nothing(pair: Pair, server: Live) -> None:
    seen = under_load(pair, server, 10, 8)
    assert set(seen) == {0, 1}


@pytest.mark.slow
def test_200_reloads_under_32_clients_lose_nothing(pair: Pair, server: Live) -> None:
    seen = under_load(pair, server, 200, 32)
    assert len(seen) > 1600
    assert min(seen.count(0), seen.count(1)) > len(seen) // 10


def test_files_count_from_the_reload_on_and_not_before(pair: Pair, server: Live) -> None:
    body = {**pair.bodies[0], "return_reasoning": True}
    with server.client(headers=WITH) as client:
        assert pair.which(0, client.post("/rerank", json=body)) == 0
        pair.put(1)
        fresh = {**body, "decode": {**DECODE, "threshold": 0.77}}  # a setting not met before
        assert client.post("/rerank", json=fresh).status_code == 200
        assert pair.which(0, client.post("/rerank", json=body)) == 0
        assert reload(client).json() == {"reloaded": [server.reranker.name]}
        assert pair.which(0, client.post("/rerank", json=body)) == 1


def test_a_request_that_began_before_ends_with_its_own_bundle(pair: Pair, server: Live) -> None:
    with server.client(headers=WITH) as client:
        body = {**pair.bodies[0], "return_reasoning": True, "stream": True}
        began = threading.Event()

        def ask() -> str:
            with httpx.Client(base_url=server.url, timeout=60, headers=WITH) as other:
                lines = []
                with other.stream("POST", "/rerank", json=body) as stream:
                    for line in stream.iter_lines():
                        began.set()
                        lines.append(line)
                return "\n".join(lines)

        engine = server.state.engine
        step = engine._step
        engine._step = lambda decoder: (time.sleep(0.02), step(decoder))[1]  # type: ignore
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask)
            assert began.wait(30)
            pair.put(1)
            assert reload(client).status_code == 200
            assert not answer.done()
            assert engine in server.state.every_engine
            text = answer.result()
        told = [line for line in text.splitlines() if line.startswith('data: {"id"')]
        assert pair.which(0, httpx.Response(200, text=told[0].removeprefix("data: "))) == 0
        assert idle(server.state)
        assert server.state.every_engine == server.state.engines
        assert engine not in server.state.engines
        engine._thread.join(timeout=10)
        assert not engine._thread.is_alive()


BROKEN = {
    "a bit flipped": lambda b: (b / "config.json").write_text("{}"),
    "no manifest": lambda b: (b / "manifest.json").unlink(),
    "NaN weights": lambda b: (
        bundles.edit_weights(b, lambda t: t["model.norm.weight"].fill_(float("nan"))),
        bundles.seal(b),
    ),
    "nothing there": lambda b: b.rename(b.with_name("gone")),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_broken_bundle_changes_nothing(pair: Pair, tmp_path: Path, change) -> None:
    place = bundles.copy_of(pair.sources[0], tmp_path / "bundle")
    keys = tmp_path / "keys"
    keys.write_text(KEYS[0])
    body = {**pair.bodies[0], "return_reasoning": True}
    with (
        Live(Reranker.from_pretrained(place), keys=Keys(KEYS, keys)) as server,
        server.client(headers=WITH) as client,
    ):
        before, engine = server.state.served, server.state.engine
        change(place)
        keys.write_text("another-key-that-may-do-all roles=rank,admin")
        answer = reload(client)
        assert answer.status_code == 409
        assert answer.json()["error"]["type"] == "conflict"
        assert "nothing was exchanged" in answer.json()["message"]
        assert "\n" not in answer.json()["message"]
        assert server.state.served is before
        assert server.state.engine is engine
        assert client.get("/health/ready").status_code == 200
        assert pair.which(0, client.post("/rerank", json=body)) == 0  # the old key, too
        assert server.state.metrics.registry.get_sample_value("diffgr2_reloads_total") == 0
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("diffgr2-engine") == 1 or len(names) < 60


def test_one_of_two_broken_exchanges_neither(pair: Pair, tmp_path: Path) -> None:
    places = [bundles.copy_of(pair.sources[n], tmp_path / str(n)) for n in (0, 1)]
    named = {"first": places[0], "second": places[1]}
    with served(named) as server, server.client(headers=WITH) as client:
        before = server.state.served
        bundles.put_in_place(pair.sources[1], places[0])
        (places[1] / "config.json").unlink()
        assert reload(client).status_code == 409
        assert server.state.served is before
        body = {**pair.bodies[0], "return_reasoning": True}
        assert pair.which(0, client.post("/rerank", json={**body, "model": "first"})) == 0
        assert pair.which(0, client.post("/rerank", json={**body, "model": "second"})) == 1


class served(Live):  # noqa: N801
    """A server of several bundles."""

    def __init__(self, named: dict[str, Path], names: tuple[str, ...] = ()) -> None:
        models = {name: Reranker.from_pretrained(path) for name, path in named.items()}
        super().__init__(next(iter(models.values())), keys=Keys(KEYS))
        self.app = make_app(models, limits=Limits(), keys=Keys(KEYS), names=names)
        self._server = make_server(self.app, self.limits, host="127.0.0.1", port=0)


def test_bundles_answer_by_their_names(pair: Pair) -> None:
    named = {"one": pair.sources[0], "default": pair.sources[1]}
    with served(named, ("stock",)) as server, server.client(headers=WITH) as client:
        for place in range(4):
            body = {**pair.bodies[place], "return_reasoning": True}
            # A bundle's own name goes before the names that mean the first one.
            for model, wanted in (("one", 0), ("default", 1), (None, 0), ("stock", 0)):
                answer = client.post("/rerank", json={**body, "model": model})
                assert pair.which(place, answer) == wanted, model
                assert answer.json()["model"] == ("default" if wanted else "one")
        assert client.post("/rerank", json={**body, "model": "three"}).status_code == 404
        batch = {"requests": [{**pair.bodies[0], "model": name} for name in ("one", "default")]}
        lines = client.post("/v1/rerank/batch", json=batch).text.splitlines()
        assert len(lines) == 2
        assert all(f'"model": "{name}"' in "".join(lines) for name in ("one", "default"))
        cards = client.get("/v1/models").json()["data"]
        assert [card["id"] for card in cards] == ["stock", "one", "default"]
        assert reload(client).json() == {"reloaded": ["one", "default"]}


def test_what_is_said_follows_the_bundle(pair: Pair, tmp_path: Path) -> None:
    """From simulated shoppers to real ones: page, description and look-ups close with it."""
    place = bundles.copy_of(pair.sources[0], tmp_path / "bundle")
    closed = bundles.private(pair.sources[0], tmp_path / "closed")
    keys = Keys([*KEYS, "a-key-that-may-rank name=search"])
    only = {"authorization": "Bearer a-key-that-may-rank"}
    with Live(Reranker.from_pretrained(place), keys=keys) as server, server.client() as client:
        user = server.reranker.raw_users[0]

        def shown() -> tuple[bool, bool, int]:
            rows = client.get("/page/shoppers", headers=only).json()["shoppers"]
            said = client.get("/openapi.json", headers=only).text
            body = {"user_id": user, "documents": ids(server.reranker, 5, 6), "reasoning": "off"}
            status = client.post("/rerank", json=body, headers=only).status_code
            return bool(rows), user in said, status

        assert shown() == (True, True, 200)
        bundles.put_in_place(closed, place)
        assert reload(client).status_code == 200
        assert shown() == (False, False, 403)


def test_an_exchanged_bundle_leaves_the_memory_at_once(pair: Pair, server: Live) -> None:
    """Without the collector of cycles, which would stop everybody while it looks."""
    gc.disable()
    try:
        with server.client(headers=WITH) as client:
            old: list[weakref.ref] = []
            for number in range(1, 5):
                served = server.state.first
                parts = (served, served.engine, served.reranker.model)
                old += [weakref.ref(part) for part in parts]
                del served, parts
                pair.put(number % 2)
                assert client.post("/rerank", json=pair.bodies[0]).status_code == 200
                assert reload(client).status_code == 200
                assert client.get("/openapi.json").status_code == 200
        server.reranker = server.state.reranker  # the fixture holds the first one
        for _ in range(200):  # the engine's thread ends by itself
            if not any(ref() for ref in old):
                break
            time.sleep(0.02)
        assert [type(ref()).__name__ for ref in old if ref() is not None] == []
    finally:
        gc.enable()


def resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def keys_of(folder: Path) -> tuple[str, str]:
    path = folder / "keys"
    path.write_text(KEYS[0])
    path.chmod(0o600)
    return "--keys", str(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_reloads(pair: Pair, tmp_path: Path) -> None:
    pair.put(0)
    with (
        Process(pair.place, *keys_of(tmp_path)) as server,
        httpx.Client(base_url=server.url, timeout=120, headers=WITH) as client,
    ):
        sizes = []
        for number in range(80):
            pair.put(number % 2)
            assert reload(client).status_code == 200
            assert client.post("/rerank", json=pair.bodies[0]).status_code == 200
            sizes.append(resident_mb(server.process.pid))
    assert sizes[-1] < sizes[19] * 1.05, sizes


def sighups(pair: Pair, tmp_path: Path, n: int, clients: int) -> None:
    """So many signals under load; then SIGTERM, which loses nothing either."""
    pair.put(0)
    with Process(pair.place, *keys_of(tmp_path)) as server:
        with Load(pair, server.url, clients) as load:
            load.more(clients)
            for number in range(1, n + 1):
                pair.put(number % 2)
                server.process.send_signal(signal.SIGHUP)
                with httpx.Client(base_url=server.url, timeout=60, headers=WITH) as client:
                    for _ in range(2000):
                        if f"reloads_total {number}.0" in client.get("/metrics").text:
                            break
                        time.sleep(0.01)
                    else:
                        raise AssertionError("the signal was not heard")
                load.more(clients)
        assert set(load.seen) == {0, 1}
        for _ in range(30):
            server.process.send_signal(signal.SIGHUP)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        _, err = server.process.communicate()
        assert "Traceback" not in err, err
        assert err.count("reloaded") >= n


def test_sighup_exchanges_under_load(pair: Pair, tmp_path: Path) -> None:
    sighups(pair, tmp_path, 1, 4)


@pytest.mark.slow
def test_20_sighups_under_32_clients(pair: Pair, tmp_path: Path) -> None:
    sighups(pair, tmp_path, 20, 32)


def test_a_signal_with_a_broken_bundle_is_one_line(pair: Pair, server: Live, caplog) -> None:
    (pair.place / "config.json").write_text("{}")
    server._server._loop.call_soon_threadsafe(server.state.reload_soon)
    for _ in range(500):
        if any("not reloaded" in record.message for record in caplog.records):
            break
        time.sleep(0.01)
    (told,) = [r.message for r in caplog.records if "reloaded" in r.message]
    assert told.startswith(f"not reloaded: {pair.place}/config.json: ")
    assert "\n" not in told
    with server.client(headers=WITH) as client:
        assert client.post("/rerank", json=pair.bodies[0]).status_code == 200


def test_many_signals_are_few_reloads(pair: Pair, server: Live) -> None:
    loop = server._server._loop
    for _ in range(50):
        loop.call_soon_threadsafe(server.state.reload_soon)
    with server.client(headers=WITH) as client:
        assert reload(client).status_code == 200  # waits for those before it
        assert "reloads_total 3.0" in client.get("/metrics").text


def test_a_link_to_the_bundle_may_be_set_to_another_one(pair: Pair, tmp_path: Path) -> None:
    """As releases are put in place elsewhere: one rename, nothing copied over."""
    link, new = tmp_path / "current", tmp_path / "new"
    link.symlink_to(pair.sources[0])
    body = {**pair.bodies[0], "return_reasoning": True}
    with (
        Live(Reranker.from_pretrained(link), keys=Keys(KEYS)) as server,
        server.client(headers=WITH) as client,
    ):
        new.symlink_to(pair.sources[1])
        new.rename(link)
        assert pair.which(0, client.post("/rerank", json=body)) == 0
        assert reload(client).status_code == 200
        assert pair.which(0, client.post("/rerank", json=body)) == 1
