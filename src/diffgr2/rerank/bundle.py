"""The bundle's format: what a model directory holds that can rank by itself.

Contract: config.json, weights and the vocabulary at top level, so that any tool for Qwen3-family
directories opens it; the parts below in directories of their own; `diffgr2.json` with the recipe's
sections that a request depends on; a manifest with every file's size and sha256. `read_note` checks
what it opens. Not here: writing one (`stages.pack`).
"""

from pathlib import Path

from diffgr2.artifacts import read_json
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError
from diffgr2.recipe import validate

FORMAT = 1
NOTE = "diffgr2.json"
SECTIONS = ("name", "seed", "items", "candidates", "evidence", "prompt", "decode")
"""What of the recipe a request depends on."""

PARTS = {
    "data": ("items.parquet", "users.parquet", "histories.safetensors", "report.json"),
    "items": (
        "codes.safetensors",
        "items.index.json",
        "vectorizer.json",
        "vectorizer.safetensors",
        "quantizer.safetensors",
    ),
    "evidence": ("index.safetensors", "index.json"),
    "retriever": ("model.safetensors", "config.json"),
}
"""Files taken from each stage, under its name."""


def read_note(directory: Path) -> Recipe:
    """The recipe's sections that came with the bundle."""
    note = read_json(directory / NOTE)
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise ArtifactError(f"{directory / NOTE}: not a bundle of format {FORMAT}")
    return validate(note.get("recipe", {}), str(directory / NOTE))
