"""Decoders fed with arbitrary grammars and distributions: a text of the grammar, nothing else.

No neural network here: `support.random_session` gives distributions that depend on what is seen
and on nothing else, ties, −inf and huge values among them. The slow reference decodes from the same
ones, and an acceptor that shares no code with the package reads what comes out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.decode import reference
from diffgr2.decode.batch import Batch, decode, make_writer
from diffgr2.decode.grammar import Grammar
from diffgr2.decode.reference import Slow, Text
from diffgr2.decode.replay import decisions
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.errors import DecodeError
from diffgr2.streams import generator
from diffgr2.types import Trajectory
from support.grammars import accepts, random_grammar
from support.random_session import KINDS, RandomModel

VOCAB, MASK, END = 14, 0, 1  # the mask has the lowest id: ties and −inf lead there
DECODERS = ("ar", "block", "verify")
SLOW = {"ar": reference.ar, "block": reference.block, "verify": reference.verify}
MODELS = [RandomModel(seed, kind, VOCAB, MASK) for kind in KINDS for seed in range(3)]

seeds = st.integers(0, 2**32)
by_decoder = pytest.mark.parametrize("decoder", DECODERS)


def random_settings(rng: np.random.Generator, decoder: str, longest: int) -> DecodeSettings:
    limit = int(rng.integers(1, 24)) if rng.random() < 0.2 else longest
    return DecodeSettings(
        decoder=decoder,
        block_size=int(rng.integers(1, 12)),
        mask_id=MASK,
        end_id=END,
        alignment=str(rng.choice(["same_position", "shifted"])),
        origin=str(rng.choice(["document", "response"])),
        accept=str(rng.choice(["threshold", "static", "entropy"])),
        threshold=float(rng.choice([0.0, 0.1, 0.3, 0.9, 1.0])),
        per_step=int(rng.integers(1, 5)),
        entropy_bound=float(rng.choice([0.0, 0.5, 5.0])),
        rule="grammar",
        clean_kv=str(rng.choice(["causal", "block_causal"])),
        canvas=int(rng.integers(1, 12)),
        temperature=float(rng.choice([0.0, 0.0, 0.3, 1.0, 2.0])),
        max_tokens=max(limit, 1),
        fused=bool(rng.random() < 0.7),
    )


def a_case(seed: int, decoder: str, *, grammar: bool = True, greedy: bool = False):
    """(model, request, settings) of this seed."""
    rng = np.random.default_rng(seed)
    rule = random_grammar(rng, VOCAB, MASK) if grammar else None
    chosen = random_settings(rng, decoder, rule.longest if rule is not None else 20)
    if greedy:
        chosen = replace(chosen, temperature=0.0)
    prompt = rng.integers(2, VOCAB, size=int(rng.integers(1, 20))).tolist()
    model = MODELS[seed % len(MODELS)]
    return model, DecodeRequest(prompt, rule, ("property", seed)), chosen


def check_trajectory(out: Trajectory, grammar: Grammar | None, chosen: DecodeSettings) -> None:
    tokens, length = out.tokens_T.tolist(), len(out.tokens_T)
    forced_T = np.zeros(length, dtype=bool) if grammar is None else out.forced_T
    decided_T = out.step_of_T[~forced_T]
    assert length <= chosen.max_tokens
    assert MASK not in tokens
    assert all(0 <= token < VOCAB for token in tokens)
    possible_T = np.isfinite(out.logprob_T)  # between two levels one may be impossible
    assert possible_T.all() or (out.level_T is not None and chosen.temperature == 0)
    assert out.level_T is None or not np.isnan(out.level_T[~possible_T]).any()
    assert (out.logprob_T <= 1e-6).all()
    assert (out.logprob_T[forced_T] == 0).all()
    assert ((decided_T >= 0) & (decided_T < out.nfe)).all()
    assert ((out.step_of_T >= -1) & (out.step_of_T < max(out.nfe, 1))).all()
    assert out.finished or length == chosen.max_tokens
    if chosen.decoder == "ar":
        assert out.nfe == len(decided_T)
    if grammar is None:
        ends = np.flatnonzero(out.tokens_T == END)
        assert out.finished == (len(ends) > 0)
        assert ends.tolist() in ([], [length - 1])
    else:
        assert accepts(grammar, tokens) == out.finished


def one_case(seed: int, decoder: str, *, grammar: bool = True) -> str:
    model, request, chosen = a_case(seed, decoder, grammar=grammar)
    try:
        (out,) = decode(model, [request], chosen)
    except DecodeError:
        return "error"
    check_trajectory(out, request.grammar, chosen)
    return "finished" if out.finished else "cut"


@by_decoder
@pytest.mark.parametrize("grammar", [True, False])
@given(seed=seeds)
@settings(max_examples=100, deadline=None)
def test_arbitrary_logits_end_in_a_text_or_a_named_error(decoder, grammar, seed):
    one_case(seed, decoder, grammar=grammar)


def check_grammars(decoder: str, n: int) -> None:
    first = DECODERS.index(decoder) * 10_000
    ends = [one_case(seed, decoder) for seed in range(first, first + n)]
    assert ends.count("finished") > 0.9 * n
    assert ends.count("error") < 0.01 * n


@by_decoder
def test_a_thousand_grammars_end_in_a_text_of_theirs_or_a_named_error(decoder):
    check_grammars(decoder, 1_000)


@pytest.mark.slow
@by_decoder
def test_ten_thousand_grammars_end_in_a_text_of_theirs_or_a_named_error(decoder):
    check_grammars(decoder, 10_000)


# ------------------------------------------------------------------------ against the reference


def assert_same(fast: Trajectory, slow: Slow) -> None:
    assert fast.tokens_T.tolist() == slow.tokens
    assert fast.step_of_T.tolist() == slow.steps
    np.testing.assert_allclose(fast.logprob_T, slow.logps, atol=1e-4)
    assert (fast.nfe, fast.finished) == (slow.nfe, slow.finished)
    if fast.forced_T is not None and fast.level_T is not None:
        assert fast.forced_T.tolist() == slow.forced
        np.testing.assert_allclose(fast.level_T, slow.levels, atol=1e-4)


@by_decoder
@pytest.mark.parametrize("start", range(0, 600, 100))
def test_fast_decoders_are_the_slow_ones(decoder, start):
    for seed in range(start, start + 100):
        model, request, chosen = a_case(seed, decoder, greedy=decoder == "verify")
        try:
            (fast,) = decode(model, [request], chosen)
        except DecodeError:
            continue
        rng = (generator(*request.stream),) if chosen.temperature and decoder != "verify" else ()
        slow = SLOW[decoder](model, request.prompt, chosen, request.grammar, *rng)
        assert_same(fast, slow)


@given(seed=seeds)
@settings(max_examples=300, deadline=None)
def test_verify_writes_what_ar_writes(seed):
    model, request, chosen = a_case(seed, "verify", greedy=True)
    try:
        (plain,) = decode(model, [request], replace(chosen, decoder="ar"))
    except DecodeError:
        with pytest.raises(DecodeError):
            decode(model, [request], chosen)
        return
    (out,) = decode(model, [request], chosen)
    assert out.tokens_T.tolist() == plain.tokens_T.tolist()
    assert out.nfe <= plain.nfe
    assert out.finished == plain.finished
    assert out.forced_T is not None
    assert plain.forced_T is not None
    assert out.forced_T.tolist() == plain.forced_T.tolist()
    np.testing.assert_allclose(out.logprob_T, plain.logprob_T, atol=1e-5)
    assert out.level_T is not None
    assert plain.level_T is not None
    np.testing.assert_allclose(out.level_T, plain.level_T, atol=1e-5)


@by_decoder
def test_a_batch_gives_what_single_decoding_gives(decoder):
    for seed in range(40):
        model, first, chosen = a_case(seed, decoder)
        requests = [a_case(seed + 1000 * i, decoder)[1] for i in range(4)]
        chosen = replace(chosen, max_tokens=30)
        try:
            alone = [decode(model, [request], chosen)[0] for request in [first, *requests]]
        except DecodeError:
            continue
        for batch in (2, 5):
            for one, many in zip(
                alone, decode(model, [first, *requests], chosen, batch=batch), strict=True
            ):
                assert one.tokens_T.tolist() == many.tokens_T.tolist()
                assert one.step_of_T.tolist() == many.step_of_T.tolist()
                assert one.nfe == many.nfe


@by_decoder
@given(seed=seeds)
@settings(max_examples=100, deadline=None)
def test_every_position_is_told_once_and_stays(decoder, seed):
    model, request, chosen = a_case(seed, decoder)
    row = make_writer(0, request, chosen)
    told: dict[int, int] = {}
    running = Batch(model)
    running.add([] if row.done else [row])
    try:
        while True:
            for at, token in row.fresh():
                assert at not in told
                told[at] = token
            if row.done:
                break
            running.step()
    except DecodeError:
        return
    out = row.result()
    assert out.tokens_T.tolist() == [told[at] for at in range(len(out.tokens_T))]


# --------------------------------------------------------------------------------------- replay


def state_before(out: Trajectory, step: int, request: DecodeRequest, chosen) -> Text:
    """What was known when this step's tokens were chosen."""
    text = Text.begin(chosen, request.grammar)
    tokens = out.tokens_T if out.canvas_T is None else out.canvas_T
    steps = out.step_of_T if out.canvas_step_T is None else out.canvas_step_T
    earlier = np.flatnonzero(steps < step)
    text.known = dict(zip(earlier.tolist(), tokens[earlier].tolist(), strict=True))
    return text


@by_decoder
@given(seed=seeds)
@settings(max_examples=200, deadline=None)
def test_replay_knows_what_was_allowed(decoder, seed):
    """Of every decision of a finished text: the tokens that the reference allows in that state."""
    model, request, chosen = a_case(seed, decoder)
    try:
        (out,) = decode(model, [request], chosen)
    except DecodeError:
        return
    if not out.finished:
        return
    found = decisions(out, request.grammar)
    assert out.forced_T is not None
    assert sorted(found.at_D.tolist()) == np.flatnonzero(~out.forced_T).tolist()
    for d, at in enumerate(found.at_D.tolist()):
        step = int(out.step_of_T[at])
        if decoder != "block":  # one token after the other, several in one step
            text = Text.begin(chosen, request.grammar)
            text.known = {t: int(out.tokens_T[t]) for t in range(at)}
            text.settle(0)
        else:
            text = state_before(out, step, request, chosen)
        wanted = text.may(at, VOCAB)
        banned = found.banned_D[d]
        if banned is None:
            allowed_A = found.allowed_DA[d]
            assert allowed_A[allowed_A >= 0].tolist() == wanted
        else:
            assert sorted({*range(VOCAB)} - {MASK, *banned.tolist()}) == wanted
