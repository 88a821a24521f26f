"""The verbs `rerank` and `serve`.

Contract: `rerank` ranks one request (options, or one JSON object on stdin) or a JSONL file line by
line; every input line gives exactly one output line, a ranking or an error, in order, and the same
command goes on where an interrupted one stopped. Bad lines are counted and shown, they stop
nothing. With `--engine` a folder of part files is made of any source, by many workers
(`cli.in_shares`). `serve` starts the server. Not here: how a ranking is
shown (`shown`), ranking (`rerank`) and HTTP (`serve`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from diffgr2.choices import DECODERS, Answering, Rule
from diffgr2.cli import in_shares
from diffgr2.cli.serve import serve
from diffgr2.cli.shown import show
from diffgr2.cli.unnamed import example_of, meant
from diffgr2.errors import ConfigError, DataError, Diffgr2Error, one_of
from diffgr2.progress import Progress

if TYPE_CHECKING:
    from diffgr2.rerank.reranker import Reranker
    from diffgr2.rerank.result import RankResult, Telling

PANEL = "Using a model"
SHOWN_ERRORS = 5
WORDS = {"decoder": tuple(DECODERS), "rule": get_args(Rule), "answer": get_args(Answering)}
"""Options that take one of a few words."""

Model = Annotated[
    Path | None,
    typer.Option(
        "--model", "-m", metavar="DIR", help="A bundle.", show_default="the one that ships: demo"
    ),
]

Answers = Annotated[str | None, typer.Option(help="said (strengths) or written (permutation).")]
Views = Annotated[int | None, typer.Option(min=1, max=16, help="Shuffled views to average.")]
Decisions = Annotated[bool, typer.Option("--decisions", help="Show each decision's probabilities.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Reasoning in Markdown, names bold.")]


Pins = Annotated[
    list[str] | None, typer.Option("--pin", metavar="ID[=PLACE]", help="For the top; repeat.")
]
Excluded = Annotated[
    list[str] | None, typer.Option("--exclude", help="An id to leave out; repeat.")
]
Boosts = Annotated[
    list[str] | None,
    typer.Option("--boost", metavar="ID=LEVELS", help="Added to its strength; repeat."),
]
MaxPer = Annotated[
    list[str] | None,
    typer.Option("--max-per", metavar="GROUP=N", help="brand=2 or category=3; repeat."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Unknown items are an error.")]


def rules_of(
    pin: list[str] | None,
    exclude: list[str] | None,
    boost: list[str] | None,
    max_per: list[str] | None,
) -> dict[str, Any]:
    """The options as `Reranker.rank`'s rules; an id may hold an =, the last one counts."""
    rules: dict[str, Any] = {}
    places = {id_: int(place) for id_, place in map(_pair, pin or ()) if place.isdigit()}
    if pin:
        if places and len(places) < len(pin):
            raise ConfigError("--pin: give a place to all or to none")
        rules["pin"] = places or pin
    if exclude:
        rules["exclude"] = exclude
    for name, given, kind in (("boost", boost, float), ("max_per", max_per, int)):
        if given:
            option = f"--{name.replace('_', '-')}"
            try:
                rules[name] = {id_: kind(value) for id_, value in map(_pair, given)}
            except ValueError:
                raise ConfigError(f"{option}: expected NAME=NUMBER") from None
            if len(rules[name]) < len(given):
                raise ConfigError(f"{option}: one name stands twice")
    return rules


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.rpartition("=")
    return name, value


def answer_of(result: RankResult) -> dict[str, Any]:
    """A result as JSON."""
    return {
        "items": list(result.items),
        "order": list(result.order),
        "scores": list(result.scores),
        "levels": list(result.levels),
        **({"placed": list(result.placed)} if any(result.placed) else {}),
        **({"warnings": list(result.warnings)} if result.warnings else {}),
        "ranking": result.ranking(),
        **result.decided(),
        **({"reasoning": result.reasoning} if result.reasoning is not None else {}),
        "decode": result.decode,
    }


# ------------------------------------------------------------------------------- one request


