"""A report for people: Markdown and a terminal table.

Contract: a pure rendering of the report; every number printed stands in `report.json`. A step's
sentence names its interval and calls it gain, loss or none. Not here: any computation but the
spread of a few values.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from diffgr2.evaluate.metrics import MAIN, METRICS
from diffgr2.evaluate.population import BASELINES
from diffgr2.evaluate.significance import MARGIN, equivalence, verdict
from diffgr2.types import FAILURES

SHORT = ("r@1", "r@3", "ndcg@3", "ndcg@10")
SURE = (("raw valid", "raw_valid"), ("coherent", "coherent"), ("evidence true", "evidence_true"))
NAMES = {"hit": "Hit users (target among the candidates)", "all": "All users (a miss counts 0)"}
PARTS = {
    "same_day": "target bought on the day of the last item of the history",
    "other_days": "target bought on a later day",
}
OWN_NAMES = {"hit": "Lists that have an outcome", "all": "All lists (one without counts 0)"}

Columns = Sequence[tuple[str, Callable[[dict[str, Any]], str]]]
"""Of a table: each column's head, and what a row says there."""


def number(value: Any, digits: int = 4) -> str:
    """Without the leading zero; a dash where there is nothing."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def signed(value: float) -> str:
    """With its sign."""
    return ("−" if value < 0 else "+") + number(abs(value))


def span(ci: Sequence[float]) -> str:
    """`[low, high]` of a difference."""
    return f"[{signed(ci[0])}, {signed(ci[1])}]"


def p_text(p: float) -> str:
    """A p-value of three digits, or a bound."""
    return "< .001" if p < 0.001 else f"= {number(p, 3)}"


def at(path: str, digits: int = 4) -> Callable[[dict[str, Any]], str]:
    """What stands at a dotted path of a row: a text, or a number, or a dash for nothing."""

    def text(row: dict[str, Any]) -> str:
        value: Any = row
        for key in path.split("."):
            value = value.get(key) if value else None
        return value if isinstance(value, str) else number(value, digits)

    return text


def interval_at(path: str, digits: int = 3) -> Callable[[dict[str, Any]], str]:
    """`[low, high]` of a value that stands at a dotted path of a row, or a dash."""

    def text(row: dict[str, Any]) -> str:
        value: Any = row
        for key in path.split("."):
            value = value.get(key) if value else None
        return f"[{', '.join(number(end, digits) for end in value)}]" if value else "–"

    return text


def times(key: str, digits: int = 2) -> Callable[[dict[str, Any]], str]:
    """A ratio with its sign, or a dash."""
    return lambda row: f"{row[key]:.{digits}f}×" if key in row else "–"


def against(other: str, metric: str = "r@1") -> Callable[[dict[str, Any]], str]:
    """The interval of a metric's difference to `ar`, `floor` or `rival`, or a dash."""
    key = f"vs_{other}"
    return lambda row: span(row[key][metric]) if key in row else "–"


