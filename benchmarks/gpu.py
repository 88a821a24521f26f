"""What a token costs on a GPU: AR against the card's bandwidth, block and verify at a set TPF.

Usage: `python benchmarks/gpu.py [--shapes qwen3-0.6b …] [--batches 1 8 32] [--tpf 2 4 8]
[--prompt 512] [--written 64] [--rounds 3] [--seconds N] [--out FILE.json]`.

Models have the sizes of known bases and random weights in bf16, made on the device. `ar` is the
decoder's own writer over the backend's session (static cache, CUDA graphs); `ar_eager` the same
over the session that starts every kernel by itself. The floor is what a forward must read (each
matrix once, the rows' keys and values) over the rate of a copy on the device in the same run.

Random weights give no tokens per forward, so they are scripted: `block` is the decoder with its
`static` rule, which commits so many a step; `verify` is the decoder's own windows (what is known,
the draft, masks ahead: a canvas of twice the TPF), of which so many tokens are kept whether they
agree or not. So these rows say what forwards of these windows cost, and what a TPF would be worth;
which TPF a trained model reaches they do not say. Prompts are filled before the clock starts.
Not here: quality, grammars, the server.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgr2.artifacts import write_json
from diffgr2.decode.batch import make_writer
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.verify import VerifyWriter
from diffgr2.decode.writer import Writer
from diffgr2.errors import ConfigError
from diffgr2.model.backend import Session, Span, View
from diffgr2.model.family import Sizes, sizes_of
from diffgr2.model.forward import LeanModel
from diffgr2.model.load import empty, rotary, stock_config
from diffgr2.model.session import TorchSession
from diffgr2.model.static import OFTEN
from diffgr2.stages.sizing import KNOWN

TINY = {
    "model_type": "qwen3",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "vocab_size": 61,
    "tie_word_embeddings": True,
    "max_position_embeddings": 256,
}
"""For machines without a GPU: shows that the benchmark works, not what anything costs."""

SHAPES: dict[str, dict[str, Any]] = {"tiny": TINY, **KNOWN}
ASKED = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-8b")
SPREAD = 0.02
"""Standard deviation of the random weights."""


class KeptVerifyWriter(VerifyWriter):
    """The decoder's windows; of each forward the script keeps `tpf` tokens."""

    def __init__(self, key: int, request: DecodeRequest, settings: DecodeSettings) -> None:
        super().__init__(key, request, settings)
        self.tpf = settings.canvas // 2

    def update(self, view: View) -> None:
        drafted, n = len(self._draft_T), min(self.tpf, self.limit - self.length)
        found = self.wanted(view, np.arange(n), self.length + np.arange(n), None)
        for i in range(n):
            self.commit(self.length + i, int(found.token_N[i]), self.nfe, float(found.logp_N[i]))
        self.advance()
        self.nfe += 1
        self._fed = self._first
        if not self.done:
            self._propose(view, drafted)


@dataclass(frozen=True)
class Load:
    """What is written: rows, lengths, and how many tokens a block has."""

    batch: int
    prompt: int
    written: int
    block: int


@dataclass(frozen=True)
class Text:
    """One decode of a batch: what it took, after the prompts were filled."""

    seconds: float
    forward_seconds: float
    forwards: int
    tokens: list[list[int]]


def model_of(shape: str, device: str) -> LeanModel:
    """Random weights, made where they stay; bf16 on a GPU, fp32 elsewhere."""
    values = SHAPES[shape]
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with torch.device("meta"):
        module = empty(stock_config(values))
    torch.nn.Module.to(module, dtype=dtype)  # on no device yet: no memory
    module.to_empty(device=device)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in module.parameters():
            weight.fill_(1.0) if weight.dim() == 1 else weight.normal_(0.0, SPREAD)
    if values["tie_word_embeddings"]:
        module.lm_head.weight = module.model.embed_tokens.weight
    module.model.rotary_emb = rotary(values).to(device)  # its table was on no device, either
    model = LeanModel(module)
    for parameter in module.parameters():
        parameter.data = parameter.data.new_empty(0)  # what was laid side by side is held once
    return model


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: str) -> float:
    """Bytes a second of a copy on the device, read and written: the best of some."""
    size = 2**30 if device == "cuda" else 2**26
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(10):
        synchronize(device)
        begun = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - begun)
    return 2 * size / min(times)


