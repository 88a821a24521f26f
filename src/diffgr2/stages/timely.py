"""Stage `timely`: what the scorecard is worth when evidence knows nothing of what came later.

Reads data, candidates and evidence; counts every list's evidence again from what lies strictly
before the moment at which its target was bought, fits bucket edges and a scorecard on the lists
that taught the other one, and writes its scores of the test lists. The evidence of a retriever's
lists counts all of the train part, of which some lies after a test moment, as the papers' protocol
has it: the row `evidence_before` says what that is worth. The retriever itself still knows it all.
Data without times have no such row. Run: `diffgr2 timely RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.artifacts import load_arrays, read_manifest, save_arrays
from diffgr2.candidates import scorers
from diffgr2.candidates.index import EvidenceIndex
from diffgr2.candidates.lists import first_columns, load_lists, selected_lists
from diffgr2.candidates.retrieval import chunks
from diffgr2.data.store import read_dataset
from diffgr2.pipeline import StageContext
from diffgr2.stages.counting import KNOWN, LISTS_AT_ONCE, raw_values
from diffgr2.types import MISS

SCORES = "scores_linear_test.safetensors"


def bucketed(index: EvidenceIndex, raw_LKF: np.ndarray) -> np.ndarray:
    """Buckets of all lists, some at a time."""
    parts = [raw_LKF[at] for at in chunks(max(len(raw_LKF), 1), LISTS_AT_ONCE)]
    return np.concatenate([index.buckets(raw_CKF) for raw_CKF in parts])


def run(ctx: StageContext) -> dict[str, Any]:
    recipe, k = ctx.recipe, ctx.recipe.candidates.k
    dataset = read_dataset(ctx.inputs["data"])
    if not dataset.histories.timestamps_N.any():
        ctx.progress.line(f"{ctx.name}: the interactions have no times, so there is no such row")
        return {}
    lists = {split: load_lists(ctx.inputs["candidates"], split) for split in (*KNOWN, "test")}
    strict = recipe.lists.model_copy(update={"point_in_time": True})
    index = EvidenceIndex.load(ctx.inputs["evidence"])
    strict_recipe = recipe.model_copy(update={"lists": strict})
    asked = (strict_recipe, index, dataset, lists, lambda _split, _at, raw_CKF: raw_CKF[:, :k])
    values = raw_values(*asked, ctx.work)

    first = {split: first_columns(own, k) for split, own in lists.items()}
    splits = KNOWN if recipe.evidence.fit_on == "both" else (recipe.evidence.fit_on,)
    n_users = dataset.histories.n_users
    teaches = {s: ~selected_lists(lists[s], n_users) & (first[s].hit_L != MISS) for s in KNOWN}
    known_XF = np.concatenate([values[s][first[s].there_LK & teaches[s][:, None]] for s in KNOWN])
    index = index.with_edges(known_XF)
    buckets_LKF = np.concatenate([bucketed(index, values[s]) for s in splits])
    gains_LK = np.concatenate([first[s].gains_LK * teaches[s][:, None] for s in splits])
    there_LK = np.concatenate([first[s].there_LK for s in splits])
    told = read_manifest(ctx.inputs["evidence"])["metrics"]
    how: dict[str, Any] = {key: told[key] for key in ("l2", "smooth")}  # held back as the other is
    given = (buckets_LKF, gains_LK, recipe.evidence.buckets)
    scorer = scorers.fit("linear", *given, seed=ctx.seed, there_LK=there_LK, **how)

    test_LKF, there_LK = bucketed(index, values["test"]), first["test"].there_LK
    score_LK = scorer.score(test_LKF, there_LK).astype(np.float32)
    save_arrays(ctx.out / SCORES, score_LK=score_LK)
    whole_LKF = load_arrays(ctx.inputs["evidence"] / "test.safetensors")["buckets_LKF"][:, :k]
    moved = float((whole_LKF[there_LK] != test_LKF[there_LK]).mean())
    return {"lists": len(score_LK), "test_buckets_moved": round(moved, 6)}
