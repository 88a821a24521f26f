"""One ranking on a terminal: first what did not go as asked, in words, then the ranking.

Contract: `cautions` are those words: no history, a fallback, a repair, a list dealt into windows,
what of the request was passed over. `show` prints them, a table that fits 80 columns, the
reasoning, and what it took. Not here: answers as JSON (`rerank`), ranking (`diffgr2.rerank`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffgr2.rerank.decisions import Decision
    from diffgr2.rerank.result import RankResult

SHOWN_CHANCES = 3
SHOWN_WARNINGS = 5
FAILED = {
    "unparseable": "it is no answer of the asked form",
    "duplicate": "it names a candidate twice",
    "missing": "candidates are missing",
    "out_of_set": "it names what is no candidate",
    "overlong": "it ran out of room",
}


def cautions(result: RankResult, *, blank: bool) -> list[str]:
    """What whoever reads the ranking has to know before, the gravest first; `blank`: there was
    nothing to judge by."""
    lines, windows = [], result.decode.get("windows", 1)
    if blank:
        lines.append("No history is known: nothing was judged, the list is as it came.")
    why = ", ".join(FAILED.get(kind, kind) for kind in result.failures)
    part = "An answer" if windows > 1 or result.decode.get("views", 1) > 1 else "The answer"
    if result.fallback:
        lines.append(f"{part} was of no use ({why}): what it was about keeps the order it came in.")
    if result.repaired:
        lines.append(f"{part} was not whole ({why}) and was completed by rule.")
    if windows > 1:
        lines.append(
            f"The list is longer than one prompt holds: it was dealt into {windows} windows."
        )
    lines += result.warnings[:SHOWN_WARNINGS]
    if more := len(result.warnings) - SHOWN_WARNINGS:
        lines += [f"… and {more} more of this kind (all with --json)"] if more > 0 else []
    return lines


def described(decision: Decision) -> str:
    """A decision in a few lines: its likeliest strengths, and the likeliest at each place."""
    ranked = sorted(enumerate(decision.strengths), key=lambda pair: -pair[1])[:SHOWN_CHANCES]
    lines = ["strength " + ", ".join(f"{level} ({chance:.0%})" for level, chance in ranked)]
    for place, pieces in enumerate(decision.evidence):
        none = "nothing more" if place else "nothing"
        shown = pieces[:SHOWN_CHANCES]
        said = (f"{one.phrase or none} ({one.probability:.0%})" for one in shown)
        lines.append("counts: " + ", ".join(said))
    return "\n  ".join(lines) if decision.strengths else "not judged"


def show(result: RankResult, titles: Sequence[str], *, blank: bool = False) -> None:
    """A ranking for people; `titles` are those of the list as it came."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for line in cautions(result, blank=blank):
        console.print(f"[yellow]![/] {escape(line)}", highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True)
    rules = any(result.placed)
    for name in ("place", "was", "moved", "score", "strength", *(["rule"] if rules else ())):
        table.add_column(name, justify="left" if name == "rule" else "right", no_wrap=True)
    table.add_column("item", no_wrap=True, overflow="ellipsis", ratio=1)
    rows = zip(result.order, result.scores, result.levels, strict=True)
    for place, (was, score, level) in enumerate(rows, 1):
        move = was + 1 - place
        mark = f"[green]▲{move}[/]" if move > 0 else f"[red]▼{-move}[/]" if move < 0 else ""
        told = "–" if level is None else f"{level:.1f}"
        cells = [str(place), str(was + 1), mark, f"{score:.3f}", told]
        cells += [f"[yellow]{result.placed[place - 1] or ''}[/]"] if rules else []
        table.add_row(*cells, escape(titles[was]))
    console.print(table)
    if result.reasoning:
        # Markdown is to be copied, so no line of it is broken.
        console.print(f"\n{escape(result.reasoning)}", highlight=False, soft_wrap=True)
    for was, decision in zip(result.order, result.decisions or (), strict=False):
        console.print(f"\n{escape(titles[was])}: {escape(described(decision))}", highlight=False)
    facts = result.decode
    cost = "nothing was decoded"
    if facts["forwards"]:
        forwards = f"{facts['forwards']} forward{'s' * (facts['forwards'] != 1)}"
        each = f"({facts['tokens_per_forward']:g} each)"
        cost = f"{facts['decoder']}, {facts['tokens']} tokens in {forwards} {each}"
        cost += ", valid" if result.valid else ""
    console.print(f"\n[dim]{cost}[/]", highlight=False)
