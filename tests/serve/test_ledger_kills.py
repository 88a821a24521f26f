"""kill -9 under load: no half line, no acknowledged event lost, none counted twice."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from diffgr2 import Reranker
from diffgr2.data.traffic import FEEDBACK, IMPRESSIONS, KINDS, files_of
from support.live import Process, body_of

CLIENTS = 3


class Shopper(threading.Thread):
    """Asks for rankings and clicks on them until the server is gone."""

    def __init__(self, url: str, reranker: Reranker, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.reranker, self.number = url, reranker, number
        self.answered: list[tuple[float, str]] = []
        self.sent: list[dict[str, Any]] = []
        self.stored: list[dict[str, Any]] = []

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=30) as client:
            try:
                for turn in range(10_000):
                    self.ask(client, turn)
            except httpx.HTTPError:
                return  # killed

    def ask(self, client: httpx.Client, turn: int) -> None:
        body = body_of(self.reranker, self.number * 1000 + turn, decode={"max_tokens": 8})
        answer = client.post("/v1/rerank", json=body)
        assert answer.status_code == 200, answer.text
        name = answer.json()["id"]
        self.answered.append((time.monotonic(), name))
        for item in body["documents"][:2]:
            event = {"request_id": name, "item": item, "event": "click"}
            self.sent.append(event)
            for _ in range(1 + turn % 2):  # some clients send everything twice
                assert client.post("/v1/feedback", json=event).status_code in (200, 202)
            self.stored.append(event)


def whole_lines(directory: Path, kind: str) -> list[dict[str, Any]]:
    """All lines; every file ends with one."""
    found = []
    for path in files_of(directory, kind):
        data = path.read_bytes()
        assert not data or data.endswith(b"\n"), f"{path.name} ends in half a line"
        found += [json.loads(line) for line in data.splitlines()]
    return found


def counts(lines: list[dict[str, Any]]) -> Counter[tuple[str, str, str]]:
    return Counter((line["id"], line["item"], line["event"]) for line in lines)


def key(event: dict[str, Any]) -> tuple[str, str, str]:
    return event["request_id"], event["item"], event["event"]


def again(client: httpx.Client, events: list[dict[str, Any]]) -> list[int]:
    """What careful clients do after a kill: send everything once more."""
    parts = [events[at : at + 500] for at in range(0, len(events), 500)]
    return [client.post("/v1/feedback", json={"events": part}).status_code for part in parts]


def kills(bundle: Path, reranker: Reranker, directory: Path, times: int) -> None:
    source, before = random.Random(7), list[dict[str, Any]]()
    options = ("--log-dir", str(directory), "--log-rotate-mb", "1")
    for _ in range(times):
        with Process(bundle, *options) as server:
            shoppers = [Shopper(server.url, reranker, n) for n in range(CLIENTS)]
            with httpx.Client(base_url=server.url, timeout=30) as client:
                again(client, before)
            for shopper in shoppers:
                shopper.start()
            time.sleep(source.uniform(1.5, 3.0))
            killed = time.monotonic()
            server.process.send_signal(signal.SIGKILL)
            for shopper in shoppers:
                shopper.join(timeout=30)
        impressions = {line["id"] for line in whole_lines(directory, IMPRESSIONS)}
        for shopper in shoppers:
            assert shopper.answered, "no load"
            early = [name for at, name in shopper.answered if at < killed - 1.0]
            assert impressions.issuperset(early)
        stored = counts(whole_lines(directory, FEEDBACK))
        assert max(stored.values(), default=1) == 1
        for event in [event for shopper in shoppers for event in shopper.stored] + before:
            assert stored[key(event)] == 1  # what was acknowledged is there, once
        before += [event for shopper in shoppers for event in shopper.sent]
    with Process(bundle, *options) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            again(client, before)
            assert set(again(client, before)) == {200}  # nothing was new
            assert "diffgr2_log_torn_total 0.0" in client.get("/metrics").text
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
    stored = counts(whole_lines(directory, FEEDBACK))
    assert set(stored) == set(map(key, before))
    assert set(stored.values()) == {1}
    assert all(len(whole_lines(directory, kind)) > 0 for kind in KINDS)


def test_three_kills(run_dir: Path, reranker: Reranker, tmp_path: Path) -> None:
    kills(run_dir / "bundle", reranker, tmp_path / "log", 3)


@pytest.mark.slow
def test_twenty_kills(run_dir: Path, reranker: Reranker, tmp_path: Path) -> None:
    kills(run_dir / "bundle", reranker, tmp_path / "log", 20)
