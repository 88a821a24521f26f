"""Stage `data`: interactions and items as one dataset directory.

Contract: reads nothing but the recipe's sections `data` and, where a shop has lists of its own,
`lists`, and the files that they name; writes what `data.store` describes, `data.own_store` for own
lists, `quarantine.jsonl` where lines were rejected, and for the simulated shop `truth.safetensors`
(what a perfect re-ranker would know). Its metrics are the numbers and words of `report.json`. Not
here: how a file is read (`data.records`, `data.own_lists`) or a shop simulated (`data.shop`).
"""

import math
from pathlib import Path
from typing import Any

from diffgr2.artifacts import save_arrays
from diffgr2.config import Recipe
from diffgr2.data.own_lists import import_own
from diffgr2.data.own_store import write_own_lists
from diffgr2.data.records import import_dataset, outside_paths
from diffgr2.data.store import write_dataset
from diffgr2.pipeline import StageContext


def outside_files(recipe: Recipe) -> list[Path]:
    """Files outside the run's directory that this stage depends on."""
    own = [Path(recipe.lists.file)] if recipe.lists.file else []
    return [*outside_paths(recipe.data), *own]


def run(ctx: StageContext) -> dict[str, Any]:
    config = ctx.recipe.data
    if ctx.recipe.lists.file:
        quarantine = ctx.out / "quarantine.jsonl"
        dataset, own = import_own(config, ctx.recipe.lists, ctx.seed, quarantine)
        write_own_lists(ctx.out, own)
    elif config.source == "shop":
        from diffgr2.data.shop import simulate_dataset

        dataset, truth = simulate_dataset(config.shop, ctx.seed)
        save_arrays(ctx.out / "truth.safetensors", **truth)
    else:
        dataset = import_dataset(config, ctx.seed, ctx.out / "quarantine.jsonl")
    write_dataset(ctx.out, dataset)
    report = dataset.report
    for kind, rejected, total in (
        ("first_rejected", "lines_rejected", "lines_in"),
        ("first_items_rejected", "item_lines_rejected", "item_lines_in"),
        ("first_lists_rejected", "list_lines_rejected", "list_lines_in"),
    ):
        if report.get(rejected):
            ctx.progress.line(f"data: {report[rejected]} of {report[total]} lines set aside:")
            for entry in report[kind]:
                ctx.progress.line(f"data:   {entry}")
    if report.get("categories"):
        ctx.progress.line(f"data: categories {report['categories']}")
    for warning in report.get("warnings", []):
        ctx.progress.line(f"data: warning: {warning}")
    return {  # what fits a manifest's metrics: words and finite numbers
        key: value
        for key, value in report.items()
        if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    }
