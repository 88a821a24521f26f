"""The one training loop: midtrain, sft, rl and cft, opd, block_rl differ by their `Task` only.

Contract: `fit` trains until `config.steps`, resumes from the newest valid checkpoint in `work` with
bit-identical results, and does nothing when the run is already finished. The gradient of a step is
the sum over its micros divided by their *global* count, however they are cut or spread over
processes. A non-finite loss, metric or gradient raises NonFiniteError before the optimizer ran.
SIGTERM ends the run at the next round with a checkpoint (SystemExit, code 0). Not here: data,
rollouts, losses (`stages`), the model's construction, and any random number: a task derives its
draws from (seed, step) through `diffgr2.streams`.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffgr2.artifacts import write_json
from diffgr2.config import TrainConfig
from diffgr2.errors import NonFiniteError
from diffgr2.progress import Progress
from diffgr2.train import checkpoint, dist
from diffgr2.train.log import METRICS, MetricsLog
from diffgr2.train.optimizer import Optimizer
from diffgr2.train.parallel import Lanes
from diffgr2.train.working import Working, prepare

Number = float | Tensor


@dataclass(frozen=True)
class Loss:
    """What a task returns for one micro; sums, never means."""

    total: Tensor  # scalar: the weighted sum, not divided by anything
    metrics: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)  # (sum, count)


class Micro(Protocol):
    """What one forward needs; `count` is its weight sum, known before any forward.

    An optional attribute `tokens` feeds the metric `num_tokens` (else `count` does).
    """

    @property
    def count(self) -> float: ...


class Task(Protocol):
    """What a stage gives the loop.

    Optional methods: `epoch(step) -> float` and `metrics(step) -> dict[str, float]` (the same on
    every rank), both asked once per step, after `micros`.
    """

    name: str

    round_steps: int
    """Optimizer steps per rollout batch (1 without rollouts).

    Checkpoints are taken between rounds only, so that no rollout need be stored: a resumed run
    makes them again from the same weights and counters.
    """

    def micros(self, step: int, model: nn.Module) -> Sequence[Any]:
        """All micros of a step (from 1): a function of (seed, step, weights), equal on each rank.

        Roll out with `lending.policy(model)`. An empty list, or all counts 0, is a step without an
        update. Autocast is off: rollouts compute in the weights' own precision.
        """
        ...

    def loss(self, model: nn.Module, micro: Any) -> Loss:
        """One forward."""
        ...


def fit(
    task: Task, model: nn.Module, config: TrainConfig, work: Path, seed: int, progress: Progress
) -> list[dict[str, Any]]:
    """Train `model` in place; returns the metrics of all steps, those before a resume included.

    Under a process group the model is sharded in place: write it from `dist.full_tensors(model)`.
    """
    if config.fixed == 0:
        return []
    with _numerics(), _sigterm() as stop:
        prepare(model, config)
        dist.shard(model, config)
        optimizer = Optimizer(model, config)
        mark = checkpoint.identity(task.name, seed, config, model)
        root = work / "checkpoints"
        saved, raw = checkpoint.resume(root, mark, model, optimizer, progress.line)
        log = MetricsLog(work / METRICS if dist.world().first else None, raw)
        working = Working(model, config)  # rounds what was resumed
        lanes = Lanes(working.net)
        run = _Run(task, model, working, config, optimizer, work, log, stop, lanes)
        with closing(lanes), progress.task(task.name, config.fixed) as bar:
            if saved:
                bar.advance(saved, "resumed")
            for step in range(saved + 1, config.fixed + 1):
                line, stopping = run.step(step)
                log.append(line)
                bar.advance(1, f"loss {line['loss']:.4f}")
                last = step == config.fixed
                due = step // config.checkpoint_every > saved // config.checkpoint_every
                if last or (step % task.round_steps == 0 and (due or stopping)):
                    raw = bytes(log.raw)
                    checkpoint.save(root, step, mark, model, optimizer, raw, config.keep)
                    saved = step
                    if stopping and not last:
                        progress.line(f"{task.name}: stopped at step {step} with a checkpoint")
                        raise SystemExit(0)
        return log.lines


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 1): linear warm-up, then a cosine that ends at `final_lr`."""
    if step <= config.warmup:
        return config.lr * step / config.warmup
    done = (step - config.warmup) / max(config.fixed - config.warmup, 1)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))
    return config.lr * (config.final_lr + (1.0 - config.final_lr) * cosine)


# ------------------------------------------------------------------------------------- one step


