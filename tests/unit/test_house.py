"""The house's rules, read off the source: who may import whom, how long things may be.

The checkers work on a `House` (module names and their texts), so that each is first seen to fail on
a house of two or three lines, and then asked about the package.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from diffgr2.errors import TRAINING

ROOT = Path(__file__).parents[2]
PACKAGE = "diffgr2"

House = Mapping[str, str]
"""Module name as imported -> source; a package's `__init__` goes by the package's name."""

GROUND = (
    "types errors choices section own learning config renames recipe streams blas artifacts "
    "progress stage pipeline strict_json"
)
FLOORS = (
    f"ground {GROUND}",
    "objectives model data items",
    "candidates decode",
    "prompts",
    "traces train evaluate rerank",
    "stages export",
    "bulk capacity",
    "serve integrations cli",
)
"""Rooms, the lowest first; a room imports its own floor and those below it."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}

STRANGERS = {
    "serve": "stages train",
    "bulk": "stages train",
    "rerank": "stages train",
    "integrations": "stages train",
    "evaluate": "stages",
    "decode": "train",
}
"""What a room may not know even where its floor would allow it: who ranks needs no trainer."""

FUNCTION_LINES = 60
FILE_LINES = {"src": 400, "tests": 450, "benchmarks": 400, "tools": 400}


@dataclass(frozen=True)
class Arrow:
    """One import statement: `source` needs `target`."""

    source: str
    target: str
    line: int
    lazy: bool  # inside a function: it waits until somebody calls

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}"


# ---------------------------------------------------------------------------- reading a house


def module_name(path: Path, base: Path) -> str:
    """How a file below `base` is imported."""
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def house_of(base: Path) -> dict[str, str]:
    return {
        module_name(path, base): path.read_text(encoding="utf-8")
        for path in sorted((base / PACKAGE).rglob("*.py"))
    }


