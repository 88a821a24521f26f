"""The micro recipe through the command line: every stage, the report, and what runs again."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2.artifacts import load_arrays, read_manifest
from diffgr2.candidates import kinds
from diffgr2.candidates.retrieval import evaluate, prefixes
from diffgr2.data.store import read_dataset
from diffgr2.evaluate.tables import rows_of
from diffgr2.stages.plan import STAGES
from diffgr2.stages.rows import ROWS
from support.names import fields_of, gone

META = {"recipe", "data", "tie_order", "commit", "commits", "command"}
METRICS = {"r@1", "r@3", "r@5", "ndcg@3", "ndcg@5", "ndcg@10", "mrr"}
DOCUMENTED_ROWS = {
    *("floor", "random", "oracle", "id_above", "evidence", "evidence_before"),
    *("ar_direct", "block_direct", "ar"),
    *("naive", "cft", "cft_opd", "cft_opd_rl", "cft_rl", "verify"),
}
HAS = set(STAGES) - {"bundle_ar", "tutor"}
"""What the recipe has and `run` makes."""

LEARNED = ("probes.faithfulness.", "rows[].reasoning_share.")
"""Parts of a report that only a model has that learned something."""

SILENT = {"ar_direct", "ar_direct_written", "block_direct"}  # cite nothing: no reasoning
AFTER_OPD = {
    *("opd", "block_rl", "bundle", "speed", "pace", "probes", "calibrate"),
    *("score_cft_opd", "score_cft_opd_written", "score_cft_opd_raw", "score_block_direct"),
    *("score_cft_opd_rl", "score_cft_opd_rl_written", "score_cft_opd_rl_raw"),
    *("score_student_ar", "score_verify", "score_verify_written"),
}
"""Everything downstream of `opd`, by hand."""


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "diffgr2.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def started(done: subprocess.CompletedProcess[str]) -> set[str]:
    """Stages that ran, from the progress lines."""
    lines = [line.split(":") for line in done.stderr.splitlines()]
    return {line[0] for line in lines if len(line) > 1 and line[1].startswith((" runs", " contin"))}


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Every stage file's time and inode."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_ino)
        for name in STAGES
        for path in (root / name).rglob("*")
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro") / "run"
    done = cli("run", "micro", "--runs", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert started(done) == HAS
    return folder


@pytest.fixture(scope="module")
def report(root: Path) -> dict[str, Any]:
    done = cli("report", str(root), "--trec", "--examples", "3", "--save", str(root / "saved.json"))
    assert done.returncode == 0, done.stderr[-3000:]
    (root / "said.txt").write_text(done.stdout)
    return json.loads((root / "report" / "report.json").read_text())


def test_all_stages_stand(root: Path) -> None:
    for name in HAS:
        manifest = read_manifest(root / name, verify=True)
        assert manifest["stage"] == name
        assert manifest["seed"] == 0
        assert {"torch", "numpy", "diffgr2"} <= set(manifest["versions"])
    assert not list(root.glob(".*.partial"))


def test_a_second_run_does_nothing(root: Path) -> None:
    before = snapshot(root)
    done = cli("run", "micro", "--runs", str(root))
    assert done.returncode == 0, done.stderr
    assert started(done) == set()
    assert snapshot(root) == before


def test_status_says_what_stands(root: Path) -> None:
    done = cli("status", str(root))
    states = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[:-1]}
    assert states == dict.fromkeys(HAS, "stands") | {"bundle_ar": "missing"}
    assert done.stdout.splitlines()[-1].endswith(f"{len(HAS)} of {len(HAS) + 1} stages stand")


def test_a_changed_key_outdates_exactly_its_dependents(root: Path) -> None:
    done = cli("status", "micro", "--runs", str(root), "--set", "opd.steps=2")
    states = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[:-1]}
    assert {name for name, state in states.items() if state == "outdated"} == AFTER_OPD
    assert {name for name, state in states.items() if state == "stands"} == HAS - AFTER_OPD


def test_what_is_outdated_runs_and_nothing_else(root: Path, tmp_path: Path) -> None:
    copy, goal = tmp_path / "run", {"opd", "block_rl", "score_cft_opd_rl"}
    shutil.copytree(root, copy)
    before = {name: read_manifest(copy / name) for name in HAS}
    words = ("--set", "opd.steps=2", "--goal", "score_cft_opd_rl")
    done = cli("run", "micro", "--runs", str(copy), *words)
    assert done.returncode == 0, done.stderr[-3000:]
    assert started(done) == goal
    for name in set(before) - goal:
        assert read_manifest(copy / name, verify=True) == before[name]
    assert read_manifest(copy / "opd")["files"] != before["opd"]["files"]


def test_report_has_the_documented_shape(report: dict[str, Any], root: Path) -> None:
    parts = {"seed", "rows", "speed", "pace", "retriever", "rival", "verdict", "probes"}
    parts |= {"closing", "slices"}
    assert set(report) == META | parts
    assert report["recipe"] == "micro"
    assert report["command"] == "diffgr2 run micro"
    assert json.loads((root / "saved.json").read_text()) == report
    for part in ("same_day", "other_days"):
        rows = {row["name"]: row for row in rows_of(report, part)}
        assert {row["n"] for row in rows.values()} == {rows["floor"]["n"]}
        assert "vs_floor" in rows["ar"]
    days = [rows_of(report, part)[0]["n"] for part in ("hit", "same_day", "other_days")]
    assert days[0] == days[1] + days[2]
    decoded = {spec.name for spec in ROWS}
    for population, n in (("hit", None), ("all", 600)):
        rows = rows_of(report, population)
        names = [row["name"] for row in rows]
        assert len(set(names)) == len(names)
        assert set(names) >= DOCUMENTED_ROWS
        assert decoded <= set(names)
        assert {"lambdamart", "evidence_mlp", "evidence_gbdt"} <= set(names)
        for row in rows:
            assert set(row["metrics"]) >= METRICS
            assert row["n"] == (n or row["n"])
            for metric, value in row["metrics"].items():
                low, high = row["ci"][metric]
                assert 0 <= low <= high <= 1
                assert 0 <= value <= 1
            assert row["name"] == "ar" or set(row["vs_ar"]) == set(row["metrics"])
            to_beat = row["name"] == report["rival"]["row"]
            assert to_beat or set(row["vs_rival"]) == set(row["metrics"])
            if row["name"] in decoded:
                assert 0 <= row["raw_valid"] <= 1
                assert 0 <= row["identity"] <= 1
                assert 0 <= row.get("evidence_true", 0) <= 1
                if row["name"] in SILENT:
                    assert "evidence_true" not in row, row["name"]
                elif not row["name"].endswith("_raw"):  # a grammar cites what the prompt shows
                    # A model that was hardly trained may cite nothing at all.
                    assert row.get("evidence_true", 1) == 1, row["name"]
                assert row["tpf"] > 0


def test_no_field_of_a_report_is_gone(report: dict[str, Any]) -> None:
    """Nobody's reader of `report.json` finds less than it did (docs/compatibility.md)."""
    lost = [name for name in gone("report", fields_of(report)) if not name.startswith(LEARNED)]
    assert lost == []


