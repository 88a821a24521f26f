"""The three questions that a run ends with: better than the floor, than its rivals, at what price.

Contract: `closing` is three lines from a verdict (`verdict.judge`) and what is known of its row's
outputs and times. Every answer is in words that its interval allows: `yes` where the whole 95 %
interval lies above 0, `no, worse` where it lies below, `level` where it lies within the margin that
was set beforehand, else `not shown` with both ends in words. Not here: the sentences that a bundle
carries (`verdict.told`), and measuring (`validity`, `stages.pace`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffgr2.evaluate.significance import MARGIN, equivalence
from diffgr2.evaluate.tables import number, signed, span
from diffgr2.evaluate.verdict import called, capital

ANSWERS = {"gain": "yes", "loss": "no, worse", "level": "level"}
NO_RIVAL = "no rival stands (diffgr2 rival RECIPE)"
NOT_TIMED = "not timed (diffgr2 pace RECIPE)"


def answered(entry: Mapping[str, Any]) -> str:
    """One difference: what its interval says, and by how much."""
    low, high = entry["ci"]
    said = equivalence(low, high)
    if said not in ANSWERS:
        ends = f"from {number(abs(low), 3)} worse to {number(abs(high), 3)} better"
        return f"not shown, {ends} ({signed(entry['diff'])})"
    within = f" within ±{number(MARGIN, 2)}" if said == "level" else ""
    return f"{ANSWERS[said]}{within}: {signed(entry['diff'])} {span(entry['ci'])}"


def against_floor(verdict: Mapping[str, Any]) -> str:
    """The first line: who, where, by what metric, and the second metric beside it."""
    floor = next((one for one in verdict["against"] if one["part"] == "floor"), None)
    name = called(verdict, "floor")
    if floor is None:
        return f"`{verdict['row']}` better than {name}? No list to judge by."
    metric, (beside, *_) = (
        verdict["metric"],
        [m for m in floor["metrics"] if m != verdict["metric"]],
    )
    entry, other = floor["metrics"][metric], floor["metrics"][beside]
    both = f"{number(entry['value'])} against {number(entry['other'])}"
    wanted = "an outcome" if verdict["own_lists"] else "their target"
    return (
        f"`{verdict['row']}` better than {name}? {capital(answered(entry))} {metric.upper()} "
        f"({both}); by {beside.upper()} {answered(other)}. "
        f"{floor['n']:,} {verdict['split']} lists with {wanted}, paired 95 %."
    )


def against_rivals(verdict: Mapping[str, Any]) -> str:
    """The second line: the strongest rival, and the scorer where that is another row."""
    found = {one["part"]: one for one in verdict["against"] if one["part"] != "floor"}
    said = [
        f"{called(verdict, part)}, `{one['row']}`: {answered(one['metrics'][verdict['metric']])}"
        for part, one in sorted(found.items())
    ]
    said += [] if "rival" in found else [NO_RIVAL]
    return f"Better than its rivals? {capital('; '.join(said))}."


def price(account: Mapping[str, Any]) -> str:
    """The third line: milliseconds, speed beside the AR teacher, validity, coherence."""
    said = [NOT_TIMED]
    if "ms_per_list" in account:
        ends = f"{account['low_ms']:.3g} to {account['high_ms']:.3g} over rounds"
        ends = "one round" if account["low_ms"] == account["high_ms"] else ends
        said = [f"{account['ms_per_list']:.3g} ms a list, one at a time ({ends})"]
        if beside := account.get("ar"):
            said.append(paced(account, beside))
    for key, name in (("raw_valid", "valid before any repair"), ("coherent", "coherent")):
        if key in account:
            ends = " to ".join(percent(end) for end in account["ci"][key])
            said.append(f"{percent(account[key])} % {name} ({ends})")
    return f"How fast, how valid? {capital('; '.join(said))}."


def paced(own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Faster or slower than `ar` only where their rounds, of which there are some, lie apart."""
    if own["low_ms"] == own["high_ms"]:
        return "one round does not tell it from `ar`"
    times = other["ms_per_list"] / own["ms_per_list"]
    if own["high_ms"] < other["low_ms"]:
        return f"{times:.2g} times as fast as `ar`"
    if own["low_ms"] > other["high_ms"]:
        return f"{1 / times:.2g} times as slow as `ar`"
    return "as fast as `ar`, as far as the rounds tell"


def closing(verdict: Mapping[str, Any], account: Mapping[str, Any]) -> list[str]:
    """The three lines."""
    return [against_floor(verdict), against_rivals(verdict), price(account)]


def percent(share: float) -> str:
    """A share in percent; 100 and 0 are said of all and none alone."""
    value = f"{100 * share:.1f}"
    if share < 1 and value == "100.0":
        return "99.9"
    if share > 0 and value == "0.0":
        return "0.1"
    return value.removesuffix(".0")
