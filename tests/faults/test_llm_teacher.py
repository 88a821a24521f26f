"""The llm teacher against a real HTTP server that fails, and against its own death."""

from __future__ import annotations

import asyncio
import hashlib
import io
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from diffgr2.errors import ArtifactError, ConfigError, MissingExtraError, RemoteError
from diffgr2.progress import Progress
from diffgr2.traces.journal import open_journal
from diffgr2.traces.llm import generate
from support.endpoint import (
    DRIP,
    HANG,
    RESET,
    SECRET,
    Endpoint,
    K,
    chat_body,
    error,
    figures,
    http,
    ordered,
    prompt,
    quiet,
    records_of,
    run,
    samples,
    settings,
)

pytest.importorskip("openai")


# -------------------------------------------------------------------- 20 % faults and ten deaths


def draw(*parts: object) -> float:
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2**64


def faulty(endpoint_faults: Counter[str]) -> Callable[[str, dict[str, Any], int], bytes]:
    """One request in five fails, in one of seven ways, as a function of question and try."""

    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        good = http(200, chat_body([ordered(int(draw(question) * K))]))
        # A question that failed eight times in a row is spared, so that no test hangs on luck.
        if draw("fault", question, tries) >= 0.2 or tries % 9 == 0:
            return good
        kind = int(draw("kind", question, tries) * 7)
        endpoint_faults[str(kind)] += 1
        past = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)
        return [
            error(429, "slow down", "Retry-After: 0.02"),
            error(429, "slow down", f"Retry-After: {past}"),
            error(500, "broken"),
            http(200, good.split(b"\r\n\r\n", 1)[1][:60]),  # cut JSON, right length
            http(200, b'{"cut short', length=500),  # cut connection
            RESET,
            HANG if draw("hang", question, tries) < 0.2 else http(200, chat_body([])),
        ][kind]

    return answer


def generate_all(url: str, journal: Path, count: int) -> None:
    """The process that is killed."""
    config = settings(url, timeout_s=3.0, retries=40, concurrency=16)
    generate([prompt(i) for i in range(count)], config, journal, quiet())


def battery(tmp_path: Path, count: int, kills: int) -> None:
    path = tmp_path / "journal.sqlite"
    context = multiprocessing.get_context("forkserver")  # a clean process, loaded only once
    context.set_forkserver_preload(["openai.resources.chat", "diffgr2.traces.llm"])
    faults: Counter[str] = Counter()
    with Endpoint(faulty(faults)) as endpoint:
        arguments = (endpoint.url, path, count)
        for kill in range(kills):
            child = context.Process(target=generate_all, args=arguments)
            child.start()
            # Each death falls at another fill of the journal and at whatever the child does then.
            goal = count * (kill + draw("moment", kill)) / (kills + 1)
            while endpoint.paid.total() < goal:
                assert child.is_alive()
                time.sleep(0.002)
            child.kill()
            child.join()
            assert child.exitcode == -9
        child = context.Process(target=generate_all, args=arguments)
        child.start()
        child.join()
        assert child.exitcode == 0

        records = records_of(path)
        assert len(records) == len({record["key"] for record in records}) == count
        assert sorted(record["id"] for record in records) == sorted(f"p{i}" for i in range(count))
        # Paid twice: at most what was in flight at each death (and a few time-outs of answers that
        # were on their way, where the machine is slow).
        assert endpoint.paid.total() <= count + kills * 16 + count // 20
        sent = len(endpoint.requests)
        assert len(faults) == 7
        assert 0.12 < faults.total() / sent < 0.28

        prompts = [prompt(i) for i in range(count)]
        report = generate(prompts, settings(endpoint.url), path, quiet())
        assert len(endpoint.requests) == sent
    assert figures(report, "calls", "prompts", "samples") == (0, count, count)
    assert [one.id for one in report.accepted] == [p.id for p in prompts]
    for one in report.accepted:
        assert one.answer.order[0] == int(draw(f"question {one.id[1:]}") * K)
    paid = figures(report, "prompt_tokens", "completion_tokens")
    assert paid == (10 * count, 3 * count)


def test_300_prompts_with_faults_and_4_kills_lose_and_repeat_nothing(tmp_path):
    battery(tmp_path, count=300, kills=4)


@pytest.mark.slow
def test_2000_prompts_with_faults_and_10_kills_lose_and_repeat_nothing(tmp_path):
    battery(tmp_path, count=2000, kills=10)


# ------------------------------------------------------------------------- faults, one at a time


