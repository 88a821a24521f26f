"""Rewrites the results tables of a README from committed reports.

Contract: between `<!-- results:NAME -->` and `<!-- /results:NAME -->` stands what
`results/NAME.json` says and nothing else: its main rows (`rows:NAME`: all of them; `days:NAME`: its
rows on targets of the same day and of others; `budget:NAME`: quality over steps of a stage;
`speed:NAME`: its timing run; `serving:NAME`: a serving benchmark; `growth:NAME`: costs of larger
lists; `sids:NAME`: semantic IDs; `lists:NAME`: a shop's own lists, fold by fold; `short:NAME`: what
the run ended with; `costs:NAME`: what a table of costs said of a larger size; `queueing:NAME`: a
server beside its simulation; `text:NAME`, `ids:NAME`, `gpu:NAME`, `prompt:NAME`: `trial_tables`);
run again, it changes nothing. Not here: measuring.
Run: `python tools/readme_table.py README.md results [--check]`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cost_tables import (
    costs_table,
    growth_table,
    peers_table,
    queueing_table,
    serving_table,
    short_peers_table,
    speed_table,
    spread,
)
from own_table import lists_table
from readme_short import short
from trial_tables import gpu_table, ids_table, prompt_table, text_table

from diffgr2.artifacts import read_json
from diffgr2.errors import ArtifactError, DataError, Diffgr2Error
from diffgr2.evaluate.metrics import MAIN
from diffgr2.evaluate.pooled import BESIDE, parts_by_seed, pooled_table
from diffgr2.evaluate.tables import (
    against,
    at,
    interval_at,
    markdown_table,
    parts_of,
    parts_table,
    rows_of,
    span,
)
from diffgr2.pipeline import DIRTY

KINDS = "results|short|rows|days|budget|serving|speed|growth|costs|queueing|sids|ids|lists|text"
KINDS += "|gpu|prompt"
OPEN = re.compile(rf"^<!-- ({KINDS}):([A-Za-z0-9_.-]+) -->$", re.MULTILINE)


MAIN_ROWS = (
    *("floor", "oracle", "evidence", "tutor", "lambdamart"),
    *("block_direct", "ar", "ar_written", "naive", "cft", "cft_opd_rl"),
    *("cft_opd_rl_written", "cft_opd_rl_raw", "verify"),
)
"""What a reader needs first; the others are in the full table."""


def results_table(report: dict[str, Any], *, every: bool) -> str:
    """Hit users' metrics, the paired intervals, what outputs are worth, speed; what an older report
    does not hold is a dash."""
    hit = rows_of(report, "hit")
    columns: list[Any] = [("row", named)]
    columns += [(metric.upper(), at(f"metrics.{metric}")) for metric in MAIN]
    columns.append(("R@1 over the floor, 95 %", against("floor")))
    columns.append(("R@1 against AR, 95 %", against("ar")))
    if any("vs_rival" in row for row in hit):
        columns.append(("R@1 against the rival, 95 %", against("rival")))
    columns += [("raw valid, 95 %", sure("raw_valid")), ("coherent, 95 %", sure("coherent"))]
    columns += [("TPF, 95 %", sure("tpf", 1)), ("forwards", at("forwards", 1))]
    if any("ms_per_list" in row for row in hit):
        columns.append(("ms per list", at("ms_per_list", 2)))
    shown = [row for row in hit if every or row["name"] in MAIN_ROWS]
    return f"{markdown_table(shown, columns)}\n\n{about(report)}"


def named(row: dict[str, Any]) -> str:
    return f"`{row['name']}`"


def sure(key: str, digits: int = 3, of: str = "") -> Callable[[dict[str, Any]], str]:
    """A share or a ratio (over several runs `of` their mean) with its interval."""
    value, ends = at(f"{key}{of}", digits), interval_at(f"ci.{key}", digits)
    return lambda row: value(row) if key not in row else f"{value(row)} {ends(row)}"


def about(report: dict[str, Any]) -> str:
    """Which users, order of ties and seed a table has, what chose the rival, how it was made."""
    counts = {
        population: sorted({row["n"] for row in rows_of(report, population)})
        for population in ("hit", "all")
    }
    n_hit, n_all = (" or ".join(f"{n:,}" for n in counts[name]) or "0" for name in counts)
    rival = report.get("rival")
    chosen = f" Rival: `{rival['row']}`, chosen on {rival['n']:,} selection lists." if rival else ""
    return (
        f"{report['data']}, tie order {report['tie_order']}, seed {report['seed']}: "
        f"every row on the same {n_hit} hit users of {n_all}.{chosen} {source(report)}"
    )


def source(report: dict[str, Any]) -> str:
    """The command, and the commits that made what stands there."""
    commits = sorted({*report.get("commits", [])} or {report.get("commit", "")})
    told = ", ".join(cut(commit) or "no commit" for commit in commits)
    return f"Made by `{report['command']}`{f' at {told}' if told != 'no commit' else ''}."


def cut(commit: str) -> str:
    """Enough of a commit to find it, and whether the source was changed."""
    return commit.removesuffix(DIRTY)[:12] + DIRTY * commit.endswith(DIRTY)


def days_table(report: dict[str, Any]) -> str:
    """What rows gain where the target was bought on the last day, and elsewhere."""
    if isinstance(report.get("seeds"), list):
        return f"{parts_by_seed(report['rows'])}\n\n{pooled_note(report)}"
    if not parts_of(report):
        raise DataError("the report does not tell days apart: make it again")
    return f"{parts_table(report)}\n\n{about(report)}"


def several_seeds(summary: dict[str, Any], *, every: bool) -> str:
    """The table of `diffgr2 seeds`, or what a reader needs first of it."""
    if every:
        return f"{pooled_table(summary['rows'])}\n\n{pooled_note(summary)}"
    hit = rows_of(summary, "hit")
    columns: list[Any] = [("row", named)]
    columns += [(metric.upper(), spread_of(f"metrics.{metric}")) for metric in MAIN]
    others = {"floor": "over the floor", "ar": "against AR", "rival": "against the rival"}
    others[BESIDE] = f"against `{beside_of(hit)}`"
    for other, words in others.items():
        if any(f"vs_{other}" in row for row in hit):
            columns.append((f"R@1 {words}, 95 %", against(other)))
    columns.append(("raw valid, 95 %", sure("raw_valid", of=".mean")))
    columns.append(("TPF, 95 %", sure("tpf", 1, of=".mean")))
    columns.append(("forwards", at("forwards.mean", 1)))
    shown = [row for row in hit if row["name"] in (*MAIN_ROWS, beside_of(hit))]
    return f"{markdown_table(shown, columns)}\n\n{pooled_note(summary)}"


def beside_of(rows: list[dict[str, Any]]) -> str:
    """The row that other runs lent, "" if none did."""
    return next((row["name"] for row in rows if row["name"].endswith(f"_{BESIDE}")), "")


def spread_of(path: str) -> Callable[[dict[str, Any]], str]:
    """Mean and standard deviation over the runs."""
    mean, sd = at(f"{path}.mean", 4), at(f"{path}.sd", 4)
    return lambda row: f"{mean(row)} ± {sd(row)}"


def pooled_note(summary: dict[str, Any]) -> str:
    """Which runs a summary is about."""
    commands = "; ".join(f"`{command}`" for command in summary["commands"])
    seeds = ", ".join(map(str, summary["seeds"]))
    mixed = "".join(f" Mixed: {why}." for why in summary.get("mixed", []))
    commits = {*summary["commits"]}
    made_at = f", all at {cut(min(commits))}" if len(commits) == 1 and not mixed else ""
    sure = ", intervals over people" if any("ci" in row for row in summary["rows"]) else ""
    lent = "; ".join(f"`{command}`" for command in summary.get("beside", []))
    if lent:
        commands += f"; `{beside_of(summary['rows'])}` by {lent}"
    return (
        f"{summary['data']}, tie order {summary['tie_order']}, seeds {seeds}: hit users, mean ± "
        f"standard deviation over the runs{sure}.{mixed} Made by {commands}{made_at}."
    )


def sids_table(report: dict[str, Any]) -> str:
    """Variants of semantic IDs, over their seeds."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["rows"]:
        grouped.setdefault((row["shop"], row["variant"]), []).append(row)
    lines = []
    for (shop, variant), rows in grouped.items():
        shared = {
            name: " / ".join(
                spread([row["shared"][name][level] for row in rows], 1, 100) for level in range(3)
            )
            for name in ("test", "counted")
        }
        new = [row["new_first_code"] for row in rows if row["new_first_code"] is not None]
        usage = [min(row["usage"]) for row in rows]
        lines.append(
            {
                "shop": shop,
                "variant": f"{variant} ({rows[0]['levels']} × {rows[0]['codes']})",
                "natural": spread([row["natural"] for row in rows], 3),
                "assigned": spread([row["assigned"] for row in rows], 3),
                "usage": spread(usage, 2),
                "new": spread(new, 2) if new else "–",
                "seconds": spread([row["seconds"] for row in rows], 0),
                **shared,
            }
        )
    columns: list[Any] = [("shop", at("shop")), ("IDs", at("variant"))]
    columns += [("natural", at("natural")), ("assigned", at("assigned"))]
    columns += [("least usage of a level", at("usage")), ("test pairs, %", at("test"))]
    columns += [("counted pairs, %", at("counted")), ("new items' first code", at("new"))]
    columns += [("CPU s", at("seconds"))]
    seeds = len({row["seed"] for row in report["rows"]})
    return f"{markdown_table(lines, columns)}\n\n{seeds} seeds. {source(report)}"


