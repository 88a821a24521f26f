"""A report for people: Markdown, a terminal table, and saving both with `report.json`.

Contract: a pure rendering of the report; every number printed stands in `report.json`. A step's
sentence names its interval and calls it gain, loss or none. Not here: any computation but means
over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from diffgr2.artifacts import save_arrays, write_json
from diffgr2.evaluate.significance import mean_sd, verdict
from diffgr2.types import FAILURES

SHOWN = ("r@1", "r@3", "r@5", "r@10", "ndcg@3", "ndcg@5", "ndcg@10", "mrr")
MAIN = ("r@1", "ndcg@3")
NAMES = {"hit": "Hit users (target among the candidates)", "all": "All users (a miss counts 0)"}


def label(metric: str) -> str:
    """`ndcg@3` -> `NDCG@3`."""
    return metric.upper()


def number(value: Any, digits: int = 4) -> str:
    """Without the leading zero; a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(value: float, digits: int = 4) -> str:
    """With its sign."""
    text = number(abs(value), digits)
    return ("−" if value < 0 else "+") + text


def span(ci: Sequence[float]) -> str:
    """`[low, high]` of a difference."""
    return f"[{signed(ci[0])}, {signed(ci[1])}]"


def p_text(p: float) -> str:
    """A p-value of three digits, or a bound."""
    return "< .001" if p < 0.001 else f"= {number(p, 3)}"


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table, first column left, the others right."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *body])


def rows_of(report: dict[str, Any], population: str) -> list[dict[str, Any]]:
    """A population's rows, in order."""
    return [row for row in report["rows"] if row["population"] == population]


def metrics_table(report: dict[str, Any], population: str) -> str:
    """Name, n and every metric with its own 95 % interval for the first."""
    head = ["row", "n", *map(label, SHOWN), f"{label(SHOWN[0])} 95 %"]
    body = []
    for row in rows_of(report, population):
        ci = row["ci"][SHOWN[0]]
        cells = [number(row["metrics"][metric]) for metric in SHOWN]
        body.append([row["name"], number(row["n"]), *cells, f"[{number(ci[0])}, {number(ci[1])}]"])
    return markdown_table(head, body)


def differences_table(report: dict[str, Any], population: str, other: str) -> str | None:
    """Paired intervals against `floor` or `ar`, with the verdict; None if there are none."""
    body = []
    for row in rows_of(report, population):
        against = row.get(f"vs_{other}")
        if against is None or row["name"] in ("random", "oracle"):
            continue
        cells = [row["name"]]
        for metric in MAIN:
            cells += [span(against[metric]), verdict(*against[metric])]
        body.append(cells)
    head = [f"row against {other}"]
    for metric in MAIN:
        head += [f"{label(metric)} difference, 95 %", "verdict"]
    return markdown_table(head, body) if body else None


def validity_table(report: dict[str, Any], population: str) -> str | None:
    """Raw validity, failure kinds, copying, truth; None if no row has them."""
    rows = [row for row in rows_of(report, population) if "raw_valid" in row]
    head = ["row", "decoded", "raw valid", *FAILURES, "identity", "evidence true", "as AR"]
    head += ["own AR text"] if any("same_text" in row for row in rows) else []
    body = []
    for row in rows:
        failures = row.get("failures", {})
        shares = [number(failures.get(kind)) for kind in FAILURES]
        rest = [number(row.get(key)) for key in ("identity", "evidence_true", "same_as_ar")]
        rest += [number(row.get("same_text"))] if "own AR text" in head else []
        body.append(
            [row["name"], number(row["n_decoded"]), number(row["raw_valid"]), *shares, *rest]
        )
    return markdown_table(head, body) if body else None


