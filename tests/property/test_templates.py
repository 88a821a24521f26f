"""Both templates keep their promises: what is written the grammar allows and is read back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.config import Answering
from diffgr2.prompts.compact import Compact
from diffgr2.prompts.english import Phrases, wording
from diffgr2.prompts.gr2 import Gr2
from diffgr2.prompts.request import MISSING, NONE, Request, Trace
from diffgr2.prompts.template import TEMPLATES
from diffgr2.types import FAILURES
from support.templates import (
    BUCKETS,
    CODES,
    HOSTILE,
    TITLES,
    K,
    draw_request,
    draw_trace,
    follow,
    template,
    vocabulary,
    wander,
)

NAMES = names_of(COUNTED[:10])

vocabularies = pytest.mark.parametrize("kind", ["trained", "qwen"])
templates = pytest.mark.parametrize("name", sorted(TEMPLATES))


seeds = st.integers(0, 10**9)
# (reasoning, answer) of every response that a template writes.
WAYS: dict[str, list[tuple[bool, Answering]]] = {
    "compact": [(True, "said"), (True, "written"), (False, "said"), (False, "written")],
    "brief": [(True, "said"), (True, "written"), (False, "said"), (False, "written")],
    "gr2": [(True, "written"), (False, "written")],
}


@templates
@vocabularies
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("k", range(1, K + 1))
def test_a_response_is_allowed_and_read_back_as_it_was_meant(
    name: str, kind: str, seed: int, k: int
) -> None:
    made, request = template(name, kind), draw_request(100 * seed + k, k)
    trace = draw_trace(seed, request, made)
    assert made.answers == tuple(dict.fromkeys(answer for _, answer in WAYS[name]))
    for reasoning, answer in WAYS[name]:
        written = made.response(request, trace, reasoning=reasoning, answer=answer)
        tokens = written.tokens
        # A said answer ends with the last strength; what is trained has an end token behind it.
        body = tokens[:-1] if answer == "said" else tokens
        grammar = made.grammar(request, reasoning=reasoning, answer=answer)
        follow(grammar, body)
        assert len(tokens) == len(written.kinds) == len(written.other) == len(written.share)
        assert len(body) <= grammar.longest <= made.max_response(k)
        assert made.kinds(body).tolist() == written.kinds[: len(body)]
        right, total = made.citations(tokens, request)
        assert right == total
        assert (total > 0) <= reasoning
        reading = made.read(body, request)
        if answer == "written":
            assert reading.written == made.parse(tokens, request)
            assert reading.written is not None
            assert reading.written.valid
            assert reading.written.order == tuple(trace.order_K.tolist())
        else:
            assert reading.written is None
        if name != "gr2" and (reasoning or answer == "said"):
            assert (np.abs(reading.levels_K - trace.level_K) < 1).all()
        else:
            assert np.isnan(reading.levels_K).all()
    longest = made.grammar(request, answer="written").longest
    assert longest == made.max_response(k)


@templates
@vocabularies
@settings(max_examples=25, deadline=None)
@given(seed=seeds, k=st.integers(1, K))
def test_every_text_of_the_grammar_is_read(name: str, kind: str, seed: int, k: int) -> None:
    made, request = template(name, kind), draw_request(seed, k)
    rng, size = np.random.default_rng(seed), vocabulary(kind, name).spec.size
    for reasoning, answer in WAYS[name]:
        grammar = made.grammar(request, reasoning=reasoning, answer=answer)
        tokens = wander(grammar, size, rng)
        follow(grammar, tokens)
        reading = made.read(tokens, request)
        if answer == "written":
            assert reading.written is not None
            assert reading.written.valid, made.vocab.decode(tokens)
        if isinstance(made, Compact):
            right, total = made.citations(tokens, request)
            assert right == total
            assert all(len(set(fields)) == len(fields) for fields in reading.cites)
            assert reading.complete == (reasoning or answer == "said")
        else:
            assert isinstance(made.english(tokens, request, TITLES), str)


@templates
@vocabularies
@settings(max_examples=40, deadline=None)
@given(seed=seeds, shown=st.permutations(range(6)))
def test_another_shown_order_changes_positions_only(
    name: str, kind: str, seed: int, shown: list[int]
) -> None:
    made, request = template(name, kind), draw_request(seed)
    order_K, trace = np.array(shown), draw_trace(seed, request, made)
    other = request.taken(order_K)
    reading = made.read(made.response(other, trace.taken(order_K)).tokens, other)
    assert reading.written is not None
    assert order_K[list(reading.written.order)].tolist() == trace.order_K.tolist()
    restored = reading.restored(order_K)
    if name != "gr2":
        assert (restored.levels_K == np.floor(trace.level_K)).all()
        assert order_K[reading.said_order(order_K)].tolist() == restored.said_order().tolist()
        assert restored.cites == made.read(made.response(request, trace).tokens, request).cites


@templates
@vocabularies
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_tokens_make_a_reader_raise(name: str, kind: str, data: st.DataObject) -> None:
    made, seed = template(name, kind), data.draw(seeds)
    request = draw_request(seed)
    good = made.response(request, draw_trace(seed, request, made)).tokens
    size = vocabulary(kind, name).spec.size
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
    assert answer.valid == (sorted(answer.order) == list(range(request.k)) and not answer.failures)
    right, total = made.citations(soup, request)
    assert 0 <= right <= total
    assert made.answer_start(soup) <= len(soup)
    assert made.thought(soup) == soup[: len(made.thought(soup))]
    assert len(made.kinds(soup)) == len(soup)
    level_T = np.where(np.arange(len(soup)) % 2, np.nan, 1.5).astype(np.float32)
    reading = made.read(soup, request, level_T)
    assert sorted(reading.said_order()) == list(range(request.k))
    if isinstance(made, Gr2):
        assert isinstance(made.english(soup, request, TITLES), str)


def spoiled(made: Compact | Gr2, request: Request, order: list[int]) -> list[int]:
    """A response with any list of positions; k stands for an item that is no candidate."""
    if isinstance(made, Compact):
        ids = [made.vocab.control["<answer>"], *(made.vocab.index_id(i) for i in order)]
        return [*ids, made.vocab.end_id]
    stranger = (request.codes_KL.sum(0, keepdims=True) + 1) % CODES
    assert not (request.codes_KL == stranger).all(1).any()
    codes_KL = np.concatenate([request.codes_KL, stranger])[order]
    cites_KC = np.full((len(order), 1), NONE)
    trace = Trace(-np.arange(len(order)), cites_KC, explanation="Because.")
    return made.response(replace(request, codes_KL=codes_KL), trace).tokens


@templates
@vocabularies
def test_failures_are_told_apart(name: str, kind: str) -> None:
    made, request = template(name, kind), draw_request(5, 5)
    floor = list(range(5))
    cases: dict[tuple[str, ...], list[int]] = {
        (): floor[::-1],
        ("duplicate", "missing"): [0, 0, *floor[2:]],
        ("duplicate",): [*floor, 0],
        ("missing",): floor[:-1],
        ("missing", "out_of_set"): [5, *floor[1:]],
        ("out_of_set",): [*floor, 5],
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
@settings(max_examples=40, deadline=None)
@given(seed=seeds, words=st.lists(st.sampled_from(HOSTILE), min_size=1, max_size=4))
def test_reserved_tokens_in_titles_are_data(
    name: str, kind: str, seed: int, words: list[str]
) -> None:
    made, vocab = template(name, kind), vocabulary(kind, name)
    reserved = {e["id"] for e in json.loads(vocab.tokenizer.to_str())["added_tokens"]}

    def reserved_in(tokens: list[int]) -> list[int]:
        return [token for token in tokens if token in reserved]

    harmless = draw_request(seed, texts=["Rose Shampoo"])
    hostile = draw_request(seed, texts=["".join(words), f"Soap {' '.join(words)} end"])
    trace = draw_trace(seed, harmless, made)
    assert reserved_in(made.prompt(hostile)) == reserved_in(made.prompt(harmless))
    tokens = made.response(hostile, trace).tokens
    assert reserved_in(tokens) == reserved_in(made.response(harmless, trace).tokens)
    follow(made.grammar(hostile, answer="written"), tokens)
    assert made.parse(tokens, hostile).order == tuple(trace.order_K.tolist())
    if isinstance(made, Gr2) and not any("<s_a" in word for word in words):
        title = "".join(words)
        assert vocab.tokenizer.decode(vocab.text_ids(title), skip_special_tokens=False) == title


def test_what_is_missing_is_not_shown() -> None:
    for name in TEMPLATES:
        made, request = template(name, "trained"), draw_request(3, 2)
        none = replace(request, buckets_KF=np.full_like(request.buckets_KF, MISSING))
        prompt = made.prompt(none)
        if name == "brief":
            assert made.vocab.decode(prompt).count(";\n") == 2  # nothing between mark and line end
        elif isinstance(made, Compact):
            assert not [token for token in prompt if made.vocab.evidence_of(token)]
        else:
            text = made.vocab.decode(prompt)
            assert text.count("Evidence: none.") == 2
            assert not list(made.phrases.find(text))


@templates
def test_a_wrong_citation_is_counted(name: str) -> None:
    made, request = template(name, "trained"), draw_request(7)
    tokens = made.response(request, draw_trace(7, request, made)).tokens
    flipped = replace(request, buckets_KF=(request.buckets_KF + 1) % BUCKETS)
    if name == "brief":  # a word cites whatever grade the prompt shows, but only what it shows
        flipped = replace(request, buckets_KF=np.full_like(request.buckets_KF, MISSING))
    right, total = made.citations(tokens, flipped)
    assert right == 0 < total


@templates
@pytest.mark.parametrize("buckets", [2, 3, 5, 7, 8])
def test_every_bucket_has_its_own_words(name: str, buckets: int) -> None:
    words = wording(name)
    phrases = Phrases(words, COUNTED, buckets)
    assert tuple(words["fields"]) == names_of(COUNTED)
    assert {entry["scale"] for entry in words["fields"].values()} <= set(words["scales"])
    # YAML reads some bare words as truth values.
    assert all(isinstance(word, str) for scale in words["scales"].values() for word in scale)
    assert len(phrases.all()) == len(COUNTED) * buckets
    for f in range(len(COUNTED)):
        for b in range(buckets):
            text = f"It is: {phrases.say(f, b)}, {phrases.say(0, 0)} and {phrases.say(f, b)}."
            found = list(phrases.find(text))
            assert found == [(f, frozenset([b])), (0, frozenset([0])), (f, frozenset([b]))]


@templates
def test_every_grade_has_a_side(name: str) -> None:
    words = wording(name)
    for entry in words["fields"].values():
        assert len(words["sides_of"][entry["scale"]]) == len(words["scales"][entry["scale"]])


@pytest.mark.parametrize("buckets", [9, 16])
def test_many_buckets_share_words_with_their_neighbours(buckets: int) -> None:
    phrases = Phrases(wording("gr2"), COUNTED, buckets)
    for f in range(len(COUNTED)):
        for b in range(buckets):
            [(field, meant)] = phrases.find(f": {phrases.say(f, b)}.")
            assert field == f
            assert b in meant
            assert max(meant) - min(meant) == len(meant) - 1
