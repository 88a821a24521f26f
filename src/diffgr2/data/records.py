"""From a recipe's `data` section to a `Dataset`: which importer reads which file.

Contract: `import_dataset(config, seed, quarantine)` reads the interactions and, where given, the
item file; malformed lines go to `quarantine` (a fresh JSON-lines file `{file, line, reason, text}`,
there only if something was rejected) and above `max_bad_share` of either file the import stops with
one DataError line. In the report

    lines_in == lines_used + lines_rejected            (of the interactions file)
    interactions_in == interactions_used + duplicates_dropped

where a line is one interaction, except in sequence files, where it is one user. Not here: the
simulated shop (`data.shop`) and the download (`data.fetch`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from diffgr2.config import DataConfig
from diffgr2.data import amazon, columns, sequences
from diffgr2.data.gather import renamed, with_texts
from diffgr2.data.lines import Intake
from diffgr2.data.split import ItemText, Policy, RawData, build
from diffgr2.data.store import Dataset
from diffgr2.errors import ConfigError


def outside_paths(config: DataConfig) -> list[Path]:
    """The files an import reads, in a fixed order."""
    if config.source == "shop" or config.interactions is None:
        return []
    paths = [Path(config.interactions)]
    if config.items:
        paths.append(Path(config.items))
    if config.source == "p5" and (maps := sequences.datamaps_beside(paths[0])):
        paths.append(maps)
    return paths


def import_dataset(config: DataConfig, seed: int, quarantine: Path | None = None) -> Dataset:
    """Read, check, filter, order and number the interactions of a recipe."""
    if config.source == "shop" or config.interactions is None:
        raise ConfigError(f"data.interactions: source {config.source} has no file to import")
    if quarantine is not None:
        quarantine.unlink(missing_ok=True)
    path = Path(config.interactions)
    intake = Intake(path.name, quarantine, config.max_bad_share)
    try:
        raw = _read_interactions(path, config, intake)
    finally:
        intake.close()
    report: dict[str, Any] = {
        "source": config.source,
        "file": path.name,
        "lines_in": intake.lines,
        "lines_used": intake.lines - intake.rejected,
        "lines_rejected": intake.rejected,
        "first_rejected": intake.first,
    }
    if config.items:
        raw, facts = _with_items(raw, Path(config.items), config, quarantine)
        report.update(facts)
    policy = Policy(
        k_core=config.k_core,
        tie_order=config.tie_order,
        tie_seed=config.tie_seed,
        seed=seed,
        keep_earliest=config.source == "amazon2023",
    )
    return build(raw, policy, report)


def _read_interactions(path: Path, config: DataConfig, intake: Intake) -> RawData:
    if config.source == "recbole":
        return sequences.read_recbole(path, intake)
    if config.source == "table":
        return columns.read_interactions(path, config.columns, intake)
    if config.source != "p5":
        return amazon.read_interactions(path, config.source, intake)
    raw = sequences.read_p5(path, intake)
    maps = sequences.datamaps_beside(path)
    return renamed(raw, *sequences.read_datamaps(maps)) if maps else raw


def _with_items(
    raw: RawData, path: Path, config: DataConfig, quarantine: Path | None
) -> tuple[RawData, dict[str, Any]]:
    intake = Intake(path.name, quarantine, config.max_bad_share)
    try:
        texts = _read_texts(path, config, intake, set(raw.items))
    finally:
        intake.close()
    facts = {
        "items_file": path.name,
        "item_lines_in": intake.lines,
        "item_lines_rejected": intake.rejected,
        "first_items_rejected": intake.first,
        "items_with_metadata_before_core": len(texts),
    }
    return with_texts(raw, texts), facts


def _read_texts(
    path: Path, config: DataConfig, intake: Intake, wanted: Collection[str]
) -> dict[str, ItemText]:
    if config.source == "recbole":
        return sequences.read_recbole_texts(path, intake, wanted)
    if config.source == "table":
        return columns.read_texts(path, config.columns, intake, wanted)
    source = "amazon2014" if config.source == "p5" else config.source
    return amazon.read_texts(path, source, intake, wanted)
