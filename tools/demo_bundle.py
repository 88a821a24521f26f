"""Makes the bundle that ships with the package out of a finished run.

Contract: `python tools/demo_bundle.py RUN [--out src/diffgr2/demo]` (or `make demo-bundle`) takes
RUN's `bundle`, stores what a server reads in fewer bits, and publishes it whole with a card that
says how it was made and how many of 200 lists rank as before. The format is that of every bundle:
weights are F16, large matrices of the parts keep a few bits of their mantissas (the others are 0,
which a wheel's compression makes nothing of), and the model has as many positions as its longest
list needs. It refuses to write what is over 4 MB in a wheel. Not here: the run, and the format
(`rerank.bundle`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from readme_table import results_table
from safetensors.numpy import save

from diffgr2.artifacts import (
    finish,
    load_arrays,
    publish,
    read_json,
    read_manifest,
    save_arrays,
    write_json,
)
from diffgr2.errors import ArtifactError, Diffgr2Error
from diffgr2.model.backends import write_graphs
from diffgr2.model.weights import read, widened
from diffgr2.rerank.bundle import check
from diffgr2.rerank.example import of_shopper
from diffgr2.rerank.reranker import Reranker
from diffgr2.rerank.shipped import PACKED, SHIPPED

MOST = 4_000_000  # bytes in a wheel
STEP = 64  # positions are cut to a multiple of
LISTS = 200
ROUNDED = (
    ("items/vectorizer.safetensors", "components_DV", 8),
    ("evidence/index.safetensors", "vectors_IE", 8),
    ("retriever/model.safetensors", "", 9),  # with 8, two of 200 lists came out otherwise
)
"""Files, what of them is rounded (all matrices where nothing is named), and the bits kept of 23."""

GRAPHS = "*.onnx"
CARD = "README.md"


def kept(values: np.ndarray, bits: int) -> np.ndarray:
    """fp32 values to the nearest whose mantissas have so many bits."""
    half = np.uint32(1 << (22 - bits))
    whole = values.astype(np.float32).view(np.uint32) + half
    return (whole & ~np.uint32((1 << (23 - bits)) - 1)).view(np.float32)


def round_parts(directory: Path) -> None:
    """Round the large matrices of the parts in place."""
    for name, wanted, bits in ROUNDED:
        arrays = load_arrays(directory / name)
        for key, array in arrays.items():
            named = key == wanted or not wanted
            if named and array.ndim == 2 and array.dtype == np.float32:
                arrays[key] = kept(array, bits)
        save_arrays(directory / name, **arrays)


def positions_of(reranker: Reranker) -> int:
    """How many the longest list can need under any decoder and read-out, rounded up."""
    from diffgr2.decode.batch import make_writer

    raw = reranker.catalogue.raw_ids
    if reranker.recipe.prompt.template == "gr2":  # as long as the shop's words
        return reranker.model.max_positions
    history, shown = raw[: reranker.recipe.prompt.history], raw[-reranker.k_max :]
    most = 0
    for decoder in reranker.decoders:
        for answer in reranker.answers:
            for reasoning in (True, False):
                ways = {"decoder": decoder, "answer": answer}
                task = reranker.prepare(history, shown, decode=ways, reasoning=reasoning)
                for number, wanted in task.pending():
                    most = max(most, make_writer(number, wanted, task.settings).slots)
    return min(reranker.model.max_positions, -(-(most + 1) // STEP) * STEP)


def shrink(source: Path, out: Path) -> None:
    """The same bundle in fewer bits, unsealed."""
    skipped = shutil.ignore_patterns("manifest.json", GRAPHS, "*.safetensors.index.json")
    shutil.copytree(source, out, ignore=skipped)
    weights = {name: widened(array).astype(np.float16) for name, array in read(source).items()}
    for path in out.glob("*.safetensors"):
        path.unlink()
    (out / "model.safetensors").write_bytes(save(weights, {"format": "pt"}))
    config = read_json(source / "config.json")
    config |= {"dtype": "float16"}
    config["max_position_embeddings"] = positions_of(Reranker.from_pretrained(source))
    write_json(out / "config.json", config)
    round_parts(out)
    write_graphs(out)
    for path in out.rglob("*"):  # a run's files may be its user's alone
        path.chmod(0o755 if path.is_dir() else 0o644)


@dataclass(frozen=True)
class Agreement:
    """What the packed bundle answers, held against its source."""

    lists: int
    same: int  # in the whole order
    first: int  # on top


def agreement(source: Path, packed: Path, lists: int = LISTS) -> Agreement:
    """Both bundles rank the lists that the source's retriever shows, each with its own scores."""
    one, two = Reranker.from_pretrained(source), Reranker.from_pretrained(packed)
    users_U = np.unique(np.linspace(0, one.histories.n_users - 1, 2 * lists).astype(int))
    found = (of_shopper(one, user) for user in users_U.tolist())
    asked = [made.arguments for made in found if made is not None][:lists]
    asked = [{key: value for key, value in each.items() if key != "scores"} for each in asked]
    pairs = list(zip(one.rank_many(asked), two.rank_many(asked), strict=True))
    same = sum(a.order == b.order for a, b in pairs)
    return Agreement(len(pairs), same, sum(a.order[0] == b.order[0] for a, b in pairs))


