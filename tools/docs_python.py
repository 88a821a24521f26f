"""The page of Python names that may be relied on, from their docstrings.

Contract: `public_names(root)` are the package's `__all__`, what README and docs import in their
examples, `BESIDE` and the errors; `python_page(root)` shows each with its signature, docstring,
fields and public methods, read off the source, so no optional library is imported. A name whose
docstring does not begin with a summary of one line, and a field that is told nowhere, is an
`UndocumentedError`.
Not here: whether examples run (tests do that).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from docs_comments import of_source
from docs_reference import UndocumentedError, plain, table

FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

BESIDE = (
    "diffgr2.rerank.task.RankTask",
    "diffgr2.rerank.decisions.Decision",
    "diffgr2.rerank.decisions.Piece",
    "diffgr2.types.Trajectory",
    "diffgr2.bulk.job.Summary",
    "diffgr2.integrations.cross_encoder.CrossEncoder",
    "diffgr2.integrations.langchain.DiffusionRerank",
    "diffgr2.integrations.llamaindex.DiffusionRerank",
    "diffgr2.integrations.haystack.DiffusionRanker",
)
"""What calls return, and the adapters for other libraries."""

Definition = ast.ClassDef | ast.FunctionDef
PROPERTIES = {"property", "cached_property"}


def pages(root: Path) -> list[Path]:
    """Whatever is written for readers."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").glob("*.md"))]


def imported(text: str) -> set[str]:
    """Names of the package that a page's examples import."""
    found = set()
    for block in FENCE.findall(text):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffgr2"):
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def promised(root: Path) -> list[str]:
    """What `from diffgr2 import` gives."""
    tree = ast.parse((root / "src" / "diffgr2" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [f"diffgr2.{name}" for name in sorted(names)]


def errors(root: Path) -> list[str]:
    """Every error that a caller may meet."""
    tree = ast.parse((root / "src" / "diffgr2" / "errors.py").read_text(encoding="utf-8"))
    return [f"diffgr2.errors.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)]


def public_names(root: Path) -> list[str]:
    """See the module's docstring."""
    shown = {name for page in pages(root) for name in imported(page.read_text(encoding="utf-8"))}
    return [*promised(root), *sorted(shown - {*promised(root), *BESIDE}), *BESIDE, *errors(root)]


def found(root: Path, name: str) -> tuple[str, Definition]:
    """The source of the module that defines a public name, and the definition."""
    module, _, last = name.rpartition(".")
    place = root / "src" / Path(*module.split("."))
    path = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Definition) and node.name == last:
            return source, node
        if isinstance(node, ast.ImportFrom) and last in {alias.name for alias in node.names}:
            return found(root, f"{node.module}.{last}")
    raise UndocumentedError("Python", [f"{name} (which is not there, and)"])


def signature(node: ast.FunctionDef) -> str:
    """How it is called, on as many lines as that takes."""
    given = [ast.unparse(argument) for argument in _arguments(node)]
    back = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(given)}){back}"
    if len(line) <= 88:
        return line
    return "\n".join([f"{node.name}(", *(f"    {one}," for one in given), f"){back}"])


def _arguments(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Each argument as Python spells it, without self and cls."""
    spec = node.args
    plain_ones = [*spec.posonlyargs, *spec.args]
    defaults = [None] * (len(plain_ones) - len(spec.defaults)) + spec.defaults
    for argument, default in zip(plain_ones, defaults, strict=True):
        if argument.arg not in ("self", "cls"):
            yield _with_default(argument, default)
    if spec.vararg:
        yield ast.Name(f"*{ast.unparse(spec.vararg)}")
    elif spec.kwonlyargs:
        yield ast.Name("*")
    for argument, default in zip(spec.kwonlyargs, spec.kw_defaults, strict=True):
        yield _with_default(argument, default)
    if spec.kwarg:
        yield ast.Name(f"**{ast.unparse(spec.kwarg)}")


def _with_default(argument: ast.arg, default: ast.expr | None) -> ast.AST:
    if default is None:
        return argument
    space = " " if argument.annotation else ""
    return ast.Name(f"{ast.unparse(argument)}{space}={space}{ast.unparse(default)}")


def members(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods and properties of a class's own."""
    for one in node.body:
        if isinstance(one, ast.FunctionDef) and not one.name.startswith("_"):
            yield one


def summary_missing(node: Definition) -> bool:
    """Whether the docstring does not begin with one whole line that says what this is."""
    first, *_ = (ast.get_docstring(node) or "").split("\n\n")
    return not first.strip() or "\n" in first or first.startswith("See ")


def prose(node: Definition) -> str:
    """The docstring as Markdown: what is indented there, or begins with >>>, is code."""
    parts = []
    for part in (ast.get_docstring(node) or "").split("\n\n"):
        if part.startswith((">>> ", "    ")):
            parts.append(f"```pycon\n{part}\n```")
        else:
            parts.append(plain(part))
    return "\n\n".join(parts)


def fields(source: str, node: ast.ClassDef) -> tuple[list[list[str]], list[str]]:
    """Rows for a class's fields, and those that neither comment nor docstring tells."""
    said, told = of_source(source).get(node.name, {}), ast.get_docstring(node) or ""
    rows, silent = [], []
    for one in node.body:
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            name = one.target.id
            if name.startswith("_"):
                continue
            if name not in said and not re.search(rf"`{name}[`\[]", told):
                silent.append(name)
            rows.append(
                [f"`{name}`", f"`{ast.unparse(one.annotation)}`", plain(said.get(name, ""))]
            )
    return rows, silent


def python_page(root: Path) -> str:
    """See the module's docstring."""
    first = ", ".join(f"`{name.rpartition('.')[2]}`" for name in promised(root))
    lines = [
        "# Python",
        "",
        f"{first}: what `from diffgr2 import` gives is promised. Then come what these return and "
        "raise, the adapters for other libraries, and what the examples of these pages import: "
        "names of the house's own, which may move.",
    ]
    silent = []
    for name in public_names(root):
        source, node = found(root, name)
        last, wordy = name.rpartition(".")[2], summary_missing(node)
        silent += [name] * wordy
        call = f"from {name.rpartition('.')[0]} import {last}"
        if isinstance(node, ast.FunctionDef):
            call += f"\n\n{signature(node)}"
        lines += ["", f"## {last}", "", f"```python\n{call}\n```", "", prose(node)]
        if isinstance(node, ast.FunctionDef):
            continue
        lines += [
            f"\nThe command line ends with {ast.unparse(one.value)} after it."
            for one in node.body
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "exit_code"
        ]
        rows, untold = fields(source, node)
        silent += [f"{name}.{one}" for one in untold]
        if rows:
            lines += table(("field", "type", "what it is"), rows)
        for one in members(node):
            silent += [f"{name}.{one.name}"] * summary_missing(one)
            decorators = {ast.unparse(decorator) for decorator in one.decorator_list}
            shown = one.name if decorators & PROPERTIES else signature(one)
            lines += ["", f"### {last}.{one.name}", "", f"```python\n{shown}\n```", "", prose(one)]
    if silent:
        raise UndocumentedError("Python", silent)
    return "\n".join(lines)
