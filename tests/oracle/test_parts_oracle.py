"""Counts in parts, arrays in files, maps: the same bits as all at once in memory."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from diffgr2.artifacts import load_arrays, mapped_arrays, save_arrays
from diffgr2.candidates import pairs as counting
from diffgr2.candidates.moments import TimedCounts
from diffgr2.candidates.pairs import KINDS, PairCounts, first_purchases, pair_values
from diffgr2.candidates.pieces import Columns, Pieces
from diffgr2.errors import ArtifactError
from diffgr2.types import Histories


def histories(rng: np.random.Generator, users: int, items: int, longest: int) -> Histories:
    length_U = rng.integers(0, longest + 1, users)
    days = [np.sort(rng.integers(0, 400 * 86_400, n)) for n in length_U]
    item_N = rng.integers(0, items, int(length_U.sum())).astype(np.int32)
    time_N = np.concatenate([*days, np.empty(0)]).astype(np.int64)
    return Histories(np.append(0, np.cumsum(length_U)).astype(np.int64), item_N, time_N, items)


def whole(train: Histories, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs and their values, every pair of purchases in memory at once.

    The order in which shares are summed is the contract: by distance, the later item second before
    the other way round, then by user.
    """
    n, (key_M, position_M, day_M) = train.n_items, first_purchases(train)
    user_M, item_M = np.divmod(key_M, n)
    order = np.lexsort((position_M, user_M))
    user, item, day = user_M[order], item_M[order], day_M[order]
    keys, values = [np.empty(0, np.int64)], [np.empty((0, len(KINDS)), np.float32)]
    for distance in range(1, window + 1):
        inside = user[distance:] == user[:-distance]
        early, late = item[:-distance][inside], item[distance:][inside]
        days = (day[distance:] - day[:-distance])[inside]
        for first, second, sign in ((early, late, 1), (late, early, -1)):
            steps = np.full(len(first), sign * distance)
            keys.append(first * n + second)
            values.append(np.stack(pair_values(steps, sign * days, window, list(KINDS)), 1))
    pair_P, row_R = np.unique(np.concatenate(keys), return_inverse=True)
    value_RV = np.concatenate(values).astype(np.float64)
    sums = [np.bincount(row_R, value_RV[:, v], len(pair_P)) for v in range(len(KINDS))]
    return pair_P, np.stack(sums, 1).astype(np.float32)


def same(one: np.ndarray, two: np.ndarray) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and one.tobytes() == two.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000), st.integers(1, 25), st.integers(2, 12), st.sampled_from([1, 4, 20]),
    st.sampled_from([1, 7, 100]),
)  # fmt: skip
def test_counts_in_parts_are_the_counts_of_all(
    tmp_path_factory: pytest.TempPathFactory, seed: int, users: int, items: int, window: int,
    part: int,
) -> None:  # fmt: skip
    train = histories(np.random.default_rng(seed), users, items, 15)
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "PART", part)
        held, filed = (PairCounts.build(train, window, work=place) for place in (None, work))
        timed = [TimedCounts.build(train, window, tuple(KINDS), place) for place in (None, work)]
    wanted = whole(train, window)
    for found in (held, filed):
        assert same(found.pair_P, wanted[0])
        assert same(found.value_PV, wanted[1])
    at_once = TimedCounts.build(train, window, tuple(KINDS))
    for found in timed:
        for name in ("pair_P", "when_P", "sum_P1V"):
            assert same(getattr(found, name), getattr(at_once, name))
    assert (np.diff(at_once.pair_P) >= 0).all()


