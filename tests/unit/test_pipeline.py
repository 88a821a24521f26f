"""The runner on toy stages: what runs, what is skipped, what an interruption leaves."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffgr2 import artifacts
from diffgr2.artifacts import MANIFEST, read_json, read_manifest, sha256_of, write_json
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError, ConfigError
from diffgr2.pipeline import INTERRUPTED, MISSING, OUTDATED, STANDS, Runner, Stage, StageContext
from diffgr2.progress import Progress
from diffgr2.recipe import validate

# a -> b -> d, a -> c -> d, and e by itself; each depends on one section.
GRAPH = {
    "a": ((), "data"),
    "b": (("a",), "items"),
    "c": (("a",), "retriever"),
    "d": (("b", "c"), "candidates"),
    "e": ((), "evidence"),
}
CHANGES = {
    "a": {"data": {"k_core": 4}},
    "b": {"items": {"levels": 3}},
    "c": {"retriever": {"dim": 32}},
    "d": {"candidates": {"k": 5}},
    "e": {"evidence": {"buckets": 4}},
}
DEPENDENTS = {"a": "abcd", "b": "bd", "c": "cd", "d": "d", "e": "e"}


def write(ctx: StageContext) -> dict[str, Any]:
    """A file that says what was read."""
    read = [(ctx.inputs[name] / "out.txt").read_text() for name in sorted(ctx.inputs)]
    section = GRAPH[ctx.name][1]
    text = f"{ctx.name}({getattr(ctx.recipe, section)!r})[{' '.join(read)}]"
    (ctx.out / "out.txt").write_text(text)
    return {"length": len(text)}


def stages(run: Callable[[StageContext], dict[str, Any]] = write) -> dict[str, Stage]:
    return {
        name: Stage(name, run, inputs, (section,), f"toy {name}")
        for name, (inputs, section) in GRAPH.items()
    }


def recipe(changes: dict[str, Any] | None = None) -> Recipe:
    return validate({"name": "toy", **(changes or {})}, "toy")


def ran(root: Path, goals: list[str], changes: dict[str, Any] | None = None, **options: Any) -> str:
    """The names of the stages that ran."""
    said = io.StringIO()
    Runner(recipe(changes), root, options.pop("stages", stages()), Progress(said)).run(
        goals, **options
    )
    return "".join(
        line.split(":")[0]
        for line in said.getvalue().splitlines()
        if " runs " in line or " continues " in line
    )


def test_inputs_run_first_and_nothing_else(tmp_path: Path) -> None:
    assert ran(tmp_path, ["d"]) == "abcd"
    assert not (tmp_path / "e").exists()
    manifest = read_manifest(tmp_path / "d", verify=True)
    assert manifest["stage"] == "d"
    assert manifest["metrics"] == {"length": len((tmp_path / "d" / "out.txt").read_text())}
    assert set(manifest["inputs"]) == {"b", "c"}
    assert manifest["config"] == {"candidates": recipe().candidates.model_dump(mode="json")}


def test_what_stands_is_not_run_again(tmp_path: Path) -> None:
    ran(tmp_path, ["d", "e"])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert ran(tmp_path, ["d", "e"]) == ""
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("changed", GRAPH)
def test_a_changed_key_runs_exactly_the_dependents(tmp_path: Path, changed: str) -> None:
    ran(tmp_path, ["d", "e"])
    assert ran(tmp_path, ["d", "e"], CHANGES[changed]) == DEPENDENTS[changed]
    assert ran(tmp_path, ["d", "e"], CHANGES[changed]) == ""


def test_another_seed_runs_everything(tmp_path: Path) -> None:
    ran(tmp_path, ["d", "e"])
    assert ran(tmp_path, ["d", "e"], {"seed": 1}) == "abcde"


def test_equal_outputs_of_a_rerun_input_keep_dependents(tmp_path: Path) -> None:
    """Keys are made of contents, not of times: b again, the same bytes, so d stands."""
    ran(tmp_path, ["d"])
    assert ran(tmp_path, ["b"], force=True) == "b"
    assert ran(tmp_path, ["d"]) == ""


def test_force_runs_only_the_goal(tmp_path: Path) -> None:
    ran(tmp_path, ["d"])
    assert ran(tmp_path, ["d"], force=True) == "d"


@pytest.mark.parametrize("damage", ["manifest", "file", "short", "json"])
def test_a_damaged_directory_is_run_again(tmp_path: Path, damage: str) -> None:
    ran(tmp_path, ["d"])
    if damage == "manifest":
        (tmp_path / "c" / MANIFEST).unlink()
    elif damage == "file":
        (tmp_path / "c" / "out.txt").unlink()
    elif damage == "short":
        (tmp_path / "c" / "out.txt").write_text("c")
    else:
        (tmp_path / "c" / MANIFEST).write_text("{")
    assert ran(tmp_path, ["d"]) == "c", "the same bytes come back, so d stands"
    read_manifest(tmp_path / "c", verify=True)


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_in_an_input_stops_what_would_read_it(tmp_path: Path) -> None:
    """The size is the same, so the directory seems to stand until a stage is to run on it."""
    ran(tmp_path, ["d"])
    bad = tmp_path / "c" / "out.txt"
    flip_a_byte(bad)
    assert Runner(recipe(), tmp_path, stages()).survey(["d"])["c"] == STANDS, "nothing is hashed"
    with pytest.raises(ArtifactError) as caught:
        ran(tmp_path, ["d"], CHANGES["d"])
    assert str(caught.value) == (
        f"{bad}: content differs from the manifest (run stage c again with --force)"
    )
    assert ran(tmp_path, ["c"], CHANGES["d"], force=True) == "c"
    assert ran(tmp_path, ["d"], CHANGES["d"]) == "d"


def test_a_changed_manifest_of_an_input_stops_what_would_read_it(tmp_path: Path) -> None:
    ran(tmp_path, ["b"])
    manifest = read_json(tmp_path / "a" / MANIFEST)
    manifest["metrics"]["length"] += 1
    write_json(tmp_path / "a" / MANIFEST, manifest)
    with pytest.raises(ArtifactError, match=r"manifest\.json: was changed after it was written \("):
        ran(tmp_path, ["b"], CHANGES["b"])


def test_inputs_are_hashed_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.parent.name)
        return sha256_of(path)

    monkeypatch.setattr(artifacts, "sha256_of", counting)
    ran(tmp_path, ["d"])
    assert hashed == ["out"] * 4, "each result when it is published, and no input again"
    hashed.clear()
    artifacts._HASHES.clear()  # as in another process
    assert ran(tmp_path, ["d"]) == ""
    assert hashed == [], "what stands is not hashed"
    assert ran(tmp_path, ["b", "c", "d"], CHANGES["b"] | CHANGES["c"]) == "bcd"
    assert hashed == ["a", "out", "out", "out"], "both readers of a, but one hash"


class Killed(BaseException):
    """What a kill looks like from inside: no handler runs."""


def test_an_interrupted_stage_leaves_nothing_finished_and_goes_on(tmp_path: Path) -> None:
    seen: list[int] = []

    def slow(ctx: StageContext) -> dict[str, Any]:
        if ctx.name != "c":
            return write(ctx)
        assert not list(ctx.out.iterdir()), "outputs are written anew"
        counter = ctx.work / "counter"
        count = int(counter.read_text()) + 1 if counter.exists() else 1
        counter.write_text(str(count))
        seen.append(count)
        (ctx.out / "half.txt").write_text("half")
        if count < 3:
            raise Killed
        (ctx.out / "half.txt").unlink()
        return write(ctx)

    for _ in range(2):
        with pytest.raises(Killed):
            ran(tmp_path, ["d"], stages=stages(slow))
        assert not (tmp_path / "c").exists()
        states = Runner(recipe(), tmp_path, stages(slow)).survey(["d"])
        assert states == {"a": STANDS, "b": STANDS, "c": INTERRUPTED, "d": MISSING}
    assert ran(tmp_path, ["d"], stages=stages(slow)) == "cd"
    assert seen == [1, 2, 3]
    assert not list(tmp_path.glob(".*.partial"))
    whole = tmp_path / "whole"
    ran(whole, ["d"])
    for name in "abcd":
        assert read_manifest(tmp_path / name)["files"] == read_manifest(whole / name)["files"], name


def test_partial_work_for_another_recipe_is_thrown_away(tmp_path: Path) -> None:
    def stop(ctx: StageContext) -> dict[str, Any]:
        if ctx.name == "c":
            (ctx.work / "state").write_text("of the old recipe")
            raise Killed
        return write(ctx)

    with pytest.raises(Killed):
        ran(tmp_path, ["c"], stages=stages(stop))

    def look(ctx: StageContext) -> dict[str, Any]:
        assert not list(ctx.work.iterdir())
        return write(ctx)

    assert ran(tmp_path, ["c"], CHANGES["c"], stages=stages(look)) == "c"


def test_survey_names_what_is_outdated(tmp_path: Path) -> None:
    ran(tmp_path, ["d"])
    survey = Runner(recipe(CHANGES["b"]), tmp_path, stages()).survey(["d", "e"])
    assert survey == {"a": STANDS, "b": OUTDATED, "c": STANDS, "d": OUTDATED, "e": MISSING}


def test_unknown_goal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^f: no such stage \(known: a, b, c, d, e\)$"):
        Runner(recipe(), tmp_path, stages()).run(["f"])


def test_missing_outside_file_is_one_line(tmp_path: Path) -> None:
    gone = tmp_path / "gone.csv"
    one = {"a": Stage("a", write, (), ("data",), "toy", files=lambda _: [gone])}
    with pytest.raises(
        ConfigError, match=r"gone\.csv: no such file \(stage a; paths in a recipe start"
    ):
        Runner(recipe(), tmp_path, one).run(["a"])


def test_a_changed_outside_file_runs_its_stage(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("1")
    table_stage = Stage("a", write, (), ("data",), "toy", files=lambda _: [table])
    only = {**stages(), "a": table_stage}
    assert ran(tmp_path, ["b"], stages=only) == "ab"
    table.write_text("22")
    assert ran(tmp_path, ["b"], stages=only) == "a", "its output did not change"
    table.write_text("33")
    os.utime(table, ns=(5, 5))
    assert ran(tmp_path, ["b"], stages=only) == "a", "as long, another content"


def test_an_outside_file_with_another_time_alone_runs_nothing(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("1")
    table_stage = Stage("a", write, (), ("data",), "toy", files=lambda _: [table])
    only = {**stages(), "a": table_stage}
    assert ran(tmp_path, ["b"], stages=only) == "ab"
    for moment in (1, 2):
        os.utime(table, ns=(moment, moment))
        assert ran(tmp_path, ["b"], stages=only) == ""
    assert Runner(recipe(), tmp_path, only).survey(["b"]) == {"a": STANDS, "b": STANDS}


def test_an_error_of_a_stage_reaches_the_caller(tmp_path: Path) -> None:
    def broken(ctx: StageContext) -> dict[str, Any]:
        raise ArtifactError("a: nothing to do")

    with pytest.raises(ArtifactError, match=r"^a: nothing to do$"):
        ran(tmp_path, ["a"], stages=stages(broken))
    assert not (tmp_path / "a").exists()


def test_other_processes_write_nothing_that_is_published(tmp_path: Path) -> None:
    """A second rank runs shared stages in its own directory and leaves the others to the first."""
    only = {name: Stage(**{**vars(s), "shared": name == "b"}) for name, s in stages().items()}
    answers: list[Any] = []

    def first(work: Callable[[], Any]) -> Any:
        answers.append(work())
        return answers[-1]

    Runner(recipe(), tmp_path, only, Progress(io.StringIO()), on_first=first).run(["d"])
    replies = iter(answers)
    outs: list[Path] = []

    def note(ctx: StageContext) -> dict[str, Any]:
        outs.append(ctx.out)
        return write(ctx)

    second = {name: Stage(**{**vars(s), "run": note}) for name, s in only.items()}
    elsewhere = tmp_path / ".b.partial"
    elsewhere.mkdir()
    runner = Runner(
        recipe(),
        tmp_path,
        second,
        Progress(io.StringIO()),
        rank=1,
        on_first=lambda _: next(replies),
    )
    runner.run(["d"])
    assert outs == [elsewhere / "out-1"]
    assert next(replies, "no more") == "no more", "both ranks asked the first one equally often"


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(history=st.lists(st.sampled_from("abcde"), min_size=1, max_size=5))
def test_any_history_of_changes_ends_where_a_fresh_run_does(
    tmp_path_factory: pytest.TempPathFactory, history: list[str]
) -> None:
    """Whatever was changed before, the directories equal those of a fresh run of the last recipe,
    and a stage runs again only if something it depends on changed."""
    root = tmp_path_factory.mktemp("run")
    ran(root, ["d", "e"])
    changes: dict[str, Any] = {}
    for name in history:
        section = GRAPH[name][1]
        before = set(changes)
        if section in changes:
            del changes[section]
        else:
            changes |= CHANGES[name]
        assert ran(root, ["d", "e"], changes) == DEPENDENTS[name], (before, name)
    fresh = tmp_path_factory.mktemp("fresh")
    ran(fresh, ["d", "e"], changes)
    for name in GRAPH:
        assert read_manifest(root / name)["files"] == read_manifest(fresh / name)["files"]
