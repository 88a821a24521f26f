"""Broken outputs, TREC ids and READMEs: one exact line each, never a traceback."""

from __future__ import annotations

import numpy as np
import pytest
from readme_table import main, rewrite

from diffgr2.artifacts import write_json
from diffgr2.errors import ArtifactError, DataError
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs, save_outputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.trec import write_qrels, write_run
from diffgr2.types import CandidateLists

GOOD = np.array([[0, 1, 2], [2, 1, 0]])
META = {"recipe": "r", "data": "d", "tie_order": "file", "commit": "c", "command": "x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order_LK": np.array([[0, 1, 2], [0, 1, 1]])}, "order_LK: row 1 is not a permutation"),
        ({"order_LK": np.array([[0, 1, 2], [0, 1, 3]])}, "order_LK: row 1 is not a permutation"),
        ({"order_LK": np.array([[0, -1, 1], [0, 1, 2]])}, "order_LK: row 0 is not a permutation"),
        ({"order_LK": np.array([[0, 2, -1], [0, 1, 2]])}, "order_LK: row 0 is not a permutation"),
        ({"order_LK": np.array([[0, 1, -2], [0, 1, 2]])}, "order_LK: row 0 is not a permutation"),
        ({"n_lists": 3}, "order_LK has 2 entries, not 3"),
        ({"rows_L": np.array([0])}, "order_LK has 2 entries, not 1"),
        ({"raw_valid_L": np.array([True])}, "raw_valid_L has 1 entries, not 2"),
        ({"contradictions_L": np.zeros(3)}, "contradictions_L has 3 entries, not 2"),
        ({"forced_L": np.zeros(1)}, "forced_L has 1 entries, not 2"),
        ({"levels_LK": np.zeros((2, 4))}, "levels_LK is not 3 wide"),
        ({"chance_LK": np.zeros(2)}, "chance_LK is not 3 wide"),
        ({"failures_LX": np.zeros((3, 5))}, "failures_LX has 3 entries, not 2"),
    ],
)
def test_wrong_outputs_are_refused_where_they_are_made(change, message):
    values = {"name": "ar", "order_LK": GOOD, "n_lists": 2, **change}
    with pytest.raises(DataError) as caught:
        SystemOutputs(**values)
    assert str(caught.value) == f"outputs ar: {message}"


@pytest.mark.parametrize("name", ["ar.json", "ar.safetensors"])
def test_broken_saved_outputs_name_the_file(tmp_path, name):
    save_outputs(tmp_path, SystemOutputs("ar", GOOD, 2))
    kind = {"ar.json": "not valid JSON", "ar.safetensors": "not a readable safetensors file"}[name]
    (tmp_path / name).write_bytes(b"not arrays")
    with pytest.raises(ArtifactError) as caught:
        load_outputs(tmp_path, "ar")
    assert str(caught.value).startswith(f"{tmp_path / name}: {kind}")
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError) as caught:
        load_outputs(tmp_path, "ar")
    assert str(caught.value) == f"{tmp_path / name}: file is missing"


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(DataError, match=r"^mlp: list 1 has a score that is not a number$"):
        order_from_scores(np.array([[1.0, 2.0], [np.nan, 0.0]]), "mlp")


def small_lists() -> CandidateLists:
    number_L = np.arange(2, dtype=np.int32)
    items_LK = np.array([[0, 1, 2], [2, 1, 0]], dtype=np.int32)
    return CandidateLists("test", number_L, number_L, number_L, items_LK, np.zeros((2, 3)))


def test_trec_ids_with_white_space_are_refused(tmp_path):
    lists, outputs = small_lists(), SystemOutputs("t", GOOD, 2)
    with pytest.raises(DataError, match=r"^user 1: id 'a b' cannot stand in a TREC file$"):
        write_qrels(tmp_path / "q", lists, ["a", "a b"], ["x", "y", "z"])
    with pytest.raises(DataError, match=r"^item 2: id '' cannot stand in a TREC file$"):
        write_run(tmp_path / "r", lists, outputs, ["u", "v"], ["x", "y", ""])


def test_trec_run_has_strictly_decreasing_scores_and_raw_ids(tmp_path):
    outputs = SystemOutputs("t", GOOD, 2)
    write_run(tmp_path / "r", small_lists(), outputs, ["u", "v"], ["x", "y", "z"])
    lines = (tmp_path / "r").read_text().splitlines()
    assert lines[:3] == ["u Q0 x 1 3 t", "u Q0 y 2 2 t", "u Q0 z 3 1 t"]
    assert lines[3] == "v Q0 x 1 3 t"  # its floor is z, y, x; position 2 comes first


def test_trec_run_of_some_lists_holds_those_users_alone(tmp_path):
    outputs = SystemOutputs("t", GOOD[:1], 2, rows_L=np.array([1]))
    write_run(tmp_path / "r", small_lists(), outputs, ["u", "v"], ["x", "y", "z"])
    lines = (tmp_path / "r").read_text().splitlines()
    assert lines == ["v Q0 z 1 3 t", "v Q0 y 2 2 t", "v Q0 x 3 1 t"]
    write_qrels(tmp_path / "q", small_lists(), ["u", "v"], ["x", "y", "z"])
    assert (tmp_path / "q").read_text() == "u 0 x 1\nv 0 y 1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results:demo -->\n", "results:demo: no single closing mark follows"),
        (
            "<!-- results:demo -->\n<!-- results:demo -->\n<!-- /results:demo -->",
            "results:demo: the opening mark stands 2 times",
        ),
        (
            "<!-- results:demo -->\n<!-- results:b -->\n<!-- /results:demo -->",
            "results:demo: no single closing mark follows",
        ),
        ("<!-- results:none -->\n<!-- /results:none -->", "none.json: file is missing"),
        ("<!-- results:odd -->\n<!-- /results:odd -->", "odd.json: not a report"),
    ],
)
def test_readme_with_wrong_marks_is_refused(tmp_path, text, message, capsys):
    report = build_report(META, small_lists(), [], resamples=10)
    write_json(tmp_path / "demo.json", report)
    write_json(tmp_path / "odd.json", {"rows": [{"name": "ar"}]})
    with pytest.raises((DataError, ArtifactError)) as caught:
        rewrite(text, tmp_path)
    assert message in str(caught.value)
    readme = tmp_path / "README.md"
    readme.write_text(text)
    assert main([str(readme), str(tmp_path)]) in (2, 3)
    assert readme.read_text() == text
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_readme_command_rewrites_and_checks(tmp_path, capsys):
    write_json(tmp_path / "demo.json", build_report(META, small_lists(), [], resamples=10))
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n\n<!-- results:demo -->\n<!-- /results:demo -->\n")
    arguments = [str(readme), str(tmp_path)]
    assert main([*arguments, "--check"]) == 1
    assert "out of step" in capsys.readouterr().err
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert "| `floor` |" in readme.read_text()
    assert main([str(tmp_path / "absent.md"), str(tmp_path)]) == 2
