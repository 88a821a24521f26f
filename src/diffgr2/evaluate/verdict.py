"""A run's verdict: better, worse or no difference shown against the floor, the rival, the scorer.

Contract: `judge` holds one row against three others on exactly the lists that both decoded and that
hold what was chosen. One metric decides, named beforehand (`DECIDES`); `worse` means that the
whole paired 95 % interval of its difference lies below 0, `better` above. A second metric stands
beside it and decides nothing. `told` says it in three lines whose words and numbers are those of
the verdict, in the same resamples as every table of the report. Not here: which row a run is judged
by, which rival is the strongest (`stages.judge`), what a server makes of it (`rerank.bundle`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffgr2.choices import FAILING
from diffgr2.evaluate.metrics import METRICS
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.population import measure, populations, with_baselines
from diffgr2.evaluate.results import rounded
from diffgr2.evaluate.significance import verdict as stance_of
from diffgr2.evaluate.tables import number, signed, span
from diffgr2.types import CandidateLists

DECIDES, BESIDE = "ndcg@10", "r@1"
STANCES = {"gain": "better", "loss": "worse", "none": "no difference shown"}
PARTS = ("floor", "rival", "scorer")
"""What a row is held against; a run that is worse than one of `choices.FAILING` has failed."""

NO_RIVAL = "Not held against a rival: the stage `rival` does not stand (diffgr2 rival RECIPE)."


def judge(
    lists: CandidateLists,
    systems: Sequence[SystemOutputs],
    row: str,
    others: Mapping[str, str | None],
    *,
    taught: bool,
    strongest: bool = True,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """The verdict on a row against the rows named for each of PARTS; None where no list counts.

    `taught`: whether the scorer is what the row learned from; `strongest`: whether the rival named
    is the strongest of all, or the strongest but for the scorer, which is held against by itself.
    """
    named = {part: others.get(part) or "" for part in PARTS} | {"floor": "floor"}
    wanted = {row, *named.values()}
    kept = [outputs for outputs in systems if outputs.name in wanted]
    rows = [measure(lists, outputs) for outputs in with_baselines(lists, kept, None)]
    hit = next(populations(lists, rows, resamples, seed))
    against = []
    for part, other in named.items():
        if not hit.holds(other, row):
            continue
        found = hit.differences(other, row)
        values = {name: hit.values(name).mean(0) for name in (row, other)}
        metrics = {
            metric: {
                **found[metric],
                "verdict": stance_of(*found[metric]["ci"]),
                "value": float(values[row][METRICS.index(metric)]),
                "other": float(values[other][METRICS.index(metric)]),
            }
            for metric in (DECIDES, BESIDE)
        }
        stance = STANCES[metrics[DECIDES]["verdict"]]
        against.append(
            {"part": part, "row": other, "n": hit.n, "stance": stance, "metrics": metrics}
        )
    if not against:
        return None
    failed = [one["part"] for one in against if one["stance"] == "worse"]
    verdict = {
        "row": row,
        "split": lists.split,
        "metric": DECIDES,
        "n": against[0]["n"],
        "n_lists": len(lists),
        "taught": taught,
        "strongest": strongest,
        "own_lists": lists.gains is not None,
        "against": against,
        "worse_than": [part for part in failed if part in FAILING],
    }
    verdict = rounded(verdict)
    return {**verdict, "lines": told(verdict)}


def told(verdict: Mapping[str, Any]) -> list[str]:
    """A line for each comparison, the row's name in the first."""
    by_part = {one["part"]: sentence(verdict, one) for one in verdict["against"]}
    said = [by_part.get(part, NO_RIVAL) for part in PARTS if part in by_part or part == "rival"]
    said[0] = f"`{verdict['row']}`: {said[0]}"
    return [capital(line) for line in said]


def capital(text: str) -> str:
    """With a capital where a sentence begins."""
    return text[:1].upper() + text[1:]


def called(verdict: Mapping[str, Any], part: str) -> str:
    """Who a part of the verdict is, in every sentence about it."""
    if part == "floor":
        order = "the shop's own order" if verdict["own_lists"] else "the order as it came"
        return f"the floor ({order})"
    if part == "scorer":
        return "the scorer that taught it" if verdict["taught"] else "the scorer of its evidence"
    if not verdict["strongest"]:
        return "the strongest rival besides its scorer"
    return "the strongest rival without a language model"


def sentence(verdict: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    """Stance, by how much, how sure, on what."""
    part, stance, who = one["part"], one["stance"], called(verdict, one["part"])
    if part != "floor":
        who += f", `{one['row']}`"
    word = f"{stance} from" if stance == STANCES["none"] else f"{stance} than"
    parts = []
    for metric, entry in one["metrics"].items():
        both = f"{number(entry['value'])} against {number(entry['other'])}"
        parts.append(
            f"{metric.upper()} {both}, {signed(entry['diff'])} {span(entry['ci'])}"
            if metric == verdict["metric"]
            else f"{metric.upper()} {signed(entry['diff'])} {span(entry['ci'])}"
        )
    wanted = "have an outcome" if verdict["own_lists"] else "hold their target"
    lists = f"{one['n']:,} {verdict['split']} lists that {wanted}"
    return f"{word} {who}: {'; '.join(parts)} ({lists}; paired 95 %)."
