"""Stages `bundle`, `bundle_ar`: a self-contained directory that `Reranker` and the server open.

Contract: copies the stages' own files into the layout of `rerank.bundle`, the dataset packed as
arrays, adds `diffgr2.json` with the recipe's sections that prompts and decoding depend on, the
verdict on the row that is decoded as the bundle decodes by default (`verdict.json`, of test lists),
and README.md, a model card that says it (`card`). Of the calibration it takes
the scales of the decoders that the model has. `bundle_ar` holds the AR teacher. Not here: the
format (`rerank.bundle`), judging (`judge`).
"""

import shutil
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_json, read_manifest, write_json
from diffgr2.config import DECODERS
from diffgr2.data import columnar
from diffgr2.data.store import read_dataset
from diffgr2.model.adapter import FOLDER
from diffgr2.model.backends import write_graphs
from diffgr2.model.contract import CHAT_TEMPLATE, VOCABULARY_FILES, contract_of
from diffgr2.pipeline import StageContext
from diffgr2.rerank.bundle import CALIBRATION, FORMAT, NOTE, PARTS, SECTIONS, VERDICT
from diffgr2.stages.card import card, origin
from diffgr2.stages.judge import PACKED, rows_of_verdict, verdict_of
from diffgr2.stages.rows import read_row

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MODEL_FILES = ("config.json", *WEIGHTS, *VOCABULARY_FILES, CHAT_TEMPLATE)


def scales_of(calibration: Path, *, diffusion: bool) -> dict[str, float]:
    """What turns strengths into probabilities, of the decoders that the bundle's model has."""
    found = read_json(calibration / "calibration.json")
    names = {name: name for name in DECODERS} if diffusion else {"ar": "teacher_ar"}
    return {name: found[key] for name, key in names.items() if key in found}


def run(ctx: StageContext, model: str) -> dict[str, Any]:
    """One bundle, with the weights of the stage `model`, and what it weighs."""
    source, out, recipe = ctx.inputs[model], ctx.out, ctx.recipe
    for pattern in MODEL_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, out / path.name)
    if (source / FOLDER).is_dir():
        shutil.copytree(source / FOLDER, out / FOLDER)
    write_graphs(out)
    for part, names in PARTS.items():
        (out / part).mkdir()
        for name in names:
            if part not in ("data", "calibrate"):
                shutil.copyfile(ctx.inputs[part] / name, out / part / name)
    dataset = read_dataset(ctx.inputs["data"])
    columnar.pack(out / "data", dataset)
    values = recipe.model_dump(mode="json", include=set(SECTIONS))
    whose = {"shoppers": "simulated"} if recipe.data.source == "shop" else {}
    write_json(out / NOTE, {"format": FORMAT, "model": model, "recipe": values, **whose})
    diffusion = contract_of(source) is not None
    verdict = verdict_of(recipe, ctx.inputs, read_row(recipe, PACKED[model]))
    if verdict:
        write_json(out / VERDICT, verdict)
    write_json(out / CALIBRATION, scales_of(ctx.inputs["calibrate"], diffusion=diffusion))
    histories = dataset.histories
    counts = {"n_items": len(dataset.catalogue), "n_users": histories.n_users}
    counts["n_interactions"] = len(histories.items_N)
    rows = rows_of_verdict(recipe, ctx.inputs, verdict)
    made = origin(ctx.inputs, recipe)
    text = card(recipe, model, counts, verdict, rows, made, diffusion=diffusion)
    (out / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    stances = {one["part"]: one["stance"] for one in verdict["against"]} if verdict else {}
    told = {"verdict": stances or "not judged"}
    return {**told, "bytes": size, "steps": int(read_manifest(source)["metrics"].get("steps", 0))}