def speed_table(report: dict[str, Any], population: str) -> str | None:
    """Length and speed; None if no row has them."""
    keys = ("tpf", "tokens_per_s", "ms_per_output", "speedup")
    rows = [
        row
        for row in rows_of(report, population)
        if any(key in row for key in (*keys, "reasoning_tokens"))
    ]
    head = ["row", "reasoning tokens: mean", "p5", "p50", "p95"]
    head += ["TPF", "tokens/s", "batch", "ms per output", "speed-up"]
    body = []
    for row in rows:
        length = row.get("reasoning_tokens", {})
        lengths = [number(length.get(key), 1) for key in ("mean", "p5", "p50", "p95")]
        speed = row.get("speedup")
        body.append(
            [
                row["name"],
                *lengths,
                number(row.get("tpf"), 2),
                number(row.get("tokens_per_s"), 0),
                number(row.get("batch")),
                number(row.get("ms_per_output"), 1),
                "–" if speed is None else f"{speed:.2f}×",
            ]
        )
    return markdown_table(head, body) if body else None


def gap_table(report: dict[str, Any], population: str) -> str | None:
    """Share of the way from the floor to a perfect re-ranker; None if the truth is unknown."""
    rows = [row for row in rows_of(report, population) if "gap_closed" in row]
    body = [
        [row["name"], *(number(row["gap_closed"].get(metric), 3) for metric in MAIN)]
        for row in rows
        if row["name"] not in ("random", "floor", "oracle")
    ]
    head = ["gap from floor to oracle, closed", *map(label, MAIN)]
    return markdown_table(head, body) if body else None


def step_sentences(report: dict[str, Any], population: str) -> list[str]:
    """One sentence per stage step."""
    sentences = []
    for row in rows_of(report, population):
        for step in row.get("steps", []):
            parts = [
                f"{label(metric)} {signed(entry['diff'])} {span(entry['ci'])} "
                f"**{entry['verdict']}**"
                for metric in MAIN
                for entry in [step["metrics"][metric]]
            ]
            test = step["mcnemar"]
            sentences.append(
                f"`{step['from']}` → `{row['name']}` (n = {step['n']:,}): {'; '.join(parts)}; "
                f"first places gained {test['gained']}, lost {test['lost']}, exact McNemar "
                f"p {p_text(test['p'])}, Holm {p_text(test['p_holm'])}."
            )
    return sentences


