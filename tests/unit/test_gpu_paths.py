"""What can be said of the GPU paths without a GPU: sizes, and the attention they use."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffgr2.config import ModelConfig
from diffgr2.decode.batch import DecodeRequest, decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.load import build
from diffgr2.recipe import load_recipe

NEVER = 2**31  # an end id that no token has
VOCAB, MASK, PROMPT = 131, 130, 11


@pytest.fixture(scope="module")
def lean() -> LeanModel:
    config = ModelConfig(dim=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128)
    return LeanModel(build(config, VOCAB, 0))


@pytest.fixture(scope="module")
def prompt_BP() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, MASK, (3, PROMPT)))


def test_the_gpu_recipe_has_50_to_100_million_parameters() -> None:
    recipe = load_recipe("beauty_gpu")
    vocabulary = recipe.prompt.text_vocab + recipe.items.levels * recipe.items.codes + 500
    with torch.device("meta"):
        model = build(recipe.model, vocabulary, recipe.seed)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert 50e6 <= sum(p.numel() for p in model.parameters()) <= 100e6


def logits_of(lean: LeanModel, prompt_BP: torch.Tensor) -> torch.Tensor:
    ids_BT = torch.cat([prompt_BP, prompt_BP.flip(1)], 1)
    rows, length = ids_BT.shape
    position_BT = torch.arange(length).expand(rows, -1)
    mask_BTC = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, -1, -1)
    return lean(ids_BT, position_BT, KVCache.empty(lean, rows, length), 0, mask_BTC, length)


def tokens_of(lean: LeanModel, prompt_BP: torch.Tensor, decoder: str) -> list[list[int]]:
    settings = DecodeSettings(
        decoder=decoder,
        mask_id=MASK,
        end_id=NEVER,
        origin="response",
        max_tokens=64,
        accept="static",
        per_step=4,
    )
    requests = [DecodeRequest(prompt) for prompt in prompt_BP.tolist()]
    return [run.tokens_T.tolist() for run in decode(lean, requests, settings)]


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
def test_folded_attention_equals_grouped_attention(lean, prompt_BP, decoder) -> None:
    logits_BTV = logits_of(lean, prompt_BP)
    expected = tokens_of(lean, prompt_BP, decoder)
    lean.folded = True
    try:
        torch.testing.assert_close(logits_of(lean, prompt_BP), logits_BTV, atol=1e-5, rtol=0)
        got = tokens_of(lean, prompt_BP, decoder)
    finally:
        lean.folded = False
    assert got == expected
    assert {len(tokens) for tokens in got} == {64}
