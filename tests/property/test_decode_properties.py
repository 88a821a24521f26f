"""Decoders fed with arbitrary logits: a valid commit sequence or a named error, nothing else.

No model here: a row is driven by views made of logits that hypothesis' seeds choose, ties, −inf,
NaN, +inf and huge values among them. And the permutation rule against enumeration.
"""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from diffgr2.decode.answer_rule import (
    UNKNOWN,
    AnswerState,
    allowed_choices,
    allowed_tokens,
    settle,
)
from diffgr2.decode.draw import prepare
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.decode.batch import make_writer
from diffgr2.decode.grammar import AnswerGrammar
from diffgr2.decode.settings import DecodeRequest, DecodeSettings
from diffgr2.decode.writer import View
from diffgr2.errors import DecodeError

VOCAB, MASK, END, MARKER = 14, 0, 1, 2  # the mask has the lowest id: ties and −inf lead there
SINGLE = AnswerGrammar((MARKER,), 0, 1, np.array([[3], [4], [5]]))
SPELLED = AnswerGrammar((MARKER, 13), 1, 4, np.array([[3, 6, 8], [3, 6, 9], [4, 7, 8]]))
GRAMMARS = {"none": None, "one_token": SINGLE, "prefixes": SPELLED}
ACCEPTS = ("threshold", "static", "entropy")
KINDS = ("normal", "peaked", "ties", "impossible", "huge", "broken")


def arbitrary_logits(rng: np.random.Generator, kind: str, length: int) -> np.ndarray:
    """Logits [T, V] of one forward."""
    logits_TV = rng.normal(size=(length, VOCAB)).astype(np.float32)
    if kind == "peaked":
        return logits_TV * 9
    if kind == "ties":
        return np.round(logits_TV)
    if kind == "impossible":
        logits_TV[rng.random(logits_TV.shape) < 0.7] = -np.inf
        logits_TV[rng.random(length) < 0.9, rng.integers(1, VOCAB)] = 0.0
        return logits_TV
    if kind == "huge":
        return logits_TV * np.float32(5e37)
    if kind == "broken" and rng.random() < 0.2:
        logits_TV[rng.integers(length), rng.integers(VOCAB)] = rng.choice([np.nan, np.inf, -np.inf])
    return logits_TV


def view_of(logits_TV: np.ndarray) -> View:
    logp_1TV, top_1T, top_logp_1T = prepare(torch.from_numpy(logits_TV)[None], MASK)
    return View(logp_1TV[0], top_1T[0], top_logp_1T[0])


def drive(row, rng: np.random.Generator, kind: str) -> list[list[tuple[int, int]]]:
    """Run a row to its end; what each forward committed."""
    commits = []
    while not row.done:
        window = row.plan()
        assert window.start >= 0
        assert window.start + len(window.ids) <= row.slots
        assert len(window.hi) == len(window.ids)
        assert max(window.hi) <= window.start + len(window.ids)
        row.update(view_of(arbitrary_logits(rng, kind, len(window.ids) - window.logits_from)))
        commits.append(row.fresh())
        assert len(commits) <= 2 * row.slots + 2
    return commits


def check_trajectory(row, commits, chosen: DecodeSettings) -> None:
    out = row.result()
    length = len(out.tokens_T)
    assert 1 <= length <= chosen.max_tokens
    assert out.nfe == len(commits)
    saving = chosen.decoder == "block" and not chosen.fused
    assert all(commits) or saving  # every denoising or causal step commits
    assert not saving or all(one or two for one, two in pairwise(commits))
    everything = [pair for step in commits for pair in step]
    assert len({at for at, _ in everything}) == len(everything)  # nothing is committed twice
    for step, pairs in enumerate(commits):
        for at, token in pairs:
            assert token not in (MASK, UNKNOWN)
            assert 0 <= token < VOCAB
            if at < length:
                assert (out.tokens_T[at], out.step_of_T[at]) == (token, step)
    assert ((out.step_of_T >= 0) & (out.step_of_T < out.nfe)).all()
    assert np.isfinite(out.logprob_T).all()
    assert (out.logprob_T <= 1e-6).all()
    ends = np.flatnonzero(out.tokens_T == END)
    assert out.finished == (len(ends) > 0)
    assert ends.tolist() in ([], [length - 1])
    assert out.finished or length == chosen.max_tokens


