"""Links of README and docs lead somewhere, and their examples can be read by what they are for."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import tomllib
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import typer
import yaml
from docs_flow import drawn
from docs_python import pages
from docs_site import LINK

from diffgr2.cli import app, spread
from diffgr2.errors import ConfigError
from support.fences import commands, fences, is_shell, typed

ROOT = Path(__file__).parents[2]
PAGES = pages(ROOT)
READ = {
    "python": ast.parse,
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
    "mermaid": drawn,
}
EXAMPLES = [(page, *fence) for page in PAGES for fence in fences(page)]
INLINE = re.compile(r"`(diffgr2 [^`]+)`")


def prose(page: Path) -> str:
    """The page without its examples."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What headings can be linked by, as GitHub spells it."""
    found: Counter[str] = Counter()
    slugs = set()
    for title in re.findall(r"^#+ +(.+?) *$", prose(page), re.MULTILINE):
        words = LINK.sub(r"\2", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        slugs.add(f"{slug}-{found[slug]}" if found[slug] else slug)
        found[slug] += 1
    return slugs


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for _, _, target in LINK.findall(prose(page)):
        path, anchor = urldefrag(target)
        if re.match(r"[a-z]+:", target):
            continue
        place = (page.parent / unquote(path)).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            found.append(target)
    return found


def problem(words: list[str]) -> str:
    """What the command line would say of this one before it does anything; "" if nothing."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]  # type: ignore[attr-defined]
    if command.name == app.info.name and words and not words[0].startswith("-"):
        return f"{words[0]}: no such verb"
    try:
        command.make_context("diffgr2", spread(words))
    except ConfigError as error:
        return "" if "cannot be read" in str(error) else str(error)  # a settings file of the reader
    except (Exception, typer.Exit) as error:
        return "" if isinstance(error, typer.Exit) else f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c\n\n[a](#a-b-c) [b](page.md#a-b-c) [c](#a-b) [d](gone.md) [e](http://x)\n"
    )
    assert broken(page) == ["#a-b", "gone.md"]


def test_there_are_examples_of_every_kind() -> None:
    kinds = Counter("shell" if is_shell(kind, text) else kind for _, kind, text in EXAMPLES)
    assert kinds["shell"] > 15
    assert min(kinds[kind] for kind in READ) > 0
    assert {*kinds} <= {"shell", "text", "", *READ}


@pytest.mark.parametrize(("page", "kind", "text"), EXAMPLES, ids=lambda v: getattr(v, "name", ""))
def test_an_example_can_be_read(page: Path, kind: str, text: str) -> None:
    if is_shell(kind, text):
        done = subprocess.run(
            ["bash", "-n"], input=typed(text), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for words in commands(text):
            assert problem(words) == "", f"{page.name}: diffgr2 {' '.join(words)}"
    elif kind in READ:
        READ[kind](text)


def test_verbs_and_options_named_in_a_text_are_there() -> None:
    """In a sentence a verb may stand without what it needs, and with words for values."""
    seen = 0
    for page in PAGES:
        for code in INLINE.findall(prose(page)):
            for words in commands(" ".join(code.split())):
                said, seen = problem(words), seen + 1
                meant = said.startswith(("MissingParameter", "BadParameter"))
                assert meant or said == "", f"{page.name}: diffgr2 {' '.join(words)}: {said}"
    assert seen > 50


@pytest.mark.parametrize("text", ["serve --modle x", "rnu demo", "rerank -c", "run demo extra"])
def test_a_command_that_is_none_is_noticed(text: str) -> None:
    assert problem(text.split()) != ""
    (found,) = commands(f"FOO=1 diffgr2 {text} | head  # a comment\n")
    assert found == text.split()


def test_commands_are_found_behind_others_and_over_lines() -> None:
    text = "cd x && diffgr2 run demo \\\n  --set seed=1; .venv/bin/diffgr2 doctor  # diffgr2 no\n"
    assert [*commands(text)] == [["run", "demo", "--set", "seed=1"], ["doctor"]]
