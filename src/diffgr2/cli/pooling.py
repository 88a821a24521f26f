"""`diffgr2 seeds`: runs of one recipe under several seeds as one table.

Contract: takes runs' directories or their reports. They must be of one recipe but for its seeds, of
one data set, and made by one commit whose source was as committed; with `--mixed` they need not,
and the summary says that they are not. Not here: the figures (`evaluate.pooled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffgr2.errors import ConfigError

if TYPE_CHECKING:
    from diffgr2.evaluate.versus import Side

FREE = ("seed", "data.tie_seed", "threads", "name")
"""Keys in which runs of one table may differ: what is drawn, and what changes no result."""
PATHS = ("data.interactions", "data.items", "lists.file")
"""Files, which may lie elsewhere for each run."""


def mixtures(sides: Sequence[Side]) -> list[str]:
    """Why these runs are not one experiment under several seeds; [] where they are."""
    from diffgr2.pipeline import DIRTY
    from diffgr2.stages.reasons import flat

    found, first = [], sides[0]
    commits = {c for s in sides for c in (s.report.get("commit", ""), *s.report.get("commits", []))}
    for commit in sorted(commits):
        if commit.endswith(DIRTY):
            found.append(
                f"{commit.removesuffix(DIRTY)[:12]}{DIRTY}: the source was not as committed"
            )
    if len(commits) > 1:
        named = ", ".join(commit[:12] or "unknown" for commit in sorted(commits))
        found.append(f"made by several commits ({named})")
    for side in sides[1:]:
        one, other = (_comparable(flat(s.recipe)) for s in (first, side))
        keys = sorted({k for k in one.keys() | other.keys() if one.get(k) != other.get(k)})
        if keys:
            told = ", ".join(keys[:4]) + (" …" if len(keys) > 4 else "")
            found.append(f"{side.where}: its recipe is another than that of {first.where} ({told})")
    return found


def _comparable(recipe: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in recipe.items() if key not in FREE}
    return {k: Path(v).name if k in PATHS and isinstance(v, str) else v for k, v in kept.items()}


def check(sides: Sequence[Side]) -> None:
    """What no flag excuses: another data set, one run twice, a report that cannot be pooled."""
    first = sides[0]
    for side in sides:
        for key in ("recipe", "data"):
            if side.report.get(key) != first.report.get(key):
                told = f"{key} is {side.report.get(key)!r}, not {first.report.get(key)!r}"
                raise ConfigError(f"{side.where}: {told}")
        if "person" not in side.arrays:
            told = "its report was made by another version"
            raise ConfigError(f"{side.where}: {told} (run: diffgr2 report {side.where})")
    drawn = [(side.report["seed"], side.report.get("tie_order")) for side in sides]
    if len({*drawn}) < len(drawn):
        numbers = ", ".join(f"seed {seed}, ties {tie}" for seed, tie in drawn)
        raise ConfigError(f"seeds: one stands twice ({numbers})")


def rival_of(sides: Sequence[Side]) -> str | None:
    """The row to beat: the best on average over the runs' selection lists."""
    rivals = [side.report.get("rival", {}) for side in sides]
    if not all("rows" in rival for rival in rivals):
        return None
    kinds = set.intersection(*({*rival["values"]} for rival in rivals)) - {"floor"}
    if not kinds:
        return None
    best = max(sorted(kinds), key=lambda kind: sum(rival["values"][kind] for rival in rivals))
    return rivals[0]["rows"][best]


def with_beside(sides: Sequence[Side], given: str) -> tuple[list[Side], list[str]]:
    """`ROW@RUN,RUN,…`: that row of as many other runs, each on the lists of one of these; and by
    which commands they were made."""
    from diffgr2.evaluate.pooled import beside
    from diffgr2.evaluate.versus import read_side

    row, _, runs = given.partition("@")
    paths = [Path(run) for run in runs.split(",") if run]
    if not row or len(paths) != len(sides):
        raise ConfigError(f"--beside {given}: expected ROW@RUN,RUN,… with {len(sides)} runs")
    others = [read_side(path) for path in paths]
    joined = [beside(own, other, row) for own, other in zip(sides, others, strict=True)]
    return joined, [str(other.report.get("command", "")) for other in others]


def summary_of(
    sides: Sequence[Side], *, mixed: bool, resamples: int, beside: str | None = None
) -> dict[str, Any]:
    """What `--save` writes."""
    from diffgr2.evaluate.pooled import pooled

    check(sides)
    found = mixtures(sides)
    sides, lent = with_beside(sides, beside) if beside else (sides, [])
    if found and not mixed:
        raise ConfigError(f"seeds: {found[0]} (--mixed pools them all the same, and says so)")
    rival, first = rival_of(sides), sides[0].report
    rows = pooled(sides, rival=rival, resamples=resamples)
    ties = list(dict.fromkeys(str(side.report.get("tie_order")) for side in sides))
    summary = {"recipe": first["recipe"], "data": first["data"], "tie_order": ", ".join(ties)}
    for key in ("seed", "command", "commit"):
        summary[f"{key}s"] = [side.report.get(key, "") for side in sides]
    if rival:
        summary["rival"] = rival
    if lent:
        summary["beside"] = lent
    if found:
        summary["mixed"] = found
    return {**summary, "rows": rows}


def text_of(summary: dict[str, Any]) -> str:
    """The summary for people, in Markdown."""
    from diffgr2.evaluate.pooled import parts_by_seed, pooled_table
    from diffgr2.evaluate.tables import reasoning_sentences, step_sentences

    rows = [row for row in summary["rows"] if row["population"] == "hit"]
    lines = [f"Mixed: {why}." for why in summary.get("mixed", [])]
    lines += [pooled_table(summary["rows"]), ""]
    if parts := parts_by_seed(summary["rows"]):
        lines += [parts, ""]
    lines += [f"- {text}" for text in (*step_sentences(rows), *reasoning_sentences(rows))]
    return "\n".join(lines)


def seeds(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Two or more runs, or their reports.")
    ],
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FILE", help="Also write the summary here.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the stage ladder.")
    ] = None,
    mixed: Annotated[
        bool,
        typer.Option(
            "--mixed", help="Pool runs of several commits, recipes, changed sources, too."
        ),
    ] = False,
    resamples: Annotated[
        int, typer.Option("--resamples", min=100, help="Of the bootstrap over people.")
    ] = 10_000,
    beside: Annotated[
        str | None,
        typer.Option(
            "--beside",
            metavar="ROW@RUN,RUN,…",
            help="Also a row of other runs on the same lists, and every row against it.",
        ),
    ] = None,
) -> None:
    """Pool runs of one recipe under several seeds (of training, of ties, or both).

    Means over the runs, their deviation, and intervals over people: a person's lists in several
    runs are kept together. Each run needs a report (`diffgr2 report RUN`).
    """
    from diffgr2.artifacts import write_json
    from diffgr2.evaluate.versus import read_side

    if len(runs) < 2:
        raise ConfigError("seeds: at least two runs are needed")
    sides = [read_side(run) for run in runs]
    summary = summary_of(sides, mixed=mixed, resamples=resamples, beside=beside)
    typer.echo(text_of(summary))
    if save is not None:
        write_json(save, summary)
        typer.echo(str(save))
    if plot is not None:
        from diffgr2.evaluate.plots import save_figure, seeds_ladder

        hit = [row for row in summary["rows"] if row["population"] == "hit"]
        typer.echo(str(save_figure(seeds_ladder(hit or summary["rows"]), plot)))


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("seeds", rich_help_panel="Runs")(seeds)