def test_every_decoded_row_is_timed_beside_the_rivals(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in rows_of(report, "hit")}
    timed = {name for name, row in rows.items() if "ms_per_list" in row}
    assert timed == {spec.name for spec in ROWS} | {"evidence", "lambdamart"}
    assert rows["ar"]["speedup"] == 1
    for name in timed:
        row = rows[name]
        assert 0 < row["low_ms"] <= row["ms_per_list"] <= row["high_ms"]
        expected = rows["ar"]["ms_per_list"] / row["ms_per_list"]
        assert row["speedup"] == pytest.approx(expected, rel=1e-3)
        assert ("prefill_ms" in row) == (name in {spec.name for spec in ROWS})
    assert report["pace"]["evidence_ms"] > 0
    assert {entry["batch"] for entry in report["pace"]["rows"]} == {1, 32}


def test_verified_decoding_orders_as_its_own_ar(root: Path) -> None:
    """Whatever the quality of the model: verify promises AR's own output."""
    verify = load_arrays(root / "score_verify" / "verify.safetensors")
    own = load_arrays(root / "score_student_ar" / "student_ar.safetensors")
    for name in ("order_LK", "raw_valid_L", "n_tokens_L", "failures_LX"):
        np.testing.assert_array_equal(verify[name], own[name])