def budget_table(report: dict[str, Any]) -> str:
    """What more steps of a stage do."""
    columns: list[Any] = [(name, at(name)) for name in ("stage", "way", "steps", "read")]
    columns += [("raw valid, 95 %", sure("raw_valid")), ("duplicates", at("failures.duplicate", 3))]
    for metric in MAIN:
        columns += [(metric.upper(), at(f"metrics.{metric}"))]
        columns.append((f"{metric.upper()} to 0 steps, 95 %", to_none(metric)))
    columns += [("TPF, 95 %", sure("tpf", 1))]
    whose = {"selection": "validation lists of selection users", "test": "test lists"}
    trained = sorted({row["on"] for row in report["rows"] if "on" in row})
    where = f"Trained on {', '.join(trained)}. " if trained else ""
    note = (
        f"{report['data']}, tie order {report['tie_order']}, seed {report['seed']}: every row on "
        f"the same {report['rows'][0]['n']:,} {whose[report['split']]}. {where}"
        f"{source(report)}"
    )
    return f"{markdown_table(report['rows'], columns)}\n\n{note}"


def to_none(metric: str) -> Callable[[dict[str, Any]], str]:
    """The interval of a difference to 0 steps; a dash at 0."""
    return lambda row: span(row["over_none"][metric]["ci"]) if row["steps"] else "–"


