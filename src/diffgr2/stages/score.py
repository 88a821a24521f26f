"""Decode the test lists with one row's model and write what evaluation needs.

Contract: writes `<row>.safetensors/.json` (an `evaluate.outputs.SystemOutputs`): the permutation
after the repair policy, raw validity with failure kinds, lengths, forwards, and how many citations
are right. By default only lists that hold their target are decoded: on all users a miss counts 0
whatever a re-ranker says, so their metrics are exact all the same. Not here: metrics.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.errors import DataError
from diffgr2.evaluate.outputs import SystemOutputs, save_outputs
from diffgr2.model.contract import BlockContract, contract_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.answers import POLICIES
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.rows import RowSpec
from diffgr2.types import FAILURES, Trajectory

DESCRIBED = ("decoder", "threshold", "rule", "accept")  # of the settings, in the results


@dataclass(frozen=True)
class Model:
    """A stage's model, ready to decode."""

    lean: LeanQwen3
    contract: BlockContract | None

    @classmethod
    def open(cls, directory: Path) -> Model:
        return cls(LeanQwen3(open_model(directory)), contract_of(directory))


@dataclass(frozen=True)
class Decoded:
    """Test lists and what a model wrote for them."""

    lists: np.ndarray  # their numbers, ascending
    requests: list[Request]
    prompts: list[DecodeRequest]
    settings: DecodeSettings
    trajectories: list[Trajectory]


def test_rows(corpus: Corpus, users: str, limit: int) -> np.ndarray:
    """Which test lists are decoded: hits first, then (for `all`) the others."""
    hit_L = corpus.lists["test"].hit_L >= 0
    numbers = np.flatnonzero(hit_L)
    if users == "all":
        numbers = np.concatenate([numbers, np.flatnonzero(~hit_L)])
    if not len(numbers):
        raise DataError(f"no target is among its candidates in all {len(hit_L)} test lists")
    return np.sort(numbers[:limit] if limit else numbers)


def requests_for(
    corpus: Corpus, rows: np.ndarray, *, reasoning: bool
) -> tuple[list[DecodeRequest], list[Request]]:
    """Decode requests of these test lists, and the requests behind them."""
    template = corpus.template
    shown = [corpus.request("test", int(row)) for row in rows]
    return [
        DecodeRequest(template.prompt(request, reasoning=reasoning), template.grammar(request))
        for request in shown
    ], shown


def decode_lists(
    corpus: Corpus,
    model: Model,
    lists: np.ndarray,
    how: str,
    *,
    batch: int,
    reasoning: bool = True,
    on_done: Callable[[int], None] | None = None,
    **given: Any,
) -> Decoded:
    """Decode these test lists; `how` and `given` are those of `decode.settings.settings_of`."""
    settings = corpus.settings(model.contract, how, **given)
    prompts, requests = requests_for(corpus, lists, reasoning=reasoning)
    trajectories = decode(model.lean, prompts, settings, batch=batch, on_done=on_done)
    return Decoded(lists, requests, prompts, settings, trajectories)


def text_digest(tokens_T: np.ndarray) -> int:
    """The first 8 bytes of the tokens' sha256."""
    digest = hashlib.sha256(tokens_T.astype("<i8").tobytes()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def outputs_of(corpus: Corpus, name: str, decoded: Decoded) -> SystemOutputs:
    """Parse, repair and count."""
    template, repair = corpus.template, POLICIES[corpus.recipe.decode.repair]
    texts = [t.tokens_T.tolist() for t in decoded.trajectories]
    pairs = list(zip(texts, decoded.requests, strict=True))
    answers = [template.parse(*pair) for pair in pairs]
    k = corpus.lists["test"].k
    cited_L2 = np.array([template.citations(*pair) for pair in pairs], dtype=np.int32)
    return SystemOutputs(
        name=name,
        order_LK=np.array([repair(answer.order, k) for answer in answers], dtype=np.int16),
        n_lists=len(corpus.lists["test"]),
        rows_L=decoded.lists.astype(np.int32),
        raw_valid_L=np.array([answer.valid for answer in answers]),
        failures_LX=np.array([[kind in a.failures for kind in FAILURES] for a in answers]),
        n_tokens_L=np.array([len(text) for text in texts], dtype=np.int32),
        reasoning_tokens_L=np.array([template.answer_start(t) for t in texts], dtype=np.int32),
        nfe_L=np.array([t.nfe for t in decoded.trajectories], dtype=np.int32),
        cited_right_L=cited_L2[:, 0],
        cited_total_L=cited_L2[:, 1],
        text_L=np.array([text_digest(t.tokens_T) for t in decoded.trajectories]),
        meta={key: getattr(decoded.settings, key) for key in DESCRIBED},
    )


def run_row(ctx: StageContext, spec: RowSpec) -> dict[str, Any]:
    config, corpus = ctx.recipe.evaluate, open_corpus(ctx.inputs, ctx.recipe)
    lists = test_rows(corpus, config.users, config.max_users)
    model = Model.open(ctx.inputs[spec.model])
    with ctx.progress.task(ctx.name, len(lists)) as bar:
        work: dict[str, Any] = {"batch": config.batch, "on_done": lambda _: bar.advance()}
        decoded = decode_lists(corpus, model, lists, spec.how, reasoning=spec.reasoning, **work)
    outputs = outputs_of(corpus, spec.name, decoded)
    save_outputs(ctx.out, outputs)
    assert outputs.raw_valid_L is not None
    first_L = outputs.order_LK[:, 0] == corpus.lists["test"].hit_L[lists]
    return {
        "lists": len(lists),
        "raw_valid": round(float(outputs.raw_valid_L.mean()), 4),
        "r@1": round(float(first_L.mean()), 4),
        "tokens_per_forward": round(float(np.mean([t.tpf for t in decoded.trajectories])), 3),
    }
