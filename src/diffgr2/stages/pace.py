"""Stage `pace`: every row of the results timed on the same lists, from the request to the ranking.

Writes `pace.json`: per row and batch size milliseconds per list (median, least and most of the
rounds) with all that a list takes once its evidence is there: prompt, prefill, decoding, reading,
ranking; and beside it what the prompt's forward takes by itself, which a decoder may share with
its first one. All rows take turns, so that a noisy machine hits them alike, on the engine that
serves (`model.backends`). The scorecard, the tutor and LambdaMART rank the same lists;
`evidence_ms` is what counting the evidence of a list takes, which every row needs. Times differ
from run to run, so this file is no part of any bit-identity promise. Not here: other decoders and
batch sizes (`speed`).
Run: `diffgr2 pace RECIPE`.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import write_json
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.candidates.trees import FILE, Trees
from diffgr2.decode.batch import make_writer
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.model.backend import Span
from diffgr2.model.backends import described
from diffgr2.pipeline import StageContext
from diffgr2.prompts.request import Request
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.counting import untimed_values
from diffgr2.stages.judge import LAMBDAMART, TREES, row_of
from diffgr2.stages.rows import RowSpec, rows_of_recipe
from diffgr2.stages.score import Model, decode_requests, orders_of, prompts_for, test_rows

BATCHES = (1, 32)

Work = Callable[[np.ndarray], int]
"""Ranks test lists, given by number, in one batch; returns the tokens that it wrote."""


def decoded_by(corpus: Corpus, model: Model, spec: RowSpec) -> Work:
    """A decoded row's way from requests to orders."""
    policy = spec.policy(corpus.recipe.decode.repair)

    def work(rows: np.ndarray) -> int:
        requests = [corpus.request("test", int(row)) for row in rows]
        how: dict[str, Any] = {"reasoning": spec.reasoning, "answer": spec.answer}
        decoded = decode_requests(corpus, model, requests, spec.how, batch=len(rows), **how)
        orders_of(decoded, policy)
        return sum(len(text.tokens_T) for text in decoded.trajectories)

    return work


def prefilled_by(corpus: Corpus, model: Model, spec: RowSpec) -> Work:
    """The same row's prompts, made and read by the model, and no more."""
    settings = corpus.settings(model.contract, spec.how)

    def work(rows: np.ndarray) -> int:
        requests: list[Request] = [corpus.request("test", int(row)) for row in rows]
        asked = prompts_for(corpus, requests, corpus.template.answers[-1], reasoning=spec.reasoning)
        writers = [make_writer(key, request, settings) for key, request in enumerate(asked)]
        spans = []
        for writer in writers:
            ids, hi = writer.prompt[: writer.prefill], writer.prefill_hi()[: writer.prefill]
            spans.append(Span(ids, 0, hi, max(len(ids) - 1, 0)))
        session = model.backend.session(settings.mask_id)
        session.add(spans, max(writer.slots for writer in writers))
        return 0

    return work


def scored_by(corpus: Corpus, inputs: Mapping[str, Path]) -> dict[str, Work]:
    """Rivals that are kept: the scorecard, and the tutor and LambdaMART where they stand."""
    recipe, lists = corpus.recipe, corpus.judged("test")
    card = LinearScorer.load(inputs["evidence"] / "linear.safetensors")
    buckets_LKF = corpus.buckets["test"][:, : lists.k]

    def ranked(score_LK: np.ndarray, rows: np.ndarray) -> int:
        order_from_scores(score_LK, "scores", lists.length_L[rows])
        return 0

    work: dict[str, Work] = {
        row_of("linear", recipe.evidence.scorer): lambda rows: ranked(
            card.score(buckets_LKF[rows], lists.there_LK[rows]), rows
        )
    }
    if "tutor" in inputs:
        tutor = Trees.load(inputs["tutor"] / FILE)
        work[row_of(TREES, recipe.evidence.scorer)] = lambda rows: ranked(
            tutor.score(buckets_LKF[rows], lists.owner_L[rows], lists.there_LK[rows]), rows
        )
    path = inputs["rival"] / "trees.txt"
    if path.is_file() and find_spec("lightgbm") and not recipe.lists.file:
        import lightgbm

        booster = lightgbm.Booster(model_file=str(path))
        raw_LKF = raw_of(corpus, inputs, test_rows(corpus, "hit", recipe.evaluate.speed_lists))
        few = len(raw_LKF)

        def by_trees(rows: np.ndarray) -> int:
            values_XF = np.concatenate([raw_LKF[row % few] for row in rows])
            threads = recipe.threads or None
            score_X = np.asarray(booster.predict(values_XF, num_threads=threads))
            return ranked(score_X.reshape(len(rows), -1), rows)

        work[LAMBDAMART] = by_trees
    return work


