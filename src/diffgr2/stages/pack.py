"""Stages `bundle`, `bundle_ar`: a self-contained directory that `Reranker` and the server open.

Contract: copies the stages' own files into the layout of `rerank.bundle`, the dataset packed as
arrays, adds `diffgr2.json` with the recipe's sections that prompts and decoding depend on, and a
model card (`model_card.md`, filled in). Of the calibration it takes the scales of the decoders that
the model has. `bundle_ar` holds the AR teacher. Not here: the format (`rerank.bundle`).
"""

import shutil
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_json, read_manifest, write_json
from diffgr2.config import DECODERS, Recipe
from diffgr2.data import columnar
from diffgr2.data.store import read_dataset
from diffgr2.model.backends import write_graphs
from diffgr2.model.contract import VOCABULARY_FILES, contract_of
from diffgr2.pipeline import StageContext
from diffgr2.rerank.bundle import CALIBRATION, FORMAT, NOTE, PARTS, SECTIONS

CARD = Path(__file__).with_name("model_card.md")
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", *VOCABULARY_FILES)


def card(recipe: Recipe, model: str, n_items: int, *, diffusion: bool) -> str:
    """The model card."""
    decode = recipe.decode
    decoder = decode.decoder if diffusion else "ar"
    setting = ""
    if decoder == "block":
        setting = f" with accept rule `{decode.accept}`, τ = {decode.threshold:g}, `{decode.rule}`"
    setting += f"; read-out `{decode.answer}`, views: {decode.views}"
    decoders = ", ".join(f"`{name}`" for name in DECODERS if diffusion or name == "ar")
    facts = {"recipe": recipe, "model": model, "n_items": n_items, "decoders": decoders}
    return CARD.read_text(encoding="utf-8").format(**facts, decoder=decoder, setting=setting)


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
    n_items, diffusion = len(dataset.catalogue), contract_of(source) is not None
    write_json(out / CALIBRATION, scales_of(ctx.inputs["calibrate"], diffusion=diffusion))
    text = card(recipe, model, n_items, diffusion=diffusion)
    (out / "MODEL_CARD.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"bytes": size, "steps": int(read_manifest(source)["metrics"].get("steps", 0))}
