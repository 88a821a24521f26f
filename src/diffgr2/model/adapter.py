"""Low-rank adapters on disk: PEFT's files, and a gate that PEFT does not know.

Contract: an `Adapter` adds `alpha / rank * B A x` to the product of each target matrix, everywhere
(`mask_id` None) or only at positions whose input is the mask token. A gated one lies in the folder
`adapter` of a model directory, in PEFT's files under PEFT's names, beside the base's weights, which
stay as they were; config.json's block-diffusion section and adapter_config.json both record the
gate. `adapter_of` and `arrays_of` read them, and refuse in one line what is half there, of other
shapes, or at odds with itself. Not here: any tensor library; computing with one (`gated`, `graph`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import read_json, write_json
from diffgr2.config import AdapterConfig
from diffgr2.errors import ArtifactError, CheckpointError, ConfigError
from diffgr2.learning import TARGETS
from diffgr2.model.contract import contract_of, read_config
from diffgr2.model.family import Sizes, sizes_of
from diffgr2.model.weights import read, widened
from diffgr2.streams import generator

FOLDER = "adapter"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What PEFT writes before a tensor's name."""

OURS = "diffgr2"
"""Our key in adapter_config.json, which PEFT passes over."""

PLAIN = {"bias": "none", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False}
"""Keys of PEFT under which other values mean other arithmetic."""

UNMERGED = (
    "an adapter that is active at masks only cannot be merged: one matrix would serve clean "
    "positions, which run the base's weights, and masked ones, which do not"
)


@dataclass(frozen=True)
class Adapter:
    """See the module's docstring."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    mask_id: int | None  # it is active where this token stands; None: everywhere

    @classmethod
    def of(cls, config: AdapterConfig, mask_id: int | None) -> Adapter:
        return cls(config.rank, config.alpha, tuple(config.targets), mask_id)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, int]]:
        """Every tensor of it for a model of these sizes, by the name that it has in a module."""
        found = {}
        for name, (wide, narrow) in matrices(sizes).items():
            if name.rsplit(".", 1)[1] in self.targets:
                found[f"{name}.lora_A.weight"] = (self.rank, narrow)
                found[f"{name}.lora_B.weight"] = (wide, self.rank)
        return found

    def initial(self, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
        """A at random, as PEFT draws it, and B of zeros: it adds nothing yet."""
        made = {}
        for name, shape in self.shapes(sizes).items():
            made[name] = np.zeros(shape, dtype=np.float32)
            if name.endswith("lora_A.weight"):
                bound = shape[1] ** -0.5
                rng = generator(seed, "adapter", name)
                made[name] = rng.uniform(-bound, bound, shape).astype(np.float32)
        return made


def matrices(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Shape [out, in] of each matrix that an adapter may add to."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    of_layer = {
        "self_attn.q_proj": (queries, sizes.hidden),
        "self_attn.k_proj": (keys, sizes.hidden),
        "self_attn.v_proj": (keys, sizes.hidden),
        "self_attn.o_proj": (sizes.hidden, queries),
        "mlp.gate_proj": (sizes.ffn, sizes.hidden),
        "mlp.up_proj": (sizes.ffn, sizes.hidden),
        "mlp.down_proj": (sizes.hidden, sizes.ffn),
    }
    layers = range(sizes.layers)
    return {f"model.layers.{n}.{name}": shape for n in layers for name, shape in of_layer.items()}


def refuse_merge(adapter: Adapter) -> None:
    """A ConfigError with the reason, of an adapter that no plain weights can stand for."""
    if adapter.mask_id is not None:
        raise ConfigError(UNMERGED)


# ------------------------------------------------------------------------------------------ files


def write_adapter(directory: Path, adapter: Adapter, arrays: Mapping[str, np.ndarray]) -> None:
    """Into the folder of a model directory; arrays by their names in a module."""
    from safetensors.numpy import save_file

    folder = directory / FOLDER
    folder.mkdir(exist_ok=True)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(adapter.targets),
        **PLAIN,
        OURS: {"active_at": "masks", "mask_token_id": adapter.mask_id},
    }
    write_json(folder / CONFIG, values)
    whole = {PREFIX + name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(whole, folder / WEIGHTS, {"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)  # safetensors makes files that nobody else may read


def adapter_of(directory: Path) -> Adapter | None:
    """The adapter of a model directory whose diffusion lives in one, else None."""
    contract, folder = contract_of(directory), directory / FOLDER
    if contract is None or contract.adapter is None:
        if folder.exists():
            told = "config.json's section block_diffusion does not say that it is to be used"
            raise CheckpointError(f"{folder}: {told}")
        return None
    path = folder / CONFIG
    try:
        values = read_json(path)
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None
    adapter = _parsed(values, path)
    if adapter.mask_id != contract.mask_token_id:
        raise CheckpointError(
            f"{path}: it is active at token {adapter.mask_id}, the checkpoint's mask is "
            f"{contract.mask_token_id}"
        )
    return adapter


def _parsed(values: Any, path: Path) -> Adapter:
    if not isinstance(values, dict) or values.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: not the configuration of a LoRA")
    for key, plain in PLAIN.items():
        if values.get(key, plain) != plain:
            raise CheckpointError(f"{path}: {key} {values[key]!r} is not supported")
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise CheckpointError(f"{path}: r: expected a whole number above 0")
    if not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
        raise CheckpointError(f"{path}: lora_alpha: expected a number above 0")
    targets = values.get("target_modules")
    if not isinstance(targets, list) or not targets or {*map(str, targets)} - {*TARGETS}:
        raise CheckpointError(f"{path}: target_modules: expected of {', '.join(TARGETS)}")
    gate = values.get(OURS)
    match gate:
        case {"active_at": "masks", "mask_token_id": int(mask_id)}:
            return Adapter(rank, float(alpha), tuple(targets), mask_id)
    raise CheckpointError(f"{path}: {OURS}: does not say that it is active at masks only")


def arrays_of(directory: Path, adapter: Adapter) -> dict[str, np.ndarray]:
    """Its tensors in fp32, by the names that they have in a module."""
    folder, wanted = directory / FOLDER, adapter.shapes(sizes_of(read_config(directory)))
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder / WEIGHTS}: file is missing")
    found = {name.removeprefix(PREFIX): array for name, array in read(folder).items()}
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"{folder}: tensor {PREFIX}{name} is missing")
        if found[name].shape != shape:
            told = f"tensor {PREFIX}{name} is {found[name].shape}, by the model's sizes {shape}"
            raise CheckpointError(f"{folder}: {told}")
    strange = sorted(found.keys() - wanted.keys())
    if strange:
        raise CheckpointError(f"{folder}: tensor {strange[0][:80]} is unknown")
    return {name: widened(found[name]) for name in wanted}
