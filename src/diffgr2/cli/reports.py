"""`diffgr2 report` and `convert-dir`.

Contract: `report` collects what stands (`stages.report`), writes `<run>/report/` and prints the
tables of both populations; `--save` writes the copy that is committed. Not here: measuring, and
several runs as one table (`pooling`).
"""

from pathlib import Path
from typing import Annotated

import typer

from diffgr2.cli.verbs import Overrides, RunsDir
from diffgr2.errors import ConfigError


def report(
    recipe: Annotated[
        str, typer.Argument(metavar="DIR_OR_RECIPE", help="A run's directory, or its recipe.")
    ],
    directory: RunsDir = None,
    overrides: Overrides = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write report.json here.")
    ] = None,
    trec: Annotated[
        bool, typer.Option("--trec", help="Also write TREC run and qrels files.")
    ] = False,
    examples: Annotated[
        int, typer.Option("--examples", min=0, help="Print this many worked examples.")
    ] = 0,
) -> None:
    """Tables, intervals and plots of what a run has so far."""
    from rich.console import Console

    from diffgr2.artifacts import write_json
    from diffgr2.cli import runs
    from diffgr2.evaluate.tables import render_table, rows_of
    from diffgr2.stages.report import make_report, write_trec
    from diffgr2.stages.standing import Standing

    run = runs.open_report(recipe, directory, overrides)
    runs.set_threads(run.recipe)
    found = Standing.of(run.runner(), run.named)
    made, paths = make_report(found, run.command)
    folder = run.root / "report"
    if trec:
        paths += write_trec(found, folder / "trec")
    console = Console(width=None if Console().is_terminal else 140)
    for population in ("hit", "all"):
        if rows_of(made, population):
            console.print(render_table(made, population))
    if examples:
        from diffgr2.stages.examples import worked_examples

        text = worked_examples(found, examples)
        typer.echo(text)
        paths.append(folder / "examples.md")
        paths[-1].write_text(text, encoding="utf-8")
    if save is not None:
        write_json(save, made)
        paths.append(save)
    for path in paths:
        typer.echo(str(path))
    for line in found.closing:
        typer.echo(line)


def convert_dir(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="A Qwen3-, Qwen2- or Llama-family directory.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New directory.")],
    block_size: Annotated[int, typer.Option("--block-size", min=1, help="Tokens per block.")] = 32,
    alignment: Annotated[str, typer.Option("--alignment", help="same_position or shifted.")] = (
        "same_position"
    ),
    clean_attention: Annotated[
        str, typer.Option("--clean-attention", help="either, causal or block_causal.")
    ] = "either",
    origin: Annotated[str, typer.Option("--origin", help="document or response.")] = "document",
) -> None:
    """Turn an AR checkpoint directory into a block-diffusion one, bit for bit."""
    from diffgr2.model.conversion import convert
    from diffgr2.recipe import validate

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: stands already (give a new or empty directory)")
    values = {"block_size": block_size, "alignment": alignment, "origin": origin}
    values["clean_attention"] = clean_attention
    config = validate({"name": "convert", "convert": values}, "convert-dir").convert
    contract = convert(source, out, config)
    typer.echo(f"{out}: {contract.model_dump()}")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("report", rich_help_panel="Runs")(report)
    app.command("convert-dir", rich_help_panel="Runs")(convert_dir)
