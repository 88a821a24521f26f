"""A run that starts from a bundle: the same vocabulary and semantic IDs, its weights to begin with.

    diffgr2 run RECIPE --from runs/shop/bundle        # or the recipe's key `start`

Contract: `check(recipe, root)` refuses, in one line and before any stage runs, a bundle that is
broken, that does not fit the recipe's shapes, or that this very run would replace; `files` are what
the stages' keys depend on. The stage `items` keeps the IDs of items that the bundle knows and gives
others free ones by its encoder (`coded`), `vocabulary` takes its tokenizer (`vocabulary`), and
`midtrain` begins with its weights. Every later stage begins with the stage before it, as always, so
all weights descend from the bundle's: a diffusion model keeps its AR head, so either kind of bundle
serves. Data, retriever, lists, evidence and its edges are made anew. Not here: steps and rates,
which the recipe says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffgr2.artifacts import MANIFEST, read_json
from diffgr2.candidates.fields import COUNTED, names_of
from diffgr2.choices import MOMENT
from diffgr2.config import Recipe
from diffgr2.data.columnar import unpack
from diffgr2.errors import ConfigError
from diffgr2.items.quantize import Encoder
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import placed
from diffgr2.items.vectors import catalogue_texts
from diffgr2.model.contract import SECTION
from diffgr2.prompts.vocab import Vocabulary
from diffgr2.rerank.bundle import opened, read_note
from diffgr2.rerank.shipped import refuse_packed
from diffgr2.types import Catalogue

if TYPE_CHECKING:
    from diffgr2.model.load import Backbone
SIZES = {
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "rope_theta": "rope_theta",
}
"""The recipe's word for a size -> that of config.json."""


def files(recipe: Recipe) -> list[Path]:
    """The manifest of the bundle that the run starts from, if it does: it stands for all of it."""
    return [Path(recipe.start) / MANIFEST] if recipe.start else []


def check(recipe: Recipe, root: Path) -> None:
    """See the module's docstring; `root` is the run's directory."""
    if not recipe.start:
        return
    start = Path(recipe.start)
    if start.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"start: {start} belongs to this run, which would replace it (say another directory "
            "with --runs, or copy the bundle)"
        )
    refuse_packed(start)
    gaps = opened(start, lambda directory: unfit(recipe, directory))
    if gaps:
        raise ConfigError(f"start: {start} does not fit the recipe: {'; '.join(gaps)}")


def unfit(recipe: Recipe, start: Path) -> list[str]:
    """What of the recipe a bundle's vocabulary and weights cannot follow."""
    spec, note = Vocabulary.load(start).spec, read_note(start)
    config = read_json(start / "config.json")
    pairs: dict[str, tuple[Any, Any]] = {
        "items.levels": (spec.levels, recipe.items.levels),
        "items.codes": (spec.codes, recipe.items.codes),
        "candidates.k_max": (spec.k, recipe.candidates.k_max),
        "evidence.buckets": (spec.buckets, recipe.evidence.buckets),
        "prompt.strengths": (spec.strengths, recipe.prompt.strengths),
        "prompt.template": (note.recipe.prompt.template, recipe.prompt.template),
    }
    if recipe.model.base is None:  # a base checkpoint says its sizes itself
        for word, name in SIZES.items():
            pairs[f"model.{word}"] = (config.get(name), getattr(recipe.model, word))
    lacking = lacking_of(recipe, spec.fields)
    known = f"evidence: {', '.join(lacking)} is known there, not here"
    more = [f"{known}{_hint(lacking)}"] if lacking else []
    differ = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    return [*(f"{key} is {has} there, {wants} here" for key, (has, wants) in differ.items()), *more]


def lacking_of(recipe: Recipe, fields: Sequence[str]) -> list[str]:
    """Which of these fields no data can bring, as the recipe does not ask for them.

    What it asks for may still be missing in the data: that is known once evidence was counted.
    """
    wanted = {*recipe.evidence.fields} if recipe.evidence.fields else {*names_of(COUNTED)}
    wanted |= {*MOMENT} if recipe.evidence.moment else set()
    wanted |= {*recipe.lists.features} if recipe.lists.file else set()
    return [name for name in fields if name not in wanted]


def weights(start: str) -> Backbone:
    """The bundle's model as an AR one, which it is besides: `convert` makes the new one diffuse."""
    from diffgr2.model.load import load

    model = load(Path(start))
    if hasattr(model.config, SECTION):
        delattr(model.config, SECTION)
    return model


def coded(recipe: Recipe, catalogue: Catalogue) -> tuple[np.ndarray, SemanticIds, np.ndarray]:
    """Text vectors and natural codes by the bundle's encoder, and IDs: known items keep theirs."""
    start = Path(recipe.start or "") / "items"
    encoder, known = Encoder.load(start), SemanticIds.load(start)
    _, theirs, _ = unpack(start.parent / "data")
    number = {raw: item for item, raw in enumerate(theirs.raw_ids)}
    vectors_ID, natural_IL = encoder.encode(catalogue_texts(catalogue))
    of_I = np.array([number.get(raw, -1) for raw in catalogue.raw_ids])
    codes_IL = known.codes_IL[of_I]
    fresh = of_I < 0
    # An item that is gone keeps its ID to itself: the model learned it for something else.
    codes_IL[fresh] = placed(
        known.codes_IL,
        natural_IL[fresh],
        encoder.quantizer.latent(vectors_ID[fresh]),
        encoder.quantizer,
        recipe.items.random_last,
        recipe.seed,
    )
    natural_IL[~fresh] = codes_IL[~fresh]  # they were made with more than an item's words
    return vectors_ID, SemanticIds(codes_IL, known.n_codes), natural_IL


def vocabulary(recipe: Recipe, fields: tuple[str, ...]) -> Vocabulary:
    """The bundle's vocabulary, for evidence of these fields."""
    start = Path(recipe.start or "")
    vocab = Vocabulary.load(start)
    if vocab.spec.fields != fields:
        raise ConfigError(f"start: {start} {_other_evidence(vocab.spec.fields, fields)}")
    return vocab


def _other_evidence(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    """What differs, and what usually brings it back."""
    lacking = [name for name in theirs if name not in ours]
    strange = [name for name in ours if name not in theirs]
    parts = []
    if lacking:
        told = f"knows evidence that this data lacks: {', '.join(lacking)}"
        parts.append(f"{told}{_hint(lacking)}")
    if strange:
        parts.append(f"does not know the evidence {', '.join(strange)}")
    return "; it ".join(parts) or f"has its evidence in another order: {', '.join(theirs)}"


def _hint(lacking: Sequence[str]) -> str:
    """What usually brings evidence that is lacking."""
    counted = {*names_of(COUNTED), *MOMENT}
    own = [name for name in lacking if name not in counted]
    hints = [f"name {', '.join(own)} in lists.features"] if own else []
    hints += ["`gap` wants scores with the lists"] if "gap" in lacking else []
    return f" ({'; '.join(hints)})" if hints else ""
