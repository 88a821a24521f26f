"""Reference pages made from the code: recipe keys, the command line, HTTP.

Contract: each function returns a page in Markdown that holds every public name there is, or raises
`UndocumentedError` with all of those of which the code says nothing. Nothing is trained, opened or
written. Not here: the Python page (`docs_python`), the site (`docs_site`).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from docs_comments import of_class
from pydantic import BaseModel

from diffgr2.cli import app
from diffgr2.config import DecodeConfig, Recipe
from diffgr2.serve.app import Shown, make_app
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.openapi import ANSWER, STORED, description_of

KINDS = {
    "string": "text",
    "integer": "whole number",
    "boolean": "true or false",
    "object": "mapping",
}
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
}


class UndocumentedError(Exception):
    """Public names of which nothing is said, one a line."""

    def __init__(self, where: str, names: Sequence[str]) -> None:
        super().__init__("\n".join(f"{where}: {name} is not documented" for name in names))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table; what would end a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [
        "",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines),
        "",
    ]


def plain(text: str) -> str:
    """Words on one line, without what Markdown would take for a tag."""
    parts = " ".join(text.split()).split("`")
    return "`".join(p if at % 2 else p.replace("<", "&lt;") for at, p in enumerate(parts))


def code(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def kind(schema: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"mapping ({name})"
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        # "null" says that a key may be left empty; the word stands last, and once.
        words = [kind(one, parts) for one in choices if one.get("type") != "null"]
        nothing = ["null"] * (len(words) < len(choices))
        return " or ".join(dict.fromkeys([*words, *nothing]))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else None):
        return ", ".join(f"`{value}`" for value in values)
    known = schema.get("type", "anything")
    if isinstance(known, list):
        return kind({"anyOf": [{**schema, "type": one} for one in known]}, parts)
    if known == "array":
        return f"list of {kind(schema.get('items', {}), parts)}"
    bounds = [told.format(f"{schema[key]:g}") for key, told in BOUNDS.items() if key in schema]
    if "additionalProperties" in schema and isinstance(schema["additionalProperties"], dict):
        return f"mapping of names to {kind(schema['additionalProperties'], parts)}"
    return " ".join([KINDS.get(known, known), *bounds])


# ------------------------------------------------------------------------------------------ recipes


def sections(kind: type[BaseModel], above: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """A section and those within it, each with its dotted name."""
    yield above, kind
    for name, field in kind.model_fields.items():
        for inner in _models(field.annotation):
            place = f"{name}.<name>" if "dict" in str(field.annotation) else name
            yield from sections(inner, f"{above}.{place}".lstrip("."))


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _models(part)]


def recipe_page() -> str:
    """Every key: what it may be, its default, what it is."""
    schema = Recipe.model_json_schema()
    parts, silent = schema["$defs"], []
    lines = [
        "# Recipe keys",
        "",
        "A recipe is YAML; what it leaves out is as shown here. `diffgr2 recipes NAME` prints a "
        "shipped one with a comment on each key, `--set section.key=value` changes one for a run. "
        "Unknown keys, values of another type and values out of range are refused.",
    ]
    for place, section in sections(Recipe):
        said = of_class(section)
        shape = (parts[section.__name__] if place else schema)["properties"]
        rows = []
        for name, field in section.model_fields.items():
            inner = _models(field.annotation)
            if inner and not field.is_required() and field.default is not None and name not in said:
                continue  # a section of its own
            if name not in said:
                silent.append(f"{place}.{name}".lstrip("."))
            default = "–" if field.is_required() else code(shape[name].get("default", None))
            if field.default_factory is not None:
                default = code(field.get_default(call_default_factory=True))
            rows.append([f"`{name}`", kind(shape[name], parts), default, plain(said.get(name, ""))])
        about = plain((section.__doc__ or "").strip().splitlines()[0])
        head = f"`{place}`" if place else "At the top"
        lines += [
            "",
            f"## {head}",
            "",
            about,
            *table(("key", "may be", "default", "what it is"), rows),
        ]
    if silent:
        raise UndocumentedError("recipe", silent)
    return "\n".join(lines)


# ------------------------------------------------------------------------------------ command line


def commands(command: Any, name: str = "diffgr2") -> Iterator[tuple[str, Any]]:
    """A command and those below it that `--help` shows, by their whole names."""
    yield name, command
    context = typer.Context(command, info_name=name)
    for below in command.list_commands(context) if hasattr(command, "commands") else ():
        found = command.commands[below]
        if not found.hidden:
            yield from commands(found, f"{name} {below}")


def cli_page() -> str:
    """Every verb with its arguments and options."""
    lines, silent = ["# Command line", ""], []
    lines.append(
        "`diffgr2 VERB --help` says the same. Errors are one line; exit codes: 2 wrong "
        "input, 3 broken artifacts, 4 numbers, 5 a remote end, 6 rows set aside, "
        "130 interrupted."
    )
    for name, command in commands(typer.main.get_command(app)):
        context = typer.Context(command, info_name=name)
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["", f"## {name}", "", f"```text\n{name} {usage}\n```", ""]
        if not command.help:
            silent.append(name)
        lines += [plain(part) + "\n" for part in (command.help or "").split("\n\n")]
        rows = []
        for option in command.params:
            if getattr(option, "hidden", False):
                continue
            if not getattr(option, "help", None):
                silent.append(f"{name} {option.name}")
            written, told = option.get_help_record(context)
            rows.append([f"`{written}`", plain(told)])
        if rows:
            lines += table(("argument or option", "what it says"), rows)
    if silent:
        raise UndocumentedError("command line", silent)
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------- HTTP


def description() -> dict[str, Any]:
    """OpenAPI's, without a bundle: its examples name items of the demo."""
    documents = ["P0001373", "P0000518", "P0000485"]
    ids = {"history": ["P0001692"], "documents": documents, "return_reasoning": True}
    stock = {"query": "gel top coat", "documents": documents, "top_n": 1}
    shown = {
        "ids": {"summary": "Item ids", "value": ids},
        "query": {"summary": "As a stock client sends it", "value": stock},
    }
    with tempfile.TemporaryDirectory() as folder:
        made = make_app({}, shown=Shown(page=False, docs=False), log_to=LogTo(Path(folder)))
        return description_of(made, shown)


