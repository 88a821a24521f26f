"""A dataset as a bundle holds it: named arrays, which open fast and need no table library.

Contract: `pack(out, dataset)` writes `items.safetensors`, `users.safetensors` and
`histories.safetensors`, the same bytes for the same dataset; `unpack(directory)` returns the
histories, the catalogue and the raw user ids, equal to the dataset's, or raises an ArtifactError
whose one line names the file. A column of texts is its UTF-8 bytes and where each text ends. Not
here: the stages' own tables (`store`), and whether ids are unique (`rerank.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from diffgr2.artifacts import load_arrays, mapped_arrays, save_arrays
from diffgr2.errors import ArtifactError
from diffgr2.types import Catalogue, Histories

ITEMS, USERS, HISTORIES = "items.safetensors", "users.safetensors", "histories.safetensors"

T = TypeVar("T")


class Packable(Protocol):
    """A dataset, wherever it comes from."""

    @property
    def histories(self) -> Histories: ...

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def raw_users(self) -> list[str]: ...


Arrays = dict[str, np.ndarray]

COLUMNS = {"raw_id": "raw_ids", "title": "titles", "brand": "brands", "description": "descriptions"}
"""Names of columns, and the fields of `Catalogue` that hold their texts."""


def packed_texts(name: str, texts: Sequence[str]) -> Arrays:
    """A column of texts as two arrays."""
    encoded = [text.encode() for text in texts]
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_starts": starts}


def texts_of(name: str, arrays: Arrays) -> list[str]:
    """The texts of a column; a ValueError says what is wrong."""
    data, starts = arrays[name].tobytes(), _starts(name, arrays, arrays[name].nbytes)
    try:
        return [data[start:end].decode() for start, end in pairwise(starts)]
    except UnicodeDecodeError:
        raise ValueError(f"{name}: not UTF-8") from None


def _starts(name: str, arrays: Arrays, total: int) -> list[int]:
    """Where each entry of a column begins, and where the last one ends."""
    starts = arrays[f"{name}_starts"]
    whole = starts.dtype == np.int64 and starts.ndim == 1 and len(starts) > 0
    if not whole or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        raise ValueError(f"{name}: its entries do not follow each other")
    return starts.tolist()


def pack(out: Path, dataset: Packable) -> None:
    """Write the dataset's files into an existing directory."""
    catalogue, histories = dataset.catalogue, dataset.histories
    items: Arrays = {"price": catalogue.prices.astype(np.float64)}
    for column, field in COLUMNS.items():
        items |= packed_texts(column, getattr(catalogue, field))
    # Paths are runs of names.
    items |= packed_texts("category", [name for path in catalogue.categories for name in path])
    items["path_starts"] = np.cumsum([0, *map(len, catalogue.categories)], dtype=np.int64)
    save_arrays(out / ITEMS, **items)
    save_arrays(out / USERS, **packed_texts("raw_id", dataset.raw_users))
    save_arrays(
        out / HISTORIES,
        offsets=histories.offsets_U1.astype(np.int64),
        items=histories.items_N.astype(np.int32),
        timestamps=histories.timestamps_N.astype(np.int64),
    )


def unpack(directory: Path, *, mapped: bool = False) -> tuple[Histories, Catalogue, list[str]]:
    """Read back what `pack` wrote; `mapped`: histories stay in the file, which processes share."""
    catalogue = _read(directory / ITEMS, _catalogue)
    raw_users = _read(directory / USERS, lambda arrays: texts_of("raw_id", arrays))
    histories = _read(
        directory / HISTORIES,
        lambda arrays: Histories(
            arrays["offsets"], arrays["items"], arrays["timestamps"], len(catalogue)
        ),
        mapped_arrays if mapped else load_arrays,
    )
    return histories, catalogue, raw_users


def _read(
    path: Path, made: Callable[[Arrays], T], read: Callable[[Path], Arrays] = load_arrays
) -> T:
    """What is made of a file's arrays; whatever is wrong with them names the file."""
    try:
        return made(read(path))
    except KeyError as error:
        raise ArtifactError(f"{path}: {error.args[0]} is missing") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}") from None


def _catalogue(arrays: Arrays) -> Catalogue:
    columns = {field: texts_of(column, arrays) for column, field in COLUMNS.items()}
    names, prices_I = texts_of("category", arrays), arrays["price"]
    starts = _starts("path", arrays, len(names))
    paths = [names[start:end] for start, end in pairwise(starts)]
    sizes = {len(paths), len(prices_I), *map(len, columns.values())}
    if len(sizes) > 1 or prices_I.dtype != np.float64 or prices_I.ndim != 1:
        raise ValueError("its columns are not of the same items")
    return Catalogue(categories=paths, prices=prices_I, **columns)
