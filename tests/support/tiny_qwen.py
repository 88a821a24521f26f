"""Tiny random models of the backbone's families, for tests that compare decoders and forwards."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from diffgr2.model.load import Backbone

VOCAB = 29

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}
"""Rotary embeddings that are tables, each with numbers that change what a short text gives."""


def tiny(
    seed: int,
    *,
    kv_heads: int = 2,
    tied: bool = True,
    marker: float = 0.0,
    family: str = "Qwen3",
    rope: str = "default",
    vocab: int = VOCAB,
    head_dim: int = 8,
) -> Backbone:
    """A random model with peaked distributions; `marker` makes answers likelier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=vocab,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=48,
            max_position_embeddings=256,
            rope_parameters={"rope_theta": 10_000.0, **ROPES[rope]},
            tie_word_embeddings=tied,
            initializer_range=0.25,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
        module = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        if family == "Qwen2":  # stock models begin with biases of zero
            for layer in module.model.layers:
                for name in "qkv":
                    bias = getattr(layer.self_attn, f"{name}_proj").bias
                    torch.nn.init.normal_(bias, std=0.5)
    if marker:  # marker and choices get longer output vectors, hence more extreme logits
        with torch.no_grad():
            module.lm_head.weight[1:8] *= marker
    return module
