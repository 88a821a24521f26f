"""What an import of a shop's own lists warns of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffgr2.cli.listing import told
from diffgr2.recipe import validate

BOUGHT = "user,item,timestamp\nu,a,100000010\nu,b,100000020\nv,a,100000040\n"


def check(
    folder: Path, head: str, rows: Sequence[str], bought: str | None = BOUGHT, **lists: Any
) -> list[str]:
    """What `data check` says of such files."""
    (folder / "l.csv").write_text("\n".join([head, *rows, ""]))
    values: dict[str, Any] = {"name": "x", "lists": {"file": str(folder / "l.csv"), **lists}}
    if bought is not None:
        (folder / "b.csv").write_text(bought)
        values["data"] = {"source": "table", "interactions": str(folder / "b.csv")}
    return [*told(validate(values, "x"))]


def warned(said: list[str]) -> list[str]:
    return [line.removeprefix("warning: ") for line in said if line.startswith("warning: ")]


# -------------------------------------------------------------------------------------- people

ROWS = ["r1,a,1,1", "r1,b,2,0", "r2,a,1,0", "r2,b,2,1"]


def test_lists_without_users_are_of_no_users(tmp_path: Path) -> None:
    said = check(tmp_path, "list,item,place,bought", ROWS)
    assert said[0].startswith("l.csv: 4 rows, 2 lists without a user, 4 candidates")
    assert not warned(said)
    nulls = [f"{row}," for row in ROWS]
    said = check(tmp_path, "list,item,place,bought,user", nulls)
    assert said[0].startswith("l.csv: 4 rows, 2 lists without a user, 4 candidates")
    assert not warned(said)


def test_users_that_the_interactions_do_not_know(tmp_path: Path) -> None:
    head = "list,item,place,bought,moment,user"
    users = {"r1": "100000030,u", "r2": "100000030,"}
    said = check(tmp_path, head, [f"{row},{users[row[:2]]}" for row in ROWS])
    assert said[0].startswith("l.csv: 4 rows, 2 lists of 1 users (1 without one), 4 candidates")
    assert not warned(said)
    said = check(tmp_path, head, [f"{row},100000030,stranger" for row in ROWS])
    assert warned(said) == [
        "2 of 2 lists are of users that the interactions do not know: do both files name users "
        "alike?"
    ]
