"""Which row a run is judged by and against what: the one place for `run`, `report` and the bundle.

Contract: `scored` are the rows of scorers without a language model, `strongest` the one to beat,
chosen on selection lists; `verdict_of` reads a row's outputs of the test lists beside them, from
the directories of stages; `rows_of_verdict` are the report's rows of these. So what a bundle
carries is what the report says. Not here: the figures (`evaluate.verdict`), whether a stage stands
(`standing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgr2.artifacts import load_arrays, read_json
from diffgr2.candidates.lists import load_lists
from diffgr2.candidates.scorers import KINDS
from diffgr2.config import Recipe
from diffgr2.evaluate.baselines import order_from_scores
from diffgr2.evaluate.outputs import SystemOutputs, load_outputs
from diffgr2.evaluate.results import build_report
from diffgr2.evaluate.verdict import judge
from diffgr2.pipeline import source_commit

LAMBDAMART = "lambdamart"
TREES = "trees"
ROWS = {LAMBDAMART: "lambdamart", TREES: "tutor"}
"""Scorers whose row does not depend on the recipe."""

JUDGED = ("cft_opd_rl", "cft_opd", "cft", "ar", "ar_sft")
"""Rows; the first that stands is what the run is judged by, as the recipe reads answers."""

PACKED = {"block_rl": "cft_opd_rl", "rl": "ar"}
"""Stage whose model a bundle holds -> the row that is decoded as the bundle decodes by default."""


def data_of(recipe: Recipe) -> tuple[str, str]:
    """What a report calls the data, and the order of interactions at the same time."""
    data = recipe.data
    if data.source == "shop":
        about = f"simulated shop, {data.shop.n_items:,} items, {data.shop.n_users:,} shoppers"
        return about, "none"
    about = f"{data.source}: {Path(data.interactions or recipe.lists.file or '').name}"
    return about, "file" if data.tie_order == "file" else f"shuffle({data.tie_seed})"


def meta_of(recipe: Recipe, command: str) -> dict[str, Any]:
    """The head of what is written of a run: no path of this machine."""
    about, tie = data_of(recipe)
    return {
        "recipe": recipe.name,
        "data": about,
        "tie_order": tie,
        "commit": source_commit(),
        "command": command,
    }


def row_of(kind: str, chosen: str) -> str:
    """The row of a scorer; `chosen` is the recipe's."""
    return ROWS.get(kind) or ("evidence" if kind == chosen else f"evidence_{kind}")


def teaches(recipe: Recipe) -> str:
    """The kind of scorer that traces are made with."""
    return "linear" if recipe.traces.tutor == "scorer" else TREES


def scored(recipe: Recipe, places: Mapping[str, Path]) -> list[SystemOutputs]:
    """The recipe's scorer as `evidence`, the other kinds beside it, the tutor and LambdaMART."""
    chosen, k = recipe.evidence.scorer, recipe.candidates.k
    length_L = load_lists(places["candidates"], "test", k).length_L
    paths = {
        kind: places["evidence"] / f"scores_{kind}_test.safetensors"
        for kind in sorted(KINDS, key=lambda kind: (kind != chosen, kind))
    }
    for stage, kind in (("tutor", TREES), ("rival", LAMBDAMART)):
        if stage in places:
            path = places[stage] / f"scores_{kind}_test.safetensors"
            paths |= {kind: path} if path.is_file() else {}
    rows = []
    for kind, path in paths.items():
        order_LK = order_from_scores(load_arrays(path)["score_LK"][:, :k], path.name, length_L)
        meta = {"scorer": kind}
        rows.append(SystemOutputs(row_of(kind, chosen), order_LK, len(order_LK), meta=meta))
    return rows


def strongest(recipe: Recipe, places: Mapping[str, Path]) -> dict[str, Any]:
    """The row to beat and what chose it; {} where that was not looked into."""
    if "rival" not in places:
        return {}
    found = read_json(places["rival"] / "rivals.json")
    rows = {kind: row_of(kind, recipe.evidence.scorer) for kind in found["values"]}
    return {"row": rows[found["strongest"]], **found, "rows": rows}


def verdict_of(recipe: Recipe, places: Mapping[str, Path], row: str) -> dict[str, Any] | None:
    """The verdict on a row, from the directories of `candidates`, `evidence`, `rival`, the row."""
    lists = load_lists(places["candidates"], "test", recipe.candidates.k)
    outputs = load_outputs(places[f"score_{row}"], row)
    taught_by = teaches(recipe)
    chosen, worth = recipe.evidence.scorer, dict(strongest(recipe, places).get("values", {}))
    # The scorer has a line of its own: the rival's is about the best of the others.
    kinds = sorted(worth.keys() - {"floor", taught_by}, key=lambda kind: (-worth[kind], kind))
    others = {"rival": row_of(kinds[0], chosen)} if kinds else {}
    others["scorer"] = row_of(taught_by, chosen)
    return judge(
        lists,
        [*scored(recipe, places), outputs],
        row,
        others,
        taught=recipe.traces.teacher == "evidence",
        strongest=not kinds or worth[kinds[0]] > worth[taught_by],
        resamples=recipe.evaluate.bootstrap,
        seed=recipe.seed,
    )


def rows_of_verdict(
    recipe: Recipe, places: Mapping[str, Path], verdict: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """The report's rows of what a verdict is about, whether or not a report was made."""
    if verdict is None:
        return []
    names = [verdict["row"], *dict.fromkeys(one["row"] for one in verdict["against"])]
    lists = load_lists(places["candidates"], "test", recipe.candidates.k)
    systems = [one for one in scored(recipe, places) if one.name in names]
    systems.append(load_outputs(places[f"score_{names[0]}"], names[0]))
    resamples, seed = recipe.evaluate.bootstrap, recipe.seed
    rows = build_report({}, lists, systems, resamples=resamples, seed=seed)["rows"]
    return sorted(
        (row for row in rows if row["name"] in names), key=lambda r: names.index(r["name"])
    )
