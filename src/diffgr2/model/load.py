"""Building, loading and saving the backbone: a stock model of its family, never a copy of it.

Contract: `build` makes a Qwen3 from a recipe's dimensions (deterministic in the seed) or takes a
checkpoint directory of any family of `family`, with embeddings for the whole vocabulary, old rows
bit for bit; `save`/`load` use safetensors only and no remote code, and know no adapters, which
`open_model` adds. Everything raises a CheckpointError naming directory and reason. Not here: the
block-diffusion contract (`contract`), adapters (`adapter`, `gated`), training state
(`train.checkpoint`).
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from diffgr2.artifacts import write_json
from diffgr2.config import ModelConfig
from diffgr2.errors import CheckpointError, first_line
from diffgr2.model.adapter import adapter_of, arrays_of
from diffgr2.model.contract import read_config
from diffgr2.model.family import family_of, rope_of, sizes_of
from diffgr2.model.gated import attach
from diffgr2.streams import key_of

Backbone = Qwen3ForCausalLM | Qwen2ForCausalLM | LlamaForCausalLM
"""A stock model of one of the families."""

MAX_POSITIONS = 4096

FOREIGN = ("architectures", "auto_map", "model_type", "rope_scaling", "rope_theta", "torch_dtype")
"""Keys of a config.json that name other people's code, or say again what we say in one spelling."""

OF_OLD = "rotary_emb.inv_freq"
"""A table that old checkpoints hold beside their weights."""

disable_progress_bar()  # weights load in a blink; the bars only break up our own lines
set_verbosity_error()  # what is wrong with a checkpoint we say ourselves, in one line


def build(config: ModelConfig, vocab_size: int, seed: int) -> Backbone:
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


def stock_config(values: Mapping[str, Any], source: str = "") -> Any:
    """The family's own configuration object for a config.json."""
    sizes = sizes_of(values, source)
    kept = {key: value for key, value in values.items() if key not in FOREIGN}
    kept |= {"num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim}
    kept |= {"tie_word_embeddings": sizes.tied, "rope_parameters": rope_of(values, source)}
    try:
        return getattr(transformers, f"{sizes.family.stock}Config")(**kept)
    except Exception as error:
        where = f"{source}: " if source else ""
        raise CheckpointError(f"{where}config.json: {first_line(error)}") from None


def empty(config: Any) -> Backbone:
    """A model of a stock configuration, its weights to be filled in."""
    name = family_of({"model_type": config.model_type}).stock
    return getattr(transformers, f"{name}ForCausalLM")(config)


def rotary(values: Mapping[str, Any]) -> Any:
    """The family's own rotary embedding: `inv_freq` and `attention_scaling`."""
    config = stock_config(values)
    stock = family_of(values).stock
    name = stock.lower()
    module = import_module(f"transformers.models.{name}.modeling_{name}")
    return getattr(module, f"{stock}RotaryEmbedding")(config)


def load(directory: Path) -> Backbone:
    """A checkpoint of a family; weights must be safetensors."""
    values = read_config(directory)
    config = stock_config(values, str(directory))
    if not list(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory}: holds no safetensors weights")
    stock = getattr(transformers, f"{family_of(values).stock}ForCausalLM")
    try:
        model, info = stock.from_pretrained(
            directory,
            config=config,
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
    known = (OF_OLD, *(("lm_head.weight",) if model.config.tie_word_embeddings else ()))
    strange = sorted(name for name in info["unexpected_keys"] if not name.endswith(known))
    if strange:
        told = f"tensor {strange[0]} is unknown to a {values['model_type']} model"
        raise CheckpointError(f"{directory}: {told}")
    return model


def device() -> torch.device:
    """The accelerator if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(model: Backbone) -> Backbone:
    nn.Module.to(model, device())  # in place; transformers' own `to` is typed for other uses
    return model


def open_model(directory: Path) -> Backbone:
    """A model directory's model on the device, with its adapter if its diffusion lives in one."""
    adapter, model = adapter_of(directory), load(directory)
    if adapter is not None:
        attach(model, adapter, arrays_of(directory, adapter))
    return to_device(model)


def save(model: Backbone, directory: Path, extra: dict[str, Any] | None = None) -> None:
    """Write weights and config; `extra` sections join config.json.

    `rope_theta` and `head_dim` stand at top level: engines that read them there would fall back to
    a default.
    """
    model.save_pretrained(directory, safe_serialization=True)
    values = read_config(directory)
    values["rope_theta"] = rope_of(values)["rope_theta"]
    values["head_dim"] = sizes_of(values).head_dim
    write_json(directory / "config.json", values | (extra or {}))
