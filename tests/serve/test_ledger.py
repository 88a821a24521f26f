"""The files of impressions and feedback: whole lines, rotated, bounded, remembered."""

from __future__ import annotations

import json
import os
import queue
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.traffic import FEEDBACK, IMPRESSIONS, entries_of, file_of, files_of, identity
from diffgr2.errors import ConfigError
from diffgr2.serve.ledger import Ledger, LogTo, UnknownRequestError
from diffgr2.serve.telemetry import Metrics


def event(request: str, item: str = "P1", name: str = "click", **more: Any) -> dict[str, Any]:
    return {"id": request, "item": item, "event": name, "time": 1.0, **more}


def lines(directory: Path, kind: str) -> list[dict[str, Any]]:
    skipped: Counter[str] = Counter()
    found = list(entries_of(directory, kind, skipped))
    assert not +skipped
    return found


def value_of(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(f"diffgr2_{name}_total", labels) or 0.0


def told(ledger: Ledger, *events: dict[str, Any], strict: bool = False) -> list[bool]:
    return ledger.feedback(events, strict=strict).result(timeout=10)


def test_every_line_is_whole_and_in_order(tmp_path: Path) -> None:
    metrics = Metrics()
    ledger = Ledger(LogTo(tmp_path / "log"), metrics)
    for n in range(500):
        ledger.note({"id": f"r{n}", "items": ["\u2028 line", "Ünïcode", "x" * n]})
    assert told(ledger, event("r1"), event("r2")) == [True, True]
    ledger.close()
    assert [line["id"] for line in lines(tmp_path / "log", IMPRESSIONS)] == [
        f"r{n}" for n in range(500)
    ]
    assert value_of(metrics, "impressions", outcome="written") == 500
    assert (tmp_path / "log").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "log").iterdir())


def test_files_rotate_and_the_oldest_go(tmp_path: Path) -> None:
    ledger = Ledger(LogTo(tmp_path, rotate_bytes=1000, keep=3), Metrics())
    for n in range(100):
        ledger.note({"id": f"r{n:03}", "x": "y" * 80})
    ledger.note({"id": "long", "x": "y" * 5000})  # longer than a file should be
    ledger.note({"id": "after"})
    ledger.close()
    files = files_of(tmp_path, IMPRESSIONS)
    assert len(files) == 3
    assert [len(path.read_bytes().splitlines()) for path in files[1:]] == [1, 1]
    assert all(path.stat().st_size <= 1000 for path in (files[0], files[2]))
    ledger = Ledger(LogTo(tmp_path, rotate_bytes=1000), Metrics())
    ledger.note({"id": "later"})
    ledger.close()
    assert [line["id"] for line in lines(tmp_path, IMPRESSIONS)][-2:] == ["after", "later"]
    assert files_of(tmp_path, IMPRESSIONS) == files  # it went on in the last one


def test_an_event_is_stored_once_also_across_restarts(tmp_path: Path) -> None:
    for start in range(3):
        metrics = Metrics()
        ledger = Ledger(LogTo(tmp_path, rotate_bytes=200), metrics)
        fresh = told(ledger, event("r1"), event("r1"), event("r1", name="cart"), event("r2"))
        assert fresh == ([True, False, True, True] if start == 0 else [False] * 4)
        assert value_of(metrics, "feedback", outcome="duplicate") == (1 if start == 0 else 4)
        ledger.close()
    assert len(lines(tmp_path, FEEDBACK)) == 3


def test_an_idempotency_key_is_its_callers_own(tmp_path: Path) -> None:
    ledger = Ledger(LogTo(tmp_path), Metrics())
    one = event("r1", key="k", by="search")
    assert told(ledger, one, event("r2", key="k", by="search"), event("r3", key="k")) == [
        True,
        False,
        True,
    ]
    assert told(ledger, event("r1", key="other", by="search")) == [False]  # the same event
    ledger.close()
    ledger = Ledger(LogTo(tmp_path), Metrics())
    assert told(ledger, event("r4", key="k", by="search"), event("r5", key="k")) == [False, False]
    ledger.close()


def test_a_full_queue_drops_impressions_and_refuses_feedback(tmp_path: Path) -> None:
    metrics, gate = Metrics(), threading.Event()
    ledger = Ledger(LogTo(tmp_path, room=8), metrics)
    write = ledger._logs[IMPRESSIONS].write

    def slowly(entry: dict[str, Any]) -> None:
        gate.wait(30)
        write(entry)

    ledger._logs[IMPRESSIONS].write = slowly  # type: ignore[method-assign]
    for n in range(50):
        ledger.note({"id": f"r{n}"})
    with pytest.raises(queue.Full):
        ledger.feedback([event("r1")], strict=False)
    dropped = value_of(metrics, "impressions", outcome="dropped")
    assert dropped >= 41
    gate.set()
    ledger.close()
    written = value_of(metrics, "impressions", outcome="written")
    assert written + dropped == 50
    assert len(lines(tmp_path, IMPRESSIONS)) == written


