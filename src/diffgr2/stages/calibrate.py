"""Stage `calibrate`: what a level of strength is worth as a chance, per decoder.

Reads the corpus, the AR teacher and the diffusion model; writes `calibration.json`: the scale of
`block`, `ar` and `verify` (which writes what `ar` does) of the diffusion model and of the teacher
(`teacher_ar`), on how many lists they were fitted, and the calibration error of `block` there. The
lists are those of selection users that hold their target, which trained nothing. A template without
strengths has no scales. Run: `diffgr2 calibrate RECIPE`.
"""

from typing import Any

import numpy as np

from diffgr2.artifacts import write_json
from diffgr2.evaluate.calibration import calibration_error, chances, fit_scale
from diffgr2.evaluate.outputs import stacked
from diffgr2.pipeline import StageContext
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.score import Model, decode_requests
from diffgr2.train.dist import share

MOST = 2_000
"""Lists that are decoded; one number is fitted."""

SPREAD = 6.0
"""Log-odds from the weakest to the strongest level, where lists are too few to fit any."""

WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "block": ("block_rl", "recommended", {"decoder": "block"}),
    "ar": ("block_rl", "ar", {}),
    "teacher_ar": ("rl", "ar", {}),
}
"""Name of a scale: the stage whose model is decoded, and how."""


def selected(corpus: Corpus) -> tuple[list[tuple[str, int]], np.ndarray]:
    """Lists to fit on, those most like test lists first, and where their targets stand."""
    lists = sorted(corpus.selection, key=lambda at: at[0] != "validation")[:MOST]
    hits = {split: corpus.judged(split).hit_L for split, _ in lists}
    return lists, np.array([hits[split][row] for split, row in lists], dtype=int)


def run(ctx: StageContext) -> dict[str, Any]:
    corpus, config = open_corpus(ctx.inputs, ctx.recipe), ctx.recipe
    if "said" not in corpus.template.answers:
        write_json(ctx.out / "calibration.json", {})
        return {}
    lists, hit_L = selected(corpus)
    requests = [corpus.request(split, row) for split, row in lists]
    default = SPREAD / (config.prompt.strengths - 1)
    found: dict[str, Any] = {}
    errors: dict[str, float] = {}
    with ctx.progress.task(ctx.name, len(share(len(lists))) * len(WAYS)) as bar:
        for name, (stage, how, given) in WAYS.items():
            found[name] = default
            if not requests:
                continue
            model = Model.open(ctx.inputs[stage])
            work = {"batch": config.evaluate.batch, "on_done": lambda _: bar.advance()}
            decoded = decode_requests(corpus, model, requests, how, together=True, **work, **given)
            levels = [reading.levels_K for reading in decoded.readings]
            scale = fit_scale(stacked(levels, corpus.k, np.nan), hit_L, default)
            found[name] = scale
            chance_LK = stacked([chances(levels_K, scale) for levels_K in levels], corpus.k, np.nan)
            errors[name] = calibration_error(chance_LK, hit_L).error
    found["verify"] = found["ar"]
    if errors:
        found |= {"n": len(lists), "ece": errors["block"]}
    write_json(ctx.out / "calibration.json", found)
    return found | {f"ece_{name}": round(error, 6) for name, error in errors.items()}
