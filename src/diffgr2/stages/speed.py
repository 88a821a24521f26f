"""Speed, measured once for all decoders in one run: ratios are what counts.

Contract: writes `speed.json` with, per decoder and batch size, decoded tokens per second (the
prompt's prefill apart, since all decoders share it; end-to-end latency beside it) as the median
over rounds in which the decoders take turns (a noisy machine hits them alike), `generate` of
transformers on the same weights as a second baseline, the quality-speed frontier over τ for both
rules on lists of selection users, and throughput against output length. Timings differ from run to
run, so this stage's file is no part of any bit-identity promise. Not here: plots and tables
(`report`).
"""

import time
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import write_json
from diffgr2.decode.batch import Batch, DecodeRequest, make_writer
from diffgr2.decode.settings import DecodeSettings
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.metrics import MAIN, METRICS, metrics_of
from diffgr2.evaluate.validity import accounting
from diffgr2.model.backend import Backend
from diffgr2.model.backends import backend_of
from diffgr2.model.load import open_model
from diffgr2.pipeline import StageContext
from diffgr2.stages.batches import chunks
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.score import (
    Model,
    decode_requests,
    outputs_of,
    prompts_for,
    selection_lists,
    test_rows,
)

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
    def rate(self) -> float:
        return self.tokens / self.decode_s


def timed(
    backend: Backend, requests: list[DecodeRequest], settings: DecodeSettings, batch: int
) -> Timing:
    """Decode groups of `batch` requests; the prompts' prefill is timed apart."""
    prefill_s = decode_s = 0.0
    tokens = forwards = 0
    for part in chunks(requests, batch):
        running = Batch(backend)
        start = time.perf_counter()
        writers = [make_writer(i, request, settings) for i, request in enumerate(part)]
        running.add(writers)
        if torch.cuda.is_available():  # queued work is no part of decoding
            torch.cuda.synchronize()
        begun = time.perf_counter()
        while running.writers:
            running.step()
        decode_s += time.perf_counter() - begun
        prefill_s += begun - start
        tokens += sum(writer.length for writer in writers)
        forwards += sum(writer.nfe for writer in writers)
    return Timing(decode_s, prefill_s, tokens, forwards)


@torch.inference_mode()
def timed_generate(
    model: Any, requests: list[DecodeRequest], settings: DecodeSettings, pad_id: int, batch: int
) -> Timing:
    """The same with transformers' own `generate`, prompts padded on the left.

    Its prefill is the time to the first token, taken from a call that asks for no more.
    """
    greedy = {"do_sample": False, "eos_token_id": settings.end_id, "pad_token_id": pad_id}
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
            out = model.generate(ids, attention_mask=seen, max_new_tokens=limit, **greedy)
            spent[turn] += time.perf_counter() - start
        made = out[:, width:]
        ended = (made == settings.end_id).int()
        tokens += int((ended.cumsum(1) - ended == 0).sum())  # up to and with the end token
    return Timing(spent[1] - spent[0], spent[0], tokens, tokens)


def summed(decoder: str, batch: int, outputs: int, rounds: list[Timing]) -> dict[str, Any]:
    """One decoder's figures over the rounds."""
    rates = sorted(r.rate for r in rounds)
    whole_s = [r.decode_s + r.prefill_s for r in rounds]
    return {
        "decoder": decoder,
        "batch": batch,
        "outputs": outputs,
        "tokens_per_s": float(np.median(rates)),
        "low": rates[0],
        "high": rates[-1],
        "ms_per_output": float(np.median(whole_s)) * 1e3 / outputs,
        "prefill_ms": float(np.median([r.prefill_s for r in rounds])) * 1e3 / outputs,
        "tpf": sum(r.tokens for r in rounds) / sum(r.forwards for r in rounds),
    }


def decoder_speeds(
    corpus: Corpus, requests: list[DecodeRequest], block: Model, ar_model: Any
) -> list[dict[str, Any]]:
    """Decoding speed of every decoder at every batch size, decoders taking turns."""
    ar_settings = corpus.settings(None, "ar")
    plans = {
        "ar": (backend_of(ar_model), ar_settings),
        "block": (block.backend, corpus.settings(block.contract, "recommended")),
        "block_raw": (block.backend, corpus.settings(block.contract, "raw")),
        "verify": (block.backend, corpus.settings(block.contract, "verify")),
    }
    results: list[dict[str, Any]] = []
    for batch in BATCHES:
        work = (requests * batch)[: max(batch, len(requests))]
        few = work[: max(batch, GENERATE_LISTS)]
        samples: dict[str, list[Timing]] = {name: [] for name in (*plans, "generate")}
        for _ in range(corpus.recipe.evaluate.rounds + 1):
            for name, (backend, settings) in plans.items():
                samples[name].append(timed(backend, work, settings, batch))
            taken = timed_generate(ar_model, few, ar_settings, corpus.vocab.pad_id, batch)
            samples["generate"].append(taken)
        entries = [
            summed(name, batch, len(few if name == "generate" else work), taken[1:])
            for name, taken in samples.items()  # the first round warmed up
        ]
        for entry in entries:
            entry["speedup"] = entry["tokens_per_s"] / entries[0]["tokens_per_s"]
            entry["latency_ratio"] = entries[0]["ms_per_output"] / entry["ms_per_output"]
        results += entries
    return results


