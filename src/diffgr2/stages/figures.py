"""The figures of a run's report, from what stands.

Contract: `figures_of` returns `{name: Figure}`; a figure whose data does not stand yet is left out.
The trajectory picture decodes one test list with the last diffusion model that stands. Not here:
drawing (`evaluate.plots`, `evaluate.pictures`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffgr2.artifacts import load_arrays
from diffgr2.evaluate import pictures, plots
from diffgr2.types import MISS

if TYPE_CHECKING:
    from diffgr2.stages.report import Collected

FINAL = ("block_rl", "cft_rl", "opd", "cft", "convert")
"""Diffusion models, the last first."""

RANKED = ("cft_opd_rl", "cft_opd", "cft", "ar", "evidence")
"""Rows whose rank moves are drawn, the last first."""


def frontier_points(
    found: Collected, ranks: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """(points, level lines): τ against quality, all on the lists that the timing run decoded."""
    assert found.speed is not None
    entries = found.speed["decoders"]
    base = next((s for s in entries if s["decoder"] == "ar" and s["batch"] == 1), None)
    points = [
        {
            "series": f"block, {point['rule']}",
            "threshold": point["tau"],
            "tpf": point["tpf"],
            "speedup": point["tokens_per_s"] / base["tokens_per_s"] if base else None,
            "value": point["r@1"],
        }
        for point in found.speed["frontier"]
    ]
    n = max((point["n"] for point in found.speed["frontier"]), default=0)
    lists = np.flatnonzero(ranks["hit"] != MISS)[:n]
    lines = {
        name: float((ranks[f"rank.{name}"][lists] == 0).mean())
        for name in ("floor", "evidence", "ar")
        if n and f"rank.{name}" in ranks
    }
    return points, lines


def throughput_points(found: Collected) -> list[dict[str, Any]]:
    """Forced output lengths, batch 1."""
    assert found.speed is not None
    return [
        {
            "decoder": point["decoder"],
            "batch": 1,
            "tokens": point["length"],
            "tokens_per_s": point["tokens_per_s"],
        }
        for point in found.speed["lengths"]
    ]


def curves(found: Collected) -> Any:
    """Training curves of every stage that logged."""
    from diffgr2.stages.plan import TRAINED
    from diffgr2.stages.report import CURVES

    records = {}
    for name in TRAINED:
        path = found.root / name / "metrics.jsonl"
        if name in found.standing and path.is_file():
            records[name] = plots.read_metrics(path)
    return plots.training_curves(records, CURVES) if records else None


def trajectory(found: Collected) -> Any:
    """One test list decoded as recommended: position × step."""
    model_stage = next((name for name in FINAL if name in found.standing), None)
    if model_stage is None:
        return None
    from diffgr2.decode.batch import decode
    from diffgr2.model.contract import contract_of
    from diffgr2.model.forward import LeanQwen3
    from diffgr2.model.layout import response_shift
    from diffgr2.model.load import open_model
    from diffgr2.stages.corpus import open_corpus
    from diffgr2.stages.plan import CORPUS
    from diffgr2.stages.score import requests_for, test_rows

    corpus = open_corpus({name: found.root / name for name in CORPUS}, found.recipe)
    rows = test_rows(corpus, "hit", 1)
    if not len(rows):
        return None
    directory = found.root / model_stage
    settings = corpus.settings(contract_of(directory))
    requests, _ = requests_for(corpus, rows, reasoning=True)
    result = decode(LeanQwen3(open_model(directory)), requests, settings, batch=1)[0]
    texts = [corpus.vocab.names[int(token)] for token in result.tokens_T]
    length = len(requests[0].prompt)
    shift = response_shift(length, settings.block_size, settings.origin)
    first = -(length + shift) % settings.block_size or settings.block_size
    return pictures.trajectory(result.step_of_T, texts, settings.block_size, first_border=first)


def figures_of(
    found: Collected, report: dict[str, Any], ranks: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Every figure whose data stands."""
    result: dict[str, Any] = {}
    if any(row["population"] == "hit" for row in report["rows"]):
        result["stages"] = plots.stage_ladder(report)
    if any("raw_valid" in row for row in report["rows"]):
        result["validity"] = plots.validity(report)
    if found.speed is not None:
        points, lines = frontier_points(found, ranks)
        result["frontier_tpf"] = plots.frontier(points, lines, "r@1", x="tpf")
        result["frontier_speedup"] = plots.frontier(points, lines, "r@1", x="speedup")
        result["throughput"] = plots.throughput(throughput_points(found))
    drawn = curves(found)
    if drawn is not None:
        result["training"] = drawn
    picture = trajectory(found)
    if picture is not None:
        result["trajectory"] = picture
    name = next((name for name in RANKED if f"rank.{name}" in ranks), None)
    if name is not None:
        rank_L = ranks[f"rank.{name}"]
        floor_L = np.where(rank_L >= 0, ranks["hit"], MISS)
        result["rank_moves"] = pictures.rank_moves(floor_L, rank_L, found.lists.k, name)
    if "items" in found.standing:
        codes_IL = load_arrays(found.root / "items" / "codes.safetensors")["codes_IL"]
        result["semantic_ids"] = pictures.sid_usage(codes_IL, found.recipe.items.codes)
    return result
