"""SIGTERM with requests in flight: none is lost; a second signal ends it at once."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from diffgr2.rerank.reranker import Reranker
from support.live import Process, ids

Answer = Future[httpx.Response]


def in_flight(client: httpx.Client) -> int:
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("diffgr2_requests_in_flight "):
            return round(float(line.split()[1]))
    raise AssertionError("no such metric")


def all_at_once(client: httpx.Client, pool: ThreadPoolExecutor, body: dict, n: int) -> list[Answer]:
    """n requests that were seen in flight together; a quick server may need a few tries."""
    for _ in range(100):
        waiting = [pool.submit(client.post, "/rerank", json=body) for _ in range(n)]
        while not all(future.done() for future in waiting):
            if in_flight(client) >= n:
                return waiting
        assert all(future.result().status_code == 200 for future in waiting)
    raise AssertionError(f"never {n} in flight")


def drains(client: httpx.Client) -> bool:
    """Whether the first signal has arrived."""
    try:
        return client.post("/rerank", json={}).status_code == 503
    except httpx.HTTPError:
        return True  # nothing listens any more


def drain(bundle: Path, reranker: Reranker, n: int) -> None:
    """One server, n requests in flight, one SIGTERM."""
    body = {
        "history": ids(reranker, 0),
        "documents": ids(reranker, *range(60, 100)),
        "decode": {"decoder": "ar"},
    }
    # Deadlines far away: what is lost here is then lost by the server, not to a slow machine.
    patient = ("--running", str(n), "--timeout", "280", "--drain", "280")
    with Process(bundle, *patient) as server, ThreadPoolExecutor(n) as pool:
        limits = httpx.Limits(max_connections=n + 4)
        with httpx.Client(base_url=server.url, timeout=300, limits=limits) as client:
            assert client.get("/health/ready").status_code == 200
            waiting = all_at_once(client, pool, body, n)
            server.process.send_signal(signal.SIGTERM)
            answers = [future.result() for future in waiting]
        assert [answer.status_code for answer in answers] == [200] * n
        orders = [[entry["index"] for entry in a.json()["results"]] for a in answers]
        assert all(sorted(order) == list(range(40)) for order in orders)
        assert all(order == orders[0] for order in orders)
        assert server.process.wait(timeout=60) == 0
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url + "/health/live", timeout=5)
        assert not children(server.process.pid)


def children(pid: int) -> list[str]:
    """Processes whose parent was this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(pid):
            found.append(path.parent.name)
    return found


def test_sigterm_loses_no_request_in_flight(run_dir: Path, reranker: Reranker) -> None:
    drain(run_dir / "bundle", reranker, 8)


@pytest.mark.slow
def test_20_sigterms_with_32_in_flight(run_dir: Path, reranker: Reranker) -> None:
    for _ in range(20):
        drain(run_dir / "bundle", reranker, 32)


@pytest.mark.slow
def test_a_second_signal_ends_it_now(run_dir: Path, reranker: Reranker) -> None:
    body = {
        "history": ids(reranker, 0),
        "documents": ids(reranker, *range(50, 150)),
        "decode": {"decoder": "ar"},
    }
    with Process(run_dir / "bundle") as server, ThreadPoolExecutor(16) as pool:
        limits = httpx.Limits(max_connections=40)
        with httpx.Client(base_url=server.url, timeout=120, limits=limits) as client:
            waiting = all_at_once(client, pool, body, 16)
            server.process.send_signal(signal.SIGTERM)
            while not drains(client):  # two signals that wait at once would be delivered as one
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(timeout=30)
            failed = [future.exception() for future in waiting]
        assert code == 1
        assert any(error is not None for error in failed)


def test_a_port_that_is_taken_is_one_line(run_dir: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        command = [sys.executable, "-m", "diffgr2.cli", "serve", "--model", str(run_dir / "bundle")]
        done = subprocess.run(
            [*command, "--force", "--port", str(port)], capture_output=True, text=True, timeout=120
        )
    said = [line for line in done.stderr.splitlines() if "bundle" not in line]  # what it is worth
    why = "address already in use; --port 0 takes a free one"
    told = f"error: 127.0.0.1:{port}: the server could not start there ({why})"
    assert (done.returncode, said, done.stdout) == (2, [told], "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0: needs --keys"),
        (["--keys", "/nowhere/keys"], "/nowhere/keys: cannot be read"),
    ],
)
def test_wrong_options_are_one_line(run_dir, options, message, capsys) -> None:
    from diffgr2.cli import run

    assert run(["serve", "-m", str(run_dir / "bundle"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
