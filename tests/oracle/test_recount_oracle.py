"""What a refresh counts is what a build from scratch on the union counts, number for number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffgr2.candidates.attention import AttentionScores, shapes_of
from diffgr2.candidates.fields import OF_NEWEST, PAIRED, SOLD
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.kinds import ItemKnn, Popularity
from diffgr2.candidates.recount import (
    RIDGES,
    Sample,
    bought_by,
    recounted,
    refitted,
    retrained,
    suggested,
)
from diffgr2.candidates.retrieval import prefixes, ragged
from diffgr2.candidates.titles import TitleWords, mark_of
from diffgr2.config import EvidenceConfig, RetrieverConfig
from diffgr2.data.arrivals import Purchases, Shop, join
from diffgr2.data.gather import ItemText
from diffgr2.items.vectors import unit_rows
from diffgr2.types import Catalogue, Histories

DAY, USERS, ITEMS, NEW = 86_400, 30, 20, 4
COUNTS = (*PAIRED, *SOLD)
CONFIG = EvidenceConfig(history=5, decay=0.7, buckets=4, fields=None, moment=True)


def shop(seed: int, *, timed: bool = True) -> Shop:
    """Random histories with repeats and days that several purchases share."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 11, USERS)
    times = [np.sort(rng.integers(1, 40, n)) * DAY * timed for n in lengths]
    blank = [""] * ITEMS
    catalogue = Catalogue(
        [f"i{n}" for n in range(ITEMS)],
        [f"thing {n}" for n in range(ITEMS)],
        [["", "a", "b"][n % 3] for n in range(ITEMS)],
        [["x", f"y{n % 3}"][: n % 3] for n in range(ITEMS)],
        np.full(ITEMS, np.nan),
        blank,
    )
    histories = Histories(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(0, ITEMS, lengths.sum()).astype(np.int32),
        np.concatenate(times).astype(np.int64),
        ITEMS,
    )
    return Shop(histories, catalogue, [f"u{n}" for n in range(USERS)])


def arrivals(seed: int) -> tuple[Purchases, dict[str, ItemText]]:
    """Purchases of known and new users, some of new items and some before a user's last."""
    rng = np.random.default_rng(seed + 1)
    users = [f"u{n}" for n in range(0, USERS, 3)] + ["n0", "n1"]
    items = [f"i{n}" for n in range(ITEMS)] + [f"new{n}" for n in range(NEW)]
    time_N = np.sort(rng.integers(20, 60, 60)) * DAY
    user_N, item_N = rng.integers(0, len(users), 60), rng.integers(0, len(items), 60)
    records = {
        f"new{n}": ItemText(f"new thing {n}", ["a", "c", "", "b"][n], ("x", "z")) for n in range(3)
    } | {"cold": ItemText("nobody's thing", "c", ("q", "r", "s"))}
    return Purchases(users, items, user_N, item_N, time_N), records


def slow_union(old: Shop, new: Purchases, raw_items: list[str], raw_users: list[str]) -> list[Any]:
    """Every user's (item, time) of both, without what stands twice, by time."""
    item_of = {raw: n for n, raw in enumerate(raw_items)}
    rows: dict[str, list[tuple[int, int]]] = {raw: [] for raw in raw_users}
    for user, raw in enumerate(old.raw_users):
        at = slice(*old.histories.offsets_U1[user : user + 2])
        for item, time in zip(
            old.histories.items_N[at], old.histories.timestamps_N[at], strict=True
        ):
            rows[raw].append((int(item), int(time)))
    for user, item, time in zip(new.user_N, new.item_N, new.time_N, strict=True):
        entry = (item_of[new.items[item]], int(time))
        own = rows[new.users[user]]
        if entry not in own:
            own.append(entry)
    return [sorted(rows[raw], key=lambda entry: entry[1]) for raw in raw_users]


def without_kept_apart(old: Shop, union: list[list[tuple[int, int]]]) -> Histories:
    """The union without the last two purchases that each user had before."""
    rows = [list(row) for row in union]
    for user in range(len(old.raw_users)):
        end = old.histories.offsets_U1[user + 1]
        for at in range(end - 2, end):
            entry = (int(old.histories.items_N[at]), int(old.histories.timestamps_N[at]))
            if entry in rows[user]:
                rows[user].remove(entry)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    items = np.array([item for row in rows for item, _ in row], np.int32)
    times = np.array([time for row in rows for _, time in row], np.int64)
    return Histories(offsets, items, times, ITEMS + NEW + 1)