@pytest.mark.parametrize(
    "fault",
    [
        error(429, "slow", "Retry-After: 0"),
        error(500, "broken"),
        error(503, "busy", "retry-after-ms: 1"),
        error(408, "late"),
        error(409, "not now"),
        HANG,
        RESET,
        b"garbage cut short\r\n\r\n",
        http(200, b'{"choices": [{"cut short', length=900),
        http(200, b'{"choices": [{"inde'),
        http(200, b'{"choices": "\xff"}'),
        http(200, b"[1]"),
        http(200, b'{"choices": null}'),
        http(200, b'{"choices": [{"message": null}]}'),
        http(200, b'{"choices": [{"message": {"content": 5}}]}'),
        http(200, chat_body([])),
    ],
)
def test_a_fault_of_the_moment_is_asked_again(tmp_path, fault):
    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        return fault if tries == 1 else http(200, chat_body([ordered(0)]))

    with Endpoint(answer) as endpoint:
        timeout = 0.3 if fault == HANG else 20.0
        report = run(endpoint, tmp_path, [prompt(0)], timeout_s=timeout, retries=20)
        assert len(endpoint.requests) == 2 or fault == HANG  # a slow machine may time out again
    assert (len(report.accepted), report.metrics["samples"]) == (1, 1)


@pytest.mark.parametrize("fault", [RESET, http(200, chat_body([])), error(500, "broken")])
def test_a_fault_that_stays_is_asked_as_often_as_retries_say(tmp_path, fault):
    with Endpoint(lambda *_: fault) as endpoint:
        with pytest.raises(RemoteError, match=r"1 of 1 prompts unanswered, prompt p0: no "):
            run(endpoint, tmp_path, [prompt(0)], retries=2)
        assert len(endpoint.requests) == 3
    assert records_of(tmp_path / "j.sqlite") == []


def test_a_server_that_drips_bytes_does_not_hold_the_run(tmp_path):
    with Endpoint(lambda *_: DRIP) as endpoint:
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"prompt p0: no answer within 1 s"):
            run(endpoint, tmp_path, [prompt(0)], timeout_s=0.5, retries=1)
    assert 0.9 < time.monotonic() - began < 15


def test_the_wait_is_never_shorter_than_the_endpoint_asks(tmp_path):
    moments: list[float] = []

    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        moments.append(time.monotonic())
        good = http(200, chat_body([ordered(0)]))
        return error(429, "slow", "Retry-After: 1.4") if tries == 1 else good

    with Endpoint(answer) as endpoint:
        run(endpoint, tmp_path, [prompt(0)])
    assert moments[1] - moments[0] >= 1.4  # more than the package's own first wait


def test_an_endpoint_that_asks_for_an_hour_ends_the_run_with_one_line(tmp_path):
    with Endpoint(lambda *_: error(429, "later", "Retry-After: 3600")) as endpoint:
        with pytest.raises(RemoteError, match=r"3 prompts in a row unanswered.*HTTP 429.*later"):
            run(endpoint, tmp_path, [prompt(i) for i in range(9)], concurrency=1)
        assert len(endpoint.requests) == 3


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refused_prompt_is_written_down_and_the_others_go_on(tmp_path, status):
    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        if question == "question 3":
            return error(status, "too long for me")
        return http(200, chat_body([ordered(0)]))

    with Endpoint(answer) as endpoint:
        prompts = [prompt(i) for i in range(6)]
        for _ in range(2):
            report = run(endpoint, tmp_path, prompts)
            assert [t.id for t in report.accepted] == ["p0", "p1", "p2", "p4", "p5"]
            assert figures(report, "refused", "samples") == (1, 5)
            assert len(endpoint.requests) == 6  # the second run asks nothing
    refused = [r for r in records_of(tmp_path / "j.sqlite") if r["kind"] == "refused"]
    assert [(r["id"], r["status"]) for r in refused] == [("p3", status)]
    assert "too long for me" in refused[0]["reason"]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_an_endpoint_that_refuses_us_ends_the_run_with_one_line(tmp_path, monkeypatch, status):
    monkeypatch.delenv("DIFFGR2_TEST_KEY", raising=False)
    with Endpoint(lambda *_: error(status, "go away")) as endpoint:
        with pytest.raises(RemoteError) as caught:
            run(endpoint, tmp_path, [prompt(i) for i in range(50)], concurrency=2)
        assert len(endpoint.requests) <= 2
    message = str(caught.value)
    assert f"{endpoint.url}: HTTP {status}: " in message
    assert "go away" in message
    assert "the variable DIFFGR2_TEST_KEY is not set" in message
    assert "\n" not in message


def test_an_empty_purse_is_not_a_rate_limit(tmp_path):
    with Endpoint(lambda *_: error(429, "pay first", code="insufficient_quota")) as endpoint:
        with pytest.raises(RemoteError, match="no quota left"):
            run(endpoint, tmp_path, [prompt(i) for i in range(9)], retries=1, concurrency=1)
        assert set(endpoint.tries) == {"question 0"}


