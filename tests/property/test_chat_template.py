"""The gr2 template's explanation: true sentences, a teacher's words, and what may never stand."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import PromptConfig
from diffgr2.errors import ConfigError
from diffgr2.prompts.chat import Chat, sids_of
from diffgr2.prompts.english import AGAINST, FOR
from diffgr2.prompts.gr2 import OPEN, SHUT, Gr2
from diffgr2.prompts.request import NONE, Trace
from diffgr2.prompts.vocab import BEGIN, CONTROL, FINISH, Vocabulary, train_bpe
from support.templates import (
    BUCKETS,
    CODES,
    HOSTILE,
    LEVELS,
    STRENGTHS,
    TITLES,
    K,
    draw_request,
    draw_trace,
    follow,
    template,
    vocabulary,
)

TEN = COUNTED[:10]
NAMES = names_of(TEN)

vocabularies = pytest.mark.parametrize("kind", ["trained", "qwen"])
seeds = st.integers(0, 10**9)


def gr2(kind: str = "trained") -> Gr2:
    made = template("gr2", kind)
    assert isinstance(made, Gr2)
    return made


# ---------------------------------------------------------------------- a teacher's own words


@vocabularies
@settings(max_examples=60, deadline=None)
@given(
    seed=seeds,
    words=st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from([*HOSTILE, '"', '\\"', '"x": ["'])),
        max_size=8,
    ),
)
def test_a_teachers_own_words_never_break_the_answer(
    kind: str, seed: int, words: list[str]
) -> None:
    made, request = gr2(kind), draw_request(seed)
    trace = replace(draw_trace(seed, request, made), explanation=" ".join(words) or "Because.")
    tokens = made.response(request, trace).tokens
    follow(made.grammar(request), tokens)
    assert made.parse(tokens, request).order == tuple(trace.order_K.tolist())
    assert len(tokens) <= made.max_response(request.k)
    assert isinstance(made.english(tokens, request, TITLES), str)


@vocabularies
def test_a_teachers_mentions_become_semantic_id_tokens(kind: str) -> None:
    made, request = gr2(kind), draw_request(3)
    mention = "".join(f"<s_{'abc'[i]}_{c}>" for i, c in enumerate(request.codes_KL[2]))
    words = f'Takes <|sid_begin|>{mention}<|sid_end|> "now" in 12" \\ {{5}}, not <s_a_0><s_b_0>.'
    trace = replace(draw_trace(3, request, made), explanation=words)
    tokens = made.response(request, trace).tokens
    assert vocabulary(kind).sid_ids(request.codes_KL[2]).tolist() == [
        t for t in made.thought(tokens) if vocabulary(kind).sid_of(t)
    ]
    names = [f"item {i}" for i in range(request.k)]
    stranger = "<|sid_begin|><s_a_0><s_b_0><|sid_end|>"
    said = "Takes {} “now” in 12” / {{5}}, not " + stranger + "."
    assert made.english(tokens, request, names) == said.format("item 2")
    assert made.read(tokens, request).told == said.format(f"{BEGIN}{mention}{FINISH}")


# --------------------------------------------------------------------- what may never stand


@vocabularies
def test_what_is_banned_is_what_would_break_the_string(kind: str) -> None:
    made, vocab = gr2(kind), vocabulary(kind)
    free = made.grammar(draw_request(0)).free
    assert free is not None
    banned = set(free.banned.tolist())
    reserved = set(vocab.tokenizer.get_added_tokens_decoder())
    semantic = {*range(vocab.spec.size)} & {t for t in reserved if vocab.sid_of(t)}
    semantic |= {vocab.control[BEGIN], vocab.control[FINISH]}
    assert reserved - semantic <= banned
    assert {vocab.control[name] for name in CONTROL} - semantic <= banned
    assert {vocab.mask_id, vocab.end_id, vocab.pad_id} <= banned
    assert not semantic & banned
    assert free.closer not in banned
    assert vocab.decode([free.closer]).startswith('"')
    for token in set(range(vocab.spec.size)) - reserved - {free.closer}:
        text = vocab.decode([token])
        try:
            whole = isinstance(json.loads(f'"{text}"'), str) and "\\u" not in text
        except ValueError:
            whole = False
        assert (token in banned) == (not whole), text


def test_escapes_that_one_token_completes_may_stand() -> None:
    vocab = Vocabulary.extend(
        train_bpe(['a\\"b \\n c\\u00e9 d\\\\ e\\x'] * 50, 400),
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )
    free = Gr2(vocab, PromptConfig(template="gr2")).grammar(draw_request(0)).free
    assert free is not None
    banned = {vocab.decode([token]).strip() for token in free.banned.tolist()}
    texts = {vocab.decode([token]).strip() for token in range(300)}
    assert {'\\"', "\\\\", "a"} <= texts - banned
    assert {"\\"} <= texts & banned


def test_a_tokenizer_that_puts_blanks_before_everything_closes_with_a_bare_quote() -> None:
    tokenizer = train_bpe(TITLES * 3 + Chat(TEN, BUCKETS).own_words(), 700)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    vocab = Vocabulary.extend(
        tokenizer,
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )
    made, request = Gr2(vocab, PromptConfig(template="gr2")), draw_request(1)
    trace = draw_trace(1, request, made)
    tokens = made.response(request, trace).tokens
    free = made.grammar(request).free
    assert free is not None
    assert vocab.decode([free.closer]) == '"'
    follow(made.grammar(request), tokens)
    assert made.parse(tokens, request).order == tuple(trace.order_K.tolist())


def test_there_is_no_said_answer() -> None:
    made, request = gr2(), draw_request(1)
    trace = draw_trace(1, request, made)
    for ask in (made.grammar, lambda r, answer: made.response(r, trace, answer=answer)):
        with pytest.raises(ConfigError, match="no answer 'said'"):
            ask(request, answer="said")


# -------------------------------------------------------------------------- true sentences


@settings(max_examples=150, deadline=None)
@given(seed=seeds, k=st.integers(1, 8))
def test_every_sentence_is_so(seed: int, k: int) -> None:
    made, request = gr2(), draw_request(seed, k, ["Rose Shampoo", "Care > Hair", "Soap"])
    trace = draw_trace(seed, request, made)
    tokens = made.response(request, trace).tokens
    names = [f"<{i}>" for i in range(k)]
    text = made.english(tokens, request, names)
    side_KF, order = made.phrases.sides(request.buckets_KF), trace.order_K.tolist()

    def cited(position: int, side: int) -> list[str]:
        fields = [f for f in trace.cites_KC[position] if f != NONE and side_KF[position, f] == side]
        return [made.phrases.say(f, int(request.buckets_KF[position, f])) for f in fields]

    assert "()" not in text
    assert ": ." not in text
    assert ": ;" not in text
    best = cited(order[0], FOR)
    verdict = f" So <{order[0]}> comes first" + (f" ({best[0]})" if best else "")
    if k > 1:
        worst = cited(order[1], AGAINST)
        verdict += f", ahead of <{order[1]}>" + (f" (against it: {worst[0]})" if worst else "")
    assert text.endswith(verdict + ".")
    for position, points in re.findall(r"In favour of <(\d+)>: ([^.;]*)", text):
        assert points in (" and ".join(cited(int(position), FOR)[:n]) for n in (1, 2))
    for position, points in re.findall(r" Against <(\d+)>: ([^.]*)", text):
        assert points == cited(int(position), AGAINST)[0]
    kinds = Counter(request.history_kinds).most_common()
    habit = re.compile(r"(?:Of the (\d+)|All) (?:purchases shown, )?(\d+).* are from (.*?);")
    if found := habit.match(text):
        assert int(found[1] or found[2]) == len(request.history_HL)
        assert dict(kinds)[found[3]] == int(found[2]) == kinds[0][1] > 1
    else:
        assert len(kinds) == len(request.history_HL)
        assert text.startswith("The newest purchase" if kinds else "There are no purchases")


def test_the_reading_has_what_the_sentences_cite() -> None:
    made, request = gr2(), draw_request(4)
    trace = draw_trace(4, request, made)
    reading = made.read(made.response(request, trace).tokens, request)
    for i in range(request.k):
        assert set(reading.cites[i]) <= set(trace.cites_KC[i].tolist()) - {NONE}
    assert any(reading.cites)
    assert OPEN not in reading.told
    assert SHUT not in reading.told
    first = sids_of(request.codes_KL)[int(trace.order_K[0])]
    assert f"So {first.text} comes first" in reading.told


def test_a_tokenizer_without_words_leaves_out_sentences_and_keeps_the_verdict() -> None:
    vocab = Vocabulary.extend(
        train_bpe(["x"], 256),
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )
    made = Gr2(vocab, PromptConfig(template="gr2"))
    for seed in range(30):
        request = draw_request(seed)
        trace = draw_trace(seed, request, made)
        tokens = made.response(request, trace).tokens
        follow(made.grammar(request), tokens)
        text = made.english(tokens, request, [f"<{i}>" for i in range(request.k)])
        assert re.search(r"So <\d+> comes first.*, ahead of <\d+>.*\.$", text)


def test_explanations_have_the_length_that_is_promised() -> None:
    made = gr2()
    lengths = []
    for seed in range(200):
        request = draw_request(seed, texts=["Rose Shampoo"])
        if len(request.history_HL):
            trace = draw_trace(seed, request, made)
            lengths.append(made.response(request, trace).kinds.count(0))
    assert 40 <= np.quantile(lengths, 0.05) <= np.quantile(lengths, 0.95) <= 150


def test_an_empty_trace_is_told_without_brackets() -> None:
    made, request = gr2(), draw_request(2, 2)
    trace = Trace(np.array([0.0, 1.0]), np.full((2, 0), NONE))
    text = made.english(made.response(request, trace).tokens, request, ["A", "B"])
    assert text.endswith("So B comes first, ahead of A.")
