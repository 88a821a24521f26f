"""The items stage on a dataset of a test's own, without the stages before it."""

from __future__ import annotations

from pathlib import Path

from diffgr2.config import ItemsConfig, Recipe
from diffgr2.data.store import Dataset, write_dataset
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.stages import items


def run_stage(root: Path, dataset: Dataset, config: ItemsConfig) -> tuple[Path, dict]:
    """Its directory and its metrics."""
    data, out, work = (root / name for name in ("data", "out", "work"))
    for path in (data, out, work):
        path.mkdir(parents=True)
    write_dataset(data, dataset)
    recipe = Recipe(name="test", items=config)
    context = StageContext("items", recipe, {"data": data}, out, work, Progress())
    return out, items.run(context)
