"""Stage `bundle`: one self-contained model directory that `Reranker` and the server open.

Contract: writes config.json, model.safetensors and the vocabulary at top level, so that any tool
for Qwen3-family directories opens it; what a request needs besides in `data/` (catalogue and
histories), `items/` (semantic IDs and the encoder of unknown items), `evidence/` (the index) and
`retriever/`; `diffgr2.json` with the recipe's sections that prompts and decoding depend on; and a
model card. Files are copied, so the bundle gives the stages' own outputs. `bundle_ar` packs the AR
teacher in the same way. Not here: the format (`rerank.bundle`).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgr2.artifacts import read_manifest, write_json
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError
from diffgr2.model.load import VOCABULARY_FILES
from diffgr2.pipeline import StageContext
from diffgr2.rerank.bundle import FORMAT, NOTE, PARTS, SECTIONS

CARD = """\
# {name}

A generative reasoning re-ranker for recommendation lists, made by `diffgr2` from the recipe
`{name}` (seed {seed}), stage `{model}`.

- Input: a shopper's history and up to {k} candidates in the retriever's order; longer lists go
  through a sliding window. Output: a short reasoning and a permutation of the candidates.
- Template `{template}`, {levels} × {codes} semantic IDs, {n_items} items.
- Decoders: {decoders}. Recommended: `{decoder}`{setting}.
- Catalogue, histories, evidence counts and the retriever of this shop are inside: treat the
  directory as you treat the shop's own data. Weights are safetensors; nothing is executed.

```python
from diffgr2 import Reranker

reranker = Reranker.from_pretrained("this/directory")
print(reranker.rank(["item id", "item id"], ["candidate id", "candidate id"]).items)
```

or `diffgr2 rerank --model this/directory --history … --candidates …`, or
`diffgr2 serve --model this/directory`.

Not for: catalogues other than its own (unknown items are placed by their words alone), and
decisions about people.
"""


def copy_part(source: Path, out: Path, names: tuple[str, ...]) -> None:
    """Copy named files of a stage."""
    out.mkdir(parents=True)
    for name in names:
        if not (source / name).is_file():
            raise ArtifactError(f"{source / name}: file is missing, the bundle needs it")
        shutil.copyfile(source / name, out / name)


def model_files(directory: Path) -> list[str]:
    """Weights, config and vocabulary of a model directory."""
    weights = sorted(path.name for path in directory.glob("*.safetensors"))
    index = sorted(path.name for path in directory.glob("*.safetensors.index.json"))
    wanted = ["config.json", *weights, *index, *VOCABULARY_FILES]
    return [name for name in wanted if (directory / name).is_file()]


def card(recipe: Recipe, model: str, n_items: int, *, diffusion: bool) -> str:
    """The model card."""
    decode = recipe.decode
    decoder = decode.decoder if diffusion else "ar"
    setting = ""
    if decoder == "block":
        setting = f" with accept rule `{decode.accept}`, τ = {decode.threshold:g}, `{decode.rule}`"
    return CARD.format(
        name=recipe.name,
        seed=recipe.seed,
        model=model,
        k=recipe.candidates.k,
        template=recipe.prompt.template,
        levels=recipe.items.levels,
        codes=recipe.items.codes,
        n_items=f"{n_items:,}",
        decoders="`ar`, `block`, `verify`" if diffusion else "`ar`",
        decoder=decoder,
        setting=setting,
    )


def write_bundle(inputs: Mapping[str, Path], model: str, recipe: Recipe, out: Path) -> None:
    """Pack the stage directories; `model` names the stage whose weights go in."""
    from diffgr2.data.store import read_catalogue
    from diffgr2.model.contract import contract_of

    source = inputs[model]
    diffusion = contract_of(source) is not None
    for name in model_files(source):
        shutil.copyfile(source / name, out / name)
    for part, names in PARTS.items():
        copy_part(inputs[part], out / part, names)
    values = recipe.model_dump(mode="json", include=set(SECTIONS))
    whose = {"shoppers": "simulated"} if recipe.data.source == "shop" else {}
    write_json(out / NOTE, {"format": FORMAT, "model": model, "recipe": values, **whose})
    n_items = len(read_catalogue(inputs["data"]))
    (out / "MODEL_CARD.md").write_text(card(recipe, model, n_items, diffusion=diffusion))


def pack(ctx: StageContext, model: str) -> dict[str, Any]:
    """One bundle and what it weighs."""
    write_bundle(ctx.inputs, model, ctx.recipe, ctx.out)
    size = sum(path.stat().st_size for path in ctx.out.rglob("*") if path.is_file())
    trained = read_manifest(ctx.inputs[model])["metrics"]
    return {"bytes": size, "steps": int(trained.get("steps", 0))}


def run(ctx: StageContext) -> dict[str, Any]:
    return pack(ctx, "block_rl")


def run_ar(ctx: StageContext) -> dict[str, Any]:
    return pack(ctx, "rl")
