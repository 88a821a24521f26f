"""The traces stage with an endpoint as teacher: from a simulated shop to training texts.

`Teacher` is an HTTP server on 127.0.0.1 that reads the prompts it is sent and answers in JSON.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffgr2.artifacts import read_manifest
from diffgr2.config import Recipe, ShowConfig
from diffgr2.errors import ConfigError, DataError
from diffgr2.pipeline import Runner
from diffgr2.progress import Progress
from diffgr2.prompts.chat import MENTION, sids_of
from diffgr2.recipe import validate
from diffgr2.stages.corpus import KNOWN, Corpus, open_corpus
from diffgr2.stages.plan import STAGES
from diffgr2.streams import generator

pytest.importorskip("openai")

ASKED = 30


class Teacher(ThreadingHTTPServer):
    """Ranks by the hash of (question, try); every fourth answer is no permutation."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.questions: list[str] = []
        self.broken = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def say(self, question: str) -> str:
        with self.lock:
            self.questions.append(question)
            tries = self.questions.count(question)
        if self.broken:
            return "I would rather not say."
        part = question.split("Candidates, in the retriever's order:\n")[1]
        lines = re.findall(r"^\[\d+\] .*$", part, re.MULTILINE)
        sids = [match[0] for line in lines if (match := MENTION.search(line))]
        draw = np.random.default_rng(
            int.from_bytes(hashlib.sha256(f"{tries} {question}".encode()).digest()[:8])
        )
        order = draw.permutation(len(sids))
        told = re.search(r"next purchase was (\S+)\. Rank", question)
        if told:
            at = sids.index(told[1])
            order = np.array([at, *(i for i in order if i != at)])
        if draw.random() < 0.25:
            order[-1] = order[0]
        names = [sids[i] for i in order] if draw.random() < 0.5 else [int(i) + 1 for i in order]
        words = f'The shopper liked "this". Then {sids[order[0]]} fits, [{order[1] + 1}] less so.'
        text = json.dumps({"explanation": words, "recommendations": names})
        return f"```json\n{text}\n```" if draw.random() < 0.5 else text


class Handler(BaseHTTPRequestHandler):
    server: Teacher
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = self.server.say(request["messages"][-1]["content"])
        message = {"role": "assistant", "content": text}
        body: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": "m"}
        body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    with Teacher() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def recipe(url: str, mode: str = "rejection", template: str = "gr2", **prompt: Any) -> Recipe:
    llm = {"base_url": url, "n": 8, "price_in": 1.0, "price_out": 2.0}
    values = {
        "name": "tiny",
        "data": {"shop": {"n_items": 200, "n_users": 400}},
        "items": {"quantizer": "rkmeans", "codes": 32, "levels": 3, "vector_dim": 16},
        "retriever": {"kind": "itemknn"},
        "candidates": {"k": 5, "k_max": 7, "prefixes": 1},
        "prompt": {"template": template, "text_vocab": 600, **prompt},
        "traces": {"teacher": "llm", "mode": mode, "max_lists": ASKED, "llm": llm},
    }
    return validate(values, "tiny")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory up to the vocabulary, which the tests copy."""
    root = tmp_path_factory.mktemp("shop")
    run(recipe("http://127.0.0.1:9/v1"), root, "vocabulary")
    return root


def run(values: Recipe, root: Path, goal: str = "traces") -> dict[str, Any]:
    runner = Runner(values, root, STAGES, Progress(io.StringIO()))
    return runner.run([goal])[goal]["metrics"]


def opened(values: Recipe, root: Path) -> Corpus:
    names = ("vocabulary", "data", "items", "candidates", "evidence", "traces")
    return open_corpus({name: root / name for name in names}, values)


@pytest.mark.parametrize("template", ["gr2", "compact"])
@pytest.mark.parametrize("mode", ["plain", "targeted", "rejection"])
def test_an_endpoint_teaches(
    shop: Path, tmp_path: Path, teacher: Teacher, mode: str, template: str
) -> None:
    root = tmp_path / "run"
    shutil.copytree(shop, root)
    values = recipe(teacher.url, mode, template)
    metrics = run(values, root)
    corpus = opened(values, root)
    assert metrics["llm/prompts"] == ASKED == sum(metrics[f"{s}/lists"] for s in KNOWN)
    assert metrics["llm/accepted"] == len(corpus.examples) > 0.5 * ASKED
    assert metrics["llm/samples"] == len(teacher.questions)
    assert metrics["llm/cost"] == pytest.approx(len(teacher.questions) * 200e-6)
    revealed = ["next purchase was" in question for question in teacher.questions]
    assert all(revealed) if mode == "targeted" else not any(revealed)
    for n, (split, at) in enumerate(corpus.examples):
        row, order_K = int(corpus.traces[split].row_N[at]), corpus.trace(split, at).order_K
        assert mode == "plain" or order_K[0] == corpus.judged(split).hit_L[row]
        # Strengths imply the order, whatever order the candidates are shown in.
        shown, trace = corpus.lesson(split, at, ShowConfig(shuffle=0.5), generator(0, "t", n))
        request = shown.request
        response = corpus.template.response(request, trace, reasoning=True).tokens
        answer = corpus.template.parse(response, request)
        codes_KL = corpus.request(split, row).codes_KL[order_K]
        assert answer.valid
        assert request.k == len(order_K) == corpus.k
        assert (request.codes_KL[list(answer.order)] == codes_KL).all()
        if template == "gr2":
            told = corpus.template.read(response, request).told
            assert told.startswith("The shopper liked ")
            first, second = (sids_of(request.codes_KL)[i].text for i in trace.order_K[:2])
            assert f" Then {first} fits, {second} less so." in told
    lines = [json.loads(x) for s in KNOWN for x in (root / f"traces/{s}.jsonl").open()]
    assert len(lines) == len(corpus.examples)
    assert all(set(line) == {"row", "order", "explanation"} for line in lines)


def test_a_repeated_stage_pays_nothing_and_writes_the_same(
    shop: Path, tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "run"
    shutil.copytree(shop, root)
    values = recipe(teacher.url)
    run(values, root)
    files, paid = read_manifest(root / "traces")["files"], len(teacher.questions)
    shutil.rmtree(root / "traces")
    metrics = run(values, root)
    assert read_manifest(root / "traces")["files"] == files
    assert len(teacher.questions) == paid == metrics["llm/samples"]
    assert metrics["llm/calls"] == 0


def test_answers_that_never_do_are_an_error_with_the_reason(
    shop: Path, tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "run"
    shutil.copytree(shop, root)
    teacher.broken = True
    with pytest.raises(DataError, match=r"none of 240 answers .* accepted \(240 unparseable\)"):
        run(recipe(teacher.url), root)
    assert not (root / "traces").exists()


def test_too_few_strengths_for_an_order_are_refused(
    shop: Path, tmp_path: Path, teacher: Teacher
) -> None:
    root = tmp_path / "run"
    shutil.copytree(shop, root)
    with pytest.raises(ConfigError, match=r"prompt\.strengths: 4 levels .* candidates\.k \(5\)"):
        run(recipe(teacher.url, strengths=4), root)
    assert not teacher.questions
