"""The command line itself: help, exact error lines, exit codes, small verbs. No model is made."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffgr2 import __version__, cli
from diffgr2.artifacts import write_json
from diffgr2.cli import about
from diffgr2.cli.runs import NOTE
from diffgr2.recipe import RECIPES
from diffgr2.stages.plan import STAGES
from diffgr2.stages.rows import ROWS

SHIPPED = "beauty, beauty_gpu, demo, games, micro, paper, text_gpu, text_small, text_smol"


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command line."""
    code = cli.run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


ERRORS = [
    (["bla"], 2, "error: No such command 'bla'."),
    (["run"], 2, "error: Missing argument 'RECIPE'."),
    (
        ["run", "micro", "--foo"],
        2,
        "error: No such option: --foo (Possible options: --force, --from)",
    ),
    (
        ["run", "nope"],
        2,
        f"error: nope: no such recipe (shipped: {SHIPPED})",
    ),
    (["sft", "nope.yaml"], 2, "error: nope.yaml: no such recipe file"),
    (["run", "micro", "--set", "sft"], 2, "error: --set sft: expected key.key=value"),
    (
        ["run", "micro", "--set", "sft.stepz=3"],
        2,
        "error: --set: sft.stepz: unknown key; did you mean steps?",
    ),
    (
        ["run", "micro", "--set", "sft.steps=many"],
        2,
        "error: --set: sft.steps: Input should be a valid integer (got 'many')",
    ),
    (
        ["run", "micro", "--goal", "everything"],
        2,
        "error: --goal everything: expected candidates, teacher, story, ladder, all or a stage",
    ),
    (
        ["score", "micro", "--row", "best"],
        2,
        "error: --row best: no such row (known: " + ", ".join(spec.name for spec in ROWS) + ")",
    ),
    (
        ["report", "micro", "--runs", "nowhere"],
        3,
        "error: nowhere: no candidate lists stand for recipe micro (run: diffgr2 candidates micro)",
    ),
    (["report", "."], 3, "error: .: no run was made here (run.json is missing)"),
    (
        ["data", "fetch", "amazon-cars", "x"],
        2,
        "error: amazon-cars: neither a known data set (amazon-beauty, amazon-sports, amazon-toys) "
        "nor an http(s) URL",
    ),
    (
        ["data", "nope"],
        2,
        f"error: nope: no such recipe (shipped: {SHIPPED})",
    ),
    (["data", "check", "gone.csv"], 2, "error: gone.csv: no such file"),
    (
        ["recipes", "nope"],
        2,
        f"error: nope: no such recipe (shipped: {SHIPPED})",
    ),
    (["convert-dir", "gone", "out"], 3, "error: gone/config.json: file is missing"),
    (["convert-dir", "gone", "."], 2, "error: .: stands already (give a new or empty directory)"),
    (
        ["convert-dir", "gone", "out", "--origin", "left"],
        2,
        "error: convert-dir: convert.origin: Input should be 'document' or 'response' (got 'left')",
    ),
]