def rank_one(
    reranker: Reranker,
    arguments: dict[str, Any],
    *,
    as_json: bool,
    telling: Telling,
    top_k: int | None,
) -> None:
    """One request to stdout."""
    task = reranker.prepare(**arguments)
    reranker.run([task], batch=1)
    result = task.result(return_reasoning=telling, top_k=top_k)
    if as_json:
        for warning in result.warnings:
            typer.echo(f"warning: {warning}", err=True)
        typer.echo(json.dumps(answer_of(result), ensure_ascii=False))
    else:
        titles = [reranker.names.title(item) for item in task.query.candidates]
        show(result, titles, blank=task.blank)


# ------------------------------------------------------------------------------- many requests


def mark_of(line: bytes) -> str:
    """What ties an output line to its input line."""
    return hashlib.sha256(line.strip()).hexdigest()[:16]


def done_lines(output: Path, source: Path) -> int:
    """How many output lines stand; a cut last line is taken away, strange ones are an error."""
    from diffgr2 import strict_json

    if not output.exists():
        return 0
    data = output.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    lines = whole.splitlines()
    with source.open("rb") as file:
        for number, line in enumerate(lines, 1):
            given = file.readline()
            try:
                same = bool(given) and strict_json.loads(line)["input"] == mark_of(given)
            except (DataError, KeyError, TypeError):
                same = False
            if not same:
                raise ConfigError(
                    f"{output}: line {number} does not belong to line {number} of {source}"
                )
    return len(lines)


def rank_lines(
    reranker: Reranker, lines: list[bytes], *, telling: Telling, top_k: int | None, batch: int
) -> list[dict[str, Any]]:
    """One answer or error per line."""
    from diffgr2 import strict_json
    from diffgr2.rerank.query import arguments_of

    answers: list[dict[str, Any]] = []
    tasks = []
    for line in lines:
        try:
            tasks.append((len(answers), reranker.prepare(**arguments_of(strict_json.loads(line)))))
            answers.append({"input": mark_of(line)})
        except Diffgr2Error as error:
            answers.append({"input": mark_of(line), "error": " ".join(str(error).split())})
    reranker.run([task for _, task in tasks], batch=batch)
    for place, task in tasks:
        answers[place] |= answer_of(task.result(return_reasoning=telling, top_k=top_k))
    return answers


def rank_file(
    reranker: Reranker,
    source: Path,
    output: Path,
    *,
    telling: Telling = True,
    top_k: int | None,
    batch: int,
) -> tuple[int, int]:
    """(lines, of which bad) of the whole output."""
    from diffgr2 import strict_json

    skip = done_lines(output, source)
    progress = Progress()
    if skip:
        progress.line(f"{output}: {skip} lines stand")
    with source.open("rb") as file:
        total = sum(1 for _ in file)
    shown = 0
    with source.open("rb") as file, output.open("ab") as out:
        for _ in range(skip):
            file.readline()
        with progress.task("rerank", total - skip) as bar:
            for chunk in iter(lambda: list(islice(file, batch * 2)), []):
                answers = rank_lines(reranker, chunk, telling=telling, top_k=top_k, batch=batch)
                for line, answer in enumerate(answers, skip + bar.done + 1):
                    out.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
                    if "error" in answer and shown < SHOWN_ERRORS:
                        shown += 1
                        progress.line(f"{source} line {line}: {answer['error']}")
                out.flush()
                os.fsync(out.fileno())
                bar.advance(len(chunk))
    with output.open("rb") as file:
        bad = sum("error" in strict_json.loads(line) for line in file)
    return total, bad


def rank_lines_of(
    asked: in_shares.Asked, *, telling: Telling, top_k: int | None, batch: int
) -> int:
    """A file of lines into one file; the exit code."""
    from diffgr2.rerank.reranker import Reranker

    source, output = Path(asked.source), Path(asked.into)
    if not source.is_file():
        raise ConfigError(f"{source}: no such file")
    opened = Reranker.from_pretrained(asked.model)
    total, bad = rank_file(opened, source, output, telling=telling, top_k=top_k, batch=batch)
    typer.echo(f"{output}: {total - bad} rankings, {bad} bad lines")
    return 2 if total and bad == total else 0


# --------------------------------------------------------------------------------------- verbs


