"""Decode the test lists with one row's model and write what evaluation needs.

Contract: writes `<row>.safetensors/.json` (an `evaluate.outputs.SystemOutputs`): the ranking by the
row's read-out (the order of the strengths, or the written permutation after the repair policy), raw
validity with failure kinds, strengths, contradictions, lengths, forwards, and how many citations
are right. By default only lists that hold their target are decoded: on all users a miss counts 0
whatever a re-ranker says, so their metrics are exact all the same. `decode_requests` is what other
stages decode with. Not here: metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.config import Answering
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.errors import DataError
from diffgr2.evaluate.coherence import Shown as Told
from diffgr2.evaluate.coherence import contradictions
from diffgr2.evaluate.outputs import SystemOutputs, save_outputs, stacked
from diffgr2.model.backend import Backend
from diffgr2.model.backends import open_backend
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.pipeline import StageContext
from diffgr2.prompts.account import account
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.request import Request
from diffgr2.prompts.said import Reading
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.rows import RowSpec
from diffgr2.train.dist import share, world
from diffgr2.train.shares import decode_in_shares
from diffgr2.types import FAILURES, CandidateLists, Trajectory

DESCRIBED = ("decoder", "threshold", "rule", "accept")  # of the settings, in the results


@dataclass(frozen=True)
class Model:
    """A stage's model, ready to decode."""

    backend: Backend
    contract: BlockContract | None

    @classmethod
    def open(cls, directory: Path) -> Model:
        return cls(open_backend(directory), contract_of(directory))


@dataclass(frozen=True)
class Decoded:
    """Requests, what a model wrote for them, and what that says; in one order."""

    requests: list[Request]
    prompts: list[DecodeRequest]
    settings: DecodeSettings
    answer: Answering
    trajectories: list[Trajectory]
    readings: list[Reading]
    seconds: float  # of one process; several have shared them


def test_rows(corpus: Corpus, users: str, limit: int) -> np.ndarray:
    """Which test lists are decoded: hits first, then (for `all`) the others; where no list is a
    hit one list all the same, so that a row without anything to measure still stands."""
    hit_L = corpus.judged("test").hit_L >= 0
    numbers = np.flatnonzero(hit_L)
    if users == "all":
        numbers = np.concatenate([numbers, np.flatnonzero(~hit_L)])
    if not len(hit_L):
        raise DataError("there are no test lists")
    if not len(numbers):
        numbers = np.zeros(1, np.int64)
    return np.sort(numbers[:limit] if limit else numbers)


def prompts_for(
    corpus: Corpus, requests: Sequence[Request], answer: Answering, *, reasoning: bool = True
) -> list[DecodeRequest]:
    """What is decoded for these requests."""
    template, how = corpus.template, {"reasoning": reasoning}
    return [
        DecodeRequest(template.prompt(r, **how), template.grammar(r, answer=answer, **how))
        for r in requests
    ]


def decode_requests(
    corpus: Corpus,
    model: Model,
    requests: Sequence[Request],
    how: str,
    *,
    batch: int,
    reasoning: bool = True,
    answer: Answering = "said",
    on_done: Callable[[int], None] | None = None,
    together: bool = False,
    **given: Any,
) -> Decoded:
    """Decode these requests; `how` and `given` are those of `decode.settings.settings_of`.

    `together`: all processes call it, and each decodes its share.
    """
    start = time.perf_counter()
    template = corpus.template
    answer = answer if answer in template.answers else template.answers[-1]
    settings = corpus.settings(model.contract, how, **given)
    prompts = prompts_for(corpus, requests, answer, reasoning=reasoning)
    told = (model.backend, prompts, settings)
    work: dict[str, Any] = {"batch": batch, "on_done": on_done}
    before = time.perf_counter()
    if together:
        texts, seconds = decode_in_shares(*told, **work)
    else:
        texts = decode(*told, **work)
        seconds = time.perf_counter() - before
    after = time.perf_counter()
    readings = [
        template.read(text.tokens_T.tolist(), request, text.level_T)
        for text, request in zip(texts, requests, strict=True)
    ]
    seconds += before - start + time.perf_counter() - after
    return Decoded(list(requests), prompts, settings, answer, texts, readings, seconds)


def told_of(
    corpus: Corpus,
    row: int,
    decoded: Decoded,
    n: int,
    order_K: np.ndarray,
    *,
    markdown: bool = False,
) -> Told:
    """The n-th output of a decoding, on a test list, as people read it."""
    catalogue, lists, template = corpus.dataset.catalogue, corpus.judged("test"), corpus.template
    reading, request = decoded.readings[n], decoded.requests[n]
    order, items = order_K[order_K >= 0].tolist(), lists.items_LK[row, : request.k].tolist()
    history = corpus.dataset.histories.of(int(lists.user_L[row]), int(lists.end_L[row]))
    history = history[-len(request.history_HL) :] if len(request.history_HL) else history[:0]
    names = [catalogue.titles[item] for item in items]
    kinds = [corpus.kinds[item] for item in history.tolist()]
    newest = [catalogue.titles[item] for item in history.tolist()]
    tokens = decoded.trajectories[n].tokens_T.tolist()
    if isinstance(template, Compact):
        spoken = (template.words, template.phrases, request, reading, order)
        whose = (template.vocab.spec.strengths, names, kinds, newest)
        text = account(*spoken, *whose, markdown=markdown)
    else:
        text = template.english(tokens, request, names)
    return Told(request, reading, order, text, tokens, names, kinds, newest)


