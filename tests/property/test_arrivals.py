"""New purchases and items join a shop: nothing lost, nothing twice, what stands stays."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.arrivals import Purchases, Shop, join, read_purchases, read_records
from diffgr2.data.gather import ItemText
from diffgr2.errors import DataError
from diffgr2.items.quantize import Quantizer
from diffgr2.items.uniqueness import placed
from diffgr2.types import Catalogue, Histories

SECONDS = st.integers(1, 6)
EVENTS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), SECONDS), max_size=25)


def shop_of(events: list[tuple[int, int, int]], *, timed: bool = True) -> Shop:
    """Users u0…, items i0… with these (user, item, second), which are sorted."""
    rows = sorted(set(events), key=lambda e: (e[0], e[2]))
    n = 4
    blank = [""] * n
    catalogue = Catalogue(
        [f"i{k}" for k in range(n)], blank, blank, [[] for _ in blank], np.full(n, np.nan), blank
    )
    rows = [row for row in rows if row[0] < 3 and row[1] < n]
    users = np.array([row[0] for row in rows], np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=3))]).astype(np.int64)
    items = np.array([row[1] for row in rows], np.int32)
    times = np.array([row[2] * timed for row in rows], np.int64)
    return Shop(Histories(offsets, items, times, n), catalogue, ["u0", "u1", "u2"])


def purchases_of(events: list[tuple[int, int, int]]) -> Purchases:
    rows = sorted(events, key=lambda e: e[2])
    columns = [np.array([row[at] for row in rows], np.int64) for at in range(3)]
    return Purchases([f"u{k}" for k in range(5)], [f"i{k}" for k in range(6)], *columns)


def told(shop: Shop) -> Counter[tuple[str, str, int]]:
    """Every purchase by raw ids."""
    histories = shop.histories
    users = np.repeat(np.arange(histories.n_users), histories.lengths_U)
    rows = zip(users, histories.items_N, histories.timestamps_N, strict=True)
    ids = (shop.raw_users, shop.catalogue.raw_ids)
    return Counter((ids[0][u], ids[1][i], int(t)) for u, i, t in rows)


@settings(max_examples=150, deadline=None)
@given(EVENTS, EVENTS)
def test_a_join_is_the_union_and_once_more_changes_nothing(old, new) -> None:
    shop, news = shop_of(old), purchases_of(new)
    joined = join(shop, news, {}, 0, anew=False)
    wanted = set(told(shop)) | {(f"u{u}", f"i{i}", t) for u, i, t in new if shop_is_timed(shop)}
    if shop_is_timed(shop):
        assert told(joined.shop) == Counter(dict.fromkeys(wanted, 1))
    assert joined.added + joined.known == len(new)
    assert joined.added == len(joined.shop.histories.items_N) - len(shop.histories.items_N)
    histories = joined.shop.histories
    for user in range(histories.n_users):
        times = histories.timestamps_N[slice(*histories.offsets_U1[user : user + 2])]
        assert (np.diff(times) >= 0).all()
        before = shop.histories.of(user).tolist() if user < shop.histories.n_users else []
        after = iter(histories.of(user).tolist())
        assert all(item in after for item in before), "what stands keeps its order"
    again = join(joined.shop, news, {}, 0, anew=False)
    assert not again.changed
    assert again.known == len(new)
    assert again.shop.catalogue.raw_ids == joined.shop.catalogue.raw_ids


def shop_is_timed(shop: Shop) -> bool:
    return bool(shop.histories.timestamps_N.any()) or not len(shop.histories.items_N)


def test_without_a_clock_a_known_pair_is_known_and_new_ones_come_last() -> None:
    shop = shop_of([(0, 1, 1), (0, 2, 2), (1, 3, 1)], timed=False)
    news = purchases_of([(0, 2, 5), (0, 3, 6), (0, 0, 4), (3, 1, 2)])
    joined = join(shop, news, {}, 0, anew=False)
    assert joined.shop.histories.of(0).tolist() == [1, 2, 0, 3]
    assert joined.shop.raw_users[3] == "u3"
    assert not joined.shop.histories.timestamps_N.any()
    assert (joined.added, joined.known) == (3, 1)
    assert not join(joined.shop, news, {}, 0, anew=False).changed


def test_times_are_needed_where_there_are_some() -> None:
    news = purchases_of([(0, 1, 1)])
    untimed = Purchases(news.users, news.items, news.user_N, news.item_N, news.time_N, timed=False)
    with pytest.raises(DataError, match=r"^interactions: timestamp is missing"):
        join(shop_of([(0, 1, 1)]), untimed, {}, 0, anew=False)


def test_words_go_to_new_items_and_to_known_ones_without_any() -> None:
    shop = shop_of([(0, 1, 1)])
    shop.catalogue.titles[1] = "old"
    records = {
        "i0": ItemText("zero", "b", ("x",), 2.0),
        "i1": ItemText("other"),
        "i2": ItemText(),
        "new": ItemText("new", price=3.0),
    }
    joined = join(shop, Purchases(), records, 0, anew=False)
    catalogue = joined.shop.catalogue
    assert catalogue.titles == ["zero", "old", "", "", "new"]
    assert (catalogue.categories[0], catalogue.prices[4]) == (["x"], 3.0)
    assert (joined.described, joined.differing, joined.n_new_items) == ([0], 1, 1)
    assert shop.catalogue.titles == ["", "old", "", ""], "what was given stays as it was"
    anew = join(shop, Purchases(), records, 0, anew=True)
    assert anew.shop.catalogue.titles[1] == "other"
    assert sorted(anew.described) == [0, 1]
    assert not join(anew.shop, Purchases(), records, 0, anew=True).changed


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 3), st.integers(2, 5), st.integers(0, 12))
def test_new_ids_are_unique_and_the_old_ones_stay(seed: int, levels: int, codes: int, n: int):
    rng = np.random.default_rng(seed)
    room = codes**levels
    known = rng.permutation(room)[: rng.integers(0, room + 1)]
    n = min(n, room - len(known))
    spelled = np.stack(np.unravel_index(known, (codes,) * levels), 1).astype(np.int32)
    books = rng.normal(size=(levels, codes, 3)).astype(np.float32)
    natural = rng.integers(0, codes, (n, levels)).astype(np.int32)
    latents = rng.normal(size=(n, 3)).astype(np.float32)
    got = placed(spelled, natural, latents, Quantizer(books), 0, seed)
    assert got.shape == (n, levels)
    together = np.concatenate([spelled, got])
    assert len(np.unique(together, axis=0)) == len(together)
    wanted = [tuple(row) for row in natural.tolist()]
    first = {tuple(row) for row in spelled.tolist()}
    for row, own in zip(wanted, got.tolist(), strict=True):
        if row not in first and wanted.count(row) == 1:
            assert tuple(own) == row, "a natural code that is free and one's own is kept"


def test_a_taken_code_moves_to_the_nearest_free_one() -> None:
    books = np.array([[[0.0], [10.0]], [[0.0], [1.0]], [[0.0], [0.3]]], np.float32)
    known = np.array([[0, 1, 0], [0, 1, 1]], np.int32)
    got = placed(known, known[:1].copy(), np.array([[1.05]], np.float32), Quantizer(books), 0, 0)
    assert got.tolist() == [[0, 0, 1]], "0.3 is the nearest to 1.05 that nobody has"


MALFORMED = {
    "gone.csv": (None, "no such file"),
    "empty.csv": ("", "empty.csv: is empty"),
    "header.csv": ("user,item,timestamp\n", "header.csv: holds no data lines"),
    "strange.xlsx": ("x", "unknown kind of table"),
    "columns.csv": ("who,what\na,b\n", "columns.user: no column 'user' (it has: what, who)"),
    "twice.csv": ("user,user\na,b\n", "column 'user' stands twice"),
    "bad.csv": ("user,item,timestamp\na,b,soon\n", "1 of 1 lines are malformed"),
    "short.csv": ("user,item,timestamp\na,b\n", "2 fields, expected 3"),
    "negative.csv": ("user,item,timestamp\na,b,-4\n", "timestamp is negative"),
    "far.csv": ("user,item,timestamp\na,b,9e99\n", "beyond the year 9999"),
    "blank.csv": ("user,item,timestamp\na,,4\n", "item is empty"),
    "list.jsonl": ("[1]\n", "not a JSON object"),
    "broken.jsonl": ('{"user": "a"\n', "not valid JSON"),
    "nan.jsonl": ('{"user": "a", "item": "b", "timestamp": NaN}\n', "NaN is no JSON number"),
    "null.jsonl": ('{"user": "a", "item": null, "timestamp": 1}\n', "item is missing"),
    "bool.jsonl": ('{"user": true, "item": "b", "timestamp": 1}\n', "user is not text"),
    "broken.parquet": ("PAR1", "not a readable parquet file"),
    "cut.csv.gz": (b"\x1f\x8b\x08\x00abc", "compressed data is cut off or corrupt"),
    "untyped.inter": ("user_id,item_id\n", "is not name:type"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_a_file_has_wrong_is_one_line(name: str, tmp_path: Path) -> None:
    content, wanted = MALFORMED[name]
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError) as caught:
        read_purchases(tmp_path / name, {}, 0.01)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("title\nx\n", "item_columns.item: no column 'item'"),
        ("item,title\n", "holds no data lines"),
        ("item,title\n,x\n", "item is empty"),
    ],
)
def test_what_an_items_file_has_wrong_is_one_line(text: str, wanted: str, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_records(path, {}, 0.01)
    assert wanted in str(caught.value)


def test_tables_are_read_under_other_names_and_in_the_order_of_their_times(tmp_path: Path) -> None:
    path = tmp_path / "sales.tsv"
    path.write_text("who\tsku\tat\nb\tx\t2024-01-02\na\ty\t1704067200\na\tx\t1704067200000\n")
    columns = {"user": "who", "item": "sku", "timestamp": "at"}
    news, intake = read_purchases(path, columns, 0.0)
    rows = zip(news.user_N, news.item_N, news.time_N, strict=True)
    assert [(news.users[u], news.items[i], int(t)) for u, i, t in rows] == [
        ("a", "y", 1_704_067_200),
        ("a", "x", 1_704_067_200),
        ("b", "x", 1_704_153_600),
    ]
    assert (intake.lines, intake.rejected, news.timed) == (3, 0, True)
    frame = pl.DataFrame({"user": ["a"], "item": [7], "timestamp": [datetime(2024, 1, 2)]})
    frame.write_parquet(tmp_path / "sales.parquet")
    news, _ = read_purchases(tmp_path / "sales.parquet", {}, 0.0)
    assert (news.users, news.items, news.time_N.tolist()) == (["a"], ["7"], [1_704_153_600])
    items = tmp_path / "items.jsonl"
    items.write_text('{"sku": 7, "title": "Seven", "categories": ["a", "b"]}\n')
    records, _ = read_records(items, {"item": "sku"}, 0.0)
    assert records == {"7": ItemText("Seven", categories=("a", "b"), price=records["7"].price)}
