"""`diffgr2 refresh`: new purchases and items for a bundle, without training.

Contract: reads its options, calls `stages.refresh` and prints what moved, a line each, the new
bundle's place last. Not here: what a refresh does.
"""

from pathlib import Path
from typing import Annotated

import typer

from diffgr2.errors import ConfigError

Columns = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="WORD=COLUMN", help="Of the interactions: user=who, item=…"),
]
ItemColumns = Annotated[
    list[str] | None,
    typer.Option("--item-column", metavar="WORD=COLUMN", help="Of the items: item=sku, title=…"),
]


def pairs(option: str, texts: list[str] | None) -> dict[str, str]:
    """`word=column` texts as a mapping."""
    found = {}
    for text in texts or []:
        word, equals, column = text.partition("=")
        if not (word and equals and column):
            raise ConfigError(f"{option} {text}: expected word=column")
        if word in found:
            raise ConfigError(f"{option} {text}: {word} stands twice")
        found[word] = column
    return found


def refresh(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's directory.")],
    interactions: Annotated[
        Path | None,
        typer.Option(
            "--interactions",
            metavar="FILE",
            help="New purchases: user, item, timestamp (csv, tsv, jsonl, parquet, .inter). "
            "Those that are known are dropped, so a file may overlap the last one.",
        ),
    ] = None,
    items: Annotated[
        Path | None,
        typer.Option(
            "--items",
            metavar="FILE",
            help="Items: item, title, brand, categories, price, description. Unknown ones join.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The new bundle.", show_default="BUNDLE-refreshed"
        ),
    ] = None,
    in_place: Annotated[
        bool,
        typer.Option(
            "--in-place", help="Take BUNDLE's place in one step; the old one is BUNDLE.before."
        ),
    ] = False,
    edges: Annotated[
        bool,
        typer.Option(
            "--edges",
            help="Fit the bucket edges anew, too: after much growth. What the model learned of a "
            "bucket then shifts, so measure before you serve.",
        ),
    ] = False,
    keep_last: Annotated[
        int,
        typer.Option(
            "--keep-last",
            min=0,
            metavar="N",
            help="Leave the last N purchases of shoppers with new ones out of all counts "
            "(2: as a run does, which tests on them).",
        ),
    ] = 0,
    anew: Annotated[
        bool,
        typer.Option(
            "--replace-words", help="Take the items file's words for known items as well."
        ),
    ] = False,
    columns: Columns = None,
    item_columns: ItemColumns = None,
    max_bad_share: Annotated[
        float,
        typer.Option("--max-bad-share", min=0.0, max=1.0, help="Malformed lines borne, per file."),
    ] = 0.01,
) -> None:
    """Bring a bundle up to date with new purchases and items, without training.

    Weights, semantic IDs that stand, bucket edges and calibration stay; histories, counts,
    catalogue and the retriever follow. A running server takes the new bundle on reload.
    """
    from diffgr2.stages.refresh import News
    from diffgr2.stages.refresh import refresh as refreshed

    mapped = (pairs("--column", columns), pairs("--item-column", item_columns))
    news = News(interactions, items, *mapped, max_bad_share=max_bad_share, anew=anew)
    how = {"out": out, "in_place": in_place, "edges": edges, "keep_last": keep_last}
    for line in refreshed(bundle, news, **how).lines:
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("refresh", rich_help_panel="Using a model")(refresh)