PLAIN = {"budget": budget_table, "days": days_table, "sids": sids_table, "short": short}
OTHERS = {
    "serving": serving_table,
    "speed": speed_table,
    "growth": growth_table,
    "costs": costs_table,
    "queueing": queueing_table,
    "lists": lists_table,
    "text": text_table,
    "gpu": gpu_table,
    "ids": ids_table,
    "prompt": prompt_table,
}


def table_of(kind: str, report: dict[str, Any]) -> str:
    """What stands between the marks of a kind."""
    if kind in PLAIN:
        return PLAIN[kind](report)
    if kind in OTHERS:
        return OTHERS[kind](report, source(report))
    if "limit" in report:
        table = peers_table if kind == "rows" else short_peers_table
        return table(report, source(report))
    if "seeds" in report:
        return several_seeds(report, every=kind == "rows")
    return results_table(report, every=kind == "rows")


def rewrite(text: str, results: Path) -> str:
    """The text with every marked table made anew."""
    for kind, name in OPEN.findall(text):
        start, end = f"<!-- {kind}:{name} -->\n", f"<!-- /{kind}:{name} -->"
        if text.count(start) != 1:
            raise DataError(f"{kind}:{name}: the opening mark stands {text.count(start)} times")
        before, rest = text.split(start)
        if rest.count(end) != 1 or OPEN.search(rest.split(end)[0]):
            raise DataError(f"{kind}:{name}: no single closing mark follows the opening one")
        after = rest.split(end)[1]
        report = read_json(results / f"{name}.json")
        try:
            table = table_of(kind, report)
        except (KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{results / name}.json: not a report ({error!r})") from None
        text = f"{before}{start}{table}\n{end}{after}"
    return text


def main(arguments: list[str] | None = None) -> int:
    """Rewrite the file, or with --check only say whether it is in step (exit code 1 if not)."""
    parser = argparse.ArgumentParser(description="Rewrite the results tables of a README.")
    parser.add_argument("readme", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, compare only")
    options = parser.parse_args(arguments)
    try:
        if not options.readme.is_file():
            raise DataError(f"{options.readme}: no such file")
        text = options.readme.read_text(encoding="utf-8")
        new = rewrite(text, options.results)
    except Diffgr2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if options.check:
        if text != new:
            print(f"{options.readme}: results tables are out of step", file=sys.stderr)
        return int(text != new)
    if text != new:
        options.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
