"""Every decoder ends in a text of the gr2 grammar: whole JSON, every candidate once."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from diffgr2.config import Decoder, ModelConfig
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.forward import LeanModel
from diffgr2.model.load import build
from support.templates import draw_request, follow, template


@cache
def noise() -> LeanModel:
    """A model that wants anything anywhere."""
    size = template("gr2", "qwen").vocab.spec.size
    model = build(ModelConfig(dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64), size, 0)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(20)
    return LeanModel(model)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("decoder", "threshold"), [("ar", 0.9), ("verify", 0.9), ("block", 0.9), ("block", 0.02)]
)
def test_every_decoder_ends_in_a_text_of_the_grammar(
    decoder: Decoder, threshold: float, temperature: float
) -> None:
    made = template("gr2", "qwen")
    cases = [(draw_request(k, k), k % 2 == 0) for k in (1, 2, 6, 20)]
    asked = [
        DecodeRequest(
            made.prompt(request, reasoning=reasoning),
            made.grammar(request, reasoning=reasoning),
            ("chat", i),
        )
        for i, (request, reasoning) in enumerate(cases)
    ]
    settings = DecodeSettings(
        decoder=decoder,
        threshold=threshold,
        temperature=temperature,
        mask_id=made.vocab.mask_id,
        end_id=made.vocab.end_id,
        max_tokens=made.max_response(20),
        origin="response",
    )
    for (request, reasoning), found in zip(cases, decode(noise(), asked, settings), strict=True):
        tokens = found.tokens_T.tolist()
        assert found.finished
        follow(made.grammar(request, reasoning=reasoning), tokens)
        assert made.parse(tokens, request).valid
