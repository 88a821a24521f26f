"""A guide over small random grammars, against all texts of the grammar written out.

`texts_of` enumerates; the guide never does. Whatever is committed, what may stand next is exactly
what some text with these commits has there.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from diffgr2.decode.grammar import Free, Grammar, Group, Guide, Places, row_of_places
from diffgr2.decode.spelling import UNKNOWN, consistent, spellings
from diffgr2.errors import DecodeError
from support.grammars import open_places

CLOSER, BANNED, PLAIN = 90, (91, 92), (93, 94)
FREE_TOKENS = (CLOSER, *BANNED, *PLAIN)


def draw_group(rng: np.random.Generator, sets: list[list[int]], kind: int) -> Group:
    """A group of new places behind `sets`: with a filler, of single tokens, or spelled."""
    width = 1 if kind < 2 else int(rng.integers(2, 4))
    entries = int(rng.integers(1, 4 if width < 3 else 3))
    least = 0 if kind == 0 else entries
    n = int(rng.integers(least, least + 3 if width == 1 else least + 2))
    filler = 9 if kind == 0 else None
    if kind == 0 or (kind == 1 and rng.random() < 0.8):
        choices_CN = rng.choice(8, n, replace=False)[:, None]
    else:
        choices_CN = rng.integers(0, 2 if width > 1 else 4, (n, width))
        choices_CN = choices_CN + 10 * np.arange(width)  # no two levels share tokens
    at_JN = np.empty((entries, width), dtype=np.int64)
    for j in range(entries):
        for i in range(width):
            at_JN[j, i] = len(sets)
            sets.append([*np.unique(choices_CN[:, i]).tolist(), *([9] if kind == 0 else [])])
        if rng.random() < 0.3:
            sets.append([50])  # a separator
    return Group(at_JN, choices_CN.astype(np.int64), filler)


def draw_places(rng: np.random.Generator, most: int) -> Places:
    sets: list[list[int]] = []
    groups = []
    for _ in range(int(rng.integers(0, most + 1))):
        kind = int(rng.integers(0, 4))
        if kind == 3:
            sets.append((60 + rng.choice(4, rng.integers(1, 4), replace=False)).tolist())
        else:
            groups.append(draw_group(rng, sets, kind))
    return Places(row_of_places(sets), tuple(groups))


def draw_grammar(rng: np.random.Generator) -> Grammar:
    if rng.random() < 0.7:
        return Grammar(draw_places(rng, 2))
    free = Free(CLOSER, int(rng.integers(1, 4)), np.array(BANNED))
    return Grammar(draw_places(rng, 1), free, draw_places(rng, 1))


def product(sets: list[list[int]]) -> np.ndarray:
    """Every text [X, T] that takes one token of each set."""
    texts = list(itertools.product(*sets))
    return np.array(texts, dtype=np.int64).reshape(len(texts), len(sets))


def texts_of_places(places: Places) -> np.ndarray:
    """All texts [X, T] of a row of places."""
    sets = [[t for t in row if t >= 0] for row in places.allowed_TA.tolist()]
    texts_XT = product(sets)
    for group in places.groups:
        texts_XT = texts_XT[obeys(texts_XT[:, group.at_JN], group)]
    return texts_XT


def obeys(entries_XJN: np.ndarray, group: Group) -> np.ndarray:
    """Which texts' entries are different choices, or fillers with nothing but fillers behind."""
    is_filler_XJ = np.zeros(entries_XJN.shape[:2], dtype=bool)
    if group.filler is not None:
        is_filler_XJ = entries_XJN[:, :, 0] == group.filler
    ok_X = ~(is_filler_XJ[:, :-1] & ~is_filler_XJ[:, 1:]).any(1)
    spelled_XJ = is_filler_XJ.copy()
    for row, n in Counter(map(tuple, group.choices_CN.tolist())).items():
        same_XJ = (entries_XJN == np.array(row)).all(-1)
        ok_X &= same_XJ.sum(1) <= n
        spelled_XJ |= same_XJ
    return ok_X & spelled_XJ.all(1)