def in_a_wheel(directory: Path) -> int:
    """Bytes of all files as a wheel's archive compresses them."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(len(zlib.compress(path.read_bytes(), 6)) for path in files)


def facts_of(run: Path) -> dict[str, Any]:
    """What made the run."""
    note, made = read_json(run / "run.json"), read_manifest(run / "bundle")
    return {
        "command": note["command"],
        "seed": note["recipe"]["seed"],
        "commit": made["versions"].get("commit") or "unknown",
        "diffgr2": made["versions"].get("diffgr2", "unknown"),
    }


def card(source: Path, run: Path, facts: dict[str, Any], found: Agreement, size: int) -> str:
    """The source's card, how it was made, its results and what packing changed."""
    report = run / "report" / "report.json"
    table = results_table(read_json(report), every=False) if report.is_file() else ""
    told = (source / CARD).read_text(encoding="utf-8").rstrip()
    lines = [
        "## How it was packed",
        "",
        f"`{facts['command']}`, seed {facts['seed']}, diffgr2 {facts['diffgr2']} at "
        f"{facts['commit']}, then `python tools/demo_bundle.py {run.as_posix()}`.",
        *(["", "## Results", "", table] if table else []),
        "",
        "## What packing changed",
        "",
        f"Weights are F16; matrices of {', '.join(name for name, *_ in ROUNDED)} keep "
        f"{', '.join(str(bits) for *_, bits in ROUNDED)} bits of their mantissas; positions end "
        "where the longest list does. Of "
        f"{found.lists} lists {found.same} rank as before in every place, {found.first} on top. "
        f"{size / 1e6:.1f} MB in a wheel. It ranks and can be refreshed to another place; to train "
        "on, take the run's own bundle.",
    ]
    return f"{told}\n\n" + "\n".join(lines) + "\n"


def pack(run: Path, out: Path, lists: int = LISTS) -> dict[str, Any]:
    """Make the bundle; what its manifest says of it."""
    source = run / "bundle"
    check(source)
    facts, temporary = facts_of(run), out.with_name(f".{out.name}.packing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shrink(source, temporary)
        kept_keys = ("inputs", "metrics", "name", "seed", "versions")
        manifest = {key: v for key, v in read_manifest(source).items() if key in kept_keys}
        finish(temporary, manifest)
        found = agreement(source, temporary, lists)
        size = in_a_wheel(temporary)
        if size > MOST:
            raise ArtifactError(f"{source}: packed it has {size:,} bytes in a wheel, over {MOST:,}")
        text = card(source, run, facts, found, size)
        (temporary / CARD).write_text(text, encoding="utf-8")
        facts |= {"bytes_in_a_wheel": size, "lists": found.lists, "same": found.same}
        (temporary / "manifest.json").unlink()
        publish(temporary, out, {**manifest, PACKED: facts})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def main(arguments: list[str] | None = None) -> int:
    """Pack and say what came of it."""
    parser = argparse.ArgumentParser(description="Make the bundle that ships with the package.")
    parser.add_argument("run", type=Path, help="a finished run's directory, runs/demo")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args(arguments)
    try:
        facts = pack(options.run, options.out)
    except Diffgr2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    whole = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(
        f"{options.out}: {whole / 1e6:.2f} MB, in a wheel {facts['bytes_in_a_wheel'] / 1e6:.2f}; "
        f"{facts['same']} of {facts['lists']} lists rank as in {options.run / 'bundle'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
