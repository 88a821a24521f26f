"""The README says what results/ says."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffgr2.evaluate.readme_table import OPEN, rewrite

ROOT = Path(__file__).parents[2]


def tables() -> list[str]:
    return OPEN.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def test_both_recipes_have_a_place_in_the_readme() -> None:
    assert tables() == ["demo", "beauty"]


@pytest.mark.parametrize("name", ["demo", "beauty"])
def test_readme_table_equals_the_committed_results(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    start, end = f"<!-- results:{name} -->\n", f"<!-- /results:{name} -->"
    table = text.split(start)[1].split(end)[0]
    if not (ROOT / "results" / f"{name}.json").is_file():
        assert "|" not in table, f"results/{name}.json is missing, so there can be no table"
        return
    part = f"{start}{table}{end}\n"
    assert rewrite(part, ROOT / "results") == part, "run: make readme"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
