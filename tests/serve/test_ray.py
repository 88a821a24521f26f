"""Batches and traffic on a Ray of this machine: the promises of one process, on several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest
from replica_kills import Load, actors, example, replicas

from diffgr2.bulk.rank_all import rank_all
from diffgr2.rerank.reranker import Reranker
from support.live import Process, body_of

SOURCE = Path(__file__).parents[2] / "src"
pytestmark = pytest.mark.slow
POISON = 7


@pytest.fixture(scope="module", autouse=True)
def ray():
    """One line where it is not installed."""
    return pytest.importorskip("ray", reason="needs the extra ray: pip install 'diffgr2[ray]'")


def lists_of(reranker: Reranker, n: int, path: Path) -> Path:
    raw = reranker.catalogue.raw_ids
    some = len(raw) - 60
    rows = {
        "history": [raw[i % some :][:2] for i in range(n)],
        "candidates": [raw[30 + i % some :][:4] if i != POISON else [] for i in range(n)],
    }
    pl.DataFrame(rows, dict.fromkeys(rows, pl.List(pl.String))).write_parquet(path)
    return path


def begun(bundle: Path, lists: Path, output: Path) -> subprocess.Popen:
    line = ["rerank", "-m", bundle, "--engine", "ray", "--workers", "2", "-i", lists, "-o", output]
    env = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "diffgr2.cli", *map(str, line)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_kills_of_actors_and_of_the_driver_lose_and_double_nothing(
    run_dir: Path, reranker: Reranker, tmp_path: Path
) -> None:
    n = 2_000
    lists, output = lists_of(reranker, n, tmp_path / "lists.parquet"), tmp_path / "ranked"
    kills = int(os.environ.get("DIFFGR2_RAY_KILLS", "4"))  # the full measure is 20
    for kill in range(kills):
        driver, before = begun(run_dir / "bundle", lists, output), _standing(output)
        while driver.poll() is None and _standing(output) <= before:
            time.sleep(0.05)
        if driver.poll() is None:
            victim = driver.pid if kill % 2 else next(iter(actors()), driver.pid)
            os.kill(victim, signal.SIGKILL)
        if kill % 2:
            driver.wait()
        elif driver.poll() is None:
            now = _standing(output)
            while driver.poll() is None and _standing(output) <= now:  # it goes on by itself
                time.sleep(0.05)
            driver.kill()
            driver.wait()
        driver.communicate()
    out, _ = begun(run_dir / "bundle", lists, output).communicate(timeout=600)
    assert f"{n - 1} rankings, 1 rows set aside" in out
    rows = pl.concat(pl.read_parquet(path) for path in output.glob("part-*.parquet"))
    assert Counter(rows["row"]) == Counter(set(range(n)) - {POISON})
    named = [json.loads(line) for line in (output / "_set_aside.jsonl").read_text().splitlines()]
    assert [one["row"] for one in named] == [POISON]


def _standing(output: Path) -> int:
    return len(list((output / "_ledger").glob("*.json")))


def test_two_actors_share_a_file_of_one_block_and_write_what_one_process_does(
    run_dir: Path, reranker: Reranker, tmp_path: Path
) -> None:
    lists = lists_of(reranker, 600, tmp_path / "lists.parquet")
    out, _ = begun(run_dir / "bundle", lists, tmp_path / "ray").communicate(timeout=600)
    shares = [int(text) for text in re.findall(r"(\d+)%", out)]
    assert len(shares) == 2
    assert min(shares) >= 20  # 40 on cores that nobody else uses
    rank_all(run_dir / "bundle", lists, tmp_path / "local", workers=2)
    for path in (tmp_path / "local").glob("part-*"):
        assert (tmp_path / "ray" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def served(run_dir: Path) -> Iterator[Process]:
    with Process(run_dir / "bundle", "--engine", "ray", "--replicas", "2") as server:
        yield server
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0


def test_replicas_answer_like_one_model(served: Process, reranker: Reranker) -> None:
    with httpx.Client(base_url=served.url, timeout=60) as client:
        for seed in range(12):
            body = body_of(reranker, seed)
            answer = client.post("/v1/rerank", json=body).json()
            wanted = reranker.rank(body["history"], body["documents"])
            assert [one["id"] for one in answer["results"]] == list(wanted.items)
        assert client.get("/health/ready").status_code == 200
        assert 'outcome="ok"} 12.0' in client.get("/metrics").text


def test_replicas_killed_under_load_cost_no_500(served: Process) -> None:
    load = Load(served.url, example(served.url), clients=3)
    try:
        for _ in range(10):
            time.sleep(4)
            for pid in replicas()[:1]:
                os.kill(pid, signal.SIGKILL)
        time.sleep(4)
    finally:
        load.stop()
    assert load.seen["200"] > 20
    assert not load.seen.keys() - {"200", "503 with retry-after"}