@dataclass(frozen=True)
class _Run:
    """What every step of a run needs."""

    task: Task
    model: nn.Module
    working: Working
    config: TrainConfig
    optimizer: Optimizer
    work: Path
    log: MetricsLog
    stop: threading.Event
    lanes: Lanes

    def step(self, step: int) -> tuple[dict[str, Any], bool]:
        """One optimizer step; returns its metrics and whether any rank was asked to stop."""
        begin = time.monotonic()
        micros = self.task.micros(step, self.working.net)
        with self.lanes.at_work():
            line, stopping = self._update(step, micros)
        line["step_time"] = round(time.monotonic() - begin, 4)
        return line, stopping

    def _update(self, step: int, micros: Sequence[Any]) -> tuple[dict[str, Any], bool]:
        task, rate = self.task, learning_rate(step, self.config)
        count = math.fsum(micro.count for micro in micros)
        self.optimizer.zero_grad()
        mine = self._backward(micros, count) if count else []
        trained = [p for p in self.model.parameters() if p.grad is not None]
        norm = dist.full(get_total_norm([p.grad for p in trained if p.grad is not None]))
        answers = dist.gather([mine, self.stop.is_set()])
        records = sorted(record for part, _ in answers for record in part)
        extras = task.metrics(step) if hasattr(task, "metrics") else {}  # type: ignore[attr-defined]
        line = {
            "step": step,
            "loss": sum(total for _, total, _ in records) / count if count else 0.0,
            "grad_norm": float(norm),
            "learning_rate": rate,
            **_means(records),
            **{name: float(value) for name, value in sorted(extras.items())},
        }
        culprit = _non_finite(records, line)
        if culprit or not math.isfinite(count):
            self._refuse(line, records, culprit or "count")
        if count:
            clip_grads_with_norm_(trained, self.config.clip, norm)
            self.optimizer.step(rate)
            self.working.refresh()
        before = self.log.lines[-1]["num_tokens"] if self.log.lines else 0
        line["num_tokens"] = before + sum(getattr(micro, "tokens", micro.count) for micro in micros)
        if hasattr(task, "epoch"):
            line["epoch"] = task.epoch(step)  # type: ignore[attr-defined]
        return line, any(asked for _, asked in answers)

    def _backward(self, micros: Sequence[Any], count: float) -> list[Any]:
        """Forward and backward of this rank's micros; returns [index, total, {metric: [sum, n]}].

        FSDP averages over ranks, hence the factor. Every rank does the same number of forwards: the
        short ones repeat a micro with weight 0.
        """
        here, device = dist.world(), next(self.model.parameters()).device.type
        self.working.net.train()
        # A cast of a weight that is kept for later belongs to one lane's graph.
        half = {"enabled": self.config.precision == "bf16", "cache_enabled": self.lanes.n == 1}

        def loss(index: int) -> tuple[Tensor, Loss]:
            with torch.autocast(device, torch.bfloat16, **half):
                found = self.task.loss(self.working.net, micros[index % len(micros)])
            total = found.total * (here.size / count if index < len(micros) else 0.0)
            return total, Loss(found.total.detach(), found.metrics)

        turns = range(here.rank, here.size * math.ceil(len(micros) / here.size), here.size)
        kept = self.lanes.backward(turns, loss)
        # Converted only now: on a GPU each float() waits for the device.
        return [
            [
                index,
                float(done.total),
                {k: [float(s), float(n)] for k, (s, n) in done.metrics.items()},
            ]
            for index, done in zip(turns, kept, strict=True)
            if index < len(micros)
        ]

    def _refuse(self, line: dict[str, Any], records: list[Any], culprit: str) -> NoReturn:
        """Dump what is known, leave weights and moments as they were, raise."""
        named = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        local = {n: g.to_local() if isinstance(g, DTensor) else g for n, g in named.items()}
        bad = [name for name, gradient in local.items() if not gradient.isfinite().all()]
        self.optimizer.zero_grad()
        bad = sorted({name for part in dist.gather(bad) for name in part})
        path = self.work / "nonfinite.json"
        if dist.world().first:
            dump = {
                "task": self.task.name,
                "culprit": culprit,
                "metrics": {name: repr(value) for name, value in line.items()},
                "losses": {str(index): repr(total) for index, total, _ in records},
                "gradients": bad[:20],
            }
            write_json(path, dump)
        raise NonFiniteError(
            f"{self.task.name}: step {line['step']}: {culprit} is not finite, no update made "
            f"(see {path})"
        )


def _means(records: list[Any]) -> dict[str, float]:
    """Metrics of a step, summed in micro order so that no number depends on the world size."""
    sums: dict[str, list[float]] = {}
    for _, _, metrics in records:
        for name, (total, n) in metrics.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += n
    return {name: total / n for name, (total, n) in sorted(sums.items()) if n}


def _non_finite(records: list[Any], line: dict[str, Any]) -> str | None:
    """What is not finite, the cause before the effect."""
    for index, total, _ in records:
        if not math.isfinite(total):
            return f"loss of micro {index}"
    order = sorted(line, key=lambda name: name in ("loss", "grad_norm"))
    return next((name for name in order if not math.isfinite(line[name])), None)


# ---------------------------------------------------------------------------------- surroundings


@contextmanager
def _numerics() -> Iterator[None]:
    """cuDNN attention gives NaN gradients with some masks; denormals slow CPUs down a lot."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; a second SIGTERM ends the process at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous)