def read_bytes(sizes: Sizes, load: Load, width: int) -> float:
    """Of one AR forward in the middle of the text: matrices once, keys and values of all rows."""
    seen = load.prompt + load.written / 2
    cached = 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * seen * load.batch
    return width * (sizes.weights + cached)


def settings(decoder: Any, tpf: int, vocab: int, load: Load) -> DecodeSettings:
    """Without a grammar, and with an end token that no model writes."""
    how: dict[str, Any] = {"block_size": load.block, "origin": "response"}
    how |= {"accept": "static", "per_step": tpf, "canvas": 2 * tpf}
    ends = {"mask_id": vocab - 1, "end_id": vocab, "max_tokens": load.written}
    return DecodeSettings(decoder=decoder, rule="raw", **how, **ends)


def prompts(vocab: int, load: Load) -> list[DecodeRequest]:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, vocab - 1, (load.batch, load.prompt)).tolist()
    return [DecodeRequest(prompt) for prompt in rows]


def write(session: Session, writers: Sequence[Writer], device: str) -> Text:
    """One batch from its first forward to its last, as the batching engine calls a session."""
    known = [(w.prompt[: w.prefill], w.prefill_hi()) for w in writers]
    session.add([Span(ids, 0, hi, len(ids) - 1) for ids, hi in known], writers[0].slots)
    synchronize(device)
    begun, inside, forwards = time.perf_counter(), 0.0, 0
    while not all(writer.done for writer in writers):
        spans = [writer.plan() for writer in writers]
        at = time.perf_counter()
        views = session.forward(spans)
        synchronize(device)
        inside += time.perf_counter() - at
        for writer, view in zip(writers, views, strict=True):
            writer.update(view)
        forwards += 1
    synchronize(device)
    seconds = time.perf_counter() - begun
    session.keep(())
    return Text(seconds, inside, forwards, [w.result().tokens_T.tolist() for w in writers])


def texts(
    model: LeanModel, decoder: str, tpf: int, load: Load, rounds: int, *, eager: bool = False
) -> list[Text]:
    """Measured rounds, after those in which graphs are recorded."""
    told = settings(decoder, tpf, model.vocab_size, load)
    make = KeptVerifyWriter if decoder == "verify" else make_writer
    device, found = model.device.type, []
    warm = 1 if eager or device != "cuda" else OFTEN
    for _ in range(warm + rounds):
        requests = prompts(model.vocab_size, load)
        writers = [make(key, request, told) for key, request in enumerate(requests)]
        session = TorchSession(model, told.mask_id) if eager else model.session(told.mask_id)
        found.append(write(session, writers, device))
    return found[warm:]


def row(name: str, tpf: int, load: Load, found: Sequence[Text]) -> dict[str, Any]:
    """The fastest round."""
    best = min(found, key=lambda text: text.seconds)
    return {
        "decoder": name,
        "tpf_asked": tpf,
        "batch": load.batch,
        "forwards": best.forwards,
        "tokens_per_forward": len(best.tokens[0]) / best.forwards,
        "forward_ms": 1e3 * best.forward_seconds / best.forwards,
        "step_ms": 1e3 * best.seconds / best.forwards,
        "ms_per_token": 1e3 * best.seconds / load.written,
        "tokens_per_second": load.batch * load.written / best.seconds,
    }


