"""The engine against a slow reference decoder, token for token (`decode.reference`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from diffgr2.decode.batch import decode
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.reference import SlowModel, ar, block, verify
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.forward import LeanQwen3
from diffgr2.streams import generator
from support.tiny_qwen import VOCAB, tiny

MASK, END, MARKER = VOCAB - 1, 0, 1
BLOCK = 8
PROMPTS = (1, 4, 7, 8, 9, 15, 16)  # 0, 1, B - 1 and another modulo the block size

SINGLE = AnswerGrammar((MARKER,), 0, 1, np.array([[2], [3], [4], [5]]))
SPELLED = AnswerGrammar((MARKER,), 1, 3, np.array([[2, 6], [2, 7], [3, 6], [4, 7]]))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def prompts(seed: int, lengths=PROMPTS) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(8, MASK, size=length).tolist() for length in lengths]


def settings(**changes) -> DecodeSettings:
    base = DecodeSettings(
        decoder="ar", block_size=BLOCK, canvas=BLOCK, mask_id=MASK, end_id=END, max_tokens=21
    )
    return replace(base, **changes)


def run(module, given, chosen, grammar=None, batch=64):
    requests = [DecodeRequest(p, grammar, ("oracle", i)) for i, p in enumerate(given)]
    return decode(LeanQwen3(module), requests, chosen, batch=batch)


def assert_same(fast, slow) -> None:
    assert fast.tokens_T.tolist() == slow.tokens
    assert fast.step_of_T.tolist() == slow.steps
    np.testing.assert_allclose(fast.logprob_T, slow.logps, atol=1e-4)
    assert (fast.nfe, fast.finished) == (slow.nfe, slow.finished)


# ------------------------------------------------------------------ engine = slow reference


@pytest.mark.parametrize(
    ("rule", "temperature"), [("raw", 0.0), ("raw", 0.7), ("permutation", 0.0)]
)
def test_ar_equals_the_slow_reference(rule, temperature):
    grammar = SPELLED if rule == "permutation" else None
    chosen = settings(rule=rule, temperature=temperature)
    module = tiny(1, marker=1.5)
    given = prompts(1)
    for i, fast in enumerate(run(module, given, chosen, grammar)):
        rng = generator("oracle", i) if temperature else None
        assert_same(fast, ar(SlowModel(module, MASK), given[i], chosen, grammar, rng))


CONTRACTS = list(
    product(("causal", "block_causal"), ("same_position", "shifted"), ("document", "response"))
)


@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_block_equals_the_slow_reference_under_the_raw_rule(clean_kv, alignment, origin):
    module = tiny(2)
    given = prompts(2)
    contract = settings(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    for changes in ({"threshold": 0.5}, {"fused": False}, {"temperature": 1.3, "threshold": 0.3}):
        chosen = replace(contract, **changes)
        for i, fast in enumerate(run(module, given, chosen)):
            rng = generator("oracle", i) if chosen.temperature else None
            assert_same(fast, block(SlowModel(module, MASK), given[i], chosen, None, rng))


@pytest.mark.parametrize("grammar", [SINGLE, SPELLED], ids=["one_token", "prefixes"])
@pytest.mark.parametrize(
    "accept",
    [
        {"threshold": 1.0},
        {"threshold": 0.3},
        {"threshold": 0.0},
        {"accept": "static", "per_step": 3},
        {"accept": "entropy", "entropy_bound": 2.0},
    ],
    ids=str,
)
def test_block_equals_the_slow_reference_under_the_permutation_rule(grammar, accept):
    reached = 0
    for seed, contract in enumerate(CONTRACTS[::3]):
        module = tiny(seed, tied=False, marker=2.5)
        given = prompts(seed, (1, 7, 8, 15))
        kv, alignment, origin = contract
        chosen = settings(decoder="block", rule="permutation", clean_kv=kv, **accept)
        chosen = replace(chosen, alignment=alignment, origin=origin)
        for i, fast in enumerate(run(module, given, chosen, grammar)):
            assert_same(fast, block(SlowModel(module, MASK), given[i], chosen, grammar))
            reached += MARKER in fast.tokens_T
    assert reached >= 5  # the rule was at work


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("canvas", [1, 2, 5, 8, 64])
def test_verify_equals_the_slow_reference_and_ar(alignment, canvas):
    module = tiny(3)
    given = prompts(3)
    chosen = settings(decoder="verify", canvas=canvas, alignment=alignment)
    one_by_one = run(module, given, settings())
    for i, fast in enumerate(run(module, given, chosen)):
        assert_same(fast, verify(SlowModel(module, MASK), given[i], chosen))
        assert fast.tokens_T.tolist() == one_by_one[i].tokens_T.tolist()


# ------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("canvas", [1, 3, 16, 48, 64])
def test_verify_writes_what_ar_writes_on_random_models(canvas):
    for seed in range(6):
        module = tiny(100 + seed)
        given = prompts(seed, (1, 5, 16, 23))
        chosen = settings(max_tokens=60)
        expected = run(module, given, chosen)
        verified = run(module, given, replace(chosen, decoder="verify", canvas=canvas))
        for want, got in zip(expected, verified, strict=True):
            assert got.tokens_T.tolist() == want.tokens_T.tolist()
            assert got.finished == want.finished
            np.testing.assert_allclose(got.logprob_T, want.logprob_T, atol=1e-4)


@pytest.mark.parametrize("rule", ["raw", "permutation"])
@pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)
def test_fused_commit_changes_no_token_and_saves_one_forward_per_block(
    clean_kv, alignment, origin, rule
):
    module = tiny(4, marker=1.4)
    contract = {"clean_kv": clean_kv, "alignment": alignment, "origin": origin, "rule": rule}
    chosen = settings(decoder="block", threshold=0.4, max_tokens=30, **contract)
    fused = run(module, prompts(4), chosen, SINGLE)
    plain = run(module, prompts(4), replace(chosen, fused=False), SINGLE)
    for length, one, two in zip(PROMPTS, fused, plain, strict=True):
        assert one.tokens_T.tolist() == two.tokens_T.tolist()
        np.testing.assert_allclose(one.logprob_T, two.logprob_T, atol=1e-4)
        ends = range(len(one.tokens_T))
        origin_at = 0 if origin == "document" else length
        commits = sum((length + t - origin_at) % BLOCK == 0 for t in ends if t)
        assert two.nfe - one.nfe == commits


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batch_equals_single_for_prompts_of_mixed_length(decoder, temperature):
    module = tiny(5, marker=1.3)
    given = prompts(5, PROMPTS * 2)
    for rule, kv in (("raw", "causal"), ("permutation", "block_causal")):
        chosen = settings(decoder=decoder, temperature=temperature, rule=rule, clean_kv=kv)
        single = run(module, given, chosen, SINGLE, batch=1)
        for batch in (3, 16):
            for one, many in zip(single, run(module, given, chosen, SINGLE, batch), strict=True):
                assert many.tokens_T.tolist() == one.tokens_T.tolist()
                assert many.step_of_T.tolist() == one.step_of_T.tolist()
                np.testing.assert_allclose(many.logprob_T, one.logprob_T, atol=1e-4)
                assert many.nfe == one.nfe


@pytest.mark.parametrize("clean_kv", ["causal", "block_causal"])
def test_block_size_one_with_shifted_logits_is_ar(clean_kv):
    for seed in range(4):
        module = tiny(200 + seed)
        expected = run(module, prompts(seed), settings())
        chosen = settings(decoder="block", block_size=1, alignment="shifted", clean_kv=clean_kv)
        for want, got in zip(expected, run(module, prompts(seed), chosen), strict=True):
            assert got.tokens_T.tolist() == want.tokens_T.tolist()
            assert got.step_of_T.tolist() == want.step_of_T.tolist()
            np.testing.assert_allclose(got.logprob_T, want.logprob_T, atol=1e-4)


def test_block_size_one_at_the_same_position_goes_left_to_right_and_ignores_the_threshold():
    """Its logits are those of a mask token behind a causal prefix, not the AR head's."""
    module = tiny(6)
    chosen = settings(decoder="block", block_size=1)
    low, high = (run(module, prompts(6), replace(chosen, threshold=t)) for t in (0.0, 1.0))
    for given, one, two in zip(prompts(6), low, high, strict=True):
        assert one.step_of_T.tolist() == list(range(len(one.tokens_T)))
        assert one.tokens_T.tolist() == two.tokens_T.tolist()
        text: list[int] = []
        for token in one.tokens_T.tolist():
            ids = [*given, *text, MASK]
            logp_TV = SlowModel(module, MASK).logp(ids, [t + 1 for t in range(len(ids))])
            assert token == int(logp_TV[-1].argmax())
            text.append(token)


def test_the_block_size_does_not_matter_to_verify_nor_the_canvas_to_block():
    module = tiny(7)
    wide = settings(decoder="verify", block_size=64)
    narrow = replace(wide, block_size=1)
    for one, two in zip(
        run(module, prompts(7), wide), run(module, prompts(7), narrow), strict=True
    ):
        assert one.step_of_T.tolist() == two.step_of_T.tolist()
