"""A dataset packed into a bundle comes back equal, whatever its texts are."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffgr2.data.columnar import pack, unpack
from diffgr2.data.store import Dataset, read_dataset, write_dataset
from diffgr2.errors import ArtifactError
from diffgr2.types import Catalogue, Histories

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
price = st.floats(0, 1e9) | st.just(float("nan"))
items = st.tuples(texts, texts, texts, st.lists(texts, max_size=3), price, texts)


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    rows = draw(st.lists(items, min_size=1, max_size=6))
    ids, titles, brands, paths, prices, told = map(list, zip(*rows, strict=True))
    catalogue = Catalogue(ids, titles, brands, paths, np.array(prices), told)
    bought = draw(st.lists(st.lists(st.integers(0, len(ids) - 1), max_size=5), max_size=5))
    offsets_U1 = np.cumsum([0, *map(len, bought)]).astype(np.int64)
    items_N = np.array([item for row in bought for item in row], np.int32)
    times_N = np.arange(len(items_N), dtype=np.int64)
    users = draw(st.lists(texts, min_size=len(bought), max_size=len(bought)))
    return Dataset(Histories(offsets_U1, items_N, times_N, len(ids)), catalogue, users, {})


def assert_same(found: tuple[Histories, Catalogue, list[str]], dataset: Dataset) -> None:
    histories, catalogue, users = found
    assert users == dataset.raw_users
    for name, wanted in vars(dataset.catalogue).items():
        if name == "prices":
            np.testing.assert_array_equal(catalogue.prices, wanted)
        else:
            assert getattr(catalogue, name) == wanted, name
    for name, wanted in vars(dataset.histories).items():
        np.testing.assert_array_equal(getattr(histories, name), wanted, strict=name != "n_items")


@settings(max_examples=60, deadline=None)
@given(datasets())
def test_what_is_packed_comes_back_as_it_was(dataset: Dataset) -> None:
    with TemporaryDirectory() as folder:
        pack(Path(folder), dataset)
        assert_same(unpack(Path(folder)), dataset)


@settings(max_examples=15, deadline=None)
@given(datasets())
def test_a_bundle_knows_what_the_stage_knows(dataset: Dataset) -> None:
    with TemporaryDirectory() as folder:
        write_dataset(Path(folder), dataset)
        pack(Path(folder), read_dataset(Path(folder)))
        assert_same(unpack(Path(folder)), dataset)


def dataset() -> Dataset:
    catalogue = Catalogue(["a"], ["é"], [""], [["x", "y"]], np.array([np.nan]), ["…"])
    histories = Histories(np.array([0, 1]), np.array([0], np.int32), np.array([5]), 1)
    return Dataset(histories, catalogue, ["u"], {})


def test_the_same_dataset_gives_files_of_the_same_bytes_that_others_may_read(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pack(tmp_path / name, dataset())
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        (tmp_path / "plain").touch()
        assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["items", "users", "histories"])
@pytest.mark.parametrize("content", [None, b"", b"junk"])
def test_a_damaged_file_is_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    pack(tmp_path, dataset())
    path = tmp_path / f"{name}.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        unpack(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
