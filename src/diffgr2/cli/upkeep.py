"""`diffgr2 refresh` and `upgrade`: a bundle with new purchases and items, or in today's format.

Contract: read their options, call `stages.refresh` or `stages.upgrade` and print what became of the
bundle, a line each, the new one's place last. Not here: what they do.
"""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from diffgr2.cli.verbs import pairs
from diffgr2.errors import DataError

Interactions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="New purchases: user, item, timestamp (csv, tsv, jsonl, parquet, .inter). Those that "
        "are known are dropped, so a file may overlap the last one.",
    ),
]
Items = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Items: item, title, brand, categories, price, description. Unknown ones join.",
    ),
]
Out = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Place.", show_default="BUNDLE-refreshed")
]
InPlace = Annotated[
    bool,
    typer.Option("--in-place", help="Take BUNDLE's place; the old one stays as BUNDLE.before."),
]
Edges = Annotated[
    bool,
    typer.Option(
        "--edges",
        help="Fit the bucket edges anew, too: after much growth. What the model learned of a "
        "bucket then shifts, so measure before you serve.",
    ),
]
KeepLast = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Count all purchases but everybody's last N (2: as a run does, which tests on them; "
        "0: all).",
        show_default="only new ones join what counted",
    ),
]
Anew = Annotated[
    bool, typer.Option("--replace-words", help="Take the file's words for known items as well.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="WORD=COLUMN", help="Of the interactions: user=who, item=…"),
]
ItemColumns = Annotated[
    list[str] | None,
    typer.Option("--item-column", metavar="WORD=COLUMN", help="Of the items: item=sku, title=…"),
]
BadShare = Annotated[float, typer.Option(min=0.0, max=1.0, help="Malformed lines borne, per file.")]


def _option(found: re.Match[str]) -> str:
    return f"--{'item-' if found[1] else ''}column {found[2]}=…:"


def refresh(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")],
    interactions: Interactions = None,
    items: Items = None,
    out: Out = None,
    in_place: InPlace = False,
    edges: Edges = False,
    keep_last: KeepLast = None,
    replace_words: Anew = False,
    column: Columns = None,
    item_column: ItemColumns = None,
    max_bad_share: BadShare = 0.01,
) -> None:
    """Bring a bundle up to date with new purchases and items, without training.

    Weights, semantic IDs that stand, bucket edges and calibration stay; histories, counts,
    catalogue and the retriever follow. A running server takes the new bundle on reload.
    """
    from diffgr2.rerank.shipped import bundle_of, refuse_replacing
    from diffgr2.stages.refresh import News
    from diffgr2.stages.refresh import refresh as refreshed

    bundle = bundle_of(bundle)
    refuse_replacing(bundle, elsewhere=out is not None)
    mapped = (pairs("--column", column), pairs("--item-column", item_column))
    news = News(interactions, items, *mapped, max_bad_share=max_bad_share, anew=replace_words)
    how: dict[str, Any] = {"out": out, "in_place": in_place, "edges": edges, "keep_last": keep_last}
    try:
        made = refreshed(bundle, news, **how)
    except DataError as error:  # what a recipe calls a key is an option here
        raise DataError(re.sub(r"\b(item_)?columns\.(\w+):", _option, str(error))) from None
    for line in made.lines:
        typer.echo(line)


def upgrade(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle of earlier format.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Place.", show_default="BUNDLE-format-N")
    ] = None,
) -> None:
    """Write a bundle of an earlier format in this version's, without training.

    It ranks as before; the old bundle stays as it is.
    """
    from diffgr2.rerank.shipped import bundle_of
    from diffgr2.stages.upgrade import upgrade as upgraded

    typer.echo(f"new        {upgraded(bundle_of(bundle), out)}")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("refresh", rich_help_panel="Using a model")(refresh)
    app.command("upgrade", rich_help_panel="Using a model")(upgrade)
