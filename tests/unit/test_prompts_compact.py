"""The compact template: what it writes it reads back; failures have names; text stays text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from diffgr2.config import PromptConfig
from diffgr2.prompts.compact import ANSWER, REASONING, Compact
from diffgr2.prompts.request import Request, Trace, order_by_strength
from diffgr2.prompts.vocab import CHAT, CONTROL, MASK, Vocabulary, train_bpe

LEVELS, CODES, K, BUCKETS, STRENGTHS = 3, 6, 8, 4, 5
FIELDS = ("rank", "copurchase", "brand", "category", "session")
TEXTS = ["rose shampoo for dry hair", "<mild> conditioner | 500 ml", "naïve café crème 香水"]


def vocabulary(extra: tuple[str, ...] = ()) -> Vocabulary:
    tokenizer = train_bpe(TEXTS * 3, 300)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in extra])
    return Vocabulary.extend(
        tokenizer,
        levels=LEVELS,
        codes=CODES,
        k=K,
        fields=FIELDS,
        buckets=BUCKETS,
        strengths=STRENGTHS,
    )


# A Qwen-like tokenizer knows the chat tokens and some more of its own before we extend it.
VOCABS = {
    "trained here": vocabulary(),
    "qwen-like": vocabulary((*CHAT, "<|box_start|>", "<tool_call>", "</think>")),
}
VOCAB = VOCABS["trained here"]


def template(cites: int = 2) -> Compact:
    return Compact(VOCAB, PromptConfig(cites=cites, strengths=STRENGTHS))


@st.composite
def cases(draw, least: int = 2, most: int = K):
    k, shown = draw(st.integers(least, most)), draw(st.integers(0, 6))
    cites = draw(st.integers(1, len(FIELDS) // 2 + 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    fields_KF = np.array([rng.permutation(len(FIELDS)) for _ in range(k)])
    against = max(cites - 1, 1)
    strength_K = rng.integers(0, STRENGTHS, k)
    request = Request(
        rng.integers(0, CODES, (shown, LEVELS)),
        rng.integers(0, CODES, (k, LEVELS)),
        rng.integers(0, BUCKETS, (k, len(FIELDS))),
    )
    trace = Trace(
        order_by_strength(strength_K),
        strength_K,
        fields_KF[:, :cites],
        fields_KF[:, cites : cites + against],
    )
    return cites, request, trace


@given(cases(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_response_reads_back_as_the_trace_that_wrote_it(case, reasoning):
    cites, request, trace = case
    compact = template(cites)
    tokens, kinds = compact.response(request, trace, reasoning=reasoning)
    assert len(tokens) == len(kinds)
    answer = compact.parse(tokens, request)
    assert answer.valid
    assert answer.order == tuple(trace.order_K.tolist())
    thought = kinds.count(REASONING)
    assert kinds == [REASONING] * thought + [ANSWER] * (len(tokens) - thought)
    assert compact.answer_start(tokens) == thought
    right, total = compact.citations(tokens, request)
    assert right == total
    assert (total >= request.k * 2) == reasoning
    if reasoning:
        assert len(tokens) <= compact.max_response(request.k)
    assert VOCAB.mask_id not in tokens
    assert max(tokens) < VOCAB.spec.size


@given(cases())
@settings(max_examples=80, deadline=None)
def test_every_response_to_k_candidates_has_the_length_that_is_promised(case):
    cites, request, trace = case
    if trace.against_KA.shape[1] != max(cites - 1, 1):  # fewer fields than citations
        return
    tokens, _ = template(cites).response(request, trace)
    assert len(tokens) == template(cites).max_response(request.k)


@given(cases())
@settings(max_examples=80, deadline=None)
def test_the_prompt_shows_each_candidate_under_its_index_with_its_evidence(case):
    _, request, _ = case
    tokens = template().prompt(request)
    assert tokens[0] == VOCAB.control["<history>"]
    assert tokens[-1] == VOCAB.control["<reason>"]
    assert template().prompt(request, reasoning=False) == [*tokens[:-1], VOCAB.control["<direct>"]]
    for i in range(request.k):
        at = tokens.index(VOCAB.index_id(i)) + 1
        sids = [VOCAB.sid_of(t) for t in tokens[at : at + LEVELS]]
        assert sids == list(enumerate(request.codes_KL[i].tolist()))
        shown = tokens[at + LEVELS : at + LEVELS + len(FIELDS)]
        found = [VOCAB.evidence_of(t) for t in shown]
        assert found == list(enumerate(request.buckets_KF[i].tolist()))


@given(cases())
@settings(max_examples=80, deadline=None)
def test_the_permutation_rule_is_told_where_the_answer_lies(case):
    cites, request, trace = case
    tokens = np.array(template(cites).response(request, trace)[0])
    grammar = template(cites).grammar(request)
    start = grammar.find(tokens)
    assert start is not None
    written = tokens[grammar.slots(start)]
    assert (written == grammar.choices_KN[trace.order_K]).all()


@given(cases())
@settings(max_examples=80, deadline=None)
def test_english_names_the_first_two_candidates_and_accounts_for_the_others(case):
    cites, request, trace = case
    compact = template(cites)
    names = [f"Item {{{i}}} & co" for i in range(request.k)]  # braces are no placeholders
    text = compact.english(compact.response(request, trace)[0], request, names)
    for position in trace.order_K[:2]:
        assert names[position] in text
    unnamed = sum(name not in text for name in names)
    assert unnamed == 0 or f"other {unnamed} " in text
    assert "<" not in text


# ------------------------------------------------------------------------------- failures


@given(cases(least=3, most=K - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_corrupted_answers_are_classified(case, data):
    cites, request, trace = case
    compact, k = template(cites), request.k
    tokens, _ = compact.response(request, trace)
    first = len(tokens) - 1 - k
    i, j = data.draw(st.permutations(range(k)))[:2]

    def failures(change) -> tuple[str, ...]:
        changed = list(tokens)
        change(changed)
        answer = compact.parse(changed, request)
        assert answer.valid == (not answer.failures)
        return answer.failures

    def put(value):
        return lambda t: t.__setitem__(first + i, value)

    assert failures(put(tokens[first + j])) == ("duplicate", "missing")
    assert failures(put(VOCAB.index_id(k))) == ("missing", "out_of_set")
    assert failures(put(VOCAB.strength_id(0))) == ("unparseable",)
    assert failures(put(VOCAB.mask_id)) == ("unparseable",)
    assert failures(lambda t: t.pop(first + i)) == ("missing",)
    assert failures(lambda t: t.insert(-1, tokens[first + i])) == ("duplicate",)
    assert failures(lambda t: t.insert(-1, VOCAB.index_id(k))) == ("out_of_set",)
    assert failures(lambda t: t.pop()) == ("overlong",)
    assert failures(lambda t: t.clear()) == ("overlong",)
    assert failures(lambda t: t.remove(VOCAB.control["<answer>"])) == ("unparseable",)
    swapped = list(tokens)
    swapped[first + i], swapped[first + j] = swapped[first + j], swapped[first + i]
    assert compact.parse(swapped, request).valid


@given(st.lists(st.integers(0, VOCAB.spec.size - 1), max_size=60), cases())
@settings(max_examples=150, deadline=None)
def test_any_tokens_can_be_read(tokens, case):
    _, request, _ = case
    compact = template()
    answer = compact.parse(tokens, request)
    assert answer.valid == (sorted(answer.order) == list(range(request.k)))
    right, total = compact.citations(tokens, request)
    assert 0 <= right <= total <= len(tokens)
    assert isinstance(compact.english(tokens, request, ["a", "b"]), str)


@given(cases(), st.integers(1, BUCKETS - 1))
@settings(max_examples=60, deadline=None)
def test_a_citation_of_another_bucket_is_wrong(case, shift):
    cites, request, trace = case
    compact = template(cites)
    tokens, _ = compact.response(request, trace)
    cited = [at for at, token in enumerate(tokens) if VOCAB.evidence_of(token)]
    field, bucket = VOCAB.evidence_of(tokens[cited[0]]) or (0, 0)
    tokens[cited[0]] += (bucket + shift) % BUCKETS - bucket
    assert VOCAB.evidence_of(tokens[cited[0]]) == (field, (bucket + shift) % BUCKETS)
    assert compact.citations(tokens, request) == (len(cited) - 1, len(cited))


# ----------------------------------------------------------------------------- vocabulary


def reserved(vocab: Vocabulary) -> list[str]:
    """Every token that is not text."""
    text = vocab.tokenizer.get_vocab(with_added_tokens=False)
    return sorted(set(vocab.tokenizer.get_vocab(with_added_tokens=True)) - set(text))


@pytest.mark.parametrize("name", VOCABS)
def test_the_mask_is_reserved_before_every_token_of_ours(name):
    vocab = VOCABS[name]
    mask = vocab.tokenizer.token_to_id(MASK)
    assert vocab.mask_id == mask
    assert mask == min(vocab.spec.bases.values()) - 1
    ours = [
        vocab.sid_ids(np.zeros((1, LEVELS), int)).min(),
        vocab.index_id(0),
        vocab.strength_id(0),
    ]
    assert all(mask < token for token in ours)
    assert all(vocab.control[token] > mask for token in CONTROL)


@pytest.mark.parametrize("name", VOCABS)
@given(st.data())
@settings(max_examples=120, deadline=None)
def test_reserved_tokens_spelled_in_user_text_stay_text(name, data):
    vocab = VOCABS[name]
    words = st.one_of(st.sampled_from(reserved(vocab)), st.text(max_size=8))
    text = "".join(data.draw(st.lists(words, min_size=1, max_size=6)))
    ids = vocab.text_ids(text)
    plain = vocab.tokenizer.get_vocab_size(with_added_tokens=False)
    assert all(0 <= token < plain for token in ids)
    for token in reserved(vocab):
        assert vocab.tokenizer.token_to_id(token) not in ids
    if text.isascii():  # byte-level: the text comes back whole
        assert vocab.decode(ids) == text


@pytest.mark.parametrize("name", VOCABS)
def test_kinds_of_tokens_do_not_overlap_and_ids_read_back(name):
    vocab = VOCABS[name]
    readers = (vocab.sid_of, vocab.index_of, vocab.evidence_of, vocab.strength_of)
    for token in range(vocab.spec.size):
        assert sum(reader(token) is not None for reader in readers) <= 1
        if vocab.names[token] in (*CHAT, *CONTROL, MASK):
            assert all(reader(token) is None for reader in readers)
    counts = (LEVELS * CODES, K, len(FIELDS) * BUCKETS, STRENGTHS)
    for reader, count in zip(readers, counts, strict=True):
        assert sum(reader(t) is not None for t in range(vocab.spec.size)) == count


@pytest.mark.parametrize("name", VOCABS)
def test_a_saved_vocabulary_loads_as_it_was(name, tmp_path):
    vocab = VOCABS[name]
    vocab.save(tmp_path)
    again = Vocabulary.load(tmp_path)
    assert again.spec == vocab.spec
    assert again.control == vocab.control
    sample = "<c_1> rose <|MASK|>"
    assert again.text_ids(sample) == vocab.text_ids(sample)
    assert again.names == vocab.names