def raw_of(corpus: Corpus, inputs: Mapping[str, Path], rows: np.ndarray) -> np.ndarray:
    """The raw evidence of these test lists, as it is counted for them."""
    index, lists = EvidenceIndex.load(inputs["evidence"]), corpus.judged("test").take(rows)
    return untimed_values(index, corpus.dataset, lists, None)


def evidence_ms(corpus: Corpus, inputs: Mapping[str, Path], rows: np.ndarray) -> float:
    """What counting and bucketing the evidence of a list takes, one by one."""
    index, lists = EvidenceIndex.load(inputs["evidence"]), corpus.judged("test")
    spent = []
    for row in rows:
        one = lists.take(np.array([row]))
        start = time.perf_counter()
        index.buckets(untimed_values(index, corpus.dataset, one, None))
        spent.append(time.perf_counter() - start)
    return 1e3 * float(np.median(spent))


def timed(work: Work, rows: np.ndarray, batch: int) -> tuple[float, int]:
    """(seconds, tokens) for all these lists in groups of `batch`."""
    start, tokens = time.perf_counter(), 0
    for part in np.split(rows, range(batch, len(rows), batch)):
        tokens += work(part)
    return time.perf_counter() - start, tokens


def take_turns(
    works: Mapping[str, Work],
    prefills: Mapping[str, Work],
    rows: np.ndarray,
    batch: int,
    rounds: int,
) -> list[dict[str, Any]]:
    """One entry per row; the first round only warms up."""
    spent: dict[str, list[float]] = {name: [] for name in works}
    prefill: dict[str, list[float]] = {name: [] for name in prefills}
    tokens: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds, tokens[name] = timed(work, rows, batch)
            before = timed(prefills[name], rows, batch)[0] if name in prefills else 0.0
            if number:
                spent[name].append(seconds)
                if name in prefills:
                    prefill[name].append(before)
    entries = []
    for name, seconds in spent.items():
        each = [1e3 * value / len(rows) for value in sorted(seconds)]
        entry: dict[str, Any] = {"row": name, "batch": batch, "lists": len(rows)}
        entry |= {"ms_per_list": float(np.median(each)), "low_ms": each[0], "high_ms": each[-1]}
        if name in prefill:
            entry["prefill_ms"] = 1e3 * float(np.median(prefill[name])) / len(rows)
            entry["tokens_per_s"] = tokens[name] / float(np.median(seconds))
        entries.append(entry)
    return entries


def plans(
    corpus: Corpus, inputs: Mapping[str, Path], rows: Sequence[RowSpec]
) -> tuple[dict[str, Work], dict[str, Work]]:
    """Every row's work, and what of it is the prompt's; a model is opened once."""
    models = {name: Model.open(inputs[name]) for name in {spec.model for spec in rows}}
    works = scored_by(corpus, inputs)
    works |= {spec.name: decoded_by(corpus, models[spec.model], spec) for spec in rows}
    prefills = {spec.name: prefilled_by(corpus, models[spec.model], spec) for spec in rows}
    return works, prefills


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, config = open_corpus(ctx.inputs, ctx.recipe), ctx.recipe.evaluate
    few = test_rows(corpus, "hit", config.speed_lists)
    works, prefills = plans(corpus, ctx.inputs, rows_of_recipe(ctx.recipe))
    entries = []
    for batch in BATCHES:
        rows = np.resize(few, max(batch, len(few) // batch * batch))
        ctx.progress.line(f"{ctx.name}: {len(works)} rows take turns on {len(rows)} lists")
        entries += take_turns(works, prefills, rows, batch, config.rounds)
    found: dict[str, Any] = {"engine": described(), "rows": entries}
    if not ctx.recipe.lists.file:
        found["evidence_ms"] = evidence_ms(corpus, ctx.inputs, few)
    write_json(ctx.out / "pace.json", found)
    first = [entry for entry in entries if entry["batch"] == 1]
    return {entry["row"]: round(entry["ms_per_list"], 2) for entry in first}
