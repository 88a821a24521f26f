"""The journal keeps every complete record, whatever happens to the file's end or middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.errors import ArtifactError
from diffgr2.traces.journal import (
    Journal,
    content_key,
    decode,
    encode,
    quarantine_path,
    report_lines,
)

# Newlines and lone surrogates included; pairs of them are one character, as in any JSON.
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40).map(
    lambda text: text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
)
RECORDS = st.lists(
    st.fixed_dictionaries(
        {"key": TEXTS.filter(bool), "text": TEXTS, "tokens": st.integers()},
        optional={"price": st.floats(allow_nan=False, allow_infinity=False)},
    ),
    max_size=8,
    unique_by=lambda record: record["key"],
)
FOLDERS = settings(max_examples=80, deadline=None)


def write(path: Path, records: list[dict]) -> bytes:
    with Journal(path, sync=False) as journal:
        for record in records:
            journal.append(record)
    return path.read_bytes()


@given(records=RECORDS)
@FOLDERS
def test_what_was_appended_is_read_back_by_the_next_process(records):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        data = write(path, records)
        with Journal(path, sync=False) as journal:
            assert len(journal) == len(records)
            assert [journal.get(r["key"]) for r in records] == records
            assert (journal.torn_bytes, journal.damaged) == (0, ())
        assert path.read_bytes() == data


@given(records=RECORDS, cut=st.floats(0, 1))
@FOLDERS
def test_a_file_cut_at_any_byte_keeps_all_records_before_the_cut_and_takes_the_rest_again(
    records, cut
):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        data = write(path, records)
        end = round(cut * len(data))
        path.write_bytes(data[:end])
        # A record is whole if all of its JSON is there; its newline may be missing.
        whole, position = 0, 0
        for record in records:
            position += len(encode(record))
            whole += position - 1 <= end
        with Journal(path, sync=False) as journal:
            assert [journal.get(r["key"]) for r in records] == records[:whole] + [None] * (
                len(records) - whole
            )
            assert journal.damaged == ()
            journal.append(*records[whole:])
        assert path.read_bytes() == data


def test_every_single_cut_of_one_file_is_recovered(tmp_path):
    path = tmp_path / "j.jsonl"
    records = [{"key": f"k{i}", "text": "é\n" * i} for i in range(4)]
    data = write(path, records)
    for end in range(len(data) + 1):
        path.write_bytes(data[:end])
        whole = data[:end].count(b"\n") + (end > 0 and data[end : end + 1] == b"\n")
        with Journal(path, sync=False) as journal:
            assert len(journal) == whole, end


@given(
    records=RECORDS.filter(lambda r: len(r) >= 2), where=st.integers(0), flip=st.integers(1, 255)
)
@FOLDERS
def test_one_flipped_byte_in_the_middle_never_changes_a_record_unnoticed(records, where, flip):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.jsonl"
        data = bytearray(write(path, records))
        at = where % (len(data) - 1)  # the last newline is the torn tail's case
        data[at] ^= flip
        path.write_bytes(data)
        with Journal(path, sync=False) as journal:
            for record in records:
                assert journal.get(record["key"]) in (record, None)
            lost = sum(record["key"] not in journal for record in records)
            assert lost <= 2  # a lost newline takes both its neighbours
            assert lost == 0 or journal.damaged or journal.torn_bytes
            journal.append(*[r for r in records if r["key"] not in journal])
        with Journal(path, sync=False) as journal:
            assert all(journal.get(r["key"]) == r for r in records)


def test_damaged_middle_lines_are_put_aside_with_their_numbers_and_asked_anew(tmp_path):
    path = tmp_path / "j.jsonl"
    write(path, [{"key": k, "text": k} for k in "abcd"])
    lines = path.read_bytes().split(b"\n")
    lines[1] = b"{not json"
    lines[2] = lines[2].replace(b'"text":"c"', b'"text":"x"')
    lines.insert(3, lines[0])
    lines.insert(4, b"[1]")
    lines.insert(5, b'{"key":"z","n":NaN,"sum":"0"}')
    path.write_bytes(b"\n".join(lines))
    for _ in range(2):  # opening again says the same, not more
        with Journal(path) as journal:
            assert [(d.line, d.reason) for d in journal.damaged] == [
                (2, "not JSON"),
                (3, "checksum differs"),
                (4, "key stands twice"),
                (5, "not a record"),
                (6, "checksum differs"),
            ]
            assert [key in journal for key in "abcd"] == [True, False, False, True]
            assert len(report_lines(journal)) == 5
            assert "line 2: not JSON" in report_lines(journal)[0]
        rows = [json.loads(row) for row in quarantine_path(path).read_text().splitlines()]
        assert [row["line"] for row in rows] == [2, 3, 4, 5, 6]
        assert rows[0]["raw"] == "{not json"


def test_a_second_writer_is_refused_and_the_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "j.jsonl"
    script = (
        "import sys, time\nfrom diffgr2.traces.journal import Journal\n"
        f"j = Journal({str(path)!r}); j.append({{'key': 'a'}})\nprint('up', flush=True)\n"
        "time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        with pytest.raises(ArtifactError, match=rf"in use by another process \(pid {child.pid}\)"):
            Journal(path)
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with Journal(path) as journal:
        assert "a" in journal
        with pytest.raises(ArtifactError, match="in use"):
            Journal(path)


def test_a_full_disk_is_one_line_and_leaves_no_half_record(tmp_path, monkeypatch):
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.append({"key": "a"})
        before = path.read_bytes()
        real = os.write

        def half(handle: int, data: memoryview) -> int:
            if len(data) > 8:
                return real(handle, data[:8])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(ArtifactError, match=r"j\.jsonl: cannot be written \(No space left"):
            journal.append({"key": "b", "text": "x" * 19})
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert "b" not in journal
        journal.append({"key": "b"})
    with Journal(path) as journal:
        assert len(journal) == 2
        assert journal.damaged == ()


def test_a_key_is_never_written_twice(tmp_path):
    with Journal(tmp_path / "j.jsonl") as journal:
        journal.append({"key": "a"})
        for records in ([{"key": "a"}], [{"key": "b"}, {"key": "b"}]):
            with pytest.raises(AssertionError, match="a key stands"):
                journal.append(*records)
        assert len(journal) == 1


def test_a_path_that_cannot_hold_a_journal_is_one_line(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be opened"):
        Journal(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be opened"):
        Journal(tmp_path / "file" / "j.jsonl")


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


def test_keys_and_lines_stay_the_same_across_releases():
    # Journals of earlier versions hold paid answers: these two values must never change.
    key = content_key("m", [{"role": "user", "content": "é"}], {"temperature": 0.8}, 3)
    assert key == "c0845ab7ab133ed91fad8ee5807a20751492353503eca866455621bd30a82801"
    line = encode({"key": "k", "text": "é\n", "n": 1})
    assert line == b'{"key":"k","n":1,"sum":"a390d3c67d961174","text":"\\u00e9\\n"}\n'
    assert decode(line[:-1]) == {"key": "k", "text": "é\n", "n": 1}
