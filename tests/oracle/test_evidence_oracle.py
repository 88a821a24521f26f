"""Evidence equals a slow count over the train part without the list's own user."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import numpy as np
import pytest

from diffgr2.candidates.fields import COUNTED, TITLED, names_of
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.retrieval import prefixes
from diffgr2.choices import MOMENT
from diffgr2.config import EvidenceConfig
from diffgr2.rerank.names import Seats, Stranger
from diffgr2.types import Catalogue, Histories

NAMES = names_of(COUNTED)

DAY = 86_400
USERS, ITEMS, K = 24, 15, 5


def made(seed: int) -> tuple[Histories, Catalogue, np.ndarray]:
    """Random histories with repeats and same-day ties, and a catalogue with gaps."""
    rng = np.random.default_rng(seed)
    rows, stamps = [], []
    for _ in range(USERS):
        length = int(rng.integers(5, 14))
        rows.append(rng.integers(0, ITEMS, length))
        stamps.append(np.sort(rng.integers(0, 12, length) * 15) * DAY)
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    items, times = np.concatenate(rows).astype(np.int32), np.concatenate(stamps).astype(np.int64)
    brands = [["", "a", "b", "c"][i] for i in rng.integers(0, 4, ITEMS)]
    words = ["red", "soap", "set", "of", "Two", "for-men", "50", "ml"]
    titles = [" ".join(rng.choice(words, rng.integers(0, 6))) for _ in range(ITEMS)]
    paths = [["x", f"y{i % 3}", f"z{i % 5}"][: int(rng.integers(0, 4))] for i in range(ITEMS)]
    blank = [""] * ITEMS
    catalogue = Catalogue(
        [str(i) for i in range(ITEMS)], titles, brands, paths, np.ones(ITEMS), blank
    )
    return Histories(offsets, items, times, ITEMS), catalogue, rng.normal(size=(ITEMS, 4))


class Slow:
    """The definitions of the fields, one purchase at a time."""

    def __init__(self, train: Histories, without: int, window: int) -> None:
        self.n_users = train.n_users
        self.users: dict[int, dict[int, tuple[int, int]]] = {}  # user -> item -> (position, day)
        for user in range(train.n_users):
            if user == without:
                continue
            first: dict[int, tuple[int, int]] = {}
            start = train.offsets_U1[user]
            for at, item in enumerate(train.of(user).tolist()):
                if item not in first:
                    first[item] = (len(first), int(train.timestamps_N[start + at]) // DAY)
            self.users[user] = first
        self.together: dict[tuple[int, int], float] = defaultdict(float)
        self.forward: dict[tuple[int, int], float] = defaultdict(float)
        self.session: dict[tuple[int, int], float] = defaultdict(float)
        self.adjacent: dict[tuple[int, int], float] = defaultdict(float)
        self.month: dict[tuple[int, int], float] = defaultdict(float)
        self.later: dict[tuple[int, int], float] = defaultdict(float)
        for first in self.users.values():
            for one, (p, day) in first.items():
                for two, (q, other) in first.items():
                    if one != two and abs(q - p) <= window:
                        self.together[one, two] += 1
                        after = 1 / (q - p) if q > p else 0.0
                        self.forward[one, two] += after
                        self.session[one, two] += after if day == other else 0.0
                        self.adjacent[one, two] += q == p + 1
                        self.month[one, two] += abs(day - other) <= 30
                        self.later[one, two] += math.exp((day - other) / 60) if other > day else 0

    def buyers(self, item: int) -> float:
        return sum(item in first for first in self.users.values())

    def sold_on(self, item: int) -> list[int]:
        return [first[item][1] for first in self.users.values() if item in first]


def title_cosine(catalogue: Catalogue, one: int, two: int) -> float:
    """Of the distinct words of two titles, rare ones weighing more."""
    bags = [set(re.findall(r"\w+", title.lower())) for title in catalogue.titles]

    def weight(word: str) -> float:
        return 1 + math.log((1 + len(bags)) / (1 + sum(word in bag for bag in bags)))

    lengths = [math.sqrt(sum(weight(word) ** 2 for word in bags[i])) for i in (one, two)]
    return sum(weight(word) ** 2 for word in bags[one] & bags[two]) / (math.prod(lengths) or 1.0)


def slow_more(slow: Slow, catalogue, history, item, weights, then, asked) -> dict:
    """The fields beyond the first ten."""
    pairs = list(zip(history, weights, strict=True))
    buyers = {h: max(slow.buyers(h), 0.5) for h in {*history, item}}

    def cosine(count: dict, h: int, c: int, *, back: bool = False) -> float:
        value = count[c, h] if back else count[h, c]
        return value / math.sqrt(buyers[h] * buyers[c])

    def last(count: dict, **how: bool) -> float:
        return cosine(count, history[-1], item, **how) if history else 0.0

    brand, day = catalogue.brands[item], then // DAY
    before = [day - sold for sold in slow.sold_on(item) if sold < day]
    now = [asked // DAY - sold for sold in slow.sold_on(item) if sold < asked // DAY]
    return {
        "title": max([title_cosine(catalogue, h, item) for h in history], default=0.0),
        "title_last": title_cosine(catalogue, history[-1], item) if history else 0.0,
        "after": sum(w * cosine(slow.forward, h, item) for h, w in pairs),
        "buyers": slow.buyers(item),
        "fresh": (1 / min(before) if before else 0.0) if then else math.nan,
        "before_last": last(slow.forward, back=True),
        "before": sum(w * cosine(slow.forward, h, item, back=True) for h, w in pairs),
        "right_after": last(slow.adjacent),
        "month": sum(w * cosine(slow.month, h, item) for h, w in pairs),
        "later": sum(w * cosine(slow.later, h, item) for h, w in pairs),
        "trend": sum(days <= 90 for days in before) if then else math.nan,
        "range": sum(brand == other for other in catalogue.brands) if brand else 0,
        "away": max(asked // DAY - day, 0) if then and asked else math.nan,
        "buyers_now": len(now) if asked else math.nan,
        "fresh_now": (1 / min(now) if now else 0.0) if asked else math.nan,
        "trend_now": sum(days <= 90 for days in now) if asked else math.nan,
    }


def slow_fields(
    slow: Slow, catalogue, vectors, history, item, rank, gap, decay, then, asked
) -> dict:
    weights = [decay ** (len(history) - 1 - i) for i in range(len(history))]
    pairs = list(zip(history, weights, strict=True))
    total = max(sum(weights), 1e-9)
    buyers = {h: max(slow.buyers(h), 0.5) for h in {*history, item}}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    path = catalogue.categories[item]

    def like(h: int) -> float:
        other = catalogue.categories[h]
        shared = 0
        for a, b in zip(path, other, strict=False):
            if a != b:
                break
            shared += 1
        return shared / max(len(path), len(other), 1)

    copurchase = sum(w * slow.together[h, item] for h, w in pairs)
    expected = sum(w * buyers[h] for h, w in pairs) * buyers[item] / slow.n_users
    newest = history[-1] if history else None
    brand = catalogue.brands[item]
    return {
        "rank": rank,
        "gap": gap,
        "copurchase": copurchase,
        "lift": copurchase / max(expected, 1e-9),
        "last": slow.together[newest, item] / math.sqrt(buyers[newest] * buyers[item])
        if history
        else 0.0,
        "next": sum(w * slow.forward[h, item] for h, w in pairs),
        "session": slow.session[newest, item] if history else 0.0,
        "brand": sum(w for h, w in pairs if brand and catalogue.brands[h] == brand) / total,
        "category": sum(w * like(h) for h, w in pairs) / total,
        "text": sum(w * float(unit[h] @ unit[item]) for h, w in pairs) / total,
        **slow_more(slow, catalogue, history, item, weights, then, asked),
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("leave_out", [True, False])
def test_features_equal_a_slow_count_without_the_own_user(seed: int, leave_out: bool) -> None:
    histories, catalogue, vectors = made(seed)
    rng = np.random.default_rng(seed + 100)
    config = EvidenceConfig(history=5, decay=0.7, fields=None, moment=True)
    train = histories.train_part()
    index = EvidenceIndex.build(train, catalogue, vectors.astype(np.float32), config)
    assert index.names == NAMES
    user_L = np.repeat(np.arange(USERS), 2)[:30]
    end_L = np.array([rng.integers(1, histories.lengths_U[u]) for u in user_L])
    end_L[-1] = 0  # nothing was bought, so nobody knows when
    items_LK = np.stack([rng.permutation(ITEMS)[:K] for _ in user_L]).astype(np.int32)
    scores_LK = -np.sort(-rng.normal(size=items_LK.shape).astype(np.float32), axis=1)
    queries = prefixes(histories, user_L, end_L)
    asked_L = rng.integers(0, 200, len(user_L)) * DAY
    asked_L[0] = -1  # nobody knows when
    excluded = user_L if leave_out else None
    features = index.features(queries, items_LK, scores_LK, excluded, None, asked_L)
    for row in range(len(user_L)):
        slow = Slow(train, int(user_L[row]) if leave_out else -1, config.history)
        history = queries.of(row).tolist()[-config.history :]
        then = int(queries.timestamps_N[queries.offsets_U1[row + 1] - 1]) if history else 0
        for k in range(K):
            gap = float(scores_LK[row, 0] - scores_LK[row, k])
            item = int(items_LK[row, k])
            given = (history, item, k, gap, config.decay, then, max(int(asked_L[row]), 0))
            slowly = slow_fields(slow, catalogue, vectors, *given)
            wanted = pytest.approx([slowly[n] for n in NAMES], rel=1e-4, abs=1e-5, nan_ok=True)
            assert features[row, k].tolist() == wanted


STRANGERS = (
    Stranger("one", "b", ("x", "y1")),
    Stranger("two", "never seen", ("x", "new", "newer")),
    Stranger("three", "", ()),
    Stranger("four", "a", ("x", "y0", "z0", "deeper than any path")),
)


@pytest.mark.parametrize("seed", [0, 1])
def test_strangers_count_as_items_of_the_catalogue_that_nobody_bought(seed: int) -> None:
    histories, catalogue, vectors = made(seed)
    rng = np.random.default_rng(seed)
    # Words of titles and sizes of brands tell what the catalogue is, not who bought what.
    chosen: list = [name for name in NAMES if name not in (*TITLED, "range", *MOMENT)]
    config = EvidenceConfig(history=5, decay=0.7, fields=chosen)
    train = histories.train_part()
    vectors = vectors.astype(np.float32)
    index = EvidenceIndex.build(train, catalogue, vectors, config)
    vectors_SE = rng.normal(size=(len(STRANGERS), 4)).astype(np.float32)
    seated = Seats(index, catalogue).seat(STRANGERS, vectors_SE)

    paths = [list(s.categories)[:3] for s in STRANGERS]  # as deep as the catalogue knows any
    total = ITEMS + len(STRANGERS)
    wider = Catalogue(
        [str(i) for i in range(total)],
        [""] * total,
        # A brand that no item has is an unknown brand.
        [*catalogue.brands, *(s.brand * (s.brand in catalogue.brands) for s in STRANGERS)],
        [*catalogue.categories, *paths],
        np.ones(total),
        [""] * total,
    )
    known = Histories(train.offsets_U1, train.items_N, train.timestamps_N, total)
    both = np.concatenate([vectors, vectors_SE])
    wanted = EvidenceIndex.build(known, wider, both, config)

    users = np.arange(USERS)
    queries = prefixes(histories, users, histories.lengths_U - 1)
    items_N = queries.items_N.copy()
    items_N[rng.random(len(items_N)) < 0.2] = ITEMS + 1  # strangers stand in histories too
    queries = Histories(queries.offsets_U1, items_N, queries.timestamps_N, total)
    items_LK = np.stack([rng.permutation(total)[:K] for _ in users]).astype(np.int32)
    scores_LK = -np.sort(-rng.normal(size=items_LK.shape).astype(np.float32), axis=1)
    for user_L in (users, None):
        np.testing.assert_array_equal(
            seated.features(queries, items_LK, scores_LK, user_L),
            wanted.features(queries, items_LK, scores_LK, user_L),
        )


def test_seating_strangers_copies_nothing_and_leaves_known_items_their_bits() -> None:
    histories, catalogue, vectors = made(0)
    index = EvidenceIndex.build(
        histories.train_part(), catalogue, vectors.astype(np.float32), EvidenceConfig(history=5)
    )
    seats = Seats(index, catalogue)
    seated = seats.seat(STRANGERS, np.ones((len(STRANGERS), 4), np.float32))
    assert seats.seat([], np.empty((0, 4), np.float32)) is index
    for part in ("pairs", "attributes"):
        for name, value in vars(getattr(index, part)).items():
            assert getattr(getattr(seated, part), name) is value
    assert seated.newcomers is not None
    assert all(len(value) == len(STRANGERS) for value in vars(seated.newcomers).values())
    users = np.arange(USERS)
    queries = prefixes(histories, users, histories.lengths_U - 1)
    items_LK = np.tile(np.arange(K, dtype=np.int32), (USERS, 1))
    mixed_LK = items_LK.copy()
    mixed_LK[:, -1] = ITEMS
    scores_LK = np.zeros(items_LK.shape, np.float32)
    np.testing.assert_array_equal(
        seated.features(queries, mixed_LK, scores_LK)[:, :-1],
        index.features(queries, items_LK, scores_LK)[:, :-1],
    )