def statements(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement, and whether a function holds it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, lazy
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from statements(node, lazy or inside)


def targets(node: ast.stmt, house: House) -> list[str]:
    """The modules of this house that an import statement names."""
    if isinstance(node, ast.Import):
        named = [alias.name for alias in node.names]
    else:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 0, "relative imports hide where they lead"
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        named = [name if name in house else str(node.module) for name in whole]
    return [name for name in dict.fromkeys(named) if name.split(".")[0] == PACKAGE]


def arrows(house: House) -> list[Arrow]:
    """All imports within the house: at the top, for type checkers and inside functions."""
    return [
        Arrow(module, target, node.lineno, lazy)
        for module, text in house.items()
        for node, lazy in statements(ast.parse(text))
        for target in targets(node, house)
        if target != module
    ]


def room_of(module: str) -> str:
    """The folder below the package, or the name of a module of the ground floor."""
    return module.split(".")[1] if "." in module else PACKAGE


# --------------------------------------------------------------------------------- the rules


def upwards(house: House) -> list[str]:
    """Imports of a higher floor, and rooms that stand on no floor."""
    wrong = [
        f"{module}: its room stands on no floor"
        for module in house
        if module != PACKAGE and room_of(module) not in FLOOR_OF
    ]
    for arrow in arrows(house):
        here, there = room_of(arrow.source), room_of(arrow.target)
        if PACKAGE not in (here, there):
            wrong += [str(arrow)] * (FLOOR_OF.get(here, 0) < FLOOR_OF.get(there, 0))
    return wrong


def strangers(house: House) -> list[str]:
    """Imports between rooms that must not know each other."""
    return [
        str(arrow)
        for arrow in arrows(house)
        if room_of(arrow.target) in STRANGERS.get(room_of(arrow.source), "").split()
    ]


NUMPY_ALONE = "decode prompts rerank bulk serve integrations"
"""Rooms that no package of training is imported in, not even late: who ranks has none."""


def trainers(house: House) -> list[str]:
    """Imports of the extra `train` where there must be none."""
    found = []
    for module, text in house.items():
        if room_of(module) not in NUMPY_ALONE.split():
            continue
        for node, _ in statements(ast.parse(text)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            packages = {name.partition(".")[0] for name in named} & {*TRAINING}
            found += [f"{module}:{node.lineno} imports {name}" for name in sorted(packages)]
    return found


def front_door(house: House) -> list[str]:
    """What the package's own `__init__` imports but may not: it offers `rerank`, on demand."""
    typing = {
        inner.lineno
        for node in ast.parse(house[PACKAGE]).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
        if isinstance(inner, ast.stmt)
    }
    return [
        str(arrow)
        for arrow in arrows(house)
        if arrow.source == PACKAGE
        and (room_of(arrow.target) != "rerank" or not (arrow.lazy or arrow.line in typing))
    ]


def circles(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of names that all reach each other (strongly connected, two or more)."""
    after: dict[str, set[str]] = {}
    for one, two in pairs:
        after.setdefault(one, set()).add(two)
    reach = {name: set(others) for name, others in after.items()}
    grown = True
    while grown:
        grown = False
        for found in reach.values():
            more = set().union(*(after.get(name, set()) for name in found)) - found
            found |= more
            grown |= bool(more)
    rings = {
        frozenset({name} | {o for o in found if name in reach.get(o, set())})
        for name, found in reach.items()
        if name in found
    }
    return sorted(sorted(ring) for ring in rings if len(ring) > 1)


def module_circles(house: House) -> list[list[str]]:
    """Modules that need each other as they are imported or type-checked.

    The front door is left out: what it offers is imported when it is asked for.
    """
    return circles(
        (a.source, a.target)
        for a in arrows(house)
        if not a.lazy and PACKAGE not in (a.source, a.target)
    )


def room_circles(house: House) -> list[list[str]]:
    """Rooms that know each other, even if only from inside functions."""
    rooms = ((room_of(a.source), room_of(a.target)) for a in arrows(house))
    return circles((one, two) for one, two in rooms if one != two and PACKAGE not in (one, two))


def shared_names(house: House) -> list[str]:
    """Names that two modules of the package carry."""
    packages = {name.rsplit(".", 1)[0] for name in house if "." in name}
    names = (name.rsplit(".", 1)[-1] for name in house if name not in packages)
    count = Counter(name for name in names if name != "__main__")
    return sorted(name for name, n in count.items() if n > 1)


def long_functions(house: House, limit: int = FUNCTION_LINES) -> list[str]:
    """Functions of more lines than the limit, from `def` to their last line."""
    return [
        f"{module}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for module, text in house.items()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > limit
    ]


def long_files(lines: Mapping[str, int], limit: int) -> list[str]:
    return [f"{name} has {n} lines" for name, n in lines.items() if n > limit]


def lines_below(folder: str) -> dict[str, int]:
    return {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


# -------------------------------------------------------------- each rule can be seen to fail


def test_every_kind_of_import_is_an_arrow() -> None:
    house = {
        "diffgr2": "",
        "diffgr2.a": "import diffgr2.b\nfrom diffgr2 import c\nimport os",
        "diffgr2.b": "if TYPE_CHECKING:\n    from diffgr2.c import Name",
        "diffgr2.c": "class C:\n    def f(self):\n        from diffgr2.a import x",
    }
    assert [str(a) for a in arrows(house)] == [
        "diffgr2.a:1 imports diffgr2.b",
        "diffgr2.a:2 imports diffgr2.c",
        "diffgr2.b:2 imports diffgr2.c",
        "diffgr2.c:3 imports diffgr2.a",
    ]
    assert [a.lazy for a in arrows(house)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("diffgr2.model.a", "from diffgr2.config import b", False),
        ("diffgr2.model.a", "from diffgr2.items.a import b", False),
        ("diffgr2.model.a", "from diffgr2.decode.a import b", True),
        ("diffgr2.config", "def f():\n    import diffgr2.data.a", True),
        ("diffgr2.prompts.a", "if TYPE_CHECKING:\n    from diffgr2.rerank.a import b", True),
        ("diffgr2.prompts.a", "from diffgr2.decode.a import b", False),
        ("diffgr2.attic.a", "", True),
        ("diffgr2", "from diffgr2.rerank.a import b", False),  # `front_door` judges this one
    ],
)
def test_an_import_upwards_is_found(module: str, text: str, wrong: bool) -> None:
    assert bool(upwards({"diffgr2": "", module: text})) == wrong


@pytest.mark.parametrize(
    ("room", "target", "wrong"),
    [
        *(("serve", "stages", True), ("rerank", "train", True), ("integrations", "stages", True)),
        *(("evaluate", "stages", True), ("decode", "train", True), ("cli", "stages", False)),
        *(("serve", "rerank", False), ("stages", "train", False)),
    ],
)
def test_rooms_that_must_not_know_each_other_are_found(room: str, target: str, wrong: bool) -> None:
    house = {f"diffgr2.{room}.a": f"def f():\n    from diffgr2.{target} import b"}
    assert bool(strangers(house)) == wrong


@pytest.mark.parametrize(
    ("module", "text", "wrong"),
    [
        ("decode.a", "import torch.nn as nn", True),
        ("rerank.a", "def f():\n    from scipy.sparse import csr_array", True),
        ("serve.a", "import numpy as np\nfrom torchless import a", False),
        ("model.a", "import torch", False),
    ],
)
def test_a_package_of_training_is_found_where_none_may_be(module, text, wrong: bool) -> None:
    assert bool(trainers({f"diffgr2.{module}": text})) == wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("def f():\n    from diffgr2.rerank import b", False),
        ("if TYPE_CHECKING:\n    from diffgr2.rerank.b import c", False),
        ("from diffgr2.rerank.b import c", True),
        ("def f():\n    from diffgr2.serve import b", True),
    ],
)
def test_what_the_front_door_may_not_do_is_found(text: str, wrong: bool) -> None:
    assert bool(front_door({"diffgr2": text})) == wrong


def test_circles_are_found_and_named() -> None:
    pairs = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "f"), ("f", "e"), ("d", "g")]
    assert circles(pairs) == [["a", "b", "c"], ["e", "f"]]
    assert circles([("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")]) == []
    house = {
        "diffgr2.data.a": "from diffgr2.items.b import x",
        "diffgr2.items.b": "def f():\n    import diffgr2.data.a",
    }
    assert module_circles(house) == []
    assert room_circles(house) == [["data", "items"]]
    house["diffgr2.items.b"] = "if TYPE_CHECKING:\n    import diffgr2.data.a"
    assert module_circles(house) == [["diffgr2.data.a", "diffgr2.items.b"]]


def test_a_name_used_twice_is_found() -> None:
    twice = ("diffgr2.data.a", "diffgr2.items.a", "diffgr2.items", "diffgr2.items.b")
    assert shared_names(dict.fromkeys(twice, "")) == ["a"]
    assert shared_names(dict.fromkeys(twice[1:], "")) == []


def test_length_is_counted() -> None:
    text = "x = 1\nclass C:\n    @cached\n    async def f(self):\n        a = 1\n        return a\n"
    assert long_functions({"m": text}, 3) == []
    assert long_functions({"m": text}, 2) == ["m:4 f has 3 lines"]
    assert long_files({"a.py": 3, "b.py": 4}, 3) == ["b.py has 4 lines"]


# ------------------------------------------------------------------------------- the package


@pytest.fixture(scope="module")
def house() -> dict[str, str]:
    found = house_of(ROOT / "src")
    assert len(found) > 100
    return found


@pytest.mark.parametrize(
    "rule",
    [
        *(upwards, strangers, trainers, front_door, module_circles, room_circles),
        *(shared_names, long_functions),
    ],
    ids=lambda rule: rule.__name__,
)
def test_the_package_keeps(rule, house: dict[str, str]) -> None:
    found = rule(house)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("folder", FILE_LINES)
def test_files_stay_short(folder: str) -> None:
    lines = lines_below(folder)
    assert lines
    found = long_files(lines, FILE_LINES[folder])
    assert not found, "\n".join(found)


def test_no_page_is_cited_that_the_project_does_not_hold() -> None:
    word = re.compile(r"\b" + "DES" + r"IGN\b")
    files = [path for name in ("src", "docs", "tests") for path in (ROOT / name).rglob("*")]
    texts = [path for path in files if path.suffix in {".py", ".md", ".yaml", ".js", ".html"}]
    assert texts
    cited = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if word.search(line)
    ]
    assert not cited, "\n".join(cited)


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import diffgr2", "torch"),
        ("from diffgr2 import Reranker", "torch"),
        ("import diffgr2.serve.app", "diffgr2.stages"),
        ("import diffgr2.serve.app", "diffgr2.train"),
        *(("import diffgr2.serve.app, diffgr2.cli", package) for package in TRAINING),
    ],
)
def test_a_fresh_interpreter_loads_no_more_than_it_needs(statement: str, unwanted: str) -> None:
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        check=True,
    )
    loaded = [name for name in done.stdout.split() if f"{name}.".startswith(f"{unwanted}.")]
    assert loaded == []
