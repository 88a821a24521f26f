"""From a recipe's `data` section to a `Dataset`: which file is read how.

    amazon2014  reviews_*.json.gz (JSON lines), meta_*.json.gz (Python-dict lines)
    amazon2018  *.json.gz, meta_*.json.gz (JSON lines)
    amazon2023  *.jsonl[.gz] or the benchmark's csv `user_id,parent_asin,rating,timestamp...`,
                meta_*.jsonl[.gz]; items are keyed by parent_asin, times are milliseconds
    recbole     NAME.inter, NAME.item
    p5          sequential_data.txt (`user item item ...`, one user per line, oldest first; no
                clock: its order is the history), beside it, if at all, datamaps.json (`item2id`,
                `user2id` from raw ids to those numbers); metadata as in amazon2014
    table       csv, tsv, jsonl or parquet whose columns the recipe names
    lists       no interactions: histories come with a shop's own lists (`own_lists`)

Contract: `import_dataset(config, seed, quarantine)` reads the interactions and, where given, the
item file; malformed lines go to `quarantine` (a fresh JSON-lines file `{file, line, reason, text}`,
there only if something was rejected) and above `max_bad_share` of either file the import stops with
one DataError line. In the report

    lines_in == lines_used + lines_rejected            (of the interactions file)
    interactions_in == interactions_used + duplicates_dropped

where a line is one interaction, except in sequence files, where it is one user. Not here: the
simulated shop (`data.shop`) and the download (`data.fetch`).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from diffgr2.config import TEXT_WORDS, DataConfig
from diffgr2.data import columns
from diffgr2.data.columns import Source
from diffgr2.data.doubts import doubts, item_file
from diffgr2.data.gather import Gatherer, ItemText, RawData, renamed
from diffgr2.data.lines import BadLine, Intake, each, json_object, read_lines
from diffgr2.data.split import build
from diffgr2.data.store import Dataset
from diffgr2.data.values import identifier
from diffgr2.errors import ConfigError, DataError

_TEXTS = {word: word for word in TEXT_WORDS}
_OLDER = {"user": "reviewerID", "item": "asin", "timestamp": "unixReviewTime", **_TEXTS}
AMAZON = {
    "amazon2014": _OLDER,
    "amazon2018": {**_OLDER, "categories": "category"},
    "amazon2023": {
        **_TEXTS, "user": "user_id", "item": "parent_asin", "timestamp": "timestamp",
        "brand": "store",
    },
}  # fmt: skip


def outside_paths(config: DataConfig) -> list[Path]:
    """The files an import reads, in a fixed order."""
    if config.source == "shop":
        return []
    paths = [Path(name) for name in (config.interactions, config.items) if name]
    if config.source == "p5" and (maps := datamaps_beside(paths[0])):
        paths.append(maps)
    return paths


def source_of(path: Path, config: DataConfig, *, items: bool = False) -> Source:
    """How the interactions or the item file is to be read."""
    suffix = Path(path.name.removesuffix(".gz")).suffix
    once = config.repeats == "drop"
    if config.source in ("table", "lists"):
        kind = columns.kind_of_table(path)
        if not items:
            return Source(kind, config.columns, once=once)
        names = {**config.columns, **config.item_columns}
        how = {"own": config.item_columns, "separator": config.category_separator, "items": True}
        return Source(kind, names, **how)
    if config.source == "recbole":
        return Source("atomic", {}, once=once and not items)
    names = AMAZON["amazon2014" if config.source == "p5" else config.source]
    if items:
        return Source("dicts", names, typed=True)
    unit = "ms" if config.source == "amazon2023" else "s"
    if suffix != ".csv":
        return Source("jsonl", names, unit, typed=True)
    if config.source != "amazon2023":
        raise DataError(
            f"{path.name}: {config.source} is JSON lines; a csv goes through source table"
        )
    return Source("csv", names, unit)


def read_p5(path: Path, intake: Intake) -> RawData:
    """Interactions of a sequence file, under their raw ids where there are maps."""
    gatherer = Gatherer()

    def parse(text: str) -> tuple[str, list[str]]:
        user, *items = (identifier(word, "id") for word in text.split(" ") if word)
        if not items:
            raise BadLine("a user without items")
        if user in gatherer.users:
            raise BadLine(f"user {user[:80]} stands twice")
        return user, items

    for _, _, (user, items) in each(read_lines(path, intake), intake, parse):
        for item in items:
            gatherer.add(user, item)
    intake.finish()
    raw = gatherer.finish(intake.name, timed=False)
    maps = datamaps_beside(path)
    return renamed(raw, *read_datamaps(maps)) if maps else raw


def datamaps_beside(interactions: Path) -> Path | None:
    """datamaps.json in the folder of a sequence file, if there is one."""
    path = interactions.parent / "datamaps.json"
    return path if path.is_file() else None


def read_datamaps(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(number -> raw user id, number -> raw item id)."""
    maps: dict[str, dict[str, str]] = {}
    try:
        value = json_object(path.read_text(encoding="utf-8"))
        for key in ("user2id", "item2id"):
            entries = value.get(key, {})
            if not isinstance(entries, dict):
                raise BadLine(f"{key} is not a map")
            raw = [identifier(name, f"{key}: name") for name in entries]
            numbers = [identifier(n, f"{key}: number", numbers=True) for n in entries.values()]
            maps[key] = dict(zip(numbers, raw, strict=True))
    except (BadLine, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path.name}: {error}") from None
    return maps["user2id"], maps["item2id"]