def check_answer(out, grammar: AnswerGrammar | None) -> bool:
    """Whether the rule promised a permutation; then it must be one."""
    start = grammar.find(out.tokens_T) if grammar is not None else None
    if grammar is None or start is None:
        return False
    slots_KN = grammar.slots(start)
    if slots_KN.max() >= len(out.tokens_T):
        return False
    marker_step = out.step_of_T[start - len(grammar.marker) : start].max()
    if (out.step_of_T[slots_KN] < marker_step).any():
        return False  # an entry was there before anybody knew where the answer begins
    entries = sorted(map(tuple, out.tokens_T[slots_KN].tolist()))
    assert entries == sorted(map(tuple, grammar.choices_KN.tolist()))
    return True


def random_settings(rng: np.random.Generator, decoder: str, accept: str, rule: str):
    return DecodeSettings(
        decoder=decoder,
        block_size=int(rng.integers(1, 12)),
        mask_id=MASK,
        end_id=END,
        alignment=str(rng.choice(["same_position", "shifted"])),
        origin=str(rng.choice(["document", "response"])),
        accept=accept,
        threshold=float(rng.choice([0.0, 0.1, 0.3, 0.9, 1.0])),
        per_step=int(rng.integers(1, 5)),
        entropy_bound=float(rng.choice([0.0, 0.5, 5.0])),
        rule=rule,
        clean_kv=str(rng.choice(["causal", "block_causal"])),
        canvas=int(rng.integers(1, 12)),
        temperature=float(rng.choice([0.0, 0.0, 0.3, 1.0, 2.0])),
        max_tokens=int(rng.integers(1, 24)),
        fused=bool(rng.random() < 0.7),
    )


def one_case(seed: int, decoder: str, accept: str, rule: str, name: str) -> str:
    rng = np.random.default_rng(seed)
    chosen = random_settings(rng, decoder, accept, rule)
    kind = KINDS[seed % len(KINDS)]
    prompt = rng.integers(3, VOCAB, size=int(rng.integers(1, 20))).tolist()
    row = make_writer(0, DecodeRequest(prompt, GRAMMARS[name], ("property", seed)), chosen)
    assert len(row.prefill_hi()) == row.prefill
    try:
        commits = drive(row, rng, kind)
    except DecodeError:
        assert kind in ("broken", "impossible")  # nothing finite left, NaN, +inf
        return "error"
    check_trajectory(row, commits, chosen)
    if rule == "permutation" and decoder != "verify":
        return "permutation" if check_answer(row.result(), GRAMMARS[name]) else "ok"
    return "ok"


COMBINATIONS = [
    (decoder, accept, rule, name)
    for decoder in ("ar", "block", "verify")
    for accept in (ACCEPTS if decoder == "block" else ("threshold",))
    for rule in (("raw", "permutation") if decoder != "verify" else ("raw",))
    for name in (("one_token", "prefixes") if rule == "permutation" else ("none",))
]


