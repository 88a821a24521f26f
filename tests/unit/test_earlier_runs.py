"""A run's directory that the first version made: understood, told in a line, left as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffgr2.cli import run

FIRST = Path(__file__).parents[1] / "golden" / "run-1"
"""Its note, and two manifests without their files."""


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(FIRST, tmp_path / "old")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, stdout, and what is said besides warnings about earlier names."""
    code = run([*arguments])
    out, err = capsys.readouterr()
    return code, out, [line for line in err.splitlines() if not line.startswith("warning: ")]


def test_status_says_what_outdated_it(old: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    code, out, err = told(capsys, "status", str(old))
    assert (code, err) == (0, [])
    assert ["data", "outdated"] in [line.split()[:2] for line in out.splitlines()]
    assert "data.repeats: no such key → " in out
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_its_report_is_refused_with_the_command_that_helps(old: Path, capsys) -> None:
    code, out, err = told(capsys, "report", str(old))
    assert (code, out) == (3, "")
    assert err == [
        f"error: {old}: its candidate lists are those of another version, recipe or file "
        f"(what differs: diffgr2 status {old}; anew: diffgr2 run micro --runs {old})"
    ]


def test_it_is_no_side_of_a_comparison(old: Path, capsys) -> None:
    code, out, err = told(capsys, "compare", str(old), str(old))
    assert (code, out) == (3, "")
    assert err == [f"error: {old}: no report stands there (run: diffgr2 report {old})"]


def test_earlier_names_in_its_note_are_told(old: Path, capsys) -> None:
    run(["status", str(old)])
    err = capsys.readouterr().err
    assert f"{old}/run.json: decode.rule: permutation is called decode.rule: grammar now" in err
    assert "traces.llm.backoff_s is no longer read" in err
