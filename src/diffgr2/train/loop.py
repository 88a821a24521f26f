"""The one training loop: midtrain, sft, rl and cft, opd, block_rl differ by their `Task` only.

Contract: `fit` trains until `config.steps`, resumes from the newest valid checkpoint in `work` with
bit-identical results, and does nothing when the run is already finished. The gradient of a step is
the sum over its micros divided by their *global* count, however they are cut or spread over
processes. A non-finite loss, metric or gradient raises NonFiniteError before the optimizer ran.
SIGTERM ends the run at the next round with a checkpoint (`Stopped`, exit code 0). Not here: data,
rollouts, losses (`stages`), the model's construction, and any random number: a task derives its
draws from (seed, step) through `diffgr2.streams`.
"""

from __future__ import annotations

import io
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffgr2.artifacts import write_json
from diffgr2.config import TrainConfig
from diffgr2.errors import NonFiniteError
from diffgr2.progress import Progress
from diffgr2.train import checkpoint, dist
from diffgr2.train.log import MetricsLog
from diffgr2.train.schedule import learning_rate

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

    @property
    def name(self) -> str: ...

    @property
    def round_steps(self) -> int:
        """Optimizer steps per rollout batch (1 without rollouts).

        Checkpoints are taken between rounds only, so that no rollout need be stored: a resumed run
        makes them again from the same weights and counters.
        """
        ...

    def micros(self, step: int, model: nn.Module) -> Sequence[Any]:
        """All micros of a step (from 1): a function of (seed, step, weights), equal on each rank.

        Roll out with `dist.rollout_model(model)`. An empty list, or all counts 0, is a step without
        an update. Autocast is on as for `loss`.
        """
        ...

    def loss(self, model: nn.Module, micro: Any) -> Loss:
        """One forward."""
        ...


class Stopped(SystemExit):
    """SIGTERM was honoured: a checkpoint stands, the run goes on when started again."""

    def __init__(self, message: str) -> None:
        super().__init__(0)
        self.message = message


