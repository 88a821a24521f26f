"""What a list costs as it grows: candidates, history, batch, model. Where does `block` stop paying?

Usage: `python benchmarks/growth.py runs/demo [--out results/growth.json]`. One axis grows, the
others stay at the run's size. At each point ways take turns on one thread: `ar`, and `block` made
to commit everything at once and half of it at a time. The two tell what a further forward costs, so
the point says how many forwards `block` may take before `ar` is as fast. The run's own model also
decodes at the recipe's threshold, and shows how many it takes. Longer lists and histories are put
together from the run's, though it was trained on shorter ones; lists beyond the longest that one
prompt holds are dealt into windows; models of other sizes have random weights, on which the cost of
a forward does not depend. Not a test: nothing passes or fails.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
from contest import BACKENDS, OpenBackend
from machine import Shape
from ours import Noting

from diffgr2.artifacts import write_json
from diffgr2.cli import runs
from diffgr2.config import ModelConfig
from diffgr2.decode.batch import decode
from diffgr2.decode.settings import DecodeSettings
from diffgr2.model.backend import Backend
from diffgr2.model.contract import SECTION, contract_of, read_config
from diffgr2.model.load import build, save
from diffgr2.pipeline import source_commit
from diffgr2.prompts.request import Request
from diffgr2.rerank.readout import dealt
from diffgr2.stages.corpus import Corpus, open_corpus
from diffgr2.stages.plan import CORPUS
from diffgr2.stages.score import prompts_for, test_rows

CANDIDATES = (5, 10, 20, 50, 100)
HISTORY = (8, 20, 50, 100)
BATCHES = (1, 4, 16, 64)
LISTS = 8  # a round, where the batch is one

SIZES: dict[str, dict[str, int]] = {
    "1 M": {"dim": 160, "layers": 3, "heads": 5, "kv_heads": 5, "head_dim": 32, "ffn": 480},
    "3 M": {"dim": 256, "layers": 4, "heads": 8, "kv_heads": 4, "head_dim": 32, "ffn": 640},
    "10 M": {"dim": 384, "layers": 5, "heads": 6, "kv_heads": 3, "head_dim": 64, "ffn": 1280},
    "30 M": {"dim": 640, "layers": 6, "heads": 10, "kv_heads": 5, "head_dim": 64, "ffn": 1920},
}


def lists_of(corpus: Corpus, count: int, k: int, history: int) -> list[Request]:
    """Requests of any size, put together from test lists that follow each other."""
    rows = test_rows(corpus, "hit", 0)
    made = []
    for n in range(count):
        parts: list[Request] = []
        while not parts or sum(part.k for part in parts) < k or _past(parts) < history:
            row = int(rows[(n + 37 * len(parts)) % len(rows)])
            every = np.arange(corpus.lists["test"].k)
            parts.append(corpus.request("test", row, every))
        codes_KL = np.concatenate([part.codes_KL for part in parts])[:k]
        buckets_KF = np.concatenate([part.buckets_KF for part in parts])[:k]
        history_HL = np.concatenate([part.history_HL for part in parts])[:history]
        made.append(
            replace(parts[0], history_HL=history_HL, codes_KL=codes_KL, buckets_KF=buckets_KF)
        )
    return made


def _past(parts: Sequence[Request]) -> int:
    return sum(len(part.history_HL) for part in parts)


class Point:
    """Lists of one size, and a model."""

    def __init__(
        self, corpus: Corpus, backend: Backend, directory: Path, requests: Sequence[Request]
    ) -> None:
        self.corpus, self.backend, self.requests = corpus, backend, requests
        self.contract, self.shape = contract_of(directory), Shape.of(directory)
        most = corpus.template.vocab.spec.k
        windows = [dealt(np.arange(r.k), most) for r in requests]
        self.shown = [
            [request.taken(places) for places in parts]
            for request, parts in zip(requests, windows, strict=True)
        ]

    def settings(self, decoder: str, **given: Any) -> DecodeSettings:
        return self.corpus.settings(self.contract, decoder=decoder, **given)

    def ways(self, *, own: bool) -> dict[str, DecodeSettings]:
        """The decoders that take turns; a model that was not trained is made to commit."""
        k = max(request.k for part in self.shown for request in part)
        tokens = min(k * (2 + self.corpus.recipe.prompt.cites), self.settings("block").block_size)
        forced = {
            "least": {"accept": "threshold", "threshold": 0.0},
            "more": {"accept": "static", "per_step": -(-tokens // 2)},
        } | ({"block": {}} if own else {})
        block = {name: self.settings("block", **given) for name, given in forced.items()}
        return {"ar": self.settings("ar"), **block}

    def run(self, settings: DecodeSettings, batch: int, backend: Backend | None = None) -> None:
        """Rank all lists, so many at once, with all of their windows."""
        for first in range(0, len(self.shown), batch):
            shown = [part for parts in self.shown[first : first + batch] for part in parts]
            asked = prompts_for(self.corpus, shown, "said")
            decode(backend or self.backend, asked, settings, batch=len(asked))

    def forwards(self, settings: DecodeSettings, batch: int) -> float:
        noting = Noting(self.backend, self.shape)
        self.run(settings, batch, noting)
        return noting.total.forwards / (len(self.shown) / batch)


def costs(point: Point, batch: int, rounds: int, *, own: bool) -> dict[str, Any]:
    """Milliseconds per list of each way, and what follows from them."""
    ways = point.ways(own=own)
    forwards = {name: point.forwards(way, batch) for name, way in ways.items()}  # and warm
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            taken[name].append(machine.elapsed(lambda way=way: point.run(way, batch), 1)[0])
    ms = {name: float(np.median(t)) * 1e3 / len(point.requests) for name, t in taken.items()}
    more = max(forwards["more"] - forwards["least"], 1e-9)
    further = (ms["more"] - ms["least"]) / more
    pays = forwards["least"] + (ms["ar"] - ms["least"]) / further if further > 0 else None
    result = {f"{name}_ms": round(value, 3) for name, value in ms.items() if name != "more"}
    result |= {f"{name}_forwards": round(n, 2) for name, n in forwards.items() if name != "more"}
    result["further_forward_ms"] = round(further, 3)
    return result | {"pays_up_to": round(pays, 1) if pays is not None else None}


def points(
    corpus: Corpus, student: Path, open_backend: OpenBackend, scratch: Path, axes: Sequence[str]
) -> Iterator[tuple[str, Any, int, Point, bool]]:
    """(axis, value, batch, the lists and the model, whether it is the run's own)."""
    k, history = corpus.k, corpus.recipe.prompt.history
    backend = open_backend(student)

    def own(count: int, k: int = k, history: int = history) -> Point:
        return Point(corpus, backend, student, lists_of(corpus, count, k, history))

    if "candidates" in axes:
        for value in CANDIDATES:
            yield "candidates", value, 1, own(LISTS, k=value), True
    if "history" in axes:
        for value in HISTORY:
            yield "history", value, 1, own(LISTS, history=value), True
    if "batch" in axes:
        for value in BATCHES:
            yield "batch", value, value, own(max(LISTS, value)), True
    if "model" in axes:
        for name, dims in SIZES.items():
            directory = scratch / name.replace(" ", "")
            random_model(corpus, student, directory, dims)
            lists = lists_of(corpus, LISTS, k, history)
            yield (
                "model",
                name,
                1,
                Point(corpus, open_backend(directory), directory, lists),
                False,
            )


def random_model(corpus: Corpus, like: Path, directory: Path, dims: dict[str, int]) -> None:
    """A block-diffusion checkpoint of these dimensions and another's contract."""
    config = corpus.recipe.model.model_dump() | dims | {"base": None}
    directory.mkdir()
    model = build(ModelConfig.model_validate(config), corpus.vocab.spec.size, seed=0)
    save(model, directory, {SECTION: read_config(like)[SECTION]})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a run's directory, or a recipe")
    parser.add_argument("--engine", default=next(iter(BACKENDS)), choices=BACKENDS)
    parser.add_argument("--axes", default="candidates,history,batch,model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    run = runs.open_report(given.run, None, None)
    corpus = open_corpus({name: run.root / name for name in CORPUS}, run.recipe)
    rows = []
    with tempfile.TemporaryDirectory() as scratch, machine.pinned(1):
        work = (run.root / "block_rl", BACKENDS[given.engine], Path(scratch))
        for axis, value, batch, point, own in points(corpus, *work, given.axes.split(",")):
            found = costs(point, batch, given.rounds, own=own)
            rows.append({"axis": axis, "value": value, **found})
            print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    command = machine.command("growth", f"runs/{run.recipe.name}")
    made = {"recipe": run.recipe.name, "commit": source_commit(), "command": command}
    made |= {"engine": given.engine, "rounds": given.rounds, "machine": machine.about()}
    if given.out is not None:
        write_json(given.out, {**made, "rows": rows})


if __name__ == "__main__":
    main()