def text_digest(tokens_T: np.ndarray) -> int:
    """The first 8 bytes of the tokens' sha256."""
    digest = hashlib.sha256(tokens_T.astype("<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def orders_of(decoded: Decoded, policy: str) -> list[np.ndarray]:
    """The ranking of each output; what was not judged comes last, in floor order."""
    repair = POLICIES[policy]
    return [
        reading.said_order()
        if decoded.answer == "said"
        else repair(reading.answer("written").order, request.k)
        for reading, request in zip(decoded.readings, decoded.requests, strict=True)
    ]


def selection_lists(corpus: Corpus, limit: int) -> tuple[CandidateLists, list[Request]]:
    """The first validation lists of selection users that hold their target, and their requests:
    what may choose between settings, as test lists may not."""
    rows = np.array([row for split, row in corpus.selection if split == "validation"], np.int64)
    rows = rows[:limit] if limit else rows
    requests = [corpus.request("validation", int(row)) for row in rows]
    return corpus.judged("validation").take(rows), requests


def outputs_of(
    corpus: Corpus,
    name: str,
    lists: np.ndarray,
    decoded: Decoded,
    policy: str,
    n_lists: int | None = None,
) -> SystemOutputs:
    """Read, repair and count; `lists` are those that were decoded, of `n_lists` (None: the test
    lists)."""
    template, k = corpus.template, corpus.judged("test").k
    texts = [t.tokens_T.tolist() for t in decoded.trajectories]
    pairs = list(zip(texts, decoded.requests, strict=True))
    answers = [reading.answer(decoded.answer) for reading in decoded.readings]
    orders = orders_of(decoded, policy)
    cited_L2 = np.array([template.citations(*pair) for pair in pairs], dtype=np.int32)
    said = decoded.answer == "said"
    return SystemOutputs(
        name=name,
        order_LK=stacked(orders, k, -1).astype(np.int16),
        n_lists=len(corpus.lists["test"]) if n_lists is None else n_lists,
        rows_L=lists.astype(np.int32),
        raw_valid_L=np.array([answer.valid for answer in answers]),
        failures_LX=np.array([[kind in a.failures for kind in FAILURES] for a in answers]),
        n_tokens_L=np.array([len(text) for text in texts], dtype=np.int32),
        reasoning_tokens_L=np.array([template.answer_start(t) for t in texts], dtype=np.int32),
        nfe_L=np.array([t.nfe for t in decoded.trajectories], dtype=np.int32),
        cited_right_L=cited_L2[:, 0],
        cited_total_L=cited_L2[:, 1],
        text_L=np.array([text_digest(t.tokens_T) for t in decoded.trajectories]),
        levels_LK=stacked([r.levels_K for r in decoded.readings], k, np.nan).astype(np.float32)
        if said
        else None,
        meta={key: getattr(decoded.settings, key) for key in DESCRIBED}
        | {"answer": decoded.answer},
    )


def with_contradictions(corpus: Corpus, outputs: SystemOutputs, decoded: Decoded) -> SystemOutputs:
    """The same outputs, each with the number of contradictions found in it."""
    pairs = enumerate(zip(outputs.rows.tolist(), outputs.order_LK, strict=True))
    found = [
        len(contradictions(corpus.template, told_of(corpus, row, decoded, n, order_K)))
        for n, (row, order_K) in pairs
    ]
    return replace(outputs, contradictions_L=np.array(found, dtype=np.int32))


def run_row(ctx: StageContext, spec: RowSpec) -> dict[str, Any]:
    config, corpus = ctx.recipe.evaluate, open_corpus(ctx.inputs, ctx.recipe)
    lists = test_rows(corpus, config.users, config.max_users)
    model = Model.open(ctx.inputs[spec.model])
    requests = [corpus.request("test", int(row)) for row in lists]
    with ctx.progress.task(ctx.name, len(share(len(lists)))) as bar:
        work: dict[str, Any] = {"batch": config.batch, "on_done": lambda _: bar.advance()}
        how: dict[str, Any] = {"reasoning": spec.reasoning, "answer": spec.answer}
        decoded = decode_requests(corpus, model, requests, spec.how, together=True, **how, **work)
    if not world().first:
        return {}  # the first process reads, counts and writes
    policy = spec.policy(ctx.recipe.decode.repair)
    outputs = outputs_of(corpus, spec.name, lists, decoded, policy)
    outputs = with_contradictions(corpus, outputs, decoded)
    save_outputs(ctx.out, outputs)
    assert outputs.raw_valid_L is not None
    assert outputs.contradictions_L is not None
    first_L = outputs.order_LK[:, 0] == corpus.judged("test").hit_L[lists]
    texts = decoded.trajectories
    return {
        "lists": len(lists),
        "raw_valid": round(float(outputs.raw_valid_L.mean()), 4),
        "coherent": round(float((outputs.contradictions_L == 0).mean()), 4),
        "r@1": round(float(first_L.mean()), 4),
        "tokens_per_forward": round(float(np.mean([t.tpf for t in texts])), 3),
        "forwards": round(float(np.mean([t.nfe for t in texts])), 3),
    }
