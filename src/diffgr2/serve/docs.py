"""The page at `/docs`: every operation of the API, with requests that can be edited and sent.

Contract: the page is a shell that needs no key and holds no data; `/docs/operations`, which it asks
for, is written from `app.openapi()`, so it says what `/openapi.json` says. That shows items and a
shopper of the catalogue and therefore lies behind the key, for which the shell has a field. Its
examples are answered by the served model; it loads nothing from outside. Not here: the description
itself (`openapi`), the files it is made of (`page`).
"""

import json
import shlex
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from diffgr2.serve.page import HEADERS, STATIC

SHELL = STATIC / "docs.html"
ORIGIN = "http://127.0.0.1:8000"  # the page's script puts its own in its place
PARAMETERS = {"name": "default"}  # values of parameters in paths that always work
KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}


def kind_of(schema: dict[str, Any], parts: dict[str, Any]) -> str:
    """A schema in words; null stands for absent everywhere and is not named."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return kind_of(parts[name], parts) if name in parts else name
    if "anyOf" in schema:
        kinds = [kind_of(one, parts) for one in schema["anyOf"] if one.get("type") != "null"]
        return " | ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        return " | ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind_of(schema.get('items', {}), parts)}"
    if "properties" in schema:
        return f"{{{', '.join(schema['properties'])}}}"
    kind = str(schema.get("type", "anything"))
    return KINDS.get(kind, kind)


def rows(cells: list[tuple[str, str]], heads: tuple[str, str]) -> str:
    """A table of two columns; the first is code."""
    lines = "".join(
        f"<tr><td><code>{escape(one)}</code></td><td>{escape(other)}</td></tr>"
        for one, other in cells
    )
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def sending(method: str, path: str, body: str | None) -> str:
    """What sends one request: its body where it has one, its line for a shell, its answer."""
    line = path
    area = ""
    if body is not None:
        line += f" -H 'content-type: application/json' -d {shlex.quote(body)}"
        lines = min(24, body.count("\n") + 1)
        area = (
            f'<label><span>Body</span><textarea spellcheck="false" rows="{lines}">'
            f"{escape(body)}</textarea></label>"
        )
    return (
        f'<div class="try" data-method="{escape(method)}" data-path="{escape(path)}">{area}'
        f'<button type="button">Send</button> <b class="status" role="status"></b>'
        f'<pre class="answer" tabindex="0" hidden></pre>'
        f'<details><summary>For a shell</summary><pre tabindex="0">curl '
        f'<span class="origin">{ORIGIN}</span><span class="with-key" hidden> '
        f'-H "authorization: Bearer $DIFFGR2_KEY"</span>{escape(line)}</pre></details></div>'
    )


def operation(paths: list[str], method: str, route: dict[str, Any], parts: dict[str, Any]) -> str:
    """One section: what it is, what it takes, examples, what comes back."""
    heads = " ".join(f"<code>{escape(path)}</code>" for path in paths)
    out = [f"<section><h2>{escape(method.upper())} {heads}</h2><p>{escape(route['summary'])}</p>"]
    path = paths[0]
    for name, value in PARAMETERS.items():
        path = path.replace(f"{{{name}}}", value)
    content = route.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        out.append(sending(method.upper(), path, None))
    else:
        for example in content["examples"].values():
            body = json.dumps(example["value"], ensure_ascii=False, indent=1)
            out.append(f"<h3>{escape(example['summary'])}</h3>")
            out.append(sending(method.upper(), path, body))
        schema = parts[content["schema"]["$ref"].rpartition("/")[2]]
        fields = [
            (name, "; ".join(filter(None, (kind_of(one, parts), one.get("description")))))
            for name, one in schema["properties"].items()
        ]
        out.append(f"<h3>Fields</h3>{rows(fields, ('field', 'what it holds'))}")
    answers = [(code, one["description"]) for code, one in sorted(route["responses"].items())]
    out.append(f"<details><summary>Answers</summary>{rows(answers, ('status', 'when'))}</details>")
    return "".join(out) + "</section>"


def written(spec: dict[str, Any]) -> str:
    """All operations; paths behind which one handler stands share a section."""
    parts = spec["components"]["schemas"]
    groups: dict[tuple[str, str], list[str]] = {}
    for path, methods in spec["paths"].items():
        for method, route in methods.items():
            groups.setdefault((method, route["summary"]), []).append(path)
    return "\n".join(
        operation(paths, method, spec["paths"][paths[0]][method], parts)
        for (method, _), paths in groups.items()
    )


def add(app: FastAPI) -> None:
    """Add the routes."""
    shell = SHELL.read_text(encoding="utf-8")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(shell, media_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get("/docs/operations", include_in_schema=False)
    async def operations() -> Response:
        text = written(app.openapi())
        return Response(text, media_type="text/html; charset=utf-8", headers=HEADERS)
