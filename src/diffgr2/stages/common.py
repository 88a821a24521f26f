"""What every training stage does alike: train, report parts of its loss, write a model directory.

Contract: a model directory holds config.json, safetensors weights, the vocabulary and
`metrics.jsonl` of the training that made it; `train_stage` is fit → write, under one process or
`torchrun`. Not here: tasks (each stage's own) and evaluation.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffgr2.config import Answering, TrainConfig
from diffgr2.model.contract import CHAT_TEMPLATE, SECTION, VOCABULARY_FILES, read_config
from diffgr2.model.load import Backbone, empty, save
from diffgr2.pipeline import StageContext
from diffgr2.stages.corpus import Corpus
from diffgr2.train import dist
from diffgr2.train.log import without_wall
from diffgr2.train.loop import Task, fit


def write_model(model: Backbone, source: Path, out: Path) -> None:
    """Write weights, config (with the block-diffusion section of `source`) and vocabulary files."""
    values = read_config(source) if (source / "config.json").exists() else {}
    save(model, out, {SECTION: values[SECTION]} if SECTION in values else {})
    for name in (*VOCABULARY_FILES, CHAT_TEMPLATE):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def train_stage(
    ctx: StageContext, task: Task, model: Backbone, config: TrainConfig, source: Path
) -> dict[str, Any]:
    """Fit and write; returns the means of the last steps' metrics."""
    lines = fit(task, model, config, ctx.work, ctx.seed, ctx.progress)
    if dist.is_sharded(model):
        whole = dist.full_tensors(model)
        model = empty(model.config)
        model.load_state_dict(whole, strict=False)
    if dist.world().first:
        write_model(model, source, ctx.out)
        if lines:
            # Wall-clock fields would make two equal runs differ; they stay out of the artifact.
            texts = [json.dumps(line, sort_keys=True) + "\n" for line in without_wall(lines)]
            (ctx.out / "metrics.jsonl").write_text("".join(texts))
    return summary(lines)


def summary(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the last 20 steps, for the manifest."""
    tail = lines[-20:]
    names = {name for line in tail for name in line}
    means = {}
    for name in sorted(names - {"step", "step_time", "learning_rate", "num_tokens"}):
        values = [line[name] for line in tail if name in line]
        means[name] = round(sum(values) / len(values), 6)
    return {"steps": len(lines), **means}


def answer_to_learn(corpus: Corpus, rng: np.random.Generator, *, reasoning: bool) -> Answering:
    """How a training text ends: behind reasoning with all that is trained, else one at random."""
    answers = corpus.answers
    drawn = answers[int(rng.integers(len(answers)))]
    return answers[-1] if reasoning else drawn


def by_part(name: str, value_N: Tensor, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Metrics `part/name`: sum and count of the values in each part, given as a mask [N]."""
    return {f"{part}/{name}": (value_N[in_N].sum(), in_N.sum()) for part, in_N in parts.items()}
