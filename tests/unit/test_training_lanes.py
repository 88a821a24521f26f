"""Micros side by side: the same step as one after the other, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from diffgr2.progress import Progress
from diffgr2.train import parallel
from diffgr2.train.loop import fit
from support import tiny_stages, toy


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, and no model too small for lanes."""
    before = torch.get_num_threads()
    monkeypatch.setattr(parallel, "TINY", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(work: Path, n_lanes: int, **changes: Any) -> tuple[list[dict[str, Any]], Any]:
    """Some steps of SFT on a tiny re-ranker."""
    torch.set_num_threads(n_lanes)
    task, config = tiny_stages.sft_task(**{"steps": 4, "rows": 7, "warmup": 0, **changes})
    net = tiny_stages.model()
    lines = fit(task, net, config, work, 0, Progress())
    assert torch.get_num_threads() == n_lanes, "the number of threads is whose it was"
    return lines, net


@pytest.mark.parametrize("rows", [{"micro_rows": 16}, {"micro_rows": 2}])
def test_two_lanes_make_the_steps_of_one(threads: None, tmp_path: Path, rows: dict) -> None:
    """However rows are cut; fp32, where the order of sums is all that differs."""
    one, plain = trained(tmp_path / "one", 1, precision="fp32", **rows)
    two, beside = trained(tmp_path / "two", 2, precision="fp32", **rows)
    for line, wanted in zip(two, one, strict=True):
        assert line.keys() == wanted.keys()
        for key in wanted.keys() - {"step_time"}:
            assert line[key] == pytest.approx(wanted[key], rel=2e-4, abs=1e-6), key
    for mine, other in zip(beside.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equal_runs_are_equal_bit_for_bit(threads: None, tmp_path: Path, precision: str) -> None:
    runs = [trained(tmp_path / str(n), 2, precision=precision)[1] for n in range(2)]
    for mine, other in zip(*(net.parameters() for net in runs), strict=True):
        assert torch.equal(mine, other)


def test_a_forward_in_bf16_is_the_one_without_lanes(threads: None, tmp_path: Path) -> None:
    """The first loss, before any update: a lane's autocast is on."""
    first = [
        trained(tmp_path / f"{n} {precision}", n, precision=precision, micro_rows=2)[0][0]["loss"]
        for n, precision in ((1, "bf16"), (2, "bf16"), (1, "fp32"))
    ]
    assert first[1] == pytest.approx(first[0], rel=1e-5)
    assert first[2] != first[0]


def test_a_lane_that_fails_ends_the_step_when_all_have_stopped(threads: None) -> None:
    net, seen = toy.ToyModel(), []
    weight = next(net.parameters())

    def loss(job: int) -> tuple[torch.Tensor, int]:
        if job == 0:
            raise ValueError("of job 0")
        seen.append(job)
        return weight.sum() * job, job

    beside = parallel.Lanes(net)
    with beside.at_work(), pytest.raises(ValueError, match="of job 0"):
        beside.backward(range(6), loss)
    assert seen == [1, 3, 5], "the other lane's jobs"
    assert weight.grad is None, "no half of a step"
    with beside.at_work():
        assert beside.backward(range(1, 6), loss) == [1, 2, 3, 4, 5]
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full_like(weight, 15.0))
    beside.close()


def test_jobs_without_a_gradient_are_kept_all_the_same(threads: None) -> None:
    net = toy.ToyModel()
    beside = parallel.Lanes(net)
    with beside.at_work():
        assert beside.backward(range(3), lambda job: (torch.zeros(()), -job)) == [0, -1, -2]
    beside.close()
    assert all(parameter.grad is None for parameter in net.parameters())


def test_who_has_lanes(monkeypatch: pytest.MonkeyPatch, threads: None) -> None:
    net = toy.ToyModel()
    weights = sum(parameter.numel() for parameter in net.parameters())
    config = toy.config_of(rows=9, micro_rows=8)
    assert (parallel.lanes_of(net), parallel.micro_rows(config, net)) == (2, 5)
    monkeypatch.setattr(parallel, "SMALL", weights - 1)
    assert (parallel.lanes_of(net), parallel.micro_rows(config, net)) == (1, 8)
    monkeypatch.setattr(parallel, "SMALL", weights)
    monkeypatch.setattr(parallel, "TINY", weights)
    assert parallel.lanes_of(net) == 1
    monkeypatch.setattr(parallel, "TINY", 0)
    torch.set_num_threads(1)
    assert parallel.lanes_of(net) == 1
    torch.set_num_threads(2)
    assert parallel.lanes_of(net.to("meta")) == 1, "a device's threads are not ours to share"