def frontier(corpus: Corpus, block: Model) -> list[dict[str, Any]]:
    """Quality, validity and tokens per forward over τ, for both rules, on lists of selection users:
    a τ may be picked from it."""
    config, points = corpus.recipe.evaluate, []
    lists, requests = selection_lists(corpus, config.frontier_lists)
    if not requests:
        return []
    rows, floor_LK = np.arange(len(requests)), floor_order(len(lists), lists.k, lists.length_L)
    floor_M = metrics_of(floor_LK, lists.gains_LK).mean(0)
    for rule, tau in product(("raw", "grammar"), config.thresholds):
        # The plain rule can only be read by what it writes out; the papers' frontier is that.
        plan: dict[str, Any] = {"accept": "threshold", "threshold": tau, "rule": rule}
        plan["answer"] = "said" if rule == "grammar" else corpus.answers[-1]
        decoded = decode_requests(
            corpus, block, requests, "recommended", batch=config.batch, **plan
        )
        policy = "floor" if rule == "raw" else corpus.recipe.decode.repair
        outputs = outputs_of(corpus, "frontier", rows, decoded, policy, len(rows))
        values_LM = metrics_of(outputs.order_LK, lists.gains_LK)
        account = accounting(outputs, np.ones(len(rows), dtype=bool))
        point = {
            "rule": rule,
            "tau": tau,
            "n": len(rows),
            "floor": float(floor_M[METRICS.index("r@1")]),
            "valid": account["raw_valid"],
            "evidence_true": account.get("evidence_true", 0.0),
            "tpf": account["tpf"],
            "tokens_per_s": timed(block.backend, decoded.prompts[:8], decoded.settings, 1).rate,
        }
        means = dict(zip(METRICS, values_LM.mean(0).tolist(), strict=True))
        points.append(point | {metric: means[metric] for metric in MAIN})
    return points


def lengths(
    corpus: Corpus, requests: list[DecodeRequest], block: Model, tpf: float
) -> list[dict[str, Any]]:
    """Throughput at forced output lengths: the end token is switched off.

    Past its natural end the text means nothing, so `block` commits a fixed number of tokens per
    step, the rate it reaches on real outputs; `verify` shows its own agreement.
    """
    fixed = {"accept": "static", "rule": "raw", "per_step": max(round(tpf), 1)}
    plans = {
        "ar": corpus.settings(block.contract, "ar"),
        "block": corpus.settings(block.contract, "recommended", decoder="block", **fixed),
        "verify": corpus.settings(block.contract, "verify"),
    }
    room = block.backend.max_positions - max(len(r.prompt) for r in requests) - 128
    points = []
    for length in [n for n in corpus.recipe.evaluate.lengths if n <= room]:
        for name, plan in plans.items():
            settings = replace(plan, end_id=NEVER, max_tokens=length, rule="raw")
            rate = max(timed(block.backend, requests[:2], settings, 1).rate for _ in range(2))
            points.append({"decoder": name, "length": length, "tokens_per_s": rate})
    return points


def run(ctx: StageContext) -> dict[str, Any]:
    corpus = open_corpus(ctx.inputs, ctx.recipe)
    rows = test_rows(corpus, "hit", ctx.recipe.evaluate.speed_lists)
    shown = [corpus.request("test", int(row)) for row in rows]
    requests = prompts_for(corpus, shown, corpus.template.answers[0])
    ar_model, block = open_model(ctx.inputs["rl"]), Model.open(ctx.inputs["block_rl"])
    ctx.progress.line(f"{ctx.name}: decoders take turns on {len(requests)} lists")
    speeds = decoder_speeds(corpus, requests, block, ar_model)
    ctx.progress.line(f"{ctx.name}: frontier over τ")
    points = frontier(corpus, block)
    ctx.progress.line(f"{ctx.name}: throughput against length")
    tpf = next(s["tpf"] for s in speeds if s["decoder"] == "block" and s["batch"] == 1)
    by_length = lengths(corpus, requests, block, tpf)
    measured = {"decoders": speeds, "frontier": points, "lengths": by_length}
    write_json(ctx.out / "speed.json", measured)
    shown = ("tokens_per_s", "speedup", "tpf")
    return {f"{s['decoder']}@{s['batch']}": {k: round(s[k], 2) for k in shown} for s in speeds}
