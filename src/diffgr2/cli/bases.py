"""`diffgr2 base import`: a GGUF file or a foreign directory becomes a base for recipes.

Contract: checks what it is given and says in one line what it is; with OUT it writes a directory
that `model.base` takes. A GGUF file is unpacked and, where llama.cpp is installed, its greedy texts
are compared; a block-diffusion directory is written with its contract named. Not here: reading
files (`model.gguf_import`), training.
"""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from diffgr2.errors import CheckpointError, ConfigError

base = typer.Typer(no_args_is_help=True, help="Checkpoints to begin with: `base import`.")


@base.command("import")
def import_base(
    source: Annotated[
        Path, typer.Argument(metavar="FILE.gguf|DIR", help="A GGUF file or a model directory.")
    ],
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="New directory (may be left out for DIR).")
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option("--block-size", min=1, help="Of a block-diffusion DIR that does not say it."),
    ] = None,
    compare: Annotated[
        bool, typer.Option(help="Compare a GGUF file's greedy texts with llama.cpp's.")
    ] = True,
) -> None:
    """Make a directory that `model.base` takes, or check one."""
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: stands already (give a new or empty directory)")
    if source.is_dir():
        typer.echo(_directory(source, out, block_size))
        return
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file or directory")
    if out is None:
        raise ConfigError("a GGUF file is imported into a directory: say OUT")
    _file(source, out, compare=compare)


def _file(source: Path, out: Path, *, compare: bool) -> None:
    from diffgr2.model import gguf_import, greedy_texts
    from diffgr2.model.load import load

    try:
        gguf_import.import_gguf(source, out)
        load(out)  # a file that lacks tensors is told here
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    typer.echo(f"{out}: {_told(out)}")
    if not compare:
        return
    if not greedy_texts.installed():
        typer.echo("not compared with llama.cpp: the package xllamacpp is not installed")
        return
    found = gguf_import.compared(source, out)
    same = sum(ours == theirs for _, ours, theirs in found)
    typer.echo(f"greedy texts equal llama.cpp's on {same} of {len(found)} prompts")
    for prompt, ours, theirs in found:
        if ours != theirs:
            typer.echo(f"  {prompt!r}: {ours!r}, llama.cpp {theirs!r}")


def _directory(source: Path, out: Path | None, block_size: int | None) -> str:
    """Check a directory and, if asked, write it with the contract that its format means."""
    from diffgr2.artifacts import write_json
    from diffgr2.model.contract import (
        FORMATS,
        SECTION,
        diffuses,
        foreign_section,
        read_config,
        read_contract,
    )
    from diffgr2.model.load import load

    values = read_config(source)
    rows = load(source).config.vocab_size
    if not (source / "tokenizer.json").is_file():
        raise CheckpointError(f"{source / 'tokenizer.json'}: file is missing")
    if SECTION not in values and values["model_type"] in FORMATS:
        values[SECTION] = foreign_section(source, values, block_size)
    elif block_size is not None:
        raise ConfigError(
            f"--block-size: {source} is an autoregressive checkpoint, or says its block size"
        )
    if diffuses(values):
        read_contract(values, rows, str(source))
    if out is None:
        return f"{source}: {_told(source, values)}"
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py", ".git"))
    write_json(out / "config.json", values)
    return f"{out}: {_told(out)}"


def _told(directory: Path, values: dict | None = None) -> str:
    """What a directory holds, in one line."""
    from diffgr2.model.contract import SECTION, read_config
    from diffgr2.model.family import rope_of, sizes_of

    values = values or read_config(directory)
    sizes = sizes_of(values, str(directory))
    told = (
        f"{values['model_type']}, {sizes.weights / 1e6:.1f} M weights, {sizes.layers} layers, "
        f"{sizes.vocab} rows, {'tied' if sizes.tied else 'untied'}, "
        f"rope {rope_of(values)['rope_type']}"
    )
    if section := values.get(SECTION):
        facts = ", ".join(f"{key} {value}" for key, value in section.items())
        return f"{told}; block diffusion: {facts}"
    return f"{told}; autoregressive"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.add_typer(base, name="base", rich_help_panel="Runs")
