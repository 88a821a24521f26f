"""Tiny model directories to export: a random model, a contract, a tokenizer of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3ForCausalLM

from diffgr2.artifacts import write_json
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.load import save
from diffgr2.model.slow import SlowModel
from support.tiny_qwen import VOCAB, tiny

PAD, END, MASK = VOCAB - 3, VOCAB - 2, VOCAB - 1
BLOCK = {
    "block_size": 4,
    "mask_token_id": MASK,
    "alignment": "same_position",
    "clean_attention": "either",
    "origin": "document",
}


def write_tokenizer(directory: Path) -> None:
    """Letters, one merge, and the reserved tokens."""
    letters = [chr(ord("a") + n) for n in range(PAD - 1)]
    vocab = {letter: n for n, letter in enumerate([*letters, "ab"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|endoftext|>", "<|im_end|>", "<|MASK|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.save(str(directory / "tokenizer.json"))
    roles = dict(zip(("pad_token", "eos_token", "mask_token"), names, strict=True))
    write_json(directory / "special_tokens_map.json", roles)
    write_json(directory / "added_tokens.json", dict(zip(names, (PAD, END, MASK), strict=True)))


def model_directory(
    directory: Path, seed: int = 0, section: dict[str, Any] | None = BLOCK, **how: Any
) -> Qwen3ForCausalLM:
    """Write a model directory; the model that is in it. `section` None: autoregressive."""
    directory.mkdir(parents=True, exist_ok=True)
    module = tiny(seed, **how)
    save(module, directory, {"block_diffusion": section} if section else None)
    write_tokenizer(directory)
    return module


def slow(module: Qwen3ForCausalLM) -> SlowModel:
    return SlowModel(module, MASK)


def settings(section: dict[str, Any] = BLOCK, **given: Any) -> DecodeSettings:
    """The plain rule under a contract."""
    fixed = {key: section[key] for key in ("block_size", "alignment", "origin")}
    values = {"decoder": "block", "rule": "raw", "mask_id": MASK, "end_id": END, "max_tokens": 14}
    return DecodeSettings(**(values | fixed | given))


def prompts(n: int, multiple: int = 1, seed: int = 0) -> list[list[int]]:
    """Random prompts of several lengths, each a multiple of `multiple`."""
    draw = torch.Generator().manual_seed(seed)
    lengths = (torch.randint(1, 12 // multiple + 1, (n,), generator=draw) * multiple).tolist()
    return [torch.randint(0, PAD, (length,), generator=draw).tolist() for length in lengths]
