"""Retrievers, candidate lists and pair counts: what must hold for any histories."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.candidates.kinds import ItemKnn, Popularity
from diffgr2.candidates.lists import (
    first_columns,
    fold_of_users,
    held_out_lists,
    load_lists,
    save_lists,
    selection_users,
    training_lists,
    training_positions,
    with_targets,
)
from diffgr2.candidates.pairs import PairCounts
from diffgr2.candidates.retrieval import (
    evaluate,
    padded_last,
    prefixes,
    ragged,
    score,
    target_ranks,
    top_k,
)
from diffgr2.errors import DataError
from diffgr2.types import MISS, Histories

ITEMS = 30


@st.composite
def histories(draw, min_users: int = 3) -> Histories:
    """Users with 3 to 12 purchases, repeats and equal days included."""
    seed = draw(st.integers(0, 2**31))
    users = draw(st.integers(min_users, 12))
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, ITEMS, int(rng.integers(3, 13))) for _ in range(users)]
    made = ragged(rows, ITEMS)
    days = np.concatenate([np.sort(rng.integers(0, 5, len(row))) for row in rows])
    return Histories(made.offsets_U1, made.items_N, days.astype(np.int64) * 86_400, ITEMS)


class Table:
    """A retriever with given scores, the same for every history."""

    def __init__(self, score_I: np.ndarray) -> None:
        self.score_I = score_I.astype(np.float32)

    @property
    def n_items(self) -> int:
        return len(self.score_I)

    def score_all(self, queries: Histories) -> np.ndarray:
        return np.repeat(self.score_I[None], queries.n_users, 0)


@settings(max_examples=60, deadline=None)
@given(histories(), st.lists(st.integers(0, 4), min_size=ITEMS, max_size=ITEMS))
def test_top_k_is_the_exact_order_of_unseen_items_with_ties_by_number(h, scores) -> None:
    table = Table(np.array(scores))
    items_LK, scores_LK = top_k(table, h, 5)
    for user in range(h.n_users):
        unseen = [i for i in range(ITEMS) if i not in set(h.of(user).tolist())]
        wanted = sorted(unseen, key=lambda i: (-scores[i], i))[:5]
        assert items_LK[user].tolist() == wanted
        assert scores_LK[user].tolist() == [scores[i] for i in wanted]
    assert np.array_equal(score(table, h, items_LK), scores_LK)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_target_ranks_agree_with_top_k(h) -> None:
    model = ItemKnn.build(h.train_part())
    users = np.arange(h.n_users)
    queries = prefixes(h, users, h.lengths_U - 1)
    target_L = h.items_N[h.offsets_U1[1:] - 1]
    ranks = target_ranks(model, queries, target_L)
    items_LK, _ = top_k(model, queries, 10)
    for user in users:
        if target_L[user] in queries.of(user):
            continue
        place = np.flatnonzero(items_LK[user] == target_L[user])
        assert (ranks[user] == place[0]) if len(place) else (ranks[user] >= 10)
    assert evaluate(model, queries, target_L)["r@10"] == (ranks < 10).mean()


@settings(max_examples=40, deadline=None)
@given(histories(), st.integers(1, 15))
def test_padded_last_keeps_the_newest_items_in_order(h, width) -> None:
    padded = padded_last(h, width)
    for user in range(h.n_users):
        row = padded[user]
        assert row[row >= 0].tolist() == h.of(user)[-width:].tolist()
        assert (np.diff((row >= 0).astype(int)) <= 0).all()  # padding stands at the right


@settings(max_examples=40, deadline=None)
@given(histories(), st.integers(1, 4), st.integers(2, 3))
def test_training_lists_come_from_a_model_that_never_saw_their_user(h, count, folds) -> None:
    fold_U = fold_of_users(h.n_users, folds, 7)
    trained: list[set[int]] = []

    def fit(users: np.ndarray, fold: int) -> Popularity:
        assert not np.isin(users, np.flatnonzero(fold_U == fold)).any()
        trained.append(set(users.tolist()))
        return Popularity.build(prefixes(h, users, h.lengths_U[users] - 2))

    lists = training_lists(h, fold_U, fit, k=5, prefixes_per_user=count)
    assert all(len(users) >= h.n_users - -(-h.n_users // folds) for users in trained)
    for row in range(len(lists)):
        user, end = int(lists.user_L[row]), int(lists.end_L[row])
        assert 2 <= end < h.lengths_U[user] - 2
        assert lists.target_L[row] == h.of(user)[end]
        assert not np.isin(lists.items_LK[row], h.of(user, end)).any()
        assert (np.diff(lists.scores_LK[row]) <= 0).all()
        others = np.flatnonzero(fold_U != fold_U[user])
        count_I = Popularity.build(prefixes(h, others, h.lengths_U[others] - 2)).count_I
        assert np.array_equal(lists.scores_LK[row], count_I[lists.items_LK[row]])


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(1, 5))
def test_training_positions_are_the_last_of_the_train_part(h, count) -> None:
    user_L, end_L = training_positions(h, np.arange(h.n_users), count)
    for user in range(h.n_users):
        wanted = list(range(2, h.lengths_U[user] - 2))[-count:]
        assert end_L[user_L == user].tolist() == wanted


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(2, 4))
def test_injection_only_fills_lists_that_missed_and_only_for_training(h, k) -> None:
    fold_U = fold_of_users(h.n_users, 2, 0)

    def fit(users: np.ndarray, fold: int) -> Popularity:
        return Popularity.build(prefixes(h, users, h.lengths_U[users] - 2))

    plain = training_lists(h, fold_U, fit, k=4, prefixes_per_user=3)
    full = with_targets(plain, k)
    assert ((full.hit_L != MISS) & (full.hit_L < k)).all()
    hits = (plain.hit_L != MISS) & (plain.hit_L < k)
    assert np.array_equal(full.items_LK[hits], plain.items_LK[hits])
    assert (full.hit_L[~hits] == k - 1).all()
    assert all(len(set(row)) == 4 for row in full.items_LK.tolist())
    others = np.flatnonzero(plain.hit_L != MISS)
    assert np.array_equal(np.sort(full.items_LK[others]), np.sort(plain.items_LK[others]))
    model = Popularity.build(h.train_part())
    with pytest.raises(AssertionError):
        with_targets(held_out_lists(h, model, "test", 4), k)


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(1, 6), st.integers(0, 11))
def test_leaving_a_user_out_equals_never_having_counted_that_user(h, window, user) -> None:
    user %= h.n_users
    others = np.flatnonzero(np.arange(h.n_users) != user)
    with_all = PairCounts.build(h, window)
    without = PairCounts.build(prefixes(h, others, h.lengths_U[others]), window)
    every = np.arange(ITEMS, dtype=np.int32)[None]
    got, buyers = with_all.lookup(every, every, np.array([user]))
    wanted, others_buyers = without.lookup(every, every, np.array([-1]))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert np.array_equal(buyers, others_buyers)
    padding, nobody = with_all.lookup(np.full((1, 2), -1, np.int32), every, np.array([user]))
    assert not padding.any()
    assert not nobody[:, :2].any()


def test_lists_survive_saving(tmp_path) -> None:
    h = ragged([np.array([1, 2, 3, 4]), np.array([5, 6, 7])], ITEMS)
    lists = held_out_lists(h, Popularity.build(h.train_part()), "test", 3)
    save_lists(tmp_path, lists)
    again = load_lists(tmp_path, "test")
    for name in ("user_L", "end_L", "target_L", "items_LK", "scores_LK"):
        assert np.array_equal(getattr(lists, name), getattr(again, name))


@settings(max_examples=30, deadline=None)
@given(histories(), st.integers(1, 5))
def test_the_first_columns_are_the_shorter_list(h, k) -> None:
    model = Popularity.build(h.train_part())
    long = held_out_lists(h, model, "test", 5)
    cut, short = first_columns(long, k), held_out_lists(h, model, "test", k)
    assert cut.k == k
    assert np.array_equal(cut.items_LK, short.items_LK)
    assert np.array_equal(cut.hit_L, short.hit_L)
    assert np.array_equal(cut.hit_L, np.where(long.hit_L < k, long.hit_L, MISS))


def test_loading_cuts_where_asked(tmp_path) -> None:
    h = ragged([np.array([1, 2, 3, 4]), np.array([5, 6, 7])], ITEMS)
    save_lists(tmp_path, held_out_lists(h, Popularity.build(h.train_part()), "test", 5))
    assert load_lists(tmp_path, "test").k == 5
    assert load_lists(tmp_path, "test", 2).k == 2


@given(st.integers(1, 500))
def test_selection_users_are_a_fixed_tenth(n_users) -> None:
    chosen_U = selection_users(n_users)
    assert chosen_U.shape == (n_users,)
    assert chosen_U.sum() == -(-n_users // 10)
    assert np.array_equal(chosen_U, selection_users(n_users))


def test_more_candidates_than_unseen_items_is_refused_by_name() -> None:
    h = ragged([np.array([0, 1, 2, 3])], 5)
    with pytest.raises(DataError, match=r"candidates.k_max: 3 unseen candidates needed"):
        held_out_lists(h, Popularity.build(h.train_part()), "test", 3)


def test_item_knn_scores_are_decayed_cosines() -> None:
    h = ragged([np.array([0, 1]), np.array([0, 1]), np.array([0, 2]), np.array([3, 2])], 4)
    got = ItemKnn.build(h).score_all(ragged([np.array([2, 0])], 4))[0]
    # item 0 has 3 buyers, 1 has 2 (both shared with 0), 2 has 2 (one shared with 0)
    assert got[1] == pytest.approx(2 / np.sqrt(6), rel=1e-4)
    assert got[2] == pytest.approx(1 / np.sqrt(6), rel=1e-4)
    assert got[3] == pytest.approx(0.8 / np.sqrt(2), rel=1e-4)
