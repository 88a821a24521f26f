"""Comments beside the fields of classes: what reference pages say of recipe keys and results.

Contract: `of_class(kind)` gives each annotated field of a class, inherited ones too, the comment
that stands on its lines and goes on in comment lines right below it, or the text below it; a field
without one is absent. `of_source` reads the same off a module that need not be imported. Not here:
what is made of them (`docs_reference`, `docs_python`).
"""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from functools import cache


@cache
def of_source(source: str) -> dict[str, dict[str, str]]:
    """Class -> field -> what is said of it, of a module's source."""
    said: dict[int, tuple[str, bool]] = {}  # line -> comment, and whether it has the line alone
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            said[token.start[0]] = token.string.lstrip("# "), alone
    found: dict[str, dict[str, str]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            found[node.name] = _fields(node, said)
    return found


def _fields(node: ast.ClassDef, said: dict[int, tuple[str, bool]]) -> dict[str, str]:
    found = {}
    for field, below in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        last = field.end_lineno or field.lineno
        lines = [said[at][0] for at in range(field.lineno, last + 1) if at in said]
        after = last + 1
        while lines and after in said and said[after][1]:
            lines.append(said[after][0])
            after += 1
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            lines.append(" ".join(str(below.value.value).split()))
        if lines:
            found[field.target.id] = " ".join(lines)
    return found


def of_class(kind: type) -> dict[str, str]:
    """See the module's docstring."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        module = inspect.getmodule(base)
        if module is not None and module.__name__.startswith("diffgr2"):
            found |= of_source(inspect.getsource(module)).get(base.__name__, {})
    return found
