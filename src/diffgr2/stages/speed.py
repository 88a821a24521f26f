"""Speed, measured once for all decoders in one run: ratios are what counts (DESIGN §7).

Contract: writes `speed.json` with, per row and batch size, tokens per second as the median over
rounds in which the decoders take turns (a noisy machine hits them alike), `generate` of
transformers on the same weights as a second baseline, the quality-speed frontier over τ for both
rules, and throughput against output length. Timings differ from run to run, so this stage's file
is no part of any bit-identity promise. Not here: plots and tables (`report`).
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import write_json
from diffgr2.decode.engine import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.evaluate.metrics import METRICS, ranks_of, values_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.pipeline import StageContext
from diffgr2.prompts.answers import POLICIES
from diffgr2.stages.common import open_model
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.rows import settings_of
from diffgr2.stages.score import requests_for, test_rows

BATCHES = (1, 32)
NEVER = 2**31  # an end id that no token has: output runs to the limit


def timed(
    lean: LeanQwen3, requests: list[DecodeRequest], settings: DecodeSettings, batch: int
) -> tuple[float, int, int]:
    """(seconds, output tokens, forwards) of decoding these requests."""
    start = time.perf_counter()
    trajectories = decode(lean, requests, settings, batch=batch)
    seconds = time.perf_counter() - start
    return seconds, sum(len(t.tokens_T) for t in trajectories), sum(t.nfe for t in trajectories)


@torch.inference_mode()
def timed_generate(
    model: Any, requests: list[DecodeRequest], max_tokens: int, end: int, pad: int
) -> tuple[float, int, int]:
    """The same with transformers' own `generate`, one request at a time."""
    start, tokens = time.perf_counter(), 0
    for request in requests:
        ids = torch.tensor([request.prompt], device=model.device)
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=pad,
        )
        tokens += out.shape[1] - ids.shape[1]
    return time.perf_counter() - start, tokens, tokens


def decoder_speeds(
    corpus: Corpus,
    ctx: StageContext,
    requests: list[DecodeRequest],
    models: dict[str, Any],
) -> list[dict[str, Any]]:
    """Tokens per second of every decoder at every batch size, decoders taking turns."""
    config = corpus.recipe.evaluate
    lean = {name: LeanQwen3(model) for name, model in models.items()}
    final, teacher = ctx.inputs["block_rl"], ctx.inputs["rl"]
    plans = {
        "ar": ("rl", settings_of(corpus, teacher, "ar")),
        "block": ("block_rl", settings_of(corpus, final, "recommended")),
        "block_raw": ("block_rl", settings_of(corpus, final, "raw")),
        "verify": ("block_rl", settings_of(corpus, final, "verify")),
    }
    results: list[dict[str, Any]] = []
    for batch in BATCHES:
        work = requests if batch == 1 else (requests * batch)[: max(batch, len(requests))]
        samples: dict[str, list[tuple[float, int, int]]] = {name: [] for name in plans}
        if batch == 1:
            samples["generate"] = []
        for round_ in range(config.rounds + 1):  # the first round warms up
            for name, (model, settings) in plans.items():
                sample = timed(lean[model], work, settings, batch)
                samples[name] += [sample] if round_ else []
            if batch == 1 and round_:
                limit, vocab = plans["ar"][1].max_tokens, corpus.vocab
                samples["generate"].append(
                    timed_generate(models["rl"], work[:6], limit, vocab.end_id, vocab.pad_id)
                )
        for name, rounds in samples.items():
            rates = sorted(tokens / seconds for seconds, tokens, _ in rounds)
            results.append(
                {
                    "decoder": name,
                    "batch": batch,
                    "tokens_per_s": float(np.median(rates)),
                    "low": rates[0],
                    "high": rates[-1],
                    "tpf": sum(r[1] for r in rounds) / sum(r[2] for r in rounds),
                    "outputs": len(work),
                }
            )
    for entry in results:
        base = next(r for r in results if r["decoder"] == "ar" and r["batch"] == entry["batch"])
        entry["speedup"] = entry["tokens_per_s"] / base["tokens_per_s"]
    return results


