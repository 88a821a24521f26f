"""Format `gguf`: the autoregressive decoder as one file for llama.cpp.

Contract: `write_gguf` writes a checkpoint's weights in fp32 for the families in FAMILIES, rows of
query and key matrices in the order that llama.cpp's rotation of that family wants, and the tokens
that are given. `words` are the tokenizer's own (byte-level BPE), so that text in is text out;
`numbered` spells token n `<n>`, for who speaks in ids. Not here: weights other
than fp32 and Q8_0 (llama.cpp has a tool), and block diffusion, which it lacks for this family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.errors import ConfigError
from diffgr2.export.given import Given
from diffgr2.model.gguf_import import LAYER, gguf_module

FILE = "model.gguf"

TENSORS = {ours: theirs for theirs, ours in LAYER.items()}
"""Our names of a layer's tensors, and llama.cpp's."""

PLAIN = {
    ours: theirs for ours, theirs in TENSORS.items() if not theirs.endswith(("_q_norm", "_k_norm"))
}


@dataclass(frozen=True)
class Family:
    """What differs between the model types."""

    name: str  # llama.cpp's
    tensors: Mapping[str, str]
    interleaved: bool  # its rotation turns neighbours, ours the two halves of a head


FAMILIES = {
    "qwen3": Family("qwen3", TENSORS, interleaved=False),
    "sdar": Family("qwen3", TENSORS, interleaved=False),
    "llama": Family("llama", PLAIN, interleaved=True),
}


@dataclass(frozen=True)
class Words:
    """How tokens are spelled, by id."""

    tokens: list[str]
    kinds: list[int]  # of gguf.TokenType
    merges: list[str]
    splits: str  # llama.cpp's name for how text is cut before merges
    end_id: int
    pad_id: int | None = None


def numbered(rows: int) -> Words:
    """Token n is `<n>`: ids can be read back from a text."""
    kinds = [int(gguf_module().TokenType.NORMAL)] * rows
    return Words([f"<{n}>" for n in range(rows)], kinds, ["a b"], "qwen2", 0)


SPLITS = {"gpt-2": "'(?:[sdmt]|ll|ve|re)", "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"}
"""How a tokenizer.json of each kind begins to cut text; GPT-2's regex is inside `ByteLevel`."""


def words(given: Given) -> Words:
    """The tokenizer's own, as far as llama.cpp has such a one."""
    kind, model = gguf_module().TokenType, given.tokenizer["model"]
    if model.get("type") != "BPE":
        raise ConfigError(f"--format gguf: no tokenizer of type {model.get('type')!r} (BPE only)")
    rows = int(given.config["vocab_size"])
    tokens, kinds = [f"[PAD{n}]" for n in range(rows)], [int(kind.UNUSED)] * rows
    for token, at in model["vocab"].items():
        tokens[at], kinds[at] = token, int(kind.NORMAL)
    for one in given.tokenizer.get("added_tokens", []):
        tokens[one["id"]] = one["content"]
        # Control tokens are not shown in a text, and a ranking is a text of ours.
        hidden = one["content"].startswith("<|")
        kinds[one["id"]] = int(kind.CONTROL if hidden else kind.USER_DEFINED)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    pad = given.special.get("pad_token")
    return Words(tokens, kinds, merges, splits(given.tokenizer), given.end_id, pad)


def splits(tokenizer: Mapping[str, Any]) -> str:
    """How its text is cut, in llama.cpp's words."""
    rules = tokenizer.get("pre_tokenizer") or {}
    parts = rules.get("pretokenizers") or [rules]
    pattern = str((parts[0].get("pattern") or {}).get("Regex", ""))
    if parts[0].get("type") == "Split" and pattern.startswith(SPLITS["qwen2"]):
        return "qwen2"
    if len(parts) == 1 and parts[0].get("type") == "ByteLevel" and parts[0].get("use_regex", True):
        return "gpt-2"
    raise ConfigError("--format gguf: llama.cpp does not cut text as this tokenizer.json does")


def write_gguf(
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    rope_theta: float,
    spelled: Words,
    path: Path,
    *,
    eight_bits: bool = False,
) -> None:
    """See the module's docstring; `tensors` in fp32 by their names in a checkpoint.

    With `eight_bits` matrices are rounded to Q8_0, as those who want speed serve them: no tool
    here can promise the same tokens then.
    """
    gguf = gguf_module()
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        raise ConfigError(f"--format gguf: no model_type {config.get('model_type')!r}")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(path), family.name)
    q8 = gguf.GGMLQuantizationType.Q8_0

    def add(name: str, tensor: np.ndarray) -> None:
        if eight_bits and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:  # its blocks
            writer.add_tensor(name, gguf.quants.quantize(tensor, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, tensor)

    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope_theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_words(writer, spelled)
    add("token_embd.weight", tensors["model.embed_tokens.weight"])
    add("output_norm.weight", tensors["model.norm.weight"])
    if "lm_head.weight" in tensors and not config.get("tie_word_embeddings"):
        add("output.weight", tensors["lm_head.weight"])
    for n in range(config["num_hidden_layers"]):
        for ours, theirs in family.tensors.items():
            tensor = tensors[f"model.layers.{n}.{ours}.weight"]
            if family.interleaved and theirs in ("attn_q", "attn_k"):
                tensor = neighbours(tensor, heads if theirs == "attn_q" else kv_heads)
            add(f"blk.{n}.{theirs}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def neighbours(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rows of every head with the two halves shuffled together: pairs that turn stand together.

    >>> neighbours(np.arange(4)[:, None], 1)[:, 0].tolist()
    [0, 2, 1, 3]
    """
    half = len(tensor) // heads // 2
    split = tensor.reshape(heads, 2, half, *tensor.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(tensor.shape))


def add_words(writer: Any, spelled: Words) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(spelled.splits)
    writer.add_token_list(spelled.tokens)
    writer.add_token_types(spelled.kinds)
    writer.add_token_merges(spelled.merges)
    writer.add_eos_token_id(spelled.end_id)
    if spelled.pad_id is not None:
        writer.add_pad_token_id(spelled.pad_id)
    writer.add_add_bos_token(False)


def write(given: Given, out: Path) -> dict[str, Any]:
    """The file in its directory; returns what its page tells."""
    given.autoregressive("gguf")
    tensors = {name: tensor.float().numpy() for name, tensor in given.tensors().items()}
    write_gguf(given.config, tensors, given.rope_theta, words(given), out / FILE)
    return {"file": FILE}