def test_many_parts_were_made_above(monkeypatch: pytest.MonkeyPatch) -> None:
    train = histories(np.random.default_rng(1), 25, 12, 15)
    monkeypatch.setattr(counting, "PART", 7)
    parts = [near.key_R // 12 for near in counting.near_pairs(12, 20, *first_purchases(train))]
    assert len(parts) > 5
    seen = [{*part.tolist()} for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen)), "an item stands in two parts"


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3), "zz": np.arange(3, dtype=np.int64),
    "é": np.array([True, False, True]), "none": np.empty((0, 4), np.float64),
    "b": np.arange(5, dtype=np.uint8), "c": np.asfortranarray(np.eye(3, dtype=np.int32)),
    "h": np.ones(3, np.float16),
}  # fmt: skip


def test_arrays_are_written_as_the_library_writes_them(tmp_path: Path) -> None:
    for names in (["a"], ["b", "zz", "a"], ["none"], list(ARRAYS)):
        chosen = {name: ARRAYS[name] for name in names}
        save_arrays(tmp_path / "x.safetensors", **chosen)
        wanted = save({name: np.ascontiguousarray(array) for name, array in chosen.items()})
        assert (tmp_path / "x.safetensors").read_bytes() == wanted


def test_a_map_holds_what_was_saved_and_cannot_be_changed(tmp_path: Path) -> None:
    save_arrays(tmp_path / "x.safetensors", **ARRAYS)
    loaded, mapped = (f(tmp_path / "x.safetensors") for f in (load_arrays, mapped_arrays))
    assert loaded.keys() == mapped.keys() == ARRAYS.keys()
    for name, array in loaded.items():
        assert same(array, mapped[name])
        assert not mapped[name].flags.writeable


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_what_is_no_whole_file_is_one_line(tmp_path: Path, left: int) -> None:
    path = tmp_path / "x.safetensors"
    save_arrays(path, **ARRAYS)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ArtifactError, match="not a readable safetensors file"):
        mapped_arrays(path)
    path.unlink()
    with pytest.raises(ArtifactError, match="file is missing"):
        mapped_arrays(path)


def _open(path: Path, pipe: Any) -> None:
    before = _own_kb()
    array = mapped_arrays(path)["a"]
    pipe.send((int(array.sum(dtype=np.int64)), _own_kb() - before))
    pipe.recv()


def _own_kb() -> int:
    """Memory that no other process shares: private pages, by the kernel's account."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_two_processes_share_the_pages_of_a_map(tmp_path: Path) -> None:
    size = 64 * 2**20
    save_arrays(tmp_path / "x.safetensors", a=np.ones(size, np.uint8))
    context = multiprocessing.get_context("spawn")
    holder = mapped_arrays(tmp_path / "x.safetensors")["a"]
    assert int(holder.sum(dtype=np.int64)) == size
    ours, theirs = context.Pipe()
    started = context.Process(target=_open, args=(tmp_path / "x.safetensors", theirs))
    started.start()
    total, grown_kb = ours.recv()
    ours.send(None)
    started.join()
    assert total == size
    assert grown_kb < size / 1024 / 4, "the second process holds a copy of its own"


@pytest.mark.parametrize("filed", [False, True])
def test_pieces_make_the_whole(tmp_path: Path, filed: bool) -> None:
    pieces = Pieces(tmp_path / "p.bin" if filed else None)
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    for part in (rows[:1], rows[:0], rows[1:]):
        pieces.add(part)
    assert same(pieces.whole(np.empty((0, 3), np.float32)), rows)
    empty = Pieces(tmp_path / "q.bin" if filed else None)
    assert same(empty.whole(np.empty((0, 3), np.float32)), rows[:0])


def test_columns_give_back_lists_and_fields(tmp_path: Path) -> None:
    value_LKF = np.random.default_rng(0).normal(size=(7, 3, 4)).astype(np.float32)
    columns = Columns(tmp_path / "c.bin", *value_LKF.shape)
    for begin in (0, 2, 4, 6):
        columns.put(begin, value_LKF[begin : begin + 2])
    for f in range(4):
        assert same(np.ascontiguousarray(columns.field(f)), value_LKF[..., f].copy())
    for step in (1, 3, 7, 50):
        assert same(np.concatenate([*columns.parts(step)]), value_LKF)