def render_markdown(report: dict[str, Any], figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown; `figures` are file names beside it."""
    lines = [f"# Report: {report['recipe']}", ""]
    for key in ("data", "tie_order", "seed", "commit", "command"):
        lines.append(f"- {key.replace('_', ' ')}: `{report[key]}`")
    lines += [
        "",
        "Intervals are paired 95 % bootstrap percentiles over users, the same resamples for every "
        "row; a difference whose interval holds 0 is called none. `random` is the exact "
        "expectation.",
    ]
    for population in ("hit", "all"):
        if not rows_of(report, population):
            continue
        lines += ["", f"## {NAMES[population]}", "", metrics_table(report, population)]
        parts = [differences_table(report, population, other) for other in ("ar", "floor")]
        parts.append(gap_table(report, population))
        if population == "hit":
            parts += [validity_table(report, "hit"), speed_table(report, "hit")]
        for part in parts:
            if part:
                lines += ["", part]
        sentences = step_sentences(report, population)
        if sentences:
            lines += ["", "### Step by step", "", *(f"- {text}" for text in sentences)]
    over_all = {row["name"] for row in rows_of(report, "all")}
    left_out = [row["name"] for row in rows_of(report, "hit") if row["name"] not in over_all]
    if left_out:
        names = ", ".join(f"`{name}`" for name in left_out)
        lines += ["", f"No row over all users for {names}: not every hit user was decoded."]
    for name in figures:
        lines += ["", f"![{Path(name).stem.replace('_', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def render_table(report: dict[str, Any], population: str = "hit") -> Table:
    """The terminal's table of one population."""
    rows = rows_of(report, population)
    n = max((row["n"] for row in rows), default=0)
    title = f"{report['recipe']} · {NAMES[population]} · n = {n:,}"
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    extra = ("raw_valid", "identity", "tpf", "tokens_per_s", "speedup")
    for name in ("R@1", "R@3", "NDCG@3", "NDCG@10", "R@1 vs AR, 95 %"):
        table.add_column(name, justify="right")
    for name in ("valid", "identity", "TPF", "tok/s", "speed-up"):
        table.add_column(name, justify="right")
    for row in rows:
        against = row.get("vs_ar")
        cells = [number(row["metrics"][m]) for m in ("r@1", "r@3", "ndcg@3", "ndcg@10")]
        cells.append(span(against["r@1"]) if against else "–")
        digits = (3, 3, 2, 0, 2)
        cells += [number(row.get(key), d) for key, d in zip(extra, digits, strict=True)]
        size = "" if row["n"] == n else f" (n = {row['n']:,})"
        table.add_row(row["name"] + size, *cells)
    return table


def timings_table(speeds: Sequence[dict[str, Any]]) -> str:
    """Every decoder and batch size; `generate` is the transformers library's own loop."""
    head = ["decoder", "batch", "tokens/s", "lowest", "highest", "TPF", "speed-up over `ar`"]
    body = [
        [
            entry["decoder"],
            str(entry["batch"]),
            *(f"{entry[key]:,.0f}" for key in ("tokens_per_s", "low", "high")),
            number(entry["tpf"], 2),
            f"{entry['speedup']:.2f}×",
        ]
        for entry in speeds
    ]
    return markdown_table(head, body)


def over_seeds(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and sample deviation over reports of several seeds, for rows that all of them hold."""
    tables = [{(r["population"], r["name"]): r for r in rep["rows"]} for rep in reports]
    result = []
    for key, first in tables[0].items():
        rows = [table[key] for table in tables if key in table]
        if len(rows) < len(tables):
            continue
        entry: dict[str, Any] = {"name": key[1], "population": key[0], "seeds": len(reports)}
        entry["metrics"] = {m: _spread([r["metrics"][m] for r in rows]) for m in first["metrics"]}
        for share in ("raw_valid", "tpf", "evidence_true"):
            if all(share in row for row in rows):
                entry[share] = _spread([row[share] for row in rows])
        result.append(entry)
    return result


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    mean, sd = mean_sd(list(values))
    return {"mean": round(mean, 6), "sd": None if sd is None else round(sd, 6)}


def seeds_table(summary: Sequence[dict[str, Any]], population: str = "hit") -> str:
    """`mean ± sd` per row."""

    def cell(entry: dict[str, float | None] | None, digits: int) -> str:
        if entry is None:
            return "–"
        sd = "" if entry["sd"] is None else f" ± {number(entry['sd'], digits)}"
        return number(entry["mean"], digits) + sd

    body = []
    for row in summary:
        if row["population"] != population:
            continue
        cells = [cell(row["metrics"][m], 4) for m in ("r@1", "r@3", "ndcg@3", "ndcg@10")]
        cells += [cell(row.get("raw_valid"), 3), cell(row.get("tpf"), 1)]
        body.append([row["name"], str(row["seeds"]), *cells])
    head = ["row", "seeds", "R@1", "R@3", "NDCG@3", "NDCG@10", "raw valid", "TPF"]
    return markdown_table(head, body)


def save_report(
    directory: Path,
    report: dict[str, Any],
    *,
    figures: dict[str, Any] | None = None,
    ranks: dict[str, np.ndarray] | None = None,
) -> list[Path]:
    """`report.json`, `report.md`, a PNG per figure and `ranks.safetensors`; returns the paths.

    Drawing functions are in `plots` and `pictures`; matplotlib is loaded only if there is a figure.
    """
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "report.json", directory / "report.md"]
    write_json(paths[0], report)
    names = [f"{name}.png" for name in figures or {}]
    paths[1].write_text(render_markdown(report, names))
    if figures:
        from diffgr2.evaluate.plots import save_figure

        for name, figure in figures.items():
            paths.append(save_figure(figure, directory / f"{name}.png"))
    if ranks is not None:
        paths.append(directory / "ranks.safetensors")
        save_arrays(paths[-1], **ranks)
    return paths