def rerank(
    model: Model = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", "-H", help="An item, oldest first; repeat.")
    ] = None,
    candidates: Annotated[
        list[str] | None, typer.Option("--candidate", "-c", help="An item, best first; repeat.")
    ] = None,
    user: Annotated[str | None, typer.Option(help="A shopper of the bundle.")] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", help="JSONL, a request a line; with --engine also others."),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="JSONL; with --engine a folder.")
    ] = None,
    engine: in_shares.Engine = None,
    workers: in_shares.Workers = 0,
    gpus: in_shares.Gpus = 0.0,
    form: in_shares.Form = None,
    reasons: in_shares.Reasons = False,
    decoder: Annotated[str | None, typer.Option(help=f"{', '.join(DECODERS)}.")] = None,
    threshold: Annotated[float | None, typer.Option(help="τ of block.")] = None,
    rule: Annotated[str | None, typer.Option(help="raw or grammar.")] = None,
    answer: Answers = None,
    views: Views = None,
    decisions: Decisions = False,
    markdown: Markdown = False,
    direct: Annotated[bool, typer.Option("--direct", help="Answer without reasoning.")] = False,
    pin: Pins = None,
    exclude: Excluded = None,
    boost: Boosts = None,
    max_per: MaxPer = None,
    strict: Strict = False,
    top_k: Annotated[int | None, typer.Option(min=1, help="Return this many only.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests decoded at once.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Rank one request (options, JSON on stdin; none: an example), a JSONL file, or many files."""
    from diffgr2.rerank.reranker import Reranker

    chosen = {"decoder": decoder, "threshold": threshold, "rule": rule}
    chosen |= {"answer": answer, "views": views, "details": decisions or None}
    telling: Telling = "markdown" if markdown else True
    wanted = said(chosen)
    rules = rules_of(pin, exclude, boost, max_per)
    if source is not None:
        if candidates or history or user or wanted or direct or rules or strict:
            raise ConfigError("--input: its lines hold the requests, no other request options")
        asked = in_shares.Asked(meant(model), source, output, engine, workers, gpus, form)
        work = asked.run if asked.in_shares else partial(rank_lines_of, asked)
        reasons_of = telling if reasons or markdown or not asked.in_shares else False
        raise typer.Exit(work(telling=reasons_of, top_k=top_k, batch=batch))
    if engine or workers or gpus or form:
        raise ConfigError("--input: needed with --engine, --workers, --gpus and --format")
    given = arguments_given(history, candidates, user)
    opened = Reranker.from_pretrained(meant(model))
    arguments = changed(example_of(opened) if given is None else given, wanted, rules)
    arguments |= ({"strict": True} if strict else {}) | ({"reasoning": False} if direct else {})
    rank_one(opened, arguments, as_json=as_json, telling=telling, top_k=top_k)


def said(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options that were given; a word that is none is an error before anything is opened."""
    wanted = {key: value for key, value in chosen.items() if value is not None}
    for name, known in WORDS.items():
        if name in wanted:
            one_of(f"--{name}", wanted[name], known)
    return wanted


def changed(
    arguments: dict[str, Any], wanted: dict[str, Any], rules: dict[str, Any]
) -> dict[str, Any]:
    """What options say stands above what the request says."""
    more = {name: given for name, given in (("decode", wanted), ("rules", rules)) if given}
    return arguments | {name: {**arguments.get(name, {}), **more[name]} for name in more}


def arguments_given(
    history: list[str] | None, candidates: list[str] | None, user: str | None
) -> dict[str, Any] | None:
    """One request, by options or as JSON on stdin; None where there is neither."""
    from diffgr2 import strict_json
    from diffgr2.rerank.query import arguments_of

    if candidates:
        arguments = {"history": history, "candidates": candidates, "user": user}
        if history is None and user is None:
            arguments["history"] = []
        return arguments
    text = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
    if text.strip():
        return arguments_of(strict_json.loads(text))
    if history or user:
        raise ConfigError("--candidate: needed (or give one JSON object on stdin, or --input)")
    return None


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("rerank", rich_help_panel=PANEL)(rerank)
    app.command("serve", rich_help_panel=PANEL)(serve)
