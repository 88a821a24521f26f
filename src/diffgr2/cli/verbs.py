"""One verb per stage, `run` and `status`.

Contract: verbs are made from `stages.plan`; a verb runs its stage and what it needs, and ends with
the stage's metrics on stdout. Progress goes to stderr. Not here: the stages.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffgr2.errors import ConfigError, nearest
from diffgr2.stages.plan import STAGES
from diffgr2.stages.rows import ROWS, rows_of_recipe

PANEL = "Stages, in order (each runs what it needs)"
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Shipped name or YAML file.")]
RunsDir = Annotated[
    Path | None,
    typer.Option("--runs", metavar="DIR", help="The run's directory.", show_default="runs/<name>"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change keys: --set rl.steps=20 sft.lr=0.001."),
]
Force = Annotated[bool, typer.Option("--force", help="Run it again although it stands.")]


def word_columns(option: str, texts: list[str] | None, more: str = "") -> list[tuple[str, str]]:
    """What an option's `word=column` texts say; an error says what `more` there may be."""
    found = []
    for text in texts or []:
        word, equals, column = text.partition("=")
        if not (word and equals and column):
            raise ConfigError(f"{option} {text}: expected word=column{more}")
        found.append((word, column))
    return found


def pairs(option: str, texts: list[str] | None, *, apart: bool = False) -> dict[str, str]:
    """`word=column` texts as a mapping; no word twice, and with `apart` no column for two words."""
    found: dict[str, str] = {}
    for word, column in word_columns(option, texts):
        if word in found:
            raise ConfigError(f"{option} {word}={column}: {word} stands twice")
        if apart and column in found.values():
            other = next(known for known, one in found.items() if one == column)
            raise ConfigError(f"{option} {word}={column}: {column} is the {other} already")
        found[word] = column
    return found


def flat(value: Any) -> str:
    """A metric for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(name: str, metrics: dict[str, Any]) -> None:
    """A stage's metrics, one per line."""
    from diffgr2.cli import runs

    runs.say(f"{name}:")
    for key, value in metrics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {flat(v)}" for k, v in value.items())
        runs.say(f"  {key:32} {flat(value)}")


def stage_verb(name: str) -> Callable[..., None]:
    """The command of one stage."""

    def verb(
        recipe: RecipeName,
        directory: RunsDir = None,
        overrides: Overrides = None,
        force: Force = False,
    ) -> None:
        from diffgr2.cli import runs

        run = runs.open_run(recipe, directory, overrides)
        manifests = runs.work(run, [name], force=force)
        show(name, manifests[name]["metrics"])

    return verb


def score(
    recipe: RecipeName,
    rows: Annotated[
        list[str] | None, typer.Option("--row", help=f"One of {', '.join(r.name for r in ROWS)}.")
    ] = None,
    directory: RunsDir = None,
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Decode the test lists: all rows of the results table, or some."""
    from diffgr2.cli import runs

    run = runs.open_run(recipe, directory, overrides)
    known = [spec.name for spec in rows_of_recipe(run.recipe)]
    for name in rows or ():
        if name not in known:
            told = f"--row {name}: no such row (known: {', '.join(known)})"
            raise ConfigError(told + nearest(name, known))
    names = [f"score_{name}" for name in rows or known]
    manifests = runs.work(run, names, force=force)
    for name in names:
        show(name, manifests[name]["metrics"])


def run_all(
    recipe: RecipeName,
    goal: Annotated[
        str,
        typer.Option(
            "--goal",
            help="candidates, teacher, story (few rows), ladder (every row), all, or a stage.",
        ),
    ] = "all",
    directory: RunsDir = None,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option("--force", help="Run the goal's stages again.")] = False,
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="BUNDLE",
            help="Train on from a bundle: its vocabulary, semantic IDs and weights "
            "(the recipe's key `start`).",
        ),
    ] = None,
) -> None:
    """Run what is missing of a recipe."""
    from diffgr2.cli import runs

    if start is not None:
        from diffgr2.rerank.shipped import bundle_of

        overrides = [*(overrides or []), f"start={json.dumps(str(bundle_of(start).resolve()))}"]
    run = runs.open_run(recipe, directory, overrides)
    manifests = runs.work(run, runs.goals_of(goal, run.recipe), force=force)
    seconds = sum(manifest["wall_s"] for manifest in manifests.values())
    runs.say(
        f"{run.root}: {len(manifests)} stages stand, {seconds:,.0f} s of work; "
        f"next: diffgr2 report {run.root}"
    )
    runs.say_verdict(run)


def status(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="Recipe, or a run's directory.")],
    directory: RunsDir = None,
    overrides: Overrides = None,
) -> None:
    """Show which stages stand, and what outdated the others."""
    from diffgr2.cli import runs
    from diffgr2.pipeline import OUTDATED, STANDS
    from diffgr2.stages.reasons import Reason, reasons

    run = runs.open_report(recipe, directory, overrides)
    runner = run.runner()
    states = runner.survey(list(runner.stages), gone=True)
    why, said = reasons(runner, states), set[str]()
    wide = max(map(len, states))
    for name, state in states.items():
        reason, told = why.get(name, Reason()), runner.stages[name].summary
        if state == OUTDATED and reason.above:
            told = f"because of {', '.join(reason.above)}"
        typer.echo(f"{name:{wide}} {state:12} {told}")
        for line in reason.own:
            if line not in said:  # a key that several stages read is told at the first
                typer.echo(f"{'':{wide + 13}} {line}")
        said |= {*reason.own}
    ends = set[str]()
    for name, reason in why.items():
        after = [one for one in why if name in why[one].above and states[one] == OUTDATED]
        cause = "; ".join(reason.own) or states[name]
        if after:
            typer.echo(f"because of {name} ({cause}): {len(after)} outdated")
        elif own := [line for line in reason.own if line not in ends]:
            typer.echo(f"{'besides' if reason.above else 'alone'}, {name} ({'; '.join(own)})")
        ends |= {*reason.own}
    standing = sum(state == STANDS for state in states.values())
    typer.echo(f"{run.root}: {standing} of {len(states)} stages stand")


def register(app: typer.Typer) -> None:
    """Add the verbs; `data` is a group of its own, and rows of the results share `score`."""
    for stage in STAGES.values():
        if stage.name != "data" and not stage.name.startswith("score_"):
            summary = stage.summary[0].upper() + stage.summary[1:] + "."
            name = stage.name.replace("_", "-")
            app.command(name, help=summary, rich_help_panel=PANEL)(stage_verb(stage.name))
    app.command("score", rich_help_panel=PANEL)(score)
    app.command("run", rich_help_panel="Runs")(run_all)
    app.command("status", rich_help_panel="Runs")(status)
