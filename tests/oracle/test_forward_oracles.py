"""The lean forward against the stock model, and decoding against the training layout."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from test_decode_oracles import BLOCK, prompts, ruled, settings

from diffgr2.config import ModelConfig
from diffgr2.decode.batch import Batch, decode
from diffgr2.decode.block import BlockWriter
from diffgr2.decode.settings import DecodeRequest
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.errors import CheckpointError
from diffgr2.model.backend import View
from diffgr2.model.forward import KVCache, LeanModel
from diffgr2.model.layout import response_shift
from diffgr2.model.load import build
from diffgr2.model.masks import row_mask, row_positions
from support.grammars import END, GRAMMARS, MASK
from support.tiny_qwen import VOCAB, tiny


def causal_mask(length: int) -> torch.Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def whole(lean: LeanModel, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits of one causal forward of the lean model."""
    rows, length = ids_BT.shape
    cache = KVCache.empty(lean, rows, length)
    position_BT = torch.arange(length).expand(rows, -1)
    return lean(ids_BT, position_BT, cache, 0, causal_mask(length).expand(rows, -1, -1), length)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_lean_forward_equals_the_stock_model(kv_heads, tied):
    module = tiny(11, kv_heads=kv_heads, tied=tied)
    ids_BT = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (3, 40)))
    with torch.no_grad():
        expected_BTV = module(ids_BT, attention_mask=causal_mask(40)[None, None]).logits
    torch.testing.assert_close(whole(LeanModel(module), ids_BT), expected_BTV, atol=1e-5, rtol=0)


