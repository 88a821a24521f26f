"""`status` says which input outdated what, the root cause before what follows: on toy stages."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import CHANGES, GRAPH, ran, recipe, stages, write

from diffgr2.artifacts import MANIFEST, held, is_held, read_json, write_json
from diffgr2.pipeline import INTERRUPTED, RUNNING, STANDS, Runner, Stage, StageContext
from diffgr2.progress import Progress
from diffgr2.stages.reasons import Reason, differences, flat, moved, reasons


def runner(root: Path, changes: dict[str, Any] | None = None, **given: Any) -> Runner:
    table = given.get("stages", stages())
    return Runner(recipe(changes), root, table, Progress(io.StringIO()))


def told(root: Path, changes: dict[str, Any] | None = None, **given: Any) -> dict[str, Reason]:
    one = runner(root, changes, **given)
    return reasons(one, one.survey(list(one.stages), gone=True))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    runner(tmp_path).run(["d", "e"])
    return tmp_path


def test_what_stands_has_no_reason(root: Path) -> None:
    assert told(root) == {}


KEYS = {
    "a": "data.k_core: 5 → 4",
    "b": "items.levels: 4 → 3",
    "c": "retriever.dim: 64 → 32",
    "d": "candidates.k: 10 → 5",
    "e": "evidence.buckets: 8 → 4",
}
AFTER = {"a": "bcd", "b": "d", "c": "d", "d": "", "e": ""}


@pytest.mark.parametrize("name", GRAPH)
def test_a_changed_key_is_named_once_and_what_follows_names_its_stage(
    root: Path, name: str
) -> None:
    found = told(root, CHANGES[name])
    assert found[name] == Reason((KEYS[name],))
    assert {other: why for other, why in found.items() if other != name} == {
        other: Reason((), (name,)) for other in AFTER[name]
    }


def test_two_roots_and_a_reason_of_its_own_are_told_apart(root: Path) -> None:
    found = told(root, CHANGES["b"] | CHANGES["c"] | CHANGES["d"])
    assert found["d"] == Reason((KEYS["d"],), ("b", "c"))
    found = told(root, CHANGES["a"] | CHANGES["c"])
    assert found["c"] == Reason((KEYS["c"],), ("a",))
    assert found["d"] == Reason((), ("a",)), "c began with a, too"
    assert list(found) == ["a", "b", "c", "d"], "inputs come first"


def test_another_seed_is_said_of_every_stage(root: Path) -> None:
    assert all("seed: 0 → 1" in why.own for why in told(root, {"seed": 1}).values())


def test_an_input_that_was_made_anew_is_named(root: Path) -> None:
    def other(ctx: StageContext) -> dict[str, Any]:
        write(ctx)
        (ctx.out / "more.txt").write_text("more")
        return {}

    runner(root, stages=stages(other)).run(["b"], force=True)
    assert told(root) == {"d": Reason(("b: was made anew and differs",))}


def test_a_raised_version_and_a_new_input_are_named(root: Path) -> None:
    table = stages()
    table["b"] = Stage("b", write, ("a",), ("items",), "toy b", version=2)
    assert told(root, stages=table)["b"].own == ("version of the stage: 1 → 2",)
    table["b"] = Stage("b", write, ("a", "e"), ("items",), "toy b")
    assert told(root, stages=table | {"b": table["b"]})["b"].own == ("e: is read now",)
    table["b"] = Stage("b", write, (), ("items",), "toy b")
    assert told(root, stages=table)["b"].own == ("a: is no longer read",)


def test_a_damaged_or_deleted_stage_is_the_root(root: Path) -> None:
    (root / "b" / "out.txt").unlink()
    found = told(root)
    assert found["b"].own == (f"{root / 'b' / 'out.txt'}: listed in the manifest but missing",)
    assert found["d"] == Reason((), ("b",))
    for path in (root / "b").iterdir():
        path.unlink()
    (root / "b").rmdir()
    assert told(root) == {"b": Reason(), "d": Reason((), ("b",))}


def test_a_manifest_from_before_versions_were_kept_still_says_something(root: Path) -> None:
    manifest = read_json(root / "e" / MANIFEST)
    del manifest["version"], manifest["outside"]
    write_json(root / "e" / MANIFEST, manifest | {"key": "older"})
    (line,) = told(root)["e"].own
    assert line == "made by another version of the stage, or from another version of a file"


def test_outside_files_say_what_became_of_them(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("1")
    two.write_text("2")
    read = [one, two]
    table = {"a": Stage("a", write, (), ("data",), "toy", files=lambda _: read)}
    runner(tmp_path, stages=table).run(["a"])
    assert told(tmp_path, stages=table) == {}
    os.utime(one, ns=(1, 1))
    assert told(tmp_path, stages=table) == {}, "its content is as it was"
    one.write_text("7")
    two.write_text("x" * 1234)
    assert told(tmp_path, stages=table)["a"].own == (
        f"{one}: was written to, as long as before, its content another",
        f"{two}: 1 → 1,234 bytes",
    )
    manifest = read_json(tmp_path / "a" / MANIFEST)
    del manifest["contents"]  # of a run from before digests were kept
    write_json(tmp_path / "a" / MANIFEST, manifest)
    assert "unknown (not recorded then)" in told(tmp_path, stages=table)["a"].own[0]
    one.unlink()
    read[1] = tmp_path / "three.csv"
    read[1].write_text("3")
    assert told(tmp_path, stages=table)["a"].own == (
        f"{two}: is no longer read",
        f"{one}: no such file any more",
        f"{read[1]}: is read now",
    )
    assert moved({}, {}, {}) == []


def test_values_are_told_by_key_shortly_and_a_new_key_is_not_null() -> None:
    old = flat({"a": {"b": 1, "c": {"d": [1]}, "gone": None}})
    new = flat({"a": {"b": 2, "c": {"d": ["x" * 90]}, "new": None}})
    lines = differences(old, new)
    assert lines[0] == "a.b: 1 → 2"
    assert lines[1].startswith('a.c.d: [1] → ["xxx')
    assert len(lines[1]) < 90
    assert lines[2:] == ["a.gone: null → no such key", "a.new: no such key → null"]


def test_a_stage_at_work_is_running_and_a_killed_one_is_interrupted(tmp_path: Path) -> None:
    seen: list[str] = []

    def looks(ctx: StageContext) -> dict[str, Any]:
        if ctx.name == "c":
            seen.append(runner(tmp_path).survey(["d"])["c"])
        return write(ctx)

    runner(tmp_path, stages=stages(looks)).run(["d"])
    assert seen == [RUNNING]
    partial = tmp_path / ".e.partial"
    partial.mkdir()
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom diffgr2.artifacts import held\n"
        "with held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(partial)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert runner(tmp_path).survey(["e"])["e"] == RUNNING
        child.kill()
        child.wait()
    assert runner(tmp_path).survey(["e"])["e"] == INTERRUPTED
    with held(partial):
        assert is_held(partial)
    assert not is_held(partial)
    assert not is_held(tmp_path / "nowhere")
    assert runner(tmp_path).survey(["d"])["d"] == STANDS


def test_a_package_that_was_installed_since_runs_the_stage_that_can_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    able = {name: replace(stage, packages=("afterthought",)) for name, stage in stages().items()}
    assert ran(tmp_path / "run", ["a"], stages=able) == "a"
    assert ran(tmp_path / "run", ["a"], stages=able) == ""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "afterthought.py").write_text("")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "site")
        found = told(tmp_path / "run", stages=able)["a"]
        assert found.own == ("afterthought: is installed now",)
        assert ran(tmp_path / "run", ["a"], stages=able) == "a"
    assert told(tmp_path / "run", stages=able)["a"].own == ("afterthought: is no longer installed",)
