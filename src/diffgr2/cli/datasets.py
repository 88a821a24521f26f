"""`diffgr2 data`: the data stage, downloads, and a look at files before they are used.

Contract: `data RECIPE` is the first stage (`data run RECIPE` in full), `data fetch NAME DEST` gets
a public data set from its publisher, `data check FILE…` reads files as an import would and says
what it finds, keeping nothing, `data lists-from-log DIR` makes own lists of a server's logs. Not
here: the formats (`data.records`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from diffgr2.cli.verbs import PANEL, Overrides, pairs, stage_verb
from diffgr2.errors import ConfigError, DataError

if TYPE_CHECKING:
    from diffgr2.config import DataConfig, Recipe

SUFFIXES = {".inter": "recbole", ".item": "recbole", ".txt": "p5"} | dict.fromkeys(
    (".csv", ".tsv", ".parquet", ".jsonl"), "table"
)


class StageOrGroup(TyperGroup):
    """`data RECIPE` means `data run RECIPE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=StageOrGroup,
    no_args_is_help=True,
    help="Import and split: `data RECIPE`; also `data fetch`, `data check`, `data lists-from-log`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@group.command("fetch")
def fetch_verb(
    name: Annotated[str, typer.Argument(metavar="NAME", help="amazon-beauty, … or an URL.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for the files.")],
    sha256: Annotated[str, typer.Option("--sha256", help="Of an URL's file.")] = "",
) -> None:
    """Download from the publisher; a cut line is resumed."""
    from diffgr2.data.fetch import fetch

    for path in fetch(name, dest, sha256=sha256):
        typer.echo(str(path))


def source_of(path: Path) -> str:
    """The importer that a file's name suggests."""
    name = Path(path.name.lower().removesuffix(".gz"))
    if name.match("reviews_*.json") or name.match("meta_*.json"):
        return "amazon2014"
    if name.suffix not in SUFFIXES:
        raise DataError(f"{path}: name tells no format (say --source)")
    return SUFFIXES[name.suffix]


@group.command("check")
def check(
    interactions: Annotated[
        str, typer.Argument(metavar="[RECIPE|INTERACTIONS]", help="A recipe, or the file.")
    ] = "",
    items: Annotated[Path | None, typer.Argument(metavar="[ITEMS]", help="Item file.")] = None,
    source: Annotated[
        str,
        typer.Option("--source", help="amazon2014/2018/2023, recbole, p5, table; else by name."),
    ] = "",
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="WORD=COLUMN", help="table: user=user_id item=…"),
    ] = None,
    item_columns: Annotated[
        list[str] | None,
        typer.Option("--item-column", metavar="WORD=COLUMN", help="The item file's own names."),
    ] = None,
    k_core: Annotated[int, typer.Option("--k-core", help="0 = keep everybody.")] = 5,
    lists: Annotated[
        Path | None, typer.Option("--lists", metavar="FILE", help="Lists of your own ranker.")
    ] = None,
    list_columns: Annotated[
        list[str] | None,
        typer.Option("--list-column", metavar="WORD=COLUMN", help="list=request_id moment=at …"),
    ] = None,
    gains: Annotated[
        list[str] | None,
        typer.Option("--gain", metavar="COLUMN=WORTH", help="click=1 purchase=3; else bought=1."),
    ] = None,
    features: Annotated[
        list[str] | None, typer.Option("--features", metavar="COLUMNS", help="price,ctr,…")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Read files as the data stage would; print what it would make of them.

    A recipe's files, or files by name: interactions, items, and lists that your own ranker made.
    """
    from diffgr2.recipe import load_recipe, validate

    if interactions and _is_recipe(interactions):
        _explain(load_recipe(interactions, overrides))
        return
    if not interactions and lists is None:
        raise ConfigError("data check: expected a recipe, interactions, or --lists FILE")
    for path in (Path(interactions) if interactions else None, items, lists):
        if path is not None and not path.is_file():
            raise DataError(f"{path}: no such file")
    data: dict[str, Any] = {
        "items": str(items) if items else None,
        "k_core": k_core,
        "columns": pairs("--column", columns, apart=True),
        "item_columns": pairs("--item-column", item_columns),
    }
    if interactions:
        data["source"] = source or source_of(Path(interactions))
        data["interactions"] = interactions
    own = _own(lists, list_columns, gains, features)
    _explain(validate({"name": "check", "data": data, "lists": own}, "data check"))


@group.command("lists-from-log")
def from_log_verb(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What `serve --log-dir` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A .parquet, .jsonl or .csv file.")],
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history", help="With the purchases that each request came with."
        ),
    ] = True,
) -> None:
    """Impressions and feedback of a server as own lists, for the section `lists` of a recipe."""
    from diffgr2.data.from_log import lists_from_log
    from diffgr2.data.traffic import EVENTS

    made = lists_from_log(directory, out, history=history)
    typer.echo(f"{out}: {made.lists} lists, {made.rows} candidates")
    events = [*EVENTS, *sorted(made.events.keys() - {*EVENTS})]
    for event in events:
        column = made.outcomes[event]
        named = "" if column == event else f" (column {column}: {event} is a feature)"
        typer.echo(f"  {event:26} {made.events[event]}{named}")
    for reason, count in sorted(made.skipped.items()):
        typer.echo(f"  set aside                  {count} {reason}")
    found = [event for event in events if made.events[event]] or [EVENTS[0]]
    worth = ", ".join(f"{made.outcomes[event]}: 1" for event in found)
    told = f"lists:\n  file: {out}\n  gains: {{{worth}}}  # what each is worth"
    typer.echo(f"in a recipe, beside data.items:\n{told}")
    if made.nobodys:
        why = "lists without users: no later purchase counts (needs data.interactions with times)"
        typer.echo(f"  point_in_time: true  # {why}")
    if made.features:
        names = ", ".join(made.features.values())
        typer.echo(f"  features: [{names}]  # or as your recipe has them: which end is good")


def _own(
    path: Path | None,
    columns: list[str] | None,
    gains: list[str] | None,
    features: list[str] | None,
) -> dict[str, Any]:
    """The section `lists` that these options say."""
    if path is None:
        return {}
    own: dict[str, Any] = {
        "file": str(path),
        "columns": pairs("--list-column", columns, apart=True),
    }
    own["features"] = [name for text in features or [] for name in text.split(",")]
    if gains:
        own["gains"] = {name: _worth(text) for name, text in pairs("--gain", gains).items()}
    return own


def _is_recipe(name: str) -> bool:
    """Whether this names a recipe and no file of interactions."""
    return name.endswith((".yaml", ".yml")) or not ("." in name or Path(name).exists())


def _explain(recipe: Recipe) -> None:
    if recipe.lists.file is None:
        _preview(recipe.data)
        return
    from diffgr2.cli.listing import told

    for line in told(recipe):
        typer.echo(line)


def _worth(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--gain: {text!r} is not a number") from None


def _preview(config: DataConfig) -> None:
    from diffgr2.data.records import import_dataset
    from diffgr2.prompts.request import item_text

    dataset = import_dataset(config, seed=0)
    for key, value in dataset.report.items():
        if isinstance(value, str | int | float):
            typer.echo(f"{key:28} {value}")
    for kind in ("first_rejected", "first_items_rejected"):
        for entry in dataset.report.get(kind, []):
            typer.echo(f"set aside                    {entry}")
    for warning in dataset.report.get("warnings", []):
        typer.echo(f"warning                      {warning}")
    typer.echo(f"for example, user {dataset.raw_users[0]}:")
    for item in dataset.histories.of(0)[:5]:
        typer.echo(f"  {item_text(dataset.catalogue, int(item))}")


def register(app: typer.Typer) -> None:
    """Add the group, its stage verb included."""
    group.command("run", help="Import, k-core, leave-one-out.")(stage_verb("data"))
    app.add_typer(group, name="data", rich_help_panel=PANEL)
