"""How far a table of costs is off at a size that it does not hold.

Fits the table's points, runs the same stages at `--at` (`diffgr2.capacity.measuring`) and prints
CPU seconds, memory and kept bytes as said and as measured. Not a test: nothing passes or fails.

    diffgr2 plan --measure --thorough --costs costs.json
    python benchmarks/costs.py costs.json --at 10M --items 300k --out results/costs.json
"""

from __future__ import annotations

import argparse
import json
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
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    table = costtable.read(given.table)
    size = (round(amount_of(given.at, "--at")), round(amount_of(given.items, "--items")))
    # Starts from what is known, so that what would take too long is left out.
    bench = measuring.Bench(given.most, print, {k: list(v) for k, v in table.points.items()})
    found = measuring.at_size(bench, *size)
    rows: list[dict[str, Any]] = []
    for part, point in found.items():
        for what in ("seconds", "peak", "kept"):
            if (part, what) not in table.laws:
                continue
            law, real = table.laws[part, what], getattr(point, what)
            row = {"part": part, "what": what, "said": law.at(point.sizes), "measured": real}
            row |= {"off": law.at(point.sizes) / real - 1, "beyond": law.beyond(point.sizes)}
            rows.append(row)
            print(f"{part:20} {what:8} {row['said']:12.4g} {real:12.4g} {row['off']:+.1%}")
    if given.out:
        told = {"command": machine.command("costs", "TABLE"), "commit": source_commit()}
        told |= {"machine": machine.about(), "table": table.said(), "rows": rows}
        given.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
