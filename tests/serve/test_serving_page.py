"""README and the pages on ranking do what they say: every request is sent, every command is run.

The bundle is the one that ships, whose items the pages name. Answers must make sense, too: a
permutation, falling probabilities, a reasoning that names the ranking's first and second.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from diffgr2.cli import run
from diffgr2.cli.serve import serve
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.app import card
from diffgr2.serve.keys import Keys
from diffgr2.serve.ledger import LogTo
from diffgr2.serve.schema import TYPES
from support.live import Live

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
FIRST = (ROOT / "docs" / "first_ranking.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEPLOY = ROOT / "deploy"
BUNDLE = "runs/demo/bundle"
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def blocks(kind: str, page: str = PAGE) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)


def commands(texts: list[str]) -> list[list[str]]:
    """Every command line of these blocks, as words."""
    found = []
    for block in texts:
        words = shlex.split(block.replace("\\\n", ""), comments=True)
        for word in words:
            if word in ("curl", "diffgr2", ".venv/bin/diffgr2"):
                found.append([])
            if found:
                found[-1].append(word.removeprefix(".venv/bin/"))
    return found


SHELL = commands(
    blocks("sh")
    + blocks("sh", FIRST)
    + re.findall(r"## Serving\n\n```bash\n(.*?)```", README, re.DOTALL)
)
CURLS = [line for line in SHELL if line[0] == "curl"]
SERVES = [line[2:] for line in SHELL if line[:2] == ["diffgr2", "serve"]]
RERANKS = [line[1:] for line in SHELL if line[:2] == ["diffgr2", "rerank"]]
RERANKS += [
    shlex.split(line)[1:]
    for line in re.findall(r"^diffgr2 rerank .*$", PAGE, re.MULTILINE)
    if "--input" not in line
]


def request_of(line: list[str]) -> tuple[str, dict[str, str], str | None]:
    """(path, headers, body) of a curl command of the few forms that the page uses."""
    path, headers, body, words = "", {}, None, iter(line[1:])
    for word in words:
        if word in ("-s", "-sN"):
            continue
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(words)
        else:
            path = word.removeprefix("http://127.0.0.1:8000")
            assert path.startswith("/"), line
    return path, headers, body


def command() -> Any:
    app = typer.Typer(add_completion=False)
    app.command()(serve)
    return typer.main.get_command(app)


def check_sensible(reranker: Reranker, value: dict[str, Any], documents: list[str]) -> None:
    """A ranking of these documents with probabilities and a reasoning that fits it."""
    scores = [entry["relevance_score"] for entry in value["results"]]
    order = [entry["index"] for entry in value["results"]]
    check_order(order, scores, len(documents))
    assert value["ranking"]["valid"] is True
    assert value["ranking"]["sure"] == scores[0]
    if "reasoning" in value:
        check_verdict(reranker, value["reasoning"], [documents[index] for index in order])


def check_order(order: list[int], scores: list[float], n: int) -> None:
    assert sorted(order) == list(range(n))
    assert scores[0] <= 1.0
    assert scores[-1] >= 0.0
    assert all(a > b for a, b in itertools.pairwise(scores))


def check_verdict(reranker: Reranker, text: str, ranked: list[str]) -> None:
    """The verdict names the ranking's first, then its second."""
    first, second = (reranker.names.title(i) for i in reranker.names.resolve(ranked[:2], "x"))
    flat = " ".join(text.replace("**", "").split())
    assert f"{first}, ahead of {second}" in flat


def test_there_is_something_to_send() -> None:
    assert len(CURLS) >= 5
    assert len(RERANKS) >= 3
    assert len(SERVES) >= 3


@pytest.fixture(scope="module")
def reranker() -> Reranker:
    return Reranker.from_pretrained("demo")


@pytest.fixture(scope="module")
def live(reranker: Reranker) -> Iterator[Live]:
    with Live(reranker) as server:
        yield server


@pytest.fixture(scope="module")
def keeping(reranker: Reranker, tmp_path_factory) -> Iterator[Live]:
    """A server that keeps impressions and feedback."""
    with Live(reranker, log_to=LogTo(tmp_path_factory.mktemp("traffic"))) as server:
        yield server


