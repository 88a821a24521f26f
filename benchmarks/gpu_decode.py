"""Decoding speed of a large model with random weights against the floor of memory bandwidth.

Builds a Qwen3 model of a known shape with random bf16 weights on the device and times three ways
to decode, each as steps of fixed shapes over a preallocated cache (on a GPU one CUDA graph per
step, with no word to the host in between):

    ar      forwards of one token
    block   forwards of a canvas of 32; each commits its `tpf` surest positions; the forward that
            opens a block also brings the finished block before it into the cache (64 positions)
    verify  forwards of the last token and a canvas of 32, drafted (checked causally) but for its
            last `tpf` positions, which are masks and draft on; each commits `tpf` tokens

How many tokens a forward commits is given (`--tpf`), not earned: random weights say nothing, and
`verify` commits that many whether the check agrees or not. Prefill is not timed. Rows of a batch
stand at the same position. The floor is the time that a forward needs to read its weights once, at
the bandwidth that a large copy reaches in the same run; keys and values are left out of it. Not a
test: nothing passes or fails.

    python benchmarks/gpu_decode.py --device cuda --shape qwen3-8b --out results/gpu_decode.json
    python benchmarks/gpu_decode.py --device cpu --shape tiny --batch 1,8
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from diffgr2.model.forward import KVCache, LeanQwen3, Weight
from diffgr2.model.layout import causal_mask

WIDTH = 32  # positions of a canvas, and of a block
COPY_BYTES = {"cuda": 4 << 30, "cpu": 64 << 20}
SEED = 0


@dataclass(frozen=True)
class Shape:
    """Dimensions of a model; `spread` is the standard deviation of its weights."""

    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    mask_id: int
    theta: float = 1e6
    spread: float = 0.02


SHAPES = {
    "qwen3-8b": Shape(151_936, 4096, 36, 32, 8, 128, 12_288, mask_id=151_669),
    "tiny": Shape(256, 32, 2, 4, 2, 8, 48, mask_id=250, spread=0.2),
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype, positions: int) -> LeanQwen3:
    """Random weights, made in their type on their device: nothing passes through the host."""
    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.dim,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.ffn,
        max_position_embeddings=positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        tie_word_embeddings=False,
        initializer_range=shape.spread,
        bos_token_id=None,
        eos_token_id=None,
    )
    before = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(SEED)
        torch.set_default_dtype(dtype)
        try:
            module = Qwen3ForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    return LeanQwen3(module.eval())


def streamed_bytes(lean: LeanQwen3) -> int:
    """Bytes of weights that one forward reads; of the embedding table only single rows are."""
    parts = [lean.norm, lean.head, *(t for layer in lean.layers for t in vars(layer).values())]
    plain = [part.plain if isinstance(part, Weight) else part for part in parts]
    return sum(t.numel() * t.element_size() for t in plain)


def parameter_count(lean: LeanQwen3) -> int:
    return streamed_bytes(lean) // lean.embedding.element_size() + lean.embedding.numel()


# ------------------------------------------------------------------------------------- decoding


class Decoding:
    """B rows in lockstep: what stands in the documents, the cache, and steps of fixed shapes.

    Positions are cache slots. All state is on the device and changed in place, so that a captured
    step, replayed, goes on from where it is. `at` is the last token's position (`ar`, `verify`) or
    the canvas's first (`block`). Letters: B rows, C slots, T window tokens, V vocabulary.
    """

    def __init__(self, lean: LeanQwen3, prompt_BP: Tensor, tokens: int, mask_id: int) -> None:
        self.lean, self.mask_id, self.prompt = lean, mask_id, prompt_BP.shape[1]
        self.end = self.prompt + tokens
        rows, device = len(prompt_BP), lean.device
        # A draft reaches a canvas beyond the output; fused kernels like multiples of 64.
        slots = -(-(self.end + 2 * WIDTH) // 64) * 64
        self._first_BC = torch.full((rows, slots), mask_id, dtype=torch.int64, device=device)
        self._first_BC[:, : self.prompt] = prompt_BP.to(device)
        self.tokens_BC = self._first_BC.clone()
        self.at = torch.zeros((), dtype=torch.int64, device=device)
        self.slot_C = torch.arange(slots, device=device)
        self.cache = KVCache(lean, rows, slots)
        ids_BP = self._first_BC[:, : self.prompt]
        position_BP = self.slot_C[: self.prompt].expand(rows, -1)
        mask_PP = causal_mask(self.prompt).to(device)
        sees_BPP = mask_PP.expand(rows, -1, -1)
        lean.fill(ids_BP, position_BP, self.cache, 0, sees_BPP, self.prompt)

    def reset(self, decoder: str) -> None:
        """Back to the prompt, in place. Slots behind it hold leftovers that no token sees."""
        self.tokens_BC.copy_(self._first_BC)
        self.at.fill_(self.prompt if decoder == "block" else self.prompt - 1)

    def outputs(self) -> Tensor:
        """Tokens [B, T] of the output so far; mask_id where nothing is committed."""
        return self.tokens_BC[:, self.prompt : self.end]

    @torch.inference_mode()
    def ar(self) -> None:
        """One token."""
        at_1 = self.at.view(1)
        logits_B1V = self._forward(at_1, at_1 + 1, 0)
        self.tokens_BC.index_copy_(1, at_1 + 1, logits_B1V.argmax(-1))
        self.at.add_(1)

    @torch.inference_mode()
    def denoise(self, tpf: int) -> None:
        """One step on the canvas."""
        canvas_T = self.at + self.slot_C[:WIDTH]
        end_T = (self.at + WIDTH).expand(WIDTH)
        self._commit(self._forward(canvas_T, end_T, 0), canvas_T, tpf)

    @torch.inference_mode()
    def next_block(self, tpf: int) -> None:
        """Move on: the full block enters the cache causally, the next one gets its first step."""
        self.at.add_(WIDTH)
        window_T = self.at - WIDTH + self.slot_C[: 2 * WIDTH]
        canvas_T = window_T[WIDTH:]
        hi_T = torch.cat([window_T[:WIDTH] + 1, (self.at + WIDTH).expand(WIDTH)])
        self._commit(self._forward(window_T, hi_T, WIDTH), canvas_T, tpf)

    @torch.inference_mode()
    def verify(self, tpf: int, drafted: int) -> None:
        """Commit `tpf` of the AR head's tokens; what is predicted behind them is the next draft."""
        window_T = self.at + self.slot_C[: WIDTH + 1]
        masks = WIDTH - drafted
        hi_T = torch.cat([window_T[: 1 + drafted] + 1, window_T[-1:].expand(masks) + 1])
        choice_BT = self._forward(window_T, hi_T, 0).argmax(-1)
        # Clean tokens predict the next position, masks their own: the first mask's row is too much.
        chosen_BT = torch.cat([choice_BT[:, : drafted + 1], choice_BT[:, drafted + 2 :]], 1)
        self.tokens_BC.index_copy_(1, window_T[1:], chosen_BT)
        self.at.add_(tpf)

    def _forward(self, position_T: Tensor, hi_T: Tensor, logits_from: int) -> Tensor:
        """Logits of window tokens; token t sees slots below `hi[t]`."""
        rows, slots = self.tokens_BC.shape
        position_BT = position_T.expand(rows, -1)
        sees_BTC = (self.slot_C < hi_T[:, None]).expand(rows, -1, -1)
        ids_BT = self.tokens_BC.index_select(1, position_T)
        logits_BTV = self.lean(
            ids_BT, position_BT, self.cache, position_BT, sees_BTC, slots, logits_from=logits_from
        ).float()
        logits_BTV.select(-1, self.mask_id).fill_(-torch.inf)
        return logits_BTV

    def _commit(self, logits_BTV: Tensor, canvas_T: Tensor, tpf: int) -> None:
        """The static accept rule: the `tpf` surest masked positions get their tokens."""
        top_BT, token_BT = logits_BTV.max(-1)
        sure_BT = top_BT - logits_BTV.logsumexp(-1)
        canvas_BT = self.tokens_BC.index_select(1, canvas_T)
        sure_BT = sure_BT.masked_fill(canvas_BT != self.mask_id, -torch.inf)
        pick_BN = sure_BT.topk(tpf, -1).indices
        canvas_BT.scatter_(1, pick_BN, token_BT.gather(1, pick_BN))
        self.tokens_BC.index_copy_(1, canvas_T, canvas_BT)


