"""The cache holds what was put into it, whoever joins, leaves or is copied meanwhile."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.model.cache import KeyValues

LAYERS, GROUPS, SIZE = 2, 2, 3
WIDTH = GROUPS * SIZE


def check(cache: KeyValues, model: list[np.ndarray]) -> None:
    """`model` has an array [layers * 2, S, W] per row."""
    assert cache.rows == len(model)
    for row, wanted in enumerate(model):
        found = np.concatenate(cache.tokens(row, cache.slots))
        assert np.array_equal(found[:, : wanted.shape[1]], wanted)
        assert not found[:, wanted.shape[1] :].any()
    if len(model) > 1:
        for number, array in enumerate(cache.arrays):
            for row, at in enumerate(cache.place):
                own = array[at] if number % 2 else array[at].swapaxes(1, 2)  # [G, S, E]
                flat = own.swapaxes(0, 1).reshape(cache.slots, WIDTH)
                assert np.array_equal(flat[: model[row].shape[1]], model[row][number])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_holds_what_was_put_into_it(data: st.DataObject) -> None:
    cache, model = KeyValues(LAYERS, GROUPS, SIZE), []
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    for _ in range(data.draw(st.integers(1, 8))):
        kinds = ["grow", *(["put", "keep", "copy", "scatter"] if model else [])]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "grow":
            more, slots = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 6))
            cache.grow(more, slots)
            model += [np.zeros((LAYERS * 2, 0, WIDTH), np.float32) for _ in range(more)]
            model = [padded(row, cache.slots) for row in model]
        elif kind == "put":
            row = data.draw(st.integers(0, len(model) - 1))
            start = data.draw(st.integers(0, cache.slots - 1))
            n = data.draw(st.integers(1, cache.slots - start))
            fresh = rng.random((LAYERS * 2, n, WIDTH), dtype=np.float32)
            cache.put(row, start, list(fresh[:, None]))
            model[row][:, start : start + n] = fresh
        elif kind == "keep":
            rows = data.draw(st.lists(st.integers(0, len(model) - 1), unique=True))
            cache.keep(sorted(rows))
            model = [model[row] for row in sorted(rows)]
        elif kind == "copy":
            row, source = (data.draw(st.integers(0, len(model) - 1)) for _ in range(2))
            cache.copy(row, source)
            model[row] = model[source].copy()
        elif len(model) > 1:
            slot_N = np.array([data.draw(st.integers(0, cache.slots - 1)) for _ in model])
            fresh = rng.random((LAYERS * 2, len(model), WIDTH), dtype=np.float32)
            cache.scatter(np.array(cache.place), slot_N, list(fresh))
            for row, slot in enumerate(slot_N):
                model[row][:, slot] = fresh[:, row]
        check(cache, model)


def padded(row: np.ndarray, slots: int) -> np.ndarray:
    """The same with zeros up to so many slots."""
    return np.pad(row, ((0, 0), (0, slots - row.shape[1]), (0, 0)))
