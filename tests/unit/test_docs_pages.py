"""Reference pages hold every public name, and a name of which nothing is said is refused."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from xml.etree import ElementTree

import docs_python
import pytest
import typer
from docs_comments import of_class, of_source
from docs_flow import drawn, layers, read
from docs_python import found, public_names, python_page, summary_missing
from docs_reference import (
    UndocumentedError,
    cli_page,
    commands,
    description,
    http_page,
    recipe_page,
)
from docs_site import NAV, faults, page_of

import diffgr2
from diffgr2.cli import app
from diffgr2.config import DataConfig
from diffgr2.recipe import validate

ROOT = Path(__file__).parents[2]


def test_the_recipe_page_holds_every_key_with_its_default() -> None:
    page = recipe_page()
    parts = dict(re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for section, values in validate({"name": "toy"}, "toy").model_dump(mode="json").items():
        if isinstance(values, dict):
            for key, value in values.items():
                shown = f"\n| `{key}` | " in parts[section]
                assert shown or isinstance(value, dict), f"{section}.{key}"
    assert "| `k_core` | whole number from 0 | `5` |" in parts["data"]
    assert "| `temperature` | number from 0 to 2 | `0.8` |" in parts["traces.llm"]
    assert "## `lists.features.<name>`" in page


def test_a_key_without_a_comment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said = of_class(DataConfig)
    monkeypatch.setattr(
        "docs_reference.of_class", lambda kind: {} if kind is DataConfig else of_class(kind)
    )
    assert "k_core" in said
    with pytest.raises(UndocumentedError, match=r"recipe: data\.k_core is not documented"):
        recipe_page()


def test_comments_are_read_beside_over_and_below_a_field() -> None:
    source = (
        "class A:\n"
        "    one: int = 1  # beside\n"
        "    # of two\n"
        "    two: str = (\n"
        "        'x'  # inside\n"
        "    )\n"
        "    three: int = 3  # begins\n"
        "    # and goes on\n"
        "    four: int = 4\n"
        '    """Below."""\n'
        "    five: int = 5\n"
    )
    assert of_source(source)["A"] == {
        "one": "beside of two",
        "two": "inside",
        "three": "begins and goes on",
        "four": "Below.",
    }


def test_the_command_lines_page_holds_every_verb_and_option() -> None:
    page = cli_page()
    verbs = [*commands(typer.main.get_command(app))]
    assert len(verbs) > 30
    for name, command in verbs:
        assert f"\n## {name}\n" in page
        part = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for option in command.params:
            if option.param_type_name == "option" and not option.hidden:
                assert option.opts[-1] in part, f"{name} {option.name}"


def test_the_http_page_holds_every_route_and_field() -> None:
    page, spec = http_page(), description()
    assert "/v1/feedback" in spec["paths"]
    for path in spec["paths"]:
        assert f" {path}\n" in page or f"`{path}`" in page, path
    for name, schema in spec["components"]["schemas"].items():
        for field in schema["properties"]:
            assert f"| `{field}` |" in page, f"{name}.{field}"


def test_the_python_page_holds_what_the_package_and_its_examples_name() -> None:
    page, names = python_page(ROOT), public_names(ROOT)
    assert {f"diffgr2.{name}" for name in diffgr2.__all__} <= {*names}
    assert "diffgr2.bulk.rank_all.rank_all" in names
    assert len(names) == len({*names})
    for name in names:
        assert f"\n## {name.rpartition('.')[2]}\n" in page
    assert "### Reranker.rank_many" in page


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("def f(): pass", True),
        ('def f():\n    """Says it."""', False),
        ('def f():\n    """Says it.\n\n    And more.\n    """', False),
        ('def f():\n    """Says it over\n    two lines."""', True),
        ('def f():\n    """See the module."""', True),
    ],
)
def test_a_summary_is_one_line_that_says_it(text: str, missing: bool) -> None:
    (node,) = ast.parse(text).body
    assert summary_missing(node) == missing  # type: ignore[arg-type]


def test_a_public_name_without_docstring_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs_python, "BESIDE", ("diffgr2.rerank.task.Part",))
    source, node = found(ROOT, "diffgr2.rerank.task.Part")
    node.body = [one for one in node.body if not isinstance(one, ast.Expr)]
    monkeypatch.setattr(docs_python, "public_names", lambda root: ["diffgr2.rerank.task.Part"])
    monkeypatch.setattr(docs_python, "found", lambda root, name: (source, node))
    with pytest.raises(UndocumentedError, match=r"rerank\.task\.Part is not documented"):
        python_page(ROOT)


def test_every_page_of_the_sidebar_is_there_or_made() -> None:
    there = {page_of(path) for path in docs_python.pages(ROOT)}
    named = " ".join(NAV.values()).split()
    assert {*named} - there == {"recipe", "cli", "http", "python"}
    assert len(named) == len({*named})


@pytest.mark.parametrize("page", ["README.md", "docs/architecture.md", "docs/how_it_works.md"])
def test_a_flowchart_is_drawn_whole(page: str) -> None:
    text = re.findall(r"```mermaid\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)[0]
    nodes, edges = read(text)
    picture = ElementTree.fromstring(drawn(text))
    boxes = [one for one in picture.iter() if one.get("class") == "box"]
    lines = [one for one in picture.iter() if one.get("class") == "edge"]
    assert (len(boxes), len(lines)) == (len(nodes), len(edges))
    depth = {name: at for at, row in enumerate(layers(nodes, edges)) for name in row}
    assert all(depth[source] < depth[target] for source, target, _ in edges)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("flowchart TB\n a --> b --> a", "circle"),
        ("sequenceDiagram\n a->>b: hi", "only flowcharts"),
    ],
)
def test_what_cannot_be_drawn_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        drawn(text)


def test_what_is_wrong_with_a_built_site_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">x</a><a href="b.html#gone">x</a><a href="c.html">x</a>'
        '<a href="https://example.org">x</a><script src="https://example.org/x.js"></script>'
        '<link href="//example.org/x.css"><img src="p.png">'
    )
    (tmp_path / "b.html").write_text('<p id="here">')
    (tmp_path / "x.css").write_text("@import url('https://example.org/font.css');")
    assert sorted(fault.split(": ")[1].split(" ")[0] for fault in faults(tmp_path)) == sorted(
        ["b.html#gone", "c.html", "loads", "loads", "loads", "p.png"]
    )
