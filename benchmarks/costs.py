"""How far a table of costs is off at a size that it does not hold.

Fits the table's points, runs the same stages at `--at` (`diffgr2.capacity.measuring`) and prints
CPU seconds, memory and kept bytes as said and as measured. Not a test: nothing passes or fails.

    diffgr2 plan --measure --thorough --costs costs.json
    python benchmarks/costs.py costs.json --at 10M --items 300k --out results/costs.json

`--without epoch:sasrec candidates:itemknn …` leaves parts out; `--prefixes 1 --candidates 10` makes
fewer and shorter lists than the table's recipe, which counts with lists as such; `--again FILE`
measures nothing and holds the table to what FILE, an earlier `--out`, measured.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import machine

from diffgr2.capacity import costtable, measuring
from diffgr2.capacity.machines import amount_of
from diffgr2.pipeline import source_commit


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", type=Path)
    parser.add_argument("--at", default="10M", help="interactions")
    parser.add_argument("--items", default="300k")
    parser.add_argument("--most", type=float, default=7_200.0, help="CPU seconds of a stage")
    parser.add_argument("--prefixes", type=int, default=measuring.LISTS["prefixes"])
    parser.add_argument("--candidates", type=int, default=measuring.LISTS["k_max"])
    parser.add_argument("--without", nargs="*", default=[], metavar="PART")
    parser.add_argument("--again", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if unknown := {*given.without} - {*costtable.GROWS}:
        parser.error(f"--without {min(unknown)}: one of {', '.join(costtable.GROWS)}")
    table = costtable.read(given.table)
    told: dict[str, Any]
    if given.again:
        told = json.loads(given.again.read_text())
    else:
        found = measured(table, given)
        told = {"command": machine.command("costs", "TABLE"), "commit": source_commit()}
        told |= {"machine": machine.about(), "points": {p: asdict(one) for p, one in found.items()}}
    points = {part: costtable.Point(**one) for part, one in told["points"].items()}
    told |= {"table": table.said(), "rows": rows_of(table, points)}
    for row in told["rows"]:
        off = f"{row['said']:12.4g} {row['measured']:12.4g} {row['off']:+.1%}"
        print(f"{row['part']:22} {row['what']:8} {off}")
    if given.out:
        given.out.write_text(json.dumps(told, indent=1) + "\n")


def measured(table: costtable.Table, given: argparse.Namespace) -> dict[str, costtable.Point]:
    """What the size takes; starts from what is known, so that what takes too long is left out."""
    size = (round(amount_of(given.at, "--at")), round(amount_of(given.items, "--items")))
    bench = measuring.Bench(
        given.most,
        lambda line: print(line, flush=True),
        {part: list(points) for part, points in table.points.items()},
        [measuring.LISTS | {"prefixes": given.prefixes, "k_max": given.candidates}],
        given.without,
    )
    return measuring.at_size(bench, *size)


def rows_of(table: costtable.Table, points: Mapping[str, costtable.Point]) -> list[dict[str, Any]]:
    """Said and measured, part by part."""
    rows: list[dict[str, Any]] = []
    for part, point in points.items():
        for what in ("seconds", "peak", "kept"):
            if (part, what) in table.laws:
                law, real = table.laws[part, what], getattr(point, what)
                said, beyond = law.at(point.sizes), law.beyond(point.sizes)
                row = {"part": part, "what": what, "said": said, "measured": real}
                rows.append(row | {"off": said / real - 1, "beyond": beyond})
    return rows


if __name__ == "__main__":
    main()
