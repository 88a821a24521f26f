"""What an import of a shop's own lists warns of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

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


def test_a_history_of_nobody_beside_interactions(tmp_path: Path) -> None:
    head, rows = "list,item,place,bought,moment,history", [f"{row},100000030,a|b" for row in ROWS]
    (line,) = warned(check(tmp_path, head, rows))
    assert line.startswith("2 lists bring a history but no user: ")
    assert "lists.point_in_time: true" in line
    assert not warned(check(tmp_path, head, rows, point_in_time=True))
    assert not warned(check(tmp_path, head, rows, None)), "no interactions, nothing later"
    assert not warned(check(tmp_path, f"{head},user", [f"{row},u" for row in rows]))


def test_places_that_count_from_0(tmp_path: Path) -> None:
    head = "list,item,place,bought,shown"
    rows = [f"r{n // 4},i{n},{n % 4 + 1},{int(n % 4 == 0)},{{}}" for n in range(80)]
    said = check(tmp_path, head, [row.format(n % 4) for n, row in enumerate(rows)], None)
    assert warned(said) == [
        "l.csv: shown seems to count from 0, which is read as not shown: the first place is 1 "
        "(columns.shown)"
    ]
    for shown in ([1, 2, 3, 4], [1, 2, 0, 0], [1, 2, "", ""]):
        cells = [row.format(shown[n % 4]) for n, row in enumerate(rows)]
        assert not warned(check(tmp_path, head, cells, None))


# ------------------------------------------------------------------------------------ features


def shop(column: Sequence[Any]) -> list[str]:
    """Twenty lists of four, the first of each with an outcome, and this column beside."""
    cells = list(column)
    return [f"r{n // 4},i{n},{n % 4 + 1},{int(n % 4 == 0)},{cells[n]}" for n in range(80)]


LATER = {
    "an amount": [n + 1 if n % 4 == 0 else 0 for n in range(80)],
    "missing elsewhere": [n + 1 if n % 4 == 0 else "" for n in range(80)],
    "a flag": ["yes" if n % 4 == 0 else "no" for n in range(80)],
    "a word": ["sold" if n % 4 == 0 else "" for n in range(80)],
    "almost": [9 if n % 4 == 0 or n == 5 else 0 for n in range(80)],
}


@pytest.mark.parametrize("column", LATER.values(), ids=LATER)
def test_a_feature_that_only_outcomes_have(tmp_path: Path, column: list[Any]) -> None:
    said = check(tmp_path, "list,item,place,bought,spent", shop(column), None, features=["spent"])
    (line,) = warned(said)
    assert line.startswith("feature spent: 20 of the 2")
    assert "is it known only afterwards?" in line


USUAL = {
    "a price": [n % 7 + 1 for n in range(80)],
    "a flag": ["yes" if n % 3 == 0 else "no" for n in range(80)],
    "a good sign": ["yes" if (n % 4 == 0 and n > 8) or n in (5, 6, 7) else "no" for n in range(80)],
    "very few": [1 if n in (0, 4, 8) else 0 for n in range(80)],
    "words": ["old" if n % 5 else "new" for n in range(80)],
}


@pytest.mark.parametrize("column", USUAL.values(), ids=USUAL)
def test_a_feature_that_others_have_too_is_none_of_those(tmp_path: Path, column: list) -> None:
    said = check(tmp_path, "list,item,place,bought,x", shop(column), None, features=["x"])
    assert not warned(said)


@pytest.mark.parametrize(
    "form", ['"{},95"', "${}.50", "{}.50 EUR", '"{},00 €"', "EUR {}.20", '"1.{},00"', "{}%"]
)
def test_numbers_in_another_spelling_are_named(tmp_path: Path, form: str) -> None:
    rows = shop([form.format(n % 30) for n in range(80)])
    said = check(tmp_path, "list,item,place,bought,price", rows, None, features=["price"])
    (line,) = warned(said)
    assert line.startswith("feature price: 30 words such as ")
    assert "look like numbers, but are read as a category" in line
    kind = {"price": {"kind": "category"}}
    assert not warned(check(tmp_path, "list,item,place,bought,price", rows, None, features=kind))


@pytest.mark.parametrize("form", ["size {}", "A{}", "{}-pack", "2026-01-{}", "{} x 2"])
def test_words_with_digits_are_words(tmp_path: Path, form: str) -> None:
    rows = shop([form.format(n % 30) for n in range(80)])
    assert not warned(check(tmp_path, "list,item,place,bought,x", rows, None, features=["x"]))
