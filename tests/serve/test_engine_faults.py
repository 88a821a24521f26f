"""Faults injected into the forward: who is affected gets a 5xx with an id, the rest are right."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch

from diffgr2.model.backends import open_backend
from diffgr2.model.session import TorchSession
from diffgr2.rerank.reranker import Reranker
from diffgr2.serve.limits import Limits
from support.live import Live, body_of, idle

Fault = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Faulty:
    """The model with something between it and its caller; `fault` sees ids and logits."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.fault: Fault | None = None
        self.on_fill: Callable[[torch.Tensor], None] | None = None
        self.forwards = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, ids_BT: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        self.forwards += 1
        if self.on_fill is not None:  # prompts may ride with a forward
            self.on_fill(ids_BT)
        logits = self._model(ids_BT, *rest, **more)
        return logits if self.fault is None else self.fault(ids_BT, logits)

    def session(self, mask_id: int) -> TorchSession:
        return TorchSession(self, mask_id)  # type: ignore[arg-type]

    def fill(self, ids_BT: torch.Tensor, *rest: Any) -> None:
        if self.on_fill is not None:
            self.on_fill(ids_BT)
        self._model.fill(ids_BT, *rest)


@pytest.fixture
def broken(reranker: Reranker) -> Iterator[tuple[Live, Faulty]]:
    """A server over a model that can be made to fail."""
    other = copy.copy(reranker)
    other.model = Faulty(open_backend(reranker.directory, "torch"))  # type: ignore[assignment]
    with Live(other, limits=Limits(stall_s=0.3)) as server:
        yield server, other.model  # type: ignore[misc]


def ask_all(server: Live, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
    """All at once."""
    with server.client() as client, ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: client.post("/rerank", json=body), bodies))


def bodies(reranker: Reranker, decoder: str, n: int = 6) -> list[dict[str, Any]]:
    return [body_of(reranker, seed, decode={"decoder": decoder}) for seed in range(n)]


def truth(reranker: Reranker, body: dict[str, Any]) -> list[int]:
    result = reranker.rank(
        body["history"],
        body["documents"],
        decode=body["decode"],
        reasoning=body.get("reasoning") != "off",
    )
    return list(result.order)


def check(reranker: Reranker, answers: list[httpx.Response], asked: list[dict[str, Any]]) -> None:
    for answer, body in zip(answers, asked, strict=True):
        assert answer.status_code == 200, answer.text
        order = [entry["index"] for entry in answer.json()["results"]]
        assert order == truth(reranker, body)


def once(at: int, error: BaseException) -> Fault:
    """Fail at the at-th forward from now, and never again."""
    left = [at]

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            raise error
        return logits

    return fault


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
@pytest.mark.parametrize("at", [1, 10])
def test_a_passing_fault_costs_nobody_an_answer(broken, reranker, decoder, at) -> None:
    server, model = broken
    model.fault = once(at, RuntimeError("a passing fault"))
    asked = bodies(reranker, decoder)
    check(reranker, ask_all(server, asked), asked)
    assert idle(server.state)
    assert not server.state.engine.bad


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError()])
def test_out_of_memory_in_a_batch_is_decoded_one_by_one(broken, reranker, error) -> None:
    server, model = broken

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if len(ids) > 1:
            raise error
        return logits

    model.fault = fault
    asked = bodies(reranker, "block")
    check(reranker, ask_all(server, asked), asked)


def test_a_request_with_nan_fails_alone(broken, reranker) -> None:
    server, model = broken
    direct = reranker.vocab.control["<direct>"]

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        logits[(ids == direct).any(1)] = torch.nan
        return logits

    model.fault = fault
    asked = bodies(reranker, "ar")
    poison = {**asked[2], "reasoning": "off"}
    answers = ask_all(server, [*asked, poison])
    check(reranker, answers[:-1], asked)
    assert answers[-1].status_code == 500
    value = answers[-1].json()
    assert value["id"] == answers[-1].headers["x-request-id"]
    assert value["error"]["type"] == "internal"
    assert "nan" not in value["message"].lower()


