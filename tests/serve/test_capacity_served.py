"""What `diffgr2 plan BUNDLE --measure` keeps of a real server, and what it then plans with."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from diffgr2.capacity import costtable, measuring, servicing
from diffgr2.capacity.costtable import Machine, Table
from diffgr2.cli import app
from diffgr2.errors import ArtifactError
from diffgr2.rerank.world import World


def planned(bundle: Path, place: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["plan", str(bundle), *words, "--costs", str(place)])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_bundle_is_measured_by_its_own_server(run_dir: Path, tmp_path: Path) -> None:
    bundle, told = run_dir / "bundle", list[str]()
    how = {"clients": (1, 2), "asked": 4, "watch": 0.5}
    found = servicing.serviced(bundle, ["block", "ar"], 1, told.append, **how)
    assert [one.decoder for one in found] == ["block", "ar"]
    assert len(told) == 10
    assert {one.replica.stalls.watched >= 0.5 for one in found} == {True}
    world = World(bundle)
    for one in found:
        assert [r.clients for r in one.rounds] == [1, 2]
        assert all(0 < r.p50 <= r.p99 and r.per_s > 0 for r in one.rounds)
        assert one.sizes["items"] == len(world.catalogue)
        assert one.memory > one.index > 0
        assert one.replica.capacity > 0
        assert len(one.replica.wake) == len(one.replica.noise) > 1
    # A token at a time takes more iterations than a block.
    steps = [sum(one.replica.steps) / len(one.replica.steps) for one in found]
    assert steps[1] > 1.5 * steps[0]
    place = tmp_path / "costs.json"
    costtable.write(place, Table(Machine.here()).with_served(Machine.here(), found))
    said = planned(bundle, place, "--lists-per-day", "1M", "--rate", "0.01", "--p99", "60000")
    assert re.search(r"index of a replica: \d+ MB on disk \(measured\)", said)
    assert re.search(r"block: .* a replica of 1 cores \(measured; ", said)
    assert "1 replica at a load of 0.00" in said
    # The same figures of another machine are not of this one.
    other = replace(costtable.read(place), machine=replace(Machine.here(), cores=99))
    costtable.write(place, other)
    assert re.search(r"block: .* \(extrapolated; ", planned(bundle, place, "--lists-per-day", "1M"))


def test_the_verb_keeps_a_bundle_beside_what_was_known(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servicing, "CLIENTS", (1, 2))
    monkeypatch.setattr(servicing, "ASKED", 2)
    monkeypatch.setattr(servicing, "WATCHED", 0.1)
    bundle, place = run_dir / "bundle", tmp_path / "deep" / "costs.json"
    said = planned(bundle, place, "--measure", "--decoder", "block")
    assert re.search(r"^block: [\d.]+ ms a list alone, at most \d+ a second;", said, re.MULTILINE)
    planned(bundle, place, "--measure", "--decoder", "ar")
    planned(bundle, place, "--measure", "--decoder", "ar")
    kept = costtable.read(place)
    assert [one.decoder for one in kept.served] == ["block", "ar"]
    assert kept.machine.same(Machine.here())


def test_lists_are_those_of_shoppers_without_what_they_bought(run_dir: Path) -> None:
    world = World(run_dir / "bundle")
    for body in servicing.bodies(world, 8):
        assert len(body["documents"]) == len(body["scores"]) == world.k
        assert not {*body["documents"]} & {*body["history"]}
        assert body["scores"] == sorted(body["scores"], reverse=True)


def test_a_child_that_fails_is_one_line() -> None:
    with pytest.raises(ArtifactError, match=r"plan nowhere: error: nowhere"):
        measuring.used([sys.executable, "-m", "diffgr2.cli", "plan", "nowhere"], {**os.environ})


@pytest.mark.slow
def test_stages_are_measured_each_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "QUICK", ((8_000, 800), (16_000, 800)))
    place = tmp_path / "costs.json"
    done = CliRunner().invoke(app, ["plan", "--measure", "--costs", str(place)])
    assert done.exit_code == 0, done.output
    found = costtable.read(place)
    assert {*found.points} == {*costtable.GROWS} - {"candidates:cells"}  # items are too few
    for part, points in found.points.items():
        sizes = [point.sizes["interactions"] for point in points]
        assert sizes == sorted(sizes), part
        # Lists are made twice at a size, so that fits tell them from interactions.
        twice = part in ("evidence", "candidates:popularity")
        assert len(sizes) == len({*sizes}) * (1 + twice), part
        assert all(p.seconds > 0 and p.peak > 1e8 for p in points)
    assert all(p.kept > 0 for p in found.points["evidence"])
    assert {what for _, what in found.laws} == {"seconds", "peak", "kept"}


def test_what_would_take_too_long_is_left_out_and_said() -> None:
    told: list[str] = []
    bench = measuring.Bench(60.0, told.append)
    sizes = {"lists": 1e3, "items": 1e3}
    assert bench._affords("candidates:itemknn", sizes)  # nothing is known yet
    bench._add("candidates:itemknn", sizes, measuring.Used(10.0, 1e9))
    bench._add("candidates:itemknn", {"lists": 2e3, "items": 1e3}, measuring.Used(20.0, 1e9))
    assert bench._affords("candidates:itemknn", {"lists": 4e3, "items": 1e3})
    assert not bench._affords("candidates:itemknn", {"lists": 4e4, "items": 1e3})
    assert "left out" in told[-1]
