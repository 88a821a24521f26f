"""`diffgr2 export`: a model for other engines.

Contract: reads its options, calls `export.writing` and prints what was written. Not here: formats.
"""

from pathlib import Path
from typing import Annotated

import typer

Source = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle, or a stage's model directory.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="A directory that is not there yet.")]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="NAME",
        help="sdar (SGLang, LMDeploy), hf (transformers, block decoding), gguf (llama.cpp, AR), "
        "qwen3 (any engine, AR).",
    ),
]
PadVocab = Annotated[
    bool,
    typer.Option(
        "--pad-vocab",
        help="sdar: move the mask to the id that the engines fix, and fill up to it with rows "
        "that no softmax sees.",
    ),
]
Aligned = Annotated[
    bool,
    typer.Option(
        "--aligned-prompts",
        help="sdar: every prompt will be a multiple of the block long, so blocks that count from "
        "the response are theirs.",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        min=0.0, max=1.0, help="sdar, hf: commit what is surer than this.", show_default="0.9"
    ),
]


def export(
    source: Source,
    out: Out,
    format: Format,
    pad_vocab: PadVocab = False,
    aligned_prompts: Aligned = False,
    threshold: Threshold = None,
) -> None:
    """Write a model in a format that other engines serve (docs/export.md)."""
    from diffgr2.export import writing
    from diffgr2.rerank.shipped import bundle_of

    how = {"pad_vocab": pad_vocab, "aligned": aligned_prompts}
    for name in writing.export(bundle_of(source), out, format, **how, threshold=threshold):
        typer.echo(out / name)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("export", rich_help_panel="Using a model")(export)
