"""The journal keeps every record that `append` returned from, whatever ends its process or file."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.errors import ArtifactError
from diffgr2.traces.journal import content_key, open_journal

# Newlines and lone surrogates included; pairs of them are one character, as in any JSON.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40).map(
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"key": st.text("0123456789abcdef", min_size=1), "text": TEXTS, "tokens": st.integers()},
        optional={"price": st.floats(allow_nan=False, allow_infinity=False)},
    ),
    max_size=8,
    unique_by=lambda record: record["key"],
)
FOLDERS = settings(max_examples=60, deadline=None)

WRITER = """
import sys
from pathlib import Path
from diffgr2.traces.journal import open_journal
with open_journal(Path(sys.argv[1])) as journal:
    for n in range(int(sys.argv[2]), int(sys.argv[3])):
        journal.append([{"key": f"{n}", "text": "é\\n" * n}, {"key": f"{n}b"}])
        print(n, flush=True)
    sys.stdin.read()
"""


@contextmanager
def writer(path: Path, first: int, last: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that appends two records per number, tells each number and is killed at the end."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(last)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -9


def held(path: Path, count: int) -> int:
    """How many numbers a journal holds; fails unless they are whole and without a gap."""
    with open_journal(path) as journal:
        found = [[journal.get(f"{n}"), journal.get(f"{n}b")] for n in range(count)]
    whole = sum(pair[0] is not None for pair in found)
    for n, pair in enumerate(found):
        both = [{"key": f"{n}", "text": "é\n" * n}, {"key": f"{n}b"}]
        assert pair == (both if n < whole else [None, None])
    return whole


@given(records=RECORDS, cut=st.integers(0, 8))
@FOLDERS
def test_what_was_appended_is_read_back_by_the_next_process(records, cut):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.sqlite"
        with open_journal(path) as journal:
            journal.append(records[:cut])
            for record in records[cut:]:
                journal.append([record])
                assert journal.get(record["key"]) == record
        with open_journal(path) as journal:
            assert [journal.get(record["key"]) for record in records] == records
            assert journal.get("none") is None
        assert [p.name for p in Path(folder).iterdir()] == ["j.sqlite"]
        assert path.stat().st_mode & 0o077 == 0


def test_a_process_killed_while_it_writes_loses_nothing_that_it_was_told_is_kept(tmp_path):
    path, kept = tmp_path / "j.sqlite", 0
    for kill in range(6):
        told = -1
        with writer(path, kept, 100_000) as child:
            assert child.stdout is not None
            for _ in range(1 + 7 * kill):
                told = int(child.stdout.readline())
        now = held(path, told + 1000)
        assert now > told
        kept = now
    assert kept > 60


def test_a_log_cut_at_any_place_keeps_a_whole_beginning(tmp_path):
    path = tmp_path / "j.sqlite"
    with writer(path, 0, 12) as child:
        assert child.stdout is not None
        assert [int(child.stdout.readline()) for _ in range(12)] == list(range(12))
    log = Path(f"{path}-wal").read_bytes()
    counts = []
    for part in range(40):
        copy = tmp_path / f"{part}" / path.name
        copy.parent.mkdir()
        shutil.copy(path, copy)
        Path(f"{copy}-wal").write_bytes(log[: len(log) * part // 39])
        counts.append(held(copy, 12))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 12)


def test_a_second_writer_is_refused_and_the_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "j.sqlite"
    with writer(path, 0, 1) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        with (
            pytest.raises(ArtifactError, match=r"j\.sqlite: in use by another process$"),
            open_journal(path),
        ):
            pass
    with open_journal(path) as journal:
        assert journal.get("0b") == {"key": "0b"}
        with pytest.raises(ArtifactError, match="in use"), open_journal(path):
            pass
        journal.append([{"key": "1"}])


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path):
    path = tmp_path / "j.sqlite"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_journal(path) as journal:
        journal.append([{"key": "a"}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
        try:
            with pytest.raises(ArtifactError, match=r"j\.sqlite: cannot be written \("):
                journal.append([{"key": "b"}, {"key": "c", "text": "x" * 200_000}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.get("b") is None
        journal.append([{"key": "b"}])
    with open_journal(path) as journal:
        assert [journal.get(key) is None for key in "abc"] == [False, False, True]


def test_a_key_is_never_written_twice(tmp_path):
    with open_journal(tmp_path / "j.sqlite") as journal:
        journal.append([{"key": "a", "n": 1}])
        for records in ([{"key": "c"}, {"key": "a"}], [{"key": "b"}, {"key": "b"}]):
            with pytest.raises(ArtifactError, match=r"cannot be written \(UNIQUE"):
                journal.append(records)
        assert [journal.get(key) for key in "abc"] == [{"key": "a", "n": 1}, None, None]


def test_a_path_that_cannot_hold_a_journal_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "lines.jsonl").write_text(json.dumps({"key": "a"}) * 100)
    for path in (
        tmp_path,
        tmp_path / "file" / "j.sqlite",
        tmp_path / "lines.jsonl",
    ):
        with pytest.raises(ArtifactError, match=r": cannot be opened \(.*\)$"), open_journal(path):
            pass


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "j.sqlite"
    with open_journal(path) as journal:
        journal.append([{"key": f"{n}", "text": "x" * 3000} for n in range(20)])
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with open_journal(path) as journal, pytest.raises(ArtifactError, match="cannot be read"):
        [journal.get(f"{n}") for n in range(20)]


@given(TEXTS, TEXTS, st.integers(0, 99))
def test_keys_do_not_depend_on_dict_order_and_differ_with_every_part(model, text, sample):
    messages = [{"role": "user", "content": text}]
    sampling = {"temperature": 0.5, "max_tokens": 9}
    key = content_key(model, messages, sampling, sample)
    turned = [{"content": text, "role": "user"}]
    assert key == content_key(model, turned, dict(reversed(sampling.items())), sample)
    others = {
        content_key(model + "x", messages, sampling, sample),
        content_key(model, [{"role": "user", "content": text + "x"}], sampling, sample),
        content_key(model, messages, {**sampling, "temperature": 0.6}, sample),
        content_key(model, messages, sampling, sample + 1),
    }
    assert len(others | {key}) == 5


def test_keys_stay_the_same_across_releases():
    # Journals of earlier versions hold paid answers: this value must never change.
    key = content_key("m", [{"role": "user", "content": "é"}], {"temperature": 0.8}, 3)
    assert key == "c0845ab7ab133ed91fad8ee5807a20751492353503eca866455621bd30a82801"
