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
    OpdConfig,
    RlConfig,
    SftConfig,
    TrainConfig,
)
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest
from diffgr2.model.contract import BlockContract
from diffgr2.model.forward import LeanQwen3
from diffgr2.progress import Progress
from diffgr2.stages.cft import CftTask
from diffgr2.stages.corpus import KNOWN
from diffgr2.stages.distill import Outputs
from diffgr2.stages.opd import OpdTask
from diffgr2.stages.rl import RlTask
from diffgr2.stages.rollouts import Roller, rollout_settings
from diffgr2.stages.sft import SftTask
from diffgr2.streams import generator
from diffgr2.train.loop import Task, fit
from support.tiny_corpus import SEED, K, corpus, vocabulary

BLOCK = 4
STEPS = 12


@cache
def outputs(direct: bool = False) -> Outputs:
    """The traces as a flawless teacher would write them, a third with candidates shuffled."""
    shop, rng = corpus(), generator(SEED, "tiny", "outputs")
    rows: list[tuple[int, int, np.ndarray]] = []
    texts: list[list[int]] = []
    for s, split in enumerate(KNOWN):
        for row in range(len(shop.lists[split])):
            order_K = rng.permutation(K) if rng.random() < 1 / 3 else np.arange(K)
            request = shop.request(split, row, order_K)
            trace = shop.trace(split, row).taken(order_K)
            texts.append(shop.template.response(request, trace, reasoning=not direct).tokens)
            rows.append((s, row, order_K))
    width = max(len(text) for text in texts)
    tokens_NT = np.zeros((len(texts), width), dtype=np.int32)
    for n, text in enumerate(texts):
        tokens_NT[n, : len(text)] = text
    return Outputs(
        np.array([s for s, _, _ in rows], dtype=np.int32),
        np.array([row for _, row, _ in rows], dtype=np.int32),
        np.stack([order_K for _, _, order_K in rows]).astype(np.int32),
        np.full(len(rows), direct),
        np.array([len(text) for text in texts], dtype=np.int32),
        tokens_NT,
    )


def both() -> Outputs:
    """Outputs with and without reasoning."""
    reasoned, direct = vars(outputs()), vars(outputs(direct=True))
    width = reasoned["tokens_NT"].shape[1]
    short_NT = direct["tokens_NT"]
    wide_NT = np.pad(short_NT, ((0, 0), (0, width - short_NT.shape[1])))
    joined = {**direct, "tokens_NT": wide_NT}
    return Outputs(**{key: np.concatenate([reasoned[key], joined[key]]) for key in reasoned})


# -------------------------------------------------------------------------------------- the models


def contract_of(**changes: Any) -> BlockContract:
    return BlockContract(**{"block_size": BLOCK, "mask_token_id": vocabulary().mask_id, **changes})


def fresh(seed: int = SEED, *, tied: bool = True, dim: int = 24, layers: int = 2) -> Any:
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
                head_dim=12,
                intermediate_size=2 * dim,
                max_position_embeddings=256,
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


def config_of(section: type, **changes: Any) -> Any:
    """A stage's config, small."""
    values = {
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


def rolled(net: Any, settings: Any, prompts: list[list[int]], *key: str | int) -> list[Any]:
    """Trajectories of these prompts, each from its own stream."""
    requests = [DecodeRequest(p, None, (*key, i)) for i, p in enumerate(prompts)]
    return decode(LeanQwen3(net.eval()), requests, settings)


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


SHORT = 4
make_short_sft = partial(make_sft, SHORT)
make_short_rl = partial(make_rl, SHORT)
make_short_cft = partial(make_cft, SHORT)
make_short_opd = partial(make_opd, SHORT)
make_short_block_rl = partial(make_block_rl, SHORT)
