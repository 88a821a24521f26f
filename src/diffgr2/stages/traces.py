"""The traces stage: what the teacher says about the training and validation lists.

Contract: writes `<split>.safetensors` (a `Traces` each), `scale.safetensors` (which scores the
levels stand for) and, with the llm teacher, `<split>.jsonl` (row, order and explanation of each
trace). What was paid for is kept in `journals/traces.sqlite` of the run, outside the stage's
directory, so no restart or changed setting pays for an answer twice. Neither the test split nor
selection users get traces. Not here: how a decision is made (`traces.decide`, `traces.llm`).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays
from diffgr2.candidates.index import read_fields
from diffgr2.candidates.lists import load_lists, selected_lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.candidates.trees import FILE, Trees
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.errors import ConfigError, DataError
from diffgr2.items.sids import SemanticIds
from diffgr2.pipeline import StageContext
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.english import Phrases, wording
from diffgr2.prompts.request import NONE, item_text, request_at
from diffgr2.stages.corpus import KNOWN
from diffgr2.streams import permutation
from diffgr2.traces.decide import Scale, Traces, counting, decide
from diffgr2.traces.llm import TracePrompt, TraceReport, generate
from diffgr2.traces.words import from_orders, write_explanations
from diffgr2.types import MISS, CandidateLists

TOGETHER = 2_000
"""Lists whose citations are worked out at once."""


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, evidence = ctx.recipe, ctx.inputs["evidence"]
    config, k = recipe.traces, recipe.candidates.k
    fields = read_fields(evidence)
    phrases = Phrases(wording(recipe.prompt.template), fields, recipe.evidence.buckets)
    dataset = read_dataset(ctx.inputs["data"])
    scores, lists, buckets, able = {}, {}, {}, {}
    for split in KNOWN:
        lists[split] = load_lists(ctx.inputs["candidates"], split, k)
        able[split] = np.flatnonzero(~selected_lists(lists[split], dataset.histories.n_users))
        scores[split] = scores_of(ctx, split)
        buckets[split] = load_arrays(evidence / f"{split}.safetensors")["buckets_LKF"]
    known = np.concatenate([scores[split][able[split]].ravel() for split in KNOWN])
    scale = Scale.of(known, recipe.prompt.strengths)
    scale.save(ctx.out / "scale.safetensors")

    metrics: dict[str, Any] = {}
    asked, report = {split: len(able[split]) for split in KNOWN}, None
    if config.teacher == "llm":
        report, asked = ask(ctx, dataset, lists, buckets, able)
        metrics |= {f"llm/{name}": value for name, value in report.metrics.items()}
    for split in KNOWN:
        score_LK, hit_L = scores[split], lists[split].hit_L
        cites_LKC = cited(ctx, buckets[split], lists[split].owner_L, able[split], phrases, scale)
        if report is not None:
            mine = [a for a in report.accepted if a.id.startswith(f"{split}/")]
            rows = [int(a.id.removeprefix(f"{split}/")) for a in mine]
            orders = [a.answer.order for a in mine]
            traces = from_orders(rows, orders, scale.levels(score_LK), cites_LKC, k)
            words = [a.answer.reasoning for a in mine]
            write_explanations(ctx.out / f"{split}.jsonl", traces, words)
        else:
            given = (able[split], score_LK, cites_LKC, hit_L, scale, config)
            traces = decide(*given, k=k, seed=recipe.seed)
        traces.save(ctx.out / f"{split}.safetensors")
        metrics |= figures(split, traces, lists[split], asked[split], recipe.prompt.cites)
    return metrics


def scores_of(ctx: StageContext, split: str) -> np.ndarray:
    """What the tutor thinks of a split's candidates."""
    if "tutor" in ctx.inputs:
        path = ctx.inputs["tutor"] / f"scores_trees_{split}.safetensors"
    else:
        kind = ctx.recipe.evidence.scorer
        path = ctx.inputs["evidence"] / f"scores_{kind}_{split}.safetensors"
    return load_arrays(path)["score_LK"]


