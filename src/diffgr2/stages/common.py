"""What every training stage does alike: train, report parts of its loss, write a model directory.

Contract: a model directory holds config.json, safetensors weights, the vocabulary and
`metrics.jsonl` of the training that made it; `train_stage` is fit → write, under one process or
`torchrun`. A model whose diffusion lives in an adapter is written as the base's own weight files
and the adapter; `lora` trains an adapter that is active everywhere and writes the sum. Not here:
tasks (each stage's own) and evaluation.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffgr2.config import AdapterConfig, Answering, TrainConfig
from diffgr2.errors import ConfigError
from diffgr2.model.adapter import Adapter, write_adapter
from diffgr2.model.contract import CHAT_TEMPLATE, SECTION, VOCABULARY_FILES, read_config
from diffgr2.model.family import sizes_of
from diffgr2.model.gated import adapter_arrays, adapter_in, attach, merge
from diffgr2.model.load import Backbone, empty, save
from diffgr2.pipeline import StageContext
from diffgr2.stages.corpus import Corpus
from diffgr2.streams import key_of
from diffgr2.train import dist
from diffgr2.train.log import METRICS, without_wall
from diffgr2.train.loop import Task, fit


def write_model(model: Backbone, source: Path, out: Path) -> None:
    """Write weights, config (with the block-diffusion section of `source`) and vocabulary files."""
    values = read_config(source) if (source / "config.json").exists() else {}
    save(model, out, {SECTION: values[SECTION]} if SECTION in values else {})
    _beside(source, out, (*VOCABULARY_FILES, CHAT_TEMPLATE))


def write_adapted(model: Backbone, source: Path, out: Path) -> None:
    """The weight files of `source`, which did not change, and the adapter as it is now."""
    adapter = adapter_in(model)
    assert adapter is not None
    for pattern in ("*.safetensors", "*.safetensors.index.json"):
        for path in source.glob(pattern):
            try:
                os.link(path, out / path.name)  # stages are never written to once they stand
            except OSError:
                shutil.copyfile(path, out / path.name)
    _beside(source, out, ("config.json", *VOCABULARY_FILES, CHAT_TEMPLATE))
    write_adapter(out, adapter, adapter_arrays(model))


def _beside(source: Path, out: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)


def train_stage(
    ctx: StageContext, task: Task, model: Backbone, config: TrainConfig, source: Path
) -> dict[str, Any]:
    """Fit and write; returns the means of the last steps' metrics."""
    if config.lora is not None and config.fixed:
        give_lora(model, config.lora, ctx.name, ctx.seed)
    lines = fit(task, model, config, ctx.work, ctx.seed, ctx.progress)
    if dist.is_sharded(model):
        model = whole(model)
    if dist.world().first:
        adapter = adapter_in(model)
        if adapter is not None and adapter.mask_id is not None:
            write_adapted(model, source, ctx.out)
        else:
            write_model(merge(model), source, ctx.out)
        if lines:
            # Wall-clock fields would make two equal runs differ; they stay out of the artifact.
            texts = [json.dumps(line, sort_keys=True) + "\n" for line in without_wall(lines)]
            (ctx.out / METRICS).write_text("".join(texts))
    return summary(lines)


def give_lora(model: Backbone, config: AdapterConfig, stage: str, seed: int) -> None:
    """From now on only an adapter trains, active everywhere."""
    if adapter_in(model) is not None:
        raise ConfigError(
            f"{stage}.lora: this model trains the adapter of convert.adapter already (give either)"
        )
    adapter = Adapter.of(config, None)
    sizes = sizes_of(model.config.to_dict())
    attach(model, adapter, adapter.initial(sizes, key_of(seed, stage, "lora")))


def whole(sharded: Any) -> Backbone:
    """A sharded model in one piece; all ranks call it."""
    tensors, adapter = dist.full_tensors(sharded), adapter_in(sharded)
    model = empty(sharded.config)
    if adapter is not None:
        attach(model, adapter, adapter.initial(sizes_of(model.config.to_dict()), 0))
    model.load_state_dict(tensors, strict=False)
    return model


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
