"""A golden bundle: a tiny recipe trained by some version of the source, and how that version ranks.

    python tools/golden.py 5                               # by this checkout
    python tools/golden.py 2 --source ../a3feee4           # by a checkout of an earlier version
    python tools/golden.py 1 --source ../a5508df --unanswered
    (3: d5e36de, 4: df6d318, 5-early: 769685d)

Contract: writes tests/golden/format-NAME.tar.xz (the bundle, as its version packed it) and, unless
nobody can ask that version any more, format-NAME.json (requests, and what that version answers).
NAME begins with the number of the format. The version works in processes of its own, in a directory
that is thrown away. Not here: what the tests do with them (tests/oracle/test_golden_oracle.py),
reading older formats (`stages.upgrade`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"

SETS = {
    "data.shop.n_items": 60,
    "data.shop.n_users": 120,
    "items.vector_dim": 8,
    "items.levels": 3,
    "items.codes": 8,
    "items.min_unique": 0.2,
    "retriever.dim": 8,
    "retriever.epochs": 2,
    "candidates.k": 4,
    "evidence.history": 6,
    "prompt.text_vocab": 256,
    "model.dim": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.head_dim": 8,
    "model.ffn": 32,
    "midtrain.steps": 2,
    "midtrain.warmup": 1,
    "sft.steps": 60,
    "sft.warmup": 5,
    "distill.lists": 64,
    "cft.steps": 20,
    "cft.warmup": 2,
}
"""Of the recipe micro; every version knows these keys."""

ANSWERS = """
import json, sys
from diffgr2.rerank.reranker import Reranker
one = Reranker.from_pretrained(sys.argv[1])
ids, users = one.catalogue.raw_ids, one.raw_users
requests = [
    {"history": ids[:3], "candidates": ids[10:14]},
    {"history": ids[20:22], "candidates": ids[30:33], "decode": {"decoder": "ar"}},
    {"history": ids[5:9], "candidates": ids[40:52]},
    {"history": None, "user": users[4], "candidates": ids[52:57], "decode": {"decoder": "verify"}},
    {"history": [], "candidates": [ids[3], {"title": "a title that nobody has"}, ids[8]]},
]
found = [one.rank(**request) for request in requests]
answers = [
    {"request": q, "order": a.order, "scores": a.scores, "levels": a.levels}
    for q, a in zip(requests, found)
]
json.dump(answers, sys.stdout, default=list)
"""


def trained(source: Path, work: Path) -> Path:
    """The bundle that this source makes of the recipe."""
    sets = [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    _by(source, work, ["-m", "diffgr2.cli", "run", "micro", "--goal", "bundle", *sets])
    return work / "runs" / "micro" / "bundle"


def _by(source: Path, work: Path, arguments: list[str]) -> str:
    """What a program of this source's writes to stdout."""
    env = {**os.environ, "PYTHONPATH": str(source.resolve() / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=work, env=env, check=True, stdout=subprocess.PIPE
    ).stdout.decode()


def packed(bundle: Path) -> bytes:
    """The bundle's files as one archive, the same bytes whenever it is packed."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz", preset=9) as archive:
        for path in sorted(path for path in bundle.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"bundle/{path.relative_to(bundle).as_posix()}")
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return stream.getvalue()


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="A golden bundle of a format.")
    parser.add_argument("name", help="the format's number, and -WORD where it has several goldens")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout that makes it")
    parser.add_argument(
        "--unanswered",
        action="store_true",
        help="the bundle alone, for a version that is not to be compared",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = trained(given.source, Path(work))
        found = json.loads((bundle / "diffgr2.json").read_text())["format"]
        if str(found) != given.name.partition("-")[0]:
            raise SystemExit(f"{given.source}: packs format {found}")
        place = GOLDEN / f"format-{given.name}"
        if not given.unanswered:
            answers = json.loads(_by(given.source, Path(work), ["-c", ANSWERS, str(bundle)]))
            place.with_suffix(".json").write_text(json.dumps(answers, indent=1) + "\n")
        place.with_suffix(".tar.xz").write_bytes(packed(bundle))
        print(f"{place}.tar.xz: {place.with_suffix('.tar.xz').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
