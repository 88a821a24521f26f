"""The traces stage: what the teacher says about the training and validation lists (GR2 §traces).

Contract: writes `<split>.safetensors` (a `Traces` each) and `edges.safetensors`. The test split gets
no traces. Not here: how a decision is made (`traces.evidence`, `traces.llm`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, save_arrays
from diffgr2.candidates.lists import load_lists
from diffgr2.candidates.scorers import LinearScorer
from diffgr2.pipeline import StageContext
from diffgr2.stages.corpus import KNOWN
from diffgr2.traces.evidence import decide, strength_edges


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, evidence = ctx.recipe, ctx.inputs["evidence"]
    scorecard = LinearScorer.load(evidence / "linear.safetensors")
    kind = recipe.evidence.scorer
    scores = {
        split: load_arrays(evidence / f"scores_{kind}_{split}.safetensors")["score_LK"]
        for split in KNOWN
    }
    edges_S = strength_edges(np.concatenate(list(scores.values())), recipe.prompt.strengths)
    save_arrays(ctx.out / "edges.safetensors", edges_S=edges_S)
    metrics: dict[str, Any] = {}
    for split in KNOWN:
        lists = load_lists(ctx.inputs["candidates"], split)
        buckets_LKF = load_arrays(evidence / f"{split}.safetensors")["buckets_LKF"]
        hit_L = lists.hit_L
        traces = decide(
            scores[split],
            scorecard.contributions(buckets_LKF),
            hit_L,
            edges_S,
            mode=recipe.traces.mode,
            cites=recipe.prompt.cites,
            attempts=recipe.traces.attempts,
            noise=recipe.traces.noise,
            seed=recipe.seed,
        )
        traces.save(ctx.out / f"{split}.safetensors")
        hits_N = hit_L[traces.row_N] >= 0
        first_N = traces.order_NK[:, 0] == hit_L[traces.row_N]
        metrics[f"{split}/lists"] = len(lists)
        metrics[f"{split}/traces"] = len(traces)
        metrics[f"{split}/accepted"] = round(len(traces) / max(len(lists), 1), 4)
        metrics[f"{split}/target_first"] = round(float(first_N[hits_N].mean()), 4)
    return metrics
