"""The compact template: what it writes it reads back; failures have names; text stays text."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from diffgr2.config import PromptConfig
from diffgr2.decode.grammar import Guide
from diffgr2.decode.spelling import UNKNOWN
from diffgr2.errors import DecodeError
from diffgr2.prompts.compact import ANSWER, REASONING, Compact
from diffgr2.prompts.english import AGAINST, FOR, NEITHER
from diffgr2.prompts.request import MISSING, NONE, Request, Trace
from diffgr2.prompts.vocab import CHAT, CONTROL, MASK, Vocabulary, train_bpe
from support.grammars import open_places
from support.templates import follow

LEVELS, CODES, K, BUCKETS, STRENGTHS = 3, 6, 8, 8, 5
FIELDS = ("rank", "gap", "copurchase", "brand", "session")
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
def cases(draw, least: int = 1, most: int = K):
    k, shown = draw(st.integers(least, most)), draw(st.integers(0, 6))
    cites = draw(st.integers(1, len(FIELDS) + 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    buckets_KF = rng.integers(0, BUCKETS, (k, len(FIELDS)))
    buckets_KF[rng.random(buckets_KF.shape) < 0.2] = MISSING
    request = Request(
        rng.integers(0, CODES, (shown, LEVELS)), rng.integers(0, CODES, (k, LEVELS)), buckets_KF
    )
    cites_KC = np.full((k, cites), NONE)
    for i, may_F in enumerate(template().citable(request)):
        fields = rng.permutation(np.flatnonzero(may_F))[: rng.integers(0, cites + 1)]
        cites_KC[i, : len(fields)] = fields
    level_K = rng.random(k) * (STRENGTHS - 1)
    return (
        cites,
        request,
        Trace(np.where(rng.random(k) < 0.3, np.round(level_K), level_K), cites_KC),
    )


@given(cases(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_response_reads_back_as_the_trace_that_wrote_it(case, reasoning):
    cites, request, trace = case
    compact = template(cites)
    written = compact.response(request, trace, reasoning=reasoning)
    tokens = written.tokens
    answer = compact.parse(tokens, request)
    assert answer.valid
    assert answer.order == tuple(trace.order_K.tolist())
    start = compact.answer_start(tokens)
    assert written.kinds[start:] == [ANSWER] * (request.k + 2)
    strengths = [VOCAB.strength_of(t) is not None for t in tokens[:start]]
    assert written.kinds[:start] == [ANSWER if said else REASONING for said in strengths]
    reading = compact.read(tokens, request)
    assert reading.written == answer
    cited = [tuple(f for f in row if f != NONE) for row in trace.cites_KC.tolist()]
    assert list(reading.cites) == (cited if reasoning else [()] * request.k)
    total = sum(map(len, reading.cites))
    assert compact.citations(tokens, request) == (total, total)
    if reasoning:
        assert len(tokens) == compact.max_response(request.k)
    else:
        assert len(tokens) == request.k + 2
    assert VOCAB.mask_id not in tokens
    assert max(tokens) < VOCAB.spec.size


@given(cases(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_a_strength_is_a_target_between_two_levels(case, reasoning):
    cites, request, trace = case
    written = template(cites).response(request, trace, reasoning=reasoning, answer="said")
    levels = []
    for token, other, share in zip(written.tokens, written.other, written.share, strict=True):
        low, high = VOCAB.strength_of(token), VOCAB.strength_of(other)
        if low is None or high is None:
            assert (other, share) == (token, 0.0)
            continue
        assert 0 <= share < 1
        assert high - low in (0, 1)
        levels.append(low + share * (high - low))
    assert np.allclose(levels, trace.level_K)
    steps = 2 + cites * reasoning
    assert len(written.tokens) == request.k * steps + 1
    assert written.tokens[-1] == VOCAB.end_id


def test_levels_beyond_the_scale_are_its_ends() -> None:
    request = Request(np.zeros((0, LEVELS), int), np.zeros((2, LEVELS), int), np.zeros((2, 5), int))
    trace = Trace(np.array([-3.0, STRENGTHS + 2.0]), np.full((2, 1), NONE))
    reading = template().read(template().response(request, trace).tokens, request)
    assert reading.levels_K.tolist() == [0, STRENGTHS - 1]


@given(cases())
@settings(max_examples=80, deadline=None)
def test_the_prompt_shows_each_candidate_under_its_index_with_its_evidence(case):
    _, request, _ = case
    tokens = template().prompt(request)
    assert tokens[0] == VOCAB.control["<history>"]
    assert tokens[-1] == VOCAB.control["<reason>"]
    assert template().prompt(request, reasoning=False) == [*tokens[:-1], VOCAB.control["<direct>"]]
    ends = [*(tokens.index(VOCAB.index_id(i)) for i in range(1, request.k)), len(tokens) - 1]
    for i in range(request.k):
        at = tokens.index(VOCAB.index_id(i)) + 1
        sids = [VOCAB.sid_of(t) for t in tokens[at : at + LEVELS]]
        assert sids == list(enumerate(request.codes_KL[i].tolist()))
        found = [VOCAB.evidence_of(t) for t in tokens[at + LEVELS : ends[i]]]
        shown = [(f, b) for f, b in enumerate(request.buckets_KF[i].tolist()) if b != MISSING]
        assert found == shown


# -------------------------------------------------------------------------------- grammar


def guide_of(compact: Compact, request: Request) -> Guide:
    grammar = compact.grammar(request)
    return Guide(grammar, np.full(grammar.longest, UNKNOWN, dtype=np.int64))


@given(cases(), st.booleans())
@settings(max_examples=80, deadline=None)
def test_only_evidence_that_counts_may_be_cited_and_each_piece_once(case, backwards):
    cites, request, _ = case
    compact = template(cites)
    guide, none = guide_of(compact, request), VOCAB.control["<none>"]
    citable_KF = compact.citable(request)
    for i in range(request.k):
        own = {
            int(VOCAB.evidence_ids(request.buckets_KF)[i, f]) for f in np.flatnonzero(citable_KF[i])
        }
        first = i * (cites + 2) + 1
        slots = range(first, first + cites)
        assert guide.tokens_T[first - 1] == VOCAB.index_id(i), "the index is forced"
        assert guide.scale(first + cites)
        open_ = [at for at in slots if guide.tokens_T[at] == UNKNOWN]
        assert len(open_) == min(len(own), cites), "no slot is open that nothing can fill"
        assert (guide.tokens_T[first + len(open_) : first + cites] == none).all()
        for at in open_:
            assert set(guide.allowed(at).tolist()) == own | {none}
        for at in reversed(open_) if backwards else open_:
            if guide.tokens_T[at] == UNKNOWN:
                guide.commit(at, max(guide.allowed(at).tolist(), key=lambda t: t != none))
        said = [t for t in guide.tokens_T[slots].tolist() if t != none]
        assert len(set(said)) == len(said) == len(open_)


def test_what_a_shopper_without_purchases_is_told_of_is_the_list_alone() -> None:
    compact, request = example()
    nobody = replace(request, history_HL=request.history_HL[:0])
    with_KF, without_KF = compact.citable(request), compact.citable(nobody)
    assert (compact.phrases.sides(request.buckets_KF) != NEITHER)[with_KF].all()
    assert not (without_KF & ~with_KF).any()
    assert (
        without_KF[:, ~compact.phrases.alone_F].sum()
        == 0
        < with_KF[:, ~compact.phrases.alone_F].sum()
    )


def example() -> tuple[Compact, Request]:
    """Candidate 0 is first and scored best (gap says nothing new), 1 has no evidence at all."""
    buckets_KF = np.array([[0, 0, 3, 7, 0], [MISSING] * 5, [2, 1, 7, MISSING, 7]])
    codes_KL = np.arange(3 * LEVELS).reshape(3, LEVELS) % CODES
    return template(2), Request(codes_KL[:1], codes_KL, buckets_KF)


def test_sides_of_the_example() -> None:
    compact, request = example()
    none = NEITHER
    assert compact.phrases.sides(request.buckets_KF).tolist() == [
        [FOR, none, none, FOR, AGAINST],
        [none] * 5,
        [FOR, FOR, FOR, none, FOR],
    ]


@pytest.mark.parametrize(
    ("at", "field", "bucket", "before"),
    [
        (2, 0, 0, {1: (0, 0)}),  # a field twice
        (1, 0, 0, {2: (0, 0)}),  # ... whichever comes first
        (1, 2, 3, {}),  # a neutral grade
        (1, 1, 0, {}),  # says nothing new of the first
        (1, 2, 7, {}),  # evidence of another candidate
        (1, 0, 2, {}),  # ... another bucket of its own field
        (2, 3, 7, {1: None}),  # evidence after <none>
        (9, 3, 0, {}),  # evidence that is missing
    ],
)
def test_what_may_not_be_cited(at, field, bucket, before):
    compact, request = example()
    guide = guide_of(compact, request)
    for place, cited in before.items():
        none = VOCAB.control["<none>"]
        guide.commit(place, evidence(*cited) if cited else none)
    assert not guide.may(at, evidence(field, bucket))
    with pytest.raises(DecodeError, match="may not stand"):
        guide.commit(at, evidence(field, bucket))


def evidence(field: int, bucket: int) -> int:
    return VOCAB.spec.bases["evidence"] + field * BUCKETS + bucket


def test_none_may_not_stand_before_evidence_and_is_forced_where_nothing_counts() -> None:
    compact, request = example()
    guide, none = guide_of(compact, request), VOCAB.control["<none>"]
    guide.commit(2, evidence(3, 7))
    assert not guide.may(1, none)
    assert set(guide.allowed(1).tolist()) == {evidence(0, 0), evidence(4, 0)}
    assert guide.tokens_T[4:7].tolist() == [VOCAB.index_id(1), none, none]
    assert guide.forced_T[4:7].all()
    guide.commit(9, none)
    assert guide.tokens_T[10] == none


def test_a_said_answer_ends_with_its_last_strength_and_any_level_may_stand() -> None:
    compact, request = example()
    guide = guide_of(compact, request)
    assert guide.end == 3 * 4
    assert guide.scale(11)
    assert guide.allowed(11).tolist() == [VOCAB.strength_id(v) for v in range(STRENGTHS)]
    written = compact.grammar(request, answer="written")
    direct = compact.grammar(request, reasoning=False)
    both = compact.grammar(request, reasoning=False, answer="written")
    assert [written.longest, direct.longest, both.longest] == [3 * 4 + 5, 3 * 2, 5]
    order = [VOCAB.index_id(i) for i in (2, 0, 1)]
    follow(both, [VOCAB.control["<answer>"], *order, VOCAB.end_id])


# -------------------------------------------------------------------------------- reading


@given(cases(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_sampled_text_is_read_with_the_levels_that_were_expected(case, seed):
    cites, request, _ = case
    compact, rng = template(cites), np.random.default_rng(seed)
    guide = guide_of(compact, request)
    level_T = np.full(len(guide.tokens_T), np.nan, dtype=np.float32)
    while open_ := open_places(guide, 0, len(guide.tokens_T)):
        at = int(rng.choice(open_))
        guide.commit(at, int(rng.choice(guide.allowed(at))))
        if guide.scale(at) and rng.random() < 0.8:
            level_T[at] = rng.random() * (STRENGTHS - 1)
    tokens = guide.tokens_T.tolist()
    reading = compact.read(tokens, request, level_T)
    assert reading.written is None
    at_K = np.flatnonzero([VOCAB.strength_of(t) is not None for t in tokens])
    said_K = np.array([VOCAB.strength_of(tokens[at]) for at in at_K])
    assert np.allclose(reading.levels_K, np.where(np.isnan(level_T[at_K]), said_K, level_T[at_K]))
    right, total = compact.citations(tokens, request)
    assert right == total == sum(map(len, reading.cites))


def test_a_candidate_is_judged_once_and_what_belongs_to_none_is_passed_over() -> None:
    compact, request = example()
    ids = [VOCAB.index_id(i) for i in range(4)]
    v = [VOCAB.strength_id(level) for level in range(STRENGTHS)]
    tokens = [v[4], evidence(0, 0), ids[0], evidence(3, 7), v[2], v[3], evidence(4, 0)]
    tokens += [ids[3], v[1], ids[1], ids[2], v[0]]
    reading = compact.read(tokens, request)
    assert reading.cites == ((3,), (), ())
    assert np.array_equal(reading.levels_K, [2.0, np.nan, 0.0], equal_nan=True)
    assert not reading.complete
    assert reading.said_order().tolist() == [0, 2, 1]


# ------------------------------------------------------------------------------- failures


@given(cases(least=3, most=K - 1), st.data())
@settings(max_examples=100, deadline=None)
def test_corrupted_answers_are_classified(case, data):
    cites, request, trace = case
    compact, k = template(cites), request.k
    tokens = compact.response(request, trace).tokens
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
    reading = compact.read(tokens, request)
    assert sorted(reading.said_order()) == list(range(request.k))


@given(cases(), st.integers(1, BUCKETS - 1))
@settings(max_examples=60, deadline=None)
def test_a_citation_of_another_bucket_is_wrong(case, shift):
    cites, request, trace = case
    compact = template(cites)
    tokens = compact.response(request, trace).tokens
    cited = [at for at, token in enumerate(tokens) if VOCAB.evidence_of(token)]
    assume(cited)
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
