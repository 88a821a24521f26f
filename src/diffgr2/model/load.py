"""Building, loading and saving the backbone: a stock `Qwen3ForCausalLM`, never a copy of it.

Contract: `build` makes a model from a recipe's dimensions (deterministic in the seed) or from a
Qwen3-family checkpoint directory, with embeddings for the whole vocabulary; `save`/`load` use
safetensors only and no remote code. Everything raises a CheckpointError naming directory and
reason. Not here: the block-diffusion contract (`contract`) and training state (`train.checkpoint`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from diffgr2.artifacts import write_json
from diffgr2.config import ModelConfig
from diffgr2.errors import CheckpointError, first_line
from diffgr2.model.contract import FAMILY, read_config
from diffgr2.streams import key_of

MAX_POSITIONS = 4096

disable_progress_bar()  # weights load in a blink; the bars only break up our own lines


def build(config: ModelConfig, vocab_size: int, seed: int) -> Qwen3ForCausalLM:
    """A model with at least `vocab_size` embedding rows."""
    rows = -(-vocab_size // config.pad_vocab_to) * config.pad_vocab_to
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_of(seed, "model", "init"))
        if config.base is not None:
            model = load(Path(config.base))
            if model.config.vocab_size < vocab_size:
                model.resize_token_embeddings(rows)
            return model
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=rows,
                hidden_size=config.dim,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                head_dim=config.head_dim,
                intermediate_size=config.ffn,
                max_position_embeddings=MAX_POSITIONS,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
                attn_implementation="sdpa",  # pyright: ignore[reportCallIssue] (a PreTrainedConfig key)
            )
        )


def load(directory: Path) -> Qwen3ForCausalLM:
    """A Qwen3-family checkpoint; weights must be safetensors."""
    values = read_config(directory)
    kind = values.get("model_type")
    if kind not in FAMILY:
        raise CheckpointError(f"{directory}: model_type {kind!r} is not of the Qwen3 family")
    if not list(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: holds no safetensors weights")
    try:
        model, info = Qwen3ForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(f"{directory}: cannot be loaded ({first_line(error)})") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        name = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))[0]
        raise CheckpointError(f"{directory}: tensor {name} is missing or has another shape")
    return model


def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(model: Qwen3ForCausalLM) -> Qwen3ForCausalLM:
    nn.Module.to(model, device())  # in place; transformers' own `to` is typed for other uses
    return model


def open_model(directory: Path) -> Qwen3ForCausalLM:
    """A model directory's model on the device."""
    return to_device(load(directory))


def save(model: Qwen3ForCausalLM, directory: Path, extra: dict[str, Any] | None = None) -> None:
    """Write weights and config; `extra` sections join config.json.

    `rope_theta` is repeated at top level: engines that read it there would fall back to a default.
    """
    model.save_pretrained(directory, safe_serialization=True)
    values = read_config(directory)
    parameters = values.get("rope_parameters") or {}
    values["rope_theta"] = parameters.get("rope_theta", 10_000.0)
    write_json(directory / "config.json", values | (extra or {}))
