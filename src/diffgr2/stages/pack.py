"""Stages `bundle`, `bundle_ar`: a self-contained directory that `Reranker` and the server open.

Contract: copies the stages' own files into the layout of `rerank.bundle`, the dataset packed as
arrays, adds `diffgr2.json` with the recipe's sections that prompts and decoding depend on, the
verdict on the row that is decoded as the bundle decodes by default (`verdict.json`, of test lists),
and README.md, a model card that says it (`model_card.md`, filled in). Of the calibration it takes
the scales of the decoders that the model has. `bundle_ar` holds the AR teacher. Not here: the
format (`rerank.bundle`), judging (`judge`).
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_json, read_manifest, write_json
from diffgr2.config import DECODERS, Recipe
from diffgr2.data import columnar
from diffgr2.data.store import read_dataset
from diffgr2.evaluate.tables import at, markdown_table
from diffgr2.model.adapter import FOLDER
from diffgr2.model.backends import write_graphs
from diffgr2.model.contract import CHAT_TEMPLATE, VOCABULARY_FILES, contract_of
from diffgr2.pipeline import StageContext
from diffgr2.rerank.bundle import CALIBRATION, FORMAT, NOTE, PARTS, SECTIONS, VERDICT
from diffgr2.stages.judge import PACKED, data_of, verdict_of
from diffgr2.stages.rows import read_row

CARD = Path(__file__).with_name("model_card.md")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MODEL_FILES = ("config.json", *WEIGHTS, *VOCABULARY_FILES, CHAT_TEMPLATE)


def card(
    recipe: Recipe,
    model: str,
    counts: Mapping[str, int],
    verdict: Mapping[str, Any] | None,
    *,
    diffusion: bool,
) -> str:
    """The model card; `counts` are items, users and interactions."""
    decode = recipe.decode
    decoder = decode.decoder if diffusion else "ar"
    setting = ""
    if decoder == "block":
        setting = f" with accept rule `{decode.accept}`, τ = {decode.threshold:g}, `{decode.rule}`"
    setting += f"; read-out `{decode.answer}`, views: {decode.views}"
    decoders = ", ".join(f"`{name}`" for name in DECODERS if diffusion or name == "ar")
    facts = {"recipe": recipe, "model": model, "decoders": decoders, **counts}
    facts |= {"decoder": decoder, "setting": setting, "data": data_of(recipe)[0]}
    facts["ranker"] = "its own ranker" if recipe.lists.file else "this retriever"
    facts["verdict"] = "Not judged: no test list holds its target."
    if verdict:
        lines = [f"- {line}" for line in verdict["lines"]]
        if failing := verdict["worse_than"]:
            told = f"**Worse than its {' and its '.join(failing)}**: the server wants `--force`."
            lines = [told, "", *lines]
        facts["verdict"] = "\n".join([*lines, "", judged_table(verdict)])
    return CARD.read_text(encoding="utf-8").format(**facts)


def judged_table(verdict: Mapping[str, Any]) -> str:
    """What the row and those it was held against are worth."""
    (row, *_), metrics = verdict["against"], verdict["against"][0]["metrics"]
    heads = [metric.upper() for metric in metrics]
    own = [{"name": verdict["row"], **{m: row["metrics"][m]["value"] for m in metrics}}]
    others = {
        one["row"]: {"name": one["row"], **{m: one["metrics"][m]["other"] for m in metrics}}
        for one in verdict["against"]
    }
    columns = [("row", at("name")), *zip(heads, map(at, metrics), strict=True)]
    return markdown_table([*own, *others.values()], columns)


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
    text = card(recipe, model, counts, verdict, diffusion=diffusion)
    (out / "README.md").write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    stances = {one["part"]: one["stance"] for one in verdict["against"]} if verdict else {}
    told = {"verdict": stances or "not judged"}
    return {**told, "bytes": size, "steps": int(read_manifest(source)["metrics"].get("steps", 0))}