def test_the_floor_over_all_users_is_the_retriever(root: Path, report: dict[str, Any]) -> None:
    """The list is the retriever's top 6: up to that rank its figures are those of the floor."""
    floor = next(row for row in rows_of(report, "all") if row["name"] == "floor")
    histories, model = read_dataset(root / "data").histories, kinds.load(root / "retriever")
    queries = prefixes(histories, np.arange(histories.n_users), histories.lengths_U - 1)
    target_U = histories.items_N[histories.offsets_U1[1:] - 1]
    wanted = {
        name: v for k in (1, 3, 5) for name, v in evaluate(model, queries, target_U, k).items()
    }
    cut = evaluate(model, queries, target_U, 6)
    wanted |= {"r@10": cut["r@6"], "ndcg@10": cut["ndcg@6"]}  # what lies behind is not in the list
    for name in set(floor["metrics"]) - {"mrr"}:
        assert floor["metrics"][name] == round(wanted[name], 6), name
    whole = evaluate(model, queries, target_U, 10)
    assert {name: report["retriever"][f"test_{name}"] for name in whole} == whole
    assert cut["ndcg@6"] < whole["ndcg@10"], "the cut takes something away"


def test_report_files_are_there_and_figures_are_pictures(
    root: Path, report: dict[str, Any]
) -> None:
    folder = root / "report"
    figures = {
        *("stages", "validity", "coherence", "frontier_tpf", "frontier_speedup"),
        *("answer", "quality_speed", "slices"),
        *("throughput", "training"),
        *("trajectory", "rank_moves", "semantic_ids"),
        *("lengths", "views", "reliability"),
    }
    # A model so briefly trained may cite nothing in so few lists: then there is nothing to remove.
    figures |= {"faithfulness"} if report["probes"]["faithfulness"] else set()
    assert {path.stem for path in folder.glob("*.png")} == figures
    for path in folder.glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert path.stat().st_size > 5_000
    text = (folder / "report.md").read_text()
    assert "the row `floor` over all users is the retriever itself up to rank 6" in text
    assert "| generate | 1 |" in text
    for name in figures:
        assert f"({name}.png)" in text


def test_run_report_and_bundle_say_the_same_verdict(root: Path, report: dict[str, Any]) -> None:
    verdict = report["verdict"]
    assert (verdict["row"], verdict["taught"]) == ("cft_opd_rl", True)
    assert [one["part"] for one in verdict["against"]] == ["floor", "rival", "scorer"]
    cut = report["slices"]
    assert (cut["row"], cut["metric"], cut["rival"]) == (
        *("cft_opd_rl", "ndcg@10"),
        report["rival"]["row"],
    )
    assert cut["by"].keys() == {"length", "history", "popularity"}
    assert sum(entry["n"] for entry in cut["by"]["history"]) == verdict["n"]
    rows = {row["name"]: row for row in rows_of(report, "hit")}
    for one in verdict["against"]:
        entry = one["metrics"]["ndcg@10"]
        assert entry["value"] == rows["cft_opd_rl"]["metrics"]["ndcg@10"]
        assert entry["other"] == rows[one["row"]]["metrics"]["ndcg@10"]
    for part in ("floor", "rival") if verdict["strongest"] else ("floor",):
        (one,) = (one for one in verdict["against"] if one["part"] == part)
        assert one["metrics"]["ndcg@10"]["ci"] == rows["cft_opd_rl"][f"vs_{part}"]["ndcg@10"]
    assert len(report["closing"]) == 3
    assert (root / "said.txt").read_text().splitlines()[-3:] == report["closing"]
    assert cli("run", "micro", "--runs", str(root)).stdout.splitlines()[-3:] == report["closing"]
    assert json.loads((root / "bundle" / "verdict.json").read_text()) == verdict
    head = (root / "report" / "report.md").read_text().split("## Hit users")[0]
    card = (root / "bundle" / "README.md").read_text()
    assert all(line in head and line in card for line in verdict["lines"])


