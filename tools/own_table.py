"""The table of a shop's own lists, cross-validated: `results/games.json` for a reader.

Contract: `lists_table(report, made)` is what stands between the marks of `lists:NAME`. Not here:
other tables, and the marks (`readme_table`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffgr2.evaluate.tables import against, at, interval_at, markdown_table, rows_of, signed

OWN_ROWS = ("floor", "evidence", "tutor", "evidence_gbdt", "lambdamart", "ar", "ar_direct")
DECIDING = ("ndcg@10", "r@1")


def lists_table(report: dict[str, Any], made: str) -> str:
    """A shop's own lists, each judged once, against their order and against LambdaMART."""
    hit = {row["name"]: row for row in rows_of(report, "hit")}
    columns: list[Any] = [("row", lambda row: f"`{row['name']}`")]
    for metric in DECIDING:
        head = metric.upper()
        columns += [(f"{head}, 95 %", sure_metric(metric))]
        columns += [(f"{head} over the floor", difference(metric, "floor", hit["floor"]))]
        columns += [(f"{head} over LambdaMART", difference(metric, "rival", hit["lambdamart"]))]
    n_all = rows_of(report, "all")[0]["n"]
    note = (
        f"{report['data']}, seed {report['seed']}: {hit['floor']['n']:,} lists with an outcome of "
        f"{n_all:,}, every one a test list once in {report['folds']} folds by list; paired 95 % "
        f"over lists. {made}"
    )
    shown = [hit[name] for name in OWN_ROWS if name in hit]
    return f"{markdown_table(shown, columns)}\n\n{note}"


def sure_metric(metric: str) -> Callable[[dict[str, Any]], str]:
    """A metric and its own interval."""
    value, ends = at(f"metrics.{metric}"), interval_at(f"ci.{metric}")
    return lambda row: f"{value(row)} {ends(row)}"


def difference(metric: str, other: str, base: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    """By how much a row is better than `base`, and how sure that is; a dash for itself."""

    def text(row: dict[str, Any]) -> str:
        ends = against(other, metric)(row)
        more = row["metrics"][metric] - base["metrics"][metric]
        return ends if row is base else f"{signed(more)} {ends}"

    return text
