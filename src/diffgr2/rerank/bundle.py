"""The bundle's format: what a model directory holds that can rank by itself.

Contract: config.json, weights and the vocabulary at top level, so that any tool for Qwen3-family
directories opens it; the parts below in directories of their own; `diffgr2.json` with the recipe's
sections that a request depends on; a manifest with every file's size and sha256. `check` refuses
anything else. Not here: writing one (`stages.pack`).
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from diffgr2 import strict_json
from diffgr2.artifacts import MANIFEST, read_manifest
from diffgr2.config import Recipe
from diffgr2.errors import ArtifactError, DataError
from diffgr2.model.contract import VOCABULARY_FILES
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


REQUIRED = ("config.json", NOTE, *VOCABULARY_FILES)


@dataclass(frozen=True)
class Note:
    """What `diffgr2.json` says."""

    recipe: Recipe
    simulated: bool  # the shoppers are invented: their histories are nobody's secret


def read_note(directory: Path) -> Note:
    """The recipe's sections that came with the bundle, and whose shoppers it holds."""
    path = directory / NOTE
    note = read_strict(path)
    if not isinstance(note, dict) or note.get("format") != FORMAT:
        raise ArtifactError(f"{path}: not a bundle of format {FORMAT}")
    recipe = validate(note.get("recipe", {}), str(path))
    return Note(recipe, note.get("shoppers") == "simulated")


def check(directory: Path) -> None:
    """Refuse what is no whole, unchanged bundle, in one line, before anything of it is used.

    Every required file is listed once and every listed one is as it was when it was sealed; no name
    leads out of the directory, and nothing in it is a link.
    """
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: no such directory")
    manifest = read_strict(directory / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise ArtifactError(f"{directory / MANIFEST}: not a manifest")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or "\\" in name or {"..", "."} & {*name.split("/")}:
            raise ArtifactError(f"{directory / MANIFEST}: {name[:80]!r} leads out of the bundle")
        if not isinstance(entry, dict) or {"sha256", "size"} - entry.keys():
            raise ArtifactError(f"{directory / MANIFEST}: {name[:80]!r} lacks size or sha256")
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise ArtifactError(f"{path}: a link has no place in a bundle")
    wanted = [*REQUIRED, *(f"{part}/{name}" for part, names in PARTS.items() for name in names)]
    for name in wanted:
        if name not in files:
            raise ArtifactError(f"{directory / MANIFEST}: {name} is not listed")
    if not any(name.endswith(".safetensors") and "/" not in name for name in files):
        raise ArtifactError(f"{directory / MANIFEST}: no weights are listed")
    for path in (*directory.glob("*.safetensors*"), *directory.glob("*.json")):
        if path.name != MANIFEST and path.name not in files:
            raise ArtifactError(f"{path}: is not listed in the manifest")
    read_manifest(directory, verify=True)


def read_strict(path: Path) -> Any:
    """A JSON file without duplicate keys or numbers that are none."""
    try:
        return strict_json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from None
    except DataError as error:
        raise ArtifactError(f"{path}: {error}") from None
