"""The data stage's directory: what a dataset is on disk and how it is read back.

Contract: `write_dataset(out, dataset)` writes `histories.safetensors`, `items.parquet`,
`users.parquet` and `report.json`, the same bytes for the same dataset; `read_dataset(directory)`
returns an equal `Dataset` or raises an ArtifactError whose one line names the file. Sizes and
ranges are checked on reading, so that whoever holds a `Dataset` need not check again. Not here:
where the rows come from (`data.records`) and how they are split (`data.split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.errors import ArtifactError
from diffgr2.types import Catalogue, Histories

HISTORIES, ITEMS, USERS, REPORT = (
    "histories.safetensors",
    "items.parquet",
    "users.parquet",
    "report.json",
)

ITEM_SCHEMA = {
    "item": pl.Int32,
    "raw_id": pl.String,
    "title": pl.String,
    "brand": pl.String,
    "categories": pl.List(pl.String),
    "price": pl.Float64,
    "description": pl.String,
}
USER_SCHEMA = {"user": pl.Int32, "raw_id": pl.String}


@dataclass(frozen=True)
class Dataset:
    """Histories in order, what is known of the items, and how they came to be."""

    histories: Histories
    catalogue: Catalogue
    raw_users: list[str]  # raw id of each user number
    report: dict[str, Any]  # JSON-serialisable statistics


def write_dataset(out: Path, dataset: Dataset) -> None:
    """Write the dataset's files into an existing directory."""
    histories, catalogue = dataset.histories, dataset.catalogue
    save_arrays(
        out / HISTORIES,
        offsets=histories.offsets_U1.astype(np.int64),
        items=histories.items_N.astype(np.int32),
        timestamps=histories.timestamps_N.astype(np.int64),
    )
    items = pl.DataFrame(
        {
            "item": np.arange(len(catalogue), dtype=np.int32),
            "raw_id": catalogue.raw_ids,
            "title": catalogue.titles,
            "brand": catalogue.brands,
            "categories": catalogue.categories,
            "price": np.asarray(catalogue.prices, dtype=np.float64),
            "description": catalogue.descriptions,
        },
        schema=ITEM_SCHEMA,
    ).with_columns(pl.col("price").fill_nan(None))
    items.write_parquet(out / ITEMS, compression="zstd")
    users = np.arange(len(dataset.raw_users), dtype=np.int32)
    pl.DataFrame({"user": users, "raw_id": dataset.raw_users}, schema=USER_SCHEMA).write_parquet(
        out / USERS, compression="zstd"
    )
    write_json(out / REPORT, dataset.report)


def _read_histories(path: Path, n_users: int, n_items: int) -> Histories:
    arrays = load_arrays(path)
    for name in ("offsets", "items", "timestamps"):
        if name not in arrays:
            raise ArtifactError(f"{path}: array {name!r} is missing")
        if arrays[name].ndim != 1 or arrays[name].dtype.kind != "i":
            raise ArtifactError(f"{path}: array {name!r} is not a row of integers")
    offsets_U1, items_N, timestamps_N = arrays["offsets"], arrays["items"], arrays["timestamps"]
    if len(offsets_U1) != n_users + 1:
        raise ArtifactError(
            f"{path}: {len(offsets_U1) - 1} histories for {n_users} users in {USERS}"
        )
    if offsets_U1[0] != 0 or offsets_U1[-1] != len(items_N) or len(timestamps_N) != len(items_N):
        raise ArtifactError(f"{path}: offsets, items and timestamps do not fit together")
    if (np.diff(offsets_U1) < 0).any():
        raise ArtifactError(f"{path}: offsets go backwards")
    if len(items_N) and (items_N.min() < 0 or items_N.max() >= n_items):
        raise ArtifactError(f"{path}: an item number is outside 0..{n_items - 1}")
    return Histories(
        offsets_U1.astype(np.int64),
        items_N.astype(np.int32),
        timestamps_N.astype(np.int64),
        n_items,
    )


def read_table(path: Path, schema: dict[str, Any], key: str) -> pl.DataFrame:
    """A parquet file of this schema whose `key` column counts 0, 1, 2, ..."""
    if not path.is_file():
        raise ArtifactError(f"{path}: file is missing")
    try:
        table = pl.read_parquet(path)
    except (Exception, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArtifactError(f"{path}: not a readable parquet file ({reason})") from None
    for name, kind in schema.items():
        if name not in table.columns:
            raise ArtifactError(f"{path}: column {name!r} is missing")
        if table.schema[name] != kind:
            raise ArtifactError(f"{path}: column {name!r} is {table.schema[name]}, expected {kind}")
        if name != "price" and table[name].null_count():
            raise ArtifactError(f"{path}: column {name!r} has empty cells")
    if not np.array_equal(table[key].to_numpy(), np.arange(len(table))):
        raise ArtifactError(f"{path}: column {key!r} does not count from 0")
    return table


def read_catalogue(directory: Path) -> Catalogue:
    """The items alone."""
    items = read_table(directory / ITEMS, ITEM_SCHEMA, "item")
    return Catalogue(
        raw_ids=items["raw_id"].to_list(),
        titles=items["title"].to_list(),
        brands=items["brand"].to_list(),
        categories=items["categories"].to_list(),
        prices=items["price"].fill_null(float("nan")).to_numpy(),
        descriptions=items["description"].to_list(),
    )


def read_dataset(directory: Path) -> Dataset:
    """Read back what `write_dataset` wrote."""
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory")
    catalogue = read_catalogue(directory)
    raw_users = read_table(directory / USERS, USER_SCHEMA, "user")["raw_id"].to_list()
    histories = _read_histories(directory / HISTORIES, len(raw_users), len(catalogue))
    report = read_json(directory / REPORT)
    if not isinstance(report, dict):
        raise ArtifactError(f"{directory / REPORT}: not a report")
    return Dataset(histories, catalogue, raw_users, report)