@pytest.mark.parametrize("keep_last", [None, 0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_refresh_counts_what_a_build_of_the_union_counts(
    seed: int, keep_last: int | None
) -> None:
    old, (purchases, records) = shop(seed), arrivals(seed)
    vectors_IE = np.random.default_rng(seed).normal(size=(ITEMS, 6)).astype(np.float32)
    index = EvidenceIndex.build(old.histories.train_part(), old.catalogue, vectors_IE, CONFIG)
    joined = join(old, purchases, records, seed, anew=False)
    grown, n = joined.shop, len(joined.shop.catalogue)
    assert n == ITEMS + NEW + 1
    assert grown.catalogue.raw_ids[:ITEMS] == old.catalogue.raw_ids

    union = slow_union(old, purchases, grown.catalogue.raw_ids, grown.raw_users)
    assert [[item for item, _ in row] for row in union] == [
        grown.histories.of(user).tolist() for user in range(len(grown.raw_users))
    ]
    assert [time for row in union for _, time in row] == grown.histories.timestamps_N.tolist()

    more_IE = np.random.default_rng(seed + 9).normal(size=(n - ITEMS, 6)).astype(np.float32)
    all_IE = np.concatenate([index.attributes.vectors_IE, unit_rows(more_IE)])
    fresh = recounted(index, grown.histories, grown.catalogue, all_IE, joined.new_N, keep_last)

    # From scratch: all but the last few, or what counted before and what is new.
    end_U = np.maximum(grown.histories.lengths_U - (keep_last or 0), 0)
    counted = prefixes(grown.histories, np.arange(grown.histories.n_users), end_U)
    if keep_last is None:
        counted = without_kept_apart(old, union)
    whole = EvidenceIndex.build(counted, grown.catalogue, all_IE, CONFIG)
    for name in ("pair_P", "value_PV", "key_M", "position_M", "day_M", "buyers_I"):
        got, wanted = getattr(fresh.pairs, name), getattr(whole.pairs, name)
        assert got.dtype == wanted.dtype
        assert np.array_equal(got, wanted), name
    for name in ("brand_I", "category_ID"):
        assert np.array_equal(getattr(fresh.attributes, name), getattr(whole.attributes, name))
    assert np.array_equal(fresh.edges_FB, index.edges_FB)
    assert fresh.n_users == index.n_users == USERS, "the scale of lift stays with the edges"

    rng = np.random.default_rng(seed)
    items_LK = np.stack([rng.permutation(n)[:5] for _ in range(8)]).astype(np.int32)
    scores_LK = -np.sort(-rng.normal(size=items_LK.shape).astype(np.float32), axis=1)
    queries = prefixes(grown.histories, np.arange(8), grown.histories.lengths_U[:8])
    asked = (np.arange(8), None, queries.timestamps_N[queries.offsets_U1[1:] - 1] + 3 * DAY)
    one = fresh.features(queries, items_LK, scores_LK, *asked)
    kept = replace(whole, n_users=USERS, titles=fresh.titles)  # words weigh what they did
    two = kept.features(queries, items_LK, scores_LK, *asked)
    counts = [fresh.names.index(name) for name in COUNTS]
    without_LK = np.array(
        [[own not in {*counted.of(u).tolist()} for own in items_LK[u]] for u in range(8)]
    )
    late_LK = (items_LK >= ITEMS) & (whole.pairs.buyers_I[items_LK] - ~without_LK == 0)
    assert np.isnan(one[late_LK][:, counts]).all(), "nobody else bought it yet"
    for f in counts:
        two[..., f][late_LK] = np.nan
    np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)  # `whole` scales vectors again


@pytest.mark.parametrize("seed", range(6))
def test_news_in_parts_count_as_at_once(seed: int) -> None:
    old, (purchases, records) = shop(seed), arrivals(seed)
    index = EvidenceIndex.build(
        old.histories.train_part(), old.catalogue, np.zeros((ITEMS, 1), np.float32), CONFIG
    )

    time_N = purchases.time_N + np.arange(1, 61)  # no two at one second, whose order is the file's

    def grown(shop: Shop, index: EvidenceIndex, which: slice) -> tuple[Shop, EvidenceIndex]:
        part = (purchases.user_N[which], purchases.item_N[which], time_N[which])
        news = Purchases(purchases.users, purchases.items, *part)
        joined = join(shop, news, records, seed, anew=False)
        vectors_IE = np.zeros((len(joined.shop.catalogue), 1), np.float32)
        given = (joined.shop.histories, joined.shop.catalogue, vectors_IE, joined.new_N)
        return joined.shop, recounted(index, *given)

    once, twice = grown(old, index, slice(None)), (old, index)
    for part in (slice(0, 0), slice(0, 60, 2), slice(1, 60, 2), slice(None)):
        twice = grown(*twice, part)
    assert np.array_equal(once[0].histories.items_N, twice[0].histories.items_N)
    for name in ("pair_P", "value_PV", "key_M", "position_M", "day_M", "buyers_I"):
        assert np.array_equal(getattr(once[1].pairs, name), getattr(twice[1].pairs, name)), name


@pytest.mark.parametrize("seed", range(3))
def test_what_no_news_touched_has_the_same_evidence_bit_for_bit(seed: int) -> None:
    old = shop(seed)
    vectors_IE = np.random.default_rng(seed).normal(size=(ITEMS, 6)).astype(np.float32)
    index = EvidenceIndex.build(old.histories.train_part(), old.catalogue, vectors_IE, CONFIG)
    news = Purchases(["n"], ["i0", "i1", "new"], np.zeros(3, np.int64), np.arange(3), np.full(3, 9))
    joined = join(old, news, {}, seed, anew=False)
    all_IE = np.concatenate([index.attributes.vectors_IE, np.zeros((1, 6), np.float32)])
    fresh = recounted(index, joined.shop.histories, joined.shop.catalogue, all_IE, joined.new_N)
    read_LK = np.array([[2, 3, 4, 5], [9, 8, 7, 6]], np.int32)
    queries = prefixes(old.histories, np.array([4, 5]), np.array([3, 3]))
    queries = replace(queries, items_N=np.array([10, 11, 12, 13, 14, 15], np.int32))
    scores_LK = np.array([[4, 3, 2, 1]] * 2, np.float32)
    before, after = (one.features(queries, read_LK, scores_LK) for one in (index, fresh))
    np.testing.assert_array_equal(before, after)


def test_counts_beside_items_that_nobody_bought_yet_are_left_open() -> None:
    old = shop(1)
    vectors_IE = np.ones((ITEMS, 2), np.float32)
    index = EvidenceIndex.build(old.histories.train_part(), old.catalogue, vectors_IE, CONFIG)
    joined = join(old, Purchases(), {"c1": ItemText("one"), "c2": ItemText("two")}, 0, anew=False)
    all_IE = np.ones((ITEMS + 2, 2), np.float32)
    fresh = recounted(index, joined.shop.histories, joined.shop.catalogue, all_IE, joined.new_N)
    assert (index.late_from, fresh.late_from) == (None, ITEMS)
    shown, scores = np.array([3, ITEMS, 4], np.int32), np.array([3.0, 2.0, 1.0], np.float32)
    at = {name: fresh.names.index(name) for name in fresh.names}
    rest = [at[name] for name in fresh.names if name not in (*COUNTS, "away")]

    def open_fields(*history: int) -> np.ndarray:
        queries = ragged([np.array(history, np.int32)], ITEMS + 2)
        queries.timestamps_N[:] = 50 * DAY
        asked = (None, None, np.array([99 * DAY]))
        features_KF = fresh.features(queries, shown[None], scores[None], *asked)[0]
        assert np.isfinite(features_KF[:, rest]).all()
        return np.isnan(features_KF)

    counts, latest = [at[name] for name in COUNTS], [at[name] for name in OF_NEWEST]
    paired = [at[name] for name in PAIRED]
    known, cold = 5, ITEMS + 1
    assert open_fields(known)[1, counts].all()
    assert not open_fields(known)[[0, 2]].any()
    assert open_fields(known, cold)[:, latest].all()
    assert not open_fields(known, cold)[0, at["copurchase"]]
    assert not open_fields(cold, known)[0].any()
    assert open_fields(cold)[:, paired].all(), "there is nothing to go by"
    sold = [at["fresh"], at["trend"], at["away"]]
    assert np.flatnonzero(open_fields()[0]).tolist() == sold, "nobody knows since when"


def test_a_shop_where_nobody_bought_anything_begins_to_count() -> None:
    bare = Histories(np.zeros(3, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64), 4)
    blank = [""] * 4
    things = Catalogue(
        [f"i{n}" for n in range(4)], blank, blank, [[] for _ in blank], np.full(4, np.nan), blank
    )
    old = Shop(bare, things, ["u0", "u1"])
    index = EvidenceIndex.build(bare, things, np.ones((4, 1), np.float32), CONFIG)
    nothing = Popularity(np.ones(4, np.float32))
    sample = Sample.of(bare, nothing, 10, 5, 0)
    assert sample.buckets(index).shape[:2] == (0, 4)
    assert refitted(index, bare, nothing, 10, 5, 0) == (index, 0)
    news = Purchases(["u0"], ["i0", "i3"], np.zeros(2, np.int64), np.arange(2), np.array([5, 6]))
    joined = join(old, news, {}, 0, anew=False)
    given = (joined.shop.histories, joined.shop.catalogue, index.attributes.vectors_IE)
    for fresh in (
        recounted(index, *given, joined.new_N),
        recounted(index, *given, joined.new_N, 0),
    ):
        assert fresh.pairs.buyers_I.tolist() == [1, 0, 0, 1]
        assert len(fresh.pairs.pair_P) == 2
    kept, told = retrained(nothing, index, fresh, (2, 2))
    assert "as it was" in told
    assert np.array_equal(kept.count_I, nothing.count_I)


KINDS = {"popularity": Popularity, "itemknn": ItemKnn}


@pytest.mark.parametrize("kind", KINDS)
def test_a_counting_retriever_is_counted_as_from_scratch(kind: str) -> None:
    old, (purchases, records) = shop(3), arrivals(3)
    blank_IE = np.zeros((ITEMS, 2), np.float32)
    index = EvidenceIndex.build(old.histories.train_part(), old.catalogue, blank_IE, CONFIG)
    joined = join(old, purchases, records, 0, anew=False)
    grown = joined.shop
    blank_IE = np.zeros((len(grown.catalogue), 2), np.float32)
    fresh = recounted(index, grown.histories, grown.catalogue, blank_IE, joined.new_N)
    users = (USERS, grown.histories.n_users)
    before = KINDS[kind].build(old.histories.train_part())
    after, told = retrained(before, index, fresh, users)
    assert told == f"{kind}, counted anew"
    union = slow_union(old, purchases, grown.catalogue.raw_ids, grown.raw_users)
    whole = KINDS[kind].build(without_kept_apart(old, union))
    for name, value in vars(whole).items():
        assert np.array_equal(getattr(after, name), value), name
    other = KINDS[kind].build(old.histories)  # it knows the held-out purchases, too
    kept, told = retrained(other, index, fresh, users)
    assert "as it was" in told
    history = np.array([3, 4, 5])
    known = np.arange(ITEMS)
    assert np.array_equal(kept.score_some(history, known), other.score_some(history, known))
    assert kept.n_items == len(grown.catalogue)
    assert kept.score_some(history, np.array([ITEMS]))[0] == 0.0


def sasrec(n_items: int, seed: int) -> AttentionScores:
    config, rng = RetrieverConfig(dim=8, layers=1, heads=2, max_len=6), np.random.default_rng(seed)
    shapes = shapes_of(n_items, config)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return AttentionScores(n_items, config, arrays)


def test_new_items_of_sasrec_score_as_their_words_suggest_and_the_others_as_before() -> None:
    old, rng = shop(5), np.random.default_rng(5)
    vectors_IE = unit_rows(rng.normal(size=(ITEMS, 6)))
    index = EvidenceIndex.build(old.histories, old.catalogue, vectors_IE, CONFIG)
    model = sasrec(ITEMS, 5)
    model.arrays["items.weight"] = (vectors_IE @ rng.normal(size=(6, 8))).astype(np.float32)
    # A new item with the words of item 3, and one without any.
    records = {"like3": ItemText("like item 3")}
    news = Purchases([], ["mute"], *([np.zeros(0, np.int64)] * 3))
    joined = join(old, news, records, 0, anew=False)
    twin = joined.shop.catalogue.raw_ids.index("like3")
    more_IE = np.zeros((2, 6), np.float32)
    more_IE[twin - ITEMS] = vectors_IE[3]
    all_IE = np.concatenate([index.attributes.vectors_IE, more_IE])
    fresh = recounted(index, joined.shop.histories, joined.shop.catalogue, all_IE, joined.new_N)
    after, told = retrained(model, index, fresh, (USERS, USERS))
    assert isinstance(after, AttentionScores)
    assert "2 embeddings from texts" in told
    history = np.array([1, 2, 7])
    known = np.arange(ITEMS)
    assert np.array_equal(after.score_some(history, known), model.score_some(history, known))
    one, two = after.score_some(history, np.array([twin, 3]))
    assert one == pytest.approx(two, abs=0.05)
    mute = after.arrays["items.weight"][2 * ITEMS + 1 - twin]
    np.testing.assert_allclose(mute, model.arrays["items.weight"].mean(0), atol=1e-5)
    assert retrained(model, index, index, (USERS, USERS))[0] is model


def ridge_of(x: np.ndarray, y: np.ndarray, ridge: float, new: np.ndarray) -> np.ndarray:
    """Ridge regression with a free constant, by the normal equations."""
    ones = np.c_[np.ones(len(x)), x]
    penalty = ridge * np.diag([0.0, *[1.0] * x.shape[1]])
    weights = np.linalg.solve(ones.T @ ones + penalty, ones.T @ y)
    return np.c_[np.ones(len(new)), new] @ weights


def test_the_regression_explains_left_out_rows_as_well_as_any_of_its_penalties() -> None:
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(40, 3)), rng.normal(size=(5, 3))
    y = x @ rng.normal(size=(3, 2)) + 2.0 * rng.normal(size=(40, 2))
    spread = float((np.linalg.svd(x - x.mean(0))[1] ** 2).mean())
    found = []
    for ridge in RIDGES * spread:
        rest = [
            y[n] - ridge_of(np.delete(x, n, 0), np.delete(y, n, 0), ridge, x[n : n + 1])[0]
            for n in range(40)
        ]
        share = 1.0 - np.square(rest).sum() / np.square(y - y.mean(0)).sum()
        found.append((share, ridge))
    share, ridge = max(found)
    got, explained = suggested(x, y, new)
    assert explained == pytest.approx(share)
    np.testing.assert_allclose(got, ridge_of(x, y, ridge, new), rtol=1e-4, atol=1e-5)


