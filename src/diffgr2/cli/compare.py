"""`diffgr2 compare`: two runs, paired on the lists that they share.

Contract: takes runs' directories or their reports; says what is shared, what differs in their
recipes, every metric with its interval, and which run is better, in the last line. `--json` prints
the same as JSON and nothing else. Not here: the figures (`evaluate.versus`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffgr2.errors import ConfigError

if TYPE_CHECKING:
    from diffgr2.evaluate.versus import Side


def rows_to_compare(a: Side, b: Side, wanted: list[str] | None) -> list[str]:
    """The rows asked for; without, the one that both are judged by."""
    from diffgr2.evaluate.versus import rows_of_both
    from diffgr2.stages.judge import JUDGED

    common = rows_of_both(a, b)
    if wanted:
        every = [name for name in common if name != "oracle"]
        return list(dict.fromkeys(every if wanted == ["all"] else wanted))
    candidates = [a.judged] if a.judged and a.judged == b.judged else JUDGED
    found = next((name for name in candidates if name in common), None)
    if found is None:
        told = "have no row of a model in common (give --row NAME"
        raise ConfigError(f"{a.where} and {b.where} {told}; both have: {', '.join(common)})")
    return [found]


def recipes_of(a: Side, b: Side) -> list[str] | None:
    """What differs, key by key; None where a recipe is not known."""
    from diffgr2.stages.reasons import differences, flat

    if not (a.recipe and b.recipe):
        return None
    return differences(flat(a.recipe), flat(b.recipe))


def conclusion(found: dict[str, Any]) -> str:
    """Which run is better, by the metric that decides."""
    from diffgr2.evaluate.tables import number, p_text, signed, span
    from diffgr2.evaluate.verdict import DECIDES
    from diffgr2.evaluate.versus import ASKED

    first = found["rows"][0]
    test, (a, b) = first["metrics"][DECIDES], found["runs"]
    words = {"gain": f"B ({b['where']}) is better than A ({a['where']})"}
    words |= {"loss": f"A ({a['where']}) is better than B ({b['where']})"}
    said = words.get(test["verdict"], "No difference shown")
    return (
        f"{said} in `{first['row']}`: {DECIDES.upper()} {number(test['a'])} → {number(test['b'])}, "
        f"{signed(test['diff'])} {span(test['ci'])}, p {p_text(test['p_holm'])} (Holm over "
        f"{found['tests']}; {first['n']:,} {ASKED[first['population']]})."
    )


def text_of(found: dict[str, Any]) -> str:
    """The whole comparison for people, in Markdown."""
    from diffgr2.evaluate.tables import compared_table, number
    from diffgr2.evaluate.versus import ASKED

    shared, (a, b) = found["shared"], found["runs"]
    lines = [f"A: {a['where']} ({a['recipe']}, seed {a['seed']})"]
    lines.append(f"B: {b['where']} ({b['recipe']}, seed {b['seed']})")
    n = {name: number(count) for name, count in shared.items()}
    lines += [
        "",
        f"{n['lists']} lists are shared: the same user, moment and outcome; of these "
        f"{n['same_candidates']} have the same candidates in the same order. Only in A: "
        f"{n['only_a']}, only in B: {n['only_b']}.",
    ]
    if shared["twice"]:
        lines[-1] += f" Left out, as they stand twice in a run: {n['twice']}."
    if found["recipes"] is None:
        lines += ["", "What differs in their recipes is not known: a report without its recipe."]
    elif found["recipes"]:
        lines += ["", "Their recipes differ (A → B):", *(f"- {d}" for d in found["recipes"])]
    else:
        lines += ["", "Their recipes are the same."]
    for entry in found["rows"]:
        lines += ["", f"`{entry['row']}`, {entry['n']:,} {ASKED[entry['population']]}:", ""]
        lines.append(compared_table(entry))
    return "\n".join([*lines, "", found["conclusion"]])


def picture_of(plot: Path) -> Path:
    """Where the picture goes: a PNG unless the name says another kind that can be drawn."""
    from diffgr2.evaluate.plots import UNDATED

    path = plot if plot.suffix else plot.with_name(f"{plot.name}.png")
    if path.suffix not in UNDATED or path.is_dir():
        raise ConfigError(f"--plot {plot}: expected a name that ends in {', '.join(UNDATED)}")
    return path


def compare(
    a: Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's directory, or its report's.")],
    b: Annotated[Path, typer.Argument(metavar="RUN_B", help="The other one.")],
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--row",
            help="A row of the results; repeat for more, all for every one that both have; "
            "evidence=ar: one of A against another of B. Without: the row that both are judged by.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Also draw the differences: .png, .svg or .pdf."
        ),
    ] = None,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Of the bootstrap and the sign flips.")
    ] = 10_000,
) -> None:
    """Compare two runs on the lists they share: paired intervals, and what differs.

    Both need a report (`diffgr2 report RUN`). A list is shared where user, moment and outcome are
    the same. Where its candidates are the same, too, only the ranking is compared; where candidates
    differ, all shared lists are compared besides, a miss counting 0. B − A, Holm-adjusted.
    """
    from diffgr2.artifacts import json_text
    from diffgr2.evaluate import versus

    picture = None if plot is None else picture_of(plot)
    sides = versus.read_side(a), versus.read_side(b)
    found = versus.compare(*sides, rows_to_compare(*sides, rows), resamples=resamples)
    found["recipes"] = recipes_of(*sides)
    found["conclusion"] = conclusion(found)
    typer.echo(json_text(found) if as_json else text_of(found), nl=not as_json)
    if picture is not None:
        from diffgr2.evaluate.plots import paired_differences, save_figure

        path = save_figure(paired_differences(found["rows"], versus.ASKED), picture)
        typer.echo(str(path), err=as_json)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("compare", rich_help_panel="Runs")(compare)
