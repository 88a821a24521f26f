"""Stage `items`: text vectors and semantic IDs of the catalogue.

Reads data/; writes `vectors.safetensors`, `codes.safetensors`, `items.index.json` (LC-Rec's form),
`report.json` and the encoder for unknown items (`vectorizer.json`, `vectorizer.safetensors`,
`quantizer.safetensors`). Co-purchases come from the train part only. Items of a catalogue without
any text are told by their neighbours in histories; their text vectors stay zero. Fails when the
quantizer by itself makes fewer than `items.min_unique` of the IDs distinct. Run: `diffgr2 items
RECIPE`.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import save_arrays, write_json
from diffgr2.config import ItemsConfig
from diffgr2.data.store import read_dataset
from diffgr2.errors import ArtifactError
from diffgr2.items.quality import flat_metrics, id_report
from diffgr2.items.quantize import Encoder, Quantizer, fit_rkmeans, residual_codes
from diffgr2.items.rqvae import fit_rqvae, n_epochs
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import check_capacity, distinct_share, make_unique, take_neighbours
from diffgr2.items.vectors import catalogue_texts, fit_vectors
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.stages import warm
from diffgr2.stages.known import known_part
from diffgr2.types import Catalogue, Histories


def copurchases(train: Histories) -> np.ndarray:
    """Distinct items that follow each other in a history, int32 (pairs, 2); repeats count."""
    user_N = np.repeat(np.arange(train.n_users), train.lengths_U)
    left_N, right_N = train.items_N[:-1], train.items_N[1:]
    real_N = (user_N[:-1] == user_N[1:]) & (left_N != right_N)
    return np.stack([left_N[real_N], right_N[real_N]], axis=1)


def neighbours(train: Histories) -> list[str]:
    """What stands for texts where a catalogue has none: an item's own mark and its neighbours' in
    histories, as often as they are; one a line, so that no two make a term."""
    marks: list[list[int]] = [[item] for item in range(train.n_items)]
    for left, right in copurchases(train).tolist():
        marks[left].append(right)
        marks[right].append(left)
    return ["\n".join(f"beside_{item}" for item in row) for row in marks]


def fit_quantizer(
    vectors_ID: np.ndarray,
    pairs_P2: np.ndarray | None,
    config: ItemsConfig,
    seed: int,
    progress: Progress,
) -> Quantizer:
    """The quantizer that the recipe names."""
    if config.quantizer == "rkmeans":
        return fit_rkmeans(vectors_ID, config, seed)
    with progress.task("items: RQ-VAE epochs", n_epochs(len(vectors_ID), config)) as bar:
        return fit_rqvae(
            vectors_ID, pairs_P2, config, seed, lambda _, loss: bar.advance(1, f"loss {loss:.4f}")
        )


def check_unique(natural_IL: np.ndarray, config: ItemsConfig) -> None:
    """The quantizer itself must tell items apart; repair and policy are for the rest."""
    share = distinct_share(natural_IL)
    if share < config.min_unique:
        raise ArtifactError(
            f"items: {share:.2%} of {len(natural_IL)} semantic IDs are distinct by the quantizer "
            f"itself, before any repair; items.min_unique asks for {config.min_unique:.2%} (more "
            "items.codes or items.levels, or richer item texts)"
        )


def _inherited(ctx: StageContext, catalogue: Catalogue) -> dict[str, Any]:
    """The same of a run that starts from a bundle: its encoder, and its IDs of known items."""
    assert ctx.recipe.start is not None
    vectors_ID, sids, natural_IL = warm.coded(ctx.recipe, catalogue)
    save_arrays(ctx.out / "vectors.safetensors", vectors_ID=vectors_ID)
    sids.save(ctx.out)
    for name in ("vectorizer.json", "vectorizer.safetensors", "quantizer.safetensors"):
        shutil.copyfile(Path(ctx.recipe.start) / "items" / name, ctx.out / name)
    none_I = np.zeros(len(catalogue), np.int32)
    given = (natural_IL, sids.codes_IL, sids.codes_IL, none_I, sids.n_codes)
    report = id_report(*given, catalogue.categories)
    write_json(ctx.out / "report.json", report)
    return flat_metrics(report)


def run(ctx: StageContext) -> dict[str, Any]:
    config = ctx.recipe.items
    dataset = read_dataset(ctx.inputs["data"])
    check_capacity(len(dataset.catalogue), config.levels, config.codes)
    if ctx.recipe.start:
        return _inherited(ctx, dataset.catalogue)
    known = known_part(ctx.recipe, ctx.inputs["data"], dataset)
    texts = catalogue_texts(dataset.catalogue)
    if silent := not any(texts):
        ctx.progress.line("items: no texts: semantic IDs come from what is bought side by side")
        texts = neighbours(known)
    vectors_ID, text_vectors = fit_vectors(texts, config, ctx.seed)
    pairs_P2 = copurchases(known) if config.copurchase_weight else None
    quantizer = fit_quantizer(vectors_ID, pairs_P2, config, ctx.seed, ctx.progress)

    latents_IE = quantizer.latent(vectors_ID)
    natural_IL = residual_codes(latents_IE, quantizer.codebooks_LCD)
    check_unique(natural_IL, config)
    before_IL = take_neighbours(latents_IE, natural_IL, quantizer.codebooks_LCD)
    final_IL, drawn_I = make_unique(before_IL, config.codes, config.random_last, ctx.seed)

    said_ID = np.zeros_like(vectors_ID) if silent else vectors_ID  # neighbours are no words
    save_arrays(ctx.out / "vectors.safetensors", vectors_ID=said_ID)
    SemanticIds(final_IL, config.codes).save(ctx.out)
    Encoder(text_vectors, quantizer).save(ctx.out)
    report = id_report(
        natural_IL, before_IL, final_IL, drawn_I, config.codes, dataset.catalogue.categories
    )
    error = np.square(latents_IE - quantizer.quantized(natural_IL)).mean()
    report["latent_error_share"] = float(error / max(float(latents_IE.var(axis=0).mean()), 1e-12))
    write_json(ctx.out / "report.json", report)
    return {**flat_metrics(report), "latent_error_share": round(report["latent_error_share"], 6)}
