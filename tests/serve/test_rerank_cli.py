"""`diffgr2 rerank`: one request, a file of requests, and what happens to bad lines and kills."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from diffgr2.cli import run
from diffgr2.cli.rerank import rank_file
from diffgr2.rerank.reranker import Reranker


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(["rerank", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def lines(reranker: Reranker) -> list[str]:
    raw = reranker.catalogue.raw_ids
    good = [
        json.dumps({"history": raw[i : i + 2], "candidates": raw[30 + i : 34 + i]})
        for i in range(9)
    ]
    bad = [
        "not json",
        "",
        '{"history": [], "candidates": ["zqx"], "strict": true}',
        '{"history": [], "history": [], "candidates": ["a"]}',
        '{"history": [], "candidates": [], "extra": 1}',
        '{"history": [], "candidates": "a"}',
        "[1]",
        '{"candidates": ["a"]}',
    ]
    return [line for pair in zip(good, [*bad, '{"user": 3}'], strict=True) for line in pair]


def test_a_run_is_no_bundle_and_says_where_it_is(run_dir: Path, capsys) -> None:
    assert call(capsys, "-m", run_dir, "--history", "a", "-c", "b") == (
        *(3, ""), f"error: {run_dir}: a run's directory (its bundle: {run_dir / 'bundle'})\n",
    )  # fmt: skip


def test_one_request_by_options(run_dir: Path, reranker: Reranker, capsys) -> None:
    raw, titles = reranker.catalogue.raw_ids, reranker.catalogue.titles
    options = [o for item in raw[30:34] for o in ("-c", item)]
    code, out, _ = call(capsys, "-m", run_dir / "bundle", "-H", raw[0], *options, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["items"] == list(reranker.rank([raw[0]], raw[30:34]).items)
    code, out, _ = call(capsys, "-m", run_dir / "bundle", "-H", raw[0], *options)
    assert code == 0
    assert all(title.split()[0] in out for title in titles[30:34])
    assert " forward" in out


def test_one_request_on_stdin(run_dir: Path, reranker: Reranker, capsys, monkeypatch) -> None:
    raw = reranker.catalogue.raw_ids
    request = {"history": raw[:2], "candidates": raw[30:34], "decode": {"decoder": "ar"}}

    def given(text: str) -> None:
        stream = io.TextIOWrapper(io.BytesIO(text.encode()))
        monkeypatch.setattr(sys, "stdin", stream)

    given(json.dumps(request))
    code, out, _ = call(capsys, "-m", run_dir / "bundle", "--json", "--decoder", "verify")
    assert code == 0
    assert json.loads(out)["decode"]["decoder"] == "verify"
    given('{"history": [], "candidates": ["zqx"]}')
    code, out, err = call(capsys, "-m", run_dir / "bundle", "--json")
    assert (code, json.loads(out)["placed"]) == (0, ["kept"])
    assert err.startswith("warning: candidates[0]: 'zqx' keeps its place")
    given('{"history": [], "candidates": ["zqx"]}')
    code, out, err = call(capsys, "-m", run_dir / "bundle", "--strict")
    assert (code, out) == (2, "")
    assert err == "error: candidates[0]: no such item, and none of its words is known\n"


def test_every_line_gives_one_line_in_order(run_dir, tmp_path, lines, reranker, capsys) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    code, out, err = call(capsys, "-m", run_dir / "bundle", "-i", source, "-o", output)
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert code == 0
    assert len(answers) == len(lines)
    assert ["error" in answer for answer in answers] == [False, True] * 9
    assert out == f"{output}: 9 rankings, 9 bad lines\n"
    assert "line 2: not valid JSON" in err
    for line, answer in zip(lines[::2], answers[::2], strict=True):
        assert answer["items"] == list(reranker.rank(**json.loads(line)).items)


def test_a_cut_output_is_continued_to_the_same_bytes(reranker, tmp_path, lines) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines))
    assert rank_file(reranker, source, output, top_k=None, batch=3) == (18, 9)
    whole = output.read_bytes()
    for cut in (0, 1, len(whole) // 3, whole.index(b"\n") + 1, len(whole) - 1, len(whole)):
        output.write_bytes(whole[:cut])
        assert rank_file(reranker, source, output, top_k=None, batch=2) == (18, 9)
        assert output.read_bytes() == whole


def test_an_output_of_another_input_is_refused(run_dir, tmp_path, lines, reranker, capsys) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(lines[0])
    rank_file(reranker, source, output, top_k=None, batch=2)
    before = output.read_bytes()
    source.write_text(lines[2])
    code, _, err = call(capsys, "-m", run_dir / "bundle", "-i", source, "-o", output)
    assert code == 2
    assert "line 1 does not belong to line 1" in err
    assert output.read_bytes() == before


def test_rules_are_options(run_dir: Path, reranker: Reranker, capsys) -> None:
    raw = reranker.catalogue.raw_ids[30:34]
    options = ["-H", reranker.catalogue.raw_ids[0], *(o for item in raw for o in ("-c", item))]
    rules = [
        "--pin",
        raw[2],
        "--exclude",
        raw[1],
        "--boost",
        f"{raw[3]}=-9",
        "--max-per",
        "brand=1",
    ]
    code, out, _ = call(capsys, "-m", run_dir / "bundle", *options, *rules, "--json")
    answer = json.loads(out)
    assert code == 0
    assert answer["items"] == [raw[2], raw[0], raw[3]]
    assert answer["placed"][0] == "pinned"
    code, out, _ = call(capsys, "-m", run_dir / "bundle", *options, "--pin", f"{raw[0]}=4")
    assert code == 0
    assert "The shop placed" in out
    assert "pinned" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "a", "--boost", "a"], "--boost: expected NAME=NUMBER"),
        (["-c", "a", "--max-per", "brand=x"], "--max-per: expected NAME=NUMBER"),
        (["-c", "a", "--boost", "a=1", "--boost", "a=2"], "--boost: one name stands twice"),
        (["-c", "a", "--pin", "a", "--pin", "b=2"], "--pin: give a place to all or to none"),
        (["-c", "a", "--pin", "a", "--exclude", "a"], "pin: 'a' is excluded as well"),
        (["-i", "x.jsonl"], "--output: needed with --input"),
        (["-i", "x.jsonl", "-o", "y", "-c", "a"], "--input: its lines hold the requests"),
        (["-i", "nowhere.jsonl", "-o", "y"], "nowhere.jsonl: no such file"),
        (["-m", "nowhere", "-c", "a"], "nowhere: no such directory"),
    ],
)
def test_wrong_options_are_one_line(run_dir, capsys, options, message) -> None:
    code, _, err = call(capsys, "-m", run_dir / "bundle", *options)
    assert code in (2, 3)
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
