"""What every training stage does alike: open its model, train, write a model directory.

Contract: a model directory holds config.json, safetensors weights, the vocabulary and
`metrics.jsonl` of the training that made it; `train_stage` is open → fit → write, under one process
or `torchrun`. Not here: tasks (each stage's own) and evaluation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import Qwen3ForCausalLM

from diffgr2.config import TrainConfig
from diffgr2.model.contract import read_config
from diffgr2.model.load import VOCABULARY_FILES, save
from diffgr2.pipeline import StageContext
from diffgr2.train import dist
from diffgr2.train.log import without_wall
from diffgr2.train.loop import Task, fit

MODEL_KEYS = ("block_diffusion",)
"""Sections of config.json that a stage hands on."""


def write_model(
    model: Qwen3ForCausalLM, source: Path, out: Path, extra: dict[str, Any] | None = None
) -> None:
    """Write weights, config (with the sections of `source`) and the vocabulary files."""
    values = read_config(source) if (source / "config.json").exists() else {}
    kept = {key: values[key] for key in MODEL_KEYS if key in values}
    save(model, out, {**kept, **(extra or {})})
    for name in VOCABULARY_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def train_stage(
    ctx: StageContext, task: Task, model: Qwen3ForCausalLM, config: TrainConfig, source: Path
) -> dict[str, Any]:
    """Fit and write; returns the last step's metrics."""
    lines = fit(task, model, config, ctx.work, ctx.seed, ctx.progress)
    if dist.is_sharded(model):
        whole = dist.full_tensors(model)
        model = Qwen3ForCausalLM(model.config)
        model.load_state_dict(whole, strict=False)
    if not dist.world().first:
        return summary(lines)  # the first process writes
    write_model(model, source, ctx.out)
    metrics = ctx.work / "metrics.jsonl"
    if metrics.exists():
        # Wall-clock fields would make two equal runs differ; they stay out of the artifact.
        write_metrics(lines, ctx.out / "metrics.jsonl")
    return summary(lines)


def write_metrics(lines: list[dict[str, Any]], path: Path) -> None:
    """Metrics of all steps without wall-clock fields."""

    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in without_wall(lines))
    path.write_text(text)


def summary(lines: list[dict[str, Any]], window: int = 20) -> dict[str, Any]:
    """Means over the last steps, for the manifest."""
    tail = lines[-window:]
    names = sorted({name for line in tail for name in line})
    skip = {"step", "step_time", "learning_rate", "num_tokens"}
    means = {
        name: sum(line[name] for line in tail if name in line)
        / sum(1 for line in tail if name in line)
        for name in names
        if name not in skip
    }
    return {"steps": len(lines), **{k: round(v, 6) for k, v in means.items()}}