def flat(schema: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields of a mapping and of those within it; `[]` stands for each of a list."""
    for name, field in schema.get("properties", {}).items():
        place, inner = f"{above}{name}", field
        yield place, field
        while inner.get("type") == "array":
            place, inner = f"{place}[]", inner["items"]
        yield from flat(inner, f"{place}.")


def http_page() -> str:
    """Every route with its body and answer, and the fields of both."""
    spec = description()
    parts, silent = spec["components"]["schemas"], []
    lines = [
        "# HTTP",
        "",
        "What `diffgr2 serve` answers; a running server says the same at "
        "`/openapi.json`, with examples of its own catalogue, and at `/docs`. How to use it: "
        "[Serving a bundle](serving.md).",
    ]
    groups: dict[tuple[str, str], list[str]] = {}
    for path, methods in spec["paths"].items():
        for method, route in methods.items():
            groups.setdefault((method, route.get("summary", "")), []).append(path)
    for (method, summary), paths in groups.items():
        route = spec["paths"][paths[0]][method]
        if not summary:
            silent.append(f"{method} {paths[0]}")
        lines += ["", f"## {method.upper()} {paths[-1]}", "", f"{summary}."]
        if len(paths) > 1:
            lines.append("The same at " + ", ".join(f"`{path}`" for path in paths[:-1]) + ".")
        body = route.get("requestBody", {}).get("content", {}).get("application/json")
        if body:
            name = body["schema"]["$ref"].rpartition("/")[2]
            lines += ["", f"Body: [{name}](#{name.lower()})."]
            for example in body["examples"].values():
                text = json.dumps(example["value"], ensure_ascii=False, indent=1)
                lines += ["", f"{example['summary']}:", "", f"```json\n{text}\n```"]
        coded = sorted(route["responses"].items())
        good = [f"`{code}` {one['description']}" for code, one in coded if code < "400"]
        bad = [f"`{code}` {one['description']}" for code, one in coded if code >= "400"]
        lines += ["", f"Answers: {'; '.join(good)}. [Errors](#error): {', '.join(bad)}."]
    answers = {"A ranking": ANSWER, "Stored feedback": STORED}
    said = of_class(DecodeConfig)
    for name, schema in [*parts.items(), *answers.items()]:
        rows = []
        for place, field in flat(schema):
            told = field.get("description") or (said.get(place) if name == "Decode" else None)
            if not told:
                silent.append(f"{name}.{place}")
            rows.append([f"`{place}`", kind(field, parts), plain(told or "")])
        lines += [
            "",
            f"## {name}",
            "",
            plain(schema.get("description", "")),
            *table(("field", "may be", "what it is"), rows),
        ]
    if silent:
        raise UndocumentedError("HTTP", silent)
    return "\n".join(lines)
