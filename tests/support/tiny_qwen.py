"""A tiny random model of the backbone's family, for tests that compare decoders."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

VOCAB = 29


def tiny(
    seed: int, *, kv_heads: int = 2, tied: bool = True, marker: float = 0.0
) -> Qwen3ForCausalLM:
    """A random model with peaked distributions; `marker` makes answers likelier."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=256,
            tie_word_embeddings=tied,
            initializer_range=0.25,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="sdpa",
        )
        module = Qwen3ForCausalLM(config).eval()
    if marker:  # marker and choices get longer output vectors, hence more extreme logits
        with torch.no_grad():
            module.lm_head.weight[1:8] *= marker
    return module