def texts_of(grammar: Grammar) -> list[tuple[int | None, np.ndarray]]:
    """All texts, by where the free text is closed (None without free text)."""
    head_XT, tail_XT = texts_of_places(grammar.head), texts_of_places(grammar.tail)
    if grammar.free is None:
        return [(None, joined(head_XT, tail_XT))]
    out = []
    for n in range(grammar.free.room):
        body_XT = joined(head_XT, product([list(PLAIN)] * n + [[CLOSER]]))
        out.append((len(grammar.head) + n, joined(body_XT, tail_XT)))
    return out


def joined(left_XT: np.ndarray, right_YT: np.ndarray) -> np.ndarray:
    left, right = np.indices((len(left_XT), len(right_YT))).reshape(2, -1)
    return np.hstack([left_XT[left], right_YT[right]])


def possible(texts: list[tuple[int | None, np.ndarray]], tokens_T: np.ndarray, free_end: int):
    """The texts that agree with what is committed; `free_end`: no closer before it."""
    out = []
    for closed, texts_XT in texts:
        length = texts_XT.shape[1]
        if (tokens_T[length:] != UNKNOWN).any() or (closed is not None and closed < free_end):
            continue
        known_T = tokens_T[:length]
        fits_X = ((texts_XT == known_T) | (known_T == UNKNOWN)).all(1)
        if fits_X.any():
            out.append((closed, texts_XT[fits_X]))
    return out


def check_run(rng: np.random.Generator, grammar: Grammar) -> None:
    """Commit random tokens at random places; what is allowed is exactly what is possible."""
    texts = texts_of(grammar)
    tokens_T = np.full(grammar.longest, UNKNOWN, dtype=np.int64)
    guide = Guide(grammar, tokens_T)
    head = len(grammar.head)
    free_end = head
    while True:
        rest = possible(texts, tokens_T, free_end)
        assert rest, "what is committed cannot be completed"
        open_ = open_places(guide, 0, len(tokens_T))
        for at in open_:
            here = set()
            for closed, texts_XT in rest:
                # While the free text is open its places hold what it may hold, no tail.
                if closed is None or guide.end is not None or at <= closed:
                    here |= set(texts_XT[:, at].tolist())
            assert here == allowed(guide, at)
            assert here == {token for token in {*here, *FREE_TOKENS} if guide.may(at, token)}
            certain = guide.end is not None or at < head or at == free_end
            assert len(here) > 1 or not certain, "a forced token is left open"
        if not open_:
            break
        at = int(rng.choice(open_))
        options = sorted(allowed(guide, at))
        token = int(rng.choice(options))
        if grammar.free is not None and guide.end is None and at >= head:
            free_end = at if token == CLOSER else max(free_end, at + 1)
        guide.commit(at, token)
    assert guide.end is not None
    whole_T = tokens_T[: guide.end]
    assert (tokens_T[guide.end :] == UNKNOWN).all()
    assert any((texts_XT == whole_T).all(1).any() for _, texts_XT in rest if len(texts_XT))


def allowed(guide: Guide, at: int) -> set[int]:
    tokens = guide.allowed(at)
    if tokens is None:
        return set(FREE_TOKENS) - set(guide.without(at).tolist())
    assert len(set(tokens.tolist())) == len(tokens)
    return set(tokens.tolist())


@pytest.mark.parametrize("seed", range(8))
def test_what_a_guide_allows_is_exactly_what_can_be_completed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    done = 0
    while done < 300:
        grammar = draw_grammar(rng)
        sizes = [(places.allowed_TA >= 0).sum(1).prod() for places in (grammar.head, grammar.tail)]
        if np.prod(sizes) > 20_000:
            continue
        check_run(rng, grammar)
        done += 1


