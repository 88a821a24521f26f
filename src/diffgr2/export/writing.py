"""`export`: a checked model in, a directory in another format out, whole or not at all.

Contract: the export is written beside its place and takes it in one rename, with a manifest of its
own; a directory that stands there already is refused unless it is empty. A README.md in it says how
each engine is started and what equals what. Not here: the formats (`sdar`, `hugging_face`,
`llama_cpp`).
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffgr2.artifacts import MANIFEST, publish
from diffgr2.errors import ConfigError, one_of
from diffgr2.export import hugging_face, llama_cpp, sdar
from diffgr2.export.given import Given, opened

FORMATS = ("sdar", "hf", "gguf", "qwen3")
DIFFUSE = ("sdar", "hf")  # decoded by confidence
THRESHOLD = 0.9
"""τ of the preset `raw`: an engine has no grammar, so the recipe's own τ is for something else."""

PAGES = Path(__file__).parent
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files that readers of text want beside the weights; SDAR's tokenizer.json is its own."""


def export(
    source: Path,
    out: Path,
    format: str,
    *,
    pad_vocab: bool = False,
    aligned: bool = False,
    threshold: float | None = None,
) -> list[str]:
    """Write `source` as `format` into `out`; the names of the files."""
    one_of("--format", format, FORMATS)
    for flag, given in (("--pad-vocab", pad_vocab), ("--aligned-prompts", aligned)):
        if given and format != "sdar":
            raise ConfigError(f"{flag}: for --format sdar only")
    if threshold is not None and format not in DIFFUSE:
        raise ConfigError("--threshold: for --format sdar and hf only")
    threshold = THRESHOLD if threshold is None else threshold
    if not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"--threshold: {threshold:g} is not within 0 … 1")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: stands already")
    if out.resolve().is_relative_to(source.resolve()):  # what no manifest lists breaks a bundle
        raise ConfigError(f"{out}: lies within {source}, which stays as it is")
    given = opened(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        told = _write(given, temporary, format, pad_vocab, aligned, threshold)
        if format != "gguf":
            for path in given.vocabulary:
                if path.name in TOKENIZER and not (temporary / path.name).exists():
                    shutil.copyfile(path, temporary / path.name)
        (temporary / "README.md").write_text(page(given, format, told, threshold), encoding="utf-8")
        temporary.chmod(0o755)
        manifest = publish(temporary, out, {"format": format, "source": given.name})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted([*manifest["files"], MANIFEST])


def _write(
    given: Given, out: Path, format: str, pad_vocab: bool, aligned: bool, threshold: float
) -> dict[str, Any]:
    if format == "sdar":
        return sdar.write(given, out, pad_vocab=pad_vocab, aligned=aligned, threshold=threshold)
    if format == "hf":
        return hugging_face.write_hf(given, out, threshold=threshold)
    return (llama_cpp.write if format == "gguf" else hugging_face.write_qwen3)(given, out)


def page(given: Given, format: str, told: dict[str, Any], threshold: float) -> str:
    """The model card."""
    text = (PAGES / f"{format}.md").read_text(encoding="utf-8")
    block, contract = {}, given.contract
    if contract is not None:
        block = {"block": contract.block_size, "origin": contract.origin}
        block |= {"mask_here": contract.mask_token_id}
    return text.format(name=given.name, threshold=threshold, end=given.end_id, **block, **told)
