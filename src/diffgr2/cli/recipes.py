"""`diffgr2 recipes`: what ships with the package, and what a recipe resolves to.

Contract: without a name one line per shipped recipe; with one the commented file, or with
`--resolved` every key with the value a run would use. Not here: the schema (`config`).
"""

from typing import Annotated

import typer
import yaml

from diffgr2.cli.verbs import Overrides
from diffgr2.recipe import RECIPES, find_recipe, load_recipe


def headline(text: str) -> str:
    """A recipe's first comment line."""
    first = text.splitlines()[0] if text else ""
    return first.removeprefix("#").strip()


def recipes(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="Show this one.")] = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All keys, defaults included, without comments.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """List the shipped recipes, or show one."""
    if recipe is None:
        for path in sorted(RECIPES.glob("*.yaml")):
            typer.echo(f"{path.stem:12} {headline(path.read_text())}")
        typer.echo("diffgr2 recipes NAME shows one; copy it to a file of yours to change it")
        return
    checked = load_recipe(recipe, overrides)
    if resolved or overrides:
        values = checked.model_dump(mode="json")
        typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
    else:
        typer.echo(find_recipe(recipe).read_text(encoding="utf-8").rstrip())


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("recipes", rich_help_panel="Runs")(recipes)
