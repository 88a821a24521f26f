"""What a run was worth, in the three lines that it ended with, for a page's first screen.

Contract: `short(report)` is a list of them in Markdown: better than the floor, than its rivals, how
fast and how valid, out of the report's verdict and the judged row. Not here: how they are worded
(`evaluate.closing`), the tables (`readme_table`).
"""

from __future__ import annotations

from typing import Any

from diffgr2.evaluate.closing import closing
from diffgr2.evaluate.tables import rows_of


def short(report: dict[str, Any]) -> str:
    """See the module's docstring; how it was made stands under the table of the same report."""
    rows = {row["name"]: row for row in rows_of(report, "hit")}
    own, beside = rows[report["verdict"]["row"]], rows.get("ar", {})
    account = own | ({"ar": beside} if "ms_per_list" in beside and beside is not own else {})
    return "\n".join(f"- {line}" for line in closing(report["verdict"], account))
