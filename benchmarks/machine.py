"""What this machine can do, what a forward asks of it, and how time is taken: for all benchmarks.

Contract: `limit` measures the arithmetic and the memory of so many threads now, so that a share of
it is of the same minute as the figure beside it; `Shape` counts the FLOP and the bytes of forwards
from a checkpoint's dimensions and the positions that were computed, none of them twice. `elapsed`
is processor time where one thread works, so that neighbours on a busy machine do not count, and
the clock's where more do. Not here: what is timed (`peers`, `growth`).
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffgr2.capacity.costtable import processor
from diffgr2.model.contract import read_config

FLOAT = 4  # bytes
LARGE = 1024  # rows and columns of the matrices that arithmetic is measured with
ROOM = 2**28  # bytes that no cache holds


@dataclass(frozen=True)
class Work:
    """What some forwards ask for at least."""

    flop: float = 0.0
    bytes: float = 0.0
    forwards: int = 0

    def __add__(self, other: Work) -> Work:
        forwards = self.forwards + other.forwards
        return Work(self.flop + other.flop, self.bytes + other.bytes, forwards)


@dataclass(frozen=True)
class Limit:
    """Per second. `bytes` is a copy, read and written, of as much as the weights are: what lies in
    a cache there lies in it here. `memory` is one of more than any cache holds."""

    threads: int
    flop: float
    bytes: float
    memory: float

    def at_least(self, other: Limit | None) -> Limit:
        """More threads can do what fewer could, even while others are at work."""
        if other is None:
            return self
        pairs = zip(astuple(self)[1:], astuple(other)[1:], strict=True)
        return Limit(self.threads, *(max(pair) for pair in pairs))

    def share(self, work: Work, seconds: float) -> float:
        """How much of the time the machine could not have done without."""
        return max(work.flop / self.flop, work.bytes / self.bytes) / seconds


@dataclass(frozen=True)
class Shape:
    """A transformer's dimensions, and what they cost."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    ffn_matrices: int = 3  # gate, up and down; without a gate two

    @classmethod
    def of(cls, directory: Path) -> Shape:
        c = read_config(directory)
        heads = (c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"])
        return cls(
            c["num_hidden_layers"],
            c["hidden_size"],
            *heads,
            c["intermediate_size"],
            c["vocab_size"],
        )

    @property
    def matrices(self) -> int:
        """Weights of all layers' matrices."""
        attention = self.dim * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + self.ffn_matrices * self.dim * self.ffn)

    @property
    def bytes(self) -> int:
        return FLOAT * (self.matrices + self.dim * self.vocab)

    def forward(self, spans: Sequence[tuple[Sequence[int], int]]) -> Work:
        """One forward: of each row how far each new token sees, and how many need logits."""
        tokens, logits = sum(len(hi) for hi, _ in spans), sum(n for _, n in spans)
        if not tokens:
            return Work()
        looks, slots = sum(sum(hi) for hi, _ in spans), sum(max(hi, default=0) for hi, _ in spans)
        head = self.dim * self.vocab
        flop = 2 * tokens * self.matrices + 2 * logits * head
        flop += 4 * looks * self.layers * self.heads * self.head_dim
        cached = 2 * slots * self.layers * self.kv_heads * self.head_dim
        return Work(flop, FLOAT * (self.matrices + (head if logits else 0) + cached), 1)

    def written(self, prompts: Sequence[int], tokens: int) -> Work:
        """A plain loop: the prompts, then one token after the other."""
        work = self.forward([(range(1, n + 1), 1) for n in prompts])
        for step in range(1, tokens):
            work += self.forward([([n + step], 1) for n in prompts])
        return work


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Work on so many cores within the block; threads that begin in it stay on them, too."""
    able, before = hasattr(os, "sched_setaffinity"), torch.get_num_threads()
    cores = os.sched_getaffinity(0) if able else set()
    if able:
        os.sched_setaffinity(0, sorted(cores)[:threads])
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if able:
            os.sched_setaffinity(0, cores)


def elapsed(call: Callable[[], Any], threads: int) -> tuple[float, Any]:
    """(seconds, what the call gave)."""
    clock = time.process_time if threads == 1 else time.perf_counter
    begun = clock()
    result = call()
    return clock() - begun, result


def best(call: Callable[[], Any], threads: int, tries: int = 12) -> float:
    """The shortest of some times: a limit is what can be reached."""
    call()
    return min(elapsed(call, threads)[0] for _ in range(tries))


def limit(threads: int, model_bytes: int) -> Limit:
    """Measured by the fastest library that is installed."""
    products = [_torch_product(), _onnx_product(threads)]
    fastest = min(best(call, threads) for call in products if call is not None)
    rates = []
    for size in (max(model_bytes, 2**16), ROOM):
        source, target = torch.ones(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
        turns = max(1, 2**24 // size)  # a single short copy is too short for the clock

        def copies(source: Any = source, target: Any = target, turns: int = turns) -> None:
            for _ in range(turns):
                target.copy_(source)

        rates.append(2 * size * turns / best(copies, threads))
    return Limit(threads, 2 * LARGE**3 / fastest, *rates)


def _torch_product() -> Callable[[], Any]:
    left, right = torch.ones(LARGE, LARGE), torch.ones(LARGE, LARGE)
    return lambda: torch.mm(left, right)


def _onnx_product(threads: int) -> Callable[[], Any] | None:
    try:
        from onnx_graphs import product, session_of
    except ImportError:
        return None
    session = session_of(product(LARGE), threads)
    left = np.ones((LARGE, LARGE), dtype=np.float32)
    return lambda: session.run(None, {"left": left})


def command(script: str, subject: str) -> str:
    """The command that is running, without where it writes to; `subject` instead of the run's
    place, which is this machine's own."""
    words, told = sys.argv[1:], []
    options = [at for at, word in enumerate(words) if word.startswith("--")]
    for at, end in zip(options, [*options[1:], len(words)], strict=True):
        if words[at] != "--out":
            told += words[at:end]
    return shlex.join(["python", f"benchmarks/{script}.py", subject, *told])


def about() -> dict[str, Any]:
    """The machine in words, and how busy it was."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "clock": "processor time on one thread, the clock on more",
    }


def ticks() -> list[int]:
    """What all cores have done since they started, by the kernel's account; empty elsewhere."""
    try:
        return [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except OSError:
        return []


def stolen(before: list[int], after: list[int]) -> float:
    """Share of the cores' time between two accounts that the host gave to others."""
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return passed[7] / max(sum(passed), 1) if passed else 0.0
