"""The table of stages: what reads what (DESIGN §3), for the runner and the command line.

Contract: `STAGES` maps names to `Stage` objects in pipeline order; `GOALS` are what `diffgr2 run`
builds. A stage lists exactly the recipe sections that its result depends on. Not here: code of any
stage; modules are imported when a stage runs, so that `--help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import Any

from diffgr2.pipeline import Stage, StageContext
from diffgr2.stages.rows import ROWS


def _lazy(module: str, function: str = "run") -> Callable[[StageContext], dict[str, Any]]:
    """The stage function, imported on its first call."""

    def call(ctx: StageContext) -> dict[str, Any]:
        return getattr(import_module(f"diffgr2.stages.{module}"), function)(ctx)

    return call


def _score(row: str) -> Callable[[StageContext], dict[str, Any]]:
    def call(ctx: StageContext) -> dict[str, Any]:
        score = import_module("diffgr2.stages.score")
        return score.run_row(ctx, score.SPECS[row])

    return call


def _outside(recipe: Any) -> list[Any]:
    return import_module("diffgr2.stages.data").outside_files(recipe)


CORPUS = ("vocabulary", "data", "items", "candidates", "evidence")
"""What every language-model stage reads besides its model."""

BUNDLED = ("name", "items", "candidates", "evidence", "prompt", "decode")
"""Sections that a served request depends on (`stages.bundle`)."""

SCORED = ("decode.repair", "evaluate.users", "evaluate.max_users", "prompt", "candidates")
"""What every row of the results depends on besides its model; and what it decodes with:"""

READ_BY = {
    "ar": ("decode.temperature", "decode.max_tokens"),
    "raw": ("decode.temperature", "decode.max_tokens", "decode.clean_kv"),
    "verify": ("decode.temperature", "decode.max_tokens", "decode.clean_kv", "decode.canvas"),
    "recommended": ("decode",),
}

TIMED = tuple(
    f"evaluate.{key}"
    for key in ("batch", "speed_lists", "rounds", "thresholds", "frontier_lists", "lengths")
)

MEASURED = tuple(f"score_{spec.name}" for spec in ROWS)

_LIST = [
    Stage("data", _lazy("data"), (), ("data",), "import, k-core, leave-one-out", files=_outside),
    Stage("items", _lazy("items"), ("data",), ("items",), "text vectors and semantic IDs"),
    Stage("retriever", _lazy("retriever"), ("data",), ("retriever",), "train the retriever"),
    Stage(
        "candidates",
        _lazy("candidates"),
        ("data", "retriever"),
        ("retriever", "candidates"),
        "cross-fitted candidate lists",
    ),
    Stage(
        "evidence",
        _lazy("evidence"),
        ("data", "items", "candidates"),
        ("evidence",),
        "evidence per candidate, scorers without a language model",
    ),
    Stage(
        "vocabulary",
        _lazy("vocabulary"),
        ("data", "evidence"),
        ("model", "prompt", "items", "candidates", "evidence"),
        "tokenizer, mask first, then semantic IDs",
    ),
    Stage(
        "traces",
        _lazy("traces"),
        ("vocabulary", "data", "items", "candidates", "evidence"),
        ("traces", "prompt", "evidence"),
        "the teacher's reasoning on training lists",
    ),
    Stage("midtrain", _lazy("midtrain"), CORPUS, ("model", "midtrain", "prompt"), "item alignment"),
    Stage(
        "sft",
        _lazy("sft"),
        (*CORPUS, "traces", "midtrain"),
        ("sft", "prompt", "candidates"),
        "imitate the traces",
    ),
    Stage(
        "rl", _lazy("rl"), (*CORPUS, "sft"), ("rl", "prompt", "candidates"), "DAPO: the AR teacher"
    ),
    Stage(
        "direct_rl",
        _lazy("rl", "run_direct"),
        (*CORPUS, "sft"),
        ("direct_rl", "prompt", "candidates"),
        "the same without reasoning",
    ),
    Stage(
        "distill",
        _lazy("distill"),
        (*CORPUS, "rl"),
        ("distill", "prompt", "candidates"),
        "the AR teacher's own outputs",
    ),
    Stage("convert", _lazy("convert"), ("rl",), ("convert",), "AR to block diffusion, bit for bit"),
    Stage(
        "cft",
        _lazy("cft"),
        (*CORPUS, "distill", "convert"),
        ("cft", "prompt", "candidates"),
        "conversion fine-tuning",
    ),
    Stage(
        "opd",
        _lazy("opd"),
        (*CORPUS, "distill", "rl", "cft"),
        ("opd", "prompt", "candidates", "decode.clean_kv"),
        "on-policy distillation",
    ),
    Stage(
        "block_rl",
        _lazy("block_rl"),
        (*CORPUS, "opd"),
        ("block_rl", "prompt", "candidates", "decode.clean_kv"),
        "RL on the diffusion policy",
    ),
    Stage(
        "cft_rl",
        _lazy("block_rl", "run_from_cft"),
        (*CORPUS, "cft"),
        ("cft_rl", "prompt", "candidates", "decode.clean_kv"),
        "the same without OPD",
    ),
    Stage(
        "bundle",
        _lazy("bundle"),
        ("data", "items", "evidence", "retriever", "block_rl"),
        BUNDLED,
        "one model directory to serve: the diffusion model",
    ),
    Stage(
        "bundle_ar",
        _lazy("bundle", "run_ar"),
        ("data", "items", "evidence", "retriever", "rl"),
        BUNDLED,
        "the same of the AR teacher",
    ),
    *(
        Stage(
            f"score_{spec.name}",
            _score(spec.name),
            (*CORPUS, spec.model),
            (*SCORED, *READ_BY[spec.how]),
            f"decode the test lists: {spec.name}",
        )
        for spec in ROWS
    ),
    Stage(
        "speed",
        _lazy("speed"),
        (*CORPUS, "rl", "block_rl"),
        ("decode", *TIMED, "prompt", "candidates"),
        "decoders timed in one run, quality against speed",
    ),
]

TRAINED = ("midtrain", "sft", "rl", "direct_rl", "cft", "opd", "block_rl", "cft_rl")
"""Stages with a training loop; the processes of a torchrun share their work."""

STAGES = {stage.name: replace(stage, shared=stage.name in TRAINED) for stage in _LIST}
AR_ROWS = tuple(f"score_{name}" for name in ("ar_direct", "ar_sft", "ar"))
GOALS = {
    "candidates": ["evidence"],
    "teacher": ["rl", "direct_rl", *AR_ROWS],
    "ladder": list(MEASURED),
    "all": [*MEASURED, "speed", "bundle"],
}
