"""Every training stage on the tiny corpus, in milliseconds a step.

Contract: `sft_task` … `block_rl_task` build the real stages' tasks on `tiny_corpus.corpus()`;
`model(kind)` gives fresh weights or trained ones (`ar` after SFT, `block` after CFT), trained once
per process, or once per folder where `DIFFGR2_TINY` names one. The functions without arguments at
the end are factories as `battery` wants them. Not here: anything that pretends to be a stage.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from diffgr2.config import (
    BlockRlConfig,
    CftConfig,
    DistillConfig,
    OpdConfig,
    RlConfig,
    SftConfig,
    TrainConfig,
)
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.contract import BlockContract
from diffgr2.model.forward import LeanModel
from diffgr2.progress import Progress
from diffgr2.stages.cft import CftTask
from diffgr2.stages.corpus import KNOWN
from diffgr2.stages.distill import Asked, Outputs, asked, packed
from diffgr2.stages.opd import OpdTask
from diffgr2.stages.preferring import PreferenceTask
from diffgr2.stages.rl import RlTask
from diffgr2.stages.rollouts import Roller, rollout_settings
from diffgr2.stages.sft import SftTask
from diffgr2.train.loop import Task, fit
from diffgr2.types import Trajectory
from support.tiny_corpus import K_MAX, SEED, corpus, vocabulary

BLOCK = 4
STEPS = 12


def shown_config(direct: float) -> DistillConfig:
    """All lists, some of them shuffled, longer, or without part of their evidence."""
    return DistillConfig(lists=0, direct=direct, shuffle=1 / 3, vary=0.3, hide=0.2)


@cache
def lessons(direct: bool = False) -> list[tuple[Asked, Trajectory]]:
    """The lists as `distill` asks for them, and what a flawless teacher would write."""
    shop, made = corpus(), []
    for one in asked(shop, shown_config(float(direct)), SEED):
        shown = one.shown
        trace = shop.taught(KNOWN[one.split], one.row, shown)  # the tiny corpus traces every list
        how: Any = {"reasoning": not direct, "answer": one.answer}
        tokens = shop.template.response(shown.request, trace, **how).tokens
        if one.answer == "said":
            tokens = tokens[:-1]  # decoding ends with the last strength
        levels = [shop.vocab.strength_of(token) for token in tokens]
        level_T = np.array([np.nan if v is None else v for v in levels], dtype=np.float32)
        level_T[np.isfinite(level_T)] = trace.level_K[: np.isfinite(level_T).sum()]
        nothing_T = np.zeros(len(tokens), dtype=np.float32)
        steps_T = np.arange(len(tokens), dtype=np.int32)
        given = (np.array(tokens), steps_T, nothing_T, len(tokens), True)
        made.append((one, Trajectory(*given, level_T=level_T)))
    return made


@cache
def outputs(direct: bool = False) -> Outputs:
    """What the flawless teacher wrote, with reasoning or without."""
    return packed(lessons(direct), K_MAX)


def both() -> Outputs:
    """Outputs with and without reasoning."""
    return packed(lessons() + lessons(direct=True), K_MAX)


# -------------------------------------------------------------------------------------- the models


def contract_of(**changes: Any) -> BlockContract:
    return BlockContract(**{"block_size": BLOCK, "mask_token_id": vocabulary().mask_id, **changes})


def fresh(
    seed: int = SEED, *, tied: bool = True, dim: int = 24, layers: int = 2, head_dim: int = 12
) -> Any:
    """A random model of the backbone's kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=-(-vocabulary().spec.size // 8) * 8,
                hidden_size=dim,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=head_dim,
                intermediate_size=2 * dim,
                max_position_embeddings=2048,
                tie_word_embeddings=tied,
                initializer_range=0.1,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
            )
        )


