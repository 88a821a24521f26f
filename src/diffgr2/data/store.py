"""The data stage's directory: what a dataset is on disk and how it is read back.

Contract: `write_dataset(out, dataset)` writes `histories.safetensors`, `items.parquet`,
`users.parquet` and `report.json`, the same bytes for the same dataset; `read_dataset(directory)`
returns an equal `Dataset`, or raises an ArtifactError whose one line names the file that is missing
or unreadable; that the files are the ones written is for the manifest's hashes to say. Not here:
where the interactions come from (`data.records`) and how they are split (`data.split`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from diffgr2.artifacts import load_arrays, read_json, save_arrays, write_json
from diffgr2.errors import ArtifactError, first_line
from diffgr2.types import Catalogue, Histories

HISTORIES, ITEMS = "histories.safetensors", "items.parquet"
USERS, REPORT = "users.parquet", "report.json"

ITEM_COLUMNS = {  # field of `Catalogue`, type
    "raw_id": ("raw_ids", pl.String),
    "title": ("titles", pl.String),
    "brand": ("brands", pl.String),
    "categories": ("categories", pl.List(pl.String)),
    "price": ("prices", pl.Float64),
    "description": ("descriptions", pl.String),
}


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
    items = {
        column: _lists(column, catalogue.categories)
        if field == "categories"
        else pl.Series(column, getattr(catalogue, field), dtype=kind)
        for column, (field, kind) in ITEM_COLUMNS.items()
    }
    users = {"raw_id": pl.Series("raw_id", dataset.raw_users, dtype=pl.String)}
    for name, key, columns in ((ITEMS, "item", items), (USERS, "user", users)):
        table = pl.DataFrame(columns).with_row_index(key).cast({key: pl.Int32}).fill_nan(None)
        table.write_parquet(out / name, compression="zstd")
    write_json(out / REPORT, dataset.report)


def _lists(name: str, rows: Sequence[Sequence[str]]) -> pl.Series:
    """A column of lists of texts, many times faster than polars makes one of Python's lists."""
    count_R = np.fromiter(map(len, rows), np.int64, len(rows))
    row_N = np.repeat(np.arange(len(rows), dtype=np.uint32), count_R)
    texts = pl.Series(name, [text for row in rows for text in row], dtype=pl.String)
    full = pl.DataFrame({"row": row_N, name: texts}).group_by("row", maintain_order=True).agg(name)
    every = pl.DataFrame({"row": np.arange(len(rows), dtype=np.uint32)})
    return every.join(full, on="row", how="left", maintain_order="left")[name].fill_null([])


def _read_table(path: Path) -> pl.DataFrame:
    if not path.is_file():
        raise ArtifactError(f"{path}: file is missing")
    try:
        return pl.read_parquet(path)
    except (Exception, pl.exceptions.PanicException) as error:
        raise ArtifactError(f"{path}: not a readable parquet file ({first_line(error)})") from None


def _read_catalogue(directory: Path) -> Catalogue:
    items = _read_table(directory / ITEMS)
    fields: dict[str, Any] = {
        field: items[column].to_list() for column, (field, _) in ITEM_COLUMNS.items()
    }
    fields["prices"] = items["price"].fill_null(float("nan")).to_numpy()
    return Catalogue(**fields)


def read_dataset(directory: Path) -> Dataset:
    """Read back what `write_dataset` wrote."""
    catalogue = _read_catalogue(directory)
    arrays = load_arrays(directory / HISTORIES)
    return Dataset(
        Histories(arrays["offsets"], arrays["items"], arrays["timestamps"], len(catalogue)),
        catalogue,
        _read_table(directory / USERS)["raw_id"].to_list(),
        read_json(directory / REPORT),
    )