@pytest.mark.parametrize(("decoder", "accept", "rule", "name"), COMBINATIONS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_arbitrary_logits_end_in_a_valid_commit_sequence_or_a_named_error(
    decoder, accept, rule, name, seed
):
    one_case(seed, decoder, accept, rule, name)


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "accept", "rule", "name"), COMBINATIONS)
def test_ten_thousand_arbitrary_logits_end_the_same_way(decoder, accept, rule, name):
    ends = [
        one_case(s, decoder, accept, rule, name) for s in range(-(-10_000 // len(COMBINATIONS)))
    ]
    assert ends.count("error") < len(ends) / 2
    assert "error" in ends


# ----------------------------------------------------------------- permutations come out


def answering_logits(rng, row, window, grammar, entry_bias: float) -> np.ndarray:
    """Logits that spell some text, the marker, anything in the entries, and the end."""
    at_T = np.arange(window.start + window.logits_from, window.start + len(window.ids))
    at_T = at_T - len(row.prompt)
    shift = 1 if row.settings.decoder == "ar" or row.settings.alignment == "shifted" else 0
    logits_TV = rng.normal(size=(len(at_T), VOCAB)).astype(np.float32)
    choice_tokens = np.unique(grammar.choices_KN)
    for t, at in enumerate(at_T + shift):
        if 0 <= at - 3 < len(grammar.marker):
            logits_TV[t, grammar.marker[at - 3]] += 12.0
        elif at - 3 - len(grammar.marker) - grammar.offset < grammar.stride * grammar.k:
            logits_TV[t, choice_tokens] += entry_bias
            logits_TV[t, choice_tokens[0]] += entry_bias  # every entry wants the same candidate
            logits_TV[t, [END, MARKER]] -= 12.0
        else:
            logits_TV[t, END] += 12.0
    return logits_TV


@pytest.mark.parametrize("name", ["one_token", "prefixes"])
@pytest.mark.parametrize("decoder", ["ar", "block"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_the_permutation_rule_writes_a_permutation_however_much_entries_agree(decoder, name, seed):
    rng = np.random.default_rng(seed)
    grammar = GRAMMARS[name]
    chosen = random_settings(rng, decoder, str(rng.choice(ACCEPTS)), "permutation")
    chosen = DecodeSettings(**{**chosen.__dict__, "max_tokens": 40, "block_size": 24})
    row = make_writer(0, DecodeRequest([3] * 24, grammar, ("answer", seed)), chosen)
    bias = float(rng.choice([0.0, 2.0, 8.0]))
    while not row.done:
        window = row.plan()
        row.update(view_of(answering_logits(rng, row, window, grammar, bias)))
    check_answer(row.result(), grammar)


def test_that_promise_is_tested_often_enough():
    """The check above returns early where nothing is promised; mostly something is."""
    promised = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        chosen = DecodeSettings(
            decoder="block",
            block_size=24,
            mask_id=MASK,
            end_id=END,
            rule="permutation",
            threshold=float(rng.choice([0.2, 0.5])),
            max_tokens=40,
        )
        grammar = SPELLED if seed % 2 else SINGLE
        row = make_writer(0, DecodeRequest([3] * 24, grammar, ("often", seed)), chosen)
        while not row.done:
            row.update(view_of(answering_logits(rng, row, row.plan(), grammar, 4.0)))
        promised += check_answer(row.result(), grammar)
    assert promised >= 40


# ------------------------------------------------------------- the rule against enumeration


def completions(grammar: AnswerGrammar, entry_KN: np.ndarray) -> list[tuple[int, ...]]:
    """All permutations that agree with the committed tokens."""
    return [
        order
        for order in permutations(range(grammar.k))
        if all(
            entry_KN[j, n] in (UNKNOWN, grammar.choices_KN[order[j], n])
            for j in range(grammar.k)
            for n in range(entry_KN.shape[1])
        )
    ]


@st.composite
def partial_answers(draw):
    """A grammar with shared prefixes and an answer some of whose tokens are committed."""
    k, width = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    alphabet = k if width == 1 else 3
    rows = draw(
        st.lists(
            st.tuples(*[st.integers(10, 10 + alphabet - 1)] * width),
            min_size=k,
            max_size=k,
            unique=True,
        )
    )
    grammar = AnswerGrammar((MARKER,), 0, width, np.array(rows))
    order = draw(st.permutations(range(k)))
    shown = draw(st.lists(st.booleans(), min_size=k * width, max_size=k * width))
    entry_KN = np.where(np.array(shown).reshape(k, width), np.array(rows)[list(order)], UNKNOWN)
    if draw(st.integers(0, 4)) == 0:  # a raw commit may be anything
        entry_KN[draw(st.integers(0, k - 1)), 0] = draw(st.integers(9, 10 + alphabet))
    return grammar, entry_KN


@given(partial_answers())
@settings(max_examples=250, deadline=None)
def test_allowed_tokens_are_those_that_some_permutation_takes(case):
    grammar, entry_KN = case
    orders = completions(grammar, entry_KN)
    state = AnswerState(grammar, 1, entry_KN)
    may_KC = allowed_choices(state)
    for j, n in np.argwhere(entry_KN == UNKNOWN).tolist():
        allowed = allowed_tokens(state, may_KC, j, n).tolist()
        if orders:
            assert allowed == sorted({int(grammar.choices_KN[o[j], n]) for o in orders})
        else:
            assert set(allowed) <= set(grammar.choices_KN[:, n].tolist())


@given(partial_answers(), st.data())
@settings(max_examples=200, deadline=None)
def test_settle_keeps_the_surest_commits_that_leave_a_permutation(case, data):
    grammar, entry_KN = case
    if not completions(grammar, entry_KN):
        return
    spots = np.argwhere(entry_KN == UNKNOWN).tolist()
    wanted = [
        (
            data.draw(st.sampled_from([0.1, 0.5, 0.5, 0.9])),
            j,
            n,
            int(data.draw(st.sampled_from(grammar.choices_KN[:, n].tolist()))),
        )
        for j, n in spots
    ]
    expected, now_KN = [], entry_KN.copy()
    for _, j, n, token in sorted(wanted, key=lambda w: (-w[0], w[1], w[2])):
        trial_KN = now_KN.copy()
        trial_KN[j, n] = token
        if completions(grammar, trial_KN):
            expected.append((j, n))
            now_KN = trial_KN
    assert settle(AnswerState(grammar, 1, entry_KN), wanted) == expected
