"""`diffgr2 plan`: what a recipe or a bundle takes at a size, before anything is run.

Contract: for a recipe, CPU seconds and memory of the stages before training out of the table of
costs (`capacity`), and memory per GPU and time of training stages out of `stages.sizing`; for
either, replicas for a rate and core-hours for a day; every assumption beside it, and for what does
not fit what would make it; exit code 1 if something does not. `--measure` makes the table of this
machine. Not here: the arithmetic, the measuring, and what was measured (docs/scaling.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffgr2.choices import DECODERS
from diffgr2.cli.verbs import Overrides
from diffgr2.errors import ArtifactError, ConfigError, one_of

if TYPE_CHECKING:
    from diffgr2.capacity.machines import Machines
    from diffgr2.capacity.sheet import Asked
    from diffgr2.config import Recipe
    from diffgr2.stages.effort import Size
    from diffgr2.stages.sizing import Machine

UNITS = {"GB": 1e9, "GiB": 2.0**30, "": 1e9}
COLUMNS = ("weights", "gradients", "optimizer", "gathered", "frozen", "logits", "rollouts")

Subject = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE|BUNDLE", help="`demo`: the recipe; with --measure, the bundle."),
]
Gpus = Annotated[int, typer.Option(min=1, max=4096, help="Processes, a GPU each.")]
GpuMemory = Annotated[str, typer.Option(metavar="SIZE", help="Of one GPU, like 80GB.")]
BaseConfig = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Whose config.json stands for model.base, or a name."),
]
Tflops = Annotated[float, typer.Option(min=0.1, help="Of one GPU, dense bf16.")]
Mfu = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Share of them that training is to reach.")
]
Many = Annotated[
    str | None, typer.Option(metavar="N", help="Of the data, like 200M.", rich_help_panel="Size")
]
Fleet = Annotated[
    str | None,
    typer.Option(
        metavar="MACHINES",
        help="[N x]CORESc MEMORYg[+[N x]SIZEgpu]: 8x16c64g, 4x8c32g+1x80GBgpu.",
        show_default="this one",
    ),
]
Within = Annotated[float, typer.Option(min=0.01, help="Hours that a stage may take.")]
Rate = Annotated[float | None, typer.Option(min=0.001, help="Lists a second to answer.")]
P99 = Annotated[float, typer.Option("--p99", min=0.1, help="Milliseconds for 99 of 100 lists.")]
Daily = Annotated[
    str | None, typer.Option("--lists-per-day", metavar="N", help="Ranked in batches, like 50M.")
]
DecoderName = Annotated[
    str | None, typer.Option("--decoder", help="ar, block, verify.", show_default="the recipe's")
]
Costs = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Table of costs.", show_default="yours, else the shipped"),
]
Measure = Annotated[
    bool,
    typer.Option("--measure", help="Measure this machine: stages, or how a BUNDLE answers."),
]
Thorough = Annotated[
    bool, typer.Option("--thorough", help="Measure up to 3 M interactions: hours, not minutes.")
]


def bytes_of(text: str) -> float:
    """`80GB`, `96GiB` or `80`, as bytes."""
    digits = text.rstrip("GiB ")
    unit = text[len(digits) :].strip()
    try:
        value = float(digits) * UNITS[unit]
    except (ValueError, KeyError):
        raise ConfigError(f"--gpu-memory {text}: expected a size like 80GB or 96GiB") from None
    if not 0 < value < float("inf"):
        raise ConfigError(f"--gpu-memory {text}: must be above 0")
    return value


def plan(
    subject: Subject = None,
    gpus: Gpus = 1,
    gpu_memory: GpuMemory = "80GB",
    base_config: BaseConfig = None,
    tflops: Tflops = 989.0,
    mfu: Mfu = 0.4,
    overrides: Overrides = None,
    interactions: Many = None,
    users: Many = None,
    items: Many = None,
    machines: Fleet = None,
    within: Within = 24.0,
    rate: Rate = None,
    p99: P99 = 100.0,
    lists_per_day: Daily = None,
    decoder: DecoderName = None,
    costs: Costs = None,
    measure: Measure = False,
    thorough: Thorough = False,
) -> None:
    """Memory and time of each stage, replicas and core-hours: without data or weights."""
    from diffgr2.capacity import costtable, sheet
    from diffgr2.capacity.machines import amount_of

    if measure:
        return measured(subject, decoder, costs, thorough=thorough)
    if subject is None:
        raise ConfigError("RECIPE|BUNDLE: needed (or --measure)")
    if decoder is not None:
        one_of("--decoder", decoder, DECODERS)
    there = fleet_of(machines)
    if there.gpus:
        gpus, gpu_memory = there.gpus, f"{there.gpu_memory / 1e9:g}GB"
    counts = (interactions, users, items)
    is_bundle = (Path(subject) / "diffgr2.json").is_file()
    opened = bundle_asked if is_bundle else recipe_asked
    asked, source = opened(subject, overrides, counts, there, base_config)
    asked = replace(
        asked,
        within=within * 3600,
        decoder=decoder or asked.decoder,
        rate=rate,
        p99=p99 / 1e3,
        daily=None if lists_per_day is None else amount_of(lists_per_day, "--lists-per-day"),
    )
    table, fits = costtable.opened(costs), True
    for lines in (sheet.stage_lines, sheet.traffic_lines):
        said, holds = lines(table, asked)
        fits = fits and holds
        for line in said:
            typer.echo(f"{line} ({source})" if line.startswith("data: ") else line)
    if not is_bundle:
        fits = training(asked.recipe, gpus, bytes_of(gpu_memory), base_config, tflops, mfu) and fits
    if not fits:
        raise typer.Exit(1)
    if not is_bundle:
        typer.echo("all stages fit")


# ------------------------------------------------------------------------------- what is asked


def fleet_of(text: str | None) -> Machines:
    """The machines that were named, else this one."""
    from diffgr2.capacity import costtable
    from diffgr2.capacity.machines import Machines, machines_of
    from diffgr2.model.backends import cores

    here = (1, cores(), costtable.memory())
    return Machines(*here) if text is None else machines_of(text)


Given = tuple[str | None, str | None, str | None]


def resized(base: Size, given: Given) -> Size:
    """The size with what was given; what was not grows with the interactions."""
    from diffgr2.capacity.machines import amount_of

    names = ("interactions", "users", "items")
    values = {
        name: round(amount_of(text, f"--{name}"))
        for name, text in zip(names, given, strict=True)
        if text is not None
    }
    times = values.get("interactions", base.interactions) / base.interactions
    rest = {name: max(1, round(getattr(base, name) * times)) for name in names}
    lists = None if base.lists is None else round(base.lists * times)
    return replace(base, **(rest | values), lists=lists)


def recipe_asked(
    named: str,
    overrides: list[str] | None,
    counts: Given,
    there: Machines,
    base_config: Path | None,
) -> tuple[Asked, str]:
    """(a recipe and its data's size, where that is from)."""
    from diffgr2.artifacts import read_manifest
    from diffgr2.capacity.sheet import Asked
    from diffgr2.cli.runs import RUNS
    from diffgr2.recipe import load_recipe
    from diffgr2.stages import sizing
    from diffgr2.stages.effort import Size
    from diffgr2.train.memory import parameters

    recipe = load_recipe(named, overrides)
    sizes, _ = sizing.base_sizes(recipe, base_config)
    base, source = sizing.LISTS, "assumed"
    shop = recipe.data.shop
    try:
        facts = read_manifest(RUNS / recipe.name / "data")["metrics"]
        base = Size(*(int(facts[name]) for name in ("users", "items", "interactions")))
        source = "of the run"
    except (ArtifactError, KeyError, TypeError, ValueError):
        if recipe.data.source == "shop":
            base = Size(shop.n_users, shop.n_items, round(shop.n_users * shop.mean_length))
            source = "of the simulated shop"
    source = "as given" if any(counts) else source
    how = (resized(base, counts), there, 0.0, recipe.decode.decoder, parameters(sizes))
    return Asked(recipe, *how), source


def bundle_asked(
    named: str,
    overrides: list[str] | None,
    counts: Given,
    there: Machines,
    base_config: Path | None,
) -> tuple[Asked, str]:
    """(a bundle and its data's size, where that is from)."""
    from diffgr2.capacity.servicing import index_bytes, mark_of
    from diffgr2.capacity.sheet import Asked
    from diffgr2.data.columnar import unpack
    from diffgr2.model.contract import read_config
    from diffgr2.model.family import sizes_of
    from diffgr2.rerank.bundle import read_note
    from diffgr2.stages.effort import Size

    if overrides or base_config:
        raise ConfigError(f"{named}: a bundle takes no --set and no --base-config")
    path = Path(named)
    recipe, weights = read_note(path).recipe, sizes_of(read_config(path)).weights
    histories, _, _ = unpack(path / "data")
    base = Size(histories.n_users, histories.n_items, len(histories.items_N))
    how = (resized(base, counts), there, 0.0, recipe.decode.decoder, weights, mark_of(path))
    if any(counts):
        return Asked(recipe, *how), "as given"
    return Asked(recipe, *how, index=index_bytes(path)), "of the bundle"


# ----------------------------------------------------------------------------------- measuring

SERVED_ON = 2
"""Cores of a replica that is measured."""

PATIENCE_S = {False: 240.0, True: 1_800.0}
"""CPU seconds that one stage may take at one size, by `thorough`."""


def measured(
    subject: str | None, decoder: str | None, place: Path | None, *, thorough: bool
) -> None:
    """Write the table of this machine anew: its stages, or how a bundle answers."""
    from diffgr2.capacity import costtable, measuring, servicing
    from diffgr2.rerank.shipped import bundle_of

    where = place or costtable.own_place()
    here = costtable.Machine.here()
    blank = costtable.Table(here)
    before = costtable.read(where) if where.is_file() else blank
    say = typer.echo
    if subject is None:
        sizes = measuring.THOROUGH if thorough else measuring.QUICK
        found = measuring.measured(sizes, PATIENCE_S[thorough], say)
        table = before.with_points(here, found)
    else:
        bundle = bundle_of(subject)
        if not (bundle / "diffgr2.json").is_file():
            raise ConfigError(f"--measure {subject}: no bundle stands there (or leave it out)")
        from diffgr2.rerank.world import World

        known = World(bundle).decoders
        names = [decoder] if decoder else [name for name in DECODERS if name in known]
        asked = servicing.ASKED * (4 if thorough else 1)
        served = servicing.serviced(bundle, names, SERVED_ON, say, asked=asked)
        table = before.with_served(here, served)
        for one in served:
            say(
                f"{one.decoder}: {one.rounds[0].mean * 1e3:.1f} ms a list alone, at most "
                f"{one.replica.capacity:.0f} a second; simulated means within {one.misfit:.0%}"
            )
    costtable.write(where, table)
    say(f"{where}: measured {table.machine.said()}")


# ------------------------------------------------------------------------------------ training


def training(
    checked: Recipe, gpus: int, room: float, base_config: Path | None, tflops: float, mfu: float
) -> bool:
    """Memory per GPU and time of training stages; whether all fit."""
    from diffgr2.capacity.machines import count_said
    from diffgr2.capacity.sheet import clock
    from diffgr2.stages import sizing
    from diffgr2.train.memory import parameters

    sizes, source = sizing.base_sizes(checked, base_config)
    ratio = tflops / sizing.Machine.tflops
    machine = sizing.Machine(
        gpus, room, tflops, sizing.Machine.single * ratio, mfu, sizing.Machine.bandwidth * ratio
    )
    prompt, response = sizing.lengths(checked, checked.candidates.k_max)
    typer.echo(
        f"{checked.name}: {count_said(parameters(sizes))} weights ({source}), {sizes.layers} "
        f"layers of {sizes.hidden}, {sizes.vocab:,} tokens"
    )
    typer.echo(
        f"longest list: about {prompt:.0f} tokens of prompt, {response:.0f} of response; "
        f"{gpus} GPU{'s' if gpus > 1 else ''} of {room / 1e9:.0f} GB, {sizing.ROOM:.0%} for tensors"
    )
    found = sizing.needs(checked, sizes, machine)
    most = max((need.memory.peak for need in found), default=0)
    unit, value_of = ("GB", 1e9) if most >= 2e9 else ("MB", 1e6)
    head = [f"{name:>11}" for name in (*COLUMNS, "stored", "recomputed", "peak", "time")]
    typer.echo(f"{unit + ' a GPU':9}" + "".join(head))
    for need in found:
        memory = need.memory
        values = [getattr(memory, name) for name in COLUMNS]
        values += [need.stored.activations, need.recomputed.activations, memory.peak]
        told = "".join(f"{value / value_of:11.1f}" for value in values)
        typer.echo(f"{need.stage:9}{told}{clock(sum(need.seconds)):>11}")
    return _tell(sizing, found, machine)


def _tell(sizing, found, machine: Machine) -> bool:
    """What is assumed, and what to change; whether all fit."""
    typer.echo(
        "gathered: what FSDP2 gathers to compute with, or autocast's casts; frozen: a teacher or "
        "reference; stored, recomputed: activations without and with checkpoint_activations; peak: "
        "the recipe's way (learning and rollouts take turns)"
    )
    for need in found:
        if need.adapter is not None:
            typer.echo(
                f"{need.stage}: only an adapter of rank {need.adapter.rank} trains, "
                f"{need.added / 1e6:,.1f} M weights"
            )
    opened = [need.stage for need in found if need.config.steps is None]
    if opened:
        typer.echo(
            f"steps are open ({', '.join(opened)}): counted for {sizing.LISTS.users:,} users, "
            f"{sizing.LISTS.items:,} items, {sizing.LISTS.interactions:,} interactions"
        )
    typer.echo(
        f"assumed, not measured: {machine.share:.0%} of {machine.tflops:g} TFLOP/s in bf16 "
        f"({machine.single:.0f} in fp32), rollouts at {machine.read:.0%} of "
        f"{machine.bandwidth / 1e12:.2f} TB/s, {sizing.DECODED} at once in a process, which "
        "makes its share; lengths are round numbers by template, memory is checked on CPUs only "
        "(docs/scaling.md)"
    )
    for need in found:
        if need.forwards < machine.gpus:
            typer.echo(
                f"{need.stage}: {need.forwards} forwards a step for {machine.gpus} GPUs, the "
                f"others have nothing to do ({need.stage}.micro_rows is {need.config.micro_rows})"
            )
    short = [need for need in found if not need.fits]
    for need in short:
        peak = need.memory.peak / 1e9
        typer.echo(f"{need.stage}: {peak:.1f} GB do not fit; {need.advice()}")
    return not short


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan", rich_help_panel="Runs")(plan)
