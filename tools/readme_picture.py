"""Draws the README's picture from committed results: quality against milliseconds.

Contract: values and intervals are those of the first file (a report, or a summary of several
seeds), milliseconds those of the second (a report whose run was timed), by the rows' names; nothing
is measured, and the same files give the same picture.
Run: `python tools/readme_picture.py results/demo.json results/demo.json docs/quality.png`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_json
from diffgr2.errors import ArtifactError, Diffgr2Error
from diffgr2.evaluate.pace_plot import TIMES, quality_speed
from diffgr2.evaluate.plots import captioned, save_figure
from diffgr2.evaluate.tables import rows_of


def picture_rows(quality: dict[str, Any], timed: dict[str, Any]) -> list[dict[str, Any]]:
    """Hit users' rows of the first, each with its time from the second."""
    times = {row["name"]: row for row in rows_of(timed, "hit")}
    result = []
    for row in rows_of(quality, "hit"):
        values = {m: v["mean"] if isinstance(v, dict) else v for m, v in row["metrics"].items()}
        own = times.get(row["name"], {})
        spent = {key: own[key] for key in TIMES if key in own}
        result.append({"name": row["name"], "n": row["n"], "metrics": values, "ci": row["ci"]})
        result[-1] |= spent
    if not any("ms_per_list" in row for row in result):
        raise ArtifactError("no row of both files was timed (stage pace, then diffgr2 report)")
    return result


def main(arguments: list[str] | None = None) -> int:
    """Draw, or say in one line why not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("quality", type=Path, help="report.json, or what `diffgr2 seeds` saved")
    parser.add_argument("timed", type=Path, help="report.json of a run with the stage pace")
    parser.add_argument("out", type=Path, help="PNG")
    given = parser.parse_args(arguments)
    try:
        found = [read_json(path) for path in (given.quality, given.timed)]
        rows = picture_rows(*found)
    except Diffgr2Error as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except (KeyError, TypeError, AttributeError) as error:
        print(f"{given.quality}, {given.timed}: not reports ({error!r})", file=sys.stderr)
        return ArtifactError.exit_code
    save_figure(captioned(quality_speed(rows), found[1].get("command", "")), given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
