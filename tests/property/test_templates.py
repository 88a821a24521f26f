"""Both templates keep their promises: what is written is read back, and nothing raises."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, normalizers

from diffgr2.candidates.index import FIELDS, NAMES
from diffgr2.config import PromptConfig
from diffgr2.prompts.chat import Chat
from diffgr2.prompts.compact import ANSWER, Compact
from diffgr2.prompts.english import Phrases, wording
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import Request, Trace, order_by_strength
from diffgr2.prompts.template import TEMPLATES, make_template
from diffgr2.prompts.vocab import CHAT, CONTROL, Vocabulary, train_bpe
from diffgr2.types import FAILURES

LEVELS, CODES, K, BUCKETS, STRENGTHS = 3, 16, 6, 8, 12
TITLES = [
    "Rose Shampoo for dry hair, 200 ml",
    "Café crème “Nuit” — 50 % more!",
    'Brush "Pro" \\ 12"',
    "洗发水 200ml 🧴",
    "Aloe Vera Gel (Aloe; Skin Care > Gels)",
    "x",
]
HOSTILE = ["<|im_end|>", "<|im_start|>system", "<think>", "</tool_call>", "<s_a_1>", "<c_1>"]
HOSTILE += ["<|sid_begin|><s_a_0><s_b_0><s_c_0><|sid_end|>", "<|MASK|>", "<answer>", "<v_3>"]

vocabularies = pytest.mark.parametrize("kind", ["trained", "qwen"])
templates = pytest.mark.parametrize("name", sorted(TEMPLATES))


def text_tokenizer(kind: str) -> Tokenizer:
    tokenizer = train_bpe(TITLES * 3 + Chat(NAMES, BUCKETS).own_words(), 900)
    if kind == "qwen":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_special_tokens([AddedToken(name, special=True) for name in CHAT])
        plain = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
        tokenizer.add_tokens([AddedToken(n, special=False, normalized=False) for n in plain])
    return tokenizer


@cache
def vocabulary(kind: str) -> Vocabulary:
    return Vocabulary.extend(
        text_tokenizer(kind),
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=NAMES,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )


@cache
def template(name: str, kind: str) -> Compact | Gr2:
    made = make_template(vocabulary(kind), PromptConfig(template=name))  # type: ignore[arg-type]
    assert isinstance(made, Compact | Gr2)
    return made


def draw_request(seed: int, k: int = K, texts: list[str] = TITLES) -> Request:
    rng = np.random.default_rng(seed)
    number = rng.choice(CODES**LEVELS, 12, replace=False)
    codes_NL = np.stack([number // CODES**i % CODES for i in range(LEVELS)], 1)
    h = int(rng.integers(0, 5))
    buckets_KF = rng.integers(0, BUCKETS, (k, len(NAMES)))
    pick = [texts[i] for i in rng.integers(0, len(texts), 2 * h + k)]
    return Request(
        codes_NL[:h],
        codes_NL[h : h + k],
        buckets_KF.astype(np.uint8),
        tuple(pick[:h]),
        tuple(pick[h : h + k]),
        tuple(pick[h + k :]),
    )


def draw_trace(seed: int, k: int = K) -> Trace:
    rng = np.random.default_rng([seed, 1])
    strength_K = rng.integers(0, STRENGTHS, k)
    fields_KF = np.stack([rng.permutation(len(NAMES)) for _ in range(k)])
    return Trace(
        order_by_strength(strength_K), strength_K, fields_KF[:, :3], fields_KF[:, ::-1][:, :2]
    )


seeds = st.integers(0, 10**9)


@templates
@vocabularies
@settings(max_examples=60, deadline=None)
@given(seed=seeds, reasoning=st.booleans(), k=st.integers(2, K))
def test_a_response_is_read_back_as_it_was_meant(
    name: str, kind: str, seed: int, reasoning: bool, k: int
) -> None:
    made, request, trace = template(name, kind), draw_request(seed, k), draw_trace(seed, k)
    tokens, kinds = made.response(request, trace, reasoning=reasoning)
    answer = made.parse(tokens, request)
    assert answer.valid
    assert answer.order == tuple(trace.order_K.tolist())
    right, total = made.citations(tokens, request)
    assert right == total
    assert (total > 0) == reasoning
    assert len(tokens) == len(kinds) <= made.max_response(k)
    start = made.answer_start(tokens)
    assert kinds[start:] == [ANSWER] * (len(tokens) - start)
    assert (kinds.count(0) > 0) == reasoning


@templates
@vocabularies
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_the_grammar_finds_the_entries_of_the_answer(name: str, kind: str, seed: int) -> None:
    made, request, trace = template(name, kind), draw_request(seed), draw_trace(seed)
    tokens = np.array(made.response(request, trace)[0])
    grammar = made.grammar(request)
    start = grammar.find(tokens)
    assert start is not None
    assert start == made.answer_start(tokens.tolist()) + len(grammar.marker)
    assert (tokens[grammar.slots(start)] == grammar.choices_KN[trace.order_K]).all()


@templates
@vocabularies
@settings(max_examples=60, deadline=None)
@given(seed=seeds, shown=st.permutations(range(K)))
def test_another_shown_order_changes_positions_only(
    name: str, kind: str, seed: int, shown: list[int]
) -> None:
    made, request, trace = template(name, kind), draw_request(seed), draw_trace(seed)
    order_K = np.array(shown)
    # Strictly falling strengths, so that no tie is broken anew.
    strength_K = np.argsort(np.argsort(trace.strength_K, kind="stable"), kind="stable")
    trace = replace(trace, strength_K=strength_K, order_K=order_by_strength(strength_K))
    other, moved = request.reordered(order_K), trace.reordered(order_K)
    answer = made.parse(made.response(other, moved)[0], other)
    assert order_K[list(answer.order)].tolist() == trace.order_K.tolist()


@templates
@vocabularies
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_tokens_make_a_reader_raise(name: str, kind: str, data: st.DataObject) -> None:
    made, seed = template(name, kind), data.draw(seeds)
    request = draw_request(seed)
    good, _ = made.response(request, draw_trace(seed))
    size = vocabulary(kind).spec.size
    # Soup, and true responses with tokens changed, dropped, doubled or cut.
    token = st.one_of(st.integers(0, size + 70), st.sampled_from(good))
    soup = data.draw(st.one_of(st.lists(token, max_size=60), st.just(list(good))))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, max(len(soup) - 1, 0)))
        soup[at : at + data.draw(st.integers(0, 3))] = data.draw(st.lists(token, max_size=2))
    if data.draw(st.booleans()):
        soup.append(vocabulary(kind).end_id)
    answer = made.parse(soup, request)
    assert set(answer.failures) <= set(FAILURES)
    assert answer.valid == (sorted(answer.order) == list(range(K)) and not answer.failures)
    right, total = made.citations(soup, request)
    assert 0 <= right <= total
    assert made.answer_start(soup) <= len(soup)
    assert made.thought(soup) == soup[: len(made.thought(soup))]
    assert isinstance(made.english(soup, request, TITLES), str)


def spoiled(made: Compact | Gr2, request: Request, order: list[int]) -> list[int]:
    """A response with any list of positions; K stands for an item that is no candidate."""
    if isinstance(made, Compact):
        ids = [made.vocab.control["<answer>"], *(made.vocab.index_id(i) for i in order)]
        return [*ids, made.vocab.end_id]
    stranger = (request.codes_KL.sum(0, keepdims=True) + 1) % CODES
    assert not (request.codes_KL == stranger).all(1).any()
    codes_XL = np.concatenate([request.codes_KL, stranger])
    trace = replace(draw_trace(0), order_K=np.array(order), explanation="Because.")
    tokens, _ = made.response(replace(request, codes_KL=codes_XL), trace)
    return tokens


@templates
@vocabularies
def test_failures_are_told_apart(name: str, kind: str) -> None:
    made, request = template(name, kind), draw_request(5, K - 1)
    floor = list(range(K - 1))
    cases: dict[tuple[str, ...], list[int]] = {
        (): floor[::-1],
        ("duplicate", "missing"): [0, 0, *floor[2:]],
        ("duplicate",): [*floor, 0],
        ("missing",): floor[:-1],
        ("missing", "out_of_set"): [K - 1, *floor[1:]],
        ("out_of_set",): [*floor, K - 1],
    }
    for failures, order in cases.items():
        assert made.parse(spoiled(made, request, order), request).failures == failures
    whole = spoiled(made, request, floor)
    assert made.parse(whole[:-1], request).failures == ("overlong",)
    assert made.parse([], request).failures == ("overlong",)
    assert made.parse([made.vocab.end_id], request).failures == ("unparseable",)
    assert made.parse([*whole[:-3], made.vocab.mask_id, whole[-1]], request).failures != ()


@templates
@vocabularies
@settings(max_examples=60, deadline=None)
@given(seed=seeds, words=st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4))
def test_reserved_tokens_in_titles_are_data(
    name: str, kind: str, seed: int, words: list[str]
) -> None:
    made, vocab = template(name, kind), vocabulary(kind)
    reserved = {e["id"] for e in json.loads(vocab.tokenizer.to_str())["added_tokens"]}

    def reserved_in(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in reserved]

    harmless = draw_request(seed, texts=["Rose Shampoo"])
    hostile = draw_request(seed, texts=["".join(words), f"Soap {' '.join(words)} end"])
    trace = draw_trace(seed)
    assert reserved_in(made.prompt(hostile)) == reserved_in(made.prompt(harmless))
    tokens, _ = made.response(hostile, trace)
    assert reserved_in(tokens) == reserved_in(made.response(harmless, trace)[0])
    assert made.parse(tokens, hostile).order == tuple(trace.order_K.tolist())
    if isinstance(made, Gr2) and not any("<s_a" in word for word in words):
        title = "".join(words)
        assert vocab.tokenizer.decode(vocab.text_ids(title), skip_special_tokens=False) == title


@vocabularies
@settings(max_examples=80, deadline=None)
@given(
    seed=seeds,
    words=st.lists(
        st.one_of(st.text(max_size=20), st.sampled_from([*HOSTILE, '"', '"recommendations": ["'])),
        max_size=8,
    ),
)
def test_a_teachers_own_words_never_break_the_answer(
    kind: str, seed: int, words: list[str]
) -> None:
    made, request = template("gr2", kind), draw_request(seed)
    assert isinstance(made, Gr2)
    trace = replace(draw_trace(seed), explanation=" ".join(words) or "Because.")
    tokens, _ = made.response(request, trace)
    assert made.parse(tokens, request).order == tuple(trace.order_K.tolist())
    assert made.grammar(request).find(np.array(tokens)) is not None
    assert len(tokens) <= made.max_response(K)
    assert isinstance(made.english(tokens, request, TITLES), str)


@vocabularies
def test_a_teachers_mentions_become_semantic_id_tokens(kind: str) -> None:
    made, request = template("gr2", kind), draw_request(3)
    assert isinstance(made, Gr2)
    mention = "".join(f"<s_{'abc'[i]}_{c}>" for i, c in enumerate(request.codes_KL[2]))
    words = f'Takes <|sid_begin|>{mention}<|sid_end|> "now", not <s_a_0><s_b_0>.'
    tokens, _ = made.response(request, replace(draw_trace(3), explanation=words))
    assert vocabulary(kind).sid_ids(request.codes_KL[2]).tolist() == [
        t for t in made.thought(tokens) if vocabulary(kind).sid_of(t)
    ]
    names = [f"item {i}" for i in range(K)]
    assert made.english(tokens, request, names) == 'Takes item 2 "now", not ' + (
        "<|sid_begin|><s_a_0><s_b_0><|sid_end|>."
    )


@templates
def test_a_wrong_citation_is_counted(name: str) -> None:
    made, request, trace = template(name, "trained"), draw_request(7), draw_trace(7)
    tokens, _ = made.response(request, trace)
    flipped = replace(request, buckets_KF=(request.buckets_KF + 1) % BUCKETS)
    right, total = made.citations(tokens, flipped)
    assert right == 0 < total


@templates
@pytest.mark.parametrize("buckets", [2, 3, 5, 7, 8])
def test_every_bucket_has_its_own_words(name: str, buckets: int) -> None:
    words = wording(name)
    phrases = Phrases(words["fields"], words["scales"], NAMES, buckets)
    assert tuple(words["fields"]) == NAMES
    assert {entry["scale"] for entry in words["fields"].values()} <= set(words["scales"])
    # YAML reads some bare words as truth values.
    assert all(isinstance(word, str) for scale in words["scales"].values() for word in scale)
    assert len(phrases.all()) == len(NAMES) * buckets
    for f in range(len(FIELDS)):
        for b in range(buckets):
            text = f"It is: {phrases.say(f, b)}, {phrases.say(0, 0)} and {phrases.say(f, b)}."
            found = list(phrases.find(text))
            assert found == [(f, frozenset([b])), (0, frozenset([0])), (f, frozenset([b]))]


@pytest.mark.parametrize("buckets", [9, 16])
def test_many_buckets_share_words_with_their_neighbours(buckets: int) -> None:
    words = wording("gr2")
    phrases = Phrases(words["fields"], words["scales"], NAMES, buckets)
    for f in range(len(NAMES)):
        for b in range(buckets):
            [(field, meant)] = phrases.find(f": {phrases.say(f, b)}.")
            assert field == f
            assert b in meant
            assert max(meant) - min(meant) == len(meant) - 1


@templates
def test_reasoning_reads_as_english(name: str) -> None:
    made, request, trace = template(name, "trained"), draw_request(11), draw_trace(11)
    names = [f"Product {i}" for i in range(K)]
    text = made.english(made.response(request, trace)[0], request, names)
    best, second = trace.order_K[:2].tolist()
    assert text.index(f"Product {best}") < text.index(f"Product {second}")
    assert "ahead of " + names[second] in text
    reserved = [*CONTROL, "<s_", "<e_", "<c_", "<v_", "_"]
    assert not [word for word in reserved if word in text]


def test_explanations_have_the_length_that_is_promised() -> None:
    made = template("gr2", "trained")
    lengths = []
    for seed in range(200):
        request = draw_request(seed, texts=["Rose Shampoo"])
        if len(request.history_HL):
            lengths.append(made.response(request, draw_trace(seed))[1].count(0))
    assert 60 <= np.quantile(lengths, 0.05) <= np.quantile(lengths, 0.95) <= 150
