"""Rank all rows of a source into a folder: the one way in for the command line and for Python.

    from diffgr2.bulk.rank_all import rank_all
    rank_all("runs/demo/bundle", "lists.parquet", "ranked", engine="ray", workers=8)

Contract: begins a batch or goes on with it, has an engine do the shares that do not stand, shows
progress and the first rows that were set aside, and returns a `Summary` once every row is accounted
for. `source` may be a Ray Dataset. One command works in an output at a time. Not here: the engines
(`processes`, `on_ray`) and what they promise (`job`).
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from diffgr2.artifacts import locked
from diffgr2.bulk import on_ray, processes
from diffgr2.bulk.cluster import joined
from diffgr2.bulk.job import FORMATS, Job, Summary, Wish, begun, finished, standing
from diffgr2.bulk.places import Place
from diffgr2.bulk.sources import kind_of
from diffgr2.errors import ConfigError, one_of
from diffgr2.model.backends import chosen, cores
from diffgr2.progress import Progress
from diffgr2.rerank.result import Telling

ENGINES = ("local", "ray")
SHOWN = 5  # rows that were set aside

LOCK = "_lock"


def rank_all(
    model: str | Path,
    source: Any,
    output: str | Path,
    *,
    engine: str = "local",
    workers: int = 0,
    cpus: float = 1.0,
    gpus: float = 0.0,
    form: str | None = None,
    telling: Telling = False,
    top_k: int | None = None,
    batch: int = 32,
    per_share: int = 0,
    progress: Progress | None = None,
) -> Summary:
    """Rank all rows of `source` with the bundle `model` into the folder `output`.

    `source` is a file or folder of lists, a URI, or a Ray Dataset. `workers` 0 are as many as there
    are cores (GPUs, where `gpus` says what share of one each takes); `per_share` 0 is chosen by the
    number of rows. `form` is one of `FORMATS`: the source's own where it is one, else jsonl.
    """
    one_of("--engine", engine, ENGINES)
    if form is not None:
        one_of("--format", form, FORMATS)
    if gpus and engine == "local":
        raise ConfigError("--gpus: for --engine ray (a local batch uses the GPU that it sees)")
    place, progress = Place(str(output)), progress or Progress()
    place.make()
    busy = f"{place}: another command is at work here"
    with locked(place.local / LOCK, busy) if place.local else nullcontext():
        place.sweep()
        if engine == "ray":
            many = workers or on_ray.workers_of(joined(), gpus)
            work = partial(on_ray.run, cpus=cpus, gpus=gpus)
        else:
            many = workers or (1 if chosen() == "torch" else cores())
            work = processes.run
        if not isinstance(source, str | Path):
            source = on_ray.brought(source, place)
        own = "parquet" if _holds_parquet(Place(str(source))) else "jsonl"
        wish = Wish(form or own, telling, top_k, batch)
        job = begun(Path(model), str(source), place, wish, workers=many, per_share=per_share)
        _do(job, place, many, work, progress)
        return finished(job, place)


def _holds_parquet(source: Place) -> bool:
    names = [source.base] if source.kind() == "file" else source.names()
    return any(kind_of(name) == "parquet" for name in names)


def _do(job: Job, place: Place, workers: int, work: Any, progress: Progress) -> None:
    """Have the engine do what does not stand."""
    stand = standing(job, place)
    left = [share for share in job.shares() if share.name not in stand]
    rows = sum(share.count for share in left)
    if stand:
        progress.line(f"{place}: {job.rows - rows} of {job.rows} rows stand")
    if not left:
        return
    shown = 0
    with progress.task("rerank", rows) as bar:

        def done(entry: dict[str, Any]) -> None:
            nonlocal shown
            for one in entry["set_aside"]:
                if shown < SHOWN:
                    progress.line(f"row {one['row']} is set aside: {one['reason']}")
                shown += 1
            bar.advance(entry["ranked"] + len(entry["set_aside"]))

        work(str(place), left, workers, done)
