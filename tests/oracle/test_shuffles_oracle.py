"""Oracle: shuffling many users' ties at once equals one NumPy generator for each user."""

import numpy as np
import pytest

from diffgr2.data import shuffles
from diffgr2.data.shuffles import shuffled
from diffgr2.data.split import sorted_by
from diffgr2.streams import generator, key_of, keys_of, words

NAMES = ["", "a", "A", "ü 名", "u" * 300, "1"]


def test_keys_of_many_texts_are_those_of_each() -> None:
    assert keys_of(NAMES, 3, "x", -1).tolist() == [key_of(3, "x", -1, name) for name in NAMES]
    assert keys_of([], "x").tolist() == []


@pytest.mark.parametrize("counts", [[0, 1, 2, 7, 8, 9], [40, 0, 0, 16, 1, 0], [0] * 6])
def test_words_are_the_first_draws_of_each_generator(counts: list[int]) -> None:
    drawn = [
        generator(5, "w", name).integers(1 << 32, size=n, dtype=np.uint32)
        for name, n in zip(NAMES, counts, strict=True)
    ]
    found = words(keys_of(NAMES, 5, "w"), np.array(counts))
    assert found.tolist() == np.concatenate(drawn).tolist()


def one_by_one(n: int, spans: list[list[int]], names: list[str]) -> list[int]:
    order, stream, current = np.arange(n), None, None
    for name, (start, end) in zip(names, spans, strict=True):
        if stream is None or name != current:
            current, stream = name, generator(7, "t", name)
        order[start:end] = order[start:end][stream.permutation(end - start)]
    return order.tolist()


@pytest.mark.parametrize("at_once", [3, 1 << 16])
@pytest.mark.parametrize("spare", [0, 8])
def test_every_user_has_the_order_of_a_generator_of_its_own(
    at_once: int, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long spans, users with many of them or who need more numbers than were drawn, untied rows."""
    monkeypatch.setattr(shuffles, "AT_ONCE", at_once)
    monkeypatch.setattr(shuffles, "SPARE", spare)
    rng = np.random.default_rng(0)
    names = sorted(f"user {n}" for n in rng.integers(0, 200, 600).tolist())
    length_S = 1 + rng.geometric(0.5, 600)
    length_S[::97] = rng.integers(40, 200, len(length_S[::97]))
    begin_S = np.cumsum(length_S + rng.integers(0, 3, 600)) - length_S
    spans_S2 = np.stack([begin_S, begin_S + length_S], 1)
    n = int(spans_S2[-1, 1]) + 2
    found = shuffled(n, spans_S2, names, 7, "t").tolist()
    assert found == one_by_one(n, spans_S2.tolist(), names)
    assert found != list(range(n))


def test_nothing_tied_stays() -> None:
    assert shuffled(4, np.empty((0, 2), np.int64), [], 7, "t").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("largest", [3, 1 << 20, 1 << 40, 1 << 62])
@pytest.mark.parametrize("rows", [1, 2, 500])
def test_columns_packed_into_one_number_sort_as_columns_do(largest: int, rows: int) -> None:
    """Few values and many, below 0 as well; the last column ascends, falls or does neither."""
    rng = np.random.default_rng(largest)
    one_N, two_N, three_N = (rng.integers(-3, largest, rows) for _ in range(3))
    few_N = rng.integers(0, 2, rows).astype(np.uint32)
    for last_N in (np.arange(rows), -np.arange(rows), three_N, np.zeros(rows, int)):
        for columns in ((one_N, few_N, last_N), (few_N, one_N, two_N, last_N)):
            assert sorted_by(*columns).tolist() == np.lexsort(columns[::-1]).tolist()