def read_raw(config: DataConfig, quarantine: Path | None) -> tuple[RawData, dict[str, Any]]:
    """The interactions without texts, and what became of their file's lines."""
    assert config.interactions is not None
    path = Path(config.interactions)
    intake = Intake(path.name, quarantine, config.max_bad_share)
    if config.source == "p5":
        raw = read_p5(path, intake)
    else:
        raw = columns.read_interactions(path, source_of(path, config), intake)
    return raw, {
        "source": config.source,
        "file": path.name,
        "lines_in": intake.lines,
        "lines_used": intake.lines - intake.rejected,
        "lines_rejected": intake.rejected,
        "first_rejected": intake.first,
    }


def read_items(
    config: DataConfig, wanted: set[str], quarantine: Path | None
) -> tuple[dict[str, ItemText], dict[str, Any], Intake]:
    """Texts of the wanted items, and what became of the item file's lines."""
    assert config.items is not None
    path = Path(config.items)
    intake = Intake(path.name, quarantine, config.max_bad_share)
    texts = columns.read_texts(path, source_of(path, config, items=True), intake, wanted)
    report: dict[str, Any] = {
        "items_file": path.name,
        "item_lines_in": intake.lines,
        "item_lines_rejected": intake.rejected,
        "first_items_rejected": intake.first,
    }
    return texts, report | ({"categories": intake.paths} if intake.paths else {}), intake


def import_dataset(config: DataConfig, seed: int, quarantine: Path | None = None) -> Dataset:
    """Read, check, filter, order and number the interactions of a recipe."""
    if config.source in ("shop", "lists") or config.interactions is None:
        raise ConfigError(f"data.interactions: source {config.source} has no file to import")
    if quarantine is not None:
        quarantine.unlink(missing_ok=True)
    raw, report = read_raw(config, quarantine)
    warnings: list[str] = []
    if config.items:
        texts, told, intake = read_items(config, set(raw.events["item"].unique()), quarantine)
        raw = replace(raw, texts=texts)
        report |= told | {"items_with_metadata_before_core": len(raw.texts)}
        warnings = item_file(raw, intake.name, intake.lines, intake.told)
    dataset = build(raw, config, seed, report)
    if warnings := warnings + doubts(raw, dataset.report):
        dataset.report["warnings"] = warnings
    return dataset