def test_feedback_that_cannot_be_written_is_not_remembered(tmp_path: Path) -> None:
    """A full disk takes half a line: the half is taken back, and the event may be sent again."""
    ledger = Ledger(LogTo(tmp_path), Metrics())
    assert told(ledger, event("r1")) == [True]
    log = ledger._logs[FEEDBACK]
    real = os.dup(log.handle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "write", lambda handle, line: os.pwrite(real, line[:20], log.size))
        with pytest.raises(OSError, match="20 of"):
            told(ledger, event("r2"))
    os.close(real)
    assert told(ledger, event("r2"), event("r1")) == [True, False]
    ledger.close()
    assert [line["id"] for line in lines(tmp_path, FEEDBACK)] == ["r1", "r2"]


def test_strict_feedback_needs_an_impression(tmp_path: Path) -> None:
    ledger = Ledger(LogTo(tmp_path), Metrics())
    ledger.note({"id": "before"})
    ledger.close()
    ledger = Ledger(LogTo(tmp_path), Metrics())
    ledger.note({"id": "r1"})
    assert told(ledger, event("before"), event("r1"), strict=True) == [True, True]
    with pytest.raises(UnknownRequestError) as caught:
        told(ledger, event("r1", name="cart"), event("r2"), strict=True)
    assert caught.value.index == 1
    ledger.note({"id": "r2"})
    assert told(ledger, event("r1", name="cart"), event("r2"), strict=True) == [True, True]
    ledger.close()


def test_one_server_per_directory(tmp_path: Path) -> None:
    ledger = Ledger(LogTo(tmp_path), Metrics())
    with pytest.raises(ConfigError, match="another server writes there"):
        Ledger(LogTo(tmp_path), Metrics())
    ledger.close()
    Ledger(LogTo(tmp_path), Metrics()).close()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--log-dir .*: "):
        Ledger(LogTo(tmp_path / "file" / "x"), Metrics())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.binary(min_size=1, max_size=200).map(lambda b: b.replace(b"\n", b"")))
def test_whatever_was_torn_off_is_cut_away(tmp_path_factory, whole: int, tail: bytes) -> None:
    directory = tmp_path_factory.mktemp("torn")
    kept = b"".join(json.dumps(event(f"r{n}")).encode() + b"\n" for n in range(whole))
    for kind in (IMPRESSIONS, FEEDBACK):
        file_of(directory, kind, 1).write_bytes(kept + tail)
    metrics = Metrics()
    ledger = Ledger(LogTo(directory), metrics)
    assert value_of(metrics, "log_torn") == (2 if tail else 0)
    assert told(ledger, *(event(f"r{n}") for n in range(whole + 1))) == [False] * whole + [True]
    ledger.close()
    assert len(lines(directory, FEEDBACK)) == whole + 1
    assert file_of(directory, IMPRESSIONS, 1).read_bytes() == kept


def test_a_long_torn_line_is_cut_too(tmp_path: Path) -> None:
    path = file_of(tmp_path, IMPRESSIONS, 7)
    path.write_bytes(b'{"id": "a"}\n' + b"x" * 200_000)
    Ledger(LogTo(tmp_path), Metrics()).close()
    assert path.read_bytes() == b'{"id": "a"}\n'


@given(st.lists(st.text(max_size=5), max_size=3), st.lists(st.text(max_size=5), max_size=3))
def test_other_words_are_another_event(one: list[str], two: list[str]) -> None:
    assert (identity(*one) == identity(*two)) == (one == two)


def test_a_disk_that_stalls_holds_up_no_line(tmp_path: Path, monkeypatch) -> None:
    """What a kill could lose is what is not written, and syncing is somebody else's work."""
    stalled, gate = threading.Event(), threading.Event()
    real = os.fdatasync

    def slowly(handle: int) -> None:
        stalled.set()
        gate.wait(30)
        real(handle)

    monkeypatch.setattr("diffgr2.serve.ledger.SYNC_S", 0.01)
    monkeypatch.setattr(os, "fdatasync", slowly)
    ledger = Ledger(LogTo(tmp_path), Metrics())
    assert told(ledger, event("r1")) == [True]
    assert stalled.wait(10)
    assert told(ledger, event("r2"), event("r1")) == [True, False]
    assert len(lines(tmp_path, FEEDBACK)) == 2
    gate.set()
    ledger.close()