def test_compared_with_itself_nothing_differs(root: Path, report: dict[str, Any]) -> None:
    done = cli("compare", str(root), str(root / "report"), "--row", "all", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["recipes"] == []
    assert found["shared"]["lists"] == found["shared"]["same_candidates"] == 600
    assert {entry["row"] for entry in found["rows"]} >= {"floor", "lambdamart", "ar", "verify"}
    tests = [test for entry in found["rows"] for test in entry["metrics"].values()]
    assert all(test["diff"] == 0 and test["ci"] == [0, 0] for test in tests)
    rows = {row["name"]: row for row in rows_of(report, "hit")}
    for entry in found["rows"]:
        assert entry["n"] == rows[entry["row"]]["n"]
        for metric, test in entry["metrics"].items():
            assert test["a"] == rows[entry["row"]]["metrics"][metric]


def test_trec_files_rank_all_candidates(root: Path, report: dict[str, Any]) -> None:
    folder = root / "report" / "trec"
    hits = next(row["n"] for row in rows_of(report, "hit") if row["name"] == "ar")
    assert len((folder / "qrels.txt").read_text().splitlines()) == 600
    assert len((folder / "floor.run").read_text().splitlines()) == 600 * 6
    assert len((folder / "cft_opd_rl.run").read_text().splitlines()) == hits * 6


def test_worked_examples_tell_the_whole_story(root: Path, report: dict[str, Any]) -> None:
    said = (root / "said.txt").read_text()
    text = (root / "report" / "examples.md").read_text()
    assert text in said
    assert text.count("## Example") == 3
    assert len(re.findall(r"^History(?:, the last \d+ of \d+)?:$", text, re.MULTILINE)) == 3
    for heading in ("Candidates, as they came:", "Reasoning:", "Ranking", "Bought"):
        assert text.count(heading) >= 3, heading


def test_worked_examples_show_every_purchase_that_their_sentences_count(
    root: Path, report: dict[str, Any]
) -> None:
    examples = (root / "report" / "examples.md").read_text().split("## Example")[1:]
    counted = 0
    for text in examples:
        history, _, after = text.partition("Candidates, as they came:")
        shown = sum(line.startswith("- ") for line in history.splitlines())
        for whole in re.findall(r"\(\d+ of (\d+)\)", after):
            assert int(whole) == shown
            counted += 1
    assert counted


def test_a_second_report_equals_the_first(root: Path, report: dict[str, Any]) -> None:
    names = ("report.json", "report.md", "stages.png", "trajectory.png", "ranks.safetensors")
    before = {name: (root / "report" / name).read_bytes() for name in names}
    assert cli("report", str(root)).returncode == 0
    assert {name: (root / "report" / name).read_bytes() for name in names} == before


def test_a_report_works_as_soon_as_candidates_can_be_measured(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert cli("run", "micro", "--goal", "candidates", "--runs", str(folder)).returncode == 0
    done = cli("report", str(folder))
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "report" / "report.json").read_text())
    names = ["floor", "random", "oracle", "id_above", "evidence", "lambdamart"]
    names += ["evidence_gbdt", "evidence_mlp"]
    for population in ("hit", "all"):
        assert [row["name"] for row in rows_of(report, population)] == names
    hit = {row["name"]: row["metrics"]["ndcg@3"] for row in rows_of(report, "hit")}
    assert hit["random"] < hit["floor"] < hit["lambdamart"] < hit["oracle"]
    chosen = report["rival"]
    assert chosen["n"] == read_manifest(folder / "rival")["metrics"]["selection_lists"] > 0
    scorers = {name: value for name, value in chosen["values"].items() if name != "floor"}
    assert chosen["strongest"] == max(scorers, key=lambda name: scorers[name])
    text = (folder / "report" / "report.md").read_text()
    assert f"The rival is `{chosen['row']}`" in text
    assert "row against rival" in text
    assert not {"speed", "probes"} & set(report)
