"""What an import was given that can hardly be meant is said; what it cannot use, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from diffgr2.config import DataConfig
from diffgr2.data.records import import_dataset
from diffgr2.data.store import Dataset
from diffgr2.errors import DataError

USERS, ITEMS = 12, 8
PAIRS = [(f"u{u}", f"i{(u * 3 + n) % ITEMS}") for u in range(USERS) for n in range(6)]


def write(path: Path, header: str, rows: list[tuple[Any, ...]]) -> str:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def load(interactions: str, **more: Any) -> Dataset:
    values = {"source": "table", "interactions": interactions, "k_core": 0, **more}
    return import_dataset(DataConfig.model_validate(values), 1)


def bought(folder: Path, rows: list[tuple[Any, ...]] | None = None) -> str:
    return write(folder / "log.csv", "user,item", PAIRS if rows is None else rows)


def texts(folder: Path, rows: list[tuple[Any, ...]], header: str = "item,title") -> str:
    return write(folder / "items.csv", header, rows)


def named(n: int = ITEMS) -> list[tuple[Any, ...]]:
    return [(f"i{i}", f"thing {i}") for i in range(n)]


def warnings(dataset: Dataset) -> list[str]:
    return dataset.report.get("warnings", [])


def test_nothing_is_said_of_what_is_well(tmp_path: Path) -> None:
    assert warnings(load(bought(tmp_path), items=texts(tmp_path, named()))) == []
    assert warnings(load(bought(tmp_path))) == []


def test_interactions_given_as_items_are_named(tmp_path: Path) -> None:
    log = bought(tmp_path)
    (found,) = warnings(load(log, items=log))
    assert found.startswith(
        "log.csv says no title, brand, category or description of any item, and"
    )
    assert "each item stands 9.0 times in it: is it the item file" in found


def test_columns_without_a_text_are_named(tmp_path: Path) -> None:
    rows = [(f"i{i}", "") for i in range(ITEMS)]
    (found,) = warnings(load(bought(tmp_path), items=texts(tmp_path, rows)))
    assert found == "items.csv has columns for title, but no text in them"


@pytest.mark.parametrize(("known", "said"), [(ITEMS, 0), (ITEMS - 1, 1), (1, 1)])
def test_items_without_a_record_are_counted(tmp_path: Path, known: int, said: int) -> None:
    found = warnings(load(bought(tmp_path), items=texts(tmp_path, named(known))))
    assert len(found) == said
    for line in found:
        assert line.startswith(f"{ITEMS - known} of {ITEMS} items (")
        assert "for example i" in line


def test_an_item_file_about_other_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(bought(tmp_path), items=texts(tmp_path, [("x1", "a"), ("x2", "b")]))
    assert str(caught.value) == (
        "items.csv: none of its 2 lines is about one of the 8 items of log.csv (there: i0, i1, i2)"
        "; do item_columns name the column of ids?"
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("more", [False, True], ids=["two columns", "an order's number"])
def test_identical_lines_without_a_clock_are_dropped_and_said(
    tmp_path: Path, kind: str, more: bool
) -> None:
    rows = [*PAIRS, *PAIRS[:20]]
    frame = pl.DataFrame(rows, schema=["user", "item"], orient="row")
    if more:  # the same purchase again is another line then
        frame = frame.with_row_index("order")
    path = tmp_path / f"log.{kind}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](
        path
    )
    dataset = load(str(path))
    assert len(dataset.histories.items_N) == len(rows) - (0 if more else 20)
    assert dataset.report["duplicates_dropped"] == (0 if more else 20)
    assert len(warnings(dataset)) == (0 if more else 1)
    assert len(load(str(path), repeats="keep").histories.items_N) == len(rows)


def test_a_position_or_a_clock_tells_repeats_apart(tmp_path: Path) -> None:
    rows = [(*pair, n) for n, pair in enumerate([*PAIRS, *PAIRS])]
    for word in ("position", "timestamp"):
        path = write(tmp_path / f"{word}.csv", f"user,item,{word}", rows)
        assert len(load(path).histories.items_N) == 2 * len(PAIRS)


def test_a_core_that_empties_says_which_would_not(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(bought(tmp_path), k_core=30)
    assert str(caught.value).endswith(
        "after the 30-core and users with fewer than 3 interactions (k_core: 6 would keep 12 users)"
    )
    rows = [(f"order{n}", item) for n, (_, item) in enumerate(PAIRS)]
    with pytest.raises(DataError, match=r"\(users have 1\.0 each: is `user` the right column\?\)"):
        load(bought(tmp_path, rows), k_core=5)


def test_a_core_that_takes_most_is_said(tmp_path: Path) -> None:
    many = [(f"v{n}", f"j{n % 90}") for n in range(300)]
    (found,) = warnings(load(bought(tmp_path, [*PAIRS, *many]), k_core=5))
    assert found.startswith("the 5-core takes 300 of 372 interactions away (81%)")


def test_orders_taken_for_items_are_said(tmp_path: Path) -> None:
    rows = [(user, f"order{n}") for n, (user, _) in enumerate(PAIRS)]
    (found,) = warnings(load(bought(tmp_path, rows)))
    assert found.endswith("is `item` the column of products, not of orders?")


def test_each_file_may_have_names_of_its_own(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "who,what", PAIRS)
    items = texts(tmp_path, named(), "code,label")
    both = {"user": "who", "item": "what"}
    of_items = {"item": "code", "title": "label"}
    dataset = load(log, items=items, columns=both, item_columns=of_items)
    assert dataset.catalogue.titles[0].startswith("thing")
    again = load(log, items=items, columns={"interactions": both, "items": of_items})
    assert again.report == dataset.report
    with pytest.raises(DataError, match=r"^items\.csv: columns\.item: no column 'what' \(it has: "
                       r"code, label; item_columns say its own names\)$"):  # fmt: skip
        load(log, items=items, columns=both)
    with pytest.raises(DataError, match=r"^items\.csv: item_columns\.item: no column 'id'"):
        load(log, items=items, columns=both, item_columns={"item": "id"})
