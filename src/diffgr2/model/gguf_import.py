"""A GGUF file as a training directory: weights in fp32, config, tokenizer.

Contract: `import_gguf(path, out)` writes a directory that `load` and transformers open, of a dense
Llama, Qwen2 or Qwen3 file of any number type that the package `gguf` can take out of its blocks;
the order of Llama's query and key rows, which such files change, is restored, and an output matrix
that the file leaves out is the embedding. `compared` holds its greedy tokens against llama.cpp's.
An unknown architecture, tensor or rotary scaling, a half file and one without a tokenizer are a
CheckpointError of one line, and then nothing is written. Not here: the tokenizer (`gguf_words`),
writing such files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from diffgr2.artifacts import write_json
from diffgr2.errors import CheckpointError, MissingExtraError, first_line
from diffgr2.model import gguf_words
from diffgr2.model.contract import added_tokens

ARCHITECTURES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}

WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""The file's names of tensors, and transformers'."""

FREQUENCIES = "rope_freqs.weight"
LLAMA3 = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What all Llamas with such a table were trained with; files hold the table alone."""
LLAMA3_FACTORS = (8.0, 32.0)


def gguf_module() -> Any:
    """The package, or one line."""
    try:
        return import_module("gguf")
    except ModuleNotFoundError:
        raise MissingExtraError("gguf is missing: pip install 'diffgr2[gguf]'") from None


def read(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """A file's fields as plain values, and its tensors as they lie."""
    gguf = gguf_module()

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or first_line(error)}") from None
    except Exception as error:
        raise CheckpointError(f"{path}: not a whole GGUF file ({first_line(error)})") from None
    return fields, list(reader.tensors)