def markdown_table(rows: Sequence[dict[str, Any]], columns: Columns) -> str:
    """A Markdown table, first column left, the others right; "" without rows."""
    lines = [[head for head, _ in columns], ["---"] + ["---:"] * (len(columns) - 1)]
    lines += [[text(row) for _, text in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def rows_of(report: dict[str, Any], population: str) -> list[dict[str, Any]]:
    """A population's rows, in order."""
    return [row for row in report["rows"] if row["population"] == population]


def metrics_table(rows: list[dict[str, Any]]) -> str:
    """Name, n and every metric, with the first one's own 95 % interval."""
    columns = [("row", at("name")), ("n", at("n"))]
    columns += [(metric.upper(), at(f"metrics.{metric}")) for metric in METRICS]
    columns.append(("R@1 95 %", interval_at("ci.r@1", 4)))
    return markdown_table(rows, columns)


def differences_table(rows: list[dict[str, Any]], other: str) -> str:
    """Paired intervals against `floor`, `ar` or the `rival`, with the verdict after Holm."""
    key = f"vs_{other}"
    kept = [row for row in rows if key in row and row["name"] not in BASELINES]
    columns: list[Any] = [(f"row against {other}", at("name"))]
    for m in MAIN:
        columns.append((f"{m.upper()} difference, 95 %", lambda row, m=m: span(row[key][m])))
        columns.append(("p, Holm", at(f"p_holm.{other}.{m}", 3)))
        columns.append(("verdict", lambda row, m=m: stance(row, other, m)))
    return markdown_table(kept, columns)


def stance(row: dict[str, Any], other: str, metric: str) -> str:
    """gain, loss, level or no difference shown against `floor`, `ar` or the `rival`."""
    p = row.get("p_holm", {}).get(other, {}).get(metric, 0.0)
    low, high = row[f"vs_{other}"][metric]
    if row["population"] == "all":  # misses, which are 0 in any row, would make everything level
        return verdict(low, high, p).replace("none", "no difference shown")
    return equivalence(low, high, p)


def parts_of(report: dict[str, Any]) -> list[str]:
    """The parts of the hit population that a report tells apart."""
    return [name for name in PARTS if rows_of(report, name)]


def parts_table(report: dict[str, Any]) -> str:
    """What each row gains over the floor on every part of the hit population, a column each."""
    names = parts_of(report)
    tables = {name: {row["name"]: row for row in rows_of(report, name)} for name in names}
    columns: list[Any] = [("row", at("name"))]
    for name, rows in tables.items():
        n = max(row["n"] for row in rows.values())
        for m in MAIN:
            head = f"{m.upper()}, {name.replace('_', ' ')} (n = {n:,})"
            columns.append(
                (head, lambda row, rows=rows, m=m: at(f"metrics.{m}")(rows.get(row["name"], {})))
            )
            columns.append(
                (
                    "over the floor, 95 %",
                    lambda row, rows=rows, m=m: against("floor", m)(rows.get(row["name"], {})),
                )
            )
    first = tables[names[0]] if names else {}
    return markdown_table([{"name": name} for name in first if name != "random"], columns)


def papers_table(rows: list[dict[str, Any]]) -> str:
    """The papers' way: plain rule at τ = .9, a written permutation, the floor where it is none."""
    kept = [row for row in rows if row["name"].endswith("_raw")]
    columns: list[Any] = [("row", at("name")), ("valid", at("raw_valid"))]
    columns.append(("95 %", interval_at("ci.raw_valid")))
    for m in MAIN:
        columns += [(m.upper(), at(f"metrics.{m}"))]
        columns.append(("over the floor, 95 %", against("floor", m)))
    return markdown_table(kept, columns)


def validity_table(rows: list[dict[str, Any]]) -> str:
    """Raw validity, coherence, truth with their intervals; failure kinds, copying."""
    kept = [row for row in rows if "raw_valid" in row]
    columns = [("row", at("name")), ("decoded", at("n_decoded"))]
    for head, key in SURE:
        columns += [(head, at(key)), ("95 %", interval_at(f"ci.{key}"))]
    columns.append(("contradictions", at("contradictions")))
    columns += [(kind, at(f"failures.{kind}")) for kind in FAILURES]
    columns += [("identity", at("identity")), ("as AR", at("same_as_ar"))]
    if any("same_text" in row for row in kept):
        columns.append(("own AR text", at("same_text")))
    return markdown_table(kept, columns)


def speed_table(rows: list[dict[str, Any]]) -> str:
    """Length and speed."""
    kept = [row for row in rows if {"tpf", "ms_per_list", "reasoning_tokens"} & row.keys()]
    columns = [("row", at("name")), ("reasoning tokens: mean", at("reasoning_tokens.mean", 1))]
    columns += [(key, at(f"reasoning_tokens.{key}", 1)) for key in ("p5", "p50", "p95")]
    columns += [("TPF", at("tpf", 2)), ("95 %", interval_at("ci.tpf", 2))]
    columns += [("forwards per list", at("forwards", 2)), ("95 %", interval_at("ci.forwards", 2))]
    columns += [("forced", at("forced", 3)), ("ms per list", at("ms_per_list", 2))]
    columns += [("least", at("low_ms", 2)), ("most", at("high_ms", 2))]
    columns += [("prefill by itself", at("prefill_ms", 2)), ("speed-up", times("speedup"))]
    return markdown_table(kept, [*columns, ("without prefill", times("speedup_decoding"))])


def calibration_table(rows: list[dict[str, Any]]) -> str:
    """How far stated probabilities are from what happens."""
    kept = [row for row in rows if "calibration" in row]
    columns = [("row", at("name")), ("calibration error, all candidates", at("calibration.all"))]
    columns.append(("first places", at("calibration.first")))
    columns.append(("mean chance of the first place", at("calibration.first_chance")))
    return markdown_table(kept, [*columns, ("share right", at("calibration.first_right"))])


def gap_table(rows: list[dict[str, Any]]) -> str:
    """Share of the way from the floor to a perfect re-ranker, where the truth is known."""
    kept = [row for row in rows if "gap_closed" in row and row["name"] not in BASELINES]
    shares = [(metric.upper(), at(f"gap_closed.{metric}", 3)) for metric in MAIN]
    return markdown_table(kept, [("gap from floor to oracle, closed", at("name")), *shares])


def timings_table(speeds: Sequence[dict[str, Any]]) -> str:
    """Every decoder and batch size; `generate` is the transformers library's own loop."""
    columns: list[Any] = [("decoder", at("decoder")), ("batch", at("batch"))]
    for head, key in (("tokens/s", "tokens_per_s"), ("lowest", "low"), ("highest", "high")):
        columns.append((head, lambda entry, key=key: f"{entry[key]:,.0f}"))
    columns += [("TPF", at("tpf", 2)), ("speed-up over `ar`", times("speedup"))]
    return markdown_table(speeds, columns)


def compared_table(entry: dict[str, Any]) -> str:
    """One row of two runs (`versus`): every metric of both, B − A, how sure."""
    rows = [{"metric": metric.upper(), **test} for metric, test in entry["metrics"].items()]
    columns = [("metric", at("metric")), ("A", at("a")), ("B", at("b"))]
    columns.append(("B − A", lambda row: signed(row["diff"])))
    columns.append(("95 %", lambda row: span(row["ci"])))
    columns += [("p, Holm", at("p_holm")), ("verdict", at("verdict"))]
    return markdown_table(rows, columns)


def step_sentences(rows: list[dict[str, Any]]) -> list[str]:
    """One sentence per stage step."""
    sentences = []
    for row in rows:
        for step in row.get("steps", []):
            level = step.get("equivalence", {})
            parts = []
            for metric in MAIN:
                entry = step["metrics"][metric]
                said = level.get(metric, entry["verdict"])
                p = f", p {p_text(entry['p_holm'])}" if "p_holm" in entry else ""
                parts.append(
                    f"{metric.upper()} {signed(entry['diff'])} {span(entry['ci'])}{p} **{said}**"
                )
            test = step["mcnemar"]
            sentences.append(
                f"`{step['from']}` → `{row['name']}` (n = {step['n']:,}): {'; '.join(parts)}; "
                f"first places gained {test['gained']}, lost {test['lost']}."
            )
    return sentences


def reasoning_sentences(rows: list[dict[str, Any]]) -> list[str]:
    """What share of a row's gain over the floor goes when it answers without reasoning."""
    return [
        f"Of what `{row['name']}` gains over the floor, reasoning carries "
        + ", ".join(
            f"{number(share['value'], 2)} [{', '.join(number(end, 2) for end in share['ci'])}] of "
            f"{metric.upper()}"
            for metric, share in row["reasoning_share"].items()
        )
        + "."
        for row in rows
        if "reasoning_share" in row
    ]


def heading(report: dict[str, Any], population: str) -> str:
    """What a population is called: a shop's own lists may have several users, or none."""
    return (OWN_NAMES if report.get("own_lists") else NAMES)[population]


def render_markdown(report: dict[str, Any], figures: Sequence[str] = ()) -> str:
    """The whole report as Markdown; `figures` are file names beside it."""
    lines = [f"# Report: {report['recipe']}", ""]
    for key in ("data", "tie_order", "seed", "commit", "command"):
        lines.append(f"- {key.replace('_', ' ')}: `{report[key]}`")
    if found := report.get("verdict"):
        lines += ["", "## Verdict", "", *(f"- {line}" for line in found["lines"])]
    what = "lists" if report.get("own_lists") else "users"
    lines += [
        "",
        f"Every row of a table is measured on the same lists. Intervals are paired 95 % bootstrap "
        f"percentiles over {what}, the same resamples for every row. p-values are adjusted by Holm "
        "over all comparisons of a table and both metrics; a gain or a loss has one below .05 and "
        "an interval without 0. Two rows are level where the whole interval of their difference "
        f"lies within ±{number(MARGIN, 2)}, a margin set beforehand; elsewhere no difference is "
        "shown. `random` is the exact expectation. Shares of outputs have Wilson intervals.",
    ]
    for population in ("hit", "all"):
        rows = rows_of(report, population)
        if not rows:
            continue
        parts = [f"## {heading(report, population)}", metrics_table(rows)]
        parts += [differences_table(rows, other) for other in ("ar", "floor", "rival")]
        parts.append(gap_table(rows))
        if population == "hit":
            parts += [validity_table(rows), speed_table(rows), calibration_table(rows)]
            if papers := papers_table(rows):
                parts += ["### As the papers decode and read", papers]
        lines += [line for part in parts if part for line in ("", part)]
        if sentences := [*step_sentences(rows), *reasoning_sentences(rows)]:
            lines += ["", "### Step by step", "", *(f"- {text}" for text in sentences)]
    if names := parts_of(report):
        told = "; ".join(f"*{name.replace('_', ' ')}*: {PARTS[name]}" for name in names)
        lines += ["", "## Same day and other days", "", f"{told}.", "", parts_table(report)]
    over_all = {row["name"] for row in rows_of(report, "all")}
    left_out = [row["name"] for row in rows_of(report, "hit") if row["name"] not in over_all]
    if left_out:
        names = ", ".join(f"`{name}`" for name in left_out)
        lines += ["", f"No row over all users for {names}: not every hit user was decoded."]
    for name in figures:
        lines += ["", f"![{Path(name).stem.replace('_', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def render_table(report: dict[str, Any], population: str) -> Table:
    """The terminal's table of one population."""
    rows = rows_of(report, population)
    n = max((row["n"] for row in rows), default=0)
    columns = [(metric.upper(), at(f"metrics.{metric}")) for metric in SHORT]
    columns.append(("R@1 vs AR, 95 %", against("ar")))
    if any("vs_rival" in row for row in rows):
        columns.append(("vs rival", against("rival")))
    columns.append(("valid", at("raw_valid", 3)))
    columns += [("coherent", at("coherent", 3)), ("TPF", at("tpf", 2))]
    columns.append(("forwards", at("forwards", 1)))
    columns += [("ms", at("ms_per_list", 1)), ("speed-up", at("speedup", 2))]
    title = f"{report['recipe']} · {heading(report, population)} · n = {n:,}"
    table = Table(title=title, title_justify="left")
    table.add_column("row", no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right")
    for row in rows:
        size = "" if row["n"] == n else f" (n = {row['n']:,})"
        table.add_row(row["name"] + size, *(text(row) for _, text in columns))
    return table


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and sample deviation (n − 1); one value has no deviation."""
    sd = round(float(np.std(values, ddof=1)), 6) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 6), "sd": sd}
