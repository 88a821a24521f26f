"""What a run keeps of its base: chat template, special tokens, and every row of its embeddings."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer

from diffgr2.config import ModelConfig
from diffgr2.model.contract import CHAT_TEMPLATE
from diffgr2.model.load import build, load, save
from diffgr2.prompts.vocab import END, MASK
from diffgr2.stages.common import write_model
from diffgr2.stages.vocabulary import keep
from support import tiny_stages
from support.tiny_qwen import VOCAB, tiny

TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"


def test_template_and_special_tokens_reach_every_model_directory(tmp_path):
    base, vocab, out = (tmp_path / name for name in ("base", "vocabulary", "rl"))
    base.mkdir()
    (base / CHAT_TEMPLATE).write_text(TEMPLATE)
    told = {"bos_token": "<|im_start|>", "eos_token": "</s>", "tokenizer_class": "LlamaTokenizer"}
    told |= {"added_tokens_decoder": {"0": {"content": "</s>"}}, "model_max_length": 77}
    (base / "tokenizer_config.json").write_text(json.dumps(told))
    tiny_stages.vocabulary().save(vocab)
    keep(base, vocab)
    write_model(tiny_stages.fresh(), vocab, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token, tokenizer.model_max_length) == ("<|im_start|>", 77)
    assert (tokenizer.eos_token, tokenizer.mask_token) == (END, MASK)  # what it was trained with
    assert tokenizer.mask_token_id == tiny_stages.vocabulary().mask_id
    assert len(tokenizer) == tiny_stages.vocabulary().spec.size


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Qwen2"])
def test_more_rows_leave_the_old_ones_as_they_were(family, tied, tmp_path):
    save(tiny(3, family=family, tied=tied), tmp_path)
    old = load(tmp_path).state_dict()
    made = build(ModelConfig(base=str(tmp_path)), VOCAB + 40, 0)
    assert made.config.vocab_size == 128 - 64 * (VOCAB + 40 <= 64)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor[: len(old[name])], old[name]), name
    again = build(ModelConfig(base=str(tmp_path)), VOCAB + 40, 0).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in made.state_dict().items())