@pytest.fixture
def one_thread():
    """Several threads share a product's sums in another way for the stock model than for ours."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("length", [7, 64, 200])
def test_one_causal_forward_is_the_stock_models_to_the_bit(length):
    module = build(ModelConfig(), 1900, seed=0).eval()
    ids_1T = torch.from_numpy(np.random.default_rng(1).integers(0, 1900, (1, length)))
    with torch.no_grad():
        expected_1TV = module(ids_1T, attention_mask=causal_mask(length)[None, None]).logits
    assert torch.equal(whole(LeanModel(module), ids_1T), expected_1TV)


@pytest.mark.parametrize(
    ("field", "value"),
    [("attention_bias", True), ("hidden_act", "gelu"), ("use_sliding_window", True)],
)
def test_a_model_that_the_lean_forward_would_get_wrong_is_refused(field, value):
    module = tiny(17)
    setattr(module.config, field, value)
    with pytest.raises(CheckpointError, match="is not supported"):
        LeanModel(module)


def test_cached_steps_equal_one_forward():
    module = tiny(13)
    lean = LeanModel(module)
    ids_1T = torch.from_numpy(np.random.default_rng(2).integers(0, VOCAB, (1, 30)))
    expected_1TV = whole(lean, ids_1T)
    cache = KVCache.empty(lean, 1, 30)
    for start, end in ((0, 9), (9, 10), (10, 25), (25, 30)):
        mask = torch.arange(end)[None, :] <= torch.arange(start, end)[:, None]
        position_1T = torch.arange(start, end)[None]
        got = lean(ids_1T[:, start:end], position_1T, cache, start, mask[None], end)
        torch.testing.assert_close(got, expected_1TV[:, start:end], atol=1e-5, rtol=0)


def test_bf16_decodes_with_every_decoder_and_stays_close_to_fp32():
    module = tiny(14)
    ids_1T = torch.from_numpy(np.random.default_rng(3).integers(0, VOCAB, (1, 20)))
    exact_1TV = whole(LeanModel(module), ids_1T)
    module = module.to(torch.bfloat16)
    lean = LeanModel(module)
    rough_1TV = whole(lean, ids_1T)
    assert rough_1TV.dtype == torch.bfloat16
    assert (rough_1TV.float() - exact_1TV).abs().mean() < 0.1 * exact_1TV.abs().mean()
    requests = [DecodeRequest(p) for p in prompts(14)]
    for decoder in ("ar", "block", "verify"):
        for out in decode(lean, requests, settings(decoder=decoder, threshold=0.3)):
            assert MASK not in out.tokens_T
            assert np.isfinite(out.logprob_T).all()


# ------------------------------------------------------------ training layout = decoding


class Recorded(BlockWriter):
    """A block row that keeps every denoising state with its distributions."""

    def update(self, view: View) -> None:
        if not self._saving:
            at = self._canvas_row + np.arange(self.end - self.start)
            canvas = self.tokens_T[self.start : self.end].copy()
            self.states.append((self.start, canvas, torch.from_numpy(view.rows(at))))
        super().update(view)


def denoising_states(lean, prompt, chosen, grammar=None):
    row = Recorded(0, DecodeRequest(prompt, grammar, ("layout",)), chosen)
    row.states = []
    batch = Batch(lean)
    batch.add([row])
    while batch.writers:
        batch.step()
    return row


@pytest.mark.parametrize(
    ("clean_kv", "alignment", "origin"),
    product(("causal", "block_causal"), ("same_position", "shifted"), ("document", "response")),
)
@pytest.mark.parametrize("grammar", [None, GRAMMARS["written"]], ids=["raw", "written"])
def test_training_layout_gives_the_distributions_that_decoding_saw(
    clean_kv, alignment, origin, grammar
):
    module = tiny(15)
    lean = LeanModel(module)
    chosen = ruled(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    for prompt in prompts(15, (1, 7, 8, 13)):
        row = denoising_states(lean, prompt, chosen, grammar)
        assert len(row.states) >= 3
        length, size = len(prompt), row.end
        x0 = row.tokens_T[:size].copy()
        x0[x0 == UNKNOWN] = END  # the last block is never seen clean
        shift = response_shift(length, BLOCK, origin)
        causal = clean_kv == "causal"
        mask = row_mask(length, size, 1, BLOCK, shift, clean_causal=causal)
        positions = row_positions(length, size, 1)
        for start, canvas, logp_TV in row.states:
            xt = np.full(size, MASK)
            xt[start : start + len(canvas)] = np.where(canvas == UNKNOWN, MASK, canvas)
            ids = torch.tensor([[*prompt, *x0.tolist(), *xt.tolist()]])
            with torch.no_grad():
                logits = module(ids, attention_mask=mask[None, None], position_ids=positions[None])
            logits_TV = logits.logits[0]
            noisy = length + size + start
            at = torch.arange(noisy, noisy + len(canvas))
            if alignment == "shifted":  # a block's first token is predicted from the clean half
                at = at - 1
                at[0] = length + start - 1
            logits_TV[:, MASK] = -torch.inf
            expected_TV = torch.log_softmax(logits_TV[at], -1)
            torch.testing.assert_close(logp_TV, expected_TV, atol=1e-4, rtol=0)


# ------------------------------------------------------------- sampling is exact


def test_verified_samples_follow_the_ar_distribution():
    """Chi-square of three sampled tokens: both decoders against the exact probabilities."""
    module = tiny(16)
    lean = LeanModel(module)
    prompt, temperature, count = [9, 10, 11], 0.7, 3000
    expected = exact_distribution(lean, prompt, temperature, 3)
    for decoder, canvas in (("ar", 1), ("verify", 4)):
        chosen = settings(
            decoder=decoder, canvas=canvas, temperature=temperature, max_tokens=3, end_id=VOCAB + 1
        )
        requests = [DecodeRequest(prompt, None, ("chi", decoder, i)) for i in range(count)]
        found: dict[tuple[int, ...], int] = {}
        for out in decode(lean, requests, chosen, batch=1000):
            key = tuple(out.tokens_T.tolist())
            found[key] = found.get(key, 0) + 1
        likely = [key for key, p in expected.items() if p * count >= 8]
        assert len(likely) >= 20
        chances = np.array([expected[key] for key in likely])
        counts = np.array([found.get(key, 0) for key in likely])
        chances, counts = (
            np.append(chances, 1 - chances.sum()),
            np.append(counts, count - counts.sum()),
        )
        chi2 = ((counts - chances * count) ** 2 / (chances * count)).sum()
        # Mean n - 1, standard deviation sqrt(2 (n - 1)): five of them is far out.
        freedom = len(counts) - 1
        assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def exact_distribution(lean, prompt, temperature, length):
    """Probability of every text of `length` tokens, by one batched forward per position."""
    texts: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        kept = {text: p for text, p in texts.items() if p > 1e-4}
        ids_BT = torch.tensor([[*prompt, *text] for text in kept])
        logits_BV = whole(lean, ids_BT)[:, -1].clone()
        logits_BV[:, MASK] = -torch.inf
        chance_BV = torch.softmax(logits_BV / temperature, -1).tolist()
        texts = {
            (*text, token): p * chance
            for (text, p), row in zip(kept.items(), chance_BV, strict=True)
            for token, chance in enumerate(row)
        }
    return texts