def cited(
    ctx: StageContext,
    buckets_LKF: np.ndarray,
    owner_L: np.ndarray,
    able: np.ndarray,
    phrases: Phrases,
    scale: Scale,
) -> np.ndarray:
    """The fields that moved the tutor, int8 (L, K, F); of lists that do not teach, none.

    A scorer other than the scorecard cannot say what moved it, and has the scorecard speak for it.
    """
    if "tutor" in ctx.inputs:
        trees = Trees.load(ctx.inputs["tutor"] / FILE)
        moved = trees.contributions
    else:
        scorecard = LinearScorer.load(ctx.inputs["evidence"] / "linear.safetensors")
        moved = lambda buckets_LKF, _: scorecard.contributions(buckets_LKF)  # noqa: E731
    cites_LKC = np.full(buckets_LKF.shape, NONE, np.int8)
    with ctx.progress.task(ctx.name, len(able)) as bar:
        for start in range(0, len(able), TOGETHER):
            rows = able[start : start + TOGETHER]
            own_LKF = buckets_LKF[rows]
            moved_LKF = moved(own_LKF, owner_L[rows])
            cites_LKC[rows] = counting(moved_LKF, phrases.sides(own_LKF), scale)
            bar.advance(len(rows))
    return cites_LKC


def figures(
    split: str, traces: Traces, lists: CandidateLists, asked: int, cites: int
) -> dict[str, Any]:
    """How many lists the teacher was given, how many traces came of it, what they are like."""
    hit_N = lists.hit_L[traces.row_N]
    first_N = np.nanargmax(traces.level_NK[:, : lists.k], 1) if len(traces) else hit_N
    right_N = (first_N == hit_N)[hit_N != MISS]
    cited_NK = (traces.cites_NKC[..., :cites] != NONE).sum(-1)[~np.isnan(traces.level_NK)]
    return {
        f"{split}/lists": asked,
        f"{split}/traces": len(traces),
        f"{split}/accepted": round(len(traces) / max(asked, 1), 4),
        f"{split}/target_first": round(float(right_N.mean()), 4) if len(right_N) else 0.0,
        f"{split}/cited": round(float(cited_NK.mean()), 4) if len(cited_NK) else 0.0,
    }


def chosen(
    ctx: StageContext, lists: Mapping[str, CandidateLists], able: Mapping[str, np.ndarray]
) -> list[tuple[str, int]]:
    """The lists that are put to the endpoint: all that the mode can use, or a random share."""
    config = ctx.recipe.traces
    usable = [
        (split, int(row))
        for split in KNOWN
        for row in able[split]
        if config.mode == "plain" or lists[split].hit_L[row] != MISS
    ]
    if config.max_lists and config.max_lists < len(usable):
        picks = permutation(len(usable), ctx.seed, "traces", "lists")[: config.max_lists]
        usable = [usable[i] for i in np.sort(picks)]
    return usable


def ask(
    ctx: StageContext,
    dataset: Dataset,
    lists: Mapping[str, CandidateLists],
    buckets: Mapping[str, np.ndarray],
    able: Mapping[str, np.ndarray],
) -> tuple[TraceReport, dict[str, int]]:
    """The endpoint's accepted answers, and how many lists of each split were asked about."""
    recipe, k = ctx.recipe, ctx.recipe.candidates.k
    if recipe.prompt.strengths < k:
        raise ConfigError(
            f"prompt.strengths: {recipe.prompt.strengths} levels cannot tell candidates.k "
            f"({k}) apart, which traces.teacher llm needs"
        )
    shown, codes_IL = recipe.prompt.history, SemanticIds.load(ctx.inputs["items"]).codes_IL
    # The teacher always reads the chat with texts, whatever the student's template shows.
    chat = Chat(read_fields(ctx.inputs["evidence"]), recipe.evidence.buckets)
    mode, config, prompts = recipe.traces.mode, recipe.traces.llm, []
    for split, row in chosen(ctx, lists, able):
        own, buckets_KF = lists[split], buckets[split][row, :k]
        request = request_at(own, row, dataset, codes_IL, buckets_KF, shown, texts=item_text)
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
