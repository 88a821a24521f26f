"""Which figures a report has, each as soon as its stages stand.

Contract: `figures_of` hands what stands to the drawing functions, the answer first; `slices_of` is
where the judged row gains, as report.json holds it. Not here: drawing (`evaluate`), writing
(`report`).
"""

import json
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffgr2.artifacts import load_arrays
from diffgr2.evaluate import pictures, plots
from diffgr2.evaluate.answer_plot import answer_figure, answers
from diffgr2.evaluate.baselines import floor_order
from diffgr2.evaluate.curves import training_curves
from diffgr2.evaluate.outputs import SystemOutputs
from diffgr2.evaluate.pace_plot import quality_speed, timed_points, view_points
from diffgr2.evaluate.slices import by_lengths, sliced, slices_figure
from diffgr2.evaluate.tables import rows_of
from diffgr2.evaluate.verdict import DECIDES
from diffgr2.model.layout import response_shift
from diffgr2.stages.plan import TRAINED
from diffgr2.stages.standing import Standing
from diffgr2.train.log import METRICS
from diffgr2.types import MISS

DRAWN = ("block_rl", "cft_rl", "opd", "cft", "convert")
"""Diffusion models; the first that stands decodes the list of the trajectory picture."""

MOVED = ("cft_opd_rl", "cft_opd", "cft", "ar", "evidence")
"""Rows; the first that stands has its rank moves drawn."""

PROBED = "cft_opd_rl"  # the row whose list lengths are probed


def properties_of(found: Standing) -> dict[str, np.ndarray]:
    """Of every test list: its length, how much history it has, how often its target is bought
    otherwise."""
    lists, histories = found.lists, found.dataset.histories
    bought_I = np.bincount(histories.items_N, minlength=histories.n_items)
    target_L = lists.items_LK[np.arange(len(lists)), np.maximum(lists.hit_L, 0)]
    others_L = bought_I[np.maximum(target_L, 0)] - (lists.gains is None)  # itself is no other
    return {
        "length": lists.length_L,
        "history": lists.end_L,
        "popularity": np.maximum(others_L, 0),
    }


def slices_of(found: Standing) -> dict[str, Any]:
    """{row, metric, rival, by: {property: bins}}; {} without a judged row."""
    rows = {outputs.name: outputs for outputs in found.systems}
    lists, row = found.lists, rows.get(found.judged_row or "")
    if row is None:
        return {}
    others = {
        "floor": SystemOutputs(
            "floor", floor_order(len(lists), lists.k, lists.length_L), len(lists)
        )
    }
    rival = found.rival.get("row")
    others |= {"rival": rows[rival]} if rival in rows else {}
    few = found.recipe.evaluate.bootstrap
    by = sliced(lists, row, others, properties_of(found), few, found.recipe.seed)
    if "length" not in by and row.name == PROBED:
        points = by_lengths(found.probes.get("lengths", ()), PROBED, str(rival))
        by = ({"length": points} if points else {}) | by
    return {"row": row.name, "metric": DECIDES, "rival": rival, "by": by} if by else {}


def figures_of(
    found: Standing, report: dict[str, Any], ranks: dict[str, np.ndarray]
) -> dict[str, Figure]:
    """Every figure whose data stands."""
    rows, judged = rows_of(report, "hit"), found.judged_row
    rival, result = found.rival.get("row"), dict[str, Figure]()
    if judged and (differences := answers(rows, judged, rival)):
        result["answer"] = answer_figure(differences, judged, rival, rows[0]["n"])
    if found.pace:
        batched = timed_points(
            rows, found.pace["rows"], max(e["batch"] for e in found.pace["rows"])
        )
        views = view_points(found.probes.get("views", ()))
        result["quality_speed"] = quality_speed(rows, batched if views else (), views)
    if cut := report.get("slices"):
        names = {"floor": "the floor", "rival": f"the strongest rival, {rival}"}
        result["slices"] = slices_figure(cut["by"], cut["row"], names)
    answered = [row for row in rows if "raw_valid" in row]
    if rows:
        result["stages"] = plots.stage_ladder(rows)
    if answered:
        result["validity"] = plots.validity(answered)
        result["coherence"] = plots.coherence(answered)
    result |= speed_figures(found.speed) if found.speed else {}
    trained = [name for name in ("retriever", *TRAINED) if name in found.stages]
    logs = {name: found.root / name / METRICS for name in trained}
    logs = {name: path for name, path in logs.items() if path.is_file()}  # of those with steps
    if logs:
        result["training"] = training_curves(
            {name: [*map(json.loads, path.open())] for name, path in logs.items()}
        )
    stage, hits = found.last(DRAWN), np.flatnonzero(found.lists.hit_L != MISS)
    if stage and len(hits):
        result["trajectory"] = trajectory(found, stage, hits[:1])
    name = next((name for name in MOVED if f"rank.{name}" in ranks), None)
    if name:
        rank_L = ranks[f"rank.{name}"]
        result["rank_moves"] = pictures.rank_moves(ranks["hit"], rank_L, found.lists.k, name)
    if "items" in found.stages:
        codes_IL = load_arrays(found.root / "items" / "codes.safetensors")["codes_IL"]
        result["semantic_ids"] = pictures.sid_usage(codes_IL, found.recipe.items.codes)
    return result


def speed_figures(speed: dict[str, Any]) -> dict[str, Figure]:
    """Quality against speed on lists of selection users; speed over length."""
    result = {}
    if points := speed["frontier"]:
        ar = next(e for e in speed["decoders"] if e["decoder"] == "ar" and e["batch"] == 1)
        base = ar["tokens_per_s"]
        points = [{**p, "speedup": p["tokens_per_s"] / base} for p in points]
        for x in ("tpf", "speedup"):
            result[f"frontier_{x}"] = plots.frontier(points, {"floor": points[0]["floor"]}, x)
    if speed["lengths"]:
        result["throughput"] = plots.throughput(speed["lengths"])
    return result


def trajectory(found: Standing, stage: str, rows: np.ndarray) -> Figure:
    """One test list decoded as recommended: position × step."""
    decoded = found.decoded(stage, rows, "recommended")
    written, settings = decoded.trajectories[0], decoded.settings
    texts = [found.corpus.vocab.names[token] for token in written.tokens_T.tolist()]
    length = len(decoded.prompts[0].prompt)
    shift = response_shift(length, settings.block_size, settings.origin)
    border = -(length + shift) % settings.block_size or settings.block_size
    return pictures.trajectory(written.step_of_T, texts, settings.block_size, border)