def quietly(task: Task, net: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Train in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        return fit(task, net, config, Path(folder), SEED, Progress(io.StringIO()))


def _train(kind: str) -> dict[str, torch.Tensor]:
    shop = corpus()
    if kind == "ar":
        net = fresh()
        config = config_of(SftConfig, steps=45, rows=24, lr=2e-2, direct=0.6)
        quietly(SftTask(shop, config, SEED), net, config)
    else:
        net = model("ar")
        config = config_of(CftConfig, steps=100, rows=16, lr=1e-2)
        quietly(CftTask(shop, both(), contract_of(), config, SEED), net, config)
    return {name: tensor.detach().clone() for name, tensor in net.named_parameters()}


@cache
def trained(kind: str) -> dict[str, torch.Tensor]:
    """Weights after SFT (`ar`), or after SFT and CFT (`block`)."""
    folder = os.environ.get("DIFFGR2_TINY")
    if folder is None:
        return _train(kind)
    path = Path(folder) / f"{kind}.safetensors"
    if not path.is_file():
        temporary = path.with_suffix(f".{os.getpid()}")
        save_file(_train(kind), temporary)
        temporary.rename(path)
    return load_file(path)


def model(kind: str = "fresh", **changes: Any) -> Any:
    """A model of its own with these weights."""
    net = fresh(**changes)
    if kind != "fresh":
        net.load_state_dict(trained(kind), strict=False)
    return net


# --------------------------------------------------------------------------------------- the tasks


PLAIN: dict[type, dict[str, Any]] = {
    SftConfig: {"answer_weight": 1.0},
    CftConfig: {"answer_weight": 1.0, "fully_masked": 0.3, "random_origin": True},
    OpdConfig: {"rollouts": 4, "temperature": 1.0, "teacher_temperature": 1.0},
}
"""What a model of a few thousand weights is taught with, other than a real one."""


def config_of(section: type, **changes: Any) -> Any:
    """A stage's config, small."""
    values = {
        "optimizer": "adamw",
        "muon_lr": 6e-3,
        "precision": "fp32",
        **PLAIN.get(section, {}),
        "steps": STEPS,
        "rows": 4,
        "micro_rows": 64,
        "lr": 3e-3,
        "warmup": 2,
        "checkpoint_every": 2,
        "weight_decay": 0.0,
    }
    return section.model_validate({**values, **changes})


def sft_task(**changes: Any) -> tuple[SftTask, SftConfig]:
    config = config_of(SftConfig, **changes)
    return SftTask(corpus(), config, SEED), config


def rl_task(*, reasoning: bool = False, **changes: Any) -> tuple[RlTask, RlConfig]:
    base = {"prompts": 2, "group": 6, "refill": 3, "epochs": 2, "overlong_cache": 4}
    config = config_of(RlConfig, **{**base, **changes})
    settings = rollout_settings(corpus(), None, config)
    roller = Roller("rl", corpus(), config, settings, SEED, reasoning=reasoning)
    return RlTask(roller, None), config


def cft_task(*, contract: BlockContract | None = None, **changes: Any) -> tuple[CftTask, CftConfig]:
    config = config_of(CftConfig, **changes)
    return CftTask(corpus(), outputs(), contract or contract_of(), config, SEED), config


def opd_task(
    frozen: nn.Module | None,
    *,
    direct: bool = True,
    contract: BlockContract | None = None,
    **changes: Any,
) -> tuple[OpdTask, OpdConfig]:
    contract = contract or contract_of()
    config = config_of(OpdConfig, **{"rollouts": 2, **changes})
    settings = rollout_settings(corpus(), contract, config)
    texts = outputs(direct)
    return OpdTask(corpus(), texts, contract, config, settings, frozen, SEED), config


def block_rl_task(
    *, reasoning: bool = False, contract: BlockContract | None = None, **changes: Any
) -> tuple[RlTask, BlockRlConfig]:
    contract = contract or contract_of()
    base = {"prompts": 2, "group": 6, "refill": 3, "epochs": 2, "overlong_cache": 4}
    config = config_of(BlockRlConfig, **{**base, **changes})
    settings = rollout_settings(corpus(), contract, config)
    roller = Roller("block_rl", corpus(), config, settings, SEED, reasoning=reasoning)
    return RlTask(roller, contract), config


def preference_task(
    reference: nn.Module, *, contract: BlockContract | None = None, **changes: Any
) -> tuple[PreferenceTask, BlockRlConfig]:
    task, config = block_rl_task(contract=contract, objective="preference", **changes)
    return PreferenceTask(task.roller, contract or contract_of(), reference), config


def lean(net: Any) -> LeanModel:
    return LeanModel(net.eval())


def asked_of(task: OpdTask, n: int, *key: str | int) -> DecodeRequest:
    """The n-th output as OPD asks for it, from a random stream of its own."""
    return DecodeRequest(task.outputs.prompt(task.corpus, n), task._grammar(n), (*key, n))


def rolled(net: Any, settings: DecodeSettings, requests: Sequence[DecodeRequest]) -> list[Any]:
    """Trajectories of these requests."""
    return decode(lean(net), requests, settings)


# ---------------------------------------------------------------------- factories for the battery


def make_sft(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    task, config = sft_task(steps=steps, micro_rows=2)
    return task, model(), config


def make_rl(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    task, config = rl_task(steps=steps, micro_rows=4)
    return task, model("ar"), config


def make_cft(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    task, config = cft_task(steps=steps, micro_rows=2)
    return task, model("ar"), config


def make_opd(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    teacher = model("ar").eval().requires_grad_(False)
    task, config = opd_task(teacher, steps=steps, micro_rows=2)
    return task, model("block"), config


def make_block_rl(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    task, config = block_rl_task(steps=steps, micro_rows=4)
    return task, model("block"), config


def make_preference(steps: int = STEPS) -> tuple[Task, nn.Module, TrainConfig]:
    reference = model("block").eval().requires_grad_(False)
    task, config = preference_task(reference, steps=steps, micro_rows=4)
    return task, model("block"), config


SHORT = 4
make_short_sft = partial(make_sft, SHORT)
make_short_rl = partial(make_rl, SHORT)
make_short_cft = partial(make_cft, SHORT)
make_short_opd = partial(make_opd, SHORT)
make_short_block_rl = partial(make_block_rl, SHORT)
make_short_preference = partial(make_preference, SHORT)
