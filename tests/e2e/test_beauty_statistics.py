"""The Amazon Beauty benchmark through the `table` importer: the published statistics, exactly."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from diffgr2.config import DataConfig
from diffgr2.data.records import import_dataset
from diffgr2.data.store import Dataset
from support.beauty import PLACE, needs_beauty

pytestmark = needs_beauty


def load(tie_order: str, seed: int = 0) -> Dataset:
    config = DataConfig(
        source="table",
        interactions=str(PLACE / "interactions.parquet"),
        items=str(PLACE / "items.parquet"),
        columns={"user": "user_id", "item": "item_id"},
        tie_order=tie_order,  # type: ignore[arg-type]
    )
    return import_dataset(config, seed)


@pytest.fixture(scope="module")
def by_file() -> Dataset:
    return load("file")


def test_the_published_statistics(by_file: Dataset) -> None:
    report = by_file.report
    assert report["users"] == by_file.histories.n_users == 22_363
    assert report["items"] == len(by_file.catalogue) == 12_101
    assert report["interactions"] == 198_502
    assert round(report["mean_length"], 2) == 8.88
    assert report["median_length"] == 6
    assert report["longest"] == 204
    assert report["tie_groups"] == 36_802
    assert report["same_time_users"] == 9_719
    assert report["unseen_test_targets"] == 138
    assert report["lines_rejected"] == report["duplicates_dropped"] == 0
    assert report["interactions_outside_core"] == 0, "the file is its own 5-core"


def test_text_is_as_complete_as_the_files(by_file: Dataset) -> None:
    catalogue = by_file.catalogue
    assert sum(not title for title in catalogue.titles) == 7
    assert round(by_file.report["share_brand"], 3) == 0.767
    assert all(catalogue.categories)
    assert np.isnan(catalogue.prices).all()


def test_the_file_order_is_the_benchmarks(by_file: Dataset) -> None:
    rows = pl.read_parquet(PLACE / "interactions.parquet").sort("user_id", "position")
    expected = rows.group_by("user_id", maintain_order=True).agg("item_id")
    raw = np.array([int(item) for item in by_file.catalogue.raw_ids])
    histories = {
        int(name): raw[by_file.histories.of(user)].tolist()
        for user, name in enumerate(by_file.raw_users)
    }
    assert histories == dict(expected.iter_rows())


def test_numbers_say_nothing_about_first_appearance(by_file: Dataset) -> None:
    # In the files, ids count by first appearance. 12,101 random places: standard deviation .009.
    raw = np.array([int(item) for item in by_file.catalogue.raw_ids])
    assert abs(np.corrcoef(raw, np.arange(len(raw)))[0, 1]) < 0.04


def test_a_shuffle_moves_same_day_items_only(by_file: Dataset) -> None:
    shuffled = load("shuffle")
    assert shuffled.raw_users == by_file.raw_users
    assert shuffled.catalogue.raw_ids == by_file.catalogue.raw_ids
    one, two = by_file.histories, shuffled.histories
    assert (one.offsets_U1 == two.offsets_U1).all()
    assert (one.timestamps_N == two.timestamps_N).all()
    owner_N = np.repeat(np.arange(one.n_users), one.lengths_U)
    order_one = np.lexsort((one.items_N, one.timestamps_N, owner_N))
    order_two = np.lexsort((two.items_N, two.timestamps_N, owner_N))
    assert (one.items_N[order_one] == two.items_N[order_two]).all()
    moved = (one.items_N[one.offsets_U1[1:] - 1] != two.items_N[two.offsets_U1[1:] - 1]).mean()
    assert 0.2 < moved < 0.4, "publicly reported: 29 % of the test targets change"
    for key in ("users", "items", "interactions", "tie_groups", "same_time_users"):
        assert by_file.report[key] == shuffled.report[key]
    assert by_file.report["split_sha256"] != shuffled.report["split_sha256"]


def test_the_split_has_one_digest_for_every_seed(by_file: Dataset) -> None:
    other = load("file", seed=5)
    assert other.catalogue.raw_ids != by_file.catalogue.raw_ids
    assert other.report == by_file.report