class Bench:
    """All that is asked for, small to large, until the time is spent."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, options.device
        self.end = time.monotonic() + options.seconds if options.seconds else float("inf")
        self.rows: list[dict[str, Any]] = []
        self.left: list[str] = []
        self.rate = bandwidth(self.device)

    def run(self) -> None:
        sizes = {shape: sizes_of(SHAPES[shape]) for shape in self.options.shapes}
        for shape in sorted(sizes, key=lambda name: sizes[name].weights):
            if time.monotonic() >= self.end:
                self.left.append(shape)
                continue
            model = model_of(shape, self.device)
            for batch in self.options.batches:
                self._batch(shape, sizes[shape], model, batch)
                model.spare.clear()  # its caches and their graphs
            del model
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def _batch(self, shape: str, sizes: Sizes, model: LeanModel, batch: int) -> None:
        o = self.options
        load = Load(batch, o.prompt, o.written, o.block)
        least = 1e3 * read_bytes(sizes, load, model.dtype.itemsize) / self.rate
        plans = [("ar", 1), *((how, tpf) for tpf in o.tpf for how in ("block", "verify"))]
        plain: dict[str, Any] = {}
        for name, tpf in [*plans, ("ar_eager", 1)]:
            if time.monotonic() >= self.end:
                self.left.append(f"{shape} batch {batch} {name} {tpf}")
                continue
            eager = name == "ar_eager"
            rounds = 1 if eager else o.rounds
            found = texts(model, name.split("_")[0], tpf, load, rounds, eager=eager)
            made = {"shape": shape, **row(name, tpf, load, found), "floor_ms": least}
            plain = plain or made
            made["over_ar"] = plain["ms_per_token"] / made["ms_per_token"]
            made["forward_over_ar"] = made["forward_ms"] / plain["forward_ms"]
            if tpf == 1:
                made["share_of_floor"] = least / made["forward_ms"]
            self.rows.append(made)
            print(line(made), flush=True)
        if o.out is not None:
            write_json(o.out, self.result())

    def result(self) -> dict[str, Any]:
        cuda = self.device == "cuda"
        o = self.options
        return {
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "torch": torch.__version__,
            "command": " ".join(["python benchmarks/gpu.py", *o.words]),
            "weights": "random, bf16" if cuda else "random, fp32",
            "prompt": o.prompt,
            "written": o.written,
            "block": o.block,
            "copy_bytes_per_second": self.rate,
            "peak_bytes": torch.cuda.max_memory_allocated() if cuda else None,
            "rows": self.rows,
            "left_out": self.left,
        }


HEAD = "shape       batch decoder  TPF  forward ms  step ms  ms/token   tokens/s  over AR  floor ms"


def line(r: dict[str, Any]) -> str:
    return (
        f"{r['shape']:11} {r['batch']:5} {r['decoder']:8} {r['tokens_per_forward']:3g} "
        f"{r['forward_ms']:11.2f} {r['step_ms']:8.2f} {r['ms_per_token']:9.3f} "
        f"{r['tokens_per_second']:10,.0f} {r['over_ar']:8.2f} {r['floor_ms']:9.2f}"
    )


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=tuple(SHAPES), default=list(ASKED))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--tpf", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--written", type=int, default=64)
    parser.add_argument("--block", type=int, default=32, help="tokens of a block")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0, help="start nothing after; 0 = no end")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=None)
    given = list(sys.argv[1:] if words is None else words)
    options = parser.parse_args(given)
    options.words = given  # but where it writes to, which is this machine's own
    if "--out" in given:
        at = given.index("--out")
        options.words = given[:at] + given[at + 2 :]
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU (--device cpu --shapes tiny)")
    if options.written % options.block or any(options.block % tpf for tpf in options.tpf):
        raise ConfigError("--block must divide --written, and be a multiple of each --tpf")
    return options


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    bench = Bench(parsed(words))
    print(f"copy on the device: {bench.rate / 1e9:,.0f} GB/s\n{HEAD}")
    bench.run()
    result = bench.result()
    if bench.left:
        print("left out, the time was spent: " + "; ".join(bench.left))
    if bench.options.out is not None:
        write_json(bench.options.out, result)
    return result


if __name__ == "__main__":
    main()
