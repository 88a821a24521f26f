"""Speed, measured once for all decoders in one run: ratios are what counts (DESIGN §7).

Contract: writes `speed.json` with, per row and batch size, decoded tokens per second (the prompt's
prefill apart, since all decoders share it; end-to-end latency beside it) as the median over rounds
in which the decoders take turns (a noisy machine hits them alike), `generate` of transformers on
the same weights as a second baseline, the quality-speed frontier over τ for both
rules, and throughput against output length. Timings differ from run to run, so this stage's file
is no part of any bit-identity promise. Not here: plots and tables (`report`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import write_json
from diffgr2.decode.batch import Batch, DecodeRequest, decode, make_writer
from diffgr2.decode.settings import DecodeSettings
from diffgr2.evaluate.metrics import METRICS, ranks_of, values_of
from diffgr2.model.contract import contract_of
from diffgr2.model.forward import LeanQwen3
from diffgr2.model.load import open_model
from diffgr2.pipeline import StageContext
from diffgr2.prompts.answers import POLICIES
from diffgr2.stages.batches import chunks
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.score import requests_for, test_rows

BATCHES = (1, 32)
GENERATE_LISTS = 6  # the slow baseline is timed on fewer lists
NEVER = 2**31  # an end id that no token has: output runs to the limit


@dataclass(frozen=True)
class Timing:
    """What decoding some requests took; `decode_s` excludes the prompts' prefill."""

    decode_s: float
    prefill_s: float
    tokens: int
    forwards: int

    @property
    def total_s(self) -> float:
        return self.decode_s + self.prefill_s


def timed(
    lean: LeanQwen3, requests: list[DecodeRequest], settings: DecodeSettings, batch: int
) -> Timing:
    """Decode groups of `batch` requests; the prompts' prefill is timed apart."""
    prefill_s = decode_s = 0.0
    tokens = forwards = 0
    for part in chunks(requests, batch):
        running = Batch(lean)
        rows = [make_writer(i, request, settings) for i, request in enumerate(part)]
        start = time.perf_counter()
        running.add(rows)
        if lean.device.type == "cuda":  # queued work is no part of decoding
            torch.cuda.synchronize()
        begun = time.perf_counter()
        while running.writers:
            running.step()
        decode_s += time.perf_counter() - begun
        prefill_s += begun - start
        results = [row.result() for row in rows]
        tokens += sum(len(t.tokens_T) for t in results)
        forwards += sum(t.nfe for t in results)
    return Timing(decode_s, prefill_s, tokens, forwards)


@torch.inference_mode()
def timed_generate(
    model: Any, requests: list[DecodeRequest], settings: DecodeSettings, pad_id: int, batch: int
) -> Timing:
    """The same with transformers' own `generate`, prompts padded on the left.

    Its prefill is the time to the first token, taken from a call that asks for no more.
    """
    spent = [0.0, 0.0]
    tokens = 0
    for part in chunks(requests, batch):
        width = max(len(request.prompt) for request in part)
        ids = torch.full((len(part), width), pad_id, device=model.device)
        seen = torch.zeros_like(ids)
        for b, request in enumerate(part):
            ids[b, width - len(request.prompt) :] = torch.tensor(request.prompt)
            seen[b, width - len(request.prompt) :] = 1
        for turn, limit in enumerate((1, settings.max_tokens)):
            start = time.perf_counter()
            out = model.generate(
                ids,
                attention_mask=seen,
                max_new_tokens=limit,
                do_sample=False,
                eos_token_id=settings.end_id,
                pad_token_id=pad_id,
            )
            spent[turn] += time.perf_counter() - start
        made = out[:, width:]
        ended = (made == settings.end_id).int()
        tokens += int((ended.cumsum(1) - ended == 0).sum())  # up to and with the end token
    return Timing(spent[1] - spent[0], spent[0], tokens, tokens)


