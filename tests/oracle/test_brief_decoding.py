"""Under the brief template all decoders equal the slow reference, alone or in a batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from transformers import Qwen3ForCausalLM

from diffgr2.config import Answering, Decoder, ModelConfig
from diffgr2.decode import reference
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.forward import LeanModel
from diffgr2.model.load import build
from diffgr2.model.slow import SlowModel
from diffgr2.prompts.request import Request
from support.templates import draw_request, follow, template

MADE = template("brief", "qwen")
WAYS: list[tuple[bool, Answering]] = [(True, "said"), (True, "written"), (False, "said")]
SLOW = {"ar": reference.ar, "block": reference.block, "verify": reference.verify}


@cache
def module() -> Qwen3ForCausalLM:
    """A model that wants anything anywhere."""
    sizes = ModelConfig(dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, ffn=64)
    made = build(sizes, MADE.vocab.spec.size, 0).eval()
    with torch.no_grad():
        made.model.embed_tokens.weight.mul_(12)
    return made


def settings(decoder: Decoder, **more) -> DecodeSettings:
    chosen = DecodeSettings(
        decoder=decoder,
        threshold=0.3,
        temperature=0.0,
        canvas=16,
        block_size=16,
        mask_id=MADE.vocab.mask_id,
        end_id=MADE.vocab.end_id,
        max_tokens=MADE.max_response(20),
        origin="response",
    )
    return replace(chosen, **more)


def asked(request: Request, reasoning: bool, answer: Answering) -> DecodeRequest:
    grammar = MADE.grammar(request, reasoning=reasoning, answer=answer)
    return DecodeRequest(MADE.prompt(request, reasoning=reasoning), grammar, ("brief", request.k))


@pytest.mark.parametrize("decoder", SLOW)
@pytest.mark.parametrize(("reasoning", "answer"), WAYS)
def test_greedy_equals_the_reference(decoder, reasoning: bool, answer: Answering) -> None:
    chosen = settings(decoder)
    requests = [draw_request(k, k) for k in (1, 2, 5)]
    given = [asked(request, reasoning, answer) for request in requests]
    found = decode(LeanModel(module()), given, chosen)
    for request, one, out in zip(requests, given, found, strict=True):
        slow = SlowModel(module(), MADE.vocab.mask_id)
        wanted = SLOW[decoder](slow, one.prompt, chosen, one.grammar)
        assert out.tokens_T.tolist() == wanted.tokens
        assert out.step_of_T.tolist() == wanted.steps
        assert out.nfe == wanted.nfe
        np.testing.assert_allclose(out.level_T, wanted.levels, atol=1e-4)
        assert one.grammar is not None
        follow(one.grammar, wanted.tokens)
        reading = MADE.read(wanted.tokens, request, out.level_T)
        assert reading.complete
        assert sorted(reading.said_order().tolist()) == list(range(request.k))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoder", SLOW)
def test_a_batch_gives_what_single_decoding_gives(decoder, temperature: float) -> None:
    given = [asked(draw_request(k, k), True, "written") for k in (1, 2, 6, 11)]
    chosen = settings(decoder, temperature=temperature)
    model = LeanModel(module())
    alone, together = (decode(model, given, chosen, batch=size) for size in (1, 4))
    for one, two in zip(alone, together, strict=True):
        assert one.tokens_T.tolist() == two.tokens_T.tolist()
        assert one.step_of_T.tolist() == two.step_of_T.tolist()
        np.testing.assert_allclose(one.logprob_T, two.logprob_T, atol=1e-4)


def test_names_and_marks_cost_no_forward() -> None:
    """One strength per candidate is what is left to decide where nothing may be cited."""
    request = draw_request(3, 6)
    request = replace(request, buckets_KF=np.full_like(request.buckets_KF, 255))
    [out] = decode(LeanModel(module()), [asked(request, True, "said")], settings("ar"))
    assert out.nfe == 6
    assert len(out.tokens_T) == 6 * (2 + MADE.config.cites)
