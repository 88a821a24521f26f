"""How unique and how meaningful semantic IDs are, by quantizer, size and seed.

Usage: `python benchmarks/semantic_ids.py [--beauty FOLDER] [--seeds 3] [--out FILE]`, the folder
with Beauty's interactions.parquet and items.parquet; without it the demo's shop alone. Each variant
makes the IDs as the stage `items` does, from texts and the train part. Natural is the share of
distinct IDs that the quantizer made, assigned the share after assignment. Pairs share their first
1, 2, 3 codes: validation pairs (the purchase after a train part, beside that part) chose the
defaults, test pairs did not. Counted pairs end with a train part's own last item, which co-purchase
vectors have seen: as far as more of them share a code, the vectors remember single users. New items
are a tenth of the catalogue, coded by their words as if nobody had bought them: is the first code
the same? Not a test: nothing passes or fails.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from diffgr2.artifacts import write_json
from diffgr2.config import ItemsConfig, Recipe
from diffgr2.data.store import Dataset, read_dataset
from diffgr2.items.blend import blended, bought_vectors
from diffgr2.items.quality import next_pairs, shared_share
from diffgr2.items.vectors import catalogue_texts
from diffgr2.pipeline import Runner, source_commit
from diffgr2.progress import Progress
from diffgr2.recipe import load_recipe
from diffgr2.stages.items import Coded, code
from diffgr2.stages.plan import STAGES
from diffgr2.streams import generator
from diffgr2.types import Histories

VARIANTS: dict[str, dict[str, Any]] = {
    "blend": {},
    "blend, 512 codes": {"codes": 512},
    "blend, 5 levels": {"levels": 5},
    "blend, 3 levels": {"levels": 3},
    "blend, 64 + 64 dimensions": {"text_dim": 64, "bought_dim": 64},
    "blend, text alone": {"bought_weight": 0.0},
    "rqvae": {"quantizer": "rqvae"},
    "rkmeans": {"quantizer": "rkmeans"},
}


def without_last(histories: Histories, cut_U: np.ndarray) -> Histories:
    """Histories that end so many purchases earlier."""
    left_U = np.maximum(histories.lengths_U - cut_U, 0)
    place_N = np.arange(len(histories.items_N)) - np.repeat(
        histories.offsets_U1[:-1], histories.lengths_U
    )
    kept_N = place_N < np.repeat(left_U, histories.lengths_U)
    offsets_U1 = np.concatenate([[0], np.cumsum(left_U)]).astype(np.int64)
    times_N = histories.timestamps_N[kept_N]
    return Histories(offsets_U1, histories.items_N[kept_N], times_N, histories.n_items)


def pairs_of(histories: Histories) -> dict[str, np.ndarray]:
    """Validation, test and counted pairs."""
    ones_U = np.ones(histories.n_users, np.int64)
    known = histories.train_part()
    target_U = histories.items_N[histories.offsets_U1[1:] - 1]
    test_P2 = np.stack([np.repeat(target_U, known.lengths_U), known.items_N], axis=1)
    return {
        "validation": next_pairs(histories, known),
        "test": test_P2[test_P2[:, 0] != test_P2[:, 1]],
        "counted": next_pairs(known, without_last(known, ones_U)),
    }


def new_items(made: Coded, known: Histories, config: ItemsConfig, seed: int) -> float:
    """Share of a tenth of the items whose first code their words alone find."""
    quantizer = made.encoder.quantizer
    held_I = generator(seed, "benchmark", "new").random(len(made.vectors_ID)) < 0.1
    latents_IE = quantizer.latent(made.vectors_ID)
    if config.quantizer == "blend":
        bought_IE = np.float32(config.bought_weight) * bought_vectors(
            known, config.bought_dim, seed
        )
        bought_IE[held_I] = 0.0
        latents_IE, _ = blended(made.vectors_ID, bought_IE, config.text_dim)
    first_H = quantizer.walk(latents_IE[held_I])[0][:, 0]
    return round(float((first_H == made.natural_IL[held_I, 0]).mean()), 4)


def measured(
    dataset: Dataset, config: ItemsConfig, seed: int, pairs: dict[str, np.ndarray]
) -> dict[str, Any]:
    """One row's figures."""
    known = dataset.histories.train_part()
    start = time.process_time()
    made = code(catalogue_texts(dataset.catalogue), known, config, seed, Progress())
    seconds = time.process_time() - start
    report = made.report(dataset.catalogue.categories, pairs["validation"])
    shared = {
        name: [round(share, 5) for share in shared_share(made.final_IL, pairs_P2)]
        for name, pairs_P2 in pairs.items()
    }
    return {
        "levels": config.levels,
        "codes": config.codes,
        "seed": seed,
        "natural": round(report["unique"]["natural"], 5),
        "assigned": round(report["unique"]["assigned"], 5),
        "after": round(report["unique"]["after"], 5),
        "usage": [round(level["usage"], 4) for level in report["levels"]],
        "purity": [round(level["purity"] or 0.0, 4) for level in report["levels"]],
        "shared": shared,
        "shared_by_chance": [round(share, 5) for share in report["shared_by_chance"]],
        "new_first_code": new_items(made, known, config, seed),
        "seconds": round(seconds, 1),
    }


def rows_of(recipe: Recipe, root: Path, seeds: int) -> list[dict[str, Any]]:
    """All variants of one shop."""
    Runner(recipe, root, STAGES).run(["data"])
    dataset = read_dataset(root / "data")
    pairs = pairs_of(dataset.histories)
    rows = []
    for name, changes in VARIANTS.items():
        config = recipe.items.model_copy(update={"min_unique": 0.0, **changes})
        for seed in range(seeds):
            row = {"shop": recipe.name, "items": len(dataset.catalogue), "variant": name}
            rows.append(row | measured(dataset, config, seed, pairs))
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--beauty", type=Path, help="folder of the Beauty files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/semantic_ids"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    recipes = [load_recipe("demo", [])]
    if given.beauty is not None:
        files = [f"data.{name}={given.beauty / name}.parquet" for name in ("interactions", "items")]
        recipes.insert(0, load_recipe("beauty", files))
    rows = [row for r in recipes for row in rows_of(r, given.runs / r.name, given.seeds)]
    command = "python benchmarks/semantic_ids.py" + (" --beauty FOLDER" if given.beauty else "")
    if given.out is not None:
        write_json(given.out, {"command": command, "commit": source_commit(), "rows": rows})


if __name__ == "__main__":
    main()