def frontier(corpus: Corpus, ctx: StageContext, model: Any) -> list[dict[str, Any]]:
    """Quality, validity and tokens per forward over τ, for both rules."""
    rows = test_rows(corpus, "hit", corpus.recipe.evaluate.frontier_lists)
    requests, shown = requests_for(corpus, rows, reasoning=True)
    hit_L = corpus.lists["test"].hit_L[rows]
    repair, lean = POLICIES[corpus.recipe.decode.repair], LeanQwen3(model)
    points = []
    for rule in ("raw", "permutation"):
        for tau in corpus.recipe.evaluate.thresholds:
            settings = settings_of(
                corpus,
                ctx.inputs["block_rl"],
                "recommended",
                accept="threshold",
                threshold=tau,
                rule=rule,
            )
            seconds, _, _ = timed(lean, requests[:8], settings, 1)
            tokens_8 = 0
            trajectories = decode(lean, requests, settings, batch=corpus.recipe.evaluate.batch)
            tokens_8 = sum(len(t.tokens_T) for t in trajectories[:8])
            answers = [
                corpus.template.parse(t.tokens_T.tolist(), r)
                for t, r in zip(trajectories, shown, strict=True)
            ]
            cited = [
                corpus.template.citations(t.tokens_T.tolist(), r)
                for t, r in zip(trajectories, shown, strict=True)
            ]
            order_LK = np.array([repair(a.order, r.k) for a, r in zip(answers, shown, strict=True)])
            values_LM = values_of(ranks_of(order_LK, hit_L), corpus.lists["test"].k)
            points.append(
                {
                    "rule": rule,
                    "tau": tau,
                    "n": len(rows),
                    "r@1": float(values_LM[:, METRICS.index("r@1")].mean()),
                    "ndcg@3": float(values_LM[:, METRICS.index("ndcg@3")].mean()),
                    "valid": float(np.mean([a.valid for a in answers])),
                    "evidence_true": sum(c[0] for c in cited) / max(sum(c[1] for c in cited), 1),
                    "tpf": float(
                        sum(len(t.tokens_T) for t in trajectories)
                        / sum(t.nfe for t in trajectories)
                    ),
                    "tokens_per_s": tokens_8 / seconds,
                }
            )
    return points


def lengths(
    corpus: Corpus, ctx: StageContext, requests: list[DecodeRequest], model: Any, tpf: float
) -> list[dict[str, Any]]:
    """Throughput at forced output lengths: the end token is switched off.

    Past its natural end the text means nothing, so `block` commits a fixed number of tokens per
    step, the rate it reaches on real outputs; `verify` shows its own agreement.
    """
    lean, points = LeanQwen3(model), []
    final = ctx.inputs["block_rl"]
    room = lean.max_positions - max(len(r.prompt) for r in requests) - 128
    for length in [n for n in corpus.recipe.evaluate.lengths if n <= room]:
        shared: dict[str, Any] = {"max_tokens": length, "end_id": NEVER}
        plans = {
            "ar": settings_of(corpus, final, "ar", **shared),
            "block": settings_of(
                corpus,
                final,
                "recommended",
                accept="static",
                rule="raw",
                per_step=max(round(tpf), 1),
                **shared,
            ),
            "verify": settings_of(corpus, final, "verify", **shared),
        }
        for name, settings in plans.items():
            samples = [timed(lean, requests[:2], settings, 1) for _ in range(2)]
            seconds, tokens, _ = min(samples)
            points.append({"decoder": name, "length": length, "tokens_per_s": tokens / seconds})
    return points


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    rows = test_rows(corpus, "hit", ctx.recipe.evaluate.speed_lists)
    requests, _ = requests_for(corpus, rows, reasoning=True)
    models = {name: open_model(ctx.inputs[name]) for name in ("rl", "block_rl")}
    ctx.progress.line(f"{ctx.name}: decoders take turns on {len(requests)} lists")
    speeds = decoder_speeds(corpus, ctx, requests, models)
    ctx.progress.line(f"{ctx.name}: frontier over τ")
    points = frontier(corpus, ctx, models["block_rl"])
    ctx.progress.line(f"{ctx.name}: throughput against length")
    tpf = next(s["tpf"] for s in speeds if s["decoder"] == "block" and s["batch"] == 1)
    by_length = lengths(corpus, ctx, requests, models["block_rl"], tpf)
    write_json(
        ctx.out / "speed.json", {"decoders": speeds, "frontier": points, "lengths": by_length}
    )
    return {
        f"{s['decoder']}@{s['batch']}": {
            "tokens_per_s": round(s["tokens_per_s"], 1),
            "speedup": round(s["speedup"], 2),
            "tpf": round(s["tpf"], 2),
        }
        for s in speeds
    }
