"""Training survives kills, resumes bit for bit, and does nothing when it is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import battery, toy

TOY = str(Path(toy.__file__).resolve())


@pytest.mark.parametrize(
    ("factory", "checkpoints"),
    [(toy.make, 12), (toy.make_rounds, 4), (toy.make_bf16, 12), (toy.make_muon, 12)],
)
def test_resume_from_every_step_is_bit_identical(factory, checkpoints, tmp_path):
    assert battery.check_resume_from_every_step(factory, tmp_path) == checkpoints


@pytest.mark.parametrize("factory", [toy.make, toy.make_rounds])
def test_finished_run_again_is_a_noop(factory, tmp_path):
    battery.check_finished_is_noop(factory, tmp_path)


@pytest.mark.parametrize("factory", ["make", "make_rounds"])
def test_sigkill_25_times_ends_like_an_uninterrupted_run(factory, tmp_path):
    done = battery.check_kills(f"{TOY}:{factory}", tmp_path, kills=25)
    assert done["save"] + done["torn"] >= 8
    assert done["line"] >= 3


@pytest.mark.slow
def test_sigkill_50_times_from_outside(tmp_path):
    battery.check_kills(
        f"{TOY}:make", tmp_path, kills=50, from_outside=True, steps=60, checkpoint_every=1
    )


def test_sigterm_leaves_a_checkpoint_and_exit_code_0(tmp_path):
    """The signal comes from inside, during step 5, so that the moment is exact."""
    with battery._server(f"{TOY}:make_sigterm") as server:
        for number in range(10):
            work = tmp_path / str(number)
            assert battery._ask(server, work, checkpoint_every=1000) == 0
            assert not (work / "result.json").exists()
            assert [p.name for p in (work / "checkpoints").iterdir()] == ["step-00000005"]
        for ended in (work, tmp_path / "whole"):
            assert battery._ask(server, ended, factory="make") == 0
    battery.same(battery._result(work), battery._result(tmp_path / "whole"))