def summed(decoder: str, batch: int, outputs: int, rounds: list[Timing]) -> dict[str, Any]:
    """One decoder's figures over the rounds."""
    rates = sorted(r.tokens / r.decode_s for r in rounds)
    return {
        "decoder": decoder,
        "batch": batch,
        "outputs": outputs,
        "tokens_per_s": float(np.median(rates)),
        "low": rates[0],
        "high": rates[-1],
        "ms_per_output": float(np.median([1e3 * r.total_s / outputs for r in rounds])),
        "prefill_ms": float(np.median([1e3 * r.prefill_s / outputs for r in rounds])),
        "tpf": sum(r.tokens for r in rounds) / sum(r.forwards for r in rounds),
    }


def decoder_speeds(
    corpus: Corpus, ctx: StageContext, requests: list[DecodeRequest], models: dict[str, Any]
) -> list[dict[str, Any]]:
    """Decoding speed of every decoder at every batch size, decoders taking turns."""
    rounds = corpus.recipe.evaluate.rounds
    lean = {name: LeanQwen3(model) for name, model in models.items()}
    contract = contract_of(ctx.inputs["block_rl"])
    plans = {
        "ar": ("rl", corpus.settings(None, "ar")),
        "block": ("block_rl", corpus.settings(contract, "recommended")),
        "block_raw": ("block_rl", corpus.settings(contract, "raw")),
        "verify": ("block_rl", corpus.settings(contract, "verify")),
    }
    results: list[dict[str, Any]] = []
    for batch in BATCHES:
        work = (requests * batch)[: max(batch, len(requests))]
        few = work[: max(batch, GENERATE_LISTS)]
        samples: dict[str, list[Timing]] = {name: [] for name in (*plans, "generate")}
        for _ in range(rounds + 1):
            for name, (model, settings) in plans.items():
                samples[name].append(timed(lean[model], work, settings, batch))
            ar, pad_id = plans["ar"][1], corpus.vocab.pad_id
            samples["generate"].append(timed_generate(models["rl"], few, ar, pad_id, batch))
        for name, taken in samples.items():
            outputs = len(few if name == "generate" else work)
            results.append(summed(name, batch, outputs, taken[1:]))  # the first round warmed up
    for entry in results:
        base = next(r for r in results if r["decoder"] == "ar" and r["batch"] == entry["batch"])
        entry["speedup"] = entry["tokens_per_s"] / base["tokens_per_s"]
        entry["latency_ratio"] = base["ms_per_output"] / entry["ms_per_output"]
    return results


def frontier(corpus: Corpus, ctx: StageContext, model: Any) -> list[dict[str, Any]]:
    """Quality, validity and tokens per forward over τ, for both rules."""
    rows = test_rows(corpus, "hit", corpus.recipe.evaluate.frontier_lists)
    requests, shown = requests_for(corpus, rows, reasoning=True)
    hit_L = corpus.lists["test"].hit_L[rows]
    contract = contract_of(ctx.inputs["block_rl"])
    repair, lean = POLICIES[corpus.recipe.decode.repair], LeanQwen3(model)
    points = []
    for rule in ("raw", "permutation"):
        for tau in corpus.recipe.evaluate.thresholds:
            settings = corpus.settings(
                contract,
                "recommended",
                accept="threshold",
                threshold=tau,
                rule=rule,
            )
            speed = timed(lean, requests[:8], settings, 1)
            trajectories = decode(lean, requests, settings, batch=corpus.recipe.evaluate.batch)
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
                    "tokens_per_s": speed.tokens / speed.decode_s,
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
    contract = contract_of(ctx.inputs["block_rl"])
    room = lean.max_positions - max(len(r.prompt) for r in requests) - 128
    for length in [n for n in corpus.recipe.evaluate.lengths if n <= room]:
        rate = max(round(tpf), 1)
        fixed = {"accept": "static", "rule": "raw", "per_step": rate}
        plans = {
            "ar": corpus.settings(contract, "ar"),
            "block": corpus.settings(contract, "recommended", decoder="block", **fixed),
            "verify": corpus.settings(contract, "verify"),
        }
        for name, plan in plans.items():
            settings = replace(plan, end_id=NEVER, max_tokens=length)
            samples = [timed(lean, requests[:2], settings, 1) for _ in range(2)]
            rate = max(sample.tokens / sample.decode_s for sample in samples)
            points.append({"decoder": name, "length": length, "tokens_per_s": rate})
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
