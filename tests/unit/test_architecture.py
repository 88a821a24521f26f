"""The page for newcomers says what is there: files, their lengths, every room, every question."""

import re
from pathlib import Path

import pytest
from test_house import GROUND, arrows, house_of, room_of

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "diffgr2"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SIZED = re.findall(r"`([\w/]+\.py)`\s+\((\d+)\s+lines\)", PAGE)
NAMED = re.findall(r"`((?:[\w<>]+/)*[\w<>]+\.(?:py|yaml))", PAGE)


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("name", "said"), SIZED)
def test_files_to_read_are_as_long_as_said(name, said):
    lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
    assert abs(lines - int(said)) <= max(5, lines // 10), f"{name} has {lines} lines"


def test_the_reading_order_is_numbered_and_every_entry_names_sized_files():
    entries = re.split(r"\n(?=\d+\. )", section("Reading order"))[1:]
    assert [int(entry.split(".")[0]) for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) >= 8
    assert all(re.search(r"\.py`\s+\(\d+\s+lines\)", entry) for entry in entries)


def test_every_named_file_is_there():
    assert len(NAMED) > len(SIZED) > 10
    for name in NAMED:
        if "<" not in name:
            assert any((base / name).is_file() for base in (PACKAGE, ROOT)), name


def test_every_room_is_said():
    rooms = [path.parent.name for path in PACKAGE.glob("*/__init__.py")]
    assert len(rooms) > 10
    for room in rooms:
        assert f"\n| `{room}` | " in section("The rooms"), room


@pytest.mark.parametrize("thing", ["evidence field", "decoder", "importer", "stage"])
def test_one_paragraph_of_at_most_three_files_says_where_to_add_it(thing):
    (answer,) = [p for p in PAGE.split("\n\n") if re.match(rf"\*\*An? {thing}\?\*\*", p)]
    files = set(re.findall(r"`((?:[\w<>]+/)*[\w<>]+\.(?:py|yaml))`", answer))
    assert 2 <= len(files) <= 3


def test_every_arrow_of_the_picture_is_an_import():
    ground = {*GROUND.split()}
    found = set()
    for arrow in arrows(house_of(ROOT / "src")):
        here, there = (room_of(name) for name in (arrow.source, arrow.target))
        found |= {(here, there), (here, "ground" if there in ground else there)}
    drawn = set()
    for sides in re.findall(r"^  ([\w &]+) --> ([\w &]+)$", section("The rooms"), re.MULTILINE):
        sources, targets = (side.split(" & ") for side in sides)
        drawn |= {(source, target) for source in sources for target in targets}
    assert len(drawn) > 20
    assert not drawn - found