Step = Callable[[], None]


def plan(decoding: Decoding, decoder: str, tpf: int, tokens: int) -> tuple[list[Step], list[int]]:
    """(the different steps, the order in which one output takes them)."""
    if decoder == "ar":
        return [decoding.ar], [0] * tokens
    if decoder == "block":
        steps = [lambda: decoding.denoise(tpf), lambda: decoding.next_block(tpf)]
        more = [0] * (WIDTH // tpf - 1)
        return steps, [0, *more, *([1, *more] * (tokens // WIDTH - 1))]
    steps = [lambda: decoding.verify(tpf, 0), lambda: decoding.verify(tpf, WIDTH - tpf)]
    return steps, [0, *[1] * (tokens // tpf - 1)]


def captured(step: Step, reset: Step) -> Step:
    """The step as a CUDA graph: one launch from the host instead of some hundreds."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # libraries choose kernels and make workspaces at first use
            reset()
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


# --------------------------------------------------------------------------------------- timing


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def copy_bandwidth(device: torch.device, rounds: int = 10) -> float:
    """Bytes per second, read and written, of the best of some large copies."""
    source = torch.ones(COPY_BYTES[device.type], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds):
        begun = now(device)
        target.copy_(source)
        best = min(best, now(device) - begun)
    return 2 * source.numel() / best


@dataclass(frozen=True)
class Given:
    """What is measured."""

    batches: tuple[int, ...]
    tpfs: tuple[int, ...]
    tokens: int
    prompt: int
    rounds: int
    graphs: bool
    mask_id: int


def measure(lean: LeanQwen3, given: Given, decoder: str, batch: int, tpf: int) -> dict[str, Any]:
    """Median, slowest and fastest of some outputs of `tokens` tokens per row."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        prompt_BP = torch.randint(given.mask_id, (batch, given.prompt))
    decoding = Decoding(lean, prompt_BP, given.tokens, given.mask_id)
    steps, order = plan(decoding, decoder, tpf, given.tokens)
    if given.graphs:
        steps = [captured(step, lambda: decoding.reset(decoder)) for step in steps]
    seconds = []
    for _ in range(given.rounds + 1):
        decoding.reset(decoder)
        begun = now(lean.device)
        for step in order:
            steps[step]()
        seconds.append(now(lean.device) - begun)
    assert not bool((decoding.outputs() == given.mask_id).any()), "a position stayed open"
    taken = sorted(seconds[1:])  # the first round only warmed up
    total = batch * given.tokens
    return {
        "decoder": decoder,
        "batch": batch,
        "tpf": given.tokens / len(order),
        "forwards": len(order),
        "tokens_per_s": total / statistics.median(taken),
        "low": total / taken[-1],
        "high": total / taken[0],
        "ms_per_forward": 1e3 * statistics.median(taken) / len(order),
    }


def measure_all(lean: LeanQwen3, given: Given, say: Callable[[str], None]) -> dict[str, Any]:
    """All decoders at all batch sizes, with ratios to AR and to the floor."""
    bandwidth, size = copy_bandwidth(lean.device), streamed_bytes(lean)
    floor = bandwidth / size
    say(
        f"{size / 1e9:.2f} GB of weights per forward at {bandwidth / 1e9:.0f} GB/s: "
        f"at most {floor:.1f} forwards/s"
    )
    say(f"{'decoder':8} {'batch':>5} {'tpf':>5} {'tokens/s':>10} {'x AR':>6} {'of floor':>9}")
    rows: list[dict[str, Any]] = []
    for batch in given.batches:
        plans = [("ar", 1), *((d, tpf) for d in ("block", "verify") for tpf in given.tpfs)]
        base = 0.0
        for decoder, tpf in plans:
            row = measure(lean, given, decoder, batch, tpf)
            base = row["tokens_per_s"] if decoder == "ar" else base
            row["vs_ar"] = row["tokens_per_s"] / base
            row["floor_tokens_per_s"] = floor * row["tpf"] * batch
            row["share_of_floor"] = row["tokens_per_s"] / row["floor_tokens_per_s"]
            rows.append(row)
            say(
                f"{decoder:8} {batch:5d} {row['tpf']:5.1f} {row['tokens_per_s']:10.1f} "
                f"{row['vs_ar']:6.2f} {row['share_of_floor']:9.1%}"
            )
    return {
        "parameters": parameter_count(lean),
        "weight_bytes": size,
        "bandwidth_bytes_per_s": bandwidth,
        "floor_tokens_per_s": floor,
        "rows": rows,
    }


def numbers(text: str) -> tuple[int, ...]:
    """Positive numbers, separated by commas."""
    values = tuple(int(part) for part in text.split(","))
    if min(values) < 1:
        raise ValueError
    return values


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="qwen3-8b")
    parser.add_argument("--batch", type=numbers, default=(1, 8, 32))
    parser.add_argument("--tpf", type=numbers, default=(2, 4, 8), help="for block and verify")
    parser.add_argument("--tokens", type=int, default=128, help="of output, per row")
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(argv)
    if given.tokens < 1 or given.tokens % WIDTH:
        parser.error(f"--tokens: expected a multiple of {WIDTH}")
    if any((WIDTH // 2) % tpf for tpf in given.tpf):
        parser.error(f"--tpf: expected divisors of {WIDTH // 2}")
    if min(given.prompt, given.rounds) < 1:
        parser.error("--prompt and --rounds: expected 1 or more")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is none (try --device cpu --shape tiny)")
    return given


def main(argv: Sequence[str] | None = None) -> None:
    asked = read_arguments(argv)
    device, shape = torch.device(asked.device), SHAPES[asked.shape]
    graphs = device.type == "cuda" and not asked.eager
    lean = build(shape, device, torch.bfloat16, asked.prompt + asked.tokens + 4 * WIDTH)
    given = Given(
        asked.batch, asked.tpf, asked.tokens, asked.prompt, asked.rounds, graphs, shape.mask_id
    )
    found = measure_all(lean, given, lambda line: print(line, flush=True))
    report = {
        "shape": asked.shape,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "cuda_graphs": graphs,
        "prompt": asked.prompt,
        "tokens": asked.tokens,
        "rounds": asked.rounds,
        **found,
    }
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
