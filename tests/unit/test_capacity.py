"""`diffgr2 plan` at size: fits, what breaks first, marks, machines and what is printed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffgr2.capacity import costtable, forecast, measuring
from diffgr2.capacity.costtable import Machine, Point, Round, Served, Table
from diffgr2.capacity.machines import amount_of, count_said, machines_of
from diffgr2.capacity.powerlaw import fit
from diffgr2.capacity.queueing import Replica
from diffgr2.capacity.stalls import Stalls
from diffgr2.capacity.synthetic import written
from diffgr2.cli import app
from diffgr2.config import DataConfig, Recipe
from diffgr2.data.split import k_core
from diffgr2.errors import ArtifactError, ConfigError, Diffgr2Error
from diffgr2.recipe import load_recipe
from diffgr2.stages.effort import EPOCHS, Size

GRID = [(n, i) for n in (1e5, 1e6, 3e6) for i in (1e4, 1e5)]

TRUE = {  # seconds and bytes of each part at (interactions, items, lists)
    "data": (lambda n, i, s: 2 + 9e-6 * n, lambda n, i, s: 3e8 + 150 * n),
    "items": (lambda n, i, s: 4 + 9e-5 * i, lambda n, i, s: 4e8 + 3e3 * i),
    "retriever:sasrec": (lambda n, i, s: 5 + 1e-10 * n * i, lambda n, i, s: 5e8 + 200 * n),
    "epoch:sasrec": (lambda n, i, s: 6e-9 * n * i, lambda n, i, s: 5e8 + 200 * n),
    "candidates:sasrec": (lambda n, i, s: 3 + 1e-8 * s / 20 * i, lambda n, i, s: 4e8 + 10 * s),
    "retriever:itemknn": (lambda n, i, s: 3 + 2e-6 * n, lambda n, i, s: 4e8 + 100 * n),
    "candidates:itemknn": (lambda n, i, s: 3 + 1e-9 * s / 20 * i, lambda n, i, s: 4e8 + 10 * s),
    "candidates:popularity": (lambda n, i, s: 3 + 1e-9 * s / 20 * i, lambda n, i, s: 4e8 + 9 * s),
    "evidence": (lambda n, i, s: 6 + 2e-6 * s, lambda n, i, s: 5e8 + 100 * s),
}


@cache
def recipe_of(k_max: int) -> Recipe:
    return load_recipe("demo", [f"candidates.k_max={k_max}"])


def sizes_at(interactions: float, items: float, k_max: int = 20) -> dict[str, float]:
    size = Size(round(interactions / 8), round(items), round(interactions))
    return forecast.sizes_of_data(recipe_of(k_max), size)


def table(machine: Machine | None = None, **more) -> Table:
    points: dict[str, tuple[Point, ...]] = {}
    for part, (seconds, peak) in TRUE.items():
        every = [(n, i, sizes_at(n, i)) for n, i in GRID]
        points[part] = tuple(
            Point(s, seconds(n, i, s["shown"]), peak(n, i, s["shown"]), 1e5 + n)
            for n, i, s in every
        )
    return Table(machine or Machine.here(), {"retriever": {"dim": 64}}, "made up", points, **more)


def served(**more) -> Served:
    replica = Replica(0.004, 0.004, 2, 32, 0.5, 0.0, (1,), (0.9, 1.0, 1.1))
    rounds = (Round(1, 100, 0.008, 0.008, 0.009, 125.0),)
    facts = ("demo", "", "block", 800_000, 10, 2, 3e8, 1e7)
    return replace(Served(*facts, sizes_at(36_000, 2_000), rounds, replica, 0.02), **more)


def planned(place: Path, found: Table, *words: str) -> tuple[int, str]:
    costtable.write(place / "costs.json", found)
    done = CliRunner().invoke(app, ["plan", *words, "--costs", str(place / "costs.json")])
    if isinstance(done.exception, Diffgr2Error):
        raise done.exception
    return done.exit_code, done.output


# ------------------------------------------------------------------------------------------ fits


@pytest.mark.parametrize(("n", "i", "base"), [(1.2, 0.8, 1.0), (1.0, 1.0, 0.0), (0.8, 1.25, 9.0)])
def test_known_powers_are_found_again_through_noise(n: float, i: float, base: float) -> None:
    source = np.random.default_rng(0)
    points = [
        ({"n": a, "i": b}, (base + 1e-8 * a**n * b**i) * (1 + 0.01 * source.normal()))
        for a in (1e5, 3e5, 1e6, 3e6)
        for b in (1e4, 1e5)
    ]
    law = fit(points, {"n": 1.0, "i": 1.0})
    assert law.powers == pytest.approx({"n": n, "i": i}, abs=0.06)
    far = {"n": 1e7, "i": 3e5}
    assert law.at(far) == pytest.approx(base + 1e-8 * 1e7**n * 3e5**i, rel=0.2)
    assert law.beyond(far) == pytest.approx(10 / 3)
    assert law.beyond({"n": 1e6, "i": 2e4}) == 1.0
    assert law.beyond({"n": 1e4, "i": 2e4}) == pytest.approx(10)


CURVES = [  # at .3, 1 and 3 M interactions of 30, 60 and 120 k items, and at 10 M of 300 k
    ("data", "seconds", (4.2, 10.6, 27.1), 93.4),
    ("data", "peak", (0.40e9, 0.49e9, 0.76e9), 1.68e9),
    ("items", "seconds", (8.5, 10.3, 18.0), 31.6),
    ("items", "peak", (0.63e9, 0.68e9, 0.88e9), 1.34e9),
    ("epoch:sasrec", "seconds", (36.0, 360.0, 1944.0), 18_720.0),
    ("epoch:sasrec", "peak", (0.78e9, 1.02e9, 1.32e9), 2.1e9),
]


@pytest.mark.parametrize(("part", "what", "values", "at_ten"), CURVES)
def test_a_law_of_three_sizes_says_a_fourth_that_was_measured(part, what, values, at_ten) -> None:
    """Curves of the first version, taken by hand."""
    sizes = [sizes_at(n, i) for n, i in ((3e5, 3e4), (1e6, 6e4), (3e6, 1.2e5))]
    found = [
        Point(s, *((v, 1.0) if what == "seconds" else (1.0, v)))
        for s, v in zip(sizes, values, strict=True)
    ]
    law = Table(Machine.here(), points={part: tuple(found)}).laws[part, what]
    far = sizes_at(1e7, 3e5)
    assert law.at(far) == pytest.approx(at_ten, rel=0.25)
    assert law.beyond(far) >= 2.5


def test_where_sizes_grew_together_the_expected_powers_stand() -> None:
    points = [({"n": x, "i": x / 10}, 1e-9 * x * x / 10) for x in (1e4, 1e5, 1e6)]
    law = fit(points, {"n": 1.0, "i": 1.0})
    assert law.powers == pytest.approx({"n": 1.0, "i": 1.0}, abs=0.02)


def test_differences_below_the_grain_say_nothing() -> None:
    points = [({"n": x}, y) for x, y in ((1e3, 0.001), (1e4, 0.09), (1e5, 10.0), (1e6, 100.0))]
    law = fit(points, {"n": 1.0}, grain=1.0, based=False)
    assert law.at({"n": 1e7}) == pytest.approx(1_000, rel=0.15)


# ---------------------------------------------------------------------------- stages and breaking


def test_stages_take_what_their_parts_take() -> None:
    recipe, sizes = load_recipe("demo"), sizes_at(1e6, 1e4)
    by_stage = {cost.stage: cost for cost in forecast.costs(table(), recipe, sizes)}
    assert [*by_stage] == ["data", "items", "retriever", "candidates", "evidence"]
    epoch = TRUE["epoch:sasrec"][0](1e6, 1e4, 0)
    rest = TRUE["retriever:sasrec"][0](1e6, 1e4, 0)
    assert by_stage["retriever"].seconds.value == pytest.approx(rest + EPOCHS * epoch, rel=0.05)
    asked = TRUE["candidates:sasrec"][0](1e6, 1e4, sizes["shown"])
    more = by_stage["candidates"].seconds.value
    assert more == pytest.approx(asked + EPOCHS * epoch, rel=0.05)  # two folds see half each
    folds = load_recipe("demo", ["candidates.folds=4"])
    wider = next(c for c in forecast.costs(table(), folds, sizes) if c.stage == "candidates")
    assert wider.seconds.value == pytest.approx(asked + 3 * EPOCHS * epoch, rel=0.05)
    simple = load_recipe("demo", ["retriever.kind=popularity"])
    assert [c.stage for c in forecast.costs(table(), simple, sizes)] == [
        *("data", "items", "candidates", "evidence")
    ]


def test_the_first_to_break_is_the_one_whose_limit_comes_first() -> None:
    recipe, sizes, day = load_recipe("demo"), sizes_at(1e6, 1e4), 86_400.0
    found = forecast.breaking(table(), recipe, sizes, 64e9, day)
    assert (found[0].stage, found[0].what) == ("candidates", "time")
    epochs = EPOCHS * TRUE["epoch:sasrec"][0](1e6, 1e4, 0)
    # Items grow with the data, so an epoch grows with its square.
    assert found[0].times == pytest.approx((day / epochs) ** 0.5, rel=0.1)
    assert [one.times for one in found] == sorted(one.times for one in found)
    counted = load_recipe("demo", ["retriever.kind=itemknn"])
    first = forecast.breaking(table(), counted, sizes, 64e9, 1e9)[0]
    assert (first.stage, first.what) == ("evidence", "memory")
    room = 0.9 * 64e9 - 5e8
    assert first.times == pytest.approx(room / 100 / sizes["shown"], rel=0.05)


def test_advice_is_a_change_that_keeps_it_within() -> None:
    recipe, size, day = load_recipe("demo"), Size(2_500_000, 1_000_000, 20_000_000), 86_400.0
    sizes = forecast.sizes_of_data(recipe, size)
    found = forecast.breaking(table(), recipe, sizes, 64e9, day)
    (slow,) = [one for one in found if (one.stage, one.what) == ("retriever", "time")]
    assert slow.times < 1
    told = forecast.advice(table(), recipe, size, slow, 64e9, day)
    assert told.startswith("--set retriever.kind=itemknn keeps it within")
    changed = load_recipe("demo", ["retriever.kind=itemknn"])
    again = forecast.costs(table(), changed, forecast.sizes_of_data(changed, size))
    assert next(c for c in again if c.stage == "retriever").seconds.value < day
    data = forecast.Break("data", "memory", 0.5)
    assert "a machine with more memory" in forecast.advice(table(), recipe, size, data, 1e9, day)


def with_samples(found: Table) -> Table:
    """The same where a loss over a sample and a search in cells were measured, too."""
    points = dict(found.points)
    for part, seconds in (("epoch:sampled", 2e-5), ("candidates:cells", 4e-5)):
        points[part] = tuple(
            Point(s, seconds * s["interactions"], 6e8 + 40 * s["interactions"])
            for s in (sizes_at(n, i) for n, i in GRID)
        )
    return replace(found, points=points)


def test_a_size_at_which_the_loss_is_over_a_sample_is_planned_with_its_cost() -> None:
    recipe, small, large = load_recipe("demo"), sizes_at(1e6, 1e4), sizes_at(2e7, 1e6)
    both = with_samples(table())

    def seconds(found: Table, sizes: dict[str, float], *keys: str) -> dict[str, float]:
        taken = forecast.costs(found, load_recipe("demo", [*keys]), sizes)
        return {cost.stage: cost.seconds.value for cost in taken}

    assert seconds(both, small) == seconds(table(), small)
    assert seconds(both, large, "retriever.loss=full", "retriever.search=exact") == seconds(
        table(), large
    )
    rest = TRUE["retriever:sasrec"][0](2e7, 1e6, 0)
    wanted = rest + EPOCHS * 2e-5 * 2e7
    assert seconds(both, large)["retriever"] == pytest.approx(wanted, rel=0.2)
    assert seconds(both, large)["candidates"] == pytest.approx(EPOCHS * 400 + 800, rel=0.2)
    assert seconds(both, small, "retriever.loss=sampled")["retriever"] == pytest.approx(
        TRUE["retriever:sasrec"][0](1e6, 1e4, 0) + EPOCHS * 20, rel=0.1
    )
    full = load_recipe("demo", ["retriever.loss=full", "retriever.search=exact"])
    size = Size(2_500_000, 1_000_000, 20_000_000)
    broken = [forecast.Break(stage, "time", 0.1) for stage in ("retriever", "candidates")]
    told = [forecast.advice(both, full, size, one, 64e9, 86_400.0) for one in broken]
    assert told[0].startswith("--set retriever.loss=sampled keeps it within")
    ways = "retriever.loss=sampled retriever.search=approximate"
    assert told[1].startswith(f"--set {ways} keeps it within")
    assert recipe.retriever.loss == "auto"


# ------------------------------------------------------------------------------------------ marks


def test_a_figure_is_measured_only_within_what_was_measured_here() -> None:
    recipe = load_recipe("demo")
    inside = forecast.costs(table(), recipe, sizes_at(1e6, 5e4))
    assert {cost.seconds.mark for cost in inside} == {"measured"}
    beyond = forecast.costs(table(), recipe, sizes_at(3e7, 5e4))
    assert {c.seconds.mark for c in beyond if c.stage == "data"} == {"extrapolated ×10"}
    other = table(replace(Machine.here(), processor="Abacus"))
    assert {c.seconds.mark for c in forecast.costs(other, recipe, sizes_at(1e6, 5e4))} == {
        "extrapolated"
    }
    wider = load_recipe("demo", ["retriever.dim=128"])
    marks = {c.stage: c.seconds.mark for c in forecast.costs(table(), wider, sizes_at(1e6, 5e4))}
    assert (marks["data"], marks["retriever"]) == ("measured", "extrapolated")
    assert forecast.other_keys(table(), wider) == ["retriever.dim"]
    assert forecast.other_keys(table(), recipe) == []


# --------------------------------------------------------------------------------- the whole sheet


def test_a_recipe_within_its_limits_is_planned_with_marks(tmp_path: Path) -> None:
    words = ("demo", "--interactions", "1M", "--items", "10k", "--machines", "64c256g")
    code, said = planned(tmp_path, table(), *words)
    assert code == 0
    lines = said.splitlines()
    assert lines[0].startswith("costs: yours, measured on ")
    assert re.match(r"data: 1 M interactions, .* users, 10 k items, .* \(as given\)$", lines[1])
    marks = {line.split()[0]: line for line in lines[3:8]}
    assert [*marks] == ["data", "items", "retriever", "candidates", "evidence"]
    assert all(re.search(r"measured +[\d.,]+ [MG]B  measured$", line) for line in marks.values())
    assert "first to break: candidates, by time, at " in said
    assert "  switch: --set retriever.kind=itemknn" in said
    assert lines[-1] == "all stages fit"


def test_what_breaks_at_the_size_asked_is_an_exit_code(tmp_path: Path) -> None:
    words = ("demo", "--interactions", "200M", "--items", "1M", "--machines", "8x16c64g")
    code, said = planned(tmp_path, table(), *words)
    assert code == 1
    assert re.search(r"first to break: candidates, by time, at [\d.]+ M interactions", said)
    assert re.search(r"then: evidence, by memory, at [\d.]+ M\n  switch: ", said)
    assert "extrapolated ×67" in said
    assert "all stages fit" not in said


def test_traffic_is_simulated_and_placed_on_machines(tmp_path: Path) -> None:
    found = table(served=(served(),))
    words = ("demo", "--interactions", "1M", "--items", "10k", "--decoder", "block")
    asked = ("--rate", "500", "--p99", "100", "--lists-per-day", "50M", "--machines", "2x16c64g")
    code, said = planned(tmp_path, found, *words, *asked)
    assert code == 0
    hours = 50e6 / served().replica.capacity * 2 / 3600
    assert f"50 M lists a day: {hours:,.0f} core-hours" in said
    two, random = re.findall(r"p99 ≤ 100 ms, [\w ]+: (\d+) replicas? at a load of (\d\.\d\d)", said)
    assert int(two[0]) <= int(random[0])
    assert float(two[1]) == pytest.approx(500 / int(two[0]) / served().replica.capacity, abs=0.01)
    assert "8 on a machine of 16 cores: 1 machine (2 there)" in said
    code, said = planned(tmp_path, found, *words, *asked[:-1], "2c8g")
    assert code == 1
    assert f"1 on a machine of 2 cores: {two[0]} machines (1 there)" in said
    code, said = planned(tmp_path, found, *words, *asked[:-1], "1c8g")
    assert "a replica does not fit a machine, for its cores: it takes 2 cores" in said
    code, said = planned(tmp_path, found, *words, "--rate", "500", "--p99", "5")
    assert code == 1
    assert "no number of replicas keeps it" in said


def test_a_machine_that_stands_still_is_counted_in_and_told(tmp_path: Path) -> None:
    stalls = Stalls(5.0, ((1.0, 0.1, 5.0), (2.5, 0.3, 5.0)))
    found = served(replica=replace(served().replica, stalls=stalls))
    words = ("demo", "--interactions", "1M", "--items", "10k", "--decoder", "block", "--rate", "9")
    code, said = planned(tmp_path, table(served=(found,)), *words, "--p99", "900")
    assert code == 0
    assert "itself slows down 0.4 times a second for 200 ms, which costs 6 % of its time" in said
    assert f"at most {found.replica.capacity:.0f} lists a second" in said
    assert costtable.read(tmp_path / "costs.json").served == (found,)
    code, said = planned(tmp_path, table(served=(found,)), *words, "--p99", "40")
    assert code == 1
    kept = r"the freer of two: no number of replicas keeps it\n  on a machine that never .*: 1 rep"
    assert re.search(kept, said)
    elsewhere = table(replace(Machine.here(), cores=99), served=(found,))
    code, said = planned(tmp_path, elsewhere, *words, "--p99", "40")
    assert code == 0
    assert "not counted: times at which this machine stands still" in said


def test_service_times_of_another_model_are_scaled_and_said_to_be(tmp_path: Path) -> None:
    words = ("demo", "--interactions", "1M", "--items", "10k", "--lists-per-day", "1M")
    small = served(weights=100, k=5)
    code, said = planned(tmp_path, table(served=(small,)), *words, "--decoder", "block")
    assert code == 0
    assert re.search(r"block: .* \(extrapolated ×[\d,]+; scaled ×[\d.]+ from demo", said)
    code, said = planned(tmp_path, table(served=(small,)), *words, "--decoder", "verify")
    assert "no service time of verify was measured: diffgr2 plan BUNDLE --measure" in said


def test_gpus_of_machines_are_those_of_training(tmp_path: Path) -> None:
    words = ("demo", "--interactions", "1M", "--items", "10k")
    _, said = planned(tmp_path, table(), *words, "--machines", "4x64c256g+2x40GBgpu")
    assert "; 8 GPUs of 40 GB" in said


# ------------------------------------------------------------------- the table, words and errors


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = table(served=(served(),))
    costtable.write(tmp_path / "costs.json", found)
    assert costtable.read(tmp_path / "costs.json") == found
    busy = replace(Machine.here(), load=7.5)
    assert "beside other work, so times are too long" in Table(busy).said()
    assert "too long" not in Table(replace(busy, load=0.4)).said()
    for text in ("[]", '{"format": 1}', '{"format": 9}', "no json"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ArtifactError, match=r"bad\.json"):
            costtable.read(tmp_path / "bad.json")


def test_the_users_own_table_goes_before_the_shipped_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shipped = costtable.opened(None)
    assert shipped.shipped
    assert shipped.said().startswith("shipped with diffgr2, measured on ")
    assert {*shipped.points} == {*costtable.GROWS}
    assert {each.decoder for each in shipped.served} == {"ar", "block", "verify"}
    assert all(max(each.replica.wake) > 0 for each in shipped.served)
    only = Table(Machine.here(), served=(served(mark="x"),))
    costtable.write(costtable.own_place(), only)
    both = costtable.opened(None)
    assert both.points == shipped.points
    assert both.served[0].mark == "x"
    stalls = Stalls(5.0, ((1.0, 0.1, 5.0),))
    own = Table(Machine.here(), served=(served(replica=replace(served().replica, stalls=stalls)),))
    costtable.write(costtable.own_place(), own)
    costtable.write(tmp_path / "far", replace(own, machine=replace(own.machine, cores=99)))
    monkeypatch.setattr(costtable, "SHIPPED", tmp_path / "far")
    kept = [one.replica.stalls for one in costtable.opened(None).served]
    assert kept == [stalls, Stalls()], "spells are this machine's alone"
    costtable.write(costtable.own_place(), table())
    assert not costtable.opened(None).shipped


def test_measured_anew_takes_the_place_of_what_was_known() -> None:
    here, old = Machine.here(), served(mark="x", misfit=0.5)
    new = served(mark="x")
    assert table(served=(old,)).with_served(here, [new]).served == (new,)
    other = table(replace(here, cores=99), served=(old,))
    assert other.with_served(here, [new]).points == {}  # not of this machine
    assert table(served=(old,)).with_points(here, table()).served == (old,)
    assert other.with_points(here, table()).served == ()


def test_machines_and_amounts_as_people_write_them() -> None:
    one = machines_of("4x8c32g+2x80GBgpu")
    assert (one.count, one.cores, one.memory, one.gpus, one.gpu_memory) == (4, 8, 32e9, 8, 80e9)
    assert machines_of("16C64GB").count == 1
    assert [count_said(amount_of(t, "")) for t in ("200M", "1.5k", "70")] == [
        "200 M",
        "1.5 k",
        "70",
    ]
    for text in ("", "8x", "16c", "0x2c3g", "2c0g", "2c3g+0x80GBgpu", "c3g", "-1c3g"):
        with pytest.raises(ConfigError, match=r"^--machines "):
            machines_of(text)
    for text in ("", "M", "-1", "1T", "0", "nan"):
        with pytest.raises(ConfigError, match=r"^--items "):
            amount_of(text, "--items")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("demo", "--machines", "much"), "--machines much: expected"),
        (("demo", "--interactions", "much"), "--interactions much: expected"),
        (("demo", "--decoder", "best"), "--decoder best: expected one of ar, block, verify"),
        ((), "RECIPE|BUNDLE: needed"),
        (("nowhere", "--measure"), "--measure nowhere: no bundle stands there"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError) as found:
        planned(tmp_path, table(), *words)
    assert str(found.value).startswith(told)
    assert "\n" not in str(found.value)


def test_invented_interactions_have_the_size_that_was_asked(tmp_path: Path) -> None:
    import polars as pl

    bought, sold = (pl.read_parquet(path) for path in written(tmp_path, 20_000, 1_000))
    assert len(sold) == sold["item"].n_unique() == 1_000
    assert len(bought) == pytest.approx(20_000, rel=0.05)
    assert bought["user"].n_unique() == 2_500
    assert bought.group_by("user").len()["len"].min() >= 3
    assert {*bought["item"]} <= {*sold["item"]}
    (tmp_path / "again").mkdir()
    again, _ = (pl.read_parquet(path) for path in written(tmp_path / "again", 20_000, 1_000))
    assert again.equals(bought)


@pytest.mark.parametrize("size", [*measuring.QUICK[:2], measuring.THOROUGH[0]])
def test_at_the_sizes_that_are_measured_the_core_leaves_most(size, tmp_path: Path) -> None:
    import polars as pl

    ids = pl.col("user", "item").cast(pl.Categorical)
    bought = pl.read_parquet(written(tmp_path, *size)[0]).with_columns(ids)
    bought = bought.select("user", "item", time="timestamp", position=pl.lit(0))
    assert len(k_core(bought, DataConfig().k_core)) > 0.6 * len(bought)
    assert all(n >= 10 * items for n, items in (*measuring.QUICK, *measuring.THOROUGH))


def test_what_is_measured_is_a_recipe_of_defaults() -> None:
    plain = replace(table(), recipe=measuring.keys_of())
    assert forecast.other_keys(plain, load_recipe("demo")) == ["items.codes"]
    assert "evidence.fields" in forecast.other_keys(plain, load_recipe("beauty"))


def test_the_shipped_table_is_json_of_the_format() -> None:
    assert json.loads(costtable.SHIPPED.read_text())["format"] == costtable.FORMAT