def fit(
    task: Task,
    model: nn.Module,
    config: TrainConfig,
    work: Path,
    seed: int,
    progress: Progress,
    *,
    tensorboard: Path | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place; returns the metrics of all steps, those before a resume included.

    Under a process group the model is sharded in place: write it from `dist.full_tensors(model)`.
    """
    if config.steps == 0:
        return []
    first = dist.world().first
    if not first:
        progress = Progress(io.StringIO())
    with ExitStack() as stack:
        stack.enter_context(_numerics())
        stop = stack.enter_context(_sigterm())
        dist.shard(model)
        optimizer = make_optimizer(model, config)
        mark = checkpoint.identity(task.name, seed, config, model)
        root = work / "checkpoints"
        resumed = checkpoint.resume(root, mark, model, optimizer, progress.line)
        start = resumed.step if resumed else 0
        path = work / "metrics.jsonl" if first else None
        log = MetricsLog(path, resumed.metrics if resumed else b"", tensorboard)
        stack.callback(log.close)
        bar = stack.enter_context(progress.task(task.name, config.steps))
        if start:
            bar.advance(start, "resumed")
        saved = start
        for step in range(start + 1, config.steps + 1):
            line, stopping = _train_step(task, model, optimizer, config, step, log, work, stop)
            log.append(line)
            bar.advance(1, f"loss {line['loss']:.4f}")
            between = step % task.round_steps == 0 or step == config.steps
            due = step // config.checkpoint_every > saved // config.checkpoint_every
            if between and (due or stopping or step == config.steps):
                raw = bytes(log.raw)
                checkpoint.save(root, step, mark, model, optimizer, raw, config.keep)
                saved = step
            if between and stopping and step < config.steps:
                progress.line(f"{task.name}: stopped at step {step} with a checkpoint")
                raise Stopped(f"{task.name}: stopped at step {step}")
        return log.lines


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only (norm gains and biases are scales, not features)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(0.9, 0.95),
        fused=True,
    )


# ------------------------------------------------------------------------------------- one step


def _train_step(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    step: int,
    log: MetricsLog,
    work: Path,
    stop: threading.Event,
) -> tuple[dict[str, Any], bool]:
    """One optimizer step; returns its metrics and whether any rank was asked to stop."""
    begin = time.monotonic()
    rate = learning_rate(step, config)
    micros = task.micros(step, model)  # rollouts compute in the weights' own precision
    count = math.fsum(micro.count for micro in micros)
    optimizer.zero_grad(set_to_none=True)
    records: list[Any] = []
    norm = 0.0
    if count:
        records = _backward(task, model, config, micros, count)
        norm_tensor = _grad_norm(model)
        norm = float(norm_tensor)
    answers = dist.gather([records, stop.is_set()])
    records = sorted(record for part, _ in answers for record in part)
    extras = task.metrics(step) if hasattr(task, "metrics") else {}  # type: ignore[attr-defined]
    line = _metrics_line(step, records, count, norm, rate, extras)
    culprit = _non_finite(records, line)
    if culprit or not math.isfinite(count):
        _refuse(task, model, optimizer, work, line, records, culprit or "count")
    if count:
        gradients = [p for p in model.parameters() if p.grad is not None]
        clip_grads_with_norm_(gradients, config.clip, norm_tensor)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    before = log.lines[-1]["num_tokens"] if log.lines else 0
    line["num_tokens"] = before + sum(getattr(micro, "tokens", micro.count) for micro in micros)
    if hasattr(task, "epoch"):
        line["epoch"] = task.epoch(step)  # type: ignore[attr-defined]
    line["step_time"] = round(time.monotonic() - begin, 4)
    return line, any(asked for _, asked in answers)


def _backward(
    task: Task, model: nn.Module, config: TrainConfig, micros: Sequence[Any], count: float
) -> list[Any]:
    """Forward and backward of this rank's micros; returns [index, total, {metric: [sum, n]}].

    FSDP averages over ranks, hence the factor. Every rank does the same number of forwards: the
    short ones repeat a micro with weight 0.
    """
    here = dist.world()
    model.train()
    results: list[tuple[int, Loss]] = []
    for turn in range(math.ceil(len(micros) / here.size)):
        index = turn * here.size + here.rank
        real = index < len(micros)
        with _autocast(model, config):
            loss = task.loss(model, micros[index if real else index % len(micros)])
        if loss.total.requires_grad:
            (loss.total * (here.size / count if real else 0.0)).backward()
        if real:
            results.append((index, Loss(loss.total.detach(), loss.metrics)))
    # Converted only now: on a GPU each float() waits for the device.
    return [
        [index, float(loss.total), {k: [float(s), float(n)] for k, (s, n) in loss.metrics.items()}]
        for index, loss in results
    ]


def _grad_norm(model: nn.Module) -> Tensor:
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _metrics_line(
    step: int,
    records: list[Any],
    count: float,
    norm: float,
    rate: float,
    extras: dict[str, float],
) -> dict[str, Any]:
    """Metrics of a step, summed in micro order so that no number depends on the world size."""
    sums: dict[str, list[float]] = {}
    for _, _, metrics in records:
        for name, (total, n) in metrics.items():
            entry = sums.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += n
    return {
        "step": step,
        "loss": sum(total for _, total, _ in records) / count if count else 0.0,
        "grad_norm": norm,
        "learning_rate": rate,
        **{name: total / n for name, (total, n) in sorted(sums.items()) if n},
        **{name: float(value) for name, value in sorted(extras.items())},
    }


def _non_finite(records: list[Any], line: dict[str, Any]) -> str | None:
    """What is not finite, the cause before the effect."""
    for index, total, _ in records:
        if not math.isfinite(total):
            return f"loss of micro {index}"
    order = sorted(line, key=lambda name: name in ("loss", "grad_norm"))
    return next((name for name in order if not math.isfinite(line[name])), None)


def _refuse(
    task: Task,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    work: Path,
    line: dict[str, Any],
    records: list[Any],
    culprit: str,
) -> None:
    """Dump what is known, leave weights and moments as they were, raise."""
    bad = [
        name
        for name, p in model.named_parameters()
        if p.grad is not None and not _local(p.grad).isfinite().all()
    ]
    optimizer.zero_grad(set_to_none=True)
    bad = sorted({name for part in dist.gather(bad) for name in part})
    path = work / "nonfinite.json"
    if dist.world().first:
        work.mkdir(parents=True, exist_ok=True)
        dump = {
            "task": task.name,
            "culprit": culprit,
            "metrics": {name: repr(value) for name, value in line.items()},
            "losses": {str(index): repr(total) for index, total, _ in records},
            "gradients": bad[:20],
        }
        write_json(path, dump)
    raise NonFiniteError(
        f"{task.name}: step {line['step']}: {culprit} is not finite, no update made (see {path})"
    )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---------------------------------------------------------------------------------- surroundings


def _autocast(model: nn.Module, config: TrainConfig) -> torch.autocast:
    device = next(model.parameters()).device.type
    return torch.autocast(device, torch.bfloat16, enabled=config.precision == "bf16")


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
