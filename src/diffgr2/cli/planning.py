"""`diffgr2 plan`: what a recipe's training stages take on so many GPUs, before anything is run.

Contract: prints memory per GPU and time per training stage out of `stages.sizing`, every assumption
beside it, and for a stage that does not fit the keys that would make it; exit code 1 if one does
not. Reads a recipe and at most a config.json. Not here: the arithmetic, and what was measured
(docs/scaling.md).
"""

from pathlib import Path
from typing import Annotated

import typer

from diffgr2.cli.verbs import Overrides, RecipeName
from diffgr2.errors import ConfigError
from diffgr2.recipe import load_recipe

UNITS = {"GB": 1e9, "GiB": 2.0**30, "": 1e9}
COLUMNS = ("weights", "gradients", "optimizer", "gathered", "frozen", "logits", "rollouts")


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


def clock(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan(
    recipe: RecipeName,
    gpus: Annotated[int, typer.Option(min=1, max=4096, help="Processes, a GPU each.")] = 1,
    gpu_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Of one GPU, like 80GB.")
    ] = "80GB",
    base_config: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Whose config.json stands for model.base, or a name."),
    ] = None,
    tflops: Annotated[float, typer.Option(min=0.1, help="Of one GPU, dense bf16.")] = 989.0,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of them that training is to reach.")
    ] = 0.4,
    overrides: Overrides = None,
) -> None:
    """Memory per GPU and time of each training stage, without data or weights."""
    from diffgr2.stages import sizing
    from diffgr2.train.memory import parameters

    checked, room = load_recipe(recipe, overrides), bytes_of(gpu_memory)
    sizes, source = sizing.base_sizes(checked, base_config)
    ratio = tflops / sizing.Machine.tflops
    machine = sizing.Machine(
        gpus, room, tflops, sizing.Machine.single * ratio, mfu, sizing.Machine.bandwidth * ratio
    )
    prompt, response = sizing.lengths(checked, checked.candidates.k_max)
    typer.echo(
        f"{checked.name}: {parameters(sizes) / 1e6:,.1f} M weights ({source}), {sizes.layers} "
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
    _tell(sizing, found, machine)


def _tell(sizing, found, machine) -> None:
    """What is assumed, and what to change."""
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
    if short:
        raise typer.Exit(1)
    typer.echo("all stages fit")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("plan", rich_help_panel="Runs")(plan)