def drawn_spellings(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Entries [J, N], partly committed, and choices [C, N], some of them alike."""
    n, j = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    choices_CN = rng.integers(0, 2, (j + int(rng.integers(0, 3)), n))
    entry_JN = choices_CN[rng.permutation(len(choices_CN))[:j]]
    return np.where(rng.random(entry_JN.shape) < 0.6, UNKNOWN, entry_JN), choices_CN


@pytest.mark.parametrize("seed", range(4))
def test_spellings_are_those_of_some_assignment(seed: int) -> None:
    rng = np.random.default_rng([seed, 1])
    for _ in range(250):
        entry_JN, choices_CN = drawn_spellings(rng)
        fits_JC = consistent(entry_JN, choices_CN)
        j = np.arange(len(entry_JN))
        ways_XJ = np.array(list(itertools.permutations(range(len(choices_CN)), len(j))))
        ways_XJ = ways_XJ[fits_JC[j, ways_XJ].all(1)]
        truth_JC = np.zeros_like(fits_JC)
        truth_JC[np.broadcast_to(j, ways_XJ.shape), ways_XJ] = True
        assert (spellings(entry_JN, choices_CN) == truth_JC).all()


def test_two_entries_that_want_one_candidate_leave_nothing() -> None:
    entry_JN = np.array([[1, UNKNOWN], [1, UNKNOWN]])
    assert not spellings(entry_JN, np.array([[1, 0], [2, 0]])).any()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_allowed_is_refused_and_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng([seed, 2])
    for _ in range(100):
        grammar = draw_grammar(rng)
        tokens_T = np.full(grammar.longest, UNKNOWN, dtype=np.int64)
        guide = Guide(grammar, tokens_T)
        for at in range(grammar.longest + 2):
            open_ = at in open_places(guide, 0, grammar.longest)
            good = allowed(guide, at) if open_ else set()
            free = open_ and guide.allowed(at) is None
            for token in {*(() if free else range(64)), *FREE_TOKENS} - good:
                before_T = tokens_T.copy()
                assert not guide.may(at, token)
                with pytest.raises(DecodeError):
                    guide.commit(at, token)
                assert (tokens_T == before_T).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_goes_its_own_way_and_a_short_array_is_filled_to_its_end(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    for _ in range(100):
        grammar = draw_grammar(rng)
        tokens_T = np.full(grammar.longest, UNKNOWN, dtype=np.int64)
        guide = Guide(grammar, tokens_T)
        short_T = np.full(int(rng.integers(0, grammar.longest + 1)), UNKNOWN, dtype=np.int64)
        short = Guide(grammar, short_T)
        assert (short_T == tokens_T[: len(short_T)]).all()
        while open_ := open_places(guide, 0, len(tokens_T)):
            at = int(rng.choice(open_))
            token = int(rng.choice(sorted(allowed(guide, at))))
            draft_T = tokens_T.copy()
            draft = guide.copy(draft_T)
            draft.commit(at, token)
            assert tokens_T[at] == UNKNOWN
            assert guide.may(at, token)
            guide.commit(at, token)
            assert (draft_T == tokens_T).all()
            assert (draft.forced_T == guide.forced_T).all()
            if at < len(short_T) and short.may(at, token):
                short.commit(at, token)
        assert not [at for at in open_places(short, 0, len(short_T)) if not allowed(short, at)]


def test_grammars_that_cannot_be_are_refused() -> None:
    at_JN = np.arange(2)[:, None]
    with pytest.raises(DecodeError, match="1 choices for 2 entries"):
        Group(at_JN, np.array([[1]]))
    with pytest.raises(DecodeError, match="differ in length"):
        Group(at_JN, np.array([[1, 2], [3, 4]]))
    with pytest.raises(DecodeError, match="spelled alike"):
        Group(at_JN, np.array([[1], [1]]), filler=9)
    with pytest.raises(DecodeError, match="no token"):
        Places(row_of_places([[1], []]))


def test_what_is_wanted_behind_the_end_of_free_text_comes_too_early() -> None:
    head, tail = Places(row_of_places([[60]])), Places(row_of_places([[61, 62], [63]]))
    grammar = Grammar(head, Free(CLOSER, 6, np.array(BANNED)), tail)
    guide = Guide(grammar, np.full(grammar.longest, UNKNOWN, dtype=np.int64))
    at_N, token_N = np.array([1, 2, 3, 4, 5]), np.array([PLAIN[0], CLOSER, PLAIN[0], CLOSER, 61])
    assert guide.stop == 1 + 6
    assert guide.too_early(at_N, token_N).tolist() == [False, False, True, True, True]
    guide.commit(3, PLAIN[0])  # no closer stands before it any more
    assert guide.too_early(at_N, token_N).tolist() == [False, False, False, False, True]
    guide.commit(4, CLOSER)
    assert guide.stop == guide.end == 7
    assert not guide.too_early(at_N, token_N).any()
