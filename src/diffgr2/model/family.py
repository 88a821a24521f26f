"""Which dense decoders we can compute, and what config.json must say of them.

Contract: `sizes_of(config)` are the sizes of a Qwen3-, Qwen2- or Llama-family model, with what a
config may leave out filled in; `rope_of` its rotary embedding, in one spelling. Whatever the
forwards would compute wrongly is a CheckpointError of one line that names the key: another family,
biases and activations that none of ours has, sliding windows, experts, quantised weights, rotary
embeddings whose tables depend on the text's length. Not here: weights (`load`), the contract of
block diffusion (`contract`), any tensor library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffgr2.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """What distinguishes the families' layers."""

    stock: str  # the name of its classes in transformers
    norms: bool  # every query and key head has a norm
    biases: bool  # queries, keys and values have biases


_QWEN3, _QWEN2 = Family("Qwen3", True, False), Family("Qwen2", False, True)

FAMILIES = {
    "qwen3": _QWEN3,
    "sdar": _QWEN3,
    "llama": Family("Llama", False, False),
    "qwen2": _QWEN2,
    "Fast_dLLM_Qwen": _QWEN2,
}
"""By model_type; block-diffusion formats are the weights of a family under another name."""

ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings that are a table."""


@dataclass(frozen=True)
class Sizes:
    """What config.json says, or means by saying nothing."""

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    positions: int
    eps: float
    tied: bool

    @property
    def weights(self) -> int:
        """Numbers in its matrices, the embedding once."""
        wide = 2 * (self.heads + self.kv_heads) * self.head_dim
        return self.vocab * self.hidden + self.layers * self.hidden * (wide + 3 * self.ffn)


def family_of(config: Mapping[str, Any], source: str = "") -> Family:
    """The family, by model_type."""
    kind, where = config.get("model_type"), f"{source}: " if source else ""
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{where}model_type {kind!r} is not of the Qwen3 or Llama family "
            f"(supported: {', '.join(FAMILIES)})"
        )
    return FAMILIES[kind]


def check_plain(config: Mapping[str, Any], source: str = "") -> Family:
    """Refuse what the forwards would compute wrongly; the family of what is left."""
    family, where = family_of(config, source), f"{source}: " if source else ""

    def refuse(key: str, why: str) -> None:
        raise CheckpointError(f"{where}{key} {config[key]!r} is not supported: {why}")

    for key in ("attention_bias", "attn_bias", "mlp_bias"):
        if config.get(key):
            refuse(key, "this is no plain model of its family")
    if config.get("hidden_act", "silu") != "silu":
        refuse("hidden_act", "the activation must be silu")
    window = "sliding_window" if family.stock == "Llama" else "use_sliding_window"
    if config.get(window):
        refuse(window, "every layer must see the whole text")
    if {*(config.get("layer_types") or ())} - {"full_attention"}:
        refuse("layer_types", "every layer must see the whole text")
    if config.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        refuse("partial_rotary_factor", "whole heads must be turned")
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if config.get(key):
            refuse(key, "the model must be dense")
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{where}quantization_config is not supported: the weights must be floats"
        )
    rope_of(config, source)
    return family


def rope_of(config: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """The rotary embedding as transformers 5 spells it: at least rope_type and rope_theta."""
    where = f"{source}: " if source else ""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{where}rope_scaling: expected an object")
    rope = {key: value for key, value in given.items() if key != "type"}
    kind = rope["rope_type"] = given.get("rope_type", given.get("type", "default"))
    if kind in ("dynamic", "longrope"):
        raise CheckpointError(
            f"{where}rope_type {kind!r} is not supported: its angles depend on the text's length"
        )
    if kind not in ROPES or "mrope_section" in rope:
        name = kind if kind not in ROPES else "mrope"
        raise CheckpointError(f"{where}rope_type {name!r} is not supported ({', '.join(ROPES)})")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise CheckpointError(
            f"{where}partial_rotary_factor {rope['partial_rotary_factor']!r} is not supported: "
            "whole heads must be turned"
        )
    if kind != "default" and not isinstance(rope.get("factor"), int | float):
        raise CheckpointError(f"{where}rope_type {kind!r} needs a factor")
    if rope.get("rope_theta") is None:
        rope["rope_theta"] = config.get("rope_theta") or 10_000.0
    return rope


def sizes_of(config: Mapping[str, Any], source: str = "") -> Sizes:
    """See the module's docstring."""
    family, where = check_plain(config, source), f"{source}: " if source else ""

    def whole(key: str, default: int | None = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{where}config.json: {key}: expected a whole number above 0")
        return value

    heads, hidden = whole("num_attention_heads"), whole("hidden_size")
    kv_heads = whole("num_key_value_heads", heads)
    # Qwen3's own default; the others have heads that fill the hidden state.
    head_dim = whole("head_dim", 128 if family.norms else max(hidden // heads, 1))
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}config.json: num_key_value_heads does not divide num_attention_heads"
        )
    if head_dim % 2:
        raise CheckpointError(f"{where}config.json: head_dim must be even")
    return Sizes(
        family,
        layers=whole("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=whole("intermediate_size"),
        vocab=whole("vocab_size"),
        positions=whole("max_position_embeddings", 2048),
        eps=float(config.get("rms_norm_eps") or 1e-6),
        tied=bool(config.get("tie_word_embeddings")),
    )
