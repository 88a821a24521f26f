"""The traces stage: what the teacher says about the training and validation lists.

Contract: writes `<split>.safetensors` (a `Traces` each), `edges.safetensors` and, with the llm
teacher, `<split>.jsonl` (row, order and explanation of each trace). What was paid for is kept in
`journals/traces.sqlite` of the run, outside the stage's directory, so no restart or changed setting
pays for an answer twice. The test split gets no traces. Not here: how a decision is made
(`traces.decide`, `traces.llm`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates.index import NAMES
from diffgr2.candidates.lists import load_lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.data.store import read_dataset
from diffgr2.errors import ConfigError, DataError
from diffgr2.items.sids import SemanticIds
from diffgr2.pipeline import StageContext
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.request import request_at
from diffgr2.stages.corpus import KNOWN
from diffgr2.streams import permutation
from diffgr2.traces.decide import Traces, decide, strength_edges
from diffgr2.traces.llm import TracePrompt, TraceReport, generate
from diffgr2.traces.words import from_orders, write_explanations
from diffgr2.types import CandidateLists


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, evidence = ctx.recipe, ctx.inputs["evidence"]
    config, cites = recipe.traces, recipe.prompt.cites
    scorecard = LinearScorer.load(evidence / "linear.safetensors")
    kind = recipe.evidence.scorer
    scores = {
        split: load_arrays(evidence / f"scores_{kind}_{split}.safetensors")["score_LK"]
        for split in KNOWN
    }
    edges_S = strength_edges(np.concatenate(list(scores.values())), recipe.prompt.strengths)
    save_arrays(ctx.out / "edges.safetensors", edges_S=edges_S)
    lists = {split: load_lists(ctx.inputs["candidates"], split) for split in KNOWN}
    buckets = {
        split: load_arrays(evidence / f"{split}.safetensors")["buckets_LKF"] for split in KNOWN
    }
    metrics: dict[str, Any] = {}
    asked, report = {split: len(lists[split]) for split in KNOWN}, None
    if config.teacher == "llm":
        report, asked = ask(ctx, lists, buckets)
        metrics |= {f"llm/{name}": value for name, value in report.metrics.items()}
    for split in KNOWN:
        score_LK, hit_L = scores[split], lists[split].hit_L
        said_LKF = scorecard.contributions(buckets[split])
        if report is not None:
            mine = [a for a in report.accepted if a.id.startswith(f"{split}/")]
            rows = [int(a.id.removeprefix(f"{split}/")) for a in mine]
            orders = [a.answer.order for a in mine]
            traces = from_orders(rows, orders, score_LK, said_LKF, edges_S, cites)
            words = [a.answer.reasoning for a in mine]
            write_explanations(ctx.out / f"{split}.jsonl", traces, words)
        else:
            traces = decide(
                score_LK, said_LKF, hit_L, edges_S, config, cites=cites, seed=recipe.seed
            )
        traces.save(ctx.out / f"{split}.safetensors")
        metrics |= figures(split, traces, hit_L, asked[split])
    return metrics


def figures(split: str, traces: Traces, hit_L: np.ndarray, asked: int) -> dict[str, Any]:
    """How many lists were put to the teacher, how many traces came of it, how right they are."""
    hits_N = hit_L[traces.row_N] != -1
    first_N = traces.order_NK[:, 0] == hit_L[traces.row_N]
    return {
        f"{split}/lists": asked,
        f"{split}/traces": len(traces),
        f"{split}/accepted": round(len(traces) / max(asked, 1), 4),
        f"{split}/target_first": round(float(first_N[hits_N].mean()), 4) if hits_N.any() else 0.0,
    }


def chosen(ctx: StageContext, lists: Mapping[str, CandidateLists]) -> list[tuple[str, int]]:
    """The lists that are put to the endpoint: all that the mode can use, or a random share."""
    config = ctx.recipe.traces
    able = [
        (split, row)
        for split in KNOWN
        for row in range(len(lists[split]))
        if config.mode == "plain" or lists[split].hit_L[row] >= 0
    ]
    if config.max_lists and config.max_lists < len(able):
        picks = permutation(len(able), ctx.seed, "traces", "lists")[: config.max_lists]
        able = [able[i] for i in np.sort(picks)]
    return able


def ask(
    ctx: StageContext, lists: Mapping[str, CandidateLists], buckets: Mapping[str, np.ndarray]
) -> tuple[TraceReport, dict[str, int]]:
    """The endpoint's accepted answers, and how many lists of each split were asked about."""
    recipe = ctx.recipe
    if recipe.prompt.strengths < recipe.candidates.k:
        raise ConfigError(
            f"prompt.strengths: {recipe.prompt.strengths} levels cannot tell candidates.k "
            f"({recipe.candidates.k}) apart, which traces.teacher llm needs"
        )
    dataset, shown = read_dataset(ctx.inputs["data"]), recipe.prompt.history
    codes_IL = SemanticIds.load(ctx.inputs["items"]).codes_IL
    # The teacher always reads the chat with texts, whatever the student's template shows.
    chat = Chat(NAMES, recipe.evidence.buckets)
    mode, config, prompts = recipe.traces.mode, recipe.traces.llm, []
    for split, row in chosen(ctx, lists):
        own, buckets_KF = lists[split], buckets[split][row]
        request = request_at(own, row, dataset, codes_IL, buckets_KF, shown, texts=True)
        target = None if mode == "plain" else int(own.hit_L[row])
        told = target if mode == "targeted" else None
        messages = chat.messages(request, target=told, knowledge=config.knowledge_priming)
        read = partial(chat.parse_text, request=request)
        prompts.append(TracePrompt(f"{split}/{row}", messages, read, target))
    if not prompts:
        raise DataError(f"traces.mode: no list that {mode} traces could use holds its target")
    journal = ctx.out.parent.parent / "journals" / "traces.sqlite"
    report = generate(prompts, config, journal, ctx.progress)
    if not report.accepted:
        raise DataError(
            f"traces.llm: none of {report.metrics['samples']} answers of {config.model} was "
            f"accepted ({', '.join(f'{n} {kind}' for kind, n in report.rejected.items())})"
        )
    return report, {s: sum(p.id.startswith(f"{s}/") for p in prompts) for s in KNOWN}