def test_a_request_whose_prefill_fails_fails_alone(broken, reranker) -> None:
    server, model = broken
    mark = int(reranker.vocab.sid_ids(reranker.sids.codes_IL[[150]])[0, 1])

    def on_fill(ids: torch.Tensor) -> None:
        pairs = (ids[:, 1:] == mark) & (ids[:, :-1] == mark - 1_000_000)
        if (ids == direct).any() or pairs.any():
            raise RuntimeError("a bad prompt")

    direct = reranker.vocab.control["<direct>"]
    model.on_fill = on_fill
    asked = bodies(reranker, "block")  # its prefill holds the whole prompt
    poison = {**asked[1], "reasoning": "off"}
    answers = ask_all(server, [*asked, poison])
    check(reranker, answers[:-1], asked)
    assert answers[-1].status_code == 500


def test_a_bug_in_the_parser_costs_one_request(broken, reranker, monkeypatch) -> None:
    server, _ = broken
    template = server.reranker.template
    whole = template.read

    def read(tokens: Any, request: Any, level_T: Any) -> Any:
        if request.k == 3:
            raise IndexError("a bug")
        return whole(tokens, request, level_T)

    monkeypatch.setattr(template, "read", read)
    asked = bodies(reranker, "block")
    poison = {**asked[0], "documents": asked[0]["documents"][:3]}
    answers = ask_all(server, [*asked, poison])
    assert answers[-1].status_code == 500
    monkeypatch.undo()
    check(reranker, answers[:-1], asked)
    check(reranker, ask_all(server, asked), asked)


def test_while_the_model_is_broken_readiness_says_so(broken, reranker) -> None:
    server, model = broken
    asked = bodies(reranker, "verify")

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken for good")

    model.fault = fault
    answers = ask_all(server, asked)
    assert [a.status_code for a in answers] == [500] * len(asked)
    assert len({a.json()["id"] for a in answers}) == len(asked)
    with server.client() as client:
        assert client.get("/health/live").status_code == 200
        assert client.get("/health/ready").status_code == 503
        model.fault = None
        assert client.get("/health/ready").status_code == 200
    assert idle(server.state)
    check(reranker, ask_all(server, asked), asked)


def test_a_stalled_step_makes_the_server_unready_and_late_requests_504(broken, reranker) -> None:
    server, model = broken
    go = threading.Event()

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        go.wait(20)
        return logits

    model.fault = fault
    body = body_of(reranker, 1, decode={"decoder": "ar"})
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        late = pool.submit(
            client.post, "/rerank", json=body, headers={"x-request-timeout-ms": "700"}
        )
        assert late.result().status_code == 504
        assert client.get("/health/ready").status_code == 503
        assert client.get("/health/live").status_code == 200
        go.set()
        for _ in range(500):
            if not server.state.engine.stalled:
                break
            time.sleep(0.01)
        assert client.get("/health/ready").status_code == 200
        assert client.post("/rerank", json=body).status_code == 200
    assert idle(server.state)


def test_a_stream_that_fails_says_so_and_others_go_on(broken, reranker) -> None:
    server, model = broken

    def fault(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("broken for good")

    model.fault = fault
    with server.client() as client:
        text = client.post("/rerank", json=body_of(reranker, 1, stream=True)).text
        assert "event: error" in text
        assert text.endswith("data: [DONE]\n\n")
        model.fault = None
        text = client.post("/rerank", json=body_of(reranker, 1, stream=True)).text
        assert "event: results" in text
    assert idle(server.state)


def test_a_restarted_stream_repeats_no_token(broken, reranker) -> None:
    server, model = broken
    model.fault = once(5, RuntimeError("a passing fault"))
    with server.client() as client:
        text = client.post("/rerank", json=body_of(reranker, 4, stream=True)).text
    import json

    cells = [
        pair[0]
        for line in text.splitlines()
        if line.startswith('data: {"window"')
        for pair in json.loads(line.removeprefix("data: "))["committed"]
    ]
    assert cells
    assert len(cells) == len(set(cells))
