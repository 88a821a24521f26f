"""The data stage's directory: what a dataset is on disk and how it is read back.

Contract: `write_dataset(out, dataset)` writes `histories.safetensors`, `items.parquet`,
`users.parquet` and `report.json`, the same bytes for the same dataset; `read_dataset(directory)`
returns an equal `Dataset`, or raises an ArtifactError whose one line names the file that is missing
or unreadable; that the files are the ones written is for the manifest's hashes to say. Not here:
where the interactions come from (`data.records`) and how they are split (`data.split`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.errors import ArtifactError, first_line
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


def _read_table(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise ArtifactError(f"{path}: file is missing")
    try:
        return pl.read_parquet(path)
    except (Exception, pl.exceptions.PanicException) as error:
        raise ArtifactError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def read_catalogue(directory: Path) -> Catalogue:
    """The items alone."""
    items = _read_table(directory / ITEMS)
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
    catalogue = read_catalogue(directory)
    arrays = load_arrays(directory / HISTORIES)
    return Dataset(
        Histories(arrays["offsets"], arrays["items"], arrays["timestamps"], len(catalogue)),
        catalogue,
        _read_table(directory / USERS)["raw_id"].to_list(),
        read_json(directory / REPORT),
    )
