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

def kinds(n):
    some = lambda start, count: [ids[(start + 7 * n + i) % len(ids)] for i in range(count)]
    yield {"history": some(0, 3), "candidates": some(10, 4)}
    yield {"history": some(20, 2), "candidates": some(30, 3), "decode": {"decoder": "ar"}}
    yield {"history": some(5, 4), "candidates": some(40, 9)}
    verify = {"decoder": "verify"}
    yield {"history": None, "user": users[n], "candidates": some(52, 5), "decode": verify}
    new = {"title": "a title that nobody has"}
    yield {"history": some(1, 1), "candidates": [some(3, 1)[0], new, some(8, 1)[0]]}

def margin(answer):
    levels = [level for level in answer.levels if level is not None]
    moved = list(answer.order) != sorted(answer.order)
    return moved, min((a - b for a, b in zip(levels, levels[1:])), default=0.0)

found = []
for asked in zip(*map(kinds, range(30))):  # of each kind the one whose order is the surest
    pairs = [(request, one.rank(**request)) for request in asked]
    request, answer = max(pairs, key=lambda pair: margin(pair[1]))
    print(margin(answer), file=sys.stderr)
    found.append({
        "request": request, "order": answer.order,
        "scores": answer.scores, "levels": answer.levels,
    })
json.dump(found, sys.stdout, default=list)
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
    parser.add_argument("--ask", action="store_true", help="ask anew about the bundle there is")
    parser.add_argument("--source", type=Path, default=ROOT, help="the checkout that makes it")
    parser.add_argument(
        "--unanswered",
        action="store_true",
        help="the bundle alone, for a version that is not to be compared",
    )
    given = parser.parse_args()
    archive = GOLDEN / f"format-{given.name}.tar.xz"
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if given.ask:
            with tarfile.open(archive) as packed_one:
                packed_one.extractall(work, filter="data")
            bundle = work / "bundle"
        else:
            bundle = trained(given.source, work)
            found = json.loads((bundle / "diffgr2.json").read_text())["format"]
            if str(found) != given.name.partition("-")[0]:
                raise SystemExit(f"{given.source}: packs format {found}")
            archive.write_bytes(packed(bundle))
        if not given.unanswered:
            answers = json.loads(_by(given.source, work, ["-c", ANSWERS, str(bundle)]))
            text = json.dumps(answers, indent=1) + "\n"
            (GOLDEN / f"format-{given.name}.json").write_text(text)
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