def test_unanswered_prompts_end_the_run_after_all_others_are_kept(tmp_path):
    sick = True

    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        if question == "question 1" and sick:
            return error(500, "broken")
        return http(200, chat_body([ordered(0)]))

    with Endpoint(answer) as endpoint:
        prompts = [prompt(i) for i in range(5)]
        with pytest.raises(RemoteError, match=r"1 of 5 prompts unanswered, prompt p1: no answer"):
            run(endpoint, tmp_path, prompts, retries=2)
        assert endpoint.tries["question 1"] == 3
        assert len(records_of(tmp_path / "j.sqlite")) == 4
        sick = False
        report = run(endpoint, tmp_path, prompts, retries=2)
        assert (len(report.accepted), report.metrics["calls"]) == (5, 1)


def test_an_endpoint_that_is_down_is_given_up_early(tmp_path):
    with (
        Endpoint(lambda *_: RESET) as endpoint,
        pytest.raises(RemoteError, match="3 prompts in a row unanswered"),
    ):
        run(endpoint, tmp_path, [prompt(i) for i in range(400)], retries=1, concurrency=3)
    assert len(endpoint.requests) <= 2 * 3 * 2
    url = endpoint.url  # nobody listens there any more
    with pytest.raises(RemoteError, match="unanswered"):
        generate([prompt(0)], settings(url, retries=1), tmp_path / "k.sqlite", quiet())


def test_a_disk_that_fills_up_ends_the_run_and_the_next_one_asks_only_for_the_rest(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Endpoint(samples(ordered(0))) as endpoint:
        prompts = [prompt(i) for i in range(40)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(ArtifactError, match=r"j\.sqlite: cannot be written \("):
                run(endpoint, tmp_path, prompts, concurrency=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        kept = len(records_of(tmp_path / "j.sqlite"))
        assert kept == len(endpoint.requests) - 1 > 0
        report = run(endpoint, tmp_path, prompts, concurrency=1)
    assert (len(report.accepted), report.metrics["calls"]) == (40, 40 - kept)


def test_it_runs_inside_a_running_event_loop(tmp_path):
    async def notebook(endpoint: Endpoint) -> int:
        return len(run(endpoint, tmp_path, [prompt(0)]).accepted)

    with Endpoint(samples(ordered(0))) as endpoint:
        assert asyncio.run(notebook(endpoint)) == 1


def test_no_more_than_the_allowed_calls_are_in_flight(tmp_path):
    with Endpoint(lambda *_: HANG) as endpoint:
        with pytest.raises(RemoteError):
            run(
                endpoint,
                tmp_path,
                [prompt(i) for i in range(12)],
                retries=0,
                concurrency=3,
                timeout_s=0.5,
            )
        # All three slots failed once before a fourth in a row could: two rounds at the most.
        assert 3 <= len(endpoint.requests) <= 6


# ------------------------------------------------------------------------------ secrets and inputs


def test_the_api_key_reaches_the_endpoint_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGR2_TEST_KEY", SECRET)
    out = io.StringIO()

    def answer(question: str, request: dict[str, Any], tries: int) -> bytes:
        if question == "question 0":
            return error(400, f"key {SECRET} cannot do this")
        if question == "question 1":
            return http(200, chat_body([f"you are {SECRET}"]))
        return error(401, f"Incorrect API key: {SECRET}")

    with Endpoint(answer) as endpoint:
        config = settings(endpoint.url, n=1, concurrency=1)
        arguments = (config, tmp_path / "j.sqlite", Progress(out, every_s=0.0))
        report = generate([prompt(0), prompt(1)], *arguments)
        with pytest.raises(RemoteError) as caught:
            generate([prompt(2)], *arguments)
        assert all(f"Bearer {SECRET}" in head for head in endpoint.headers)
    assert "Incorrect API key: ***" in str(caught.value)
    assert report.metrics["refused"] == 1
    everything = [str(report), str(caught.value), out.getvalue()]
    everything += [p.read_bytes().decode("latin-1") for p in tmp_path.iterdir()]
    assert SECRET not in "".join(everything)
    assert "you are ***" in "".join(everything)


def test_wrong_inputs_are_one_line_before_anything_is_sent(tmp_path, monkeypatch):
    with Endpoint(samples(ordered(0))) as endpoint:
        monkeypatch.setenv("DIFFGR2_TEST_KEY", "bad\nkey")
        with pytest.raises(ConfigError, match="DIFFGR2_TEST_KEY: the key holds characters"):
            run(endpoint, tmp_path, [prompt(0)])
        monkeypatch.delenv("DIFFGR2_TEST_KEY")
        with pytest.raises(ConfigError, match=r"base_url: ftp://x is no http\(s\) address"):
            run(endpoint, tmp_path, [prompt(0)], base_url="ftp://x")
        with (
            open_journal(tmp_path / "j.sqlite"),
            pytest.raises(ArtifactError, match="in use by another process"),
        ):
            run(endpoint, tmp_path, [prompt(0)])
        assert endpoint.requests == []


def test_without_the_client_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    config = settings("http://127.0.0.1:9/v1")
    with pytest.raises(MissingExtraError, match=r"diffgr2\[llm\]"):
        generate([prompt(0)], config, tmp_path / "j.sqlite", quiet())