def test_words_that_explain_nothing_suggest_the_mean() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 6)), rng.normal(size=(12, 2))
    got, explained = suggested(x, y, x[:2] + 1.0)
    assert explained == 0.0
    np.testing.assert_allclose(got, np.repeat(y.mean(0)[None], 2, 0), rtol=1e-5)
    nothing, explained = suggested(x[:0], y[:0], x[:2])
    assert (nothing.tolist(), explained) == ([[0.0, 0.0], [0.0, 0.0]], 0.0)


def test_edges_are_refitted_on_lists_that_hold_the_newest_purchase() -> None:
    one = shop(7)
    vectors_IE = np.random.default_rng(7).normal(size=(ITEMS, 6)).astype(np.float32)
    index = EvidenceIndex.build(one.histories.train_part(), one.catalogue, vectors_IE, CONFIG)
    retriever = Popularity.build(one.histories)
    fresh, lists = refitted(index, one.histories, retriever, 10, 100, 0)
    assert USERS // 2 < lists <= 4 * USERS
    assert np.isinf(index.edges_FB).all()
    assert np.isfinite(fresh.edges_FB[:, 0]).all()
    again, _ = refitted(fresh, one.histories, retriever, 10, 100, 0)
    assert np.array_equal(fresh.edges_FB, again.edges_FB), "once more changes nothing"
    sample = Sample.of(one.histories, retriever, 5, 9, 0)
    assert sample.items_LK.shape == (9, 5)
    assert (sample.buckets(fresh) != sample.buckets(index)).any()
    bought = bought_by(index.pairs, USERS)
    train = one.histories.train_part()
    assert all(set(bought.of(u).tolist()) == set(train.of(u).tolist()) for u in range(USERS))


def test_a_word_weighs_what_it_did_and_a_new_one_is_as_rare_as_any() -> None:
    known = TitleWords.of(["red soap", "red lamp", "green soap set"])
    again = known.worded(["red soap", "red lamp", "green soap set", "soap dish", ""])
    places = np.arange(3)[None]
    assert np.array_equal(again.alike(places, places), known.alike(places, places))
    assert again.alike(places, np.array([[3, 4]]))[0, :, 1].tolist() == [0.0] * 3
    idf = {w: float(i) for w, i in zip(again.mark_W, again.idf_W, strict=True)}
    assert idf[mark_of("dish")] == max(idf.values()) == idf[mark_of("lamp")]
    seated = replace(known, newcomers=known.worded(["soap dish"]))
    np.testing.assert_array_equal(
        seated.alike(np.array([[0, 3, -1]]), np.array([[3, 2]])),
        again.alike(np.array([[0, 3, -1]]), np.array([[3, 2]])),
    )
