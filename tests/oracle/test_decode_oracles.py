"""The engine against a slow reference decoder, token for token (`decode.reference`)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from diffgr2.decode.batch import decode
from diffgr2.decode.reference import ar, block, verify
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.model.forward import LeanModel
from diffgr2.model.slow import SlowModel
from diffgr2.streams import generator
from support.grammars import END, GRAMMARS, MASK, accepts, text
from support.tiny_qwen import VOCAB, tiny

BLOCK = 8
PROMPTS = (1, 4, 7, 8, 9, 15, 16)  # 0, 1, B - 1 and another modulo the block size
assert MASK == VOCAB - 1

by_grammar = pytest.mark.parametrize("name", GRAMMARS)


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


def ruled(**changes) -> DecodeSettings:
    return settings(rule="grammar", max_tokens=40, **changes)


def run(module, given, chosen, grammar=None, batch=64):
    requests = [DecodeRequest(p, grammar, ("oracle", i)) for i, p in enumerate(given)]
    return decode(LeanModel(module), requests, chosen, batch=batch)


def assert_same(fast, slow) -> None:
    assert fast.tokens_T.tolist() == slow.tokens
    assert fast.step_of_T.tolist() == slow.steps
    np.testing.assert_allclose(fast.logprob_T, slow.logps, atol=1e-4)
    assert (fast.nfe, fast.finished) == (slow.nfe, slow.finished)
    if fast.forced_T is not None:
        assert fast.forced_T.tolist() == slow.forced
        np.testing.assert_allclose(fast.level_T, slow.levels, atol=1e-4)


def assert_same_text(one, two) -> None:
    assert one.tokens_T.tolist() == two.tokens_T.tolist()
    assert one.finished == two.finished
    np.testing.assert_allclose(one.logprob_T, two.logprob_T, atol=1e-4)
    if one.level_T is not None and two.level_T is not None:
        np.testing.assert_allclose(one.level_T, two.level_T, atol=1e-5)


# ------------------------------------------------------------------ engine = slow reference


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("name", [None, *GRAMMARS])
def test_ar_equals_the_slow_reference(name, temperature):
    grammar = GRAMMARS.get(name)
    chosen = replace(ruled() if grammar else settings(), temperature=temperature)
    module = tiny(1, marker=1.5)
    given = prompts(1)
    for i, fast in enumerate(run(module, given, chosen, grammar)):
        rng = generator("oracle", i) if temperature else None
        assert_same(fast, ar(SlowModel(module, MASK), given[i], chosen, grammar, rng))
        if grammar:
            assert accepts(grammar, fast.tokens_T.tolist())
            assert fast.nfe == (~fast.forced_T).sum()


CONTRACTS = list(
    product(("causal", "block_causal"), ("same_position", "shifted"), ("document", "response"))
)
by_contract = pytest.mark.parametrize(("clean_kv", "alignment", "origin"), CONTRACTS)


@by_contract
def test_block_equals_the_slow_reference_under_the_raw_rule(clean_kv, alignment, origin):
    module = tiny(2)
    given = prompts(2)
    contract = settings(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    for changes in ({"threshold": 0.5}, {"fused": False}, {"temperature": 1.3, "threshold": 0.3}):
        chosen = replace(contract, **changes)
        for i, fast in enumerate(run(module, given, chosen)):
            rng = generator("oracle", i) if chosen.temperature else None
            assert_same(fast, block(SlowModel(module, MASK), given[i], chosen, None, rng))


@by_grammar
@by_contract
def test_block_equals_the_slow_reference_under_a_grammar(clean_kv, alignment, origin, name):
    module, grammar = tiny(2, tied=False, marker=1.5), GRAMMARS[name]
    given = prompts(2, (1, 7, 8))
    contract = ruled(decoder="block", clean_kv=clean_kv, alignment=alignment, origin=origin)
    for changes in (
        {"threshold": 0.3},
        {"threshold": 0.3, "fused": False, "block_size": 3},
        {"threshold": 0.1, "temperature": 1.3, "block_size": 32},
    ):
        chosen = replace(contract, **changes)
        for i, fast in enumerate(run(module, given, chosen, grammar)):
            rng = generator("oracle", i) if chosen.temperature else None
            assert_same(fast, block(SlowModel(module, MASK), given[i], chosen, grammar, rng))
            assert accepts(grammar, fast.tokens_T.tolist())


@by_grammar
@pytest.mark.parametrize(
    "accept",
    [
        {"threshold": 1.0},
        {"threshold": 0.0},
        {"accept": "static", "per_step": 3},
        {"accept": "entropy", "entropy_bound": 2.0},
    ],
    ids=str,
)
def test_accept_rules_under_a_grammar(name, accept):
    grammar = GRAMMARS[name]
    for seed, (kv, alignment, origin) in enumerate(CONTRACTS[::3]):
        module = tiny(seed, tied=False, marker=2.5)
        given = prompts(seed, (1, 8))
        chosen = ruled(decoder="block", clean_kv=kv, alignment=alignment, origin=origin)
        chosen = replace(chosen, **accept)
        for i, fast in enumerate(run(module, given, chosen, grammar)):
            assert_same(fast, block(SlowModel(module, MASK), given[i], chosen, grammar))


@pytest.mark.parametrize("alignment", ["same_position", "shifted"])
@pytest.mark.parametrize("canvas", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("name", [None, *GRAMMARS])
def test_verify_equals_the_slow_reference_and_ar(name, alignment, canvas):
    module, grammar = tiny(3), GRAMMARS.get(name)
    given = prompts(3)
    plain = ruled() if grammar else settings()
    chosen = replace(plain, decoder="verify", canvas=canvas, alignment=alignment)
    one_by_one = run(module, given, plain, grammar)
    for i, fast in enumerate(run(module, given, chosen, grammar)):
        assert_same(fast, verify(SlowModel(module, MASK), given[i], chosen, grammar))
        assert_same_text(fast, one_by_one[i])


# ------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("name", [None, *GRAMMARS])
@pytest.mark.parametrize("canvas", [1, 3, 16, 48, 64])
def test_verify_writes_what_ar_writes_on_random_models(canvas, name):
    for seed in range(6):
        module, grammar = tiny(100 + seed), GRAMMARS.get(name)
        given = prompts(seed, (1, 5, 16, 23))
        chosen = settings(max_tokens=60, rule="grammar")
        expected = run(module, given, chosen, grammar)
        verified = run(module, given, replace(chosen, decoder="verify", canvas=canvas), grammar)
        for want, got in zip(expected, verified, strict=True):
            assert_same_text(got, want)
            assert got.nfe <= want.nfe


@pytest.mark.parametrize("limit", [1, 2, 7, 13])
@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
@by_grammar
def test_the_limit_cuts_a_text_of_the_grammar(name, decoder, limit):
    module, grammar = tiny(8, marker=1.3), GRAMMARS[name]
    given = prompts(8, (4, 9))
    chosen = replace(ruled(decoder=decoder, threshold=0.2), max_tokens=limit)
    slow = {"ar": ar, "block": block, "verify": verify}[decoder]
    for i, fast in enumerate(run(module, given, chosen, grammar)):
        assert_same(fast, slow(SlowModel(module, MASK), given[i], chosen, grammar))
        assert len(fast.tokens_T) <= limit
        assert fast.finished == accepts(grammar, fast.tokens_T.tolist())


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
def test_the_raw_rule_ignores_the_grammar(decoder):
    module = tiny(9)
    chosen = settings(decoder=decoder, rule="raw")
    with_one, without = (run(module, prompts(9), chosen, g) for g in (GRAMMARS["said"], None))
    ruled_but_none = run(module, prompts(9), replace(chosen, rule="grammar"), None)
    for one, two, three in zip(with_one, without, ruled_but_none, strict=True):
        assert one.tokens_T.tolist() == two.tokens_T.tolist() == three.tokens_T.tolist()
        assert one.step_of_T.tolist() == two.step_of_T.tolist() == three.step_of_T.tolist()


@pytest.mark.parametrize("name", [None, "written", "text"])
@by_contract
def test_fused_commit_changes_no_token_and_saves_forwards(clean_kv, alignment, origin, name):
    module, grammar = tiny(4, marker=1.4), GRAMMARS.get(name)
    contract = {"clean_kv": clean_kv, "alignment": alignment, "origin": origin}
    chosen = settings(decoder="block", threshold=0.4, max_tokens=40, rule="grammar", **contract)
    fused = run(module, prompts(4), chosen, grammar)
    plain = run(module, prompts(4), replace(chosen, fused=False), grammar)
    for length, one, two in zip(PROMPTS, fused, plain, strict=True):
        assert_same_text(one, two)
        ends = range(len(one.tokens_T))
        origin_at = 0 if origin == "document" else length
        commits = sum((length + t - origin_at) % BLOCK == 0 for t in ends if t)
        assert two.nfe - one.nfe <= commits
        assert name or two.nfe - one.nfe == commits


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("name", [None, "written", "text"])
def test_batch_equals_single_for_prompts_of_mixed_length(decoder, temperature, name):
    module, grammar = tiny(5, marker=1.3), GRAMMARS.get(name)
    given = prompts(5, PROMPTS * 2)
    for kv in ("causal", "block_causal"):
        chosen = replace(ruled(decoder=decoder, clean_kv=kv), temperature=temperature)
        single = run(module, given, chosen, grammar, batch=1)
        for batch in (3, 16):
            for one, many in zip(single, run(module, given, chosen, grammar, batch), strict=True):
                assert_same_text(many, one)
                assert many.step_of_T.tolist() == one.step_of_T.tolist()
                assert many.nfe == one.nfe


@pytest.mark.parametrize("name", [None, *GRAMMARS])
@pytest.mark.parametrize("clean_kv", ["causal", "block_causal"])
def test_block_size_one_with_shifted_logits_is_ar(clean_kv, name):
    for seed in range(4):
        module, grammar = tiny(200 + seed), GRAMMARS.get(name)
        plain = ruled()
        expected = run(module, prompts(seed), plain, grammar)
        chosen = replace(
            plain, decoder="block", block_size=1, alignment="shifted", clean_kv=clean_kv
        )
        for want, got in zip(expected, run(module, prompts(seed), chosen, grammar), strict=True):
            assert_same_text(got, want)
            assert got.step_of_T.tolist() == want.step_of_T.tolist()


def test_block_size_one_at_the_same_position_goes_left_to_right_and_ignores_the_threshold():
    """Its logits are those of a mask token behind a causal prefix, not the AR head's."""
    module = tiny(6)
    chosen = settings(decoder="block", block_size=1)
    low, high = (run(module, prompts(6), replace(chosen, threshold=t)) for t in (0.0, 1.0))
    for given, one, two in zip(prompts(6), low, high, strict=True):
        assert one.step_of_T.tolist() == list(range(len(one.tokens_T)))
        assert one.tokens_T.tolist() == two.tokens_T.tolist()
        written: list[int] = []
        for token in one.tokens_T.tolist():
            ids = [*given, *written, MASK]
            logp_TV = SlowModel(module, MASK).logp(ids, [t + 1 for t in range(len(ids))])
            assert token == int(logp_TV[-1].argmax())
            written.append(token)


def test_the_block_size_does_not_matter_to_verify_nor_the_canvas_to_block():
    module = tiny(7)
    wide = settings(decoder="verify", block_size=64)
    narrow = replace(wide, block_size=1)
    for one, two in zip(
        run(module, prompts(7), wide), run(module, prompts(7), narrow), strict=True
    ):
        assert one.step_of_T.tolist() == two.step_of_T.tolist()


@pytest.mark.parametrize("decoder", ["ar", "block", "verify"])
def test_free_text_that_never_ends_by_itself_ends_with_its_room(decoder):
    module, grammar = tiny(10), text(room=1)
    for fast in run(module, prompts(10), ruled(decoder=decoder), grammar):
        assert fast.tokens_T.tolist()[:3] == [16, 17, 20]
        assert fast.forced_T[:4].all()
        assert (fast.step_of_T[:4] == -1).all()