@pytest.mark.parametrize(("arguments", "code", "line"), ERRORS)
def test_errors_are_one_exact_line(
    arguments: list[str],
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").touch()
    assert say(capsys, *arguments) == (code, "", f"{line}\n")


def test_debug_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffgr2.errors import ConfigError

    with pytest.raises(ConfigError):
        cli.run(["run", "nope"], debug=True)
    monkeypatch.setattr(sys, "argv", ["diffgr2", "run", "nope", "--debug"])
    with pytest.raises(ConfigError):
        cli.main()


def test_an_interrupt_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("diffgr2.pipeline.Runner.run", interrupted)
    code, _, err = say(capsys, "data", "micro", "--runs", str(tmp_path / "run"))
    assert code == 130
    assert err == "\ninterrupted: the same command goes on where this one stopped\n"


def test_a_full_disk_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "runs/x/big.bin")

    monkeypatch.setattr("diffgr2.pipeline.Runner.run", full)
    answer = say(capsys, "data", "micro", "--runs", str(tmp_path / "run"))
    assert answer == (1, "", "error: runs/x/big.bin: No space left on device\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr("diffgr2.pipeline.Runner.run", wrong)
    with pytest.raises(TypeError, match="a bug"):
        cli.run(["data", "micro", "--runs", str(tmp_path / "run")])


def test_two_commands_do_not_share_a_directory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    with (root / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, err = say(capsys, "data", "micro", "--runs", str(root))
    assert code == 3
    assert err == f"error: {root}: another command is at work here\n"
    assert say(capsys, "data", "micro", "--runs", str(root))[0] == 0, "the lock went"


def test_the_data_stage_is_a_verb_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = str(tmp_path / "run")
    code, out, err = say(capsys, "data", "micro", "--runs", root, "--set", "data.shop.n_users=50")
    assert code == 0
    assert "data: runs" in err
    assert out.splitlines()[:2] == ["data:", f"  {'users':32} 50"]
    note = json.loads((tmp_path / "run" / NOTE).read_text())
    assert note["command"] == "diffgr2 run micro --set data.shop.n_users=50"
    code, out, _ = say(capsys, "status", root)
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["data", "stands"]
    assert lines[1].split()[:2] == ["items", "missing"]
    assert lines[-1] == f"{root}: 1 of {len(STAGES) - 1} stages stand"  # no tutor


def test_status_says_which_file_and_which_key_outdated_what(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table, recipe, root = tmp_path / "t.csv", tmp_path / "own.yaml", str(tmp_path / "run")
    rows = [
        "user,item,timestamp",
        *(f"u{u},i{(u + n) % 7},{n}" for u in range(7) for n in range(5)),
    ]
    table.write_text("\n".join(rows))
    recipe.write_text(f"data: {{source: table, interactions: {table}, k_core: 0}}\n")
    popularity = ["--runs", root, "--set", "retriever.kind=popularity"]
    assert say(capsys, "retriever", str(recipe), *popularity)[0] == 0
    code, out, _ = say(capsys, "status", root)
    assert (code, [line.split()[1] for line in out.splitlines()[:3]]) == (
        *(0, ["stands", "missing", "stands"]),
    )
    size = table.stat().st_size
    table.write_text("\n".join([*rows, "u1,i6,9"]))
    _, out, _ = say(capsys, "status", str(recipe), "--runs", root)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    changed = f"{table}: {size} → {size + 8} bytes"
    assert lines[:2] == ["data outdated import, k-core, leave-one-out", changed]
    assert lines[3:5] == [
        "retriever outdated because of data",
        'retriever.kind: "popularity" → "sasrec"',
    ]
    assert lines[-3:-1] == [
        f"because of data ({changed}): 1 outdated",
        'besides, retriever (retriever.kind: "popularity" → "sasrec")',
    ]
    table.unlink()
    _, out, _ = say(capsys, "status", root)
    assert f"{table}: no such file any more" in out


@pytest.mark.parametrize("note", [[], {"recipe": {}}, {"recipe": [], "named": 1, "overrides": []}])
def test_a_strange_note_is_one_line(
    note: object, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_json(tmp_path / NOTE, note)
    answer = say(capsys, "status", str(tmp_path))
    assert answer == (3, "", f"error: {tmp_path / NOTE}: not the note of a run\n")


def test_data_check_reads_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows = [f"u{u},i{(u + n) % 7},{n}" for u in range(7) for n in range(5)]
    table.write_text("\n".join(["who,what,when", *rows]))
    columns = ["--column", "user=who", "--column", "item=what", "--column", "timestamp=when"]
    code, out, err = say(capsys, "data", "check", str(table), *columns)
    assert (code, err) == (0, "")
    facts = dict(line.split(None, 1) for line in out.splitlines() if len(line.split(None, 1)) == 2)
    assert (facts["users"], facts["items"], facts["interactions"]) == ("7", "7", "35")
    assert "for example, user u" in out
    assert not (tmp_path / "quarantine.jsonl").exists()
    code, _, err = say(capsys, "data", "check", str(table), "--column", "user")
    assert (code, err) == (2, "error: --column user: expected word=column\n")


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = say(capsys, "recipes")
    assert code == 0
    listed = [line.split()[0] for line in out.splitlines()[:-1]]
    assert listed == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    code, out, _ = say(capsys, "recipes", "micro")
    assert out.rstrip() == (RECIPES / "micro.yaml").read_text().rstrip()
    code, out, _ = say(capsys, "recipes", "micro", "--set", "sft.steps=7")
    assert "  steps: 7\n" in out
    assert "traces:" in out, "defaults are shown as well"


def test_doctor_reports_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    code, out, _ = say(capsys, "doctor")
    assert code == 0
    assert out.startswith(f"diffgr2 {__version__}, Python ")
    assert "torch threads: " in out
    assert ("device: CPU" in out) == (not torch.cuda.is_available())
    assert "free disk here: " in out


def test_doctor_fails_on_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["torch>=2.6", "no-such-package>=1", 'no-such-extra>=2; extra == "serve"', "numpy>=99"]
    monkeypatch.setattr(about, "requires", lambda _: wanted)
    code, out, _ = say(capsys, "doctor")
    assert code == 1
    assert "no-such-package: missing\n" in out
    assert "will not do (needs >=99)\n" in out
    assert "optional no-such-extra: missing (pip install 'diffgr2[serve]')\n" in out
    assert out.splitlines()[-1].startswith("to mend: no-such-package, numpy ")


def test_help_lists_a_verb_per_stage_without_torch() -> None:
    code = (
        "import sys\nfrom diffgr2 import cli\ncode = cli.run(['--help'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    words = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("│ ")}
    stages = {name.replace("_", "-") for name in STAGES if not name.startswith("score_")}
    assert stages <= words
    assert {"score", "run", "status", "report", "recipes", "doctor", "convert-dir"} <= words


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = say(capsys)
    assert "Usage: diffgr2" in out
    assert err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert say(capsys, "--version") == (0, f"diffgr2 {__version__}\n", "")


def test_seeds_that_cannot_be_pooled_are_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs = [str(tmp_path / name) for name in ("gone", "away")]
    code, _, said = say(capsys, "seeds", *runs)
    assert (code, runs[0] in said) == (3, True)
    assert said.count("\n") == 1


def test_threads_that_wait_spin_for_a_few_turns():
    """OpenMP reads how many when torch is first imported: it has to be said before that."""
    lines = (
        "import os, sys",
        "from diffgr2.cli import runs, verbs",
        "from diffgr2.recipe import load_recipe",
        "before = 'torch' in sys.modules",
        "runs.set_threads(load_recipe('demo'))",
        "import torch",
        "print(before, os.environ['GOMP_SPINCOUNT'], torch.get_num_threads())",
    )
    said = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    bare = {name: value for name, value in os.environ.items() if name not in said}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "10000", "2"], done.stderr
