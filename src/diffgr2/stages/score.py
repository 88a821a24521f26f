"""Decode the test lists with one row's model and write what evaluation needs (DESIGN §7).

Contract: writes `<row>.safetensors/.json` (an `evaluate.outputs.SystemOutputs`): the permutation
after the repair policy, raw validity with failure kinds, lengths, forwards, and how many citations
are right. By default only lists that hold their target are decoded: on all users a miss counts 0
whatever a re-ranker says, so their metrics are exact all the same. Not here: metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.evaluate.outputs import SystemOutputs, save_outputs
from diffgr2.model.contract import contract_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.answers import POLICIES
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.rows import ROWS, RowSpec
from diffgr2.types import FAILURES, Trajectory


def test_rows(corpus: Corpus, users: str, limit: int) -> np.ndarray:
    """Which test lists are decoded: hits first, then (for `all`) the others."""
    hit_L = corpus.lists["test"].hit_L >= 0
    rows = np.flatnonzero(hit_L)
    if users == "all":
        rows = np.concatenate([rows, np.flatnonzero(~hit_L)])
    return np.sort(rows[:limit] if limit else rows)


def requests_for(
    corpus: Corpus, rows: np.ndarray, *, reasoning: bool
) -> tuple[list[DecodeRequest], list[Any]]:
    """Decode requests and the requests behind them."""
    shown = [corpus.request("test", int(row)) for row in rows]
    return [
        DecodeRequest(
            corpus.template.prompt(request, reasoning=reasoning), corpus.template.grammar(request)
        )
        for request in shown
    ], shown


def text_digest(tokens_T: np.ndarray) -> int:
    """The first 8 bytes of the tokens' sha256."""
    digest = hashlib.sha256(np.ascontiguousarray(tokens_T, dtype="<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def outputs_of(
    corpus: Corpus,
    name: str,
    rows: np.ndarray,
    requests: list[Any],
    trajectories: list[Trajectory],
    settings: DecodeSettings,
) -> SystemOutputs:
    """Parse, repair and count."""
    template, repair = corpus.template, POLICIES[corpus.recipe.decode.repair]
    order, valid, failures, reasoning, cited = [], [], [], [], []
    for request, trajectory in zip(requests, trajectories, strict=True):
        tokens = trajectory.tokens_T.tolist()
        answer = template.parse(tokens, request)
        order.append(repair(answer.order, request.k))
        valid.append(answer.valid)
        failures.append([kind in answer.failures for kind in FAILURES])
        reasoning.append(template.answer_start(tokens))
        cited.append(template.citations(tokens, request))
    return SystemOutputs(
        name=name,
        order_LK=np.array(order, dtype=np.int16),
        n_lists=len(corpus.lists["test"]),
        rows_L=rows.astype(np.int64),
        raw_valid_L=np.array(valid),
        failures_LX=np.array(failures),
        n_tokens_L=np.array([len(t.tokens_T) for t in trajectories], dtype=np.int32),
        reasoning_tokens_L=np.array(reasoning, dtype=np.int32),
        nfe_L=np.array([t.nfe for t in trajectories], dtype=np.int32),
        cited_right_L=np.array([right for right, _ in cited], dtype=np.int32),
        cited_total_L=np.array([total for _, total in cited], dtype=np.int32),
        text_L=np.array([text_digest(t.tokens_T) for t in trajectories], dtype=np.int64),
        meta={
            "decoder": settings.decoder,
            "threshold": settings.threshold,
            "rule": settings.rule,
            "accept": settings.accept,
        },
    )


def run_row(ctx: StageContext, spec: RowSpec) -> dict[str, Any]:
    """Decode one row."""
    recipe = ctx.recipe
    corpus = open_corpus(ctx.inputs, recipe)
    directory = ctx.inputs[spec.model]
    settings = corpus.settings(contract_of(directory), spec.how)
    rows = test_rows(corpus, recipe.evaluate.users, recipe.evaluate.max_users)
    requests, shown = requests_for(corpus, rows, reasoning=spec.reasoning)
    lean = LeanQwen3(open_model(directory))
    with ctx.progress.task(ctx.name, len(requests)) as bar:
        trajectories = decode(
            lean,
            requests,
            settings,
            batch=recipe.evaluate.batch,
            on_done=lambda _: bar.advance(),
        )
    outputs = outputs_of(corpus, spec.name, rows, shown, trajectories, settings)
    save_outputs(ctx.out, outputs)
    assert outputs.raw_valid_L is not None
    first_L = outputs.order_LK[:, 0] == corpus.lists["test"].hit_L[rows]
    return {
        "lists": len(rows),
        "raw_valid": round(float(outputs.raw_valid_L.mean()), 4) if len(rows) else 0.0,
        "r@1": round(float(first_L.mean()), 4) if len(rows) else 0.0,
        "tokens_per_forward": round(float(np.mean([t.tpf for t in trajectories])), 3),
    }


def runner(spec: RowSpec) -> Callable[[StageContext], dict[str, Any]]:
    """The stage function of a row."""
    return lambda ctx: run_row(ctx, spec)


SPECS = {spec.name: spec for spec in ROWS}
