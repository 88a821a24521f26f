"""What is exported: a bundle or a stage's model directory, whole and unchanged.

Contract: `opened` checks every byte that a manifest vouches for and that the weights are a whole
model, and refuses anything else in one line before a byte is written. `Given` says what each format
must know: contract, reserved ids, how the recipe decodes. Not here: what a format takes of it.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from diffgr2.artifacts import MANIFEST, read_json, read_manifest
from diffgr2.config import Recipe
from diffgr2.errors import CheckpointError, ConfigError
from diffgr2.model.adapter import UNMERGED, adapter_of, arrays_of
from diffgr2.model.contract import VOCABULARY_FILES, BlockContract, contract_of, read_config
from diffgr2.model.load import load
from diffgr2.model.weights import placed, read
from diffgr2.rerank.bundle import NOTE, check, read_note
from diffgr2.rerank.shipped import nowhere

QWEN3 = ("qwen3", "sdar")
"""Model types whose weights are a Qwen3's."""


@dataclass(frozen=True)
class Given:
    """A checked model directory."""

    directory: Path
    config: dict[str, Any]
    contract: BlockContract | None  # None: autoregressive
    recipe: Recipe | None  # of a bundle

    @property
    def name(self) -> str:
        return self.recipe.name if self.recipe else self.directory.resolve().name

    @property
    def rope_theta(self) -> float:
        """A change of base, from whichever place the config has it."""
        parameters = self.config.get("rope_parameters") or {}
        return float(parameters.get("rope_theta") or self.config.get("rope_theta") or 10_000.0)

    @cached_property
    def special(self) -> dict[str, int]:
        """Ids of the tokenizer's special roles: eos_token, pad_token, mask_token."""
        known = self.token_ids
        roles = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            if (self.directory / name).is_file():
                for role, token in read_json(self.directory / name).items():
                    text = token.get("content") if isinstance(token, dict) else token
                    if role.endswith("_token") and isinstance(text, str) and text in known:
                        roles.setdefault(role, known[text])
        return roles

    @cached_property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json's values."""
        found = read_json(self.directory / "tokenizer.json")
        if not isinstance(found, dict) or "vocab" not in found.get("model", {}):
            raise CheckpointError(f"{self.directory / 'tokenizer.json'}: not a tokenizer")
        return found

    @cached_property
    def token_ids(self) -> dict[str, int]:
        """{token: id}, added tokens included."""
        added = self.tokenizer.get("added_tokens", [])
        return dict(self.tokenizer["model"]["vocab"]) | {one["content"]: one["id"] for one in added}

    @property
    def end_id(self) -> int:
        """What ends a response."""
        if "eos_token" not in self.special:
            raise CheckpointError(f"{self.directory}: its tokenizer names no eos_token")
        return self.special["eos_token"]

    @property
    def vocabulary(self) -> list[Path]:
        """The tokenizer's files, for whoever reads text; ours beside them."""
        return [path for name in VOCABULARY_FILES if (path := self.directory / name).is_file()]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, as it is stored."""
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in sorted({place.file for place in placed(self.directory).values()}):
            found |= load_file(self.directory / path)
        return found

    def as_qwen3(self, name: str) -> None:
        """Refuse another family."""
        kind = self.config.get("model_type")
        if kind not in QWEN3:
            raise ConfigError(f"--format {name}: holds Qwen3 models only, this is a {kind!r}")

    def block(self, name: str) -> BlockContract:
        """The contract; an autoregressive model has none."""
        if self.contract is None:
            raise ConfigError(
                f"--format {name}: {self.directory} is autoregressive (use qwen3 or gguf)"
            )
        if self.contract.adapter is not None:
            raise ConfigError(
                f"--format {name}: it diffuses by an adapter, and {UNMERGED} (qwen3 and gguf hold "
                "the AR teacher's weights as they are)"
            )
        return self.contract

    def autoregressive(self, name: str) -> None:
        """Refuse weights that never learned to be read causally."""
        contract = self.contract
        if contract is None or contract.adapter is not None:  # the teacher's own weights
            return
        if contract.clean_attention == "block_causal":
            raise ConfigError(
                f"--format {name}: trained with convert.clean_attention block_causal alone, so "
                "there is no autoregressive decoder in it (either or causal keep one)"
            )


def opened(directory: Path) -> Given:
    """See the module's docstring."""
    if not directory.is_dir():
        raise CheckpointError(nowhere(directory))
    recipe = None
    if (directory / NOTE).exists() or not (directory / "config.json").exists():
        check(directory)  # a bundle, or what is called a run's directory
        recipe = read_note(directory).recipe
    elif (directory / MANIFEST).exists():
        read_manifest(directory, verify=True)
    config, contract = read_config(directory), contract_of(directory)
    load(directory)  # refuses what is no whole model
    read(directory)  # refuses what is no finite number
    adapter = adapter_of(directory)
    if adapter is not None:
        arrays_of(directory, adapter)
    return Given(directory, config, contract, recipe)
