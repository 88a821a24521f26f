"""Stage `items`: text vectors and semantic IDs of the catalogue.

Reads data/; writes `vectors.safetensors`, `codes.safetensors`, `items.index.json` (LC-Rec's form),
`report.json` and the encoder for unknown items (`vectorizer.json`, `vectorizer.safetensors`,
`quantizer.safetensors`). Co-purchases come from the train part only. Items of a catalogue without
any text are told by their neighbours in histories; their text vectors stay zero. Fails when the
quantizer by itself makes fewer than `items.min_unique` of the IDs distinct: assignment repairs
every duplicate and would hide it. Run: `diffgr2 items RECIPE`.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import save_arrays, write_json
from diffgr2.config import ItemsConfig
from diffgr2.data.store import read_dataset
from diffgr2.errors import ArtifactError
from diffgr2.items.blend import bought_vectors, fit_blend
from diffgr2.items.quality import flat_metrics, id_report, next_pairs
from diffgr2.items.quantize import Encoder, Quantizer, fit_rkmeans
from diffgr2.items.rqvae import fit_rqvae, n_epochs
from diffgr2.items.sids import SemanticIds
from diffgr2.items.uniqueness import assigned, check_capacity, distinct_share, make_unique
from diffgr2.items.vectors import catalogue_texts, fit_vectors
from diffgr2.pipeline import StageContext
from diffgr2.progress import Progress
from diffgr2.stages import warm
from diffgr2.stages.known import known_part
from diffgr2.streams import permutation
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
    vectors_ID: np.ndarray, known: Histories, config: ItemsConfig, seed: int, progress: Progress
) -> tuple[Quantizer, np.ndarray]:
    """The quantizer that the recipe names, and what it quantizes of the catalogue."""
    if config.quantizer == "blend":
        bought_IE = bought_vectors(known, config.bought_dim, seed)
        return fit_blend(vectors_ID, bought_IE, config, seed)
    if config.quantizer == "rkmeans":
        return fit_rkmeans(vectors_ID, config, seed), vectors_ID
    pairs_P2 = copurchases(known) if config.copurchase_weight else None
    with progress.task("items: RQ-VAE epochs", n_epochs(len(vectors_ID), config)) as bar:
        fitted = fit_rqvae(
            vectors_ID, pairs_P2, config, seed, lambda _, loss: bar.advance(1, f"loss {loss:.4f}")
        )
    return fitted, fitted.latent(vectors_ID)


@dataclass(frozen=True)
class Coded:
    """A catalogue's codes at every step on the way, and what they were made with."""

    vectors_ID: np.ndarray  # of the texts
    latents_IE: np.ndarray  # what was quantized
    encoder: Encoder
    natural_IL: np.ndarray
    near_IL: np.ndarray  # after assignment
    final_IL: np.ndarray
    drawn_I: np.ndarray  # how many of an item's last codes were drawn at random
    error_I: np.ndarray  # squared error of the natural codes

    @property
    def error_share(self) -> float:
        """Of the latents' variance."""
        spread_IE = self.latents_IE - self.latents_IE.mean(axis=0)
        return float(self.error_I.sum() / max(float(np.square(spread_IE).sum()), 1e-12))

    def report(self, categories: list[list[str]], pairs_P2: np.ndarray) -> dict[str, Any]:
        """`id_report`, and how much the codes leave out."""
        n_codes = self.encoder.quantizer.codebooks_LCD.shape[1]
        steps = (self.natural_IL, self.near_IL, self.final_IL, self.drawn_I, n_codes)
        return id_report(*steps, categories, pairs_P2) | {"latent_error_share": self.error_share}


def code(
    texts: list[str], known: Histories, config: ItemsConfig, seed: int, progress: Progress
) -> Coded:
    """Vectors, quantizer and codes of a catalogue, told by its texts and the known purchases."""
    vectors_ID, text_vectors = fit_vectors(texts, config, seed)
    quantizer, latents_IE = fit_quantizer(vectors_ID, known, config, seed, progress)
    natural_IL, error_I = quantizer.walk(latents_IE)
    check_unique(natural_IL, config)
    near_IL = assigned(latents_IE, natural_IL, quantizer)
    final_IL, drawn_I = make_unique(near_IL, config.codes, config.random_last, seed)
    if config.shuffle:
        final_IL = final_IL[permutation(len(final_IL), seed, "items", "shuffle")]
    encoder = Encoder(text_vectors, quantizer)
    return Coded(vectors_ID, latents_IE, encoder, natural_IL, near_IL, final_IL, drawn_I, error_I)


def check_unique(natural_IL: np.ndarray, config: ItemsConfig) -> None:
    """The quantizer itself must tell items apart; repair and policy are for the rest."""
    share = distinct_share(natural_IL)
    if share < config.min_unique:
        raise ArtifactError(
            f"items: {share:.2%} of {len(natural_IL)} semantic IDs are distinct by the quantizer "
            f"itself, before any repair; items.min_unique asks for {config.min_unique:.2%} (more "
            "items.codes or items.levels, or richer item texts)"
        )


def _inherited(ctx: StageContext, catalogue: Catalogue, pairs_P2: np.ndarray) -> dict[str, Any]:
    """The same of a run that starts from a bundle: its encoder, and its IDs of known items."""
    assert ctx.recipe.start is not None
    vectors_ID, sids, natural_IL = warm.coded(ctx.recipe, catalogue)
    save_arrays(ctx.out / "vectors.safetensors", vectors_ID=vectors_ID)
    sids.save(ctx.out)
    for name in ("vectorizer.json", "vectorizer.safetensors", "quantizer.safetensors"):
        shutil.copyfile(Path(ctx.recipe.start) / "items" / name, ctx.out / name)
    none_I = np.zeros(len(catalogue), np.int32)
    given = (natural_IL, sids.codes_IL, sids.codes_IL, none_I, sids.n_codes)
    report = id_report(*given, catalogue.categories, pairs_P2)
    write_json(ctx.out / "report.json", report)
    return flat_metrics(report)


def run(ctx: StageContext) -> dict[str, Any]:
    config = ctx.recipe.items
    dataset = read_dataset(ctx.inputs["data"])
    catalogue = dataset.catalogue
    check_capacity(len(catalogue), config.levels, config.codes)
    known = known_part(ctx.recipe, ctx.inputs["data"], dataset)
    pairs_P2 = next_pairs(dataset.histories, known)
    if ctx.recipe.start:
        return _inherited(ctx, catalogue, pairs_P2)
    texts = catalogue_texts(catalogue)
    if silent := not any(texts):
        ctx.progress.line("items: no texts: semantic IDs come from what is bought side by side")
        texts = neighbours(known)
    made = code(texts, known, config, ctx.seed, ctx.progress)
    # Neighbours are no words.
    said_ID = np.zeros_like(made.vectors_ID) if silent else made.vectors_ID
    save_arrays(ctx.out / "vectors.safetensors", vectors_ID=said_ID)
    SemanticIds(made.final_IL, config.codes).save(ctx.out)
    made.encoder.save(ctx.out)
    report = made.report(catalogue.categories, pairs_P2)
    write_json(ctx.out / "report.json", report)
    return {**flat_metrics(report), "latent_error_share": round(made.error_share, 6)}
