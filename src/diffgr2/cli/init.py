"""`diffgr2 init FILES…`: from a shop's files to a recipe of at most fifteen lines.

Contract: looks at the files (`data.peek`), says in a table what each column was taken for and why
(`data.guess`), asks what it cannot know (with `--yes`, or where nobody answers, it names the flag
that says it), reads the interactions once as a run would, writes a commented recipe and ends with
the next command and about how long it takes. A recipe that stands is not overwritten. Not here: the
import itself, and training.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffgr2.cli.verbs import word_columns
from diffgr2.errors import ConfigError

if TYPE_CHECKING:
    from diffgr2.data.guess import Use
    from diffgr2.data.peek import Peek


def init(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES...", help="csv, tsv, jsonl, parquet, …")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The recipe.", show_default="recipe.yaml")
    ] = None,
    interactions: Annotated[
        Path | None, typer.Option("--interactions", help="Who bought what, a line each.")
    ] = None,
    items: Annotated[Path | None, typer.Option("--items", help="Texts, a line per item.")] = None,
    lists: Annotated[
        Path | None, typer.Option("--lists", help="Your ranker's lists, a line per candidate.")
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="WORD=COLUMN",
            help="What a column is: --map user=buyer items.title=name.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
) -> None:
    """Look at your files and write a recipe for them.

    Tells interactions, items and lists apart by what stands in them, says
    what each column was taken for and why, and asks what it cannot know.

    Words of --map: user, item, timestamp, position of interactions; item,
    title, brand, categories, price, description of items; list, user, item,
    moment, place, score, history of lists, outcome and feature as often as
    needed. A word goes to the files that have the column; items.item=sku
    means one file.
    """
    from diffgr2.data.guess import guess
    from diffgr2.data.peek import peek

    said = {"interactions": interactions, "items": items, "lists": lists}
    given = {str(path): role for role, path in said.items() if path is not None}
    flagged = [path for path in said.values() if path is not None]
    paths: list[Path] = list(dict.fromkeys([*(files or []), *flagged]))
    if not paths:
        raise ConfigError("init: name the files, for example: diffgr2 init orders.csv products.csv")
    out = out or Path("recipe.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: a recipe's name ends in .yaml")
    if out.exists():
        raise ConfigError(f"{out}: stands already (--out another, or remove it)")
    peeks = [peek(path) for path in paths]
    uses = guess(peeks, given, _said(maps or [], peeks, given))
    _settle(uses, ask=not yes)
    typer.echo("\n".join(table(uses)))
    _write(uses, out, paths)


def _write(uses: Mapping[str, Use], out: Path, paths: list[Path]) -> None:
    """Try the recipe on the files, write it, show it, and say what comes next."""
    from diffgr2.cli.drafts import drafted
    from diffgr2.recipe import load_recipe

    draft = drafted(uses, out.parent)
    typer.echo("\n".join(draft.told))
    text = draft.text(out, paths)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    load_recipe(str(out))  # what was written is what was checked
    typer.echo(f"\n{out}:\n{text}")
    typer.echo(f"next: {draft.next(out)}")


# ------------------------------------------------------------------------------ what is settled


def _said(
    maps: list[str], peeks: list[Peek], given: Mapping[str, str]
) -> dict[str, list[tuple[str, str]]]:
    """Role -> (word, column) of `--map`; a word without a role goes to the files that have it."""
    from diffgr2.data.guess import roles, words_of

    those = roles(peeks, given)
    found: dict[str, list[tuple[str, str]]] = {role: [] for role in those}
    more = f", or {', '.join(f'{role}.word' for role in those)}=column"
    for named, column in word_columns("--map", maps, more):
        text = f"{named}={column}"
        role, dot, rest = named.partition(".")
        if dot and role not in those:
            raise ConfigError(f"--map {text}: expected word=column{more}")
        word = rest if dot else named
        fits = [r for r in ([role] if dot else those) if word in words_of(r)]
        if not fits:
            words = ", ".join(dict.fromkeys(w for r in those for w in words_of(r)))
            raise ConfigError(f"--map {text}: unknown word {word} (known: {words})")
        having = [r for r in fits if column in those[r][0].columns]
        if not having:
            names = ", ".join(list(those[fits[0]][0].columns)[:20])
            where = those[fits[0]][0].path.name
            raise ConfigError(f"--map {text}: no column {column!r} in {where} (it has: {names})")
        for r in having:
            found[r].append((word, column))
    return found


def _settle(uses: Mapping[str, Use], *, ask: bool) -> None:
    """Ask about what is open; what must be known and is not is an error that names the flag."""
    from diffgr2.data.guess import REQUIRED

    for role, use in uses.items():
        if use.peek.source != "table":
            continue
        for word, names in list(use.open.items()):
            which = f"{' and '.join(names[:4])} could each be the {word}"
            flag = f"say --map {role}.{word}={names[0]}"
            use.take(word, _asked(use, word, which, flag, ask=ask), "as you said")
        for word in REQUIRED[role]:
            if use.column(word) is None:
                names = ", ".join(list(use.peek.columns)[:12])
                which = f"no column is surely the {word} (it has: {names})"
                flag = f"say --map {role}.{word}=COLUMN"
                use.take(word, _asked(use, word, which, flag, ask=ask), "as you said")
        if role == "lists" and not use.columns("outcome"):
            raise ConfigError(
                f"{use.peek.path.name}: no column says what came of a candidate (0 or 1, named "
                "click, cart, purchase, …): say --map lists.outcome=COLUMN"
            )


def _asked(use: Use, word: str, which: str, flag: str, *, ask: bool) -> str:
    """The column that the caller names; where nobody can be asked, the flag that names it."""
    name = use.peek.path.name
    while ask:
        try:
            answer = typer.prompt(f"{name}: {which}; which is it?").strip()
        except typer.Abort:
            if sys.stdin.isatty():
                raise
            break
        if answer in use.peek.columns:
            return answer
        typer.echo(f"{name} has no column {answer!r}")
    raise ConfigError(f"{name}: {which}: {flag}")


def table(uses: Mapping[str, Use]) -> list[str]:
    """What every column was taken for, and why."""
    lines = []
    for role, use in uses.items():
        bad = f", {use.peek.bad} of them set aside" if use.peek.bad else ""
        size = f", {use.peek.size}{bad}" if use.peek.columns else ""
        lines += [f"{use.peek.path}: {role}{size} ({use.why})"]
        if use.peek.source != "table":
            lines.append(f"  {'':22} {'':12} the publisher's own format ({use.peek.source})")
            continue
        wide = min(max(map(len, use.peek.columns)), 30)
        for one in sorted(use.guesses, key=lambda g: (not g.word, g.word == "feature")):
            lines.append(f"  {one.column:{wide}} {one.word or '-':12} {one.why}")
    return lines


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("init", rich_help_panel="Runs")(init)