def config_of(fields: Mapping[str, Any], source: str) -> dict[str, Any]:
    """config.json, but for what only the tensors tell."""
    arch = fields.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: architecture {arch!r} is not supported ({', '.join(ARCHITECTURES)})"
        )

    def said(key: str, default: Any = None) -> Any:
        value = fields.get(f"{arch}.{key}", default)
        if value is None:
            raise CheckpointError(f"{source}: {arch}.{key} is missing")
        return value

    if fields.get(f"{arch}.expert_count"):
        raise CheckpointError(f"{source}: {arch}.expert_count: the model must be dense")
    hidden, heads = int(said("embedding_length")), int(said("attention.head_count"))
    kv_heads = said("attention.head_count_kv", heads)
    if not isinstance(kv_heads, int):
        raise CheckpointError(f"{source}: {arch}.attention.head_count_kv differs by layer")
    head_dim = int(said("attention.key_length", hidden // heads))
    if int(said("rope.dimension_count", head_dim)) != head_dim:
        raise CheckpointError(f"{source}: {arch}.rope.dimension_count: whole heads must be turned")
    if fields.get(f"{arch}.attention.sliding_window"):
        raise CheckpointError(f"{source}: {arch}.attention.sliding_window is not supported")
    theta = float(said("rope.freq_base", 10_000.0))
    return {
        "architectures": [f"{ARCHITECTURES[arch]}ForCausalLM"],
        "model_type": arch,
        "hidden_size": hidden,
        "num_hidden_layers": int(said("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": int(said("feed_forward_length")),
        "max_position_embeddings": int(said("context_length")),
        # The file has it in fp32, whose digits beyond these are rounding.
        "rms_norm_eps": float(f"{said('attention.layer_norm_rms_epsilon'):.6g}"),
        "hidden_act": "silu",
        "rope_theta": theta,
        "rope_parameters": {"rope_theta": theta, **_scaling(fields, arch, source)},
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
        "dtype": "float32",
    }


def _scaling(fields: Mapping[str, Any], arch: str, source: str) -> dict[str, Any]:
    """The rotary embedding's scaling."""
    kind = fields.get(f"{arch}.rope.scaling.type", "none")
    if kind == "none":
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise CheckpointError(f"{source}: rope scaling {kind!r} is not supported (linear, yarn)")
    scaling = {"rope_type": kind, "factor": float(fields[f"{arch}.rope.scaling.factor"])}
    length = fields.get(f"{arch}.rope.scaling.original_context_length")
    if kind == "yarn" and length:
        scaling["original_max_position_embeddings"] = int(length)
    return scaling


def _llama3(table: np.ndarray, config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The scaling whose frequencies, as divisors of the plain ones, are this table."""
    from diffgr2.model.load import rotary

    size, theta = config["head_dim"], config["rope_theta"]
    plain = 1.0 / theta ** (np.arange(0, size, 2) / size)
    for factor in LLAMA3_FACTORS:
        rope = {**LLAMA3, "factor": factor, "rope_theta": theta}
        scaled = rotary({**config, "rope_parameters": rope, "vocab_size": 1}).inv_freq.numpy()
        if table.shape == plain.shape and np.allclose(plain / scaled, table, rtol=1e-4):
            return rope
    raise CheckpointError(f"{source}: {FREQUENCIES} is none of Llama 3's tables")


def _name_of(name: str, layers: int) -> str | None:
    """A tensor's name in transformers."""
    if name in WHOLE:
        return WHOLE[name]
    kind, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    part, _, end = rest.rpartition(".")
    known = kind == "blk" and number.isdigit() and int(number) < layers and part in LAYER
    if not known or end not in ("weight", "bias"):
        return None
    return f"model.layers.{number}.{LAYER[part]}.{end}"


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows with each head's halves one after the other; the file has them in turn."""
    size = len(rows) // heads
    shape = (heads, size // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(rows.reshape(shape).swapaxes(1, 2).reshape(rows.shape))


def weights_of(
    tensors: Sequence[Any], config: dict[str, Any], source: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """(weights in fp32 by transformers' names, the table of frequencies if there is one)."""
    dequantize = gguf_module().dequantize

    found, table = {}, None
    for tensor in tensors:
        try:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except Exception as error:
            kind = tensor.tensor_type.name
            told = f"tensor {tensor.name} ({kind}) cannot be read ({first_line(error)})"
            raise CheckpointError(f"{source}: {told}") from None
        values = values.reshape([int(n) for n in reversed(tensor.shape)])
        if tensor.name == FREQUENCIES:
            table = values
            continue
        name = _name_of(tensor.name, config["num_hidden_layers"])
        if name is None:
            raise CheckpointError(f"{source}: tensor {tensor.name} is not supported")
        if config["model_type"] == "llama" and ".self_attn.q_proj." in name:
            values = unpermuted(values, config["num_attention_heads"])
        if config["model_type"] == "llama" and ".self_attn.k_proj." in name:
            values = unpermuted(values, config["num_key_value_heads"])
        found[name] = values
    return found, table


def import_gguf(path: Path, out: Path) -> dict[str, Any]:
    """See the module's docstring; the config that was written."""
    source = str(path)
    fields, tensors = read(path)
    config = config_of(fields, source)
    gguf_words.tokenizer_of(fields, source)  # refused before the weights are unpacked
    weights, table = weights_of(tensors, config, source)
    if "model.embed_tokens.weight" not in weights:
        raise CheckpointError(f"{source}: tensor token_embd.weight is missing")
    if table is not None:
        config["rope_parameters"] = _llama3(table, config, source)
    config["vocab_size"] = len(weights["model.embed_tokens.weight"])
    config["tie_word_embeddings"] = "lm_head.weight" not in weights
    if len(fields["tokenizer.ggml.tokens"]) > config["vocab_size"]:
        raise CheckpointError(f"{source}: more tokens than rows of token_embd.weight")
    out.mkdir(parents=True, exist_ok=True)
    gguf_words.write(fields, out, source)
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    write_json(out / "config.json", {k: v for k, v in config.items() if v is not None})
    if (known := added_tokens(out)) and max(known.values()) >= config["vocab_size"]:
        raise CheckpointError(f"{source}: a special token has no row of token_embd.weight")
    return config


# ----------------------------------------------------------------------------------- llama.cpp

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "1, 2, 3, 4, 5, 6,",
    "Once upon a time there was a little girl who",
)


ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>", "</s>")


def unpacked(path: Path, out: Path) -> None:
    """The same file with every tensor in fp32: what llama.cpp multiplies without rounding."""
    gguf = gguf_module()

    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(str(out), str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or not field.types:
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        writer.add_tensor(tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def compared(path: Path, out: Path, tokens: int = 16) -> list[tuple[str, str, str]]:
    """(prompt, our greedy text, llama.cpp's on the same weights in fp32)."""
    from tempfile import TemporaryDirectory

    from tokenizers import Tokenizer

    from diffgr2.model.greedy_texts import greedy, written

    tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    # llama.cpp never writes an end of generation when it is told to ignore it.
    ends = [n for name, n in added_tokens(out).items() if name in ENDS]
    ours = [tokenizer.decode(ids) for ids in greedy(out, prompts, tokens, ends)]
    with TemporaryDirectory() as scratch:
        unpacked(path, Path(scratch) / "fp32.gguf")
        theirs = written(Path(scratch) / "fp32.gguf", prompts, tokens)
    return list(zip(PROMPTS, ours, theirs, strict=True))