@pytest.mark.parametrize("line", CURLS, ids=lambda line: request_of(line)[0])
def test_every_request_of_the_page_is_answered_as_it_says(
    live: Live, keeping: Live, line: list[str]
) -> None:
    path, headers, body = request_of(line)
    if path == "/v1/feedback":
        assert body is not None
        with keeping.client() as client:
            assert client.post(path, content=body.encode(), headers=headers).status_code == 202
        return
    with live.client() as client:
        if body is None:
            answer = client.get(path)
        else:
            answer = client.post(path, content=body.encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    if path.endswith("batch"):
        lines = [json.loads(text) for text in answer.text.splitlines()]
        assert sorted(one["index"] for one in lines) == [0, 1, 2]
        assert [one["index"] for one in lines if "error" in one] == [1]
        assert all(one["ranking"]["valid"] for one in lines if "error" not in one)
    elif body is not None and json.loads(body).get("stream"):
        names = re.findall(r"^event: (\S+)$", answer.text, re.MULTILINE)
        assert set(names) == {"reasoning.delta", "results"}
        assert answer.text.endswith("data: [DONE]\n\n")
        (results,) = re.findall(r"^event: results\ndata: (.*)$", answer.text, re.MULTILINE)
        check_sensible(live.reranker, json.loads(results), json.loads(body)["documents"])
    elif body is not None:
        value = answer.json()
        assert value["reasoning"]
        check_sensible(live.reranker, value, json.loads(body)["documents"])


@pytest.mark.parametrize("line", RERANKS, ids=" ".join)
def test_every_ranking_on_the_command_line_makes_sense(
    line: list[str], reranker: Reranker, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    words = ["demo" if word == BUNDLE else word for word in line]
    assert run([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    check_order(value["order"], value["scores"], len(value["items"]))
    check_verdict(reranker, value["reasoning"], value["items"])
    assert ("decisions" in value) == ("--decisions" in line)
    assert ("**" in value["reasoning"]) == ("--markdown" in line)
    assert run(words) == 0  # for people, it says the same
    check_verdict(reranker, capsys.readouterr().out, value["items"])


def numbers(text: str) -> list[float]:
    return [float(one) for one in re.findall(r"\d*\.\d+", text)]


def test_the_first_ranking_is_what_the_page_shows(reranker: Reranker, capsys) -> None:
    """Words and places to the letter, figures nearly: another processor rounds otherwise."""
    (shown,) = blocks("text", FIRST)
    (line,) = [line for line in commands(blocks("sh", FIRST)) if "-c" in line]
    assert run(line[1:]) == 0
    printed = "\n".join(one.rstrip() for one in capsys.readouterr().out.splitlines())
    plain = re.compile(r"\d*\.\d+")
    assert plain.sub("#", printed) == plain.sub("#", shown.rstrip())
    assert numbers(printed) == pytest.approx(numbers(shown), abs=0.11)
    names: dict[str, Any] = {}
    (code,) = blocks("python", FIRST)
    exec(code, names)
    result = names["result"]
    assert str(list(result.items)) in code
    assert list(result.scores) == pytest.approx(numbers(code), abs=0.02)
    assert result.reasoning in shown


def test_its_ranking_on_standard_input_makes_sense(reranker: Reranker, capsys, monkeypatch) -> None:
    ((given, line),) = re.findall(r"^echo '(.*)' \| (diffgr2 .*)$", PAGE, re.MULTILINE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
    assert run(["demo" if w == BUNDLE else w for w in shlex.split(line)[1:]]) == 0
    value = json.loads(capsys.readouterr().out)
    check_order(value["order"], value["scores"], 3)
    check_verdict(reranker, value["reasoning"], value["items"])


def test_its_command_lines_are_taken(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "deploy").mkdir()
    shutil.copy(DEPLOY / "ray.yaml", tmp_path / "deploy")
    parsed = [command().make_context("serve", list(line)).params for line in SERVES]
    assert parsed[0]["models"] == [BUNDLE]
    assert parsed[1]["documents"] == yaml.safe_load(blocks("yaml")[0])["documents"]
    assert parsed[1]["models"] == parsed[2]["models"]
    assert parsed[2]["log"] is True


def test_its_table_of_options_is_the_real_one() -> None:
    said = {
        name: (variable, default.strip("` "))
        for name, variable, default in re.findall(
            r"^\| `--([a-z-]+)` \| `(\w+)` \|([^|]*)\|", PAGE, re.MULTILINE
        )
    }
    real = {}
    for parameter in command().params:
        if parameter.envvar is None:
            continue
        default = parameter.default
        empty = default is None or parameter.multiple or type(default).__name__ == "Sentinel"
        shown = "" if empty else f"{default:g}" if type(default) is float else str(default)
        shown = shown.lower() if isinstance(default, bool) else shown
        long = next(name for name in parameter.opts if name.startswith("--"))
        real[long[2:]] = (parameter.envvar, shown)
    assert said == real


def test_its_keys_are_keys() -> None:
    keys = Keys(blocks("text")[0].splitlines())
    found = {
        line.split()[0]: keys.find(f"Bearer {line.split()[0]}".encode())
        for line in blocks("text")[0].splitlines()[1:]
    }
    callers = {caller.name: caller for caller in found.values() if caller is not None}
    assert set(callers) == {"search", "nightly", "ops"}
    assert callers["nightly"].bucket is not None
    assert callers["ops"].may("admin")
    assert callers["ops"].may("shoppers")
    assert not callers["search"].may("shoppers")


def test_its_limits_and_its_line_of_the_log_have_the_real_fields(live: Live) -> None:
    limits, line = (json.loads(text.replace("…", "")) for text in blocks("json"))
    assert limits == card(live.state, "default", live.state.first)["limits"]
    always = ["time", "id", "method", "route", "status", "ms"]
    ranked = ["key", "lists", "decoder", "tokens", "forwards", "queue_ms", "inference_ms"]
    assert list(line) == always + ranked  # test_access_log holds that these are the real ones


def test_its_metrics_are_all_there_and_no_others(live: Live) -> None:
    with live.client() as client:
        text = client.get("/metrics").text
    real = set(re.findall(r"^# TYPE (diffgr2_\w+) ", text, re.MULTILINE))
    real -= {name for name in real if name.endswith("_created")}
    table = PAGE.split("**Metrics**")[1].split("**Traces.**")[0]
    assert set(re.findall(r"`(diffgr2_\w+)`", table)) == real


def test_its_statuses_are_those_that_there_are() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE)
    said = [int(word) for row in rows for word in row.split(", ")]
    assert sorted(said) == sorted(TYPES)


def test_its_python_runs(reranker: Reranker) -> None:
    code, lists = blocks("python")
    ast.parse(lists)  # `rank_all` is run by its own tests: this one would read from a cloud
    names: dict[str, Any] = {}
    exec(code.replace(BUNDLE, "demo"), names)
    result = names["result"]
    check_order(list(result.order), list(result.scores), 3)
    check_verdict(reranker, result.reasoning, list(result.items))
    assert result.valid


@pytest.mark.parametrize("text", [PAGE, SECURITY], ids=["serving", "security"])
def test_its_links_lead_somewhere(text: str) -> None:
    base = ROOT / "docs" if text is PAGE else ROOT
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    for target in targets:
        assert (base / target).exists(), target


def test_security_names_tests_that_exist() -> None:
    table = SECURITY.split("## What is protected")[1].split("## What is not")[0]
    named = set(re.findall(r"`(test_\w+\.py)`", table))
    assert len(named) >= 15
    assert [name for name in sorted(named) if not (ROOT / "tests" / "serve" / name).is_file()] == []
    rows = [row for row in table.splitlines() if row.startswith("| ") and "held by" not in row]
    assert all(re.search(r"`tests?[_/][\w./]*` \|$", row) for row in rows), "a row without a test"
