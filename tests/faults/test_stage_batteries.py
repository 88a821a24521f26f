"""Every language-model stage survives kills, corruption and resumes bit for bit.

The real tasks of the stages run on the tiny corpus; by default a few points of each battery, all of
them under `slow`. Kills land in rollouts too, where a stage has any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support import battery, tiny_stages

STAGES = ("sft", "rl", "cft", "opd", "block_rl", "preference")
ROLLS = ("rl", "opd", "block_rl", "preference")
GROUPS = ("rl", "block_rl", "preference")
"""Stages that keep a batch of rollouts for two steps."""
FILE = str(Path(tiny_stages.__file__).resolve())


@pytest.fixture(scope="module", autouse=True)
def _trained_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The weights that stages start from are trained once, for child processes too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = os.environ.get("DIFFGR2_TINY")
    if folder is None:
        os.environ["DIFFGR2_TINY"] = str(tmp_path_factory.mktemp("tiny"))
    tiny_stages.trained.cache_clear()
    tiny_stages.trained("block")
    yield
    torch.set_num_threads(before)
    if folder is None:
        del os.environ["DIFFGR2_TINY"]


def factory(stage: str, *, short: bool) -> battery.Factory:
    return getattr(tiny_stages, f"make_{'short_' if short else ''}{stage}")


def check_at_work(stage: str, folder: Path) -> None:
    """A battery over a stage that does nothing would prove nothing."""
    lines = battery.run(factory(stage, short=True), folder).lines
    assert sum(line["grad_norm"] > 0 for line in lines) >= 2, lines
    if stage in GROUPS:
        assert sum(line["groups"] for line in lines) > 0


def check_resumes(stage: str, folder: Path, *, short: bool) -> int:
    return battery.check_resume_from_every_step(factory(stage, short=short), folder)


def kill_modes(stage: str) -> tuple[str, ...]:
    return ("line", "save", "torn", *(["rollout"] if stage in ROLLS else []))


@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_resumes_from_every_step_and_is_then_a_noop(stage, tmp_path):
    check_at_work(stage, tmp_path / "work")
    rounds = 2 if stage in GROUPS else 1
    assert check_resumes(stage, tmp_path, short=True) == tiny_stages.SHORT // rounds
    battery.check_finished_is_noop(factory(stage, short=True), tmp_path / "noop")


@pytest.mark.parametrize("stage", STAGES)
def test_corrupt_checkpoints_of_the_stage_are_never_used(stage, tmp_path):
    steps = 6 if stage in GROUPS else 4  # three checkpoints are needed, at round ends
    made = getattr(tiny_stages, f"make_{stage}")
    battery.check_corruptions(lambda: made(steps), tmp_path, number=20)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """One process that all stages' runs are forked from: importing is the slow part."""
    with battery._server(f"{FILE}:make_short_opd") as process:
        yield process


@pytest.mark.parametrize("stage", STAGES)
def test_sigkill_in_rollouts_and_saves_ends_like_an_uninterrupted_run(stage, tmp_path, server):
    modes = ("rollout", "save") if stage in ROLLS else ("line", "save", "torn")
    done = battery.check_kills(
        f"{FILE}:make_short_{stage}", tmp_path, kills=3, modes=modes, server=server
    )
    assert done.get("rollout", 0) >= (stage in ROLLS)


# ------------------------------------------------------------------------------- all of it (slow)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_stage_resumes_from_each_of_12_steps(stage, tmp_path):
    rounds = 2 if stage in GROUPS else 1
    assert check_resumes(stage, tmp_path, short=False) == 12 // rounds


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_200_corruptions_of_the_stage_are_all_detected(stage, tmp_path):
    battery.check_corruptions(factory(stage, short=False), tmp_path, number=200)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_sigkill_25_times_ends_like_an_uninterrupted_run(stage, tmp_path, server):
    spec = f"{FILE}:make_{stage}"
    modes = kill_modes(stage)
    done = battery.check_kills(spec, tmp_path, kills=25, modes=modes, server=server)
    assert done["save"] + done["torn"] >= 5
    assert done.get("rollout", 0) >= (3 if stage in ROLLS else 0)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rl", "block_rl"])
def test_rounds_of_one_step_resume_from_each_of_12_steps(stage, tmp_path):
    """With one optimizer step per rollout batch there is a checkpoint after every step."""

    def made() -> tuple:
        task, config = getattr(tiny_stages, f"{stage}_task")(epochs=1, micro_rows=4)
        return task, tiny_stages.model("ar" if stage == "rl" else "block"), config

    assert battery.check_resume_from_every_step(made, tmp_path) == 12
