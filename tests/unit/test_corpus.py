"""What stages are shown of a list, what they are taught about it, and who is kept out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffgr2.candidates.lists import selection_users
from diffgr2.config import ShowConfig
from diffgr2.prompts.request import MISSING, NONE
from diffgr2.stages.corpus import KNOWN, Corpus, drawn_places, seen
from diffgr2.streams import generator
from diffgr2.types import MISS, PADDING
from support.tiny_corpus import K_MAX, STRENGTHS, USERS, WORTH_FB, K, corpus

PLAIN = ShowConfig(shuffle=0.0, vary=0.0, hide=0.0)
LONG, SHORT = 20, 10  # columns of the lists that `drawn_places` is tried on


def places_of(count: int, forced: int = MISS, **shares: float) -> list[np.ndarray]:
    config = ShowConfig(**{"shuffle": 0.0, "vary": 0.0, "hide": 0.0, **shares})
    return [drawn_places(SHORT, LONG, forced, config, generator(n, "places")) for n in range(count)]


def test_without_shares_a_list_is_shown_as_results_are_about_it() -> None:
    shop = corpus()
    shown = shop.shown("train", 3, PLAIN, generator(0))
    whole = shop.request("train", 3)
    assert shown.places.tolist() == list(range(K))
    assert np.array_equal(shown.request.codes_KL, whole.codes_KL)
    assert np.array_equal(shown.request.buckets_KF, whole.buckets_KF)
    assert shown.target == shop.judged("train").hit_L[3]


@given(st.integers(0, 10_000), st.integers(0, USERS - 1), st.booleans())
def test_a_part_of_a_list_keeps_the_evidence_of_the_whole(seed: int, row: int, keep: bool) -> None:
    shop, config = corpus(), ShowConfig(shuffle=0.5, vary=0.9, hide=0.5)
    shown = shop.shown("train", row, config, generator(seed), keep_target=keep)
    lists, codes_IL = shop.lists["train"], shop.sids.codes_IL
    items_K = lists.items_LK[row, shown.places]
    assert 2 <= shown.request.k == len(set(shown.places.tolist())) <= K_MAX
    assert np.array_equal(shown.request.codes_KL, codes_IL[items_K])
    stored_KF, hidden_KF = shop.buckets["train"][row, shown.places], shown.hidden
    assert np.array_equal(shown.request.buckets_KF[~hidden_KF], stored_KF[~hidden_KF])
    found = np.flatnonzero(items_K == lists.target_L[row])
    assert [shown.target] == (found.tolist() or [MISS])
    assert not keep or shown.target != MISS
    again = shop.shown("train", row, config, generator(seed), keep_target=keep)
    assert np.array_equal(again.request.buckets_KF, shown.request.buckets_KF)
    assert np.array_equal(again.places, shown.places)


def test_lengths_are_drawn_evenly_half_of_them_from_the_top() -> None:
    drawn = places_of(4_000, vary=1.0)
    lengths = Counter(len(places) for places in drawn)
    assert sorted(lengths) == list(range(2, LONG + 1))
    assert max(lengths.values()) < 1.5 * min(lengths.values())
    assert all((np.diff(places) > 0).all() for places in drawn), "floor order"
    top = [len(places) == places[-1] + 1 for places in drawn if len(places) < LONG - 2]
    assert np.mean(top) == pytest.approx(0.5, abs=0.05)
    everywhere = Counter(np.concatenate(drawn).tolist())
    assert sorted(everywhere) == list(range(LONG))


def test_shares_are_shares() -> None:
    varied = [len(places) != SHORT for places in places_of(2_000, vary=0.5)]
    assert np.mean(varied) == pytest.approx(0.5 * 18 / 19, abs=0.05)
    mixed = [places.tolist() != list(range(SHORT)) for places in places_of(2_000, shuffle=0.3)]
    assert np.mean(mixed) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("forced", [0, 4, 9, 10, 19])
def test_a_forced_column_is_in_and_never_the_odd_one_out(forced: int) -> None:
    drawn = places_of(1_000, forced, vary=0.7)
    assert all(forced in places for places in drawn)
    longer = [places for places in drawn if len(places) > 4]
    put_in = [(places[:-1] == np.arange(len(places) - 1)).all() for places in longer]
    alien = [places[-1] > len(places) - 1 for places in longer]
    assert np.mean(np.array(put_in) & alien) < 0.02
    if forced >= SHORT:  # the first k columns do not hold it
        assert list(range(SHORT)) not in [places.tolist() for places in drawn]


def test_at_most_the_asked_columns_are_shown() -> None:
    config = ShowConfig(shuffle=0.5, vary=1.0, hide=0.0)
    for n in range(200):
        shown = corpus().shown("train", 0, config, generator(n), most=K)
        assert shown.places.max() < K


@given(st.integers(0, 10_000), st.integers(0, USERS - 1))
def test_what_is_hidden_is_never_cited_and_its_worth_is_taken_off(seed: int, n: int) -> None:
    shop, config = corpus(), ShowConfig(shuffle=0.5, vary=0.7, hide=1.0)
    shown, trace = shop.lesson("train", n, config, generator(seed))
    row = int(shop.traces["train"].row_N[n])
    buckets_KF, whole = shop.buckets["train"][row, shown.places], shop.traces["train"].at(n)
    for i, place in enumerate(shown.places.tolist()):
        hidden = np.flatnonzero(shown.request.buckets_KF[i] == MISSING).tolist()
        visible = [f for f in whole.cites_KC[place].tolist() if f != NONE and f not in hidden]
        assert [f for f in trace.cites_KC[i].tolist() if f != NONE] == visible[:1]
        less = sum(WORTH_FB[f, buckets_KF[i, f]] for f in hidden)
        wanted = np.clip(whole.level_K[place] - less, 0, STRENGTHS - 1) if hidden else None
        assert trace.level_K[i] == pytest.approx(
            whole.level_K[place] if wanted is None else wanted, abs=1e-6
        )


def test_hidden_fields_give_their_place_to_those_behind_them() -> None:
    cites_KC = np.array([[2, 0, 1], [1, NONE, NONE], [0, 2, NONE]], dtype=np.int8)
    hidden_KF = np.array([[False, False, True], [False, True, False], [False, False, False]])
    wanted = [[0, 1, NONE], [NONE, NONE, NONE], [0, 2, NONE]]
    assert seen(cites_KC, hidden_KF).tolist() == wanted


def test_a_teachers_own_words_keep_their_list_as_it_was() -> None:
    shop = corpus()
    words = replace(shop, explanations={split: ["so"] * USERS for split in KNOWN})
    config = ShowConfig(shuffle=1.0, vary=1.0, hide=1.0)
    for n in range(USERS):
        shown, trace = words.lesson("train", n, config, generator(n))
        assert sorted(shown.places.tolist()) == list(range(K))
        assert not shown.hidden.any()
        assert trace.explanation == "so"
        level_K = shop.traces["train"].level_NK[n]
        assert np.array_equal(trace.level_K, level_K[shown.places])


def test_selection_users_train_nothing() -> None:
    shop, chosen_U = corpus(), selection_users(USERS)
    users = {split: shop.lists[split].user_L for split in KNOWN}
    assert chosen_U.sum() == 3
    taught = [users[s][shop.traces[s].row_N[n]] for s, n in shop.examples]
    assert not chosen_U[taught].any()
    assert len(taught) == 2 * (USERS - 3)
    assert not chosen_U[[users[s][row] for s, row in shop.hits]].any()
    assert chosen_U[[users[s][row] for s, row in shop.selection]].all()
    assert len(shop.hits) + len(shop.selection) == 2 * USERS


def test_results_are_about_the_first_columns() -> None:
    shop = corpus()
    late = shop.lists["train"].items_LK[:, K]  # targets that only long lists hold
    lists = {**shop.lists, "train": replace(shop.lists["train"], target_L=late)}
    deep = replace(shop, lists=lists)
    assert (deep.judged("train").hit_L == MISS).all()
    assert not any(split == "train" for split, _ in deep.selection)
    assert sum(split == "train" for split, _ in deep.hits) == USERS - 3
    shown = deep.shown("train", 0, PLAIN, generator(0), keep_target=True)
    assert shown.places[shown.target] == K


def shortened() -> Corpus:
    """The tiny corpus, every second list of which is two candidates shorter."""
    shop, even_L = corpus(), np.arange(USERS) % 2 == 0
    lists, traces = {}, {}
    for split in KNOWN:
        own, told = shop.lists[split], shop.traces[split]
        items_LK, level_NK = own.items_LK.copy(), told.level_NK.copy()
        items_LK[even_L, K_MAX - 2 :], level_NK[even_L, K_MAX - 2 :] = PADDING, np.nan
        lists[split] = replace(own, items_LK=items_LK)
        traces[split] = replace(told, level_NK=level_NK)
    return replace(shop, lists=lists, traces=traces)


@given(st.integers(0, 10_000), st.integers(0, USERS - 1))
def test_a_shorter_list_shows_its_own_candidates_and_no_padding(seed: int, row: int) -> None:
    shop, config = shortened(), ShowConfig(shuffle=0.5, vary=0.7, hide=0.3)
    n = int(shop.lists["train"].length_L[row])
    assert n == (K_MAX - 2 if row % 2 == 0 else K_MAX)
    assert shop.request("train", row).k == min(K, n)
    shown, trace = shop.lesson("train", row, config, generator(seed))
    assert shown.places.max() < n
    assert len(set(shown.places.tolist())) == len(shown.places) == shown.request.k
    assert not np.isnan(trace.level_K).any()
    assert (shown.target == MISS) == (shop.lists["train"].hit_L[row] not in shown.places)


def test_lists_that_lost_their_target_behind_their_end_are_misses() -> None:
    shop, whole = shortened(), corpus()
    for split in KNOWN:
        lost_L = whole.lists[split].hit_L >= shop.lists[split].length_L
        assert lost_L.any()
        assert (shop.lists[split].hit_L[lost_L] == MISS).all()
        assert not {row for s, row in shop.hits if s == split} & {*np.flatnonzero(lost_L).tolist()}
