"""README and the pages with tables say what results/ says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from readme_table import OPEN, rewrite

ROOT = Path(__file__).parents[2]
PAGES = (
    *("README.md", "docs/results.md", "docs/own_lists.md", "docs/bases.md", "docs/evidence.md"),
    "docs/scaling.md",
)


def marks(page: str) -> list[tuple[str, str]]:
    return OPEN.findall((ROOT / page).read_text(encoding="utf-8"))


def shows_a_table(path: Path) -> bool:
    return "rows" in json.loads(path.read_text(encoding="utf-8"))


def test_recipes_and_peers_have_a_place_in_the_readme() -> None:
    tables = [("results", name) for name in ("demo", "beauty_ties", "peers")]
    assert marks("README.md") == [("short", "demo"), *tables]


def test_its_first_screen_answers_the_three_questions() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## First commands")[0]
    for question in (
        "better than the floor",
        "Better than its rivals? ",
        "How fast, how valid? ",
    ):
        assert question in text


def test_every_committed_result_with_a_table_is_shown() -> None:
    shown = {name for page in PAGES for _, name in marks(page)}
    assert {path.stem for path in (ROOT / "results").glob("*.json") if shows_a_table(path)} <= shown


@pytest.mark.parametrize(
    ("page", "kind", "name"), [(page, *mark) for page in PAGES for mark in marks(page)]
)
def test_a_table_equals_the_committed_results(page: str, kind: str, name: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    start, end = f"<!-- {kind}:{name} -->\n", f"<!-- /{kind}:{name} -->"
    table = text.split(start)[1].split(end)[0]
    part = f"{start}{table}{end}\n"
    assert rewrite(part, ROOT / "results") == part, "run: make readme"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
